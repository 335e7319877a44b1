"""Utilities of annotator groups and the welfare functions built of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pope_fast.reference._types import PointEstimate
from pope_fast.reference.units import counts_or_ones, unit_codes
from pope_fast.reference.utility import sn_tips
from pope_fast.reference.weights import truncation_level


def group_utilities(
    logw: npt.ArrayLike,
    reward: npt.ArrayLike,
    group: npt.ArrayLike,
    unit: npt.ArrayLike,
    count: npt.ArrayLike | None = None,
) -> dict[int, PointEstimate]:
    """SN-TIPS utility of each group: the rows of that group alone, cut where the whole log is cut.

    The influence functions are spread over *all* units of the log (0 where the group did not vote), scaled
    so that ``sum(influence**2) / (n (n - 1))`` is the group's variance up to ``O(1/n)``: utilities of two
    groups share prompts, so their covariance matters.
    """
    log_weight, r = np.asarray(logw, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    g, key = np.asarray(group), np.asarray(unit)
    units, codes = unit_codes(key)
    m = counts_or_ones(count, len(r))
    log_weight = log_weight - np.max(log_weight)
    tau = truncation_level(log_weight, key, m)
    result: dict[int, PointEstimate] = {}
    for label in np.unique(g).tolist():
        rows = g == label
        part = sn_tips(log_weight[rows], r[rows], key[rows], m[rows], tau=tau)
        influence = np.zeros(len(units))
        present = np.unique(codes[rows])
        influence[present] = part.influence * len(units) / len(present)
        result[int(label)] = PointEstimate(part.value, influence)
    return result


def _gradient_step(groups: Mapping[int, PointEstimate], value: float, gradient: npt.ArrayLike) -> PointEstimate:
    phi = np.stack([estimate.influence for estimate in groups.values()], axis=1)
    return PointEstimate(value, phi @ np.asarray(gradient, dtype=np.float64))


def mean_welfare(groups: Mapping[int, PointEstimate]) -> PointEstimate:
    """Utilitarian welfare: the unweighted mean of the groups' utilities."""
    values = np.array([estimate.value for estimate in groups.values()])
    return _gradient_step(groups, float(values.mean()), np.full(len(values), 1.0 / len(values)))


def min_welfare(groups: Mapping[int, PointEstimate]) -> PointEstimate:
    """Egalitarian welfare: the utility of the worst-off group (influence: that group's)."""
    values = np.array([estimate.value for estimate in groups.values()])
    return _gradient_step(groups, float(values.min()), np.arange(len(values)) == values.argmin())


def nash_welfare(groups: Mapping[int, PointEstimate]) -> PointEstimate:
    """Nash welfare, the geometric mean ``exp(mean_g log V_g)``; 0 if a group has utility 0 or below.

    Utilities must be on a scale where 0 is the worst outcome, so rescale rewards to [0, 1] first.
    """
    values = np.array([estimate.value for estimate in groups.values()])
    if np.any(values <= 0):
        return _gradient_step(groups, 0.0, np.zeros(len(values)))
    value = float(np.exp(np.mean(np.log(values))))
    return _gradient_step(groups, value, value / (len(values) * values))


def generalized_mean_welfare(groups: Mapping[int, PointEstimate], power: float) -> float:
    """Generalized mean ``(mean_g V_g^p)^(1/p)``: 1 the mean, to 0 Nash, to -inf the minimum."""
    values = np.array([estimate.value for estimate in groups.values()])
    return float(np.mean(values**power) ** (1.0 / power))
