from __future__ import annotations

import numpy as np
import pytest
from ref_worlds import small_log
from scipy import stats

from pope_fast.reference import intervals, units, utility
from pope_fast.reference._types import PointEstimate


def test_delta_is_the_students_t_interval():
    x = np.random.default_rng(0).normal(size=25)
    low, high = intervals.delta(PointEstimate(float(x.mean()), x - x.mean()), 0.9)
    expected = stats.ttest_1samp(x, 0).confidence_interval(0.9)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_worst_case_tail_without_truncation_is_the_delta_interval():
    log = small_log(1, spread=0.2)
    assert intervals.lost_mass(log.logw, log.unit, log.count) == pytest.approx(0.0, abs=1e-15)
    delta = intervals.delta(utility.snips(log.logw, log.reward, log.unit, log.count))
    assert intervals.worst_case_tail(log.logw, log.reward, log.unit, log.count) == pytest.approx(delta, abs=1e-12)


def test_worst_case_tail_by_hand():
    logw, reward, unit = np.log([1.0] * 15 + [64.0]), np.arange(16) % 2 * 1.0, np.arange(16)
    tau = 4 * 79 / 16
    m = 1 - (15 + tau) / 79
    assert intervals.lost_mass(logw, unit) == pytest.approx(m)
    a = np.array([1.0] * 15 + [tau])
    v = np.sum(a * reward) / a.sum()
    phi = a * (reward - v) / a.mean()
    h = stats.t.ppf(0.975, 15) * phi.std(ddof=1) / 4
    expected = ((v - h) * (1 - m), (v + h) * (1 - m) + m)
    assert intervals.worst_case_tail(logw, reward, unit) == pytest.approx(expected, rel=1e-9)


def test_mirrored_truncated_t_by_hand():
    logw, reward, unit = np.log([0.5, 1.0, 9.0, 0.25]), np.array([1.0, 0.0, 1.0, 0.5]), np.arange(4)
    w = np.array([0.5, 1.0, 2.0, 0.25])  # cut at sqrt(4)
    x, y, t = w * reward, w * (1 - reward), stats.t.ppf(0.975, 3)
    low = x.mean() - t * x.std(ddof=1) / 2
    high = 1 - (y.mean() - t * y.std(ddof=1) / 2)
    assert intervals.mirrored_truncated_t(logw, reward, unit) == pytest.approx((low, high), rel=1e-9)


def test_mirror_symmetry():
    """Turning the reward upside down turns the interval upside down."""
    log = small_log(2, spread=1.5)
    for method in (intervals.worst_case_tail, intervals.mirrored_truncated_t, intervals.log_smoothing):
        low, high = method(log.logw, log.reward, log.unit, log.count)
        mirrored = method(log.logw, 1 - log.reward, log.unit, log.count)
        assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_missing_support_widens_the_bounded_intervals_upwards():
    """All weights times .8: the truncated mean of 1 is at most .8, so the width is at least .2."""
    log = small_log(3, spread=0.1, units=400)
    low, high = intervals.mirrored_truncated_t(log.logw + np.log(0.8), log.reward, log.unit)
    assert high - low > 0.2
    low, high = intervals.log_smoothing(log.logw + np.log(0.8), log.reward, log.unit)
    assert high - low > 0.2


@pytest.mark.parametrize("method", [intervals.mirrored_truncated_t, intervals.log_smoothing])
def test_inflated_weights_invert_the_interval(method):
    """Mean weight 2 is impossible for exact log-probabilities: the bounded intervals cross."""
    n = 4000
    reward = (np.arange(n) % 2).astype(float)
    low, high = method(np.full(n, np.log(2.0)), reward, np.arange(n))
    assert low > high


def test_floor_mantissa():
    x = np.array([0.0, 2.0**-41, 2.0**-40, 1.0, 1.0 + 2.0**-8, 1.0 + 2.0**-8 + 2.0**-9, 3.999999, 2.0**41, np.inf])
    floored = intervals.floor_mantissa(x)
    expected = [0.0, 0.0, 2.0**-40, 1.0, 1 + 2.0**-8, 1 + 2.0**-8, 4 - 2.0**-7, 2.0**40, 2.0**40]
    np.testing.assert_array_equal(floored, expected)
    y = np.random.default_rng(0).exponential(size=1000) * 50
    down = intervals.floor_mantissa(y)
    assert np.all(down <= y)
    assert np.all(down > y * (1 - 2.0**-8))
    # The same as dropping the 44 lowest bits of the representation.
    np.testing.assert_array_equal(down.view(np.uint64), (y.view(np.uint64) >> np.uint64(44)) << np.uint64(44))


def test_log_smoothing_of_a_constant():
    """X = 1: (exp(log(1 + l) - log(J / a) / n) - 1) / l, largest over the grid."""
    n, alpha = 500, 0.025
    expected = max(((1 + lam) * np.exp(-np.log(24 / alpha) / n) - 1) / lam for lam in np.geomspace(1e-3, 3, 24))
    assert intervals.log_smoothing_lower(np.ones(n), alpha) == pytest.approx(expected, rel=1e-12)
    assert expected < 1


def test_log_smoothing_is_below_the_mean_and_flooring_lowers_it():
    x = np.random.default_rng(1).exponential(size=800)
    exact = intervals.log_smoothing_lower(x, 0.025, floored=False)
    floored = intervals.log_smoothing_lower(x, 0.025)
    assert floored <= exact <= x.mean()
    assert exact - floored < 2.0**-8
    # A giant observation counts by its logarithm only: it adds 1e12 / 800 to the mean, but not to the limit.
    assert 1 < intervals.log_smoothing_lower(np.append(x, 1e12), 0.025) < 20


def test_e_value_by_hand():
    a = np.array([1.0, 2.0, 0.5])
    thetas = np.linspace(0.05, 0.95, 10)
    expected = np.mean((1 + thetas * 0) * (1 + thetas) * (1 - thetas / 2))
    assert intervals.mean_weight_e_value(a) == pytest.approx(expected, rel=1e-13)
    assert intervals.mean_weight_e_value(np.ones(50)) == pytest.approx(1.0)
    assert intervals.mean_weight_e_value(np.full(5000, 1e6)) == np.inf
    assert intervals.mean_weight_e_value(np.zeros(10)) < 1


def test_cross_entropy_upper():
    """A constant surprisal s: the limit lies above s and comes down to it with n."""
    s, largest = 1.2, 3.0
    gaps = []
    for n in (100, 10_000):
        upper = intervals.cross_entropy_upper(np.zeros(n), np.full(n, s), largest, np.arange(n))
        gaps.append(upper - s)
    assert gaps[0] > gaps[1] > 0
    assert gaps[1] < 0.1


def test_paired_difference_of_one_policy_with_itself():
    log = small_log(4)
    a = utility.sn_tips(log.logw, log.reward, log.unit)
    difference = intervals.paired_difference(a, a)
    assert difference.value == 0.0
    assert difference.standard_error == 0.0
    b = utility.sn_tips(0.9 * log.logw, log.reward, log.unit)
    paired = intervals.paired_difference(a, b)
    assert paired.standard_error < np.hypot(a.standard_error, b.standard_error)
    assert units.unit_sizes(log.unit).size == len(paired.influence)
