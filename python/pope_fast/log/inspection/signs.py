"""A sign that a log is not what it seems, and what to do about each kind of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = [
    "AVERAGED",
    "CERTAIN",
    "NO_REPEATS",
    "OTHER_TEMPERATURE",
    "REMEDIES",
    "REPEATED",
    "SAME_COLUMN",
    "SENTINEL",
    "SEVERITIES",
    "Severity",
    "Sign",
]

Severity = Literal["info", "caution", "unreliable"]

AVERAGED = "averaged_log_probs"
SAME_COLUMN = "same_column"
REPEATED = "repeated_rows"
NO_REPEATS = "no_repeats"
SENTINEL = "sentinel_reward"
CERTAIN = "certain_responses"
OTHER_TEMPERATURE = "other_temperature"

SEVERITIES: Mapping[str, tuple[Severity, ...]] = MappingProxyType(
    {
        AVERAGED: ("unreliable",),
        SAME_COLUMN: ("caution",),
        REPEATED: ("unreliable", "caution"),
        NO_REPEATS: ("caution", "info"),
        SENTINEL: ("caution",),
        CERTAIN: ("unreliable", "caution"),
        OTHER_TEMPERATURE: ("caution",),
    }
)
"""How grave a sign can be, by its code."""

REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        AVERAGED: (
            "Log the sum of the log-probs of all tokens of a response, not their mean: multiply by the number of "
            "tokens, or score the log again (pope score)."
        ),
        SAME_COLUMN: (
            "Score this policy itself (pope score), or name the column that holds its log-probs "
            "(--policy NAME=COLUMN): a copy of the logger's answers nothing."
        ),
        REPEATED: (
            "Drop the copies, so that there is one row per draw; where rows are several ratings of one response, keep "
            "one with their mean."
        ),
        NO_REPEATS: (
            "Log every draw, alike or not (or their number, as 'count'), with the log-prob of the whole response under "
            "the sampler that drew it: not draws without copies, the best of several, or a beam."
        ),
        SENTINEL: (
            "Drop the rows without a reward (or fill in what is meant); if the value is a reward, declare the range "
            "that ends with it (--reward-range)."
        ),
        CERTAIN: (
            "Look at these rows: a log-prob of 0 says that no other response was possible; where it stands for "
            "'unknown', score the response or drop the row."
        ),
        OTHER_TEMPERATURE: (
            "Score the behavior policy at the temperature that the responses were sampled at "
            "(HFPolicy(temperature=), --temperature), or correct the log's note of it."
        ),
    }
)
"""What to do about a sign, by its code."""


@dataclass(frozen=True, slots=True)
class Sign:
    """Something about a log that right logs do not show.

    Attributes
    ----------
    code : str
        Stable short name.
    severity : {"info", "caution", "unreliable"}
        How much it takes from an answer.
    message : str
        The sign in words, with its figures.
    column : str or None
        The column that shows it.
    row : int or None
        The first row that does (counted from 0, in reading order), as far as rows were looked at.
    count : int or None
        How many rows do, in the whole log; an estimate where ``message`` says "about".
    share : float or None
        Their share of all rows, or another share that ``message`` names.
    policies : tuple of str or None
        The target policies that it concerns; ``None`` for all.
    quantities : tuple of str
        What it concerns, as in :class:`pope_fast.evaluate.Finding`; empty for everything.
    """

    code: str
    severity: Severity
    message: str
    column: str | None = None
    row: int | None = None
    count: int | None = None
    share: float | None = None
    policies: tuple[str, ...] | None = None
    quantities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES[self.code]:
            raise ValueError(f"{self.code} is never {self.severity}: see SEVERITIES")

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return REMEDIES[self.code]

    def __str__(self) -> str:
        end = "" if self.message.endswith("?") else "."
        return f"{self.message}{end} Remedy: {self.remedy}"

    def concerns(self, policy: str) -> bool:
        """Whether it bears on a policy."""
        return self.policies is None or policy in self.policies

    def to_dict(self) -> dict[str, object]:
        """Return the sign as plain values for JSON."""
        return {
            "code": self.code,
            "severity": self.severity,
            "column": self.column,
            "row": self.row,
            "count": self.count,
            "share": self.share,
            "policies": None if self.policies is None else list(self.policies),
            "quantities": list(self.quantities),
            "message": self.message,
            "remedy": self.remedy,
        }
