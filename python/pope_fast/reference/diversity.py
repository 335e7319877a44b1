"""Within-prompt diversity E_x D(q(.|x)): the exactly unbiased polynomials zeta_v and what is built of them.

``zeta_v(x) = sum_c q_c (1 - q_c)^v``.  Gini-Simpson is zeta_1, coverage@m is ``sum_{v < m} zeta_v`` and
``H_M = sum_{v=1..M} zeta_v / v`` increases to the Shannon entropy.  All from K >= v + 1 responses of a
prompt:

    zeta_v = (1/K) sum_j w_j e_v({a_jk}, k != j) / binom(K - 1, v)

with ``a_jk = w_k 1{c_k != c_j}`` (product form) or ``a_jk = 1 - w_k 1{c_k = c_j}`` (control form).
"""

from __future__ import annotations

from itertools import combinations
from math import comb, log1p, prod
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pope_fast.reference._types import BoolArray, FloatArray, PointEstimate
from pope_fast.reference.units import counts_or_ones, expand_draws, unit_codes, unit_means, unit_sizes
from pope_fast.reference.weights import importance_weights

Form = Literal["control", "product"]


def elementary_symmetric(values: npt.ArrayLike, order: int) -> float:
    """``e_v``: the sum over all subsets of size ``order`` of the product of their members, enumerated."""
    numbers = np.asarray(values, dtype=float).tolist()
    return float(sum(prod(subset) for subset in combinations(numbers, order)))


def elementary_symmetric_recursive(values: npt.ArrayLike, order: int) -> float:
    """``e_v`` by the recursion ``e_v(S + x) = e_v(S) + x e_{v-1}(S)``; the same number in O(K v)."""
    e = [1.0] + [0.0] * order
    for x in np.asarray(values, dtype=float).tolist():
        for v in range(order, 0, -1):
            e[v] += x * e[v - 1]
    return e[order]


def zeta_unit(w: npt.ArrayLike, cluster: npt.ArrayLike, order: int, form: Form = "control") -> float:
    """Unbiased estimate of zeta_v of one unit from its draws, straight from the definition above.

    Parameters
    ----------
    w, cluster : array_like, shape (K,)
        Weights and cluster labels of the draws of one unit.
    order : int
        v >= 0; needs ``K >= v + 1``.
    form : {"control", "product"}
        The two have one mean; the product form is non-negative, the control form has far less variance.
    """
    weight, label = np.asarray(w, dtype=np.float64), np.asarray(cluster)
    k = len(weight)
    if k < order + 1:
        raise ValueError(f"zeta_{order} needs {order + 1} responses, got {k}")
    total = 0.0
    for j in range(k):
        others = np.arange(k) != j
        same = label[others] == label[j]
        inside = np.where(same, weight[others], 0.0)
        a = 1.0 - inside if form == "control" else weight[others] - inside
        total += weight[j] * elementary_symmetric(a, order)
    return total / (k * comb(k - 1, order))


def zeta_unit_kernel(w: npt.ArrayLike, cluster: npt.ArrayLike, order: int, form: Form = "control") -> float:
    """Estimate of zeta_v of one unit as the kernels compute it: per cluster, not per draw.

    Product: ``sum_c S_c e_v(draws not in c) / (K binom(K - 1, v))``, S_c the weight of cluster c.  Control:
    ``sum_s (-1)^s binom(v, s) P_{s+1}``, see :func:`collision_moment`.  Equal to :func:`zeta_unit`.
    """
    weight, label = np.asarray(w, dtype=np.float64), np.asarray(cluster)
    k = len(weight)
    if form == "control":
        moments = [collision_moment(weight, label, s + 1) for s in range(order + 1)]
        return sum(float((-1) ** s * comb(order, s)) * moment for s, moment in enumerate(moments))
    total = sum(
        weight[label == c].sum() * elementary_symmetric_recursive(weight[label != c], order) for c in np.unique(label)
    )
    return float(total) / (k * comb(k - 1, order))


def collision_moment(w: npt.ArrayLike, cluster: npt.ArrayLike, degree: int) -> float:
    """``P_d = sum_c e_d(weights in c) / binom(K, d)``: unbiased for ``sum_c q_c^d`` of one unit."""
    weight, label = np.asarray(w, dtype=np.float64), np.asarray(cluster)
    total = sum(elementary_symmetric_recursive(weight[label == c], degree) for c in np.unique(label))
    return float(total) / comb(len(weight), degree)


def total_moment(w: npt.ArrayLike, order: int) -> float:
    """``T_v = e_{v+1}(all draws) / binom(K, v + 1)``: mean 1, or less for truncated weights."""
    weight = np.asarray(w, dtype=np.float64)
    return elementary_symmetric_recursive(weight, order + 1) / comb(len(weight), order + 1)


def lower_variable(w: npt.ArrayLike, cluster: npt.ArrayLike, order: int) -> float:
    """``X_M = sum_v Z_v / v``, product form: non-negative, mean at most H_M also for truncated weights."""
    return sum(zeta_unit_kernel(w, cluster, v, "product") / v for v in range(1, order + 1))


