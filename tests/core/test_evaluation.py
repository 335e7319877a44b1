"""From a log in memory to an answer and its verdict: every gate, every option, and a real log with known truth."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import pope_fast as pope
from pope_fast import ope
from pope_fast.errors import PopeError, SchemaError
from pope_fast.evaluate import DEFAULT_THRESHOLDS, ESTIMATORS, evaluate

N, K = 400, 4
CAPTIONS = Path(__file__).parents[2].parent / "shared" / "data" / "captions"


def table(logw: np.ndarray | dict[str, np.ndarray], *, k: int = K, seed: int = 0, **columns: Any) -> pa.Table:
    """A log of ``len / k`` prompts from log-weights; rewards, clusters and the rest unless given."""
    policies = logw if isinstance(logw, dict) else {"p": logw}
    n = len(next(iter(policies.values())))
    rng = np.random.default_rng(seed)
    behavior = np.full(n, -90.0)
    given: dict[str, Any] = {
        "prompt_id": np.repeat(np.arange(n // k), k),
        "behavior_logprob": behavior,
        **{f"target_logprob/{name}": behavior + w for name, w in policies.items()},
        "reward": rng.uniform(size=n),
        "cluster": rng.integers(0, 4, size=n),
    }
    return pa.table({key: value for key, value in (given | columns).items() if value is not None})


def lognormal(s: float, n: int = N * K, seed: int = 1, k: int = K) -> np.ndarray:
    """Log-weights of mean weight 1; one normal per prompt spreads the prompts' weights in full."""
    z = np.random.default_rng(seed).normal(size=n)
    return s * z - s * s / 2


def exact(logw: np.ndarray) -> np.ndarray:
    """The same with a mean weight of exactly 1, whatever the sample."""
    return np.asarray(logw - np.log(np.mean(np.exp(logw))))


def run(log: pa.Table, **options: Any) -> pope.Evaluation:
    options.setdefault("reward_range", (0.0, 1.0))
    return evaluate(log, **options)


def codes(evaluation: pope.Evaluation, policy: str = "p") -> dict[str, str]:
    return {finding.code: finding.severity for finding in evaluation[policy].verdict.findings}


# The verdict, rule by rule.


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


# Options.


def test_thresholds():
    log = table(exact(lognormal(0.6, 100)))
    assert run(log).settings.thresholds == dict(DEFAULT_THRESHOLDS)
    assert run(log)["p"].verdict.level == "unreliable"
    lenient = {"ess": 5, "reward_ess": 2}
    assert run(log, thresholds=lenient).settings.thresholds["ess"] == 5.0
    assert run(log, thresholds=lenient)["p"].verdict.level == "reliable"
    with pytest.raises(PopeError, match="esss"):
        run(log, thresholds={"esss": 5})
    with pytest.raises(PopeError, match="finite"):
        run(log, thresholds={"ess": math.nan})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"estimator": "magic"}, "magic"),
        ({"cluster_scope": "world"}, "world"),
        ({"level": 1.0}, "level"),
        ({"level": 95}, "level"),
        ({"diversity_weight": -0.1}, "diversity_weight"),
        ({"diversity_order": 7}, "diversity_order"),
        ({"policies": ["q"]}, "q"),
        ({"policies": ["p", "p"]}, "twice|one name"),
        ({"policies": "q"}, "q"),
        ({"unit": "no_such"}, "no_such"),
        ({"aa_policy": "no_such"}, "no_such"),
        ({"reward_range": (1.0, 0.0)}, "reward_range"),
        ({"reward_range": (0.0, math.inf)}, "reward_range"),
        ({"threads": 0}, "threads"),
    ],
)
def test_refused_options(options, words):
    with pytest.raises(PopeError, match=words):
        run(table(lognormal(0.3)), **options)


def test_policies_are_a_choice():
    log = table({"a": lognormal(0.3), "b": lognormal(0.5, seed=2), "c": lognormal(0.2, seed=3)})
    all_of_them, some, one = run(log), run(log, policies=["c", "a"]), run(log, policies="b")
    assert list(all_of_them) == ["a", "b", "c"]
    assert list(some) == ["c", "a"]
    assert list(one) == ["b"]
    assert repr(some["a"].utility) == repr(all_of_them["a"].utility)
    assert repr(one["b"].value) == repr(all_of_them["b"].value)
    assert one.differences == {}
    named = run(log, policies={"renamed": "target_logprob/b"})
    assert named["renamed"].utility.value == one["b"].utility.value


