"""Random numbers that belong to a draw, not to a batch, and the choice of a token by them.

Every draw of a prompt has a 64-bit key, made from the seed, the prompt's token ids and the number of the draw. The
random number for token v at step t is a hash of (key, t, v): it does not matter in which batch, in which order or next
to what a draw is made.

Tokens are chosen by exponential races (the Gumbel-max trick): token v finishes at ``E_v / p_v``, and the first one
wins, which is v with probability p_v. Rounding of p changes the winner only where two tokens nearly tie; with the
inverse of the distribution function it would change it near the edges of all tokens.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["choose", "draw_key", "exponentials", "step_keys"]

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))

#: Tokens that take part in the race one by one; the others take part as one, and race among each other if that wins.
HEAD = 128
_CHUNK = 1 << 20


def draw_key(seed: int, prompt_ids: NDArray[np.int32], draw: int) -> int:
    """Return the 64-bit key of a draw."""
    digest = hashlib.blake2b(digest_size=8, person=b"pope_fast.sample")
    digest.update(f"{seed},{draw},".encode())
    digest.update(np.ascontiguousarray(prompt_ids, dtype="<i4").tobytes())
    return int.from_bytes(digest.digest(), "little")


def step_keys(keys: NDArray[np.uint64], step: int) -> NDArray[np.int64]:
    """Return the keys of one step of some draws, shape (n,)."""
    # Another odd constant than between tokens: steps of a draw must not overlap each other's tokens.
    x = keys + np.uint64((step + 1) * 0xD1342543DE82EF95 % (1 << 64))
    for shift, factor in _MIX:
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return (x ^ (x >> np.uint64(31))).view(np.int64)


def exponentials(keys: Tensor, tokens: Tensor) -> Tensor:
    """Return a standard exponential number for each key and token.

    Parameters
    ----------
    keys : Tensor, shape (n, 1), int64
    tokens : Tensor, shape (n, m) or (1, m), int64

    Returns
    -------
    Tensor, shape (n, m), float64
        In (0, 37]. The hash is SplitMix64 (Steele, Lea & Flood 2014) started at the key.
    """
    x = keys + (tokens + 1) * _signed(_GOLDEN)
    for shift, factor in _MIX:
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    x = x ^ _shifted(x, 31)
    uniform = (_shifted(x, 12).to(torch.float64) + 0.5) * 2.0**-52
    return -torch.log1p(-uniform)


def _signed(x: int) -> int:
    """Return the same 64 bits as torch's only 64-bit integer; its products wrap around."""
    return x - (1 << 64) if x >= 1 << 63 else x


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift to the right without copies of the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def choose(logprobs: Tensor, keys: Tensor) -> Tensor:
    """Draw a token for each row.

    Parameters
    ----------
    logprobs : Tensor, shape (n, vocabulary), float32
        Normalized; -inf for tokens that must not be drawn.
    keys : Tensor, shape (n,), int64
        From :func:`step_keys`.

    Returns
    -------
    Tensor, shape (n,), int64
    """
    if logprobs.device.type == "mps":  # it has no doubles
        return choose(logprobs.cpu(), keys.cpu()).to(logprobs.device)
    keys = keys[:, None]
    vocabulary = logprobs.shape[-1]
    if vocabulary <= 2 * HEAD:
        everything = torch.arange(vocabulary, device=logprobs.device)[None, :]
        return _first(logprobs, keys, everything).argmax(dim=-1)
    values, ids = torch.topk(logprobs, HEAD, dim=-1)
    tail = logprobs.scatter(-1, ids, -torch.inf)
    rest = torch.logsumexp(tail, dim=-1, keepdim=True)
    # The others race under a number that is no token's.
    entrants = torch.cat([ids, torch.full_like(ids[:, :1], vocabulary)], dim=-1)
    place = _first(torch.cat([values, rest], dim=-1), keys, entrants).argmax(dim=-1)
    chosen = entrants.gather(-1, place[:, None])[:, 0]
    outside = torch.nonzero(place == HEAD)[:, 0]
    everything = torch.arange(vocabulary, device=logprobs.device)[None, :]
    step = max(1, _CHUNK // vocabulary)
    for start in range(0, outside.shape[0], step):
        rows = outside[start : start + step]
        chosen[rows] = _first(tail[rows], keys[rows], everything).argmax(dim=-1)
    return chosen


def _first(logprobs: Tensor, keys: Tensor, tokens: Tensor) -> Tensor:
    """Return scores whose largest is the first to finish: ``log(p / E)``."""
    return logprobs.to(torch.float64) - exponentials(keys, tokens).log()
