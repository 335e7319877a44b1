"""The exact distribution of a sampler over the next token."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pope_fast.sample.settings import Sampling

__all__ = ["log_distribution", "truncate"]

_NEVER = -math.inf


def log_distribution(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Give the log-probabilities of the next token.

    Parameters
    ----------
    logits : Tensor, shape (n, vocabulary)
        As the model gives them, in any precision.
    sampling : Sampling

    Returns
    -------
    sampler, softmax : Tensor, shape (n, vocabulary), float32
        Of the sampler (-inf where it never goes), and of the whole softmax at its temperature; the same tensor where
        nothing is truncated.
    """
    logits = logits.float()
    softmax = torch.log_softmax(logits if sampling.temperature == 1 else logits / sampling.temperature, dim=-1)
    return truncate(softmax, sampling), softmax


def truncate(logprobs: Tensor, sampling: Sampling) -> Tensor:
    """Apply top-k, top-p and min-p in this order, and renormalize.

    Parameters
    ----------
    logprobs : Tensor, shape (n, vocabulary), float32
        Normalized.

    Notes
    -----
    Tokens of one probability stay or go together under min-p only: top-k and top-p keep the lower ids of a tie, so that
    the kept set has the size that its name says.
    """
    if not sampling.truncates:
        return logprobs
    kept = logprobs
    if 0 < sampling.top_k < logprobs.shape[-1] or sampling.top_p < 1:
        # A stable sort settles ties by the id, alike on every device.
        ordered, ids = torch.sort(logprobs, dim=-1, descending=True, stable=True)
        if 0 < sampling.top_k < logprobs.shape[-1]:
            ordered[:, sampling.top_k :] = _NEVER
        if sampling.top_p < 1:
            share = torch.softmax(ordered, dim=-1, dtype=_wide(ordered))
            before = share.cumsum(dim=-1) - share
            # The first token has nothing before it, and always stays.
            ordered[before >= sampling.top_p] = _NEVER
        kept = torch.empty_like(logprobs).scatter_(-1, ids, ordered)
    if sampling.min_p > 0:
        best = kept.amax(dim=-1, keepdim=True)
        kept = kept.masked_fill(kept < best + math.log(sampling.min_p), _NEVER)
    return torch.log_softmax(kept, dim=-1)


def _wide(tensor: Tensor) -> torch.dtype:
    """Return the widest type of the device: Apple's has no doubles."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
