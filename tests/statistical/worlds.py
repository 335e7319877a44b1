"""Replicated draws from the truth environments, as arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pope_fast.simulate.exact import sigmoid
from pope_fast.simulate.lognormal_world import lognormal_utility

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LogNormal:
    """E2, or E5 if part of the target's mass is off the support; one response per unit.

    The intercept and slope reproduce the widths of the published table of coverages, which does not state
    them.
    """

    kl: float
    intercept: float = -0.5
    slope: float = 0.6
    unsupported: float = 0.0
    off_reward: float = 0.1

    @property
    def shift(self) -> float:
        return math.sqrt(2.0 * self.kl)

    @property
    def utility(self) -> float:
        on = lognormal_utility(self.shift, self.intercept, self.slope)
        return (1.0 - self.unsupported) * on + self.unsupported * self.off_reward

    def draw(self, rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
        """Log-weights and rewards of n units."""
        z = rng.normal(size=n)
        logw = self.shift * z - self.shift**2 / 2 + math.log1p(-self.unsupported)
        reward = rng.random(n) < sigmoid(self.intercept + self.slope * z)
        return logw, reward.astype(np.float64)

    def replicates(self, seed: int, n: int, times: int) -> Iterator[tuple[FloatArray, FloatArray]]:
        rng = np.random.default_rng(seed)
        for _ in range(times):
            yield self.draw(rng, n)


def standard_error(share: float, times: int) -> float:
    """Monte Carlo standard error of a coverage, kept away from 0 at the ends."""
    p = min(max(share, 0.02), 0.98)
    return math.sqrt(p * (1.0 - p) / times)
