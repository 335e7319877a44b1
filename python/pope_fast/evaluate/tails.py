"""What the weight that truncation took could add to intervals that know nothing of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["difference_tail", "with_group_tails"]

Ends = Mapping[str, Mapping[str, float]]
"""Intervals by method."""


def difference_tail(paired: Mapping[str, float], a: Ends, b: Ends) -> dict[str, float] | None:
    """Widen the interval of ``a - b`` by what the worst-case tail adds to the interval of either policy.

    Parameters
    ----------
    paired
        Ends of the interval of the difference.
    a, b
        Intervals of the same quantity of either policy.

    Returns
    -------
    dict or None
        Ends, or None if a policy has no interval with a tail.
    """
    tails = _tail(a), _tail(b)
    if tails[0] is None or tails[1] is None:
        return None
    (below_a, above_a), (below_b, above_b) = tails[0], tails[1]
    return {"low": paired["low"] - below_a - above_b, "high": paired["high"] + above_a + below_b}


def _tail(ends: Ends) -> tuple[float, float] | None:
    plain, wide = ends.get("delta", ends.get("jackknife")), ends.get("worst_case_tail")
    if plain is None or wide is None:
        return None
    return max(plain["low"] - wide["low"], 0.0), max(wide["high"] - plain["high"], 0.0)


def with_group_tails(
    groups: Sequence[Mapping[str, Any]], welfare: Sequence[Mapping[str, Any]], share: float, low: float, high: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Give native records of groups and of welfare a ``worst_case_tail``, as U has it.

    Parameters
    ----------
    groups, welfare
        Records with ``value`` and ``intervals``; those of groups under ``utility``.
    share
        Share of the weight that truncation took, of the whole log: every group is taken to have lost as much.
    low, high
        Bounds of the reward.
    """
    size = high - low
    values = [(group["utility"]["value"] - low) / size for group in groups]
    # A geometric mean of values that all rise by the same rises by more than that, if they are unequal.
    more = {"nash": _geometric_mean([v * (1 - share) + share for v in values]) - share}
    more["nash"] -= _geometric_mean(values) * (1 - share)

    def widened(record: Mapping[str, Any], more: float = 0.0) -> dict[str, Any]:
        if not record["intervals"]:
            return dict(record)
        ends = record["intervals"][0]["interval"]
        tail = {
            "low": low + (ends["low"] - low) * (1 - share),
            "high": min(low + (ends["high"] - low) * (1 - share) + (share + max(more, 0.0)) * size, high),
        }
        return {**record, "intervals": [*record["intervals"], {"method": "worst_case_tail", "interval": tail}]}

    return (
        [{**group, "utility": widened(group["utility"])} for group in groups],
        [widened(record, more.get(record["name"], 0.0)) for record in welfare],
    )


def _geometric_mean(values: Sequence[float]) -> float:
    if not values or not all(v > 0 for v in values):
        return 0.0
    return math.exp(math.fsum(map(math.log, values)) / len(values))
