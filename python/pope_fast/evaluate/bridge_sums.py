"""Sums that the bridge check needs of a log and of fresh draws: means over the draws of each prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pope_fast.evaluate.fresh import FreshDraws

__all__ = ["SHARE", "SLOPE", "TILT", "Lens", "LoggedSums", "Side", "Units"]

Doubles = NDArray[np.float64]

SHARE, TILT, SLOPE = 0, 1, 2
"""What is averaged: the share h, h g, and h (1 - h)."""


@dataclass(frozen=True, slots=True)
class Lens:
    """The two functions whose means are compared: h, and h g.

    On the log h is w / (1 + w), on fresh draws 1 / (1 + w). g says how probable a response is under both policies
    together, ``tanh((s - center) / scale)`` of s = log pi + log pi0; any fixed bounded g would do.
    """

    center: float
    scale: float

    @classmethod
    def focused(cls, draws: FreshDraws) -> Lens:
        """Center g on the fresh draws."""
        finite = draws.log_sum[np.isfinite(draws.log_sum)]
        if not finite.size:
            return cls(0.0, 1.0)
        low, middle, high = np.quantile(finite, [0.25, 0.5, 0.75]).tolist()
        return cls(middle, (high - low) / 1.35 or 1.0)

    def rows(self, log_share: Doubles, log_sum: Doubles, count: Doubles) -> Doubles:
        """Return what is summed of each row, shape (4, n): its draws, and these times share, tilt and slope.

        ``log_share`` is log w on the log, -log w on fresh draws.
        """
        small = np.exp(-np.abs(log_share))
        share = np.where(log_share >= 0, 1.0, small) / (1.0 + small)
        tilt = share * np.tanh((log_sum - self.center) / self.scale)
        return count * np.stack([np.ones(share.size), share, tilt, share * (1.0 - share)])


@dataclass(frozen=True, slots=True)
class Units:
    """Means over the draws of each unit.

    Attributes
    ----------
    keys : int64 array of shape (n,)
        Rising.
    draws : float64 array of shape (n,)
    means : float64 array of shape (3, n)
        By SHARE, TILT and SLOPE.
    """

    keys: NDArray[np.int64]
    draws: Doubles
    means: Doubles

    @classmethod
    def of(cls, keys: NDArray[np.int64], sums: Doubles) -> Units:
        """Divide sums, shape (4, n), by the draws; units without a draw are left out."""
        drawn = sums[0] > 0
        return cls(keys[drawn], sums[0, drawn], sums[1:, drawn] / sums[0, drawn])

    @classmethod
    def of_fresh(cls, draws: FreshDraws, lens: Lens) -> Units:
        """Take the means of fresh draws by prompt."""
        keys, place = np.unique(draws.prompt, return_inverse=True)
        rows = lens.rows(-draws.log_weight, draws.log_sum, draws.count)
        return cls.of(keys, np.stack([np.bincount(place, row, keys.size) for row in rows]))

    def take(self, units: NDArray[np.int64]) -> Units:
        """Return some units."""
        return Units(self.keys[units], self.draws[units], self.means[:, units])

    def side(self) -> Side:
        """Return the moments over units."""
        n = self.keys.size
        variance = np.var(self.means, axis=1, ddof=1) if n > 1 else np.full(3, math.inf)
        return Side(n, self.means.mean(axis=1), variance)


@dataclass(frozen=True, slots=True)
class Side:
    """Number of units, and mean and variance of the units' means, shape (3,) each."""

    units: int
    mean: Doubles
    variance: Doubles

    def error(self, what: int) -> float:
        """Return the squared standard error of a mean."""
        return float(self.variance[what]) / self.units


class LoggedSums:
    """Sums over a log: of each prompt that has fresh draws, and moments over all units.

    Memory is that of the fresh draws; the log may be of any size.
    """

    def __init__(self, draws: FreshDraws) -> None:
        self.lens = Lens.focused(draws)
        self.keys = np.unique(draws.prompt)
        self.sums = np.zeros((4, self.keys.size))
        self.units = 0
        # One partial sum per batch of means and of their squares. Shares are counted from 1/2, where those of equal
        # policies lie: their variance is then right to the last bits.
        self.partial: list[Doubles] = []
        self._open: tuple[int, Doubles] | None = None

    def add(self, unit: NDArray[np.int64] | None, target: Any, behavior: Any, count: Any) -> None:
        """Add rows by their log-probs; those of a unit are consecutive, in this call or over several."""
        target, behavior = np.asarray(target, np.float64), np.asarray(behavior, np.float64)
        draws = np.ones(target.size) if count is None else np.asarray(count, np.float64)
        rows = self.lens.rows(target - behavior, target + behavior, draws)
        if unit is None:
            self._close(rows)
            return
        starts = np.flatnonzero(np.concatenate([[True], unit[1:] != unit[:-1]]))
        sums = np.add.reduceat(rows, starts, axis=1)
        keys = unit[starts]
        if self._open is not None:
            if self._open[0] == keys[0]:
                sums[:, 0] += self._open[1]
            else:
                self._finish()
        self._open = int(keys[-1]), sums[:, -1]
        self._close(sums[:, :-1])
        self._pair(keys[:-1], sums[:, :-1])

    def _pair(self, keys: NDArray[np.int64], sums: Doubles) -> None:
        place = np.searchsorted(self.keys, keys)
        known = np.flatnonzero(self.keys[np.minimum(place, self.keys.size - 1)] == keys)
        # A prompt comes once: its rows are consecutive, and it is closed only then.
        self.sums[:, place[known]] += sums[:, known]

    def _close(self, sums: Doubles) -> None:
        """Take in the sums of units that are complete."""
        sums = sums[:, sums[0] > 0]  # a count of 0 stands for no draw
        means = sums[1:] / sums[0]
        means[SHARE] -= 0.5
        self.units += means.shape[1]
        self.partial.append(np.stack([means.sum(axis=1), np.square(means).sum(axis=1)]))

    def _finish(self) -> None:
        if self._open is not None:
            key, sums = self._open
            self._open = None
            self._close(sums[:, None])
            self._pair(np.array([key]), sums[:, None])

    def of_prompts(self) -> Units:
        """Return the means of the prompts that have fresh draws, as far as they are in the log."""
        self._finish()
        return Units.of(self.keys, self.sums)

    def side(self) -> Side:
        """Return the moments over all units."""
        self._finish()
        totals = np.stack(self.partial)
        first, second = (np.array([math.fsum(column) for column in totals[:, i].T]) for i in (0, 1))
        mean = first / self.units
        variance = np.maximum(second - first * mean, 0.0) / (self.units - 1)
        mean[SHARE] += 0.5
        return Side(self.units, mean, variance)
