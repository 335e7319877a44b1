"""Calls of a model for some pairs: prompt and completion together, or prompts once and completions after them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pope_fast.score.continuation import (
    CannotShareError,
    check_cache,
    expanded,
    smallest_window,
    split,
    split_attention,
)
from pope_fast.score.head import Head, find_decoder, find_head, input_device, probe_ids, token_logprobs
from pope_fast.score.pieces import Pairs, prompt_inputs
from pope_fast.score.plain import agrees, cache_argument, cache_of, plain_logits
from pope_fast.score.tokens import TokenLists, positions

__all__ = ["Forward", "Way"]

_Int64 = npt.NDArray[np.int64]

#: How completions see their prompts: see :mod:`pope_fast.score.continuation`.
Way = Literal["split", "expanded"]

# Largest difference that a probe forgives, in nats: rounding of the model's own operations, in another order.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.3}

# Rows of full logits that are brought to float32 at once, where the model's own head has to be used: in bytes.
_LOGITS_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class _Prompts:
    """Prompts that the model has seen: cache, last rows, lengths, and which places of the cache are no padding."""

    cache: Any
    last: Tensor
    lengths: _Int64
    seen: npt.NDArray[np.bool_] | None


class Forward:
    """Runs one model.

    Attributes
    ----------
    head : Head or None
        None if the model's own head is used.
    way : Way or None
        How prompts are shared; None if they are not.
    why_unshared : str or None
    window : float
        Tokens up to which every layer sees them all; the split way is right up to it.
    """

    def __init__(self, model: Any, temperature: float) -> None:
        self.model = model
        self.temperature = temperature
        self.way: Way | None = None
        self.why_unshared: str | None = None
        self.window = 0.0
        self.device = input_device(model)
        self.refresh()

    def refresh(self) -> None:
        """Look at the head again, after the adapter has changed."""
        self.head: Head | None = find_head(self.model)
        self._look_at_body()

    def without_head(self) -> None:
        """Go on with the model's own head."""
        self.head = None
        self._look_at_body()

    def _look_at_body(self) -> None:
        decoder: Any = find_decoder(self.model)
        self._body = self.model if self.head is None else decoder
        self._config = getattr(self._body, "config", self.model.config)
        accepted = inspect.signature(self._body.forward).parameters
        self._cache_argument = cache_argument(self._body)
        any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        self._takes_positions = "position_ids" in accepted or (hasattr(self.model, "peft_config") and any_name)
        self._keeps = self.head is None and ("logits_to_keep" in accepted or hasattr(self.model, "peft_config"))

    def unshared(self, pairs: Pairs) -> Tensor:
        """Return the log-probs of all completion tokens, pair after pair."""
        ids = pairs.inputs()
        width = ids.shape[1]
        # The padding is on the right, where no token that counts attends to it.
        rows, _ = self._call(ids, keep=width - int(pairs.prompt_length.min()) + 1)
        dropped = width - rows.shape[1]
        starts = np.arange(len(pairs)) * rows.shape[1] + pairs.prompt_length - 1 - dropped
        return self._logprobs([(rows, positions(starts, pairs.length))], pairs.targets())

    def shared(self, pairs: Pairs, chunks: tuple[slice, ...], way: Way) -> list[Tensor]:
        """Return the log-probs of all completion tokens, pair after pair, in a tensor for each chunk."""
        chosen, prompt = np.unique(pairs.prompt, return_inverse=True)
        lengths = pairs.prompts.lengths[chosen]
        ids = prompt_inputs(pairs.prompts, chosen)
        padding = ids.shape[1] - lengths
        seen = np.arange(ids.shape[1]) >= padding[:, None] if padding.any() else None
        places = None if seen is None else np.maximum(np.arange(ids.shape[1]) - padding[:, None], 0)
        rows, cache = self._call(ids, seen=seen, places=places, keep=1, use_cache=True)
        check_cache(cache)
        self.window = smallest_window(cache)
        prompts = _Prompts(cache, rows[:, -1:], lengths, seen)
        return [self._continue(prompts, pairs[chunk], prompt[chunk], way) for chunk in chunks]

    def _continue(self, prompts: _Prompts, pairs: Pairs, prompt: _Int64, way: Way) -> Tensor:
        """Return the log-probs of a chunk; ``prompt`` is the place of each pair's prompt in the cache."""
        # The first token of a completion is predicted by the last one of its prompt, the others by the one before.
        parts = [(prompts.last, prompt)]
        longer = np.flatnonzero(pairs.length > 1)
        if longer.size:
            ids = pairs[longer].completion_inputs()
            own = prompt[longer]
            places = prompts.lengths[own][:, None] + np.arange(ids.shape[1])
            if way == "split":
                with split_attention(self._config, own, prompts.lengths, self.device):
                    rows, _ = self._call(ids, cache=split(prompts.cache), places=places, use_cache=True)
            else:
                seen = None
                if prompts.seen is not None:
                    seen = np.concatenate([prompts.seen[own], np.ones(ids.shape, np.bool_)], 1)
                cache = expanded(prompts.cache, torch.from_numpy(own).to(self.device))
                rows, _ = self._call(ids, cache=cache, seen=seen, places=places, use_cache=True)
            parts.append((rows, positions(np.arange(longer.size) * ids.shape[1], pairs.length[longer] - 1)))
        # Rows are first tokens, then the others; log-probs are wanted pair after pair.
        starts = np.cumsum(pairs.length) - pairs.length
        first = np.zeros(int(pairs.length.sum()), np.bool_)
        first[starts] = True
        order = np.concatenate([starts, np.flatnonzero(~first)])
        found = self._logprobs(parts, pairs.targets()[order])
        result = torch.empty_like(found)
        result[torch.from_numpy(order).to(found.device)] = found
        return result

    def _call(
        self,
        ids: _Int64,
        *,
        cache: Any = None,
        seen: npt.NDArray[np.bool_] | None = None,
        places: _Int64 | None = None,
        keep: int = 0,
        use_cache: bool = False,
    ) -> tuple[Tensor, Any]:
        """Return hidden states, or logits if the model's own head is used, of shape (rows, tokens, width)."""
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids).to(self.device), "use_cache": use_cache}
        if cache is not None:
            inputs[str(self._cache_argument)] = cache
        if seen is not None:
            inputs["attention_mask"] = torch.from_numpy(seen.astype(np.int64)).to(self.device)
        if places is not None and self._takes_positions:
            inputs["position_ids"] = torch.from_numpy(places).to(self.device)
        if keep and self._keeps:
            inputs["logits_to_keep"] = keep
        output = self._body(**inputs)
        return output.logits if self.head is None else output.last_hidden_state, cache_of(output, self._cache_argument)

    def _logprobs(self, parts: list[tuple[Tensor, _Int64]], targets: _Int64) -> Tensor:
        """Return the log-probs of targets at places of tensors, counted over rows and tokens."""
        device = parts[0][0].device
        rows = torch.cat([part.flatten(0, 1)[torch.from_numpy(at).to(device)] for part, at in parts])
        chosen = torch.from_numpy(targets).to(device)
        if self.head is not None:
            return token_logprobs(rows, chosen, self.head, temperature=self.temperature)
        result = torch.empty(chosen.shape, dtype=torch.float32, device=device)
        step = max(1, _LOGITS_BYTES // (4 * rows.shape[1]))
        for start in range(0, chosen.numel(), step):
            part = slice(start, start + step)
            logits = rows[part].float() / self.temperature
            result[part] = logits.gather(1, chosen[part, None])[:, 0] - logits.logsumexp(1)
        return result

    def is_plain(self, pairs: Pairs, logprobs: npt.NDArray[np.float32]) -> bool:
        """Tell whether log-probs of pairs, one after the other, are those of a plain forward of each."""
        parts = np.split(logprobs, np.cumsum(pairs.length)[:-1])
        for at, found in enumerate(parts):
            pair = pairs[at : at + 1]
            logits = plain_logits(self.model, pair.inputs()[0], found.size) / self.temperature
            chosen = torch.from_numpy(pair.targets())[:, None].to(logits.device)
            wanted = (logits.gather(1, chosen)[:, 0] - logits.logsumexp(1)).cpu().numpy()
            if not agrees(found, wanted, self.model.dtype) and not np.array_equal(found, wanted):
                return False
        return True

    def probe(self) -> None:
        """Find the first way of sharing prompts that gives what unshared prompts give."""
        pairs = _probe_pairs(self.model)
        wanted = self.unshared(pairs)
        reasons = []
        for way in ("split", "expanded"):
            try:
                found = torch.cat(self.shared(pairs, (slice(0, len(pairs)),), way))
            except CannotShareError as error:
                reasons.append(f"{way}: {error}")
                continue
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                reasons.append(f"{way}: {type(error).__name__}: {str(error).splitlines()[0]}")
                continue
            differs = float((found - wanted).abs().max())
            if differs <= _TOLERANCE.get(self.model.dtype, 1e-4):
                self.way, self.why_unshared = way, None
                return
            reasons.append(f"{way}: log-probs differ by {differs:.2g}")
        self.why_unshared = "; ".join(reasons)


def _probe_pairs(model: Any) -> Pairs:
    """Return pairs to try a model with: prompts of several lengths, and one with completions of several lengths."""
    ids = probe_ids(model, rows=7, length=7).cpu().numpy().astype(np.int32)
    prompts = TokenLists.of([ids[0], ids[1, :4], ids[2, :1]])
    completions = TokenLists.of([ids[3, :4], ids[4, :1], ids[5, :3], ids[6, :5]])
    prompt, completion = np.array([0, 0, 0, 1, 2, 2]), np.array([3, 0, 1, 2, 3, 0])
    return Pairs(prompts, completions, prompt, completion, prompts.lengths[prompt], completions.lengths[completion])
