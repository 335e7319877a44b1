"""The verdict: every rule on a log made for it, and what is shown in its light."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from core_tables import K, N, codes, exact, lognormal, run, table

from pope_fast.errors import SchemaError
from pope_fast.evaluate import evaluate


def test_a_good_log_is_reliable():
    evaluation = run(table(lognormal(0.4)))
    answer = evaluation["p"]
    assert answer.verdict.level == evaluation.verdict.level == "reliable"
    assert answer.verdict.reasons == ()
    assert codes(evaluation) == {}
    assert answer.headline_method == "worst_case_tail"
    for estimate in (answer.utility, answer.diversity, answer.value):
        assert estimate is not None
        assert estimate.interval is not None
        assert estimate.interval.method == "worst_case_tail"
        assert estimate.interval.contains(estimate.value)


def test_heavy_tail():
    found = run(table(lognormal(2.5, 4000)))
    assert codes(found)["heavy_tail"] == "unreliable"
    (finding,) = (f for f in found["p"].verdict.findings if f.code == "heavy_tail")
    assert finding.value == found["p"].diagnostics.k_hat > finding.threshold == 0.7
    assert found["p"].headline_method == "robust"
    assert found["p"].utility.interval.method == found["p"].value.interval.method == "robust"


def test_a_mixture_is_no_heavy_tail():
    """Two percent of the responses are eight times as likely: a large k-hat, but all of them are in the log."""
    rng = np.random.default_rng(0)
    rare = rng.random(4800) < 0.02
    w = np.where(rare, 8.0, (1 - 0.16) / 0.98) * np.exp(0.05 * rng.normal(size=4800))
    found = run(table(np.log(w)))
    diagnostics = found["p"].diagnostics
    assert diagnostics.k_hat > 1.0
    assert diagnostics.k_hat_p_value < 1e-3
    assert codes(found)["heavy_tail"] == "caution"
    assert "mixture" in found["p"].verdict.reasons[0]
    assert found["p"].headline_method == "worst_case_tail"
    strict = run(table(np.log(w)), thresholds={"k_hat_p_value": 0.0})
    assert codes(strict)["heavy_tail"] == "unreliable"


def test_tail_of_infinite_variance_is_a_caution():
    rng = np.random.default_rng(0)
    w = rng.pareto(1.7, size=20_000) + 1.0
    found = run(table(np.log(w / w.mean()), k=1, cluster=None))
    assert 0.5 < found["p"].diagnostics.k_hat < 0.7
    assert codes(found)["heavy_tail"] == "caution"
    assert found["p"].headline_method == "worst_case_tail"


def test_low_ess():
    """25 prompts are fewer than 50, however good the overlap."""
    log = table(exact(lognormal(0.6, 100)), reward=np.tile([0.0, 1.0], 50))
    found = run(log, thresholds={"reward_ess": 0.0})
    assert found["p"].diagnostics.ess < 25
    assert codes(found) == {"low_ess": "unreliable"}
    assert codes(run(log, thresholds={"ess": 5.0, "reward_ess": 0.0})) == {}


def test_near_clones_overlap():
    """A KL estimate that is negative by chance is no lack of overlap: these policies hardly differ."""
    for s in (0.003, 0.01, 0.1):
        for seed in range(12):
            assert "no_overlap" not in codes(run(table(lognormal(s, seed=seed)))), (s, seed)


def test_far_policy():
    """A quarter of the prompts carries the policy: KL is log 4, and log n - 1 of 20 prompts is less than 2."""
    n = 20
    share = np.where(np.arange(n) % 10 == 0, math.log(10.0), -40.0)
    found = run(table(np.repeat(share, K)))
    assert found["p"].diagnostics.kl_target_behavior == pytest.approx(math.log(10.0), rel=1e-9)
    assert codes(found)["far_policy"] == "unreliable"
    assert "far_policy" not in codes(run(table(np.repeat(share, K)), thresholds={"kl_margin": 0.5}))


def test_no_overlap():
    """Every logged response is far less probable under the policy: the divergence comes out negative."""
    found = run(table(-30.0 + 0.3 * np.random.default_rng(0).normal(size=N * K)))
    assert found["p"].diagnostics.kl_target_behavior < 0
    assert found["p"].diagnostics.kl_behavior_target == pytest.approx(30.0, abs=0.1)
    assert codes(found)["no_overlap"] == "unreliable"
    assert codes(found)["unreached_mass"] == "unreliable"
    assert found["p"].diagnostics.mean_weight < 1e-10
    assert found["p"].diagnostics.missing_mass == pytest.approx(1.0)


def test_unreached_mass_and_its_robust_interval():
    """A third of the policy is off the log's support. No estimate can know what it earns; the interval knows that."""
    rng = np.random.default_rng(3)
    reward = (rng.uniform(size=N * K) < 0.8).astype(float)
    logw = lognormal(0.3) + math.log(2 / 3)
    found = run(table(logw, reward=reward))
    assert codes(found)["unreached_mass"] == "unreliable"
    answer = found["p"].utility
    assert answer.value == pytest.approx(0.8, abs=0.05)
    for truth in (0.8 * 2 / 3, 0.8 * 2 / 3 + 1 / 3):
        assert answer.interval.contains(truth)
        assert answer.intervals["certified"].contains(truth)
    assert not answer.intervals["delta"].contains(0.8 * 2 / 3)


