"""The pluralistic value V = U + lambda D: one influence function, the true covariance, the L1 bounds."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pope_fast.reference._types import FloatArray, PointEstimate


class VarianceDecomposition(NamedTuple):
    """Sampling variance of U + lambda D and its parts (already multiplied by lambda and lambda squared).

    ``total = utility + diversity + covariance``, between ``lower_bound`` and ``upper_bound`` (L1).
    """

    utility: float
    diversity: float
    covariance: float
    total: float
    lower_bound: float
    upper_bound: float


def spread(influence: npt.ArrayLike, used: npt.ArrayLike) -> FloatArray:
    """Write an influence over the units used as one over all: scaled by ``n / n_used``, 0 if left out."""
    mask = np.asarray(used, dtype=np.bool_)
    full = np.zeros(len(mask))
    full[mask] = np.asarray(influence, dtype=np.float64) * len(mask) / np.count_nonzero(mask)
    return full


def pluralistic_value(utility: PointEstimate, diversity: PointEstimate, weight: float) -> PointEstimate:
    """``V = U + lambda D`` from estimates over the same units."""
    return PointEstimate(utility.value + weight * diversity.value, utility.influence + weight * diversity.influence)


def variance_decomposition(utility: PointEstimate, diversity: PointEstimate, weight: float) -> VarianceDecomposition:
    """Var V = Var U + lambda^2 Var D + 2 lambda Cov, with L1: ``(sd U -+ lambda sd D)^2``."""
    n = len(utility.influence)
    cov = float(np.sum(utility.influence * diversity.influence)) / (n * (n - 1))
    var_u, var_d = utility.standard_error**2, weight**2 * diversity.standard_error**2
    sd_u, sd_d = math.sqrt(var_u), math.sqrt(var_d)
    return VarianceDecomposition(
        var_u,
        var_d,
        2.0 * weight * cov,
        var_u + var_d + 2.0 * weight * cov,
        (sd_u - sd_d) ** 2,
        (sd_u + sd_d) ** 2,
    )
