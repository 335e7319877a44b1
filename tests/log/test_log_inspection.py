"""What a log gives away about how it was made: each sign with its figures, whatever the order of the rows."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pope_fast.errors import PopeError, PopeWarning, SchemaError
from pope_fast.evaluate import evaluate
from pope_fast.log import LogBatch, read_log, validate
from pope_fast.log.inspection import REMEDIES, SEVERITIES, Inspection, Sign
from pope_fast.log.inspection.repeats import prompt_likeness
from pope_fast.log.inspection.rewards import RewardValues, sentinel_signs
from pope_fast.log.inspection.sample import HashSample

N, K = 300, 4
ROWS = N * K
Columns = dict[str, Any]


def right(seed: int = 3) -> Columns:
    """A log that is right."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(30, 300, ROWS)
    behavior = -tokens * rng.uniform(0.5, 1.0, ROWS)
    return {
        "prompt_id": np.repeat(np.arange(N), K),
        "behavior_logprob": behavior,
        "target_logprob/new": behavior + 0.3 * rng.normal(size=ROWS) - 0.045,
        "reward": (rng.random(ROWS) < 0.5).astype(float),
        "cluster": rng.integers(0, 4, ROWS),
        "num_tokens": tokens,
    }


def found(columns: Columns, **options: Any) -> dict[str, Sign]:
    """Validate a log; its findings by code."""
    return {sign.code: sign for sign in validate(pa.table(columns), **options).findings}


def judged(columns: Columns, **options: Any) -> Any:
    """Evaluate a log; its only policy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PopeWarning)
        return evaluate(pa.table(columns), **options)["new"]


def take(columns: Columns, rows: Any) -> Columns:
    return {name: np.asarray(values)[rows] for name, values in columns.items()}


def test_a_right_log_shows_no_sign() -> None:
    assert found(right()) == {}
    assert judged(right(), reward_range=(0, 1)).verdict.findings == ()


# ---- one answer, whatever the order


def batch(columns: Columns, rows: Any, first: int) -> LogBatch:
    part = take(columns, rows)
    return LogBatch(
        unit_key=part["prompt_id"],
        behavior_logprob=part["behavior_logprob"],
        target_logprob={"new": part["target_logprob/new"]},
        reward=part["reward"],
        cluster=part["cluster"],
        num_tokens=part["num_tokens"].astype(float),
        first_row=first,
        row_index=np.asarray(rows, dtype=np.int64),
    )


def many_faults(rows: int = 40_000) -> Columns:
    """A log larger than its sample, with copies, sentinels and zeros."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(30, 300, rows)
    behavior = -tokens * rng.uniform(0.5, 1.0, rows)
    reward = rng.integers(1, 6, rows).astype(float)
    reward[rng.choice(rows, 11, replace=False)] = 99
    behavior[rng.choice(rows, 900, replace=False)] = 0.0
    again = rng.choice(rows, 2_000, replace=False)
    columns = {
        "prompt_id": np.arange(rows) // 4,
        "behavior_logprob": behavior,
        "target_logprob/new": -tokens * rng.uniform(0.5, 1.0, rows),
        "reward": reward,
        "cluster": np.zeros(rows, dtype=np.int64),
        "num_tokens": tokens,
    }
    return take(columns, np.sort(np.concatenate([np.arange(rows), again])))


def signs_of(inspection: Inspection) -> list[Sign]:
    return inspection.signs({"behavior_logprob": "b", "target_logprob/new": "t", "reward": "r"})