def test_missing_mass():
    found = run(table(lognormal(2.0, 4000)), thresholds={"k_hat": 5.0, "k_hat_caution": 5.0, "missing_mass": 0.02})
    assert found["p"].diagnostics.missing_mass > 0.02
    assert codes(found)["missing_mass"] == "caution"


def test_dominant_unit():
    logw = np.zeros(N * K)
    logw[:K] = math.log(100.0)
    found = run(table(logw - np.log(np.exp(logw).mean())))
    assert found["p"].diagnostics.max_weight_share == pytest.approx(100 / 499, rel=1e-9)
    assert codes(found)["dominant_unit"] == "caution"


def test_unseen_clusters():
    """Every other row has a cluster of its own."""
    n = 600
    cluster = np.where(np.arange(n) % 2 == 0, np.arange(n) + 100, 0)
    found = run(table(lognormal(0.3, n), k=1, cluster=cluster))
    assert found["p"].diversity_detail.level == "marginal"
    assert found["p"].diversity_detail.unseen_mass == pytest.approx(0.5, abs=0.05)
    assert codes(found)["unseen_clusters"] == "caution"


def test_length_drift():
    logw = lognormal(1.0, 4000)
    tokens = np.where(logw > 0, 300, 20)
    found = run(table(logw, num_tokens=tokens))
    d = found["p"].diagnostics
    w = np.exp(logw)
    assert d.length_target == pytest.approx(np.sum(w * tokens) / w.sum(), rel=1e-10)
    assert d.length_behavior == pytest.approx(tokens.mean(), rel=1e-12)
    assert codes(found)["length_drift"] == "caution"
    assert "length_drift" not in codes(run(table(logw, num_tokens=np.full(4000, 30))))


def test_zero_weights_are_information():
    logw = np.where(np.arange(N * K) % 5 == 0, -np.inf, lognormal(0.3) - math.log(0.8))
    found = run(table(logw))
    assert codes(found) == {"zero_weights": "info"}
    assert found["p"].diagnostics.zero_weight_rows == N * K / 5
    assert found["p"].diagnostics.kl_behavior_target is None
    assert found["p"].diagnostics.mean_log_weight is None
    assert found["p"].verdict.level == "reliable"


