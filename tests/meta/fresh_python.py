"""Run a piece of Python in a fresh interpreter: the process that tests should not fork or catch signals."""

from __future__ import annotations

import subprocess
import sys
import textwrap

# Arrays of a log with `rows` rows, eight per prompt, that every script below begins with.
PRELUDE = """
import numpy as np
from pope_fast import _core

def columns(rows, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "prompt_id": np.arange(rows, dtype=np.int64) // 8,
        "target": rng.normal(-20.0, 0.5, rows).astype(np.float32),
        "behavior": rng.normal(-20.0, 0.5, rows).astype(np.float32),
        "reward": rng.random(rows, dtype=np.float32),
        "cluster": rng.integers(0, 12, rows).astype(np.int64),
    }

def scan(log, threads=None):
    return _core.prompt_scan(log["prompt_id"], log["target"], log["behavior"], log["reward"],
                             log["cluster"].astype(np.int32), 10.0, threads=threads)

def state_of(log, first_row=0, policies=1, threads=None):
    state = _core.State([f"p{i}" for i in range(policies)], (0.0, 1.0), has_cluster=True)
    state.update(log["prompt_id"], log["behavior"], [log["target"]] * policies, log["reward"],
                 cluster=log["cluster"], first_row=first_row, threads=threads)
    return state
"""


def source(code: str) -> str:
    return PRELUDE + textwrap.dedent(code)


def output_of(code: str, timeout: float = 120.0) -> str:
    """Return what the script printed; a crash or a hang is an error."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", source(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
