"""Every quantity has a verdict and an interval of its own, and what was asked for decides the policy's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pope_fast.errors import PopeError
from pope_fast.evaluate import Evaluation, Finding, Interval, Verdict, evaluate
from pope_fast.evaluate.choice import TOO_RARE, choose
from pope_fast.evaluate.findings import ASKED, QUANTITIES, quantity_verdict
from pope_fast.evaluate.results import Estimate
from pope_fast.evaluate.spans import diversity_span, wide_interval
from pope_fast.evaluate.verdict import DEFAULT_THRESHOLDS

N = 400


def log(n: int = N, k: int = 4, **columns: Any) -> pa.Table:
    rng = np.random.default_rng(5)
    z = rng.normal(size=n * k)
    usual = {
        "prompt_id": np.repeat(np.arange(n), k),
        "behavior_logprob": np.full(n * k, -40.0),
        "target_logprob/p": 0.3 * z - 0.045 - 40.0,
        "target_logprob/q": 0.2 * z - 0.02 - 40.0,
        "reward": (rng.random(n * k) < 0.5).astype(float),
        "cluster": rng.integers(0, 3, n * k),
        "group": rng.integers(0, 2, n * k),
    }
    return pa.table(usual | columns)


def rare(n: int = N) -> np.ndarray:
    reward = np.zeros(4 * n)
    reward[:: n // 5] = 1.0
    return reward


def codes(verdict: Verdict) -> set[str]:
    return {finding.code for finding in verdict.findings}


def run(table: pa.Table, **options: Any) -> Evaluation:
    return evaluate(table, reward_range=(0.0, 1.0), **options)


def test_every_estimate_that_is_shown_is_judged() -> None:
    found = run(log())
    for policy in found.values():
        for quantity in QUANTITIES[:-1]:
            estimates = policy.estimates(quantity)
            assert estimates
            assert {e.verdict.level for e in estimates if e.verdict is not None} == {"reliable"}
        assert all(e.verdict is not None for e in policy.utility_estimators.values())
    assert [e.verdict.level for e in found.compare("p", "q").estimates() if e.verdict is not None] == ["reliable"] * 3


def test_a_rare_reward_is_not_held_against_the_diversity() -> None:
    policy = run(log(reward=rare()))["p"]
    assert policy.verdict.level == policy.utility.verdict.level == policy.value.verdict.level == "caution"
    assert policy.diversity.verdict.level == "reliable"
    assert policy.diversity.interval.method == "worst_case_tail"
    assert policy.utility.interval.method != "worst_case_tail"
    assert all("rare_reward" in codes(e.verdict) for e in (*policy.groups.values(), *policy.welfare.values()))


def test_clusters_seen_once_are_not_held_against_the_utility() -> None:
    cluster = np.where(np.arange(N) % 2 == 0, np.arange(N) + 100, 0)
    found = run(log(k=1, cluster=cluster))
    policy = found["p"]
    assert policy.diversity.verdict.level == policy.value.verdict.level == policy.verdict.level == "caution"
    assert policy.utility.verdict.level == "reliable"
    difference = found.compare("p", "q")
    assert difference.utility.verdict.level == "reliable"
    assert difference.diversity.verdict.level == difference.value.verdict.level == "caution"
    assert any(reason.startswith("p: ") for reason in difference.diversity.verdict.reasons)


def test_what_was_not_asked_for_does_not_count() -> None:
    table = log(reward=rare())
    only = run(table, quantities=["diversity"])
    assert only["p"].verdict.level == only.verdict.level == "reliable"
    assert only.settings.quantities == ("diversity",)
    assert only["p"].utility.verdict.level == "caution"
    assert run(table, quantities="utility").verdict.level == "caution"
    # A log without clusters has no D: nothing can be held against it.
    assert run(log().drop_columns(["cluster"]), quantities=ASKED).verdict.level == "reliable"
    with pytest.raises(PopeError, match="there is no quantity 'U'"):
        run(table, quantities=["U"])
    with pytest.raises(PopeError, match="at least one"):
        run(table, quantities=[])


def test_differences_count_where_they_are_asked_for() -> None:
    found = run(log(reward=rare()), quantities=["diversity", "differences"])
    assert found["p"].verdict.level == "reliable"
    assert found.verdict.level == "caution"
    assert any(f.message.startswith("p - q: p: ") for f in found.verdict.findings)


def test_the_verdict_on_one_quantity_over_all_policies() -> None:
    found = run(log(reward=rare()))
    assert found.verdict_of("diversity").level == "reliable"
    assert found.verdict_of("utility").level == found.verdict_of("differences").level == "caution"
    assert all(reason.startswith(("p: ", "q: ")) for reason in found.verdict_of("utility").reasons)
    bare = run(log().drop_columns(["cluster", "group", "target_logprob/q"]))
    for quantity, why in (("diversity", "no clusters"), ("groups", "no groups"), ("differences", "one policy")):
        with pytest.raises(PopeError, match=why):
            bare.verdict_of(quantity)
    with pytest.raises(PopeError, match="there is no quantity 'V'"):
        found.verdict_of("V")


def test_a_wide_interval_is_no_answer_and_says_whose() -> None:
    """Twelve prompts: U could be nearly anything; the finding is U's own, and that of a group its own."""
    policy = run(log(12), thresholds={"ess": 1.0, "reward_ess": 0.0, "interval_share": 0.2})["p"]
    assert policy.utility.interval.width > 0.2
    (own,) = (f for f in policy.utility.verdict.findings if f.code == "wide_interval")
    assert own.value == pytest.approx(policy.utility.interval.width)
    assert own.quantities == ("utility",)
    assert "of U covers" in own.message
    for label, group in policy.groups.items():
        assert next(f.message for f in group.verdict.findings if "wide" in f.code).count(f"group '{label}'") == 1
    # Groups were not asked for, so their findings are not the policy's.
    assert {f.quantities for f in policy.verdict.findings if f.code == "wide_interval"} <= {(q,) for q in ASKED}


