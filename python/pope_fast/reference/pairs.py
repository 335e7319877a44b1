"""Diversity from embeddings: Rao's quadratic entropy and the Vendi score of order 2, from pairs of responses.

With ``k(y, y')`` the cosine of the embeddings of two responses, and Y, Y' two independent ones to one prompt:
Rao's entropy is ``1 - E k`` (Rao 1982), the Vendi score of order 2 is ``1 / E k^2`` (Friedman & Dieng 2023, Pasarkar &
Dieng 2024: the exponential of the order-2 Renyi entropy of the kernel matrix).  Per unit, from K draws:

    Q_p = sum_{j < l} w_j w_l k_jl^p / binom(K, 2),   B = Q_0

are unbiased for ``E k^p`` and for 1; the draws of one row of the log have k = 1.  Only means of these over units are
estimated without bias, so the functions apply to ``mean Q / mean B``: over prompts the Vendi score is a harmonic mean.

Embeddings are arrays of shape (n_rows, width).
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pope_fast.reference._types import BoolArray, FloatArray, PointEstimate
from pope_fast.reference.units import counts_or_ones, expand_draws, unit_codes, unit_means, unit_sizes
from pope_fast.reference.weights import importance_weights

STEP = 2.0**-30
"""Similarities are kept to multiples of this."""


def similarity(embedding: npt.ArrayLike) -> FloatArray:
    """Cosines of all pairs of rows, rounded to :data:`STEP`; shape (n, n)."""
    x = np.asarray(embedding, dtype=np.float64)
    x = x / np.abs(x).max(axis=1, keepdims=True)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(np.clip(np.rint((x @ x.T) / STEP) * STEP, -1.0, 1.0), dtype=np.float64)


def pair_moment(w: npt.ArrayLike, kernel: npt.ArrayLike) -> float:
    """Mean over all pairs of draws of ``w_j w_l f_jl``: unbiased for ``E f(Y, Y')``.

    Parameters
    ----------
    w : array_like, shape (K,)
        Weights of the draws of one unit, K >= 2.
    kernel : array_like, shape (K, K)
        Values f of all pairs; the diagonal is not looked at.
    """
    weight, f = np.asarray(w, dtype=np.float64).tolist(), np.asarray(kernel, dtype=np.float64)
    pairs = list(combinations(range(len(weight)), 2))
    return float(sum(weight[j] * weight[k] * f[j, k] for j, k in pairs)) / len(pairs)


class PairMoments(NamedTuple):
    """Pair statistics of every unit with at least two draws.

    Attributes
    ----------
    a, b, q1, q2 : ndarray, shape (n_used,)
        Mean weight, B, Q_1 and Q_2.
    used : ndarray of bool, shape (n_units,)
        Units with at least two draws; the others are left out and must be reported.
    width : int
        Elements of an embedding.
    """

    a: FloatArray
    b: FloatArray
    q1: FloatArray
    q2: FloatArray
    used: BoolArray
    width: int


def pair_moments(
    logw: npt.ArrayLike,
    embedding: npt.ArrayLike,
    unit: npt.ArrayLike,
    count: npt.ArrayLike | None = None,
) -> PairMoments:
    """Compute the pair statistics of all units; a row of multiplicity m is m draws of one response."""
    w, vectors = importance_weights(logw), np.asarray(embedding, dtype=np.float64)
    units, codes = unit_codes(unit)
    m = counts_or_ones(count, len(w))
    used = unit_sizes(unit, count) >= 2
    found = []
    for i in np.flatnonzero(used):
        rows = codes == i
        weight, row = expand_draws(m[rows], w[rows], np.arange(np.count_nonzero(rows)))
        k = similarity(vectors[rows])[np.ix_(row, row)]
        found.append([pair_moment(weight, k**power) for power in (0, 1, 2)])
    b, q1, q2 = np.array(found).reshape(-1, 3).T
    a = unit_means(w, unit, count)[used]
    assert len(units) == len(used)
    return PairMoments(a, b, q1, q2, used, vectors.shape[1])


def _ratio(q: FloatArray, b: FloatArray) -> tuple[float, FloatArray]:
    """``mean Q / mean B`` with its influence."""
    s = float(np.mean(q) / np.mean(b))
    return s, (q - s * b) / float(np.mean(b))


def rao(moments: PairMoments) -> PointEstimate:
    """Rao's quadratic entropy: expected cosine distance of two responses to a prompt, in [0, 1].

    Normalized by the pairs, ``1 - mean Q_1 / mean B``, so that what all similarities have in common cancels.
    """
    s, influence = _ratio(moments.q1, moments.b)
    return PointEstimate(min(max(1.0 - s, 0.0), 1.0), -influence)


def vendi(moments: PairMoments) -> PointEstimate:
    """Vendi score of order 2, an effective number of kinds of response: ``mean B / mean Q_2``, in [1, width]."""
    s, influence = _ratio(moments.q2, moments.b)
    return PointEstimate(min(max(1.0 / s, 1.0), float(moments.width)), -influence / s**2)


def rao_control(moments: PairMoments) -> float:
    """Rao's entropy in control form, ``1 - mean Q_1 / (mean A)^2``: with one-hot vectors, Gini-Simpson as shown."""
    distance = 1.0 - float(np.mean(moments.q1) / np.mean(moments.a) ** 2)
    return min(max(distance, 0.0), 1.0)


def vendi_control(moments: PairMoments) -> float:
    """Vendi score of order 2 in control form, ``(mean A)^2 / mean Q_2``."""
    score = float(np.mean(moments.a) ** 2 / np.mean(moments.q2))
    return min(max(score, 1.0), float(moments.width))


def bound_variables(moments: PairMoments) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Non-negative variables per unit: pair means of ``w w (1 - k), w w (1 + k), w w k^2, w w (1 - k^2)``.

    Cutting weights only lowers their means (``E0[min(w, tau) min(w', tau) f] <= E_pi f`` for f >= 0), so the
    first is below Rao's entropy, which is below 2 less the second; and ``E k^2`` is between the third and 1 less the
    fourth.
    """
    b, q1, q2 = moments.b, moments.q1, moments.q2
    return b - q1, b + q1, q2, b - q2


def exact_rao(p: npt.ArrayLike, embedding: npt.ArrayLike) -> float:
    """Rao's entropy of a known distribution over responses with these embeddings: ``1 - |E v|^2``."""
    q, k = np.asarray(p, dtype=np.float64), similarity(embedding)
    return float(1.0 - q @ k @ q)


def exact_squared_similarity(p: npt.ArrayLike, embedding: npt.ArrayLike) -> float:
    """``E k^2`` of a known distribution; its reciprocal is the Vendi score of order 2."""
    q, k = np.asarray(p, dtype=np.float64), similarity(embedding)
    return float(q @ k**2 @ q)
