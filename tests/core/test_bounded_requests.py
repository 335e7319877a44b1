"""What is asked for, or read from a stranger, costs no more than it is worth."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pope_fast import _core
from pope_fast.errors import PopeError


def test_a_thousand_million_threads_give_what_one_gives():
    unit, zeros = np.arange(1000), np.zeros(1000)
    many = _core.prompt_scan(unit, zeros, zeros, zeros, threads=10**9)
    assert many == _core.prompt_scan(unit, zeros, zeros, zeros, threads=1)


def test_policy_names_are_compared_in_time_proportional_to_their_number():
    names = [f"policy {i}" for i in range(100_000)]
    begun = time.perf_counter()
    with pytest.raises(PopeError, match="two policies are named 'policy 7'"):
        _core.State([*names, "policy 7"], (0.0, 1.0))
    # Every pair of them would take minutes.
    assert time.perf_counter() - begun < 5.0
