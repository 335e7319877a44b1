"""Small logs for the tests of the twins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SmallLog:
    """Ragged units in scattered order, multiplicities, clusters and groups."""

    logw: npt.NDArray[np.float64]
    reward: npt.NDArray[np.float64]
    cluster: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    unit: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]

    def draws(self) -> SmallLog:
        """One row per draw."""
        fields = (self.logw, self.reward, self.cluster, self.group, self.unit)
        return SmallLog(*(np.repeat(x, self.count) for x in fields), np.ones(self.count.sum(), dtype=np.int64))


def small_log(seed: int = 0, units: int = 40, spread: float = 0.8, largest_count: int = 3) -> SmallLog:
    rng = np.random.default_rng(seed)
    unit = np.repeat(rng.permutation(units) * 7 - 50, rng.integers(1, 7, size=units))
    unit = rng.permutation(unit)
    n = len(unit)
    return SmallLog(
        logw=spread * rng.normal(size=n) - spread**2 / 2,
        reward=rng.uniform(size=n),
        cluster=rng.integers(0, 4, size=n) * 11 - 5,
        group=rng.integers(0, 3, size=n),
        unit=unit,
        count=rng.integers(1, largest_count + 1, size=n),
    )