@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_signs_depend_on_the_rows_alone(seed: int, means: bool) -> None:
    """Bit for bit: shuffled rows, other batches, and inspections that were merged."""
    columns = many_faults()
    if means:
        columns |= {"behavior_logprob": np.minimum(columns["behavior_logprob"], -20) / columns["num_tokens"]}
    rows = np.arange(len(columns["reward"]))
    whole = Inspection(["new"], prompts=True)
    whole.add(batch(columns, rows, 0))
    expected = signs_of(whole)
    others = {"averaged_log_probs"} if means else {"repeated_rows", "certain_responses"}
    assert {sign.code for sign in expected} == {"sentinel_reward"} | others
    assert len(whole.by_value) <= whole.by_value.capacity < len(rows)

    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(rows)
    edges = np.sort(rng.choice(len(rows), 7, replace=False))
    parts = []
    for part in np.split(shuffled, edges):
        inspection = Inspection(["new"], prompts=True)
        for piece in np.array_split(part, 3):
            inspection.add(batch(columns, piece, 0))
        parts.append(inspection)
    merged = parts[0]
    for other in parts[1:]:
        merged.merge(other)
    assert merged.n_rows == whole.n_rows
    assert signs_of(merged) == expected


def test_a_sample_is_bounded_and_keeps_rows_of_a_key_together() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 3_000, 30_000)
    sample = HashSample(1_000)
    for part in np.array_split(np.arange(30_000), 7):
        sample.add(keys[part], {"key": keys[part]}, int(part[0]))
    rows = sample.rows()
    assert 300 < len(sample) <= 1_000
    values, counts = np.unique(rows["key"], return_counts=True)
    assert all((keys == value).sum() == count for value, count in zip(values, counts, strict=True))
    assert np.array_equal(keys[rows["row"]], rows["key"])


@pytest.mark.parametrize("key", [0, 7, -1])
def test_one_key_with_too_many_rows_leaves_an_empty_sample(key: int) -> None:
    sample = HashSample(100)
    keys = np.full(1_000, key)
    sample.add(keys, {"key": keys}, 0)
    other = HashSample(100)
    other.merge(sample)
    assert sample.rows() == other.rows() == {}
    sample.add(np.arange(50), {"key": np.arange(50)}, 0)
    assert key not in sample.rows().get("key", [])


@pytest.mark.parametrize("different", [2, 31, 33, 5_000])
def test_rewards_are_counted(different: int) -> None:
    rng = np.random.default_rng(different)
    values = rng.permutation(np.concatenate([np.arange(different), rng.integers(0, different, 6_000)])) / 4.0
    expected, first, counts = np.unique(values, return_index=True, return_counts=True)
    parts = []
    for rows in np.array_split(np.arange(len(values)), 5):
        parts.append(RewardValues())
        parts[-1].add(values[rows], int(rows[0]))
    for other in parts[1:]:
        parts[0].merge(other)
    table, complete = parts[0].table()
    assert complete == (different <= 32)
    shown = slice(None) if complete else [0, 1, -2, -1]
    assert list(table) == expected[shown].tolist()
    assert [seen.count for seen in table.values()] == counts[shown].tolist()
    assert [seen.row for seen in table.values()] == first[shown].tolist()


# ---- log-probs that are means


def averaged(columns: Columns, *names: str) -> Columns:
    return columns | {name: columns[name] / columns["num_tokens"] for name in names}


def test_means_of_both_policies() -> None:
    wrong = averaged(right(), "behavior_logprob", "target_logprob/new")
    sign = found(wrong)["averaged_log_probs"]
    assert (sign.severity, sign.quantities, sign.policies) == ("unreliable", (), ("new",))
    assert "both policies grow by 0%" in sign.message
    policy = judged(wrong)
    for estimate in (policy.utility, policy.diversity, policy.value):
        assert estimate.interval is None
        assert estimate.verdict.level == "unreliable"
        assert all(interval is None for interval in estimate.intervals.values())
        assert "means over tokens" in estimate.note


@pytest.mark.parametrize(
    ("name", "whose"), [("behavior_logprob", "the behavior policy"), ("target_logprob/new", "this policy")]
)
def test_means_of_one_policy(name: str, whose: str) -> None:
    sign = found(averaged(right(), name))["averaged_log_probs"]
    assert f"those of {whose} grow by" in sign.message
    assert sign.column == name