def test_differences_have_a_sign():
    log = table({"a": lognormal(0.3), "b": lognormal(0.5, seed=2), "c": lognormal(0.2, seed=3)})
    found = run(log, diversity_weight=0.5)
    for a, b in (("a", "b"), ("a", "c"), ("b", "c")):
        there, back = found.compare(a, b), found.compare(b, a)
        assert (there.a, there.b, back.a, back.b) == (a, b, b, a)
        for part in ("utility", "diversity", "value"):
            x, y = getattr(there, part), getattr(back, part)
            assert x.value == -y.value
            assert x.standard_error == y.standard_error
            assert (x.interval.low, x.interval.high) == (-y.interval.high, -y.interval.low)
            headline = getattr(found[a], part).value - getattr(found[b], part).value
            assert x.value == pytest.approx(headline, rel=1e-9, abs=1e-12)
        assert there.value.value == pytest.approx(there.utility.value + 0.5 * there.diversity.value, abs=1e-12)
    for pair in (("a", "a"), ("a", "z")):
        with pytest.raises(PopeError):
            found.compare(*pair)


def test_differences_of_one_policy_with_itself_under_two_names():
    found = run(table({"a": lognormal(0.5), "b": lognormal(0.5)}))
    difference = found.compare("a", "b")
    assert difference.utility.value == difference.value.value == 0.0
    assert difference.utility.standard_error == 0.0


def test_difference_with_an_unreliable_policy_has_no_headline_interval():
    found = run(table({"near": lognormal(0.3), "far": lognormal(3.0)}))
    difference = found.compare("near", "far")
    assert "far" in difference.note
    assert difference.utility.interval is None
    assert difference.utility.intervals["jackknife"] is not None


def test_paired_difference_is_sharper():
    """Two policies that are alike share their errors."""
    logw = lognormal(1.0, 4000)
    found = run(table({"a": logw, "b": logw + 0.05 * np.random.default_rng(0).normal(size=4000)}))
    paired = found.compare("a", "b").utility.standard_error
    assert paired < 0.3 * math.hypot(*(found[p].utility.standard_error for p in "ab"))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators(estimator):
    rng = np.random.default_rng(0)
    logw = lognormal(0.6)
    log = table(logw, baseline=rng.uniform(size=N * K), **{"baseline_mean/p": rng.uniform(size=N * K)})
    found = run(log, estimator=estimator, diversity_weight=0.5)
    answer = found["p"]
    assert set(answer.utility_estimators) == set(ESTIMATORS)
    assert answer.utility.name == estimator == found.settings.estimator
    assert answer.utility == answer.utility_estimators[estimator]
    assert answer.value.value == pytest.approx(answer.utility.value + 0.5 * answer.diversity.value, rel=1e-12)
    # What assumes nothing about overlap holds whatever the estimator.
    assert answer.utility.intervals["robust"] == answer.utility_estimators["sn_tips"].intervals["robust"]
    assert answer.value.standard_error <= answer.utility.standard_error + 0.5 * answer.diversity.standard_error + 1e-12
    arrays = (log["target_logprob/p"].to_numpy(), log["behavior_logprob"].to_numpy(), log["reward"].to_numpy())
    options: dict[str, Any] = {"prompt_id": log["prompt_id"].to_numpy(), "reward_range": (0.0, 1.0)}
    if estimator in ("dm", "dr", "sndr"):
        options |= {"baseline": log["baseline"].to_numpy(), "baseline_mean": log["baseline_mean/p"].to_numpy()}
    function = {"cv": ope.control_variate}.get(estimator) or getattr(ope, estimator)
    assert function(*arrays, **options).value == answer.utility.value


def test_estimators_that_the_log_does_not_allow():
    for estimator, k, words in (("dr", K, "baseline"), ("baseline_dr", 1, "two responses")):
        answer = run(table(lognormal(0.3), k=k), estimator=estimator)["p"]
        assert answer.utility.value is None
        assert words in answer.utility.note


@pytest.mark.parametrize(
    ("sizes", "level", "order"),
    [
        ([4] * 90 + [3] * 10, "prompt", 3),
        ([4] * 89 + [3] * 11, "prompt", 2),
        ([3] * 90 + [2] * 10, "prompt", 2),
        ([2] * 100, "prompt", 1),
        ([2] * 50 + [1] * 50, "prompt", 1),
        ([2] * 49 + [1] * 51, "marginal", None),
        ([1] * 100, "marginal", None),
    ],
)
def test_level_of_the_diversity(sizes, level, order):
    n = sum(sizes)
    log = table(lognormal(0.3, n), k=1, prompt_id=np.repeat(np.arange(100), sizes))
    detail = run(log)["p"].diversity_detail
    assert (detail.level, detail.order) == (level, order)
    assert detail.measure == ("entropy" if level == "marginal" else f"H_{order}")
    if level == "prompt":
        used = sum(k >= order + 1 for k in sizes)
        assert (detail.n_units_used, detail.n_units_left_out) == (used, 100 - used)
        assert f"M = {order}" in detail.rule
    assert run(log)["p"].diversity.name == detail.measure


