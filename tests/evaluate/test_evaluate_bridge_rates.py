"""How often the bridge check raises an alarm: as often as it should without cause, and nearly always with one.

Claims: false alarms at the nominal rate, paired or not, for light and heavy weights; an offset of .2 nats is found
nearly always at sizes where the weight test finds it rarely; the detectable offset is found four times in five.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from bridge_logs import check, lognormal

from pope_fast.evaluate import evaluate

pytestmark = pytest.mark.slow

TIMES = 400


def checks(seed: int, times: int = TIMES, **options: Any) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [check(*lognormal(rng, **options)) for _ in range(times)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fresh_prompts": 60},
        {"shared": False},
        {"s": 2.5, "k": 1, "fresh_k": 1},
        {"prompts": 40, "fresh_prompts": 30},
    ],
    ids=str,
)
def test_false_alarms_come_at_the_nominal_rate(options: Any) -> None:
    found = checks(11, **options)
    for level in (0.01, 0.05):
        slack = 3 * math.sqrt(level * (1 - level) / TIMES)
        for p_values in ([c.p_value for c in found], [c.tilt_p_value for c in found]):
            assert np.mean(np.array(p_values) < level) < level + slack
    assert np.mean([c.interval.contains(0.0) for c in found]) > 0.95 - 3 * math.sqrt(0.05 * 0.95 / TIMES)
    assert abs(np.mean([c.offset for c in found])) < 4 * np.std([c.offset for c in found]) / math.sqrt(TIMES)


def test_an_offset_of_a_fifth_of_a_nat_is_found_where_the_weights_do_not_show_it() -> None:
    times = 60
    heavy = {"prompts": 1500, "k": 1, "fresh_prompts": 1500, "fresh_k": 1, "s": 1.5, "offset": 0.2}
    found = checks(13, times, **heavy)
    assert np.mean([c.p_value < 0.005 for c in found]) > 0.95
    assert np.mean([c.offset for c in found]) == pytest.approx(0.2, abs=0.02)
    rng = np.random.default_rng(13)
    results = [evaluate(lognormal(rng, **heavy)[0], reward_range=(0.0, 1.0))["p"] for _ in range(times)]
    assert np.mean([result.diagnostics.e_value > 20 for result in results]) < 0.25


def test_the_detectable_offset_is_found_four_times_in_five() -> None:
    offset = float(np.mean([c.detectable_offset for c in checks(17, 50)]))
    found = checks(19, offset=offset)
    assert np.mean([c.p_value < 0.005 for c in found]) == pytest.approx(0.8, abs=0.08)
