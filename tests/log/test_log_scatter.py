"""Rows of a unit that are scattered come out together; none is lost, whatever the memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_tables import joined, make_table, read_all

from pope_fast.errors import PopeError, PopeWarning, SchemaError
from pope_fast.log import FeedbackLog, LogBatch, ScatteredRowsError, read_log
from pope_fast.log.scatter import gather, mixed_keys


def batch_of(keys: Any, first_row: int = 0) -> LogBatch:
    keys = np.asarray(keys, dtype=np.int64)
    values = np.arange(first_row, first_row + len(keys), dtype=np.float64)
    return LogBatch(
        unit_key=keys,
        behavior_logprob=-values,
        target_logprob={"a/b": (-2 * values).astype(np.float32)},
        reward=values,
        baseline=values + 1,
        baseline_mean={"a/b": values + 2},
        first_row=first_row,
    )


def cut(keys: list[int], edges: list[int]) -> Iterator[LogBatch]:
    for start, stop in zip([0, *edges], [*edges, len(keys)], strict=True):
        if stop > start:
            yield batch_of(keys[start:stop], start)


def check(keys: list[int], arrays: dict[str, np.ndarray]) -> None:
    rows = arrays["row_index"]
    assert sorted(rows.tolist()) == list(range(len(keys)))
    np.testing.assert_array_equal(arrays["unit_key"], np.asarray(keys)[rows])
    np.testing.assert_array_equal(arrays["reward"], rows)
    np.testing.assert_array_equal(arrays["target_logprob/a/b"], -2 * rows)
    np.testing.assert_array_equal(arrays["baseline_mean/a/b"], rows + 2)
    # Every key has one run, and its rows are in the order of the log.
    starts = np.flatnonzero(np.diff(arrays["unit_key"]) != 0)
    assert len(starts) + 1 == len(set(keys))
    within = np.diff(arrays["unit_key"]) == 0
    assert (np.diff(rows)[within] > 0).all()


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 5), min_size=1, max_size=200),
    data=st.data(),
    memory=st.sampled_from([1, 4_000, 1 << 20]),
    batch_rows=st.sampled_from([1, 7, 1000]),
)
def test_no_row_is_lost(keys: list[int], data: Any, memory: int, batch_rows: int) -> None:
    edges = sorted(data.draw(st.lists(st.integers(0, len(keys)), max_size=5)))
    check(keys, joined(gather(cut(keys, edges), memory_limit=memory, batch_rows=batch_rows)))


def test_the_order_does_not_depend_on_memory_or_cuts() -> None:
    keys = np.random.default_rng(0).integers(0, 300, 5000).tolist()
    first = joined(gather([batch_of(keys)], memory_limit=1 << 30))
    assert (np.diff(mixed_keys(first["unit_key"]).astype(object)) >= 0).all()
    for memory, edges in [(1, [2500]), (20_000, [1, 2, 4000]), (100_000, [])]:
        again = joined(gather(cut(keys, edges), memory_limit=memory, batch_rows=777))
        for name, values in first.items():
            np.testing.assert_array_equal(again[name], values)


def test_mixing_is_a_bijection() -> None:
    keys = np.concatenate([np.arange(-5000, 5000), np.array([2**63 - 1, -(2**63)])])
    assert np.unique(mixed_keys(keys)).size == keys.size
    # The first output of splitmix64 seeded with 0.
    assert int(mixed_keys(np.zeros(1, dtype=np.int64))[0]) == 0xE220A8397B1DCDAF


def test_temporary_files_are_removed(tmp_path: Path) -> None:
    keys = np.random.default_rng(0).integers(0, 300, 5000).tolist()
    iterator = gather([batch_of(keys)], memory_limit=1000, temp_dir=str(tmp_path), batch_rows=10)
    next(iterator)
    assert any(tmp_path.iterdir())
    iterator.close()  # type: ignore[attr-defined]
    assert not any(tmp_path.iterdir())


def test_temporary_files_are_removed_after_an_error(tmp_path: Path) -> None:
    def broken() -> Iterator[LogBatch]:
        yield batch_of(range(500))
        yield batch_of(range(500), 500)
        raise SchemaError("bad")

    with pytest.raises(SchemaError, match="bad"):
        list(gather(broken(), memory_limit=1000, temp_dir=str(tmp_path)))
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_a_clean_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pope_fast.log.scatter.np.save", full)
    batches = [batch_of(range(500)), batch_of(range(500), 500)]
    with pytest.raises(PopeError, match="No space left"):
        list(gather(batches, memory_limit=1000, temp_dir=str(tmp_path)))
    assert not any(tmp_path.iterdir())


def scattered_table() -> pa.Table:
    table = make_table(prompts=200)
    return table.take(np.random.default_rng(1).permutation(table.num_rows))


@pytest.mark.parametrize("memory_limit", [1 << 30, 5_000])
@pytest.mark.parametrize("kind", ["table", "parquet", "stream"])
def test_scattered_logs_are_gathered(tmp_path: Path, memory_limit: int, kind: str) -> None:
    table = scattered_table()
    source: Any = {
        "table": table,
        "parquet": tmp_path / "log.parquet",
        "stream": table.to_reader(max_chunksize=50),
    }[kind]
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=70)
    log = read_log(source, memory_limit=memory_limit)
    with pytest.warns(PopeWarning, match="scattered"):
        arrays = read_all(log, batch_rows=64)
    assert log.scattered
    assert len(log.warnings) == 1
    rows = arrays["row_index"]
    assert sorted(rows.tolist()) == list(range(600))
    assert np.count_nonzero(np.diff(arrays["unit_key"])) == 199
    for role, column in [("unit_key", "prompt_id"), ("reward", "reward"), ("cluster", "cluster")]:
        np.testing.assert_array_equal(arrays[role], table.column(column).to_numpy()[rows])
    labels = [log.group_labels[key] for key in arrays["group"].tolist()]
    assert labels == [table.column("group")[row].as_py() for row in rows.tolist()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        again = read_all(log, batch_rows=64)
    np.testing.assert_array_equal(again["row_index"], rows)


def test_rows_as_units_need_no_gathering() -> None:
    log = read_log(scattered_table(), unit="row")
    arrays = read_all(log)
    assert "unit_key" not in arrays
    assert "row_index" not in arrays
    assert not log.scattered


def test_contiguous_logs_keep_their_order(table: pa.Table) -> None:
    log = read_log(table)
    assert "row_index" not in read_all(log)
    assert not log.scattered
    assert log.warnings == []


def test_a_column_as_the_unit() -> None:
    table = make_table(annotator=[f"person {i % 7}" for i in range(120)], session=np.arange(120) // 2)
    log = read_log(table, unit="annotator")
    with pytest.warns(PopeWarning, match="annotator"):
        arrays = read_all(log)
    assert np.count_nonzero(np.diff(arrays["unit_key"])) == 6
    np.testing.assert_array_equal(read_all(read_log(table), unit="session")["unit_key"], np.arange(120) // 2)
    with pytest.raises(SchemaError, match="asked for as the unit"):
        log.batches(unit="nothing")


def fold(log: FeedbackLog, **options: Any) -> tuple[list[LogBatch], int]:
    starts = 0

    def start() -> list[LogBatch]:
        nonlocal starts
        starts += 1
        return []

    return log.fold(start, lambda state, batch: state.append(batch), **options), starts


def test_fold_reads_a_contiguous_log_once(table: pa.Table) -> None:
    batches, starts = fold(read_log(table), batch_rows=50)
    assert starts == 1
    np.testing.assert_array_equal(joined(batches)["reward"], table.column("reward").to_numpy())


def test_fold_starts_again_on_a_scattered_log() -> None:
    table = scattered_table()
    log = read_log(table)
    with pytest.warns(PopeWarning, match="scattered"):
        batches, starts = fold(log, batch_rows=50)
    assert starts == 2
    assert sorted(joined(batches)["row_index"].tolist()) == list(range(600))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fold(log)[1] == 1


def test_fold_locates_the_errors_of_its_steps() -> None:
    def step(state: list[int], batch: LogBatch) -> None:
        first = batch.first_row
        rows = range(first, first + len(batch)) if batch.row_index is None else batch.row_index
        for i, row in enumerate(rows):
            if row == 111:
                raise SchemaError("bad", column="target_logprob/near", row=i)

    for table in (make_table(), make_table().take(np.random.default_rng(2).permutation(120))):
        log = read_log(table)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PopeWarning)
            with pytest.raises(SchemaError) as error:
                log.fold(list, step, batch_rows=20)
        assert (error.value.column, error.value.row) == ("target_logprob/near", 111)


def test_a_unit_that_comes_back_ends_the_iteration_on_request() -> None:
    log = read_log(scattered_table())
    with pytest.raises(ScatteredRowsError, match="came back"):
        list(log.batches(on_scattered="raise"))
    assert log.scattered


def test_nulls_in_scattered_logs_name_the_row_in_the_log() -> None:
    table = scattered_table()
    rewards = table.column("reward").to_pylist()
    rewards[321] = None
    index = table.schema.get_field_index("reward")
    table = table.set_column(index, "reward", pa.array(rewards, pa.float64()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PopeWarning)
        with pytest.raises(SchemaError) as error:
            read_all(read_log(table))
    assert error.value.row == 321