def test_constant_reward():
    found = evaluate(table(lognormal(0.4), reward=np.full(N * K, 0.25)))
    assert codes(found)["constant_reward"] == "caution"
    assert found["p"].verdict.level == "caution"
    assert found["p"].utility.value == pytest.approx(0.25, rel=1e-12)
    assert found.settings.reward_range.low == found.settings.reward_range.high == 0.25


def test_observed_range_is_information():
    log = table(lognormal(0.4), reward=2.0 + 3.0 * np.random.default_rng(0).uniform(size=N * K))
    found = evaluate(log)
    assert codes(found) == {"observed_reward_range": "info"}
    assert found["p"].verdict.level == "reliable"
    assert found.settings.reward_range.origin == "observed"
    declared = evaluate(log, reward_range=(0.0, 10.0))
    assert codes(declared) == {}
    assert declared.settings.reward_range.origin == "declared"
    with pytest.raises(SchemaError, match="reward"):
        evaluate(log, reward_range=(0.0, 4.0))


def test_boolean_rewards_have_known_bounds():
    reward = np.random.default_rng(0).uniform(size=N * K) < 0.5
    found = evaluate(table(lognormal(0.4), reward=pa.array(reward)))
    assert found.settings.reward_range.origin == "boolean"
    assert codes(found) == {}


def test_rare_rewards_take_the_robust_interval():
    """Ten successes in 2000 rows: their error is not normal."""
    reward = (np.arange(N * K) % 160 == 0).astype(float)
    found = run(table(lognormal(0.3), reward=reward))
    assert codes(found) == {"rare_reward": "caution"}
    assert found["p"].utility.interval.method == "robust"


@pytest.mark.parametrize("successes", [0, 2])
def test_hardly_any_reward_leaves_the_certified_interval(successes):
    """With two successes, or none, in 1600 rows no normal limit holds; the finite-sample bound does."""
    reward = np.zeros(N * K)
    reward[:successes] = 1.0
    found = run(table(lognormal(0.3), reward=reward))
    assert codes(found) == {"rare_reward": "caution"}
    assert found["p"].headline_method == found["p"].utility.interval.method == "certified"
    assert found["p"].utility.interval.high > 0.005
    assert codes(run(table(lognormal(0.3), reward=reward), thresholds={"reward_ess": 0.0})) == {}


