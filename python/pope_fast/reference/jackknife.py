"""Delete-a-group jackknife with groups of unequal size."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pope_fast.reference._types import BoolArray


class JackknifeEstimate(NamedTuple):
    """Bias-corrected value, standard error and degrees of freedom (non-empty groups less one)."""

    value: float
    standard_error: float
    degrees_of_freedom: int


def combine(whole: float, without: npt.ArrayLike, sizes: npt.ArrayLike) -> JackknifeEstimate:
    """Delete-m_j jackknife (Busing, Meijer & van der Leeden 1999).

    Parameters
    ----------
    whole : float
        The statistic of all ``n`` units.
    without : array_like, shape (g,)
        The statistic with group ``j`` left out.
    sizes : array_like, shape (g,)
        Units in group ``j``, all positive; their sum is ``n``.

    Notes
    -----
    With ``h_j = n / m_j``: ``value = g theta - sum_j (1 - m_j / n) theta_(j)``, pseudo-values
    ``h_j theta - (h_j - 1) theta_(j)``, variance ``mean_j (pseudo_j - value)^2 / (h_j - 1)``.
    """
    theta, m = np.asarray(without, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    g, n = len(m), float(np.sum(m))
    h = n / m
    value = g * whole - float(np.sum((1.0 - m / n) * theta))
    pseudo = h * whole - (h - 1.0) * theta
    variance = float(np.mean((pseudo - value) ** 2 / (h - 1.0)))
    return JackknifeEstimate(value, float(np.sqrt(variance)), g - 1)


def by_recomputation(statistic: Callable[[BoolArray], float], bucket: npt.ArrayLike) -> JackknifeEstimate:
    """Jackknife that recomputes ``statistic(mask over units)`` once per bucket.

    Parameters
    ----------
    statistic : callable
        Maps a boolean mask of the units kept to the value of the statistic.
    bucket : array_like of int, shape (n_units,)
        Bucket of each unit (see :func:`pope_fast.reference.units.bucket`); empty buckets do not count.
    """
    b = np.asarray(bucket)
    groups, sizes = np.unique(b, return_counts=True)
    if len(groups) < 2:
        raise ValueError("the jackknife needs at least two non-empty groups of units")
    return combine(statistic(np.ones(len(b), dtype=np.bool_)), [statistic(b != g) for g in groups], sizes)
