"""Paired differences of two policies on the same units, and which interval of them may be shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pope_fast.evaluate.records import TOO_RARE, make_estimate
from pope_fast.evaluate.results import Difference, Estimate, PolicyValue
from pope_fast.evaluate.tails import Ends, difference_tail
from pope_fast.evaluate.verdict import RARE_REWARD, voids_bounds

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

    def has(self, code: str) -> bool:
        """Whether the verdict has this finding."""
        return any(f.code == code for f in self.policy.verdict.findings)


def make_difference(record: Mapping[str, Any], level: float, a: Side, b: Side) -> Difference:
    """Turn a native paired difference into a :class:`Difference`.

    The jackknife pairs the units, so what the policies share cancels, but it knows nothing of the weight that
    truncation took: ``worst_case_tail`` adds what that could be on either side, and is shown. Where the reward is
    rare, U and V have the ends of both policies' bounded intervals, each at half the error probability.
    """
    bad = [side.policy.policy for side in (a, b) if side.policy.verdict.level == "unreliable"]
    note = f"not to be trusted: {' and '.join(bad)} unreliable" if bad else None
    void = voids_bounds(a.policy.verdict) or voids_bounds(b.policy.verdict)
    rare = a.has(RARE_REWARD) or b.has(RARE_REWARD)

    def estimate(name: str, unit: str, *, of_reward: bool) -> Estimate:
        part = record[name]
        intervals = list(part["intervals"])
        paired = next((i["interval"] for i in intervals if i["method"] == "jackknife"), None)
        tail = None
        if paired is not None and not void:
            tail = difference_tail(paired, _part(a.summary, name), _part(b.summary, name))
        if tail is not None:
            intervals.append({"method": "worst_case_tail", "interval": tail})
        bounded = rare and of_reward
        if bounded and not (bad or void):
            ends = _apart(_part(a.strict(), name), a.policy, _part(b.strict(), name), b.policy)
            if ends is not None:
                intervals.append({"method": "robust", "interval": ends})
        # The jackknife stays among the intervals; it is not shown first where one side cannot be estimated.
        headline = ("robust",) if bad or bounded else ("worst_case_tail", "jackknife")
        made = make_estimate({**part, "intervals": intervals}, level, unit=unit, headline=headline, note=note)
        return replace(made, note=TOO_RARE) if bounded and not bad and made.interval is None else made

    d = a.policy.diversity
    return Difference(
        a=record["a"],
        b=record["b"],
        utility=estimate("utility", "reward units", of_reward=True),
        diversity=None
        if record["diversity"] is None
        else estimate("diversity", "nats" if d is None else d.unit, of_reward=False),
        value=estimate("value", "reward units", of_reward=True),
        note=note,
    )


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
