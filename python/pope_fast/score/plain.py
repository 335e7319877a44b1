"""What every shortcut is held against: a plain full forward, without cache, padding or tiled head; and causality."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pope_fast.errors import PopeError
from pope_fast.score.head import evaluating, input_device, probe_ids

__all__ = ["agrees", "base_parameters", "cache_argument", "cache_of", "check_causal", "plain_logits"]

# transformers' names for what a model keeps of the tokens that it has seen: newer ones first, recurrent models' last.
_CACHE_NAMES = ("cache", "past_key_values", "cache_params")

# Root mean square over the tokens of a row by which log-probs may differ, in nats: rounding in another order.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}


def base_parameters(model: Any) -> frozenset[str]:
    """Return the names of the forward function's parameters, of the model itself below an adapter."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = inspect.signature(base.forward).parameters
    names = set(accepted)
    # A forward that was wrapped to take anything passes it on to that of the class.
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        names |= set(inspect.signature(type(base).forward).parameters)
    return frozenset(names)


def cache_argument(model: Any) -> str | None:
    """Return the name under which a model takes its cache, None if it takes none."""
    known = base_parameters(model)
    return next((name for name in _CACHE_NAMES if name in known), None)


def cache_of(output: Any, argument: str | None) -> Any:
    """Return the cache in a model's output, which has it under the name of the argument; None if there is none."""
    # An old name is never asked of an output that has the new one: that warns.
    return output.get(argument) if argument is not None else None


def plain_logits(model: Any, ids: npt.ArrayLike, keep: int) -> Tensor:
    """Return the logits of the last ``keep`` of some tokens, shape (keep, vocabulary), in float32."""
    row = torch.from_numpy(np.asarray(ids, np.int64))[None].to(input_device(model))
    options = {"logits_to_keep": keep} if "logits_to_keep" in base_parameters(model) else {}
    logits: Tensor = model(input_ids=row, use_cache=False, **options).logits[0, -keep:]
    return logits.float()


def agrees(found: npt.ArrayLike, wanted: npt.ArrayLike, dtype: torch.dtype) -> bool:
    """Tell whether log-probs of a row's tokens are those of a plain forward, but for rounding in ``dtype``."""
    with np.errstate(invalid="ignore"):
        squares = np.square(np.asarray(found, np.float64) - np.asarray(wanted, np.float64))
    return bool(np.sqrt(squares.mean()) <= _TOLERANCE.get(dtype, 1e-3))


def check_causal(model: Any) -> None:
    """Refuse a model whose log-probs of a token depend on later tokens.

    Raises
    ------
    PopeError
        If another token later in a text changes what is predicted before it.
    """
    ids = probe_ids(model, rows=1, length=12).cpu().numpy()[0]
    other = ids.copy()
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    other[6:] = (ids[6:] + 1 + vocabulary // 2) % vocabulary
    with evaluating(model):
        first, second = (plain_logits(model, text, 12)[:6].log_softmax(-1) for text in (ids, other))
    # Held against each other at the tokens of the text: the rest of the vocabulary has no weight in a log-prob.
    chosen = torch.from_numpy(ids[1:7])[:, None].to(first.device)
    before, after = (table.gather(1, chosen)[:, 0].cpu().numpy() for table in (first, second))
    if np.isfinite(before).all() and np.isfinite(after).all() and not agrees(before, after, model.dtype):
        raise PopeError(
            f"{type(model).__name__} is not causal: a later token changes log-probs of those before it, by up to "
            f"{np.abs(before - after).max():.2g} nats. Remedy: a causal language model; a masked one has no log-prob "
            "of a response."
        )
