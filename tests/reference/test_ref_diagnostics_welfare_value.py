from __future__ import annotations

import numpy as np
import pytest
from ref_worlds import small_log

from pope_fast.reference import diagnostics, diversity, units, utility, value, weights, welfare
from pope_fast.reference._types import PointEstimate


def test_same_policy_is_the_best_case():
    log = small_log(0)
    zero = np.zeros_like(log.logw)
    assert diagnostics.effective_sample_size(zero, log.unit, log.count) == pytest.approx(40)
    assert diagnostics.effective_sample_size_ceiling(zero, log.unit, log.count) == pytest.approx(40)
    assert diagnostics.max_weight_share(zero, log.unit, log.count) == pytest.approx(1 / 40)
    assert diagnostics.mean_weight(zero, log.unit, log.count).value == 1.0
    assert diagnostics.missing_mass(zero, log.unit, log.count) == 0.0
    assert diagnostics.kl_target_behavior(zero, log.unit, log.count) == 0.0
    assert diagnostics.kl_behavior_target(zero, log.unit, log.count) == 0.0
    assert diagnostics.length_under_target(zero, log.reward, log.unit) == pytest.approx(
        utility.behavior_mean(log.reward, log.unit).value
    )


def test_by_hand():
    w = np.array([1.0, 2.0, 0.0, 3.0])
    with np.errstate(divide="ignore"):
        logw = np.log(w)
    unit = np.arange(4)
    assert diagnostics.effective_sample_size(logw, unit) == pytest.approx(36 / 14)
    assert diagnostics.max_weight_share(logw, unit) == pytest.approx(0.5)
    assert diagnostics.missing_mass(logw, unit) == pytest.approx(1 - (1 + 2 + 0 + 2) / 4)
    kl = (2 * np.log(2) + 3 * np.log(3)) / 6
    assert diagnostics.kl_target_behavior(logw, unit) == pytest.approx(kl)
    assert diagnostics.effective_sample_size_ceiling(logw, unit) == pytest.approx(4 * np.exp(-kl))
    assert diagnostics.kl_behavior_target(logw, unit) == np.inf
    assert diagnostics.zero_weight_rows(logw) == 1
    assert diagnostics.length_under_target(logw, [4, 2, 9, 1], unit) == pytest.approx((4 + 4 + 3) / 6)


def test_effective_size_of_the_reward():
    unit = np.arange(6)
    size = diagnostics.reward_effective_sample_size
    # Three units of weight 1 earn, three do not; a common factor of the weights changes nothing.
    assert size(np.full(6, -700.0), [1, 1, 1, 0, 0, 0], unit) == pytest.approx(3.0)
    # Cut at sqrt(6) times the mean weight nothing here: (2 + 1)^2 / (4 + 1) of those that earn, 4 that do not.
    logw = np.log([2.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert size(logw, [1, 1, 0, 0, 0, 0], unit) == pytest.approx(9 / 5)
    assert size(logw, [0, 0, 1, 1, 1, 1], unit) == pytest.approx(9 / 5)
    # A single large weight counts as sqrt(6) times the mean, however large it is.
    w = np.array([1e6, 1.0, 1.0, 1.0, 1.0, 1.0])
    cut = np.sqrt(6.0) * w.mean()
    assert size(np.log(w), [0.5] * 6, unit) == pytest.approx((cut + 5) ** 2 / (cut**2 + 5))
    # Two responses to a prompt are one unit.
    assert size(np.zeros(4), [1, 1, 0, 0], [0, 0, 1, 1]) == pytest.approx(1.0)
    assert size(np.zeros(4), [1, 0, 1, 0], [0, 0, 1, 1]) == pytest.approx(2.0)
    assert size(logw, np.zeros(6), unit) is None
    assert size(logw, np.ones(6), unit) is None


def test_weights_that_underflow():
    assert diagnostics.effective_sample_size([-3000.0, -3000.0 + np.log(2)], [0, 1]) == pytest.approx(9 / 5)
    assert diagnostics.kl_target_behavior([-3000.0, -3000.0], [0, 1]) == pytest.approx(-3000.0)


def test_aa_calibration():
    rng = np.random.default_rng(1)
    behavior = -rng.exponential(size=20_000) * 30
    noise = np.where(rng.uniform(size=20_000) < 0.9, 0.0, rng.normal(size=20_000))
    result = diagnostics.aa_calibration(behavior + noise, behavior, np.arange(20_000))
    # E exp(eps) = .9 + .1 e^{1/2}, Var eps = .1
    assert result.kappa == pytest.approx(0.9 + 0.1 * np.exp(0.5), abs=0.02)
    assert result.sd_log_noise == pytest.approx(np.sqrt(0.1), abs=0.02)
    assert result.share_exact == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "reliable"),
        ({"k_hat": 0.71}, "unreliable"),
        ({"k_hat": 2.0, "k_hat_log_p": -6.0}, "unreliable"),
        ({"k_hat": 2.0, "k_hat_log_p": -7.0}, "reliable"),  # no tail of index 2 ends there
        ({"ess": 49.9}, "unreliable"),
        ({"kl": np.log(2000) - 0.99}, "unreliable"),
        ({"kl": -0.01}, "reliable"),  # by chance: three standard errors are .42
        ({"kl": -0.43}, "unreliable"),
    ],
)
def test_verdict(change, expected):
    assert diagnostics.verdict(**{"k_hat": 0.7, "ess": 50.0, "kl": 1.0, "n_units": 2000} | change) == expected


