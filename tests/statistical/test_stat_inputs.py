"""Inputs that look right and are not: mistakes are noticed, and right logs of many kinds are not accused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from input_worlds import RIGHT, WRONG

pytestmark = pytest.mark.slow

WORLDS = 200
SIZES = (25, 200, 2_000)


def test_right_logs_are_not_accused() -> None:
    """Fewer than one log in a thousand: 200 worlds of each kind and size, 4,200 logs."""
    alarms: Counter[str] = Counter()
    logs = 0
    for kind, world in enumerate(RIGHT):
        for n in SIZES:
            for seed in range(WORLDS):
                logs += 1
                for sign in world(np.random.default_rng([seed, kind, n]), n).signs():
                    alarms[f"{world.__name__}, {n} prompts: {sign.code}"] += 1
    assert logs >= 4_000
    assert alarms.total() < logs / 1_000, alarms


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_are_noticed(mistake: str) -> None:
    code, world = WRONG[mistake]
    noticed = sum(code in world(np.random.default_rng([seed, 1])).codes() for seed in range(WORLDS))
    assert noticed >= 0.95 * WORLDS


def test_a_log_whose_rows_are_units_is_not_accused_either() -> None:
    alarms = Counter(
        sign.code
        for kind, world in enumerate(RIGHT)
        for seed in range(WORLDS)
        for sign in world(np.random.default_rng([seed, kind, 2]), 200).signs(prompts=False)
    )
    assert alarms.total() < 2, alarms
