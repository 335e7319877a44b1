"""Drawing responses with a causal language model: each prompt is computed once for all its draws."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pope_fast.errors import PopeError, PopeWarning
from pope_fast.sample.distribution import log_distribution
from pope_fast.sample.settings import Sampling
from pope_fast.sample.streams import choose, step_keys
from pope_fast.score.budget import default_token_budget, is_out_of_memory
from pope_fast.score.plain import agrees, base_parameters, cache_argument, cache_of, check_causal, plain_logits

__all__ = ["Draw", "decode"]

# Rows that have ended are taken out of the batch once this share of it is left: taking out copies the cache.
_COMPACT = 0.75
# Logits that are normalized at once; few on a CPU, where they should stay in its cache.
_LOGITS = {"cpu": 1 << 20}
_MANY_LOGITS = 1 << 27
# Logits of a batch: what bounds its rows where prompts and responses are short.
_BATCH_LOGITS = 1 << 28
# A token that is only kept in the cache takes less memory than one that goes through the model.
_CACHED_TOKENS = 2
# Layers that ignore padding on the left. Others count slots (chunks) or carry it along (recurrent states).
_PADDABLE = frozenset({"full_attention", "sliding_attention"})
# Draws of the first batch that are held against a plain forward, and tokens of each.
_CHECKED_DRAWS, _CHECKED_TOKENS = 4, 64


class Draw(NamedTuple):
    """One response.

    Attributes
    ----------
    ids : int32 array, shape (t,)
        Its tokens, with the one that ended it if one did.
    logprobs, softmax : float32 array, shape (t,)
        Log-probability of each token (nats) under the sampler, and under the softmax without truncation.
    stopped : bool
        Whether a token ended it, and not the limit.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    softmax: NDArray[np.float32]
    stopped: bool


@dataclass(frozen=True, slots=True)
class Job:
    """Draws of one prompt that go into one batch.

    Attributes
    ----------
    prompt : int
        Number of the prompt.
    ids : int32 array
        Its tokens.
    first : int
        Number of the first draw.
    keys : uint64 array
        The key of each draw.
    """

    prompt: int
    ids: NDArray[np.int32]
    first: int
    keys: NDArray[np.uint64]

    def cut(self, at: int) -> tuple[Job, Job]:
        """Cut into the first ``at`` draws and the others."""
        return (
            Job(self.prompt, self.ids, self.first, self.keys[:at]),
            Job(self.prompt, self.ids, self.first + at, self.keys[at:]),
        )


