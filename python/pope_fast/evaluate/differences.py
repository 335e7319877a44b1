"""Paired differences of two policies on the same units, and which interval of them may be shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pope_fast.evaluate.choice import choose
from pope_fast.evaluate.findings import Finding, Verdict
from pope_fast.evaluate.records import make_estimate
from pope_fast.evaluate.results import Difference, Estimate, PolicyValue
from pope_fast.evaluate.spans import diversity_span, reward_span, wide_interval
from pope_fast.evaluate.tails import Ends, difference_tail
from pope_fast.evaluate.verdict import RARE_REWARD
from pope_fast.log import RewardRange

__all__ = ["Side", "make_difference"]


@dataclass(frozen=True)
class Side:
    """One of the two policies of a difference.

    Attributes
    ----------
    policy
        What was made of its summary.
    summary
        What ``Snapshot.summary`` returned.
    strict
        Gives the summary at half the error probability; called only if it is needed.
    """

    policy: PolicyValue
    summary: Mapping[str, Any]
    strict: Callable[[], Mapping[str, Any]]

    def findings(self, quantity: str) -> tuple[Finding, ...]:
        """Give what was found of U, D or V of this policy, but for the width of its own interval."""
        found = (f for e in self.policy.estimates(quantity) if e.verdict is not None for f in e.verdict.findings)
        return tuple(f for f in found if f.code != "wide_interval")


def make_difference(
    record: Mapping[str, Any], level: float, a: Side, b: Side, *, gates: Mapping[str, float], bounds: RewardRange
) -> Difference:
    """Turn a native paired difference into a :class:`Difference`.

    The jackknife pairs the units, so what the policies share cancels, but it knows nothing of the weight that
    truncation took: ``worst_case_tail`` adds what that could be on either side, and is shown. Where the reward is
    rare, U and V have the ends of both policies' bounded intervals, each at half the error probability.

    The verdict on a difference in U is the worse one of either policy's U, and so for D and V.
    """
    spans = _spans(a, bounds)
    of_d = "nats" if a.policy.diversity is None else a.policy.diversity.unit
    made = {
        name: _estimate(name, record[name], level, a, b, gates, span, of_d if name == "diversity" else "reward units")
        for name, span in spans.items()
        if record[name] is not None
    }
    bad = [
        side.policy.policy
        for side in (a, b)
        if any(Verdict.of(side.findings(name)).level == "unreliable" for name in made)
    ]
    return Difference(
        a=record["a"],
        b=record["b"],
        utility=made["utility"],
        diversity=made.get("diversity"),
        value=made["value"],
        note=f"not to be trusted: {' and '.join(bad)} unreliable" if bad else None,
    )


def _estimate(
    name: str,
    part: Mapping[str, Any],
    level: float,
    a: Side,
    b: Side,
    gates: Mapping[str, float],
    span: float | None,
    unit: str,
) -> Estimate:
    """Make the difference in U, D or V."""
    verdict = Verdict.of(
        replace(finding, message=f"{side.policy.policy}: {finding.message}")
        for side in (a, b)
        for finding in side.findings(name)
    )
    # Where the reward is rare it has the bounds of either policy's own choice, and is called robust.
    choice = choose(verdict, {**gates, "reward_ess_few": 0.0})
    intervals = list(part["intervals"])
    paired = next((i["interval"] for i in intervals if i["method"] == "jackknife"), None)
    if paired is not None and not choice.voids_bounds:
        tail = difference_tail(paired, _part(a.summary, name), _part(b.summary, name))
        if tail is not None:
            intervals.append({"method": "worst_case_tail", "interval": tail})
    bad = [side.policy.policy for side in (a, b) if Verdict.of(side.findings(name)).level == "unreliable"]
    rare = any(finding.code == RARE_REWARD for finding in verdict.findings)
    if rare and not bad and not choice.voids_bounds:
        ends = _apart(_part(a.strict(), name), a.policy, _part(b.strict(), name), b.policy)
        if ends is not None:
            intervals.append({"method": "robust", "interval": ends})
    note = f"not to be trusted: {' and '.join(bad)} unreliable" if bad else None
    estimate = make_estimate({**part, "intervals": intervals}, level, choice, unit=unit, note=note, verdict=verdict)
    own = wide_interval(f"the difference in {name}", "differences", estimate, None if span is None else 2 * span, gates)
    return replace(estimate, verdict=Verdict.of([*verdict.findings, *own])) if own else estimate


def _spans(a: Side, bounds: RewardRange) -> dict[str, float | None]:
    """How far U, D and V can range."""
    reward, diversity = reward_span(bounds), diversity_span(a.summary)
    value = reward
    if a.policy.diversity is not None:
        both = reward is not None and diversity is not None
        value = reward + a.policy.diversity_weight * diversity if both else None  # type: ignore[operator]
    return {"utility": reward, "diversity": diversity, "value": value}


def _part(summary: Mapping[str, Any], name: str) -> Ends:
    """Give the intervals of U, D or V of one policy, by method."""
    found = summary[name]
    part = next(e for e in found if e["name"] == "sn_tips") if name == "utility" else found
    return {item["method"]: item["interval"] for item in part["intervals"]}


def _apart(a: Ends, policy_a: PolicyValue, b: Ends, policy_b: PolicyValue) -> dict[str, float] | None:
    """Give the ends of the difference of two bounded intervals, each at half the error probability."""
    one, other = (
        ends.get("certified" if policy.headline_method == "certified" else "robust")
        for ends, policy in ((a, policy_a), (b, policy_b))
    )
    if one is None or other is None or one["low"] > one["high"] or other["low"] > other["high"]:
        return None
    return {"low": one["low"] - other["high"], "high": one["high"] - other["low"]}
