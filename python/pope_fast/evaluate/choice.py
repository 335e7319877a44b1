"""Which interval of a quantity is shown first: the one place that decides, for every quantity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pope_fast.evaluate.findings import Verdict
from pope_fast.evaluate.verdict import BRIDGE, RARE_REWARD, voids_bounds
from pope_fast.log.inspection.signs import AVERAGED, REPEATED

__all__ = ["BOUNDED", "TOO_RARE", "Choice", "choose"]

BOUNDED = ("robust", "certified", "worst_case_tail")
"""Intervals that need bounded weights; void where the log-probs do not fit each other."""

TOO_RARE = "the reward, or its absence, is too rare for an interval from its standard error"
"""Why there is no interval where only one from a standard error could be made."""

_VOID = "void: the log-probs are inconsistent"
_UNUSABLE = "no interval is valid: no overlap and inconsistent log-probs"
_CONTRADICTED = "no interval is valid: fresh draws contradict the log-probs"
_NONE_WITHOUT_OVERLAP = "no interval that needs no overlap exists for this quantity"

_ROBUST = ("robust", "certified")

_VOIDING = {
    AVERAGED: "no interval is valid: the log-probs are means over tokens",
    REPEATED: "no interval is valid: rows are repeated",
}
"""Findings that leave nothing to show of the quantities that they concern, if they are grave."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What may be shown of a quantity.

    Attributes
    ----------
    methods
        Kinds of interval in order of preference; no other is shown. Empty if none may be.
    reason
        Why there is no interval, where none of these could be formed.
    voids_bounds
        Whether intervals that need bounded weights are void.
    voids_all
        Whether every interval is void.
    """

    methods: tuple[str, ...]
    reason: str
    voids_bounds: bool = False
    voids_all: bool = False

    @property
    def method(self) -> str | None:
        """The preferred kind; ``None`` if none may be shown."""
        return self.methods[0] if self.methods else None


def choose(verdict: Verdict, gates: Mapping[str, float]) -> Choice:
    """Choose by the verdict on a quantity which intervals of it may be shown.

    Without overlap it is the robust one, and so it is where the reward is rare. Where hardly any unit shows the
    rare side of the reward even that one is too narrow, as its ends are normal limits, and the certified one is left.
    The self-normalized answer stays consistent under noisy log-probs; intervals from bounds do not.
    """
    codes = {finding.code: finding for finding in verdict.findings}
    for finding in verdict.findings:
        if finding.severity == "unreliable" and finding.code in _VOIDING:
            return Choice((), _VOIDING[finding.code], voids_bounds=True, voids_all=True)
    no_overlap, rare = verdict.level == "unreliable", codes.get(RARE_REWARD)
    if voids_bounds(verdict):
        if no_overlap:
            reason = _CONTRADICTED if BRIDGE in codes else _UNUSABLE
            return Choice((), reason, voids_bounds=True, voids_all=True)
        if rare is not None:
            return Choice((), TOO_RARE, voids_bounds=True)
        return Choice(("delta", "jackknife", "bonferroni"), _VOID, voids_bounds=True)
    reason = _NONE_WITHOUT_OVERLAP if no_overlap or rare is None else TOO_RARE
    if rare is not None and rare.value is not None and rare.value < gates["reward_ess_few"]:
        return Choice(("certified",), reason)
    if rare is not None or no_overlap:
        return Choice(_ROBUST, reason)
    return Choice(("worst_case_tail", "delta", "jackknife", "bonferroni"), reason)
