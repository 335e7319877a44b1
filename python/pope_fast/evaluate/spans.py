"""How far a quantity can range, and the finding that an interval covers too much of that to be an answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pope_fast.evaluate.findings import Finding
from pope_fast.log import RewardRange

if TYPE_CHECKING:
    from pope_fast.evaluate.results import Estimate

__all__ = ["diversity_span", "reward_span", "wide_interval"]


def reward_span(bounds: RewardRange) -> float | None:
    """Return how far U, a group's utility or a welfare can range; ``None`` if the reward is constant."""
    return bounds.high - bounds.low if bounds.high > bounds.low else None


def diversity_span(summary: Mapping[str, Any]) -> float | None:
    """Return how far D can range, whatever the clusters are; ``None`` if it has no bound, or there is no D."""
    if summary["diversity"] is None:
        return None
    name: str = summary["diversity"]["name"]
    if name.startswith("H_"):
        return math.fsum(1.0 / v for v in range(1, int(name.removeprefix("H_")) + 1))
    if name.startswith("coverage@"):
        return float(name.removeprefix("coverage@")) - 1.0
    if name == "entropy":
        clusters = summary["marginal"]["n_clusters"]
        return math.log(clusters) if clusters > 1 else None
    return {"gini_simpson": 1.0, "rao": 1.0}.get(name)


def wide_interval(
    what: str, quantity: str, estimate: Estimate, span: float | None, gates: Mapping[str, float]
) -> list[Finding]:
    """Find that an interval is wider than a share of what its quantity can range over: that is no answer.

    Parameters
    ----------
    what
        The quantity in words, for the message.
    quantity
        The quantity that the finding concerns.
    estimate
        With its headline interval.
    span
        Length of the range.
    gates
        Thresholds by name.
    """
    interval, gate = estimate.interval, gates["interval_share"]
    if interval is None or span is None or span <= 0 or interval.width <= gate * span:
        return []
    share = interval.width / span
    covered = "all" if share >= 1 else f"{share:.0%}"
    message = f"the interval of {what} covers {covered} of what it can range over (more than {gate:.0%}): no answer"
    return [Finding("wide_interval", "unreliable", message, share, gate, (quantity,))]