def test_order_is_capped():
    log = table(lognormal(0.3))
    for order in (1, 2, 3):
        found = run(log, diversity_order=order)["p"]
        assert found.diversity.name == f"H_{order}"
        assert found.diversity.value == run(log)["p"].diversity_detail.measures[f"H_{order}"].value


def test_diversity_weight():
    log = table(lognormal(0.3))
    none, some = (run(log, diversity_weight=w)["p"] for w in (0.0, 2.0))
    assert none.value.value == none.utility.value
    assert none.value.standard_error == pytest.approx(none.utility.standard_error, rel=1e-9)
    assert some.value.value == pytest.approx(some.utility.value + 2.0 * some.diversity.value, rel=1e-12)
    parts = some.variance
    assert parts.total == pytest.approx(parts.utility + parts.diversity + parts.covariance, rel=1e-9)
    assert parts.lower_bound <= parts.total <= parts.upper_bound
    assert some.value.standard_error == pytest.approx(math.sqrt(parts.total), rel=1e-12)


def test_no_clusters():
    found = run(table(lognormal(0.3), cluster=None))["p"]
    assert found.diversity is found.diversity_detail is found.variance is None
    assert found.value.value == found.utility.value
    assert any("no clusters" in note for note in found.notes)


def test_clusters_of_a_prompt():
    """Labels that mean something within a prompt only: renaming them per prompt changes nothing."""
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 4, size=N * K)
    local = cluster + 10 * np.repeat(rng.integers(0, 50, size=N), K)
    found = [run(table(lognormal(0.3), cluster=c), cluster_scope="prompt")["p"] for c in (cluster, local)]
    assert found[0].diversity_detail.level == "prompt"
    assert found[0].diversity_detail.cluster_masses == {}
    assert found[0].diversity_detail.sandwich is None
    for a, b in zip(
        found[0].diversity_detail.measures.values(), found[1].diversity_detail.measures.values(), strict=True
    ):
        assert a.value == pytest.approx(b.value, rel=1e-12)
    single = run(table(lognormal(0.3), k=1), cluster_scope="prompt")["p"]
    assert single.diversity is None