def test_only_the_policy_that_is_averaged_is_accused() -> None:
    columns = right()
    two = columns | {"target_logprob/other": columns["target_logprob/new"] / columns["num_tokens"]}
    sign = found(two)["averaged_log_probs"]
    assert sign.policies == ("other",)
    assert str(validate(pa.table(two))).count("other: the log-probs are means") == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PopeWarning)
        evaluation = evaluate(pa.table(two), reward_range=(0, 1))
    assert evaluation["new"].verdict.level == "reliable"
    assert evaluation["other"].utility.interval is None


def test_the_length_of_the_text_tells_as_well_and_without_it_there_is_no_claim() -> None:
    wrong = averaged(right(), "behavior_logprob", "target_logprob/new")
    tokens = wrong.pop("num_tokens")
    assert found(wrong) == {}
    assert "averaged_log_probs" not in {finding.code for finding in judged(wrong).verdict.findings}
    texts = [f"{i} " + "word " * int(0.8 * k) for i, k in enumerate(tokens)]
    assert "length of the text" in found(wrong | {"completion": texts})["averaged_log_probs"].message
    ids = pa.array([np.arange(k) for k in tokens])
    assert "number of tokens" in found(wrong | {"completion_ids": ids})["averaged_log_probs"].message


def test_a_menu_of_texts_has_no_means() -> None:
    """Log-probs of choices do not grow with the length of what is chosen, and are right."""
    rng = np.random.default_rng(2)
    p = rng.dirichlet(np.ones(6), N)
    item = np.array([rng.choice(6, K, p=row) for row in p]).ravel()
    unit = np.repeat(np.arange(N), K)
    columns = right() | {
        "behavior_logprob": np.log(p[unit, item]),
        "target_logprob/new": np.log(p[unit, (item + 1) % 6]),
        "num_tokens": rng.integers(5, 300, (N, 6))[unit, item],
    }
    assert found(columns) == {}


# ---- copies


def test_the_logger_as_its_own_target() -> None:
    columns = right()
    wrong = columns | {"target_logprob/new": columns["behavior_logprob"].copy()}
    sign = found(wrong)["same_column"]
    assert (sign.count, sign.share, sign.row, sign.column) == (ROWS, 1.0, 0, "target_logprob/new")
    assert judged(wrong).verdict.level == "caution"
    mapped = validate(pa.table(columns), policies={"new": "behavior_logprob"}).findings
    assert "both are column 'behavior_logprob'" in mapped[0].message


def test_one_row_that_differs_makes_another_policy() -> None:
    columns = right()
    target = columns["behavior_logprob"].copy()
    target[-1] = np.nextafter(target[-1], 0)
    assert "same_column" not in found(columns | {"target_logprob/new": target})


@pytest.mark.parametrize(
    ("rows", "pair"),
    [
        (np.repeat(np.arange(ROWS), 2), "row 1 repeats row 0"),
        (np.tile(np.arange(ROWS), 2), f"row {ROWS:,} repeats row 0"),
    ],
    ids=["in place", "two files"],
)
def test_every_row_twice(rows: Any, pair: str) -> None:
    wrong = take(right(), rows)
    sign = found(wrong)["repeated_rows"]
    assert (sign.count, sign.share, sign.severity) == (ROWS, 0.5, "unreliable")
    assert sign.quantities == ("diversity",)
    assert "every row is there twice" in sign.message
    assert pair in sign.message
    policy = judged(wrong)
    assert policy.diversity.interval is None
    assert policy.value.interval is None
    assert policy.diversity.verdict.level == "unreliable"
    assert policy.utility.interval is not None


def test_a_file_under_other_prompts() -> None:
    columns = right()
    other = columns | {"prompt_id": columns["prompt_id"] + 10_000}
    wrong = {name: np.concatenate([columns[name], other[name]]) for name in columns}
    sign = found(wrong)["repeated_rows"]
    assert sign.quantities == ()
    assert "of another unit" in sign.message
    assert judged(wrong).utility.interval is None


def test_some_rows_twice() -> None:
    rows = np.sort(np.concatenate([np.arange(ROWS), [17, 17, 90, 400, 801, 1_000]]))
    sign = found(take(right(), rows))["repeated_rows"]
    assert sign.count == 6
    assert sign.row == 18
    assert "row 18 repeats row 17" in sign.message
    few = np.sort(np.concatenate([np.arange(ROWS), [17, 90]]))
    assert found(take(right(), few)) == {}