def _groups(seed=2, units_=60):
    log = small_log(seed, units=units_)
    return log, welfare.group_utilities(log.logw, log.reward, log.group, log.unit, log.count)


def test_group_utility_is_the_estimate_of_the_groups_rows():
    log, groups = _groups()
    assert list(groups) == [0, 1, 2]
    for g, estimate in groups.items():
        rows = log.group == g
        tau = weights.truncation_level(log.logw, log.unit, log.count)
        alone = utility.sn_tips(log.logw[rows], log.reward[rows], log.unit[rows], log.count[rows], tau=tau)
        assert estimate.value == pytest.approx(alone.value, rel=1e-12)
        assert estimate.standard_error == pytest.approx(alone.standard_error, rel=0.02)
        assert len(estimate.influence) == 60


def test_welfares_are_ordered_and_agree_on_equal_groups():
    _, groups = _groups(3)
    low, nash, mean = (f(groups).value for f in (welfare.min_welfare, welfare.nash_welfare, welfare.mean_welfare))
    assert low < nash < mean
    assert welfare.generalized_mean_welfare(groups, 1.0) == pytest.approx(mean)
    assert welfare.generalized_mean_welfare(groups, 1e-9) == pytest.approx(nash, rel=1e-6)
    assert welfare.generalized_mean_welfare(groups, -200.0) == pytest.approx(low, rel=0.01)
    same = dict.fromkeys(range(3), groups[0])
    for f in (welfare.min_welfare, welfare.nash_welfare, welfare.mean_welfare):
        assert f(same).value == pytest.approx(groups[0].value)
        assert f(same).standard_error == pytest.approx(groups[0].standard_error)


def test_nash_gradient_and_zero_utility():
    phi = np.array([[1.0, -1.0], [0.5, -0.5]])
    groups = {0: PointEstimate(0.25, phi[0]), 1: PointEstimate(0.64, phi[1])}
    nash = welfare.nash_welfare(groups)
    assert nash.value == pytest.approx(0.4)
    np.testing.assert_allclose(nash.influence, 0.2 * (phi[0] / 0.25 + phi[1] / 0.64))
    groups[1] = PointEstimate(0.0, phi[1])
    assert welfare.nash_welfare(groups).value == 0.0


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0])
def test_variance_of_the_pluralistic_value(weight):
    log = small_log(5, largest_count=2)
    u = utility.sn_tips(log.logw, log.reward, log.unit, log.count)
    family = diversity.within_prompt(log.logw, log.cluster, log.unit, log.count, max_order=1)
    gini = diversity.gini_simpson(family)
    d = PointEstimate(gini.value, value.spread(gini.influence, family.used))
    v = value.pluralistic_value(u, d, weight)
    parts = value.variance_decomposition(u, d, weight)
    assert v.value == pytest.approx(u.value + weight * gini.value)
    assert v.standard_error**2 == pytest.approx(parts.total, rel=1e-10)
    assert parts.utility + parts.diversity + parts.covariance == pytest.approx(parts.total, rel=1e-12)
    assert parts.lower_bound * (1 - 1e-9) <= parts.total <= parts.upper_bound * (1 + 1e-9)


def test_spread_keeps_the_variance():
    phi = np.random.default_rng(6).normal(size=3000)
    phi -= phi.mean()
    used = np.random.default_rng(7).permutation(np.repeat([True, False], [3000, 1000]))
    full = PointEstimate(0.0, value.spread(phi, used))
    assert full.standard_error == pytest.approx(PointEstimate(0.0, phi).standard_error, rel=1e-3)
    assert units.unit_sizes(np.arange(4000)).size == len(full.influence)
