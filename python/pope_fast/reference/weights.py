"""From log-probabilities to importance weights."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pope_fast.reference._types import FloatArray
from pope_fast.reference.units import unit_codes, unit_means


class TokenSums(NamedTuple):
    """Three readings of the token log-ratios of each sequence; arrays of shape (n_sequences,)."""

    log_ratio: FloatArray
    mean_log_ratio: FloatArray
    clipped_log_ratio: FloatArray


def log_weights(target_logprob: npt.ArrayLike, behavior_logprob: npt.ArrayLike) -> FloatArray:
    """Log importance weights ``log pi(y|x) - log pi0(y|x)`` in nats, in double precision."""
    return np.asarray(target_logprob, dtype=np.float64) - np.asarray(behavior_logprob, dtype=np.float64)


def importance_weights(logw: npt.ArrayLike) -> FloatArray:
    """Weights ``w = exp(logw)``; they overflow above 709 nats, as the plain definition does."""
    return np.exp(np.asarray(logw, dtype=np.float64))


def shifted_weights(logw: npt.ArrayLike) -> FloatArray:
    """Weights divided by the largest: what scale-free (self-normalized) formulas should use."""
    logw = np.asarray(logw, dtype=np.float64)
    top = np.max(logw)
    return np.zeros(len(logw)) if top == -np.inf else np.exp(logw - top)


def truncation_level(
    logw: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None, *, relative: bool = True
) -> float:
    """Level at which weights are truncated: ``sqrt(n) * mean_i A_i``, or ``sqrt(n)`` if not ``relative``.

    The relative level is scale-free and serves TIPS and SN-TIPS; the absolute one serves the robust interval,
    which must not depend on the mean weight (Ionides 2008 for the rate).
    """
    root = float(np.sqrt(len(unit_codes(unit)[0])))
    return root * float(np.mean(unit_means(importance_weights(logw), unit, count))) if relative else root


def truncate(logw: npt.ArrayLike, tau: float) -> FloatArray:
    """Truncate weights to ``min(w, tau)``."""
    return np.minimum(importance_weights(logw), tau)


def sum_tokens(offsets: npt.ArrayLike, values: npt.ArrayLike) -> FloatArray:
    """Sum of the token values of each sequence; sequence ``i`` is ``values[offsets[i]:offsets[i + 1]]``."""
    edges, tokens = np.asarray(offsets), np.asarray(values, dtype=np.float64)
    return np.array([tokens[a:b].sum() for a, b in pairwise(edges.tolist())], dtype=np.float64)


def token_sums(offsets: npt.ArrayLike, target: npt.ArrayLike, behavior: npt.ArrayLike, clip: float) -> TokenSums:
    """Sequence log-ratio, its mean per token, and the sum of token log-ratios clipped to ``[-clip, clip]``.

    Only the first is the log-weight of the target policy.  The mean over tokens belongs to a geometric
    mixture of the two policies and the clipped sum to none: both are labeled surrogates.  An empty
    sequence has ratio 0.
    """
    edges = np.asarray(offsets)
    ratio = log_weights(target, behavior)
    total = sum_tokens(edges, ratio)
    length = np.diff(edges)
    return TokenSums(total, total / np.maximum(length, 1), sum_tokens(edges, np.clip(ratio, -clip, clip)))
