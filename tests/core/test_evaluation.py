"""From a log in memory to an answer: options, units, estimators, diversity levels, differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from core_tables import K, N, exact, lognormal, run, table

import pope_fast as pope
from pope_fast import ope
from pope_fast.errors import PopeError
from pope_fast.evaluate import DEFAULT_THRESHOLDS, ESTIMATORS, evaluate


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
