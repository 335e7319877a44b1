"""Two processes take the step that one takes: the loss is that of the batch of both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from align_logs import tiny_policy

SCRIPT = Path(__file__).with_name("align_step.py")


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(tmp_path: Path) -> None:
    found = {}
    for processes, prompts in ((1, 8), (2, 4)):
        folder = tmp_path / str(processes)
        folder.mkdir()
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run(
            [*launch, str(SCRIPT), str(folder), str(prompts)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert (folder / "processes").read_text() == str(processes)
        found[processes] = (torch.load(folder / "parameters.pt"), torch.load(folder / "held_out.pt"))
    start = [value.detach() for value in tiny_policy().parameters()]
    moved = max(float((one - old).abs().max()) for one, old in zip(found[1][0], start, strict=True))
    assert moved > 1e-4
    for one, two in zip(found[1][0], found[2][0], strict=True):
        assert torch.allclose(one, two, atol=1e-4 * moved, rtol=0.0)
    assert torch.allclose(found[1][1], found[2][1], atol=1e-4)
