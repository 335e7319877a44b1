"""The bridge check: a log and fresh draws of a policy, held against each other.

For any two distributions pi and pi0 with density ratio w,

    E_{pi0}[ w / (1 + w) ] = E_pi[ 1 / (1 + w) ],

on each prompt, whatever their overlap: both are sum(pi pi0 / (pi + pi0)). The left side is a mean over the log, the
right one over draws of the policy, and both are of numbers between 0 and 1, so a t-test holds at moderate sizes and
under any tail. It is the identity on which bridge sampling rests (Bennett 1976; Meng & Wong 1996). If w comes from
log-probs that are not those of the policies (another template, tokenizer, temperature or truncation), it fails; the
difference is then a lower bound on the total variation distance between pi and the distribution that w makes of pi0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pope_fast.errors import SchemaError
from pope_fast.evaluate.findings import BridgeCheck
from pope_fast.evaluate.fresh import FreshDraws, open_fresh, prompt_role, read_fresh
from pope_fast.evaluate.results import Estimate, Interval
from pope_fast.evaluate.student import t_quantile, t_tail
from pope_fast.log import FeedbackLog, LogBatch

__all__ = ["bridge_checks"]

Doubles = NDArray[np.float64]

# Quantile of the normal distribution: the detectable offset is that which is found four times in five.
_POWER = 0.8416212335729143
# Prompts are paired if at least this share of those with fresh draws is in the log.
_SHARED = 0.5


def bridge_checks(
    log: FeedbackLog,
    fresh: Any,
    policies: list[str],
    *,
    logger: str,
    unit: str,
    level: float,
    progress: bool | None = None,
) -> dict[str, BridgeCheck]:
    """Check policies of a log against fresh draws of them.

    Parameters
    ----------
    log
        The evaluated log.
    fresh
        A log of fresh draws, or a mapping of policy to such: see :func:`pope_fast.evaluate.fresh.open_fresh`.
    policies
        Policies of the log that are evaluated.
    logger
        Policy or column of the fresh draws with the log-probs under the policy that wrote the log.
    unit
        The independent unit where the logs share no prompts.
    level
        Coverage of the intervals.

    Returns
    -------
    dict of str to BridgeCheck
        By policy, for those with fresh draws.

    Notes
    -----
    One pass over the log for each column that tells prompts apart (usually one). Memory is that of the fresh draws.
    """
    by_role: dict[str | None, dict[str, FreshDraws]] = {}
    for name, opened in open_fresh(fresh, log, policies).items():
        role = prompt_role(log, opened)
        by_role.setdefault(role, {})[name] = read_fresh(opened, name, logger=logger, role=role)
    checks: dict[str, BridgeCheck] = {}
    for role, of_policies in by_role.items():
        sides = log.fold(
            partial(_start, of_policies),
            _add,
            ["count"] if log.has("count") else [],
            unit=role or unit,
            policies=list(of_policies),
            progress=progress,
        )
        for name, draws in of_policies.items():
            checks[name] = _check(sides[name], draws, level, paired=role is not None)
    return {name: checks[name] for name in policies if name in checks}


def _start(fresh: Mapping[str, FreshDraws]) -> dict[str, _Logged]:
    return {name: _Logged(np.unique(draws.prompt)) for name, draws in fresh.items()}


def _add(sides: Mapping[str, _Logged], batch: LogBatch) -> None:
    for name, side in sides.items():
        behavior = np.asarray(batch.behavior_logprob, dtype=np.float64)
        side.add(batch.unit_key, batch.target_logprob[name] - behavior, batch.count)


def _share(log_weight: Doubles) -> Doubles:
    """Return w / (1 + w) without overflow."""
    small = np.exp(-np.abs(log_weight))
    return np.where(log_weight >= 0, 1.0, small) / (1.0 + small)


@dataclass(frozen=True, slots=True)
class _Units:
    """Means over the draws of each unit: of the share h, of h (1 - h), and more."""

    keys: NDArray[np.int64]
    draws: Doubles
    share: Doubles
    slope: Doubles

    def take(self, rows: NDArray[np.int64]) -> _Units:
        return _Units(self.keys[rows], self.draws[rows], self.share[rows], self.slope[rows])


class _Logged:
    """Sums over the log: for each prompt with fresh draws, and over all units."""

    def __init__(self, keys: NDArray[np.int64]) -> None:
        self.keys = keys
        self.draws = np.zeros(keys.size)
        self.share = np.zeros(keys.size)
        self.slope = np.zeros(keys.size)
        # Moments of all units' means, about 1/2, where they lie if the policies are one; one partial sum per batch.
        self.units = 0
        self.partial: list[tuple[float, float, float]] = []
        self._open: tuple[int, Doubles] | None = None

    def add(self, unit: NDArray[np.int64] | None, log_weight: Any, count: Any) -> None:
        """Add rows; those of a unit are consecutive, in this call or over several."""
        share = _share(np.asarray(log_weight, dtype=np.float64))
        weight = np.ones(share.size) if count is None else np.asarray(count, dtype=np.float64)
        columns = np.stack([weight, weight * share, weight * share * (1.0 - share)])
        if unit is None:
            self._close(columns)
            return
        starts = np.flatnonzero(np.concatenate([[True], unit[1:] != unit[:-1]]))
        sums = np.add.reduceat(columns, starts, axis=1)
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
        for total, column in zip((self.draws, self.share, self.slope), sums, strict=True):
            np.add.at(total, place[known], column[known])

    def _close(self, sums: Doubles) -> None:
        """Take in the sums of units that are complete."""
        sums = sums[:, sums[0] > 0]  # a count of 0 stands for no draw
        centered = sums[1] / sums[0] - 0.5
        self.units += centered.size
        self.partial.append((float(centered.sum()), float(centered @ centered), float((sums[2] / sums[0]).sum())))

    def _finish(self) -> None:
        if self._open is not None:
            key, sums = self._open
            self._open = None
            self._close(sums[:, None])
            self._pair(np.array([key]), sums[:, None])

    def paired(self) -> _Units:
        """Return the means of the prompts that have fresh draws, as far as they are in the log."""
        self._finish()
        known = self.draws > 0
        n = self.draws[known]
        return _Units(self.keys[known], n, self.share[known] / n, self.slope[known] / n)

    def overall(self) -> _Side:
        """Return the moments of all units."""
        self._finish()
        first, second, slope = (math.fsum(column) for column in zip(*self.partial, strict=True))
        mean = first / self.units
        return _Side(self.units, 0.5 + mean, max(second - first * mean, 0.0) / (self.units - 1), slope / self.units)


@dataclass(frozen=True, slots=True)
class _Side:
    """Mean and variance of the units' means, and the mean of h (1 - h)."""

    units: int
    mean: float
    variance: float
    slope: float

    @classmethod
    def of(cls, units: _Units) -> _Side:
        centered = units.share - 0.5
        variance = float(np.var(centered, ddof=1)) if centered.size > 1 else math.inf
        return cls(centered.size, 0.5 + float(np.mean(centered)), variance, float(np.mean(units.slope)))

    @property
    def error(self) -> float:
        return self.variance / self.units


