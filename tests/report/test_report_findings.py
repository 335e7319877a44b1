"""The page on the verdict lists every finding there is: code, severity, gates, and the remedy that a report gives."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from pope_fast.evaluate import DEFAULT_THRESHOLDS, provenance, records, spans, verdict
from pope_fast.log.inspection import SEVERITIES
from pope_fast.report import words

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "howto-verdict.md").read_text(encoding="utf-8")


def documented() -> list[tuple[str, str, str, str, str]]:
    """Code, severity, gate, meaning and remedy of every row."""
    rows = (line.strip("| ").split("|") for line in PAGE.splitlines() if re.match(r"\| `\w+` \| \w+ \|", line))
    cells = [[cell.strip() for cell in row] for row in rows]
    return [(row[0].strip("`"), row[1], row[2], row[3], row[4] if len(row) > 4 else "") for row in cells]


def made() -> set[tuple[str, str]]:
    """Code and severity of every finding that the source makes."""
    found = set()
    for module in (verdict, records, spans, provenance):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                code, severity = node.args[:2]
                name = code.value if isinstance(code, ast.Constant) else getattr(verdict, code.id)  # type: ignore[attr-defined]
                assert isinstance(severity, ast.Constant)
                found.add((name, severity.value))
    return found | {(code, severity) for code, severities in SEVERITIES.items() for severity in severities}


def test_every_finding_is_on_the_page_and_no_other() -> None:
    assert len(made()) >= 16
    assert {(code, severity) for code, severity, *_ in documented()} == made()


def test_every_gate_is_on_the_page_with_its_default() -> None:
    gates: dict[str, float] = {}
    for _, _, gate, _, _ in documented():
        gates |= {name: float(value) for name, value in re.findall(r"`(\w+)` ([\d.]+)", gate)}
    assert gates == dict(DEFAULT_THRESHOLDS)


def test_every_finding_says_what_it_means_and_what_to_do() -> None:
    for code, severity, _, meaning, remedy in documented():
        assert meaning, code
        assert remedy == (words.STEPS[code] if severity != "info" else ""), code
    assert set(words.STEPS) == {code for code, severity, *_ in documented() if severity != "info"}
