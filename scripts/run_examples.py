"""Run every script of examples/ as a reader would, each in an empty folder; exit code 1 when one fails."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def main() -> int:
    """Run the scripts in order of name and print one line for each."""
    scripts = sorted(EXAMPLES.glob("*.py"))
    failed = 0
    for script in scripts:
        with tempfile.TemporaryDirectory(prefix="pope-example-") as folder:
            done = subprocess.run(
                [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False
            )
        if done.returncode == 0:
            print(f"ok      {script.name}")
        else:
            failed += 1
            print(f"FAILED  {script.name} (exit code {done.returncode})\n{done.stdout}\n{done.stderr}")
    print(f"examples: {len(scripts) - failed} passed, {failed} failed")
    return int(failed > 0 or not scripts)


if __name__ == "__main__":
    sys.exit(main())