def _by_prompt(draws: FreshDraws, values: Doubles) -> tuple[NDArray[np.int64], Doubles, Doubles]:
    """Return prompts, the number of draws of each, and the mean of ``values`` over them."""
    keys, place = np.unique(draws.prompt, return_inverse=True)
    n: Doubles = np.zeros(keys.size)
    np.add.at(n, place, draws.count)
    total: Doubles = np.zeros(keys.size)
    np.add.at(total, place, draws.count * values)
    drawn = n > 0
    return keys[drawn], n[drawn], total[drawn] / n[drawn]


def _check(logged: _Logged, draws: FreshDraws, level: float, *, paired: bool) -> BridgeCheck:
    share = _share(-draws.log_weight)
    keys, n, mean = _by_prompt(draws, share)
    if keys.size < 2:
        raise SchemaError(f"the fresh draws ({draws.source}) are of one prompt only", remedy="draw for more prompts")
    fresh = _Units(keys, n, mean, _by_prompt(draws, share * (1.0 - share))[2])
    both = logged.paired()
    _, mine, theirs = np.intersect1d(both.keys, fresh.keys, assume_unique=True, return_indices=True)
    unmatched = fresh.keys.size - theirs.size
    paired = paired and theirs.size >= max(2, _SHARED * fresh.keys.size)
    if paired:
        both, fresh = both.take(mine), fresh.take(theirs)
        one, other = _Side.of(both), _Side.of(fresh)
        # The identity holds on every prompt, so what differs between prompts cancels.
        differences = both.share - fresh.share
        difference, error = float(differences.mean()), float(np.var(differences, ddof=1)) / differences.size
        df = differences.size - 1.0
    else:
        one, other = logged.overall(), _Side.of(fresh)
        difference, error = one.mean - other.mean, one.error + other.error
        df = _welch(one, other)
    standard_error = math.sqrt(error)
    half, p_value = 0.0, float(difference == 0)
    if standard_error > 0:
        half, p_value = t_quantile(level, df) * standard_error, t_tail(difference / standard_error, df)
    slope = one.slope + other.slope
    weights = _by_prompt(draws, draws.log_weight)[2]
    return BridgeCheck(
        logged=one.mean,
        fresh=other.mean,
        difference=difference,
        standard_error=standard_error,
        interval=Interval(difference - half, difference + half, level, "t"),
        p_value=p_value,
        paired=paired,
        n_units_logged=one.units,
        n_units_fresh=other.units,
        n_unmatched=unmatched if paired else 0,
        n_fresh=int(fresh.draws.sum()),
        offset=difference / slope if slope > 0 else None,
        detectable_offset=(t_quantile(0.99, df) + _POWER) * standard_error / slope if slope > 0 else None,
        fresh_log_weight=_mean(weights, level, "mean_log_weight", "nats"),
        sampler_excess=None
        if draws.excess is None
        else _mean(_by_prompt(draws, draws.excess)[2], level, "sampler_excess", "nats"),
        on_policy=None
        if draws.reward is None
        else _mean(_by_prompt(draws, draws.reward)[2], level, "on_policy", "reward units"),
        source=draws.source,
    )


def _welch(one: _Side, other: _Side) -> float:
    """Degrees of freedom of the difference of two means (Welch 1947)."""
    total = one.error + other.error
    if total <= 0 or math.isinf(total):
        return 1.0
    return total**2 / (one.error**2 / (one.units - 1) + other.error**2 / (other.units - 1))


def _mean(values: Doubles, level: float, name: str, unit: str) -> Estimate:
    """Return a mean over prompts with its interval; infinite values leave it without one."""
    if not np.isfinite(values).all():
        return Estimate(name, None, unit=unit, note="some draws have probability 0 under one of the policies")
    mean = float(values.mean())
    if values.size < 2:
        return Estimate(name, mean, unit=unit, note="a single prompt tells no standard error")
    error = float(np.std(values, ddof=1)) / math.sqrt(values.size)
    half = t_quantile(level, values.size - 1.0) * error
    interval = Interval(mean - half, mean + half, level, "delta")
    return Estimate(name, mean, error, interval, {"delta": interval}, unit=unit)