def test_rows_with_counts_are_no_copies() -> None:
    wrong = take(right(), np.repeat(np.arange(ROWS), 2))
    assert found(wrong | {"count": np.full(2 * ROWS, 3)}) == {}


def short_answers() -> Columns:
    """Draws from ten answers, of which most come again in their prompt."""
    rng = np.random.default_rng(8)
    p = np.exp(-0.5 * np.arange(10))
    p /= p.sum()
    item = rng.choice(10, ROWS, p=p)
    return right() | {
        "behavior_logprob": np.log(p[item]),
        "target_logprob/new": np.log(p[item]) - 0.01 * item,
        "completion": np.array([f"answer {i}" for i in range(10)])[item],
        "num_tokens": 1 + item,
    }


def test_answers_that_come_again_are_right() -> None:
    columns = short_answers()
    assert found(columns) == {}
    assert found({name: values for name, values in columns.items() if name != "completion"}) == {}


def test_answers_of_which_one_was_kept() -> None:
    columns = short_answers()
    keys = [f"{unit} {text}" for unit, text in zip(columns["prompt_id"], columns["completion"], strict=True)]
    _, rows = np.unique(keys, return_index=True)
    wrong = take(columns, np.sort(rows))
    sign = found(wrong)["no_repeats"]
    assert sign.severity == "caution"
    assert "none have the same text" in sign.message
    bare = {name: values for name, values in wrong.items() if name != "completion"}
    assert found(bare)["no_repeats"].severity == "info"
    with pytest.warns(PopeWarning, match="should be alike"):
        evaluate(pa.table(bare))


def test_the_expected_pairs_are_those_of_the_log_probs() -> None:
    columns = short_answers()
    rows = {"unit": columns["prompt_id"], "behavior": columns["behavior_logprob"]}
    likeness = prompt_likeness(rows)
    assert likeness is not None
    p = np.exp(columns["behavior_logprob"]).reshape(N, K)
    assert likeness.expected == pytest.approx((K - 1) / 2 * p.sum())
    item = columns["completion"].reshape(N, K)
    alike = sum(int((item[:, i] == item[:, j]).sum()) for i in range(K) for j in range(i))
    assert likeness.alike == likeness.equal == alike
    assert abs(alike - likeness.expected) < 5 * np.sqrt(likeness.pairs) / 2
    assert likeness.pairs == N * K * (K - 1) / 2


# ---- rewards


@pytest.mark.parametrize(
    ("others", "value", "times", "noticed"),
    [
        ([1, 2, 3, 4, 5], 99, 1, True),
        ([1, 2, 3, 4, 5], -1, 200, True),
        ([1, 2, 3, 4, 5], 0, 200, False),
        ([1, 2, 3, 4, 5], 10, 1, False),
        ([1, 2, 3, 4, 5], 55, 1, True),
        ([0, 1], -1, 1, True),
        ([0, 1], -1, 100, False),
        ([0, 1], 2, 1, False),
        ([0, 1], 99, 1, True),
        ([-1, 1], 0, 3, False),
        ([0, 0.5, 1], -1, 2, True),
        (np.linspace(0, 1, 101), -1, 5, True),
        (np.linspace(0, 1, 101), 999, 1, True),
        (np.linspace(-3, 3, 101), -9, 5, False),
        (np.linspace(0, 100, 101), 255, 1, False),
    ],
)
def test_sentinels(others: Any, value: float, times: int, noticed: bool) -> None:
    rng = np.random.default_rng(4)
    values = rng.choice(np.asarray(others, dtype=float), 2_000)
    rows = np.sort(rng.choice(2_000, times, replace=False))
    values[rows] = value
    seen = RewardValues()
    seen.add(values, 0)
    signs = sentinel_signs(seen, "reward", None)
    assert bool(signs) == noticed
    for sign in signs:
        assert (sign.count, sign.row, sign.share) == (times, rows[0], times / 2_000)
        assert f" {value:g}, the first in row {rows[0]:,}," in sign.message
        assert sentinel_signs(seen, "reward", (min(-10.0, value), value)) == []


