"""Other Python threads go on while a kernel runs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fresh_python import output_of

from pope_fast import _core

ROWS = 4_000_000


@pytest.fixture
def ticks() -> Iterator[list[int]]:
    """A counter that a second thread advances whenever it gets the interpreter."""
    count = [0]
    stop = threading.Event()

    def advance() -> None:
        while not stop.is_set():
            count[0] += 1
            time.sleep(0.0005)

    interval = sys.getswitchinterval()
    # From here on a thread gets the interpreter only when another one gives it away: no switch is forced.
    sys.setswitchinterval(1000.0)
    thread = threading.Thread(target=advance)
    thread.start()
    try:
        yield count
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()


def advances_during(call: Callable[[], object], ticks: list[int], attempts: int) -> bool:
    """Whether the counter moved between the start and the end of a call."""
    for _ in range(attempts):
        before = ticks[0]
        call()
        if ticks[0] > before:
            return True
    return False


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="there is no GIL to hold")
def test_the_counter_stands_still_when_the_gil_is_held(ticks: list[int]) -> None:
    numbers = range(3_000_000)
    assert not advances_during(lambda: sum(numbers), ticks, attempts=3)


def test_a_thread_advances_during_prompt_scan(ticks: list[int]) -> None:
    prompt = np.arange(ROWS, dtype=np.int64) // 8
    zeros = np.zeros(ROWS, dtype=np.float32)
    cluster = np.zeros(ROWS, dtype=np.int32)
    assert advances_during(
        lambda: _core.prompt_scan(prompt, zeros, zeros, zeros, cluster, 10.0, threads=1), ticks, attempts=50
    )


def test_a_thread_advances_during_an_update(ticks: list[int]) -> None:
    prompt = np.arange(ROWS, dtype=np.int64) // 8
    zeros = np.zeros(ROWS, dtype=np.float32)

    def update() -> None:
        _core.State(["target"], (0.0, 1.0)).update(prompt, zeros, [zeros], zeros, threads=1)

    assert advances_during(update, ticks, attempts=50)


def test_threads_that_share_arrays_get_the_bits_of_one_thread() -> None:
    rng = np.random.default_rng(0)
    rows = 80_000
    prompt = np.arange(rows, dtype=np.int64) // 8
    target = rng.normal(-20.0, 0.5, rows)
    behavior = rng.normal(-20.0, 0.5, rows)
    reward = rng.random(rows)
    results: list[str] = []

    def work(threads: int) -> None:
        state = _core.State(["target"], (0.0, 1.0))
        state.update(prompt, behavior, [target], reward, threads=threads)
        results.append(repr(state.snapshot().summary("target")))

    workers = [threading.Thread(target=work, args=(1 + i % 3,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 6
    assert len(set(results)) == 1


def test_a_state_can_be_looked_at_while_another_thread_updates_it() -> None:
    # The update listens for Ctrl-C, for which it needs the interpreter; a reader that waited for the update
    # without letting the interpreter go would stop both for ever.
    printed = output_of(
        """
        import threading, time
        log = columns(4_000_000)
        state = state_of({name: array[:8] for name, array in log.items()}, policies=4)
        stop = threading.Event()

        def look():
            while not stop.is_set():
                assert state.n_rows in (8, 4_000_008)
                assert "State" in repr(state)
                time.sleep(0.001)

        reader = threading.Thread(target=look)
        reader.start()
        state.update(log["prompt_id"] + 1, log["behavior"], [log["target"]] * 4, log["reward"],
                     cluster=log["cluster"], first_row=8, threads=1)
        stop.set()
        reader.join()
        print(state.n_rows)
        """
    )
    assert printed.split() == ["4000008"]
