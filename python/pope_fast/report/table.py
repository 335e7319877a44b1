"""The table of an evaluation: for a terminal, with colors, or as plain text."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pope_fast.evaluate.results import Difference, Estimate, Evaluation, PolicyValue
from pope_fast.report import words

STYLES: Mapping[str, str] = {"reliable": "green", "caution": "yellow", "unreliable": "red"}
MAX_GROUPS = 12
"""Groups shown in the table; JSON, Arrow and HTML have all of them."""

METHOD_WIDTH = 96
"""From this many columns on, the table says how each interval was made."""


def render_text(
    evaluation: Evaluation,
    *,
    width: int = 100,
    truth: Mapping[str, Any] | None = None,
    compare: Sequence[tuple[str, str]] | None = None,
    ascii_only: bool = False,
) -> str:
    """Give the table as plain text, without colors and without blanks at the ends of lines.

    Parameters
    ----------
    width
        Columns of the text.
    truth
        Content of a truth file (see :func:`pope_fast.report.json.load_truth`); adds the column "truth".
    compare, ascii_only
        As in :func:`render`.
    """
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(render(evaluation, width=width, truth=truth, compare=compare, ascii_only=ascii_only))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def render(
    evaluation: Evaluation,
    *,
    width: int = 100,
    truth: Mapping[str, Any] | None = None,
    compare: Sequence[tuple[str, str]] | None = None,
    ascii_only: bool = False,
) -> RenderableType:
    """Give the table as something that a :class:`rich.console.Console` prints.

    Parameters
    ----------
    width
        Columns of the console; a wide one also shows how each interval was made.
    truth
        Content of a truth file; adds the column "truth".
    compare
        Pairs whose paired difference is shown; by default all pairs of at most three policies.
    ascii_only
        Draw with ASCII characters only.
    """
    marks = words.ASCII_MARKS if ascii_only else words.MARKS
    lines = box.ASCII if ascii_only else box.SIMPLE_HEAD
    parts: list[RenderableType] = [
        _heading(evaluation, ascii_only),
        _main_table(evaluation, marks, lines, width, truth),
    ]
    legend = words.diversity_legend(evaluation)
    if legend is not None:
        parts.append(Text(legend + "\n", style="dim"))
    shared = words.shared_notes(evaluation)
    parts.extend(_explanation(policy, marks, shared) for policy in evaluation.values())
    if compare is None and len(evaluation) <= 3:
        compare = list(combinations(evaluation, 2))
    if compare:
        parts.append(_difference_table([evaluation.compare(a, b) for a, b in compare], evaluation, marks, lines))
    if any(policy.groups for policy in evaluation.values()):
        parts.append(_group_table(evaluation, marks, lines, width))
    parts.extend(Text(f"note: {note}", style="dim") for note in shared)
    parts.extend(Text(f"note: {warning}", style="yellow") for warning in evaluation.warnings)
    return Group(*parts)


def _heading(evaluation: Evaluation, ascii_only: bool) -> Text:
    phrases = words.subtitle(evaluation)
    separator = " | " if ascii_only else " · "
    text = Text("pope_fast", style="bold")
    text.append(separator + separator.join(phrases), style="not bold dim")
    return text


def _main_table(
    evaluation: Evaluation,
    marks: Mapping[str, str],
    lines: box.Box,
    width: int,
    truth: Mapping[str, Any] | None,
) -> Table:
    methods = width >= METHOD_WIDTH
    table = Table(box=lines, pad_edge=False, padding=(0, 1))
    table.add_column("policy")
    table.add_column("quantity", no_wrap=True)
    table.add_column("estimate", justify="right", no_wrap=True)
    table.add_column(f"{100 * evaluation.settings.level:g}% interval")
    if methods:
        table.add_column("method", style="dim")
    if truth is not None:
        table.add_column("truth", justify="right", no_wrap=True)
    for policy in evaluation.values():
        style = STYLES[policy.verdict.level]
        mark = marks[policy.verdict.level]
        known = words.truth_of(truth, policy)
        # The name, the verdict and the sample size stand beside V, U and D: lines that are there anyway.
        beside = [
            Text(policy.policy, style="bold"),
            Text(f"{mark} {policy.verdict.level}", style=f"bold {style}"),
            Text(words.ess_line(policy.diagnostics), style="dim"),
        ]
        rows = [("value", "V value", policy.value), ("utility", "U utility", policy.utility)]
        if policy.diversity is not None:
            rows.append(("diversity", "D diversity", policy.diversity))
        for i, first in enumerate(beside):
            cells: list[Text] = [first]
            if i < len(rows):
                key, name, estimate = rows[i]
                level = words.level_of(estimate, policy)
                cells += _estimate_cells(name, estimate, level, marks, bold=i == 0)
                cells += [_method(estimate)] if methods else []
                cells += [_truth_cell(known.get(key), estimate)] if truth is not None else []
            else:
                cells += [Text("D diversity", style="dim"), Text("n/a", style="dim")]
                cells += [Text("not available: the log has no clusters", style="dim")]
            table.add_row(*cells, end_section=i == len(beside) - 1)
    reward = evaluation.behavior
    cells = [Text("the log itself", style="bold")]
    cells += _estimate_cells("U mean reward", reward, "reliable", marks)
    cells += [_method(reward)] if methods else []
    table.add_row(*cells)
    return table


def _estimate_cells(
    name: str, estimate: Estimate, level: str, marks: Mapping[str, str], *, bold: bool = False
) -> list[Text]:
    doubtful = estimate.available and level != "reliable"
    value = Text(words.point(estimate))
    if doubtful:
        value = Text(f"{marks[level]} ", style=STYLES[level]) + Text(words.point(estimate), style=STYLES[level])
    if level == "unreliable":
        value.stylize("dim")
    strong = "bold" if bold else ""
    if bold and level != "unreliable":
        value.stylize("bold")
    return [Text(name, style=strong), value, Text(words.interval_or_reason(estimate, level), style=strong)]


def _method(estimate: Estimate) -> Text:
    interval = estimate.interval
    return Text("" if interval is None else words.label(interval.method))


def _truth_cell(known: float | None, estimate: Estimate) -> Text:
    if known is None:
        return Text("-", style="dim")
    value = words.figure(known, words.decimals_for(estimate))
    interval = estimate.interval
    if interval is None:
        return Text(value)
    inside = interval.contains(known)
    return Text(f"{value} {'in ' if inside else 'OUT'}", style="green" if inside else "red")


def _explanation(policy: PolicyValue, marks: Mapping[str, str], shared: Sequence[str]) -> RenderableType:
    level = policy.verdict.level
    style = STYLES[level]
    heading = Text(f"{marks[level]} {policy.policy}: {level}. ", style=f"bold {style}")
    heading.append(words.verdict_sentence(policy), style=f"not bold {style}")
    lines: list[RenderableType] = [heading]
    lines += [_bullet("-", reason) for reason in words.reasons(policy)]
    lines += [_bullet("-", line, "dim") for line in words.bridge_lines(policy)]
    lines += [_bullet("-", note, "dim") for note in policy.notes if note not in shared]
    lines += [_bullet("next:", step, "bold") for step in words.next_steps(policy)]
    return Padding(Group(*lines), (0, 0, 1, 0)) if len(lines) > 1 else Group(*lines)


def _bullet(sign: str, text: str, style: str = "") -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_row(Text(f"  {sign}", style=style), Text(text, style=style))
    return grid


def _difference_table(
    differences: Sequence[Difference], evaluation: Evaluation, marks: Mapping[str, str], lines: box.Box
) -> RenderableType:
    table = Table(box=lines, pad_edge=False, title="paired differences on the same units", title_justify="left")
    table.title_style = "dim"
    table.add_column("a - b")
    table.add_column("quantity", no_wrap=True)
    table.add_column("difference", justify="right", no_wrap=True)
    table.add_column(f"{100 * evaluation.settings.level:g}% interval")
    notes: list[Text] = []
    for difference in differences:
        a, b = evaluation[difference.a], evaluation[difference.b]
        rows = [("V", difference.value), ("U", difference.utility)]
        if difference.diversity is not None:
            rows.append(("D", difference.diversity))
        for i, (name, estimate) in enumerate(rows):
            first = Text(f"{difference.a} - {difference.b}" if i == 0 else "", style="bold")
            cells = _estimate_cells(name, estimate, words.level_of_difference(estimate, a, b), marks)
            if estimate.note is not None and estimate.note == difference.note:
                cells[-1] = Text("none" if i else f"none: {difference.note}")
            table.add_row(first, *cells, end_section=i == len(rows) - 1)
        if difference.note is not None and all(estimate.note != difference.note for _, estimate in rows):
            notes.append(Text(f"{difference.a} - {difference.b}: {difference.note}", style="dim"))
    return Group(table, *notes, Text()) if notes else table


def _group_table(evaluation: Evaluation, marks: Mapping[str, str], lines: box.Box, width: int) -> RenderableType:
    shown = list(evaluation.values())
    fitting = max(1, (width - 18) // 28)
    blocks: list[RenderableType] = []
    for start in range(0, len(shown), fitting):
        policies = shown[start : start + fitting]
        table = Table(box=lines, pad_edge=False, title_style="dim", title_justify="left")
        table.title = "utility by group, and welfare over groups"
        table.add_column("group")
        for policy in policies:
            table.add_column(policy.policy)
        labels = list(dict.fromkeys(key for policy in policies for key in policy.groups))
        for key in labels[:MAX_GROUPS]:
            table.add_row(str(key), *(_group_cell(p.groups.get(key), p, marks) for p in policies))
        if len(labels) > MAX_GROUPS:
            table.add_row(f"and {len(labels) - MAX_GROUPS} more", *("" for _ in policies))
        table.add_section()
        for name in dict.fromkeys(key for policy in policies for key in policy.welfare):
            table.add_row(f"welfare: {name}", *(_group_cell(p.welfare.get(name), p, marks) for p in policies))
        blocks.append(table)
    return Group(*blocks)


def _group_cell(estimate: Estimate | None, policy: PolicyValue, marks: Mapping[str, str]) -> Text:
    if estimate is None:
        return Text("-", style="dim")
    level = words.level_of(estimate, policy)
    if not estimate.available:
        return Text(words.interval_or_reason(estimate, level), style="dim")
    # The reason for a missing interval stands once below the table of the policies, not in every cell.
    ends = "(no interval)" if estimate.interval is None else words.interval_or_reason(estimate, level)
    text = f"{words.point(estimate)} {ends}"
    return Text(text) if level == "reliable" else Text(f"{marks[level]} {text}", style=STYLES[level])