def test_units():
    """The independent unit: prompts, rows, or a column of the log."""
    rng = np.random.default_rng(0)
    logw = lognormal(0.5)
    user = np.repeat(np.arange(N // 10), 10 * K)
    effect = np.repeat(rng.normal(size=N // 10), 10 * K)
    reward = 1 / (1 + np.exp(-effect - 0.3 * rng.normal(size=N * K)))
    log = table(logw, reward=reward, user=user)
    by = {unit: run(log, unit=unit)["p"] for unit in ("prompt", "row", "user")}
    assert [by[u].diagnostics.n_units for u in by] == [N, N * K, N // 10]
    errors = {unit: answer.utility.standard_error for unit, answer in by.items()}
    assert errors["row"] < errors["prompt"] < errors["user"]
    expected = ope.snips(log["target_logprob/p"].to_numpy(), log["behavior_logprob"].to_numpy(), reward, prompt_id=user)
    assert by["user"].utility_estimators["snips"].standard_error == pytest.approx(expected.standard_error, rel=1e-9)
    assert run(log, unit="user").settings.unit == "user"


def test_counts_are_repeated_rows():
    rng = np.random.default_rng(0)
    log = table(lognormal(0.4, 1200))
    count = rng.integers(1, 5, size=1200)
    spread = log.take(pa.array(np.repeat(np.arange(1200), count)))
    for unit in ("prompt", "row"):
        counted = run(log.append_column("count", pa.array(count)), unit=unit)["p"]
        repeated = run(spread, unit=unit)["p"]
        assert counted.diagnostics.n_units == repeated.diagnostics.n_units
        assert counted.diagnostics.n_rows == 1200 < repeated.diagnostics.n_rows
        for name, estimate in counted.utility_estimators.items():
            assert estimate.value == pytest.approx(repeated.utility_estimators[name].value, rel=1e-10), name
            assert estimate.standard_error == pytest.approx(
                repeated.utility_estimators[name].standard_error, rel=1e-9
            ), name


def test_groups_have_their_names():
    group = np.where(np.arange(N * K) % 2 == 0, "left", "right")
    cluster = np.array(["blue", "green", "red"])[np.random.default_rng(0).integers(0, 3, size=N * K)]
    reward = np.where(group == "left", 0.25, 0.75)
    answer = run(table(lognormal(0.3), group=group, cluster=cluster, reward=reward))["p"]
    assert set(answer.groups) == {"left", "right"}
    assert answer.groups["left"].value == pytest.approx(0.25)
    assert answer.welfare["mean"].value == pytest.approx(0.5)
    assert answer.welfare["min"].value == pytest.approx(0.25)
    assert answer.welfare["nash"].value == pytest.approx(math.sqrt(0.25 * 0.75))
    masses = answer.diversity_detail.cluster_masses
    assert set(masses) == {"blue", "green", "red"}
    assert sum(target for target, _ in masses.values()) == pytest.approx(1.0)
    assert sum(logged for _, logged in masses.values()) == pytest.approx(1.0)


def test_behavior_is_the_mean_of_the_log():
    log = table(lognormal(0.3))
    found = run(log, level=0.9).behavior
    reward = log["reward"].to_numpy().reshape(N, K).mean(axis=1)
    assert found.value == pytest.approx(reward.mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(reward.std(ddof=1) / math.sqrt(N), rel=1e-9)
    assert found.interval.level == 0.9


def test_results_do_not_depend_on_threads():
    log = table({"a": lognormal(0.3), "b": lognormal(2.0)})
    one, two = (run(log, threads=t) for t in (1, 2))
    assert repr(one["a"].value) == repr(two["a"].value)
    assert one.to_dict()["policies"] == two.to_dict()["policies"]


def test_evaluating_a_log_again_gives_the_same():
    log = pope.read_log(table(lognormal(0.3)), reward_range=(0.0, 1.0))
    assert repr(evaluate(log)["p"].value) == repr(evaluate(log)["p"].value)
    assert evaluate(log).settings.reward_range.origin == "declared"


# A real log: crowd ratings of captions, collected by two policies at once.


@cache
def captions() -> tuple[pa.Table, dict[str, Any]]:
    path = CAPTIONS / "captions.parquet"
    if not path.is_file():
        pytest.skip("the captions log is not beside this checkout (../shared/data/captions)")
    import pyarrow.parquet as pq

    columns = ["prompt_id", "reward", "count", "behavior_logprob", "target_logprob/lilucb"]
    truth = json.loads((CAPTIONS / "truth.json").read_text())
    return pq.read_table(path, columns=columns), truth


@pytest.mark.parametrize("contest", [str(c) for c in range(510, 518)])
def test_captions_by_contest(contest):
    """What the adaptive arm earned on the same captions lies in every interval from the uniform arm's ratings.

    The truth has an error of its own: its ratings are a sample like the log's, so the interval of the difference is
    that of both.
    """
    log, truth = captions()
    expected = truth[contest]
    mask = pa.compute.equal(log["prompt_id"], contest)
    answer = evaluate(log.filter(mask), unit="row", reward_range=(0.0, 1.0))
    lilucb = answer["lilucb"]
    assert lilucb.diagnostics.n_units == expected["ratings_roundrobin"]
    assert answer.behavior.value == pytest.approx(expected["value_roundrobin"], rel=1e-6)
    spread = math.sqrt(lilucb.utility.standard_error**2 + 0.25 / expected["ratings_lilucb"])
    for name in ("ips", "snips", "tips", "sn_tips", "cv", "psis"):
        estimate = lilucb.utility_estimators[name]
        assert abs(estimate.value - expected["value_lilucb"]) < 4 * spread, name
    # Nearer to the truth than to what the log itself earned, where the two differ by more than both errors.
    gap = expected["value_lilucb"] - expected["value_roundrobin"]
    if gap > 4 * spread:
        assert abs(lilucb.utility.value - expected["value_lilucb"]) < gap / 2
    for method in ("robust", "certified"):
        interval = lilucb.utility.intervals[method]
        if interval is not None:
            assert interval.low - 2 * spread <= expected["value_lilucb"] <= interval.high + 2 * spread, method


def test_captions_overall():
    """All contests: the truth is the mean over the ratings that were logged, contest by contest."""
    log, truth = captions()
    found = evaluate(log, unit="row", reward_range=(0.0, 1.0))
    n = np.array([truth[c]["ratings_roundrobin"] for c in truth])
    values = np.array([truth[c]["value_lilucb"] for c in truth])
    logged = np.array([truth[c]["value_roundrobin"] for c in truth])
    assert found["lilucb"].diagnostics.n_units == n.sum()
    assert found.behavior.value == pytest.approx(np.sum(n * logged) / n.sum(), rel=1e-6)
    expected = np.sum(n * values) / n.sum()
    error = math.hypot(found["lilucb"].utility.standard_error, 0.5 / math.sqrt(n.sum()))
    assert abs(found["lilucb"].utility.value - expected) < 4 * error
    assert expected - found.behavior.value > 10 * error
    assert found["lilucb"].diversity is None
