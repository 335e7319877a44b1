"""The bridge check: its numbers by hand, its columns, its verdict, and what it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bridge_logs import BASE, check, lognormal
from scipy import stats

from pope_fast.errors import PopeError, SchemaError
from pope_fast.evaluate import BridgeCheck, Evaluation, evaluate
from pope_fast.evaluate.bridge_sums import LoggedSums
from pope_fast.evaluate.fresh import read_fresh
from pope_fast.evaluate.student import t_quantile, t_tail
from pope_fast.log import read_log
from pope_fast.report.html import render_page
from pope_fast.report.table import render_text


def world(seed: int = 0, **options: Any) -> tuple[pa.Table, pa.Table]:
    return lognormal(np.random.default_rng(seed), **options)


def weights(table: pa.Table, over: str, under: str) -> np.ndarray:
    return table[over].to_numpy() - table[under].to_numpy()


def by_prompt(table: pa.Table, values: np.ndarray) -> dict[int, float]:
    prompts = table["prompt_id"].to_numpy()
    return {int(p): float(values[prompts == p].mean()) for p in np.unique(prompts)}


def change(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def shares(log: pa.Table, fresh: pa.Table) -> tuple[dict[int, float], dict[int, float]]:
    w = np.exp(weights(log, "target_logprob/p", "behavior_logprob"))
    v = np.exp(weights(fresh, "behavior_logprob", "target_logprob/logger"))
    return by_prompt(log, w / (1 + w)), by_prompt(fresh, 1 / (1 + v))


@pytest.mark.parametrize("df", [0.7, 1, 2, 3.5, 30, 1000, 1e6])
def test_student_t(df: float) -> None:
    for t in (0.0, 0.01, 0.5, 1.0, 2.5, 8.0, 40.0):
        assert t_tail(t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-8, abs=1e-300)
        assert t_tail(-t, df) == t_tail(t, df)
    for level in (0.1, 0.8, 0.95, 0.999):
        assert t_quantile(level, df) == pytest.approx(stats.t.ppf(0.5 + level / 2, df), rel=1e-6)


def test_prompts_are_paired_where_both_logs_have_them() -> None:
    log, fresh = world()
    one, other = shares(log, fresh)
    differences = np.array([one[p] - other[p] for p in other])
    found = check(log, fresh)
    expected = stats.ttest_1samp(differences, 0.0)
    assert found.paired
    assert (found.n_units_logged, found.n_units_fresh, found.n_fresh, found.n_unmatched) == (200, 200, 400, 0)
    assert found.difference == pytest.approx(differences.mean(), rel=1e-10)
    assert found.standard_error == pytest.approx(stats.sem(differences), rel=1e-10)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-8)
    ends = expected.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((ends.low, ends.high), rel=1e-7)
    assert found.logged == pytest.approx(np.mean([one[p] for p in other]), rel=1e-12)
    assert found.fresh == pytest.approx(np.mean(list(other.values())), rel=1e-12)


def test_other_prompts_make_two_samples() -> None:
    log, fresh = world(shared=False)
    one, other = (np.array(list(side.values())) for side in shares(log, fresh))
    found = check(log, fresh)
    expected = stats.ttest_ind(one, other, equal_var=False)
    assert not found.paired
    assert (found.n_units_logged, found.n_units_fresh) == (300, 200)
    assert found.difference == pytest.approx(one.mean() - other.mean(), rel=1e-10)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-7)
    ends = expected.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((ends.low, ends.high), rel=1e-7)


def test_the_tilt_weighs_probable_responses() -> None:
    log, fresh = world()
    v = weights(fresh, "behavior_logprob", "target_logprob/logger")
    sums = fresh["behavior_logprob"].to_numpy() + fresh["target_logprob/logger"].to_numpy()
    low, center, high = np.quantile(sums, [0.25, 0.5, 0.75])

    def g(sums: np.ndarray) -> np.ndarray:
        return np.tanh((sums - center) / ((high - low) / 1.35))

    w = weights(log, "target_logprob/p", "behavior_logprob")
    logged = g(log["target_logprob/p"].to_numpy() + log["behavior_logprob"].to_numpy())
    one, other = by_prompt(log, logged / (1 + np.exp(-w))), by_prompt(fresh, g(sums) / (1 + np.exp(v)))
    differences = np.array([one[p] - other[p] for p in other])
    found = check(log, fresh)
    assert found.tilt == pytest.approx(differences.mean(), rel=1e-9)
    assert found.tilt_p_value == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, rel=1e-7)


def test_an_offset_is_found_and_told_in_nats() -> None:
    found = check(*world(offset=0.2, prompts=2000, fresh_prompts=2000))
    assert found.p_value < 1e-20
    assert found.offset == pytest.approx(0.2, abs=0.03)
    assert 0 < found.detectable_offset < 0.05


def test_equal_policies_agree_exactly() -> None:
    log = pa.table(
        {
            "prompt_id": np.repeat(np.arange(50), 2),
            "behavior_logprob": np.full(100, -3.0),
            "target_logprob/p": np.full(100, -3.0),
            "reward": np.zeros(100),
        }
    )
    fresh = pa.table(
        {"prompt_id": np.arange(50), "behavior_logprob": np.full(50, -3.0), "target_logprob/logger": np.full(50, -3.0)}
    )
    found = check(log, fresh)
    assert (found.difference, found.p_value, found.standard_error) == (0.0, 1.0, 0.0)
    assert (found.logged, found.fresh) == (0.5, 0.5)


def test_files_scattered_rows_and_counts_change_nothing(tmp_path: Path) -> None:
    log, fresh = world(shared=False)
    expected = check(log, fresh)
    for i in range(3):
        pq.write_table(log.slice(400 * i, 400), tmp_path / f"{i}.parquet", row_group_size=7)

    def near(found: BridgeCheck) -> None:
        for name in ("logged", "fresh", "difference", "standard_error", "p_value", "tilt", "tilt_p_value", "offset"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9), name

    near(check(tmp_path, fresh))
    order = np.random.default_rng(0).permutation(len(log))
    with pytest.warns(UserWarning, match="scattered"):
        near(check(log.take(order), fresh))
    counted = log.append_column("count", pa.array(np.full(len(log), 3)))
    near(check(counted, fresh))
    doubled = log.append_column("count", pa.array(np.tile([1, 0, 2, 1], 300)))
    spread = log.take(np.repeat(np.arange(len(log)), np.tile([1, 0, 2, 1], 300)))
    assert check(doubled, fresh).difference == pytest.approx(check(spread, fresh).difference, rel=1e-9)


def test_prompts_that_batches_cut_are_put_together() -> None:
    log, fresh = world(shared=False)
    mixed = pa.concat_tables([fresh, change(fresh, "prompt_id", np.repeat(np.arange(50, 250), 2))])
    draws = read_fresh(read_log(mixed), "p", logger="logger", role="prompt_id")
    columns = [log[name].to_numpy() for name in ("prompt_id", "target_logprob/p", "behavior_logprob")]
    whole, pieces = LoggedSums(draws), LoggedSums(draws)
    whole.add(*columns, None)
    for start in range(0, len(log), 11):
        pieces.add(*(column[start : start + 11] for column in columns), None)
    for one, other in ((whole.side(), pieces.side()), (whole.of_prompts(), pieces.of_prompts())):
        for name in type(one).__dataclass_fields__:
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12)
    assert whole.side().units == 300
    assert whole.of_prompts().keys.tolist() == list(range(50, 250))


def test_prompts_without_their_log_are_left_out_and_counted() -> None:
    log, fresh = world()
    extra = fresh.slice(0, 40).set_column(0, "prompt_id", pa.array(np.arange(1000, 1040)))
    found = check(log, pa.concat_tables([fresh, extra]))
    assert found.paired
    assert found.n_unmatched == 40
    assert found.difference == pytest.approx(check(log, fresh).difference, rel=1e-12)


def test_prompts_may_be_told_apart_by_what_they_say() -> None:
    log, fresh = world()

    def texts(table: pa.Table) -> pa.Table:
        names = pa.array([f"prompt {p}" for p in table["prompt_id"].to_pylist()])
        return table.set_column(0, "prompt", names)

    found, expected = check(texts(log), texts(fresh)), check(log, fresh)
    assert found.paired
    assert found.difference == pytest.approx(expected.difference, rel=1e-10)
    assert found.p_value == pytest.approx(expected.p_value, rel=1e-9)
    renamed = check(texts(log), fresh)  # no column in common
    assert not renamed.paired


def test_rows_without_prompts() -> None:
    log, fresh = world(k=1, fresh_k=1, shared=False)
    found = check(log.drop_columns("prompt_id"), fresh, unit="row")
    assert not found.paired
    assert found.n_units_logged == 300
    assert found.difference == pytest.approx(check(log, fresh).difference, rel=1e-10)


def test_impossible_responses_count() -> None:
    """A response that one policy never gives has w = 0 or infinity; both are numbers to the check."""
    log, fresh = world()
    target = log["target_logprob/p"].to_numpy().copy()
    target[::5] = -np.inf
    logger = fresh["target_logprob/logger"].to_numpy().copy()
    logger[::7] = -np.inf
    log = log.set_column(log.column_names.index("target_logprob/p"), "target_logprob/p", pa.array(target))
    fresh = fresh.set_column(2, "target_logprob/logger", pa.array(logger))
    found = check(log, fresh)
    one, other = shares(log, fresh)
    assert found.difference == pytest.approx(np.mean([one[p] - other[p] for p in other]), rel=1e-9)
    assert found.fresh_log_weight.value is None
    assert "probability 0" in found.fresh_log_weight.note


# Columns


def test_the_log_s_own_column_is_used_and_the_sampler_held_against_it() -> None:
    log, fresh = world()
    scored = fresh.append_column("target_logprob/p", fresh["behavior_logprob"])
    same = check(log, scored)
    assert same.difference == check(log, fresh).difference
    assert same.sampler_excess.value == 0.0
    off = fresh.append_column("target_logprob/p", pa.array(fresh["behavior_logprob"].to_numpy() - 0.5))
    assert check(log, off).sampler_excess.value == pytest.approx(0.5)
    assert check(log, off).fresh_log_weight.value == pytest.approx(same.fresh_log_weight.value - 0.5)
    assert check(log, fresh).sampler_excess is None


def test_the_logger_s_column_may_have_another_name() -> None:
    log, fresh = world()
    expected = check(log, fresh)
    renamed = fresh.rename_columns(["prompt_id", "behavior_logprob", "target_logprob/old"])
    assert check(log, renamed, logger="old") == expected
    # A log of draws in which behavior_logprob is the logger's, as it is in the evaluated log.
    as_logged = fresh.rename_columns(["prompt_id", "target_logprob/p", "behavior_logprob"])
    assert check(log, as_logged, logger="behavior_logprob") == expected
    with pytest.raises(SchemaError, match="no log-prob under the policy that wrote the log"):
        check(log, as_logged)


def test_token_log_probs_are_summed() -> None:
    log, fresh = world()
    tokens = [[value / 4] * 4 for value in fresh["behavior_logprob"].to_pylist()]
    listed = fresh.set_column(1, "behavior_token_logprobs", pa.array(tokens))
    assert check(log, listed).difference == pytest.approx(check(log, fresh).difference, rel=1e-9)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.drop_columns("behavior_logprob"), "no log-prob under that policy itself"),
        (lambda t: t.drop_columns("target_logprob/logger"), "score them under it: pope score"),
        (lambda t: t.slice(0, 0), "no fresh draws"),
        (lambda t: t.slice(0, 2), "one prompt only"),
        (lambda t: change(t, "behavior_logprob", [*t["behavior_logprob"].to_pylist()[:-1], None]), "row 399.*null"),
        (lambda t: change(t, "behavior_logprob", [float("nan"), *t["behavior_logprob"].to_pylist()[1:]]), "row 0: NaN"),
        (lambda t: change(t, "target_logprob/logger", np.full(400, 0.5)), "log-prob 0.5 > 0"),
    ],
    ids=["no target", "no logger", "no rows", "one prompt", "null", "NaN", "positive"],
)
def test_what_is_no_log_of_draws_is_refused(spoil: Any, message: str) -> None:
    log, fresh = world()
    with pytest.raises(SchemaError, match=message):
        check(log, spoil(fresh))


def test_which_policy_the_draws_are_of() -> None:
    log, fresh = world()
    two = log.append_column("target_logprob/q", log["target_logprob/p"])
    with pytest.raises(PopeError, match="do not say which policy"):
        evaluate(two, fresh=fresh)
    assert evaluate(two, fresh={"q": fresh})["q"].bridge == check(log, fresh)
    assert evaluate(two, fresh={"q": fresh})["p"].bridge is None
    named = fresh.append_column("target_logprob/q", fresh["behavior_logprob"])
    assert evaluate(two, fresh=named)["q"].bridge is not None
    both = evaluate(two, fresh={"p": fresh, "q": named})
    assert both["p"].bridge.difference == both["q"].bridge.difference
    with pytest.raises(PopeError, match="fresh draws of 'r'"):
        evaluate(two, fresh={"r": fresh})
    as_dict = {name: fresh[name].to_numpy() for name in fresh.column_names}
    assert evaluate(log, fresh=as_dict)["p"].bridge is not None


def test_the_sampler_s_note_names_the_policy() -> None:
    from pope_fast.score import Provenance, with_provenance

    log, fresh = world()
    two = log.append_column("target_logprob/q", log["target_logprob/p"])
    note = with_provenance(fresh.schema, {"behavior_logprob": Provenance("q", "transformers")})
    assert evaluate(two, fresh=fresh.cast(note))["q"].bridge is not None


def test_the_log_itself_is_no_log_of_draws(tmp_path: Path) -> None:
    log, _ = world()
    path = tmp_path / "log.parquet"
    pq.write_table(log, path)
    with pytest.raises(PopeError, match="are the log itself"):
        evaluate(path, fresh=str(path))


# Verdict and report


def finding(evaluation: Evaluation) -> Any:
    return next((f for f in evaluation["p"].verdict.findings if f.code == "bridge"), None)


def test_agreement_leaves_the_verdict_alone() -> None:
    log, fresh = world()
    plain, checked = evaluate(log, reward_range=(0, 1)), evaluate(log, fresh=fresh, reward_range=(0, 1))
    assert checked["p"].verdict == plain["p"].verdict
    assert checked["p"].utility == plain["p"].utility
    text = " ".join(render_text(checked).split())
    assert "bridge check passed: 400 fresh draws on 200 prompts, difference" in text
    assert "would most likely have been noticed" in text


def test_a_contradiction_is_a_caution_that_voids_bounds() -> None:
    log, fresh = world(prompts=800, fresh_prompts=800, offset=0.15)
    found = evaluate(log, fresh=fresh, reward_range=(0, 1))
    assert finding(found).severity == "caution"
    assert finding(found).value < finding(found).threshold == 0.01
    assert "as if all log-weights were +0.1" in finding(found).message
    assert found["p"].headline_method == "delta"
    assert found["p"].utility.intervals["robust"] is None
    assert found["p"].utility.interval.method == "delta"
    text = " ".join(render_text(found).split())
    assert "bridge check failed" in text
    assert "next: Compare chat template, tokenizer" in text
    assert finding(evaluate(log, fresh=fresh, thresholds={"bridge": 1e-30})) is None


def test_a_large_contradiction_is_unreliable() -> None:
    log, fresh = world(offset=1.0)
    found = evaluate(log, fresh=fresh, reward_range=(0, 1))
    assert finding(found).severity == found["p"].verdict.level == "unreliable"
    assert "of this policy's probability is in the wrong place" in finding(found).message
    assert found["p"].utility.interval is None
    assert "fresh draws contradict" in found["p"].utility.note
    mild = evaluate(log, fresh=fresh, reward_range=(0, 1), thresholds={"bridge_difference": 0.9})
    assert finding(mild).severity == "caution"


def test_draws_of_the_wrong_policy_are_found() -> None:
    """The logger's own draws passed off as the policy's: their mean log-weight is below 0."""
    log, _ = world()
    logged = log.select(["prompt_id"])
    logged = logged.append_column("behavior_logprob", log["target_logprob/p"])
    logged = logged.append_column("target_logprob/logger", log["behavior_logprob"])
    message = finding(evaluate(log, fresh=logged.slice(0, 1199))).message
    assert "is below 0" in message
    assert "swapped columns" in message


def test_a_sampler_that_is_not_the_scored_policy_is_found() -> None:
    log, fresh = world()
    noise = np.random.default_rng(0).normal(size=len(fresh))
    scored = fresh.append_column("target_logprob/p", fresh["behavior_logprob"])
    off = change(scored, "behavior_logprob", fresh["behavior_logprob"].to_numpy() + 0.5 + 0.1 * noise)
    assert "under their sampler is +0.4" in finding(evaluate(log, fresh=off)).message
    rounding = change(scored, "behavior_logprob", fresh["behavior_logprob"].to_numpy() + 1e-3)
    assert finding(evaluate(log, fresh=rounding)) is None


def test_what_the_draws_earned_stands_beside_the_estimate() -> None:
    log, fresh = world()
    rewards = np.random.default_rng(1).random(len(fresh))
    found = evaluate(log, fresh=fresh.append_column("reward", pa.array(rewards)), reward_range=(0, 1))
    earned = found["p"].bridge.on_policy
    means = rewards.reshape(200, 2).mean(axis=1)
    assert earned.value == pytest.approx(means.mean())
    assert earned.interval.contains(0.5)
    assert earned.standard_error == pytest.approx(stats.sem(means))
    assert "the fresh draws themselves earned 0." in " ".join(render_text(found).split())
    rows = [row for row in found.to_arrow().to_pylist() if row["estimator"] == "on_policy"]
    assert [row["value"] for row in rows] == [earned.value]


def test_every_report_has_it() -> None:
    log, fresh = world(offset=0.5)
    found = evaluate(log, fresh=fresh, reward_range=(0, 1))
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))["pope"]["policies"]["p"]["bridge"]
    assert record["p_value"] == found["p"].bridge.p_value
    assert record["interval"]["method"] == "t"
    page = render_page(found)
    assert "bridge check failed" in page
    assert "bridge check: mean w/(1+w), log" in page
    assert "fresh draws contradict the log-probs" in page


def test_the_cost_in_memory_is_that_of_the_draws() -> None:
    """A log of many prompts leaves sums of those with draws only."""
    _, fresh = world(fresh_prompts=5)
    sums = LoggedSums(read_fresh(read_log(fresh), "p", logger="logger", role="prompt_id"))
    for start in range(0, 100_000, 10_000):
        keys = np.repeat(np.arange(start, start + 10_000), 2)
        sums.add(keys, np.full(keys.size, BASE), np.full(keys.size, BASE), None)
    assert sums.side().units == 100_000
    assert sums.sums.shape == (4, 5)
    assert len(sums.partial) <= 20  # two per batch
