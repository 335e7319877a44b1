"""The bridge check: a log and fresh draws of a policy, held against each other.

For any two distributions pi and pi0 with density ratio w, and any function g of prompt and response,

    E_{pi0}[ w / (1 + w) g ] = E_pi[ 1 / (1 + w) g ],

on each prompt, whatever their overlap: both are sum(g pi pi0 / (pi + pi0)). The left side is a mean over the log, the
right one over draws of the policy, and both are of bounded numbers, so a t-test holds at moderate sizes and under any
tail. g = 1 is the identity on which bridge sampling rests (Bennett 1976; Meng & Wong 1996): it finds log-probs of other
responses or with an offset. A second g rises with the response's probability under both policies: it finds another
temperature or truncation, which moves probability between likely and unlikely responses and may leave the first mean
as it was. If w comes from log-probs that are not those of the policies, one of them fails; the difference for g = 1 is
then a lower bound on the total variation distance between pi and the distribution that w makes of pi0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from pope_fast.errors import SchemaError
from pope_fast.evaluate.bridge_sums import SHARE, SLOPE, TILT, LoggedSums, Side, Units
from pope_fast.evaluate.findings import BridgeCheck
from pope_fast.evaluate.fresh import FreshDraws, open_fresh, prompt_role, read_fresh
from pope_fast.evaluate.results import Estimate, Interval
from pope_fast.evaluate.student import t_quantile, t_tail
from pope_fast.log import FeedbackLog, LogBatch

__all__ = ["bridge_checks"]

Doubles = NDArray[np.float64]

# The detectable offset is that which a test at this level, half the default gate, finds four times in five (quantile of
# the normal distribution).
_ALPHA = 0.005
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


def _start(fresh: Mapping[str, FreshDraws]) -> dict[str, LoggedSums]:
    return {name: LoggedSums(draws) for name, draws in fresh.items()}


def _add(sums: Mapping[str, LoggedSums], batch: LogBatch) -> None:
    for name, of_policy in sums.items():
        of_policy.add(batch.unit_key, batch.target_logprob[name], batch.behavior_logprob, batch.count)


class _Test(NamedTuple):
    """A difference of two means, its standard error and degrees of freedom."""

    difference: float
    standard_error: float
    df: float

    @property
    def p_value(self) -> float:
        if self.standard_error == 0:
            return float(self.difference == 0)
        return t_tail(self.difference / self.standard_error, self.df)

    def half_width(self, level: float) -> float:
        return t_quantile(level, self.df) * self.standard_error if self.standard_error > 0 else 0.0


def _check(logged: LoggedSums, draws: FreshDraws, level: float, *, paired: bool) -> BridgeCheck:
    fresh = Units.of_fresh(draws, logged.lens)
    if fresh.keys.size < 2:
        raise SchemaError(f"the fresh draws ({draws.source}) are of one prompt only", remedy="draw for more prompts")
    both = logged.of_prompts()
    _, mine, theirs = np.intersect1d(both.keys, fresh.keys, assume_unique=True, return_indices=True)
    unmatched = fresh.keys.size - theirs.size
    paired = paired and theirs.size >= max(2, _SHARED * fresh.keys.size)
    if paired:
        both, fresh = both.take(mine), fresh.take(theirs)
        one, other = both.side(), fresh.side()
        tests = [_paired(both.means[what] - fresh.means[what]) for what in (SHARE, TILT)]
    else:
        one, other = logged.side(), fresh.side()
        tests = [_apart(one, other, what) for what in (SHARE, TILT)]
    share, tilt = tests
    half = share.half_width(level)
    slope = float(one.mean[SLOPE] + other.mean[SLOPE])
    return BridgeCheck(
        logged=float(one.mean[SHARE]),
        fresh=float(other.mean[SHARE]),
        difference=share.difference,
        standard_error=share.standard_error,
        interval=Interval(share.difference - half, share.difference + half, level, "t"),
        p_value=share.p_value,
        tilt=tilt.difference,
        tilt_p_value=tilt.p_value,
        paired=paired,
        n_units_logged=one.units,
        n_units_fresh=other.units,
        n_unmatched=unmatched if paired else 0,
        n_fresh=int(fresh.draws.sum()),
        offset=share.difference / slope if slope > 0 else None,
        detectable_offset=(share.half_width(1 - _ALPHA) + _POWER * share.standard_error) / slope if slope > 0 else None,
        fresh_log_weight=_mean(draws, draws.log_weight, level, "mean_log_weight", "nats"),
        sampler_excess=_mean(draws, draws.excess, level, "sampler_excess", "nats"),
        on_policy=_mean(draws, draws.reward, level, "on_policy", "reward units"),
        source=draws.source,
    )


def _paired(differences: Doubles) -> _Test:
    """Test differences on the same prompts: the identities hold on each, so what differs between prompts cancels."""
    error = float(np.std(differences, ddof=1)) / math.sqrt(differences.size)
    return _Test(float(differences.mean()), error, differences.size - 1.0)


def _apart(one: Side, other: Side, what: int) -> _Test:
    """Test the means of two samples of units (Welch 1947)."""
    errors = one.error(what), other.error(what)
    total = errors[0] + errors[1]
    df = 1.0
    if total > 0:
        df = total**2 / (errors[0] ** 2 / (one.units - 1) + errors[1] ** 2 / (other.units - 1))
    return _Test(float(one.mean[what] - other.mean[what]), math.sqrt(total), df)


@overload
def _mean(draws: FreshDraws, values: Doubles, level: float, name: str, unit: str) -> Estimate: ...
@overload
def _mean(draws: FreshDraws, values: None, level: float, name: str, unit: str) -> None: ...
def _mean(draws: FreshDraws, values: Doubles | None, level: float, name: str, unit: str) -> Estimate | None:
    """Return a mean over prompts of means over their draws; infinite values leave it without a value."""
    if values is None:
        return None
    if not np.isfinite(values).all():
        return Estimate(name, None, unit=unit, note="some draws have probability 0 under one of the policies")
    keys, place = np.unique(draws.prompt, return_inverse=True)
    n = np.bincount(place, draws.count, keys.size)
    total = np.bincount(place, draws.count * values, keys.size)
    means = total[n > 0] / n[n > 0]
    mean = float(means.mean())
    error = float(np.std(means, ddof=1)) / math.sqrt(means.size)
    half = t_quantile(level, means.size - 1.0) * error
    interval = Interval(mean - half, mean + half, level, "delta")
    return Estimate(name, mean, error, interval, {"delta": interval}, unit=unit)