def upper_variable(w: npt.ArrayLike, cluster: npt.ArrayLike, order: int) -> float:
    """``Y_M = sum_v (T_v - Z_v) / v``: non-negative, and ``H_M <= sum_v 1/v - E Y_M``."""
    gaps = [total_moment(w, v) - zeta_unit_kernel(w, cluster, v, "product") for v in range(1, order + 1)]
    return sum(gap / v for v, gap in enumerate(gaps, start=1))


class WithinPrompt(NamedTuple):
    """Estimates of zeta_0 .. zeta_M over the units with enough responses.

    Attributes
    ----------
    zeta : ndarray, shape (M + 1,)
        Averages over the units used; zeta_0 is 1 when self-normalized.
    influence : ndarray, shape (n_used, M + 1)
        Influence functions over the units used.
    used : ndarray of bool, shape (n_units,)
        Units with at least M + 1 responses; the others are left out and must be reported.
    form : {"control", "product"}
        Form of the estimates.
    """

    zeta: FloatArray
    influence: FloatArray
    used: BoolArray
    form: Form


def _draws_by_unit(
    logw: npt.ArrayLike, cluster: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None
) -> list[tuple[FloatArray, npt.NDArray[np.int64]]]:
    w = importance_weights(logw)
    _, labels = np.unique(np.asarray(cluster), return_inverse=True)
    units, codes = unit_codes(unit)
    m = counts_or_ones(count, len(w))
    w, labels, codes = expand_draws(m, w, labels, codes)
    return [(w[codes == i], labels[codes == i]) for i in range(len(units))]


def within_prompt(
    logw: npt.ArrayLike,
    cluster: npt.ArrayLike,
    unit: npt.ArrayLike,
    count: npt.ArrayLike | None = None,
    *,
    max_order: int = 3,
    form: Form = "control",
    self_normalized: bool = True,
) -> WithinPrompt:
    """Estimate the zeta family over all units with at least ``max_order + 1`` responses.

    Self-normalization is global: a moment of degree d in the weights is divided by ``(mean A)^d``, the mean
    over the units used.  Dividing prompt by prompt would bring back the bias of the plug-in.
    """
    used = unit_sizes(unit, count) >= max_order + 1
    draws = [d for d, keep in zip(_draws_by_unit(logw, cluster, unit, count), used, strict=True) if keep]
    a = unit_means(importance_weights(logw), unit, count)[used]
    mean_a = float(np.mean(a)) if self_normalized else 1.0

    def normalized(moment: FloatArray, degree: int) -> tuple[float, FloatArray]:
        average = float(np.mean(moment)) / mean_a**degree
        influence = moment / mean_a**degree - average
        if self_normalized:
            influence = influence - degree * average * (a / mean_a - 1.0)
        return average, influence

    zeta, influence = np.zeros(max_order + 1), np.zeros((len(a), max_order + 1))
    for v in range(max_order + 1):
        if form == "product":
            moment = np.array([zeta_unit_kernel(w, c, v, "product") for w, c in draws])
            zeta[v], influence[:, v] = normalized(moment, v + 1)
            continue
        for s in range(v + 1):
            moment = np.array([collision_moment(w, c, s + 1) for w, c in draws])
            average, phi = normalized(moment, s + 1)
            zeta[v] += (-1) ** s * comb(v, s) * average
            influence[:, v] += (-1) ** s * comb(v, s) * phi
    return WithinPrompt(zeta, influence, used, form)


def _linear(family: WithinPrompt, coefficients: npt.ArrayLike, smallest: float, largest: float) -> PointEstimate:
    c = np.asarray(coefficients, dtype=np.float64)
    value = float(family.zeta[: len(c)] @ c)
    if family.form == "control":
        # With few effective units the control form can leave the range of the measure.
        value = min(max(value, smallest), largest)
    return PointEstimate(value, family.influence[:, : len(c)] @ c)


def gini_simpson(family: WithinPrompt) -> PointEstimate:
    """Chance that two responses to one prompt fall in different clusters, zeta_1."""
    return _linear(family, [0.0, 1.0], 0.0, 1.0)


def coverage(family: WithinPrompt, draws: int) -> PointEstimate:
    """coverage@m: expected number of distinct clusters in ``draws`` responses, ``sum_{v < m} zeta_v``."""
    return _linear(family, [1.0] * draws, 1.0, draws)


def harmonic_entropy(family: WithinPrompt, order: int) -> PointEstimate:
    """``H_M = sum_{v=1..M} zeta_v / v`` in nats: a lower bound of the Shannon entropy that rises with M."""
    terms = [1.0 / v for v in range(1, order + 1)]
    return _linear(family, [0.0, *terms], 0.0, sum(terms))


def exact_zeta(q: npt.ArrayLike, order: int) -> float:
    """zeta_v of a known distribution."""
    p = np.asarray(q, dtype=np.float64)
    return float(np.sum(p * (1.0 - p) ** order))


def exact_harmonic_entropy(q: npt.ArrayLike, order: int) -> float:
    """H_M of a known distribution."""
    return sum(exact_zeta(q, v) / v for v in range(1, order + 1))


def renyi_two_lower(gini_lower: float) -> float:
    """Lower bound of the mean Shannon entropy, ``-log(1 - G)`` with G a lower bound of the mean Gini-Simpson.

    Renyi's entropy of order 2 is at most Shannon's, and ``-log(1 - g)`` is convex (Jensen).
    """
    return -log1p(-gini_lower)