def test_a_finding_is_made_only_where_it_belongs() -> None:
    narrow = Estimate("sn_tips", 0.5, 0.1, Interval(0.25, 0.75, 0.95, "delta"))
    assert wide_interval("U", "utility", narrow, 1.0, DEFAULT_THRESHOLDS) == []
    (found,) = wide_interval("U", "utility", narrow, 0.9, DEFAULT_THRESHOLDS)
    assert found.severity == "unreliable"
    (all_of_it,) = wide_interval("U", "utility", narrow, 0.4, DEFAULT_THRESHOLDS)
    assert "covers all" in all_of_it.message
    assert wide_interval("U", "utility", replace(narrow, interval=None), 0.1, DEFAULT_THRESHOLDS) == []
    assert wide_interval("U", "utility", narrow, None, DEFAULT_THRESHOLDS) == []


@pytest.mark.parametrize(
    ("name", "span"),
    [("H_1", 1.0), ("H_3", 1 + 1 / 2 + 1 / 3), ("gini_simpson", 1.0), ("coverage@3", 2.0), ("entropy", np.log(7))],
)
def test_how_far_a_measure_can_range(name: str, span: float) -> None:
    summary = {"diversity": {"name": name}, "marginal": {"n_clusters": 7}}
    assert diversity_span(summary) == pytest.approx(span)


def test_measures_without_bounds_have_no_width() -> None:
    assert diversity_span({"diversity": {"name": "vendi"}}) is None
    assert diversity_span({"diversity": None}) is None
    assert diversity_span({"diversity": {"name": "entropy"}, "marginal": {"n_clusters": 1}}) is None