def test_two_sentinels() -> None:
    columns = right()
    reward = np.arange(ROWS) % 5 + 1.0
    reward[3], reward[5:9] = -99, 99
    report = validate(pa.table(columns | {"reward": reward}))
    assert [(sign.count, sign.row) for sign in report.findings] == [(1, 3), (4, 5)]
    assert all("between 1 and 5" in sign.message for sign in report.findings)


def test_a_declared_bound_is_meant() -> None:
    columns = right()
    reward = columns["reward"].copy()
    reward[3] = -1
    assert "sentinel_reward" in found(columns | {"reward": reward})
    assert found(columns | {"reward": reward}, reward_range=(-1, 1)) == {}
    assert judged(columns | {"reward": reward}, reward_range=(-1, 1)).verdict.level == "reliable"


# ---- numbers for what is not known


@pytest.mark.parametrize("column", ["behavior_logprob", "target_logprob/new"])
@pytest.mark.parametrize("value", [-9999.0, -99999.0])
def test_numbers_that_stand_for_unknown_are_refused(column: str, value: float) -> None:
    wrong = right()
    wrong[column][[21, 40]] = value
    with pytest.raises(SchemaError, match="stands for 'unknown'") as error:
        evaluate(pa.table(wrong))
    assert (error.value.column, error.value.row) == (column, 21)
    (fault,) = validate(pa.table(wrong)).faults
    assert (fault.column, fault.rows, fault.count) == (column, (21, 40), 2)
    wrong[column][[21, 40]] = value - 0.5
    assert validate(pa.table(wrong)).ok


def test_tokens_that_stand_for_unknown_are_refused() -> None:
    columns = right()
    lists = [[-0.5] * 3 for _ in range(ROWS)]
    lists[9] = [-0.5, -9999.0, -0.5]
    wrong = {name: values for name, values in columns.items() if "logprob" not in name and name != "num_tokens"}
    wrong |= {"behavior_token_logprobs": lists, "target_token_logprobs/new": [[-0.6] * 3] * ROWS}
    with pytest.raises(SchemaError, match="log-prob -9999 at token 1 stands for 'unknown'") as error:
        evaluate(pa.table(wrong))
    assert error.value.row == 9
    assert [fault.rows for fault in validate(pa.table(wrong)).faults] == [(9,)]


@pytest.mark.parametrize("column", ["behavior_logprob", "target_logprob/new"])
def test_zeros_among_unlikely_responses(column: str) -> None:
    wrong = right()
    wrong[column][[8, 9, 300]] = 0.0
    sign = found(wrong)["certain_responses"]
    assert (sign.count, sign.row, sign.column, sign.severity) == (3, 8, column, "caution")
    wrong[column][::10] = 0.0
    assert found(wrong)["certain_responses"].severity == "unreliable"


def test_a_deterministic_logger_is_certain_of_everything() -> None:
    assert found(right() | {"behavior_logprob": np.zeros(ROWS)}) == {}


def test_a_policy_that_gave_no_response() -> None:
    wrong = right() | {"target_logprob/new": np.full(ROWS, -np.inf)}
    with pytest.raises(PopeError, match="says nothing about"):
        evaluate(pa.table(wrong))
    report = validate(pa.table(wrong))
    assert [fault.column for fault in report.faults] == ["target_logprob/new"]
    assert "-inf in every row" in report.faults[0].message


# ---- the sampler's temperature


def scored(temperature: float | None) -> dict[bytes, str]:
    record = {"policy": "behavior", "engine": "transformers", "temperature": temperature}
    return {b"pope_fast.scores": json.dumps({"behavior_logprob": record})}


