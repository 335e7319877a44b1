"""Shared shapes: arrays, a point estimate with its influence function, an interval."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]


class Interval(NamedTuple):
    """A two-sided interval.  ``low > high`` is possible and is evidence against the log-probabilities."""

    low: float
    high: float


class PointEstimate(NamedTuple):
    """A point estimate and its influence function.

    Attributes
    ----------
    value : float
        The estimate.
    influence : ndarray, shape (n_units,)
        Centered influence of each unit; the sampling variance is ``sum(influence**2) / (n (n - 1))``.
    """

    value: float
    influence: FloatArray

    @property
    def standard_error(self) -> float:
        """Standard error over units, with the ``n / (n - 1)`` correction."""
        n = len(self.influence)
        return float(np.sqrt(np.sum(self.influence**2) / (n * (n - 1))))
