"""What a validation found, as a value, as a table and as plain data for JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

from pope_fast.log.columns import Fault
from pope_fast.log.inspection.signs import Sign
from pope_fast.log.ranges import RewardRange

__all__ = ["ValidationReport"]

_WIDTH = 100


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What a log holds and everything that is wrong with it; ``str()`` is a table.

    Attributes
    ----------
    source : str
        The log.
    columns : mapping of str to str
        Role -> the column that is taken for it.
    types : mapping of str to str
        Column -> its type.
    other_columns : tuple of str
        Columns that play no role.
    policies : tuple of str
        The target policies.
    n_rows : int
        Rows read: all of them if ``complete``.
    complete : bool
        False if reading broke off, with the reason among the faults.
    n_prompts, n_clusters, n_groups : int or None
        Distinct values; None where there is no such column.
    responses_per_prompt : mapping of str to float, or None
        Minimum, quartiles and maximum, multiplicities counted.
    scattered : bool
        Whether the rows of some prompt are not consecutive.
    reward_range : RewardRange or None
        Declared, else observed.
    faults : tuple of Fault
        What an evaluation would refuse, as far as it is listed.
    n_faults : int
        How many there are.
    warnings : tuple of str
        What an evaluation would accept and should not always.
    findings : tuple of Sign
        What looks right and is not, or may not be: it enters the verdict of an evaluation.
    """

    source: str
    columns: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    other_columns: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    n_rows: int = 0
    complete: bool = True
    n_prompts: int | None = None
    responses_per_prompt: Mapping[str, float] | None = None
    n_clusters: int | None = None
    n_groups: int | None = None
    scattered: bool = False
    reward_range: RewardRange | None = None
    faults: tuple[Fault, ...] = ()
    n_faults: int = 0
    warnings: tuple[str, ...] = ()
    findings: tuple[Sign, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there are no faults."""
        return self.n_faults == 0

    def __repr__(self) -> str:
        return f"ValidationReport({self.source!r}, {self.n_rows:,} rows, {self.n_faults} faults)"

    def __str__(self) -> str:
        lines = [f"log        {self.source}", f"rows       {self._rows()}"]
        if self.n_prompts is not None:
            lines.append(f"prompts    {self.n_prompts:,}{self._responses()}")
        for name, number in (("clusters", self.n_clusters), ("groups", self.n_groups)):
            if number is not None:
                lines.append(f"{name:<11}{number:,}")
        if self.reward_range is not None:
            bounds = self.reward_range
            lines.append(f"rewards    {bounds.low:g} to {bounds.high:g} ({bounds.origin})")
        lines.append(f"policies   {', '.join(self.policies) or 'none'}")
        lines += self._column_lines()
        lines += self._fault_lines()
        for sign in self.findings:
            lines += _wrapped(f"{sign.severity}: ", f"{self._whose(sign)}{sign} [{sign.code}]")
        for warning in self.warnings:
            lines += _wrapped("warning: ", warning)
        return "\n".join(lines)

    def _whose(self, sign: Sign) -> str:
        """Name the policies of a sign, unless they are all there are."""
        if sign.policies is None or set(sign.policies) == set(self.policies):
            return ""
        return f"{', '.join(sign.policies)}: "

    def _rows(self) -> str:
        return f"{self.n_rows:,}" + ("" if self.complete else " (reading broke off)")

    def _responses(self) -> str:
        if self.responses_per_prompt is None:
            return ""
        quantiles = ", ".join(f"{name} {value:g}" for name, value in self.responses_per_prompt.items())
        return f"   responses each: {quantiles}"

    def _column_lines(self) -> list[str]:
        if not self.types:
            return []
        rows = [(role, name, self.types.get(name, "")) for role, name in self.columns.items()]
        rows += [("(no role)", name, self.types.get(name, "")) for name in self.other_columns]
        wide = [max([len(row[i]) for row in rows] + [6]) for i in (0, 1)]
        head = f"{'taken for':<{max(wide[0], 9)}}  {'column':<{wide[1]}}  type"
        body = [f"{role:<{max(wide[0], 9)}}  {name:<{wide[1]}}  {type_}" for role, name, type_ in rows]
        return ["", head, "-" * len(head), *body, ""]

    def _fault_lines(self) -> list[str]:
        if self.ok:
            return ["no faults"]
        lines = [f"{self.n_faults} {'fault' if self.n_faults == 1 else 'faults'}"]
        for number, fault in enumerate(self.faults, start=1):
            text = str(fault.to_error())
            if fault.count > 1:
                listed = ", ".join(map(str, fault.rows))
                more = " ..." if fault.count > len(fault.rows) else ""
                text += f" ({fault.count:,} rows: {listed}{more})"
            lines += _wrapped(f"{number:>3}. ", text)
        if self.n_faults > len(self.faults):
            lines.append(f"     ... and {self.n_faults - len(self.faults)} more")
        return lines

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain values for JSON."""
        bounds = self.reward_range
        return {
            "source": self.source,
            "ok": self.ok,
            "complete": self.complete,
            "columns": dict(self.columns),
            "types": dict(self.types),
            "other_columns": list(self.other_columns),
            "policies": list(self.policies),
            "n_rows": self.n_rows,
            "n_prompts": self.n_prompts,
            "responses_per_prompt": None if self.responses_per_prompt is None else dict(self.responses_per_prompt),
            "n_clusters": self.n_clusters,
            "n_groups": self.n_groups,
            "scattered": self.scattered,
            "reward_range": None
            if bounds is None
            else {"low": bounds.low, "high": bounds.high, "origin": bounds.origin},
            "faults": [fault.to_dict() for fault in self.faults],
            "n_faults": self.n_faults,
            "warnings": list(self.warnings),
            "findings": [sign.to_dict() for sign in self.findings],
        }


def _wrapped(head: str, text: str) -> list[str]:
    indent = " " * len(head)
    lines = textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)
    return lines or [head]
