"""Write docs/mistakes.md from the list in tests/evaluate/mistakes.py; run it after a change of either."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "mistakes.md"

HEAD = """# What people get wrong, and what pope_fast says

Each row is a test: a log that is right but for this mistake is evaluated, and this is what is said of it. Written by
`scripts/write_mistakes.py`; what each finding means and what to do is in [how to read the verdict](howto-verdict.md).

| mistake | what is said | |
|---|---|---|
"""


def page() -> str:
    """Evaluate every wrong log, and give the page."""
    sys.path.insert(0, str(ROOT / "tests" / "evaluate"))
    from mistakes import MISTAKES

    rows = []
    for mistake in MISTAKES:
        said = mistake.result()
        kind = "error, exit code 2" if mistake.is_error else f"{said.severity}, `{said.code}`"
        text = str(said) if mistake.is_error else said.message
        rows.append(f"| {mistake.title} | {_cell(text)} | {kind} |\n")
    return HEAD + "".join(rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
