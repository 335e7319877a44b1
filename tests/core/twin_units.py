"""Units, truncation and the grouped jackknife for the twin of a summary, and the shapes of its records."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from core_logs import Log

from pope_fast.reference import intervals as iv
from pope_fast.reference import jackknife as jk
from pope_fast.reference import utility
from pope_fast.reference._types import Interval
from pope_fast.reference.special import student_t_quantile
from pope_fast.reference.units import bucket, expand_draws, splitmix64, unit_codes, unit_means, unit_sizes

Array = npt.NDArray[np.float64]
Record = dict[str, Any]


def scaled(x: npt.ArrayLike, log_factor: float) -> Array:
    """``x exp(log_factor)`` without overflow on the way; 0 stays 0."""
    values = np.asarray(x, dtype=np.float64)
    with np.errstate(over="ignore", divide="ignore"):
        return np.sign(values) * np.exp(np.log(np.abs(values)) + log_factor)


def quantile(level: float, df: float) -> float:
    return student_t_quantile(0.5 + level / 2.0, df)


def ends(low: float, high: float) -> Record:
    return {"low": float(low), "high": float(high)}


def within(ends_: tuple[float, float], low: float, high: float) -> Interval:
    return Interval(*(min(max(x, low), high) for x in ends_))


def named(name: str, value: float, error: float | None, intervals: Sequence[tuple[str, Any]]) -> Record:
    return {
        "name": name,
        "value": value,
        "standard_error": error,
        "intervals": [{"method": method, "interval": ends(*i)} for method, i in intervals],
    }


def around(value: float, half: float) -> Interval:
    return Interval(value - half, value + half)


def student(name: str, value: float, error: float | None, method: str, level: float, df: float) -> Record:
    if error is None:
        return named(name, value, None, [])
    return named(name, value, error, [(method, around(value, quantile(level, df) * error))])


def log_smoothing(x: Array, alpha: float, factor: float = 1.0) -> float:
    """Lower bound from floored observations; a calibration factor comes after the floor."""
    bound = iv.log_smoothing_lower(iv.floor_mantissa(x) * factor, alpha, floored=False)
    return max(bound, 0.0)


def x_ln_x(x: Array) -> Array:
    return np.where(x > 0, x * np.log(np.where(x > 0, x, 1.0)), 0.0)


def leaves(record: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of nested dictionaries and lists by its path; named records go by their names."""
    if isinstance(record, dict):
        return {k: v for key, value in record.items() for k, v in leaves(value, f"{path}.{key}").items()}
    if isinstance(record, list):
        found = {f"{path}#": len(record)}
        for i, item in enumerate(record):
            label = next((item[k] for k in ("name", "method", "key") if isinstance(item, dict) and k in item), i)
            found |= leaves(item, f"{path}[{label}]")
        return found
    return {path: record}


@dataclass
class Cuts:
    """One policy of a log, and the options of a reading."""

    log: Log
    level: float = 0.95
    diversity_weight: float = 1.0
    diversity: str = "auto"
    diversity_order: int = 3
    kappa: float = 1.0
    tau: float | None = None
    repeated_share: float = 0.5
    order_share: float = 0.9
    tail_capacity: int = 32768
    rows: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        log = self.log
        low, high = log.reward_range
        columns = {
            "logw": np.asarray(log.target, dtype=np.float64) - np.asarray(log.behavior, dtype=np.float64),
            "r": utility.rescale(log.reward, low, high),
            "cluster": log.cluster,
            "group": log.group,
            "tokens": log.tokens,
            "embedding": log.embedding,
            "baseline": None if log.baseline is None else utility.rescale(log.baseline, low, high),
            "baseline_mean": None if log.baseline_mean is None else utility.rescale(log.baseline_mean, low, high),
        }
        self.n_rows = len(log)
        m = np.ones(len(log)) if log.count is None else log.count
        self.n_draws = int(m.sum())
        self.group_rows = (
            None
            if log.group is None
            else dict(zip(*(x.tolist() for x in np.unique(log.group, return_counts=True)), strict=True))
        )
        if log.unit is not None:
            self.unit, self.count = log.unit, log.count
            self.bucket = bucket(np.unique(log.unit))
        else:
            # Every draw is a unit; the copies of a row are hashed one by one.
            row = np.repeat(np.arange(len(m)), m.astype(np.int64))
            copy = np.concatenate([np.arange(int(k)) for k in m])
            key = np.where(m[row] > 1, (splitmix64(row) + copy.astype(np.uint64)).view(np.int64), row)
            self.bucket = bucket(key)
            self.unit, self.count = np.arange(len(row)), None
            columns = {k: None if v is None else expand_draws(m, v)[0] for k, v in columns.items()}
        self.rows = columns
        self.logw = columns["logw"]
        self.r = columns["r"]
        self.low, self.span = low, high - low
        self.n = len(self.bucket)
        self.top = float(self.logw.max())
        self.rel = self.logw - self.top
        self.sizes = unit_sizes(self.unit, self.count)
        self.codes = unit_codes(self.unit)[1]

    # Truncation.

    def feasible(self, log_tau: float) -> float:
        """The lowest level at which every larger weight is among the kept units."""
        largest = np.full(self.n, -np.inf)
        np.maximum.at(largest, self.codes, self.logw)
        kept = np.sort(largest[largest > -np.inf])[::-1]
        return max(log_tau, float(kept[self.tail_capacity - 1])) if len(kept) > self.tail_capacity else log_tau

    @cached_property
    def wanted(self) -> float:
        mean = float(np.mean(self.means(np.exp(self.rel))))
        return 0.5 * math.log(self.n) + math.log(mean) + self.top if self.tau is None else math.log(self.tau)

    @cached_property
    def log_tau(self) -> float:
        return self.feasible(self.wanted)

    @cached_property
    def cut(self) -> Array:
        """Log-weights cut at the level of the estimators, relative to the largest uncut one."""
        return np.minimum(self.rel, self.log_tau - self.top)

    @cached_property
    def robust_cut(self) -> Array:
        """Log-weights cut at sqrt n, true scale."""
        return np.minimum(self.logw, self.feasible(0.5 * math.log(self.n) + math.log(self.kappa)))

    def means(self, values: npt.ArrayLike) -> Array:
        return unit_means(values, self.unit, self.count)

    @cached_property
    def truncated_share(self) -> float:
        kept = self.means(np.exp(self.cut)).sum() / self.means(np.exp(self.rel)).sum()
        return float(np.clip(1.0 - kept, 0.0, 1.0))

    # The grouped jackknife.

    def jackknife(self, statistic: Callable[[Array], float]) -> jk.JackknifeEstimate | None:
        """``statistic(mask over units)`` on everything and without each bucket."""
        whole = statistic(np.ones(self.n, dtype=np.bool_))
        groups, sizes = np.unique(self.bucket, return_counts=True)
        if len(groups) < 2:
            return None
        with np.errstate(invalid="ignore", divide="ignore"):
            without = np.array([statistic(self.bucket != g) for g in groups])
        return jk.combine(whole, without, sizes) if np.isfinite(without).all() else None

    def jackknife_on(self, used: Array, statistic: Callable[[Array], float]) -> jk.JackknifeEstimate | None:
        """The same over the units in ``used`` alone; masks are over these."""
        groups, sizes = np.unique(self.bucket[used], return_counts=True)
        if len(groups) < 2:
            return None
        without = np.array([statistic(self.bucket[used] != g) for g in groups])
        whole = statistic(np.ones(np.count_nonzero(used), dtype=np.bool_))
        return jk.combine(whole, without, sizes) if np.isfinite(without).all() else None
