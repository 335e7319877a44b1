"""A forked child can compute. With a global thread pool it would wait for ever: threads are not inherited."""

from __future__ import annotations

import os

import pytest
from fresh_python import output_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def test_kernel_fork_kernel() -> None:
    printed = output_of(
        """
        import os, sys
        log = columns(200_000)
        numbers = lambda: repr((scan(log, threads=2), state_of(log, threads=2).snapshot().summary("p0")))
        before = numbers()
        child = os.fork()
        if child == 0:
            os._exit(0 if numbers() == before else 1)
        _, status = os.waitpid(child, 0)
        print("child", os.waitstatus_to_exitcode(status))
        """
    )
    assert printed.split() == ["child", "0"]


def test_pool_of_forked_workers_gives_the_bits_of_one_process() -> None:
    printed = output_of(
        """
        import multiprocessing
        log = columns(160_000)
        whole = state_of(log, threads=2)

        def part(edge):
            piece = {name: array[edge : edge + 40_000] for name, array in log.items()}
            return state_of(piece, first_row=edge, threads=2)

        with multiprocessing.get_context("fork").Pool(2) as pool:
            states = pool.map(part, range(0, 160_000, 40_000))
        merged = states[2]
        for other in (states[0], states[3], states[1]):
            merged.merge(other)
        numbers = [repr(state.snapshot().summary("p0")) for state in (merged, whole)]
        print(merged.n_rows == whole.n_rows, numbers[0] == numbers[1])
        """
    )
    assert printed.split() == ["True", "True"]
