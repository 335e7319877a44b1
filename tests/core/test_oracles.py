"""Array functions against numbers that other libraries printed, and against statsmodels and ArviZ live."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pope_fast import ope

DATA = Path(__file__).parents[1] / "oracles" / "data"
EXACT = 1e-12


def oracle(name: str) -> Any:
    return json.loads((DATA / "oracles.json").read_text())[name]


class Rounds:
    """40 logged rounds with 4 actions, as they were given to the other libraries."""

    def __init__(self, reward_range: tuple[float, float] | None = None) -> None:
        raw = json.loads((DATA / "bandit_inputs.json").read_text())
        behavior, target, model = (np.array(raw[key]) for key in ("pi_b", "pi_e", "q_hat"))
        rounds, action = np.arange(raw["n"]), np.array(raw["action"])
        self.logs = np.log(target[rounds, action]), np.log(behavior[rounds, action])
        self.reward = np.array(raw["reward"], dtype=np.float64)
        self.bounds = {"reward_range": reward_range}
        self.model = self.bounds | {"baseline": model[rounds, action], "baseline_mean": np.sum(target * model, axis=1)}

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return (*self.logs, self.reward)


@pytest.fixture(scope="module")
def rounds() -> Rounds:
    return Rounds()


@pytest.mark.parametrize(
    ("name", "estimate"),
    [
        ("ipw", lambda b: ope.ips(*b.arrays, **b.bounds)),
        ("ipw_clip2", lambda b: ope.tips(*b.arrays, tau=2.0, **b.bounds)),
        ("snipw", lambda b: ope.snips(*b.arrays, **b.bounds)),
        ("dm", lambda b: ope.dm(*b.arrays, **b.model)),
        ("dr", lambda b: ope.dr(*b.arrays, **b.model)),
        ("sndr", lambda b: ope.sndr(*b.arrays, **b.model)),
    ],
)
@pytest.mark.parametrize("reward_range", [None, (0.0, 1.0), (-3.0, 10.0)])
def test_obp(name, estimate, reward_range):
    """Whatever the bounds: the scale that sums are taken on does not show."""
    rounds = Rounds(reward_range)
    assert estimate(rounds).value == pytest.approx(oracle("obp_0.5.7_on_bandit_inputs")[name], abs=EXACT)


def test_obp_clipped_doubly_robust(rounds):
    """Weights clipped by hand are log-ratios clipped by hand."""
    target, behavior, reward = rounds.arrays
    clipped = behavior + np.minimum(target - behavior, math.log(2.0))
    found = ope.dr(clipped, behavior, reward, **rounds.model)
    assert found.value == pytest.approx(oracle("obp_0.5.7_on_bandit_inputs")["dr_clip2"], abs=EXACT)


def test_vw_estimators(rounds):
    expected = oracle("vw_estimators_0.2.2_on_bandit_inputs")
    assert ope.ips(*rounds.arrays).value == pytest.approx(expected["ips"], abs=EXACT)
    assert ope.snips(*rounds.arrays).value == pytest.approx(expected["snips"], abs=EXACT)


def test_vw_estimators_on_alternating_rewards():
    expected = oracle("vw_estimators_0.2.2_on_alternating_simulator")
    even = np.arange(1000) % 2 == 0
    arrays = np.log(np.where(even, 0.2, 0.8)), np.log(np.full(1000, 0.5)), even.astype(float)
    estimate = ope.ips(*arrays)
    assert estimate.value == pytest.approx(expected["ips"], abs=EXACT)
    assert ope.snips(*arrays).value == pytest.approx(expected["snips"], abs=EXACT)
    # Their interval takes the normal quantile where ours takes Student's: the standard error is the same.
    assert 0.2 - 1.959963984540054 * estimate.standard_error == pytest.approx(expected["gaussian_ci"][0], abs=EXACT)


def test_cje_effective_sample_size(rounds):
    """(sum w)^2 / sum w^2 over rows."""
    expected = oracle("cje_eval_0.3_on_bandit_inputs")
    ess = ope.effective_sample_size(*rounds.logs)
    assert ess == pytest.approx(expected["ess"], rel=EXACT)
    assert ess / 40 == pytest.approx(expected["ess_frac"], rel=EXACT)


def pareto_weights() -> np.ndarray:
    return np.log(np.random.default_rng(7).pareto(1.5, 5000) + 1.0)


def as_logprobs(logw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    behavior = np.full(len(logw), -64.0)
    return behavior + logw, behavior


def test_k_hat_of_a_known_tail():
    """That library cuts the tail elsewhere (its k is not ArviZ's either): the second decimal can agree.

    The standard deviation of k-hat from 213 exceedances is (1 + k) / sqrt(213) = .11.
    """
    k = ope.pareto_k(*as_logprobs(pareto_weights()))
    assert k == pytest.approx(oracle("skdr_eval_0.12")["psis_k_pareto1p5_n5000_seed7"], abs=0.025)


def test_open_bandit_numbers_follow_from_their_definitions():
    """One weight of 21,739 in 10,000: the definitions at the scale of a real log, from its aggregates."""
    expected = oracle("open_bandit_random_from_bts_women")
    # One weight that dominates: w_max and the rest at a level that gives the published mean weight.
    top, n = expected["max_weight"], 10_000
    mean = expected["ips"] / expected["snips"]
    logw = np.log(np.concatenate([[top], np.full(n - 1, (mean * n - top) / (n - 1))]))
    found = ope.diagnostics(*as_logprobs(logw))
    assert found["mean_weight"] == pytest.approx(mean, rel=1e-10)
    assert found["ess"] == pytest.approx(1.0 / np.sum((np.exp(logw) / np.exp(logw).sum()) ** 2), rel=1e-10)
    assert found["max_weight_share"] == pytest.approx(top / (mean * n), rel=1e-10)


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    return oracle("entropy_nats")


def labels(counted: dict[str, Any]) -> np.ndarray:
    return np.repeat(np.arange(len(counted["counts"])), counted["counts"])


def test_entropies(counted):
    cluster = labels(counted)
    n = len(cluster)
    found = ope.summary(np.full(n, -1.0), np.full(n, -1.0), np.zeros(n), cluster=cluster, reward_range=(0.0, 1.0))[
        "marginal"
    ]
    assert found["plug_in"] == pytest.approx(counted["plug_in"], abs=EXACT)
    # Their Miller-Madow counts the clusters seen, capped at nothing; ours may not pass log C.
    assert found["plug_in"] - found["bias"] == pytest.approx(counted["miller_madow"], abs=EXACT)
    assert found["miller_madow"] == pytest.approx(min(counted["miller_madow"], math.log(8)), abs=EXACT)
    assert 1.0 - found["unseen_mass"] == pytest.approx(counted["good_coverage"], abs=EXACT)
    assert 1.0 / sum(c["target"] ** 2 for c in found["clusters"]) == pytest.approx(counted["hill_2"], abs=1e-11)
    assert found["n_clusters"] == counted["hill_0"]


def test_delete_one_jackknife_of_the_entropy(counted):
    """With one unit per bucket the grouped jackknife is the classical one."""
    from pope_fast.reference.units import bucket

    cluster = labels(counted)
    key, taken = [], set()
    for candidate in range(10_000):
        b = int(bucket(candidate)[0])
        if b not in taken and len(key) < len(cluster):
            taken.add(b)
            key.append(candidate)
    arrays = np.full(len(cluster), -1.0), np.full(len(cluster), -1.0), cluster
    estimate = ope.entropy(*arrays, prompt_id=np.array(key))
    low, high = estimate.intervals["jackknife"].low, estimate.intervals["jackknife"].high
    assert estimate.value == pytest.approx(min(counted["jackknife"], math.log(8)), abs=1e-11)
    assert (low + high) / 2 == pytest.approx(estimate.value, abs=1e-12)


@pytest.mark.parametrize("form", ["control", "product"])
def test_polynomials_of_one_sample(counted, form):
    """With weight 1, zeta_1 is one minus the unbiased Simpson index; two equal prompts give its value."""
    cluster = np.tile(labels(counted), 2)
    prompt = np.repeat([0, 1], len(cluster) // 2)
    arrays = np.full(len(cluster), -2.0), np.full(len(cluster), -2.0), cluster
    gini = ope.gini_simpson(*arrays, prompt_id=prompt, form=form)
    assert 1.0 - gini.value == pytest.approx(counted["unbiased_simpson"], abs=EXACT)


def make_log(seed: int, n: int, k: int, spread: float) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    logw = spread * rng.normal(size=n * k)
    reward = 1.0 / (1.0 + np.exp(-logw - rng.normal(size=n * k))) + np.repeat(rng.normal(size=n), k)
    return *as_logprobs(logw), reward, np.repeat(rng.permutation(n), k)


@pytest.mark.parametrize(("n", "k", "spread"), [(50, 4, 0.5), (200, 7, 1.5), (1000, 1, 2.5)])
def test_snips_is_cluster_robust_weighted_least_squares(n, k, spread):
    """The delta method by prompt is the cluster-robust error of a weighted mean, which statsmodels knows."""
    sm = pytest.importorskip("statsmodels.api")
    target, behavior, reward, prompt = make_log(n, n, k, spread)
    fit = sm.WLS(reward, np.ones((n * k, 1)), weights=np.exp(target - behavior)).fit(
        cov_type="cluster", cov_kwds={"groups": prompt, "use_correction": False}
    )
    estimate = ope.snips(target, behavior, reward, prompt_id=prompt)
    assert estimate.value == pytest.approx(fit.params[0], rel=EXACT)
    # Theirs is without a correction for n; ours has n / (n - 1).
    assert estimate.standard_error == pytest.approx(fit.bse[0] * math.sqrt(n / (n - 1)), rel=EXACT)


@pytest.mark.parametrize("scale", ["mild", "heavy"])
def test_least_squares_with_bounds_far_from_the_rewards(scale):
    """Sums are taken on the scale of the bounds: residuals of 1e-4 of it keep half of the digits, squared."""
    sm = pytest.importorskip("statsmodels.api")
    target, behavior, reward, prompt = make_log(3, 300, 5, 0.5 if scale == "mild" else 2.0)
    fit = sm.WLS(reward, np.ones((1500, 1)), weights=np.exp(target - behavior)).fit(
        cov_type="cluster", cov_kwds={"groups": prompt, "use_correction": False}
    )
    estimate = ope.snips(target, behavior, reward, prompt_id=prompt, reward_range=(-5000.0, 5000.0))
    assert estimate.value == pytest.approx(fit.params[0], rel=1e-10)
    assert estimate.standard_error == pytest.approx(fit.bse[0] * math.sqrt(300 / 299), rel=1e-7)


def arviz_psis(logw: np.ndarray) -> tuple[np.ndarray, float]:
    stats = pytest.importorskip("arviz.stats.stats")
    smoothed, k = stats.psislw(logw.copy())
    return np.asarray(smoothed), float(k)


@pytest.mark.parametrize(
    "logw",
    [
        pareto_weights(),
        np.random.default_rng(1).normal(size=400),
        3.0 * np.random.default_rng(2).normal(size=1000),
        np.random.default_rng(3).exponential(size=77),
        np.log(np.random.default_rng(4).uniform(size=2000)),
        0.01 * np.random.default_rng(5).normal(size=300),
        700.0 + 2.0 * np.random.default_rng(6).normal(size=500),
    ],
    ids=["pareto", "normal", "log-normal", "exponential", "uniform", "nearly equal", "e^700"],
)
def test_pareto_smoothing_is_that_of_arviz(logw):
    """One algorithm, two implementations: k to 1e-10, and the self-normalized smoothed estimate."""
    shift = np.full(len(logw), -2000.0)
    # The same differences of doubles on both sides.
    logw = (shift + logw) - shift
    smoothed, k = arviz_psis(logw)
    assert ope.pareto_k(shift + logw, shift) == pytest.approx(k, abs=1e-10)
    reward = np.random.default_rng(8).uniform(size=len(logw))
    expected = float(np.sum(np.exp(smoothed) * reward))
    found = ope.psis(shift + logw, shift, reward, reward_range=(0.0, 1.0))
    assert found.value == pytest.approx(expected, rel=1e-11)


def test_smoothing_by_prompt_is_that_of_arviz():
    """The tail is one of rows, whatever the unit; the unit is what is averaged."""
    target, behavior, reward, prompt = make_log(12, 120, 6, 1.8)
    smoothed, k = arviz_psis(target - behavior)
    assert ope.diagnostics(target, behavior, prompt_id=prompt)["k_hat"] == pytest.approx(k, abs=1e-10)
    expected = float(np.sum(np.exp(smoothed) * reward) / np.sum(np.exp(smoothed)))
    assert ope.psis(target, behavior, reward, prompt_id=prompt).value == pytest.approx(expected, rel=1e-11)


def test_normalization_in_arviz_is_ours():
    logw = pareto_weights()
    smoothed, _ = arviz_psis(logw)
    assert float(np.exp(smoothed).sum()) == pytest.approx(1.0, abs=1e-10)
    assert ope.psis(*as_logprobs(logw), np.ones(len(logw)), reward_range=(0.0, 2.0)).value == pytest.approx(
        1.0, abs=EXACT
    )
