"""A validation reads on after a fault and reports everything that is there and everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from log_tables import make_table, spoiled

from pope_fast.errors import PopeError, SchemaError
from pope_fast.log import Fault, ValidationReport, read_log, validate


def only(report: ValidationReport) -> Fault:
    assert report.n_faults == 1, str(report)
    return report.faults[0]


def test_a_good_log() -> None:
    report = validate(make_table(notes=["x"] * 120))
    assert report.ok
    assert report.complete
    assert (report.n_rows, report.n_prompts, report.n_clusters, report.n_groups) == (120, 40, 4, 3)
    assert report.responses_per_prompt == {"min": 3, "25%": 3, "median": 3, "75%": 3, "max": 3}
    assert report.policies == ("near", "far")
    assert report.columns["reward"] == "reward"
    assert report.other_columns == ("notes",)
    assert report.types["cluster"] == "int32"
    assert report.reward_range is not None
    assert (report.reward_range.low, report.reward_range.high) == (0.0, 1.0)
    text = str(report)
    assert "no faults" in text
    assert "120" in text
    assert "target_logprob/near" in text


def test_responses_count_their_multiplicity() -> None:
    table = make_table(prompts=4, responses=2, count=[1, 1, 2, 2, 3, 3, 4, 4])
    report = validate(table)
    assert report.responses_per_prompt == {"min": 2, "25%": 3.5, "median": 5, "75%": 6.5, "max": 8}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("reward", np.nan, "NaN reward"),
        ("reward", np.inf, "infinite reward"),
        ("reward", -np.inf, "infinite reward"),
        ("behavior_logprob", np.nan, "NaN log-prob"),
        ("behavior_logprob", 0.5, "log-prob 0.5 > 0"),
        ("behavior_logprob", np.inf, "log-prob inf > 0"),
        ("behavior_logprob", -np.inf, "-inf"),
        ("behavior_logprob", -1e9, "mask value"),
        ("target_logprob/far", np.nan, "NaN log-prob"),
        ("target_logprob/far", 1.0, "log-prob 1 > 0"),
        ("target_logprob/far", -1e30, "mask value"),
        ("cluster", None, "null"),
        ("prompt_id", None, "null"),
        ("behavior_logprob", None, "null"),
    ],
)
def test_each_value_fault_has_column_row_and_remedy(column: str, value: Any, message: str) -> None:
    fault = only(validate(spoiled(column, 33, value)))
    assert (fault.column, fault.row, fault.count, fault.rows) == (column, 33, 1, (33,))
    assert message in fault.message
    assert fault.remedy


@pytest.mark.parametrize("value", [0, -1, 1.5, np.nan, np.inf])
def test_counts(value: float) -> None:
    counts = np.ones(120)
    counts[33] = value
    fault = only(validate(make_table(count=counts)))
    assert (fault.column, fault.row) == ("count", 33)


@pytest.mark.parametrize(
    ("column", "value"), [("baseline", np.nan), ("baseline_mean/near", np.inf), ("num_tokens", -1.0)]
)
def test_other_numbers(column: str, value: float) -> None:
    values = np.ones(120)
    values[33] = value
    fault = only(validate(make_table(**{column: values})))
    assert (fault.column, fault.row) == (column, 33)


def test_rounding_above_zero_passes() -> None:
    assert validate(spoiled("behavior_logprob", 3, 5e-5)).ok


def test_rewards_outside_of_the_declared_range() -> None:
    fault = only(validate(make_table(), reward_range=(0.0, 0.9)))
    assert fault.column == "reward"
    assert fault.count > 10
    assert len(fault.rows) == 10
    assert "reward 1 outside of the declared range [0, 0.9]" in fault.message


def test_what_the_kernel_refuses_the_validation_reports() -> None:
    from pope_fast import _core

    for column, value in [
        ("reward", np.nan),
        ("reward", 2.0),
        ("behavior_logprob", -np.inf),
        ("behavior_logprob", 1e-3),
        ("behavior_logprob", -1e7),
        ("target_logprob/near", np.nan),
    ]:
        table = spoiled(column, 61, value)
        log = read_log(table, reward_range=(0.0, 1.0))

        def step(state: Any, batch: Any) -> None:
            targets = list(batch.target_logprob.values())
            state.update(batch.unit_key, batch.behavior_logprob, targets, batch.reward)

        with pytest.raises(SchemaError) as error:
            log.fold(lambda: _core.State(["near", "far"], (0.0, 1.0)), step, [], batch_rows=50)
        fault = only(validate(log))
        assert (error.value.column, error.value.row) == (fault.column, fault.row) == (column, 61)


def test_all_faults_are_found_at_once() -> None:
    table = make_table()
    for name, row, value in [
        ("reward", 5, np.nan),
        ("reward", 6, None),
        ("behavior_logprob", 7, 2.0),
        ("cluster", 8, None),
        ("target_logprob/far", 9, np.nan),
    ]:
        values = table.column(name).to_pylist()
        values[row] = value
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, pa.array(values, table.schema.field(name).type))
    table = table.drop_columns(["prompt_id"]).append_column("group_", pa.array([0.5] * 120))
    report = validate(table, columns={"group": "group_"})
    found = {(fault.column, fault.row) for fault in report.faults}
    assert found == {
        ("reward", 5),
        ("reward", 6),
        ("behavior_logprob", 7),
        ("cluster", 8),
        ("target_logprob/far", 9),
        ("prompt_id", None),
        ("group_", None),
    }
    short = validate(table, columns={"group": "group_"}, max_faults=2)
    assert len(short.faults) == 2
    assert short.n_faults == 7
    assert "... and 5 more" in str(short)


def test_missing_columns() -> None:
    table = make_table().select(["cluster"])
    report = validate(table)
    assert [fault.column for fault in report.faults] == [
        "prompt_id",
        "behavior_logprob",
        "target_logprob",
        "reward",
    ]
    assert report.n_rows == 120
    assert validate(pa.table({"x": [1, 2]})).n_rows == 2


def test_schema_faults_do_not_stop_it() -> None:
    report = validate(make_table(label=[1.0] * 120, score=[1.0] * 120, reward=None))
    assert [fault.message for fault in report.faults] == ["several columns could be the reward: 'label', 'score'"]
    report = validate(make_table(), policies=["near", "near"])
    assert only(report).message == "two policies of one name: 'near'"
    table = make_table()
    doubled = pa.Table.from_arrays([*table.columns, table.column("reward")], [*table.column_names, "reward"])
    assert "duplicate column" in only(validate(doubled)).message


def test_a_text_that_is_no_reward() -> None:
    fault = only(validate(make_table(reward=["good"] * 120)))
    assert (fault.column, fault.row) == ("reward", None)


def test_truncated_parquet(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(make_table(), path)
    path.write_bytes(path.read_bytes()[:-20])
    report = validate(path)
    assert "not a whole Parquet file" in only(report).message
    assert not report.complete
    assert "reading broke off" in str(report)


def test_a_second_file_that_is_damaged(tmp_path: Path) -> None:
    pq.write_table(make_table(), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and nothing else")
    report = validate(tmp_path)
    assert report.n_rows == 120
    assert not report.complete
    assert "b.parquet" in only(report).message


def test_no_such_source_is_no_report() -> None:
    with pytest.raises(PopeError):
        validate("nowhere.parquet")


def test_an_opened_log() -> None:
    log = read_log(make_table(), columns={"cluster": "group"})
    report = validate(log)
    assert report.ok
    assert report.n_clusters == 3
    assert sorted(map(str, log.cluster_labels.values())) == ["a", "b", "c"]


def test_scattered_prompts_are_counted_once() -> None:
    table = make_table().take(np.random.default_rng(0).permutation(120))
    report = validate(table)
    assert report.ok
    assert report.scattered
    assert report.n_prompts == 40
    assert report.responses_per_prompt is not None
    assert report.responses_per_prompt["max"] == 3
    assert any("scattered" in warning for warning in report.warnings)


def test_many_runs_are_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pope_fast.log.validation._COMPACT_RUNS", 10)
    monkeypatch.setattr("pope_fast.log.validation.BATCH_ROWS", 8)
    table = make_table().take(np.random.default_rng(0).permutation(120))
    report = validate(table)
    assert report.n_prompts == 40
    assert report.responses_per_prompt == {"min": 3, "25%": 3, "median": 3, "75%": 3, "max": 3}


def test_one_unit() -> None:
    assert "only one unit" in only(validate(make_table(prompts=1))).message
    assert validate(make_table(prompts=1), unit="row").ok


def test_to_dict_is_json() -> None:
    report = validate(spoiled("reward", 3, np.nan))
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["ok"] is False
    assert plain["faults"][0]["row"] == 3
    assert plain["n_rows"] == 120
    assert plain["reward_range"]["origin"] == "observed"


def test_the_table_lists_faults_with_their_rows() -> None:
    rewards = np.ones(120)
    rewards[[3, 5, 7]] = np.nan
    text = " ".join(str(validate(make_table(reward=rewards))).split())
    assert "1 fault" in text
    assert "column 'reward', row 3: NaN reward" in text
    assert "(3 rows: 3, 5, 7)" in text
    assert "Remedy:" in text


def test_no_line_is_wider_than_a_terminal_should_be() -> None:
    report = validate(make_table(sampling=[{"top_p": 0.5}] * 120, completion=["same"] * 120))
    assert max(map(len, str(report).splitlines())) <= 100
    assert "warning: " in str(report)
