"""The reference twins against numbers printed by obp, vw-estimators, CJE, skdr-eval and entropy libraries."""

from __future__ import annotations

import numpy as np
import pytest
from oracle_numbers import BanditRounds, bandit_rounds, oracle

from pope_fast.reference import diagnostics, diversity, marginal, tails, utility

EXACT = 1e-12


@pytest.fixture(scope="module")
def rounds() -> BanditRounds:
    return bandit_rounds()


@pytest.mark.parametrize(
    ("name", "estimate"),
    [
        ("ipw", lambda b: utility.ips(b.logw, b.reward, b.unit)),
        ("ipw_clip2", lambda b: utility.tips(b.logw, b.reward, b.unit, tau=2.0)),
        ("snipw", lambda b: utility.snips(b.logw, b.reward, b.unit)),
        ("dm", lambda b: utility.direct_method(b.predicted_mean, b.unit)),
        ("dr", lambda b: utility.doubly_robust(b.logw, b.reward, b.predicted, b.predicted_mean, b.unit)),
        (
            "dr_clip2",
            lambda b: utility.doubly_robust(
                np.minimum(b.logw, np.log(2.0)), b.reward, b.predicted, b.predicted_mean, b.unit
            ),
        ),
        (
            "sndr",
            lambda b: utility.self_normalized_dr(b.logw, b.reward, b.predicted, b.predicted_mean, b.unit),
        ),
    ],
)
def test_obp(name, estimate, rounds):
    assert estimate(rounds).value == pytest.approx(oracle("obp_0.5.7_on_bandit_inputs")[name], abs=EXACT)


def test_vw_estimators_on_the_bandit_rounds(rounds):
    expected = oracle("vw_estimators_0.2.2_on_bandit_inputs")
    assert utility.ips(rounds.logw, rounds.reward, rounds.unit).value == pytest.approx(expected["ips"], abs=EXACT)
    assert utility.snips(rounds.logw, rounds.reward, rounds.unit).value == pytest.approx(expected["snips"], abs=EXACT)


def test_vw_estimators_on_alternating_rewards():
    expected = oracle("vw_estimators_0.2.2_on_alternating_simulator")
    even = np.arange(1000) % 2 == 0
    logw = np.log(np.where(even, 0.2, 0.8)) - np.log(0.5)
    reward, unit = even.astype(float), np.arange(1000)
    assert utility.ips(logw, reward, unit).value == pytest.approx(expected["ips"], abs=EXACT)
    assert utility.snips(logw, reward, unit).value == pytest.approx(expected["snips"], abs=EXACT)
    # A normal interval of IPS from another library: our Student interval differs by the quantile alone.
    half = 1.959963984540054 * utility.ips(logw, reward, unit).standard_error
    assert 0.2 - half == pytest.approx(expected["gaussian_ci"][0], abs=1e-12)


def test_cje_effective_sample_size(rounds):
    expected = oracle("cje_eval_0.3_on_bandit_inputs")
    ess = diagnostics.effective_sample_size(rounds.logw, rounds.unit)
    assert ess == pytest.approx(expected["ess"], abs=1e-11)
    assert ess / 40 == pytest.approx(expected["ess_frac"], abs=EXACT)


def test_pareto_k_of_a_known_tail():
    """The other library cuts and fits the tail its own way, so only the second decimal can agree.

    The standard deviation of k-hat from 213 exceedances is (1 + k) / sqrt(213) = .11; the exact comparison,
    of one and the same algorithm, is the one with ArviZ beside the tests of the twins.
    """
    weights = np.random.default_rng(7).pareto(1.5, 5000) + 1
    k = tails.pareto_k(np.log(weights))
    assert k == pytest.approx(oracle("skdr_eval_0.12")["psis_k_pareto1p5_n5000_seed7"], abs=0.025)
    assert k == pytest.approx(1 / 1.5, abs=0.025)


@pytest.fixture(scope="module")
def counted() -> dict:
    return oracle("entropy_nats")


def _one_response_per_unit(counts):
    cluster = np.repeat(np.arange(len(counts)), counts)
    return np.zeros(len(cluster)), cluster, np.arange(len(cluster))


def test_entropy_plug_in_miller_madow_and_coverage(counted):
    logw, cluster, unit = _one_response_per_unit(counted["counts"])
    _, table = marginal.cluster_table(logw, cluster, unit)
    assert marginal.entropy_plug_in(table).value == pytest.approx(counted["plug_in"], abs=EXACT)
    assert marginal.entropy_miller_madow(table) == pytest.approx(counted["miller_madow"], abs=EXACT)
    assert 1.0 - marginal.unseen_mass(table) == pytest.approx(counted["good_coverage"], abs=EXACT)
    assert 1.0 / np.sum(marginal.shares(table) ** 2) == pytest.approx(counted["hill_2"], abs=EXACT)


def test_entropy_jackknife_by_single_deletions(counted):
    logw, cluster, unit = _one_response_per_unit(counted["counts"])
    _, table = marginal.cluster_table(logw, cluster, unit)
    estimate = marginal.jackknife.by_recomputation(
        lambda kept: marginal.entropy(marginal.shares(table[kept])), np.arange(len(table))
    )
    assert estimate.value == pytest.approx(counted["jackknife"], abs=EXACT)


def test_zeta_family_of_one_prompt(counted):
    """With weight 1 the family contains three classical estimators of one multinomial sample."""
    logw, cluster, unit = _one_response_per_unit(counted["counts"])
    k = len(cluster)
    for form in ("control", "product"):
        zeta = [diversity.zeta_unit_kernel(np.exp(logw), cluster, v, form) for v in range(k)]
        assert 1.0 - zeta[1] == pytest.approx(counted["unbiased_simpson"], abs=EXACT)
        assert sum(zeta[:5]) == pytest.approx(counted["expected_distinct_5"], abs=EXACT)
        # Zhang (2012): the entropy estimator whose bias decays exponentially is H_M with M = K - 1.
        assert sum(zeta[v] / v for v in range(1, k)) == pytest.approx(counted["zhang"], abs=1e-8)
    assert unit.size == k
