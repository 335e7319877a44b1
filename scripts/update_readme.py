"""Put what the demo prints into README.md; run it after a change that alters the table or the demo log."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOG = "python/pope_fast/data/demo.parquet"
TRUTH = "python/pope_fast/data/demo.truth.json"


def demo_output() -> str:
    """The table of ``make demo``, 100 columns wide."""
    command = [sys.executable, "-m", "pope_fast.cli", "evaluate", LOG, "--truth", TRUTH]
    environment = os.environ | {"COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    return done.stdout.decode().strip("\n")


def main() -> None:
    readme = ROOT / "README.md"
    block = f"<!-- demo-output -->\n```text\n{demo_output()}\n```\n<!-- /demo-output -->"
    text = re.sub(
        r"<!-- demo-output -->.*?<!-- /demo-output -->",
        lambda _: block,
        readme.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
