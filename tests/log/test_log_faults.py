"""Whatever keeps rows from being used is refused with column, row and remedy, by reading and validating."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from log_tables import make_table, read_all, spoiled

from pope_fast.errors import SchemaError
from pope_fast.log import read_log, validate

N = 120


def lists(lengths: list[int] | None = None, type_: pa.DataType | None = None) -> pa.Array:
    lengths = [1 + i % 5 for i in range(N)] if lengths is None else lengths
    return pa.array([[np.float16(-0.5)] * length for length in lengths], type_ or pa.list_(pa.float32()))


def refused(table: pa.Table, **options: Any) -> SchemaError:
    """The error that reading raises, after checking that validating reports the same column and row."""
    with pytest.raises(SchemaError) as caught:
        read_all(read_log(table, **options))
    error = caught.value
    report = validate(table, **options)
    assert not report.ok
    assert (error.column, error.row) in [(fault.column, fault.row) for fault in report.faults]
    assert error.remedy
    return error


@pytest.mark.parametrize(
    ("column", "remedy"),
    [
        ("behavior_logprob", "never assumed to be 1"),
        ("target_logprob/near", "target policy"),
        ("reward", "without feedback"),
        ("cluster", "cluster"),
        ("prompt_id", "prompt"),
        ("group", "group"),
    ],
)
@pytest.mark.parametrize("row", [0, 77])
def test_nulls(column: str, remedy: str, row: int) -> None:
    error = refused(spoiled(column, row, None))
    assert (error.column, error.row) == (column, row)
    assert error.message == "missing value (null)"
    assert remedy in (error.remedy or "")


def test_null_counts() -> None:
    counts = [1] * N
    counts[5] = None  # type: ignore[call-overload]
    error = refused(make_table(count=pa.array(counts, pa.int64())))
    assert (error.column, error.row) == ("count", 5)


def test_a_column_of_nulls_alone() -> None:
    error = refused(make_table(reward=pa.nulls(N)))
    assert (error.column, error.row) == ("reward", 0)


def test_a_null_cluster_matters_only_where_clusters_are_asked_for() -> None:
    log = read_log(spoiled("cluster", 3, None))
    assert len(read_all(log, roles=[])["reward"]) == N
    with pytest.raises(SchemaError, match="null"):
        read_all(log, roles=["cluster"])


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("reward", ["good"] * N),
        ("behavior_logprob", ["-1.0"] * N),
        ("target_logprob/near", [True] * N),
        ("cluster", [0.5] * N),
        ("prompt_id", [1.0] * N),
        ("group", [1.5] * N),
        ("count", ["1"] * N),
    ],
)
def test_wrong_types(column: str, values: list[Any]) -> None:
    error = refused(make_table(**{column: values}))
    assert (error.column, error.row) == (column, None)
    assert "wrong type" in error.message


def test_the_error_has_the_name_that_the_user_gave() -> None:
    table = spoiled("reward", 7, None).rename_columns({"reward": "stars"})
    error = refused(table, columns={"reward": "stars"})
    assert error.column == "stars"


def tokens(behavior: pa.Array, target: pa.Array) -> pa.Table:
    return make_table(
        **{
            "behavior_logprob": None,
            "target_logprob/near": None,
            "target_logprob/far": None,
            "behavior_token_logprobs": behavior,
            "target_token_logprobs/new": target,
        }
    )


@pytest.mark.parametrize(
    "type_",
    [
        pa.list_(pa.float32()),
        pa.large_list(pa.float64()),
        pa.list_(pa.float16()),
        pa.list_view(pa.float32()),
        pa.large_list_view(pa.float32()),
    ],
)
def test_token_lists_are_summed(type_: pa.DataType) -> None:
    table = tokens(lists(type_=type_), lists(type_=type_))
    for chunk in (table, table.slice(13)):
        arrays = read_all(read_log(chunk))
        lengths = np.array([1 + i % 5 for i in range(N)][N - chunk.num_rows :])
        for name in ("behavior_logprob", "target_logprob/new"):
            assert arrays[name].dtype == np.float64
            np.testing.assert_array_equal(arrays[name], -0.5 * lengths)
        np.testing.assert_array_equal(arrays["num_tokens"], lengths)
        assert validate(chunk).ok


def test_lists_of_fixed_size() -> None:
    fixed = pa.array([[-0.25, -0.5]] * N, pa.list_(pa.float32(), 2))
    arrays = read_all(read_log(tokens(fixed, fixed)))
    np.testing.assert_array_equal(arrays["behavior_logprob"], [-0.75] * N)
    np.testing.assert_array_equal(arrays["num_tokens"], [2.0] * N)


def test_lists_of_integers_count_as_numbers() -> None:
    whole = pa.array([[-1, -2]] * N)
    np.testing.assert_array_equal(read_all(read_log(tokens(whole, whole)))["behavior_logprob"], [-3.0] * N)


def test_token_lists_of_unequal_length() -> None:
    longer = [1 + i % 5 for i in range(N)]
    longer[42] += 1
    error = refused(tokens(lists(), lists(longer)))
    assert (error.column, error.row) == ("target_token_logprobs/new", 42)
    assert "4 token log-probs, but 3 in 'behavior_token_logprobs'" in error.message


def test_lengths_are_compared_beside_sequence_log_probs() -> None:
    longer = [1 + i % 5 for i in range(N)]
    longer[42] += 1
    table = make_table(
        **{"behavior_token_logprobs": lists(), "target_token_logprobs/new": lists(longer), "group": None}
    )
    error = refused(table)
    assert (error.column, error.row) == ("target_token_logprobs/new", 42)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "missing value (null)"),
        ([-0.5, None, -0.5], "inside the list"),
        ([], "empty list"),
        ([-0.5, float("nan"), -0.5], "NaN"),
        ([-0.5, 0.5, -3.0], "> 0"),
        ([-0.5, float("inf"), -3.0], "> 0"),
    ],
)
@pytest.mark.parametrize("side", ["behavior_token_logprobs", "target_token_logprobs/new"])
def test_faults_inside_token_lists(value: Any, message: str, side: str) -> None:
    rows: list[Any] = [[-0.5] * 3] * N
    rows[31] = value
    bad, good = pa.array(rows, pa.list_(pa.float32())), lists([3] * N)
    table = tokens(bad, good) if side.startswith("behavior") else tokens(good, bad)
    error = refused(table)
    assert (error.column, error.row) == (side, 31)
    assert message in error.message


def test_a_null_before_a_slice_is_none_of_its_rows() -> None:
    rows: list[Any] = [[-0.5] * 3] * N
    rows[3] = [None, -1.0, -1.0]
    table = tokens(pa.array(rows, pa.list_(pa.float32())), lists([3] * N))
    assert len(read_all(read_log(table.slice(6)))["reward"]) == N - 6


def test_minus_infinity_passes_for_targets() -> None:
    rows: list[Any] = [[-0.5] * 3] * N
    rows[31] = [-0.5, -np.inf, -0.5]
    table = tokens(lists([3] * N), pa.array(rows, pa.list_(pa.float32())))
    assert read_all(read_log(table))["target_logprob/new"][31] == -np.inf
    assert validate(table).ok
    assert validate(spoiled("target_logprob/near", 3, -np.inf)).ok


def test_sequence_log_probs_win_over_token_lists() -> None:
    table = make_table(**{"behavior_token_logprobs": lists(), "target_token_logprobs/near": lists()})
    arrays = read_all(read_log(table))
    np.testing.assert_array_equal(arrays["behavior_logprob"], table.column("behavior_logprob").to_numpy())
    np.testing.assert_array_equal(arrays["target_logprob/near"], table.column("target_logprob/near").to_numpy())
    np.testing.assert_array_equal(arrays["num_tokens"], [1 + i % 5 for i in range(N)])


def test_lengths_from_completion_ids_only_where_asked() -> None:
    ids = pa.array([[7] * (1 + i % 4) for i in range(N)])
    log = read_log(make_table(completion_ids=ids))
    assert log.has("num_tokens")
    np.testing.assert_array_equal(read_all(log)["num_tokens"], [1 + i % 4 for i in range(N)])
    assert "num_tokens" not in read_all(log, roles=["cluster"])


def test_baseline_comes_with_its_means() -> None:
    values = np.linspace(0, 1, N).astype(np.float32)
    table = make_table(**{"baseline": values, "baseline_mean/near": values / 2})
    arrays = read_all(read_log(table))
    assert arrays["baseline"].dtype == np.float64
    np.testing.assert_array_equal(arrays["baseline_mean/near"], values / 2)
    assert "baseline_mean/far" not in arrays


def test_the_behavior_policy_scored_again() -> None:
    again = make_table().column("behavior_logprob")
    table = make_table(again=again, **{"target_logprob/aa": again})
    arrays = read_all(read_log(table), aa_policy="again")
    np.testing.assert_array_equal(arrays["aa_logprob"], arrays["behavior_logprob"])
    np.testing.assert_array_equal(read_all(read_log(table), aa_policy="aa")["aa_logprob"], again.to_numpy())
    with pytest.raises(SchemaError, match="A/A"):
        read_log(table).batches(aa_policy="none")


@pytest.mark.parametrize("kind", ["table", "parquet", "jsonl", "csv"])
def test_empty_logs(tmp_path: Path, kind: str) -> None:
    import pyarrow.csv
    import pyarrow.parquet

    empty = make_table().slice(0, 0)
    source: Any = tmp_path / f"log.{kind}"
    if kind == "table":
        source = empty
    elif kind == "parquet":
        pyarrow.parquet.write_table(empty, source)
    elif kind == "jsonl":
        source.write_bytes(b"\n\n")
    else:
        pyarrow.csv.write_csv(empty, source)
    with pytest.raises(SchemaError, match="the log is empty"):
        read_all(read_log(source))
    report = validate(source)
    assert [fault.message for fault in report.faults] == ["the log is empty"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "jsonl.gz"])
def test_files_of_no_bytes(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"log.{kind}").write_bytes(b"")
    with pytest.raises(SchemaError):
        read_log(tmp_path / f"log.{kind}")


def test_fewer_than_two_units() -> None:
    one = make_table(prompts=1, responses=5)
    error = refused(one)
    assert "only one unit" in error.message
    assert len(read_all(read_log(one), unit="row")["reward"]) == 5
    single = make_table(prompts=1, responses=1)
    with pytest.raises(SchemaError, match="only one unit"):
        read_all(read_log(single, unit="row"))
    counted = make_table(prompts=1, responses=1, count=[5])
    assert len(read_all(read_log(counted, unit="row"))["reward"]) == 1
    assert validate(counted, unit="row").ok


def test_rows_are_global(tmp_path: Path) -> None:
    log = read_log(spoiled("reward", 100, None))
    with pytest.raises(SchemaError) as error:
        list(log.batches(batch_rows=16))
    assert error.value.row == 100


def test_kernel_errors_are_located() -> None:
    table = make_table().rename_columns({"target_logprob/near": "mine"})
    log = read_log(table, columns={"target_logprob/near": "mine"})
    batches = list(log.batches(batch_rows=50))
    for role, column in [
        ("target_logprob/near", "mine"),
        ("reward", "reward"),
        ("behavior_logprob", "behavior_logprob"),
    ]:
        error = log.locate(batches[1], SchemaError("bad", column=role, row=4, remedy="do it"))
        assert (error.column, error.row, error.message, error.remedy) == (column, 54, "bad", "do it")
    again = next(iter(log.batches(aa_policy="target_logprob/far", policies=["near"])))
    assert log.locate(again, SchemaError("bad", column="target_logprob/x")).column == "target_logprob/far"
    whole = log.locate(batches[0], SchemaError("bad"))
    assert (whole.column, whole.row) == (None, None)


def test_kernel_errors_about_token_sums_name_the_token_column() -> None:
    log = read_log(tokens(lists(), lists()))
    batch = next(iter(log.batches()))
    found = [
        log.locate(batch, SchemaError("bad", column=role, row=0)).column
        for role in ("behavior_logprob", "target_logprob/new")
    ]
    assert found == ["behavior_token_logprobs", "target_token_logprobs/new"]