@pytest.mark.parametrize(
    ("sampled", "noted", "words"),
    [
        ([0.7] * ROWS, 1.0, "temperature 0.7 (column 'sampling'), but the behavior policy was scored at 1"),
        ([0.7, 1.0] * (ROWS // 2), 1.0, "temperature 0.7 to 1 "),
        ([0.7] * ROWS, 0.7, None),
        ([0.7] * ROWS, None, None),
    ],
)
def test_a_temperature_that_scoring_contradicts(sampled: list[float], noted: float, words: str | None) -> None:
    table = pa.table(right() | {"sampling": [{"temperature": t} for t in sampled]})
    table = table.replace_schema_metadata(scored(noted))
    signs = validate(table).findings
    assert [sign.code for sign in signs] == ([] if words is None else ["other_temperature"])
    assert words is None or words in signs[0].message
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PopeWarning)
        codes = {finding.code for finding in evaluate(table)["new"].verdict.findings}
    assert ("other_temperature" in codes) == (words is not None)


def test_two_columns_that_contradict_each_other() -> None:
    columns = right() | {"sampling": [{"temperature": 0.7}] * ROWS, "temperature": np.ones(ROWS)}
    message = found(columns)["other_temperature"].message
    assert "0.7 in column 'sampling'" in message or "1 in column 'temperature'" in message
    assert found(columns | {"temperature": np.full(ROWS, 0.7)}) == {}


# ---- lambda


@pytest.mark.parametrize(
    ("high", "weight", "alone"), [(1, 1, None), (100, 1, "U"), (100, 30, None), (1, 100, "D"), (1, 0, None)]
)
def test_a_lambda_that_does_not_fit_the_reward(high: float, weight: float, alone: str | None) -> None:
    columns = right()
    policy = judged(columns | {"reward": columns["reward"] * high}, reward_range=(0, high), diversity_weight=weight)
    messages = [finding.message for finding in policy.verdict.findings if finding.code == "value_mix"]
    assert len(messages) == (alone is not None)
    if alone is not None:
        assert f"V is all but {alone} alone" in messages[0]
        assert (policy.utility.verdict.level, policy.value.verdict.level) == ("reliable", "caution")


# ---- where it is said


def test_a_validation_says_it_in_words_and_as_data() -> None:
    wrong = take(right(), np.repeat(np.arange(ROWS), 2))
    report = validate(pa.table(wrong))
    assert report.ok
    text = " ".join(str(report).split())
    assert f"unreliable: {report.findings[0].message}. Remedy: {REMEDIES['repeated_rows']} [repeated_rows]" in text
    (record,) = report.to_dict()["findings"]  # type: ignore[misc]
    assert record == report.findings[0].to_dict()
    assert json.loads(json.dumps(record))["count"] == ROWS


def test_faults_hide_the_signs_of_their_rows_only() -> None:
    wrong = take(right(), np.repeat(np.arange(ROWS), 2))
    wrong["reward"][5] = np.nan
    wrong["behavior_logprob"][9] = 0.5
    report = validate(pa.table(wrong))
    assert report.n_faults == 2
    assert not report.findings or report.findings[0].code == "repeated_rows"
    assert validate(pa.table(wrong | {"reward": np.full(2 * ROWS, np.nan)})).n_faults == 2


def test_an_evaluation_finds_what_a_validation_finds_in_scattered_files(tmp_path: Any) -> None:
    columns = many_faults()
    order = np.random.default_rng(1).permutation(len(columns["reward"]))
    table = pa.table(take(columns, order))
    for i, start in enumerate(range(0, len(table), 10_000)):
        pq.write_table(table.slice(start, 10_000), tmp_path / f"{i}.parquet")
    log = read_log(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PopeWarning)
        findings = evaluate(log)["new"].verdict.findings
    signs = validate(tmp_path).findings
    assert len(signs) == 3
    said = {finding.code: finding.message for finding in findings}
    assert all(said[sign.code] == sign.message for sign in signs)


def test_a_sign_is_one_of_those_that_are_documented() -> None:
    assert set(SEVERITIES) == set(REMEDIES)
    with pytest.raises(ValueError, match="never info"):
        Sign("same_column", "info", "...")
    with pytest.raises(KeyError):
        Sign("other", "info", "...")
