"""examples/text_log.py: from raw text to estimates that the truth of fresh answers confirms."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "text_log.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not part of the source distribution"),
]

# The policy, and twice an estimate with its interval and the truth; the verdict.
LINE = re.compile(
    r"^(plural|majority) +\S+ [\d.]+ \[([\d.]+), ([\d.]+)\] +([\d.]+) +\S+ [\d.]+ \[([\d.]+), ([\d.]+)\] +([\d.]+) +(\w+)$",
    re.MULTILINE,
)


def test_the_log_of_the_logger_tells_what_other_checkpoints_are_worth(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {match[0]: (*map(float, match[1:7]), match[7]) for match in LINE.findall(done.stdout)}
    assert set(found) == {"plural", "majority"}, done.stdout[-3000:]
    for low_u, high_u, true_u, low_d, high_d, true_d, verdict in found.values():
        # The truth is itself a mean of 40 fresh answers to each question, known to about 0.006.
        assert low_u - 0.012 < true_u < high_u + 0.012
        assert low_d - 0.02 < true_d < high_d + 0.02
        assert verdict == "reliable"
    # What the two were trained for: one gives more kinds of answer, the other pleases more people.
    assert found["plural"][5] > found["majority"][5] + 0.2
    assert found["majority"][2] > found["plural"][2] + 0.05
