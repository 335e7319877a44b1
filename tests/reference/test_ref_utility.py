from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from ref_worlds import small_log

from pope_fast.reference import units, utility
from pope_fast.reference.weights import truncation_level

ROW_ESTIMATORS = [
    utility.ips,
    utility.snips,
    utility.tips,
    utility.sn_tips,
    utility.control_variate,
    utility.baseline_dr,
    utility.psis,
]


@pytest.mark.parametrize("estimator", ROW_ESTIMATORS)
@pytest.mark.parametrize("seed", [0, 1])
def test_same_policy_gives_the_mean_reward(estimator, seed):
    log = small_log(seed)
    estimate = estimator(np.zeros_like(log.logw), log.reward, log.unit, log.count)
    behavior = utility.behavior_mean(log.reward, log.unit, log.count)
    assert estimate.value == pytest.approx(behavior.value, rel=1e-13)
    np.testing.assert_allclose(estimate.influence, behavior.influence, atol=1e-13)


@pytest.mark.parametrize("estimator", ROW_ESTIMATORS)
def test_multiplicities_are_repeated_draws(estimator):
    log = small_log(3)
    draws = log.draws()
    a = estimator(log.logw, log.reward, log.unit, log.count)
    b = estimator(draws.logw, draws.reward, draws.unit)
    assert a.value == pytest.approx(b.value, rel=1e-12)
    assert a.standard_error == pytest.approx(b.standard_error, rel=1e-11)


@pytest.mark.parametrize("estimator", ROW_ESTIMATORS)
def test_influence_is_centered_and_row_order_does_not_matter(estimator):
    log = small_log(4)
    order = np.random.default_rng(0).permutation(len(log.logw))
    a = estimator(log.logw, log.reward, log.unit)
    b = estimator(log.logw[order], log.reward[order], log.unit[order])
    assert abs(a.influence.mean()) < 1e-12
    assert a.value == pytest.approx(b.value, rel=1e-12)


@pytest.mark.parametrize("estimator", [utility.snips, utility.sn_tips, utility.psis])
@pytest.mark.parametrize("shift", [3.0, 900.0, -2000.0])
def test_self_normalized_estimators_ignore_a_constant_in_the_log_weights(estimator, shift):
    log = small_log(5, spread=2.0)
    a = estimator(log.logw, log.reward, log.unit)
    b = estimator(log.logw + shift, log.reward, log.unit)
    assert a.value == pytest.approx(b.value, rel=1e-10)
    assert a.standard_error == pytest.approx(b.standard_error, rel=1e-9)


@pytest.mark.parametrize("estimator", [utility.snips, utility.sn_tips, utility.psis, utility.control_variate])
def test_constant_reward_is_returned_as_it_is(estimator):
    log = small_log(6, spread=1.5)
    estimate = estimator(log.logw, np.full_like(log.reward, 0.3), log.unit)
    assert estimate.value == pytest.approx(0.3, rel=1e-12)
    assert estimate.standard_error < 1e-12


def test_ips_and_snips_by_hand():
    logw, reward, unit = np.log([2.0, 1.0, 0.5, 4.0]), [1.0, 0.0, 1.0, 0.5], [0, 0, 1, 1]
    # A = (1.5, 2.25), N = (1, 1.25)
    assert utility.ips(logw, reward, unit).value == pytest.approx(1.125)
    assert utility.snips(logw, reward, unit).value == pytest.approx(2.25 / 3.75)
    assert utility.tips(logw, reward, unit, tau=2.0).value == pytest.approx((1.0 + 0.75) / 2)
    assert utility.sn_tips(logw, reward, unit, tau=2.0).value == pytest.approx(1.75 / (1.5 + 1.25))
    # Default level: sqrt(2) * 1.875 = 2.65 clips the weight 4 alone.
    tau = truncation_level(logw, unit)
    assert tau == pytest.approx(np.sqrt(2) * 1.875)
    expected = (1.0 + (0.5 + 0.5 * tau) / 2) / (1.5 + (0.5 + tau) / 2)
    assert utility.sn_tips(logw, reward, unit).value == pytest.approx(expected)


@pytest.mark.parametrize("with_counts", [False, True])
def test_snips_error_is_the_cluster_robust_error_of_weighted_least_squares(with_counts):
    log = small_log(7, units=60)
    count = log.count if with_counts else np.ones_like(log.count)
    _, codes = units.unit_codes(log.unit)
    size = units.unit_sizes(log.unit, count)[codes]
    fit = sm.WLS(log.reward, np.ones(len(codes)), weights=count * np.exp(log.logw) / size).fit(
        cov_type="cluster", cov_kwds={"groups": codes}
    )
    estimate = utility.snips(log.logw, log.reward, log.unit, count)
    assert estimate.value == pytest.approx(fit.params[0], rel=1e-13)
    assert estimate.standard_error == pytest.approx(fit.bse[0], rel=1e-12)


def test_control_variate_is_the_intercept_of_a_regression():
    """mean N - b (mean A - 1) is the fitted value at A = 1 of the least-squares line of N on A."""
    log = small_log(8)
    a = units.unit_means(np.exp(log.logw), log.unit)
    numerator = units.unit_means(np.exp(log.logw) * log.reward, log.unit)
    slope, intercept = np.polyfit(a, numerator, 1)
    estimate = utility.control_variate(log.logw, log.reward, log.unit)
    assert estimate.value == pytest.approx(intercept + slope, rel=1e-10)


def test_baseline_dr_by_explicit_loops():
    log = small_log(9, largest_count=1)
    per_unit = []
    for i in np.unique(log.unit):
        rows = np.flatnonzero(log.unit == i)
        terms = []
        for k in rows:
            others = [log.reward[j] for j in rows if j != k]
            b = float(np.mean(others)) if others else 0.0
            terms.append(np.exp(log.logw[k]) * (log.reward[k] - b) + b)
        per_unit.append(np.mean(terms))
    assert utility.baseline_dr(log.logw, log.reward, log.unit).value == pytest.approx(np.mean(per_unit), rel=1e-13)


def test_doubly_robust_with_perfect_and_with_useless_model():
    log = small_log(10)
    mean = np.full_like(log.reward, 0.4)
    perfect = utility.doubly_robust(log.logw, log.reward, log.reward, mean, log.unit)
    assert perfect.value == pytest.approx(0.4)
    assert perfect.standard_error < 1e-15
    zero = np.zeros_like(mean)
    useless = utility.doubly_robust(log.logw, log.reward, zero, zero, log.unit)
    assert useless.value == pytest.approx(utility.ips(log.logw, log.reward, log.unit).value, rel=1e-13)
    sn = utility.self_normalized_dr(log.logw, log.reward, zero, zero, log.unit)
    assert sn.value == pytest.approx(utility.snips(log.logw, log.reward, log.unit).value, rel=1e-13)


def test_rescale():
    np.testing.assert_array_equal(utility.rescale([1, 3, 5], 1, 5), [0.0, 0.5, 1.0])