def noisy(seed: int = 0, n: int = 3000, *, heavy: bool = False) -> tuple[pa.Table, float, np.ndarray]:
    """Log-probs of a served model: most are exact, the others off by some nats, anew in each scoring."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    logw = 0.4 * z - 0.08

    def noise() -> np.ndarray:
        if heavy:
            return np.where(rng.uniform(size=n) < 0.1, rng.normal(0.0, 1.6, size=n), 0.0)
        return np.where(rng.uniform(size=n) < 0.2, rng.choice([-1.5, 1.5], size=n), 0.0)

    reward = (rng.uniform(size=n) < 1 / (1 + np.exp(-z))).astype(float)
    log = table(logw + noise(), k=1, reward=reward, cluster=rng.integers(0, 3, size=n))
    again = log["behavior_logprob"].to_numpy() + noise()
    # E of sigmoid(z) under the target, which shifts z by 0.4; Gauss-Hermite.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    truth = float(np.sum(weights / weights.sum() / (1 + np.exp(-(nodes + 0.4)))))
    return log.append_column("again", pa.array(again)), truth, again


def test_noisy_log_probs_make_bounded_intervals_void():
    log, truth, _ = noisy()
    found = run(log)
    assert codes(found)["inconsistent_log_probs"] == "caution"
    answer = found["p"]
    assert answer.diagnostics.mean_weight > 1.1
    assert answer.diagnostics.e_value > 20
    assert answer.headline_method == "delta"
    assert answer.utility.interval.method == "delta"
    assert answer.utility.interval.contains(truth)
    for estimate in (answer.utility, answer.value, answer.diversity, *answer.utility_estimators.values()):
        for method in ("robust", "certified", "worst_case_tail"):
            assert estimate.intervals.get(method) is None
    assert json.dumps(found.to_json(), allow_nan=False)


def test_calibration_restores_the_bounded_intervals():
    """With the logger scored twice, kappa is known and weights over kappa obey the bounds again."""
    log, truth, again = noisy()
    found = run(log, aa_policy="again")
    answer = found["p"]
    aa = answer.diagnostics.aa
    difference = again + 90.0
    assert aa.kappa == pytest.approx(np.exp(difference).mean(), rel=1e-10)
    assert aa.sd_log_noise == pytest.approx(difference.std(ddof=1), rel=1e-9)
    assert aa.share_exact == pytest.approx(np.mean(difference == 0.0), rel=1e-12)
    assert "inconsistent_log_probs" not in codes(found)
    assert answer.headline_method == "worst_case_tail"
    for method in ("robust", "certified", "worst_case_tail", "delta"):
        interval = answer.utility.intervals[method]
        assert interval.low < truth < interval.high, method
    plain = run(log)["p"]
    assert answer.utility.value == plain.utility.value


def test_heavy_noise_leaves_the_calibrated_robust_interval():
    """Noise with a tail of its own: nothing is shown without calibration, and the robust interval with it."""
    log, truth, _ = noisy(heavy=True)
    plain, calibrated = run(log)["p"], run(log, aa_policy="again")["p"]
    for answer in (plain, calibrated):
        assert answer.verdict.level == "unreliable"
        assert answer.diagnostics.k_hat > 0.7
    assert plain.utility.interval is None
    assert calibrated.utility.interval.method == "robust"
    assert calibrated.utility.interval.contains(truth)


def test_calibration_over_many_logs():
    """The robust interval of calibrated weights keeps its level: at most 4 misses in 30 at 95 %."""
    misses = 0
    for seed in range(30):
        log, truth, _ = noisy(seed + 100, 800)
        answer = run(log, aa_policy="again", thresholds={"e_value": 1e300, "mean_log_weight_z": 1e9})["p"]
        interval = answer.utility.intervals["robust"]
        misses += interval is None or not interval.contains(truth)
    assert misses <= 4


def test_inverted_interval_is_a_finding():
    """Weights of 3 everywhere: both bounds of every policy are contradicted."""
    found = run(table(np.full(N * K, math.log(3.0))))
    assert codes(found)["inconsistent_log_probs"] == "caution"
    (message,) = (f.message for f in found["p"].verdict.findings if f.code == "inconsistent_log_probs")
    assert "lower end above its upper end" in message
    assert "aa_policy" in message


def test_positive_mean_log_weight_is_a_finding():
    """The mean log-weight of two policies is never above 0, even where the mean weight looks right."""
    rng = np.random.default_rng(0)
    logw = np.where(rng.uniform(size=N * K) < 0.9, 0.02, -0.1)
    found = run(table(logw))
    assert "mean log-weight" in " ".join(found["p"].verdict.reasons)
    assert codes(found)["inconsistent_log_probs"] == "caution"


def test_nothing_is_printed_where_nothing_is_valid():
    """No overlap and inconsistent log-probs: the point estimate has no interval at all."""
    logw = 3.0 * np.random.default_rng(0).normal(size=N * K) + 3.0
    found = run(table(logw))
    answer = found["p"]
    assert answer.verdict.level == "unreliable"
    assert codes(found)["inconsistent_log_probs"] == "caution"
    assert answer.utility.interval is None
    assert answer.utility.note
    assert set(answer.utility.intervals.values()) == {None}
    assert answer.value.interval is None


def test_worst_policy_is_the_verdict_of_the_evaluation():
    found = run(table({"near": lognormal(0.3), "far": lognormal(3.0)}))
    assert found["near"].verdict.level == "reliable"
    assert found["far"].verdict.level == "unreliable"
    assert found.verdict.level == "unreliable"
    assert all(reason.startswith("far: ") for reason in found.verdict.reasons)
