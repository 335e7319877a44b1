"""Ctrl-C ends a kernel in the middle, not after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from fresh_python import source

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals cannot be sent to another process there")

# One update takes seconds, and leaves the state with all rows when it reaches its end. An interrupt that is
# only seen after the kernel has returned is therefore told apart by the number of rows.
LOOP = source(
    """
    rows = 3_000_000
    log = columns(rows)
    state = state_of({name: array[:8000] for name, array in log.items()})
    print("running", flush=True)
    try:
        while True:
            state = _core.State([f"p{i}" for i in range(8)], (0.0, 1.0), has_cluster=True)
            state.update(log["prompt_id"], log["behavior"], [log["target"]] * 8, log["reward"],
                         cluster=log["cluster"], threads=1)
    except KeyboardInterrupt:
        print("in the middle" if state.n_rows < rows else "at the end", flush=True)
    """
)


def test_an_interrupt_ends_a_running_update() -> None:
    # An interrupt may by chance fall into the last moments of an update, so there are several attempts; a
    # kernel that does not listen fails all of them.
    seen = []
    for attempt in range(4):
        child = subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, text=True)
        try:
            assert child.stdout is not None
            assert child.stdout.readline().strip() == "running"
            time.sleep(0.3 + 0.17 * attempt)
            child.send_signal(signal.SIGINT)
            printed, _ = child.communicate(timeout=60)
        finally:
            child.kill()
            child.wait()
        assert child.returncode == 0
        seen.append(printed.strip())
        if seen[-1] == "in the middle":
            return
    pytest.fail(f"no interrupt was answered inside the kernel: {seen}")