def decode(
    model: Any,
    prompts: Sequence[NDArray[np.int32]],
    keys: Sequence[NDArray[np.uint64]],
    sampling: Sampling,
    stop_ids: Sequence[int],
    *,
    token_budget: int | None = None,
    advance: Callable[[int], None] = lambda draws: None,
) -> list[list[Draw]]:
    """Draw responses.

    Parameters
    ----------
    model : transformers.PreTrainedModel or peft.PeftModel
        Where and in the precision in which it shall run.
    prompts : sequence of int32 arrays
        Token ids, at least one each.
    keys : sequence of uint64 arrays
        For each prompt the keys of its draws.
    sampling : Sampling
    stop_ids : sequence of int
        Tokens that end a response.
    token_budget : int, optional
        Most padded tokens of a batch, prompts counted with every draw, as they are in the cache; found from the model
        and the device by default.
    advance : callable
        Told the number of responses that have been drawn since it was last called.

    Returns
    -------
    list of list of Draw
        By prompt and draw.

    Raises
    ------
    PopeError
        If a single response does not fit into memory, the model's logits are not numbers, or it is not causal.

    Notes
    -----
    Some draws of the first batch are held against a plain forward. Where the cache or the padding gives other
    log-probs, the run does without them, and warns.
    """
    token_budget = token_budget or _CACHED_TOKENS * default_token_budget(model, _device(model))
    runner = _Runner(model, sampling, stop_ids, token_budget, advance)
    drawn: list[list[Draw | None]] = [[None] * len(of_prompt) for of_prompt in keys]
    with _evaluating(model):
        check_causal(model)
        # The longest first: if memory is short, that shows at once.
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        for batch in runner.batches([Job(i, prompts[i], 0, keys[i]) for i in order]):
            for prompt, number, draw in runner.run(batch):
                drawn[prompt][number] = draw
    return [[draw for draw in of_prompt if draw is not None] for of_prompt in drawn]


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Turn off dropout and gradients for a while."""
    training = bool(model.training)
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _device(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device
    return device


class _Runner:
    """Batches, and one after the other through the model."""

    def __init__(
        self,
        model: Any,
        sampling: Sampling,
        stop_ids: Sequence[int],
        token_budget: int,
        advance: Callable[[int], None],
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.device = _device(model)
        self.stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=self.device)
        self.budget = token_budget
        self.advance = advance
        parameters = base_parameters(model)
        config = model.config.get_text_config(decoder=True)
        self.rows = max(1, _BATCH_LOGITS // int(config.vocab_size))
        kinds = set(getattr(config, "layer_types", None) or _PADDABLE)
        self.pads = {"position_ids", "attention_mask"} <= parameters and kinds <= _PADDABLE
        self.options: dict[str, int] = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self.cache_argument = cache_argument(model)
        self.cached = self.cache_argument is not None
        self.checked = False

    def room(self, length: int) -> int:
        """Return how many draws for prompts of some length go into a batch."""
        return max(1, min(self.budget // (length + self.sampling.max_new_tokens), self.rows))

    def batches(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """Put jobs, longest prompt first, into batches under the budget; jobs with many draws are cut."""
        batch: list[Job] = []
        room = 0
        for whole in jobs:
            job = whole
            while job.keys.size:
                length = len(job.ids)
                # The first prompt of a batch is its longest, and the others are padded to it.
                if not batch or room < 1 or (not self.pads and length != len(batch[0].ids)):
                    if batch:
                        yield batch
                    batch, room = [], self.room(length)
                part, job = job.cut(min(room, job.keys.size))
                batch.append(part)
                room -= part.keys.size
        if batch:
            yield batch

    def run(self, batch: list[Job]) -> Iterator[tuple[int, int, Draw]]:
        """Draw a batch; in halves if memory does not suffice."""
        rows = sum(job.keys.size for job in batch)
        if rows > self.room(len(batch[0].ids)):
            yield from self._halves(batch)
            return
        try:
            draws = self._draw(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if rows == 1:
                raise PopeError(
                    f"not enough memory for one response to a prompt of {len(batch[0].ids)} tokens. Remedy: fewer "
                    "max_new_tokens, half precision, or a larger device."
                ) from error
            draws = None
        if draws is None:  # after the exception, which holds on to the tensors of its frames
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.budget = max(1, self.budget // 2)
            yield from self._halves(batch)
            return
        if not self._right(batch, draws):
            for job in batch:  # each alone: without padding
                yield from self.run([job])
            return
        self.advance(rows)
        row = 0
        for job in batch:
            for number in range(job.keys.size):
                yield job.prompt, job.first + number, draws[row]
                row += 1

    def _right(self, batch: list[Job], draws: list[Draw]) -> bool:
        """Hold the first draws against a plain forward; if they differ, have the run do without cache and padding."""
        if self.checked or not (self.cached or self.pads):
            return True
        prompts = [job.ids for job in batch for _ in range(job.keys.size)]
        # The longest: theirs is the cache that was cut and reordered most.
        some = sorted(range(len(draws)), key=lambda row: -draws[row].ids.size)[:_CHECKED_DRAWS]
        self.checked = draws[some[0]].ids.size > 1
        if all(self._is_plain(prompts[row], draws[row]) for row in some):
            return True
        self.cached = self.pads = False
        self.checked = True
        warnings.warn(
            f"{type(self.model).__name__}: with its cache, or with prompts padded, it gives other log-probs than on "
            "the whole text; everything is computed again for each token, which is right and slow",
            PopeWarning,
            stacklevel=2,
        )
        return False

    def _is_plain(self, prompt: NDArray[np.int32], draw: Draw) -> bool:
        ids = draw.ids[:_CHECKED_TOKENS]
        logits = plain_logits(self.model, np.concatenate([prompt, ids[:-1]]), ids.size)
        _, softmax = log_distribution(logits, self.sampling)
        chosen = torch.from_numpy(ids.astype(np.int64))[:, None].to(softmax.device)
        return agrees(draw.softmax[: ids.size], softmax.gather(-1, chosen)[:, 0].cpu().numpy(), self.model.dtype)

    def _halves(self, batch: list[Job]) -> Iterator[tuple[int, int, Draw]]:
        rows = sum(job.keys.size for job in batch)
        left: list[Job] = []
        right: list[Job] = []
        seen = 0
        for job in batch:
            first, second = job.cut(min(max(rows // 2 - seen, 0), job.keys.size))
            left += [first] if first.keys.size else []
            right += [second] if second.keys.size else []
            seen += job.keys.size
        yield from self.run(left)
        yield from self.run(right)

    def _draw(self, batch: list[Job]) -> list[Draw]:
        keys = np.concatenate([job.keys for job in batch])
        owner = np.repeat(np.arange(len(batch)), [job.keys.size for job in batch])
        rows, limit = keys.size, self.sampling.max_new_tokens
        tokens = np.zeros((rows, limit), np.int32)
        logprobs = np.zeros((2, rows, limit), np.float32)
        lengths = np.full(rows, limit)
        stopped = np.zeros(rows, np.bool_)
        text = self._prefill([job.ids for job in batch])
        logits = text.logits[torch.from_numpy(owner).to(self.device)]
        text.select(owner)
        live = np.arange(rows)  # the row of each place in the batch
        running = np.ones(rows, np.bool_)
        for step in range(limit):
            chosen, scores = self._pick(logits, step_keys(keys[live], step))
            ends = torch.isin(chosen, self.stop_ids).cpu().numpy()
            active = running[live]
            tokens[live[active], step] = chosen.cpu().numpy()[active]
            logprobs[:, live[active], step] = scores.cpu().numpy()[:, active]
            ended = live[ends & active]
            running[ended], stopped[ended], lengths[ended] = False, True, step + 1
            if step + 1 == limit or not running.any():
                break
            keep = np.flatnonzero(running[live])
            if keep.size <= _COMPACT * live.size:
                live = live[keep]
                text.select(keep)
                chosen = chosen[torch.from_numpy(keep).to(self.device)]
            logits = text.extend(chosen)
        drawn = zip(tokens, logprobs[0], logprobs[1], lengths.tolist(), stopped.tolist(), strict=True)
        draws = [Draw(ids[:n], sampler[:n], softmax[:n], end) for ids, sampler, softmax, n, end in drawn]
        if any(np.isnan(draw.logprobs).any() for draw in draws):
            raise PopeError("the model's logits are not numbers (NaN). Remedy: another dtype, for example float32.")
        return draws

    def _pick(self, logits: Tensor, keys: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Choose the next tokens; return them with their log-probs under sampler and softmax, shape (2, n)."""
        parts = max(1, _LOGITS.get(self.device.type, _MANY_LOGITS) // logits.shape[-1])
        chosen, scores = [], []
        on_device = torch.from_numpy(keys).to(self.device)
        for start in range(0, logits.shape[0], parts):
            sampler, softmax = log_distribution(logits[start : start + parts], self.sampling)
            picked = choose(sampler, on_device[start : start + parts])
            chosen.append(picked)
            scores.append(torch.stack([table.gather(-1, picked[:, None])[:, 0] for table in (sampler, softmax)]))
        return torch.cat(chosen), torch.cat(scores, dim=1)

    def _prefill(self, prompts: list[NDArray[np.int32]]) -> _Cached | _Uncached:
        """Run the prompts, padded on the left so that all continue at the same place."""
        longest = max(map(len, prompts))
        ids = np.zeros((len(prompts), longest), np.int64)
        mask = np.zeros((len(prompts), longest), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        text = _Text(torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device))
        if self.cached:
            output = self._forward(text, None)
            cache = cache_of(output, self.cache_argument)
            if hasattr(cache, "reorder_cache"):
                return _Cached(self, text, output.logits[:, -1], cache)
            self.cached = False  # a model that keeps no cache, or one that cannot be told which rows to keep
        return _Uncached(self, text, self._forward(text, None, use_cache=False).logits[:, -1])

    def _forward(self, text: _Text, cache: Any, *, use_cache: bool = True) -> Any:
        """Call the model on all of a text, or on its last token if there is a cache of the others."""
        more: dict[str, Any] = dict(self.options)
        if self.pads:
            positions = (text.mask.cumsum(-1) - 1).clamp(min=0)
            more |= {"attention_mask": text.mask, "position_ids": positions if cache is None else positions[:, -1:]}
        if cache is not None:
            more[str(self.cache_argument)] = cache
        ids = text.ids if cache is None else text.ids[:, -1:]
        return self.model(input_ids=ids, use_cache=use_cache, **more)


@dataclass(slots=True)
class _Text:
    """Prompts and what was drawn, shape (n, t), and which of these are tokens and not padding."""

    ids: Tensor
    mask: Tensor

    def select(self, rows: Tensor) -> None:
        self.ids, self.mask = self.ids[rows], self.mask[rows]

    def append(self, tokens: Tensor) -> None:
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=-1)
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=-1)


class _Uncached:
    """A batch of texts whose next logits are computed from the beginning every time."""

    def __init__(self, runner: _Runner, text: _Text, logits: Tensor) -> None:
        self.runner = runner
        self.text = text
        self.logits = logits

    def select(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows, each as often as it is named."""
        self.text.select(torch.from_numpy(rows).to(self.runner.device))

    def extend(self, tokens: Tensor) -> Tensor:
        """Append a token to each row; return the logits of the next one."""
        self.text.append(tokens)
        logits: Tensor = self.runner._forward(self.text, None, use_cache=False).logits[:, -1]
        return logits


class _Cached(_Uncached):
    """The same with keys and values kept."""

    def __init__(self, runner: _Runner, text: _Text, logits: Tensor, cache: Any) -> None:
        super().__init__(runner, text, logits)
        self.cache = cache

    def select(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows, each as often as it is named."""
        super().select(rows)
        self.cache.reorder_cache(torch.from_numpy(rows).to(self.runner.device))

    def extend(self, tokens: Tensor) -> Tensor:
        """Append a token to each row; return the logits of the next one."""
        self.text.append(tokens)
        logits: Tensor = self.runner._forward(self.text, self.cache).logits[:, -1]
        return logits
