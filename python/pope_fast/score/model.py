"""Log-probs of fixed completions under a Hugging Face causal language model, batch by batch of a plan.

Only completion positions go through the head, in tiles. A shared batch runs its prompts once and continues their keys
and values; an unshared one runs prompts and completions together, padded on the right, where causal attention needs no
mask. What the model gives on a few tokens decides at the start which of its ways are right for it.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from pope_fast.errors import PopeError, PopeWarning
from pope_fast.score.budget import context_length, default_token_budget, is_out_of_memory
from pope_fast.score.forward import Forward, Way
from pope_fast.score.gemm import FastLinear
from pope_fast.score.head import evaluating
from pope_fast.score.pieces import Pairs, Piece, cut
from pope_fast.score.plain import check_causal
from pope_fast.score.plan import Batch, Plan, make_plan
from pope_fast.score.tokens import positions

__all__ = ["BatchScores", "ModelScorer"]

_Int64 = npt.NDArray[np.int64]
_Float32 = npt.NDArray[np.float32]

# Where prompts are copied for every completion: memory of a copied token, relative to that of a token run through the
# model. One layer's keys and values exist at a time, against the activations of a whole layer.
_COPIED_TOKEN = 0.25

# Pairs of the first batch of a run that are held against a plain forward each.
_CHECKED_PAIRS = 4

# Most bytes of the full logits of a call, where the model's own head has to be used.
_LOGITS_BYTES = 1 << 29


@dataclass(frozen=True, slots=True)
class BatchScores:
    """Log-probs of the pairs of one batch of a plan.

    Attributes
    ----------
    batch : int
        Number of the batch in the plan.
    pairs : int64 array of shape (n,)
        Ids of the pairs: ``plan[batch].pairs``.
    offsets : int64 array of shape (n + 1,)
        The tokens of pair i are ``logprobs[offsets[i]:offsets[i + 1]]``.
    logprobs : float32 array of shape (offsets[-1],)
        Log-probability of each completion token given all before it, in nats.
    sums : float64 array of shape (n,)
        Sum over the tokens of each pair.
    """

    batch: int
    pairs: _Int64
    offsets: _Int64
    logprobs: _Float32
    sums: npt.NDArray[np.float64]


class ModelScorer:
    """Scores completions with one loaded model.

    Parameters
    ----------
    model : transformers.PreTrainedModel or peft.PeftModel
        On the device it shall run on, in the dtype it shall run in. It is left in the mode it was in.
    temperature : float
        The scored policy is ``softmax(logits / temperature)``.
    token_budget : int, optional
        What :attr:`token_budget` shall be; by default it is found from the device and the model.
    share_prompt : "auto", True or False
        Whether shared batches of a plan are run as such. "auto": if the model gives the same log-probs then.
    deterministic : bool
        Batches are run exactly as planned and with torch's deterministic algorithms, so that a batch has the same bits
        whatever was run before it; running out of memory is an error. One machine and number of threads is understood.

    Attributes
    ----------
    context_length : int or None
        Most tokens of prompt and completion together; None if the model states none.
    vocab_size : int
        Token ids must be below it: rows of the input embeddings, or of the logits if there are fewer.
    device : torch.device
        Where token ids go.
    dtype, attention : str
        "float32", "bfloat16"...; "sdpa", "eager"...
    token_budget : int
        Padded tokens of a call for which plans should be made. It does not depend on what memory is free.
    shares_prompts : bool
        Whether shared batches are run as such; otherwise their pairs are run unshared.
    why_unshared : str or None
        Why not.
    own_head : bool
        Whether logits come from the model's own head in full, because :func:`find_head` cannot express it.

    Raises
    ------
    PopeError
        If an option is out of its range, or ``share_prompt`` is True and the model cannot share prompts.

    Examples
    --------
    >>> scorer = ModelScorer(model)  # doctest: +SKIP
    >>> scorer.score([[1, 5, 6]], [[[7, 8], [9]]])  # doctest: +SKIP
    [[array([-2.1, -0.3], dtype=float32), array([-4.0], dtype=float32)]]
    """

    def __init__(
        self,
        model: Any,
        *,
        temperature: float = 1.0,
        token_budget: int | None = None,
        share_prompt: bool | Literal["auto"] = "auto",
        deterministic: bool = False,
    ) -> None:
        if not (temperature > 0 and math.isfinite(temperature)):
            raise PopeError(f"temperature must be positive, not {temperature}")
        if token_budget is not None and token_budget < 1:
            raise PopeError(f"token_budget must be at least 1, not {token_budget}")
        if share_prompt not in ("auto", True, False):
            raise PopeError(f"share_prompt must be 'auto', True or False, not {share_prompt!r}")
        self.model = model
        self.temperature = float(temperature)
        self.deterministic = deterministic
        self.context_length = context_length(model)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.attention = str(getattr(model.config, "_attn_implementation", None))
        self._share = share_prompt
        with self._computing():
            check_causal(model)
            self._forward = Forward(model, self.temperature)
            self._look()
        self.device = self._forward.device
        embedded, outputs = model.get_input_embeddings(), model.get_output_embeddings()
        rows = [layer.weight.shape[0] for layer in (embedded, outputs) if getattr(layer, "weight", None) is not None]
        self.vocab_size = int(min(rows))
        self.token_budget = token_budget or default_token_budget(model, self.device)
        # What a call may hold at present: lowered when memory runs out.
        self._limit: float = math.inf

    @property
    def shares_prompts(self) -> bool:
        """Whether shared batches are run as such."""
        return self._forward.way is not None

    @property
    def why_unshared(self) -> str | None:
        """Why they are not."""
        return self._forward.why_unshared

    @property
    def own_head(self) -> bool:
        """Whether the model's own head is used."""
        return self._forward.head is None

    def _look(self) -> None:
        """Find out which ways of sharing prompts are right for the model as it is now."""
        if self._share is False:
            self._forward.why_unshared = "share_prompt is False"
            return
        self._forward.probe()
        if self._share is True and not self.shares_prompts:
            raise PopeError(f"the model cannot share prompts ({self.why_unshared}). Remedy: share_prompt='auto'.")

    def score(self, prompts: Sequence[Any], completions: Sequence[Sequence[Any]]) -> list[list[_Float32]]:
        """Score ``completions[i][j]`` after ``prompts[i]``: a plan and a run in one call.

        Parameters
        ----------
        prompts : sequence of integer arrays
        completions : sequence of sequences of integer arrays

        Returns
        -------
        list of lists of float32 arrays
            Log-probability of each completion token.
        """
        counts = [len(group) for group in completions]
        rows = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        flat = [completion for group in completions for completion in group]
        plan = make_plan(rows, flat, token_budget=self.token_budget, share_prompt=self._share)
        found: dict[int, _Float32] = {}
        for batch in self.run(plan):
            found.update(zip(batch.pairs.tolist(), np.split(batch.logprobs, batch.offsets[1:-1]), strict=True))
        scores = iter([found[pair] for pair in plan.inverse.tolist()])
        return [[next(scores).copy() for _ in range(count)] for count in counts]

    def run(self, plan: Plan, batches: Iterable[int] | None = None) -> Iterator[BatchScores]:
        """Score batches of a plan.

        Parameters
        ----------
        plan : Plan
        batches : iterable of int, optional
            Their numbers; all by default. They are scored in this order.

        Yields
        ------
        BatchScores

        Raises
        ------
        PopeError
            If a token id is outside the vocabulary, a pair is longer than the context, or memory runs out for a
            single pair (for a batch, if deterministic).
        """
        if plan.largest_id >= self.vocab_size:
            raise PopeError(f"token id {plan.largest_id} is outside the model's vocabulary of {self.vocab_size}")
        if self.context_length is not None and plan.most_tokens > self.context_length:
            raise PopeError(f"a pair has {plan.most_tokens} tokens, the model's context {self.context_length}")
        pairs = Pairs.of(plan)
        first = True
        for index in range(len(plan)) if batches is None else batches:
            batch = plan[index]
            chosen, budget = pairs[batch.pairs], plan.options.token_budget
            scores = self._score(chosen, batch, budget)
            # As often as it takes, with ever fewer shortcuts, before anything is given out.
            while first and not self._right(chosen, scores):
                scores = self._score(chosen, batch, budget)
            first = False
            yield scores

    def _right(self, pairs: Pairs, scores: BatchScores) -> bool:
        """Hold some pairs of a batch against plain forwards; where they differ, do without what may be at fault.

        Raises
        ------
        PopeError
            If they differ although nothing is shared and the model's own head is used.
        """
        some = np.unique(np.linspace(0, len(pairs) - 1, _CHECKED_PAIRS).astype(np.int64))
        found = np.concatenate([scores.logprobs[scores.offsets[i] : scores.offsets[i + 1]] for i in some.tolist()])
        try:
            with self._computing():
                if np.isnan(found).any() or self._forward.is_plain(pairs[some], found):
                    return True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            warnings.warn(
                "there is no memory for the plain forward that the first batch is held against: it is unchecked",
                PopeWarning,
                stacklevel=2,
            )
            return True
        name = type(self.model).__name__
        if self.shares_prompts:
            self._forward.way = None
            self._forward.why_unshared = fault = "shared prompts give other log-probs than the whole text"
        elif self._forward.head is not None:
            self._forward.without_head()
            fault = "the tiled head gives other log-probs than the model's own"
        else:
            raise PopeError(
                f"{name}: padding after a response changes its log-probs, so that no batch is right. Remedy: score it "
                "with token_budget=1 (--token-budget 1)."
            )
        warnings.warn(f"{name}: {fault}; the run does without", PopeWarning, stacklevel=2)
        return False

    def _score(self, pairs: Pairs, batch: Batch, budget: int) -> BatchScores:
        """Score a batch, in smaller pieces if memory asks for it."""
        offsets = np.concatenate(([0], np.cumsum(pairs.length)))
        logprobs = np.full(int(offsets[-1]), np.nan, np.float32)
        everything = np.arange(len(pairs))
        way = self._way(pairs) if batch.shared else None
        limit = self._allowed(budget)
        if limit >= budget and (way is not None) == batch.shared and way != "expanded":
            waiting = [Piece(batch.shared, everything, batch.chunks)]
        else:
            waiting = self._cut(pairs, everything, way, limit)
        with self._computing():
            while waiting:
                piece = waiting.pop(0)
                found = self._try(pairs[piece.at], piece, way)
                if found is None:
                    waiting[:0] = self._smaller(pairs, piece, way, limit)
                    limit = self._allowed(budget)
                else:
                    logprobs[positions(offsets[piece.at], pairs.length[piece.at])] = found
        sums = np.add.reduceat(logprobs.astype(np.float64), offsets[:-1])
        return BatchScores(batch.index, batch.pairs, offsets, logprobs, sums)

    def _way(self, pairs: Pairs) -> Way | None:
        """Return how these pairs share prompts."""
        if self._forward.way == "split" and int((pairs.prompt_length + pairs.length).max()) > self._forward.window:
            return "expanded"
        return self._forward.way

    def _allowed(self, budget: int) -> int:
        """Return the padded tokens that a call may hold."""
        limit = min(budget, self._limit)
        if self.own_head:
            limit = min(limit, max(1, _LOGITS_BYTES // (4 * self.vocab_size)))
        return int(limit)

    def _cut(self, pairs: Pairs, at: _Int64, way: Way | None, budget: int) -> list[Piece]:
        return cut(pairs, at, way is not None, budget, _COPIED_TOKEN if way == "expanded" else 0.0)

    def _try(self, pairs: Pairs, piece: Piece, way: Way | None) -> _Float32 | None:
        """Score a piece; None if memory ran out."""
        try:
            forward = self._forward
            parts = [forward.unshared(pairs)] if way is None else forward.shared(pairs, piece.chunks, way)
            found: _Float32 = torch.cat(parts).cpu().numpy()
            return found
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Here the traceback is gone, and with it the tensors that its frames held.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _smaller(self, pairs: Pairs, piece: Piece, way: Way | None, limit: int) -> list[Piece]:
        """Halve the budget after memory ran out, and cut the piece that failed anew."""
        if self.deterministic:
            raise PopeError(
                f"out of memory in a batch of at most {limit} tokens. Remedy: lower token_budget, or do without "
                "deterministic, which forbids smaller batches than those planned."
            )
        while limit > 1:
            limit //= 2
            pieces = self._cut(pairs, piece.at, way, limit)
            if len(pieces) > 1 or len(pieces[0].chunks) > len(piece.chunks):
                self._limit = limit
                return pieces
        longest = int((pairs.prompt_length + pairs.length)[piece.at].max())
        raise PopeError(
            f"out of memory for a single pair of {longest} tokens. Remedy: exclude it, load the model in a smaller "
            "dtype, or use a device with more memory."
        )

    @contextmanager
    def adapter(self, name: str | None) -> Iterator[None]:
        """Within it, a PEFT model scores with one of its adapters; afterwards with the one it had.

        Parameters
        ----------
        name : str or None
            The adapter; None for the base model without any.

        Raises
        ------
        PopeError
            If the model has no such adapter.
        """
        model, known = self.model, list(getattr(self.model, "peft_config", {}))
        if name is not None and name not in known:
            raise PopeError(f"the model has no adapter {name!r}; it has: {', '.join(known) or 'none'}")
        if not known:
            yield
            return
        with ExitStack() as stack:
            stack.callback(self._changed)
            if name is None:
                stack.enter_context(model.disable_adapter())
            else:
                before = model.active_adapter
                stack.callback(model.set_adapter, before)
                model.set_adapter(name)
            self._changed()
            yield

    def _changed(self) -> None:
        """Look at the model again after its adapter has changed."""
        with self._computing():
            self._forward.refresh()
            self._look()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Within it, the model is in evaluation mode, and products and algorithms are what they shall be."""
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            stack.enter_context(FastLinear())
            if self.deterministic:
                stack.enter_context(_deterministic())
            yield


@contextmanager
def _deterministic() -> Iterator[None]:
    """Within it, torch uses algorithms that give the same bits every time, or raises."""
    # cuBLAS is deterministic only with workspaces of a fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
