"""The alarm for inconsistent log-probabilities: false alarms under heavy tails, and power.

Claims: the e-value keeps its level whatever the tail, where a two-sided t-test of E w = 1 rejects a fifth of
the logs and more; it notices noisy log-probabilities; missing support is no alarm.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from product import read
from scipy import stats
from worlds import LogNormal, standard_error

pytestmark = pytest.mark.slow

ALPHA = 0.05


def rejections(world, n, times, seed, noise=0.0, share=1.0):
    """Share of logs on which the e-value, and on which the two-sided t-test of E w = 1, raise an alarm."""
    rng = np.random.default_rng(seed)
    by_e = by_t = 0
    for _ in range(times):
        logw, reward = world.draw(rng, n)
        logw = logw + np.where(rng.random(n) < share, noise * rng.normal(size=n), 0.0)
        by_e += read(logw, reward).diagnostics["log_e_value"] > math.log(1 / ALPHA)
        by_t += stats.ttest_1samp(np.exp(logw), 1.0).pvalue < ALPHA
    return by_e / times, by_t / times


@pytest.mark.parametrize("kl", [0.125, 0.5, 2.0, 4.5])
@pytest.mark.parametrize("n", [200, 1000])
def test_false_alarms_stay_below_the_nominal_rate(kl, n):
    times = 250
    by_e, by_t = rejections(LogNormal(kl), n, times, 53)
    assert by_e <= ALPHA + 2 * standard_error(ALPHA, times)
    if kl == 4.5:
        assert by_t > 0.2


def test_power_against_noisy_log_probabilities():
    """One row in ten re-scored with noise of several nats: the mean weight of about 1.3 is noticed."""
    by_e, _ = rejections(LogNormal(0.02), 2000, 60, 59, noise=1.7, share=0.1)
    assert by_e > 0.9


def test_missing_support_raises_no_alarm():
    """A mean weight below 1 is missing mass, not a contradiction."""
    by_e, by_t = rejections(LogNormal(0.25, unsupported=0.2), 1000, 60, 61)
    assert by_e == 0.0
    assert by_t > 0.5