def test_what_is_made_of_what() -> None:
    def reached(*quantities: str) -> set[str]:
        finding = Finding("x", "caution", "...", quantities=quantities)
        return {q for q in QUANTITIES if quantity_verdict(q, [finding]).level == "caution"}

    assert reached() == set(QUANTITIES)
    assert reached("utility") == {"utility", "value", "groups", "welfare"}
    assert reached("diversity") == {"diversity", "value"}
    assert reached("groups") == {"groups", "welfare"}
    assert reached("differences") == {"differences"}
    with pytest.raises(ValueError, match="nothing"):
        Finding("x", "caution", "...", quantities=("nothing",))


def test_own_findings_count_beside_those_of_the_policy() -> None:
    own = Finding("y", "unreliable", "...")
    verdict = quantity_verdict("diversity", [Finding("x", "caution", "...", quantities=("utility",))], [own])
    assert verdict == Verdict("unreliable", (own,))


@pytest.mark.parametrize(
    ("found", "method", "reason"),
    [
        ((), "worst_case_tail", ""),
        ((Finding("rare_reward", "caution", "", 20.0),), "robust", TOO_RARE),
        ((Finding("rare_reward", "caution", "", 2.0),), "certified", TOO_RARE),
        ((Finding("low_ess", "unreliable", ""),), "robust", "needs no overlap"),
        ((Finding("bridge", "caution", ""),), "delta", "void"),
        ((Finding("bridge", "caution", ""), Finding("rare_reward", "caution", "", 20.0)), None, TOO_RARE),
        ((Finding("bridge", "unreliable", ""),), None, "fresh draws"),
        ((Finding("inconsistent_log_probs", "caution", ""), Finding("low_ess", "unreliable", "")), None, "no overlap"),
    ],
)
def test_one_place_chooses_the_interval(found: tuple[Finding, ...], method: str | None, reason: str) -> None:
    choice = choose(Verdict.of(found), DEFAULT_THRESHOLDS)
    assert choice.method == method
    assert reason in choice.reason


@pytest.mark.parametrize("estimator", ["ips", "snips", "psis"])
def test_v_with_another_estimator_shows_no_bound_that_needs_overlap(estimator: str) -> None:
    rng = np.random.default_rng(0)
    table = log(**{"target_logprob/p": -40.0 + 3.0 * rng.normal(size=4 * N) - 4.5})
    policy = run(table, estimator=estimator)["p"]
    assert policy.value.verdict.level == "unreliable"
    assert policy.value.interval is None or policy.value.interval.method in ("robust", "certified")


def test_json_and_arrow_have_the_verdict_of_every_quantity() -> None:
    found = run(log(reward=rare()))
    content = found.to_json()
    results = content["results"]["p"]
    assert results["utility_verdict"] == results["value_verdict"] == results["welfare/min_verdict"] == "caution"
    assert results["diversity_verdict"] == "reliable"
    assert results["group/1_verdict"] == results["verdict"] == "caution"
    utility = content["pope"]["policies"]["p"]["utility"]
    assert utility["verdict"] == {"level": "caution", "findings": ["rare_reward"]}
    assert content["pope"]["differences"][0]["diversity"]["verdict"] == {"level": "reliable", "findings": []}
    rows = {row["metric"]: row["verdict"] for row in found.to_arrow().to_pylist() if row["policy"] == "p"}
    assert (rows["utility"], rows["diversity"], rows["group/0"]) == ("caution", "reliable", "caution")


def test_a_small_group_is_marked_and_no_other_quantity_but_welfare() -> None:
    group = np.where(np.arange(4 * N) < 40, 7, 8)  # ten prompts, and all others
    found = run(log(group=group))
    policy = found["p"]
    (own,) = (f for f in policy.groups[7].verdict.findings if f.code == "small_group")
    assert (own.value, own.threshold) == (10.0, 50.0)
    assert policy.groups[8].verdict.level == policy.verdict.level == "reliable"
    assert all("small_group" in codes(e.verdict) for e in policy.welfare.values())
    assert found.verdict_of("groups").level != "reliable"
    assert run(log(group=group), quantities=["utility", "groups"])["p"].verdict.level != "reliable"
    text = str(found)
    assert text.count("group '7' has 10 units") == 2  # once under each policy
