"""Embeddings in every layout of Arrow come out as one matrix; what is no embedding is refused with its row."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from log_tables import joined, make_table, read_all

from pope_fast.errors import PopeWarning, SchemaError
from pope_fast.log import FeedbackLog, read_log, validate
from pope_fast.log.vectors import rows_per_batch

N, WIDTH = 120, 5
VECTORS = np.random.default_rng(0).normal(size=(N, WIDTH)).astype(np.float32)


def fixed(vectors: np.ndarray, type_: pa.DataType | None = None) -> pa.Array:
    flat = pa.array(vectors.ravel(), type_ or pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def with_vectors(column: Any) -> pa.Table:
    return make_table(embedding=column)


def changed(row: int, value: Any) -> pa.Table:
    rows: list[Any] = VECTORS.tolist()
    rows[row] = value
    return with_vectors(pa.array(rows, pa.list_(pa.float32())))


LAYOUTS = {
    "fixed": fixed(VECTORS),
    "slice of fixed": fixed(np.concatenate([VECTORS[:3], VECTORS]))[3:],
    "list": pa.array(VECTORS.tolist(), pa.list_(pa.float32())),
    "large list": pa.array(VECTORS.tolist(), pa.large_list(pa.float64())),
    "list view": pa.array(VECTORS.tolist(), pa.list_view(pa.float32())),
    "half": fixed(VECTORS.astype(np.float16), pa.float16()),
    "double": fixed(VECTORS.astype(np.float64), pa.float64()),
    "integers": fixed(np.rint(VECTORS * 30).astype(np.int8), pa.int8()),
    "tensor": pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [WIDTH]), fixed(VECTORS)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    table = with_vectors(LAYOUTS[layout])
    found = read_all(read_log(table))["embedding"]
    expected = {"half": VECTORS.astype(np.float16), "integers": np.rint(VECTORS * 30)}.get(layout, VECTORS)
    assert found.shape == (N, WIDTH)
    assert found.dtype == (np.float64 if layout in ("large list", "double", "integers") else np.float32)
    np.testing.assert_array_equal(found, expected)
    assert validate(table).ok


def test_a_matrix_is_a_view_of_the_column() -> None:
    column = fixed(VECTORS)
    (batch,) = read_log(with_vectors(column)).batches()
    assert batch.embedding is not None
    assert batch.embedding.ctypes.data == column.values.buffers()[1].address
    assert batch.nbytes >= VECTORS.nbytes


def test_only_read_when_wanted() -> None:
    log = read_log(with_vectors(fixed(VECTORS)))
    assert log.has("embedding")
    assert "embedding" not in read_all(log, ["cluster"])
    assert not read_log(make_table()).has("embedding")


def test_batches_and_slices() -> None:
    log = read_log(with_vectors(fixed(VECTORS)))
    np.testing.assert_array_equal(joined(log.batches(batch_rows=7))["embedding"], VECTORS)
    (batch,) = log.batches()
    np.testing.assert_array_equal(batch.slice(10, 20).arrays()["embedding"], VECTORS[10:20])


def test_wide_embeddings_make_small_batches() -> None:
    assert rows_per_batch([], 1000) == 1000
    assert rows_per_batch([pa.list_(pa.float32(), 384)], 1 << 20) == (64 << 20) // (384 * 4)
    assert rows_per_batch([pa.list_(pa.float64(), 384)], 1 << 20) == (64 << 20) // (384 * 8)
    assert rows_per_batch([pa.list_(pa.float16())], 1 << 20) == (64 << 20) // (1024 * 4)
    assert rows_per_batch([pa.list_(pa.null()), pa.null()], 10) == 10
    assert rows_per_batch([pa.list_(pa.float64(), 1 << 30)], 1 << 20) == 1


@pytest.mark.parametrize("memory_limit", [1 << 30, 4000])
def test_scattered_prompts(memory_limit: int, tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(N)
    table = with_vectors(fixed(VECTORS)).take(pa.array(order))
    log = read_log(table, memory_limit=memory_limit, temp_dir=str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PopeWarning)
        found = read_all(log)
    np.testing.assert_array_equal(found["embedding"], VECTORS[order][found["row_index"]])


def test_parquet(tmp_path: Path) -> None:
    for i, (name, column) in enumerate(LAYOUTS.items()):
        if name == "list view":
            continue  # Parquet has no such layout
        path = tmp_path / f"{i}.parquet"
        pq.write_table(with_vectors(column), path, row_group_size=50)
        log = read_log(path)
        np.testing.assert_array_equal(read_all(log)["embedding"], read_all(read_log(with_vectors(column)))["embedding"])


def test_json_lines(tmp_path: Path) -> None:
    """Whole numbers in the head of the file do not make the column one of integers."""
    rows = make_table().to_pylist()
    vectors = VECTORS.astype(np.float64)
    vectors[:20] = np.rint(vectors[:20]) + 1.0
    path = tmp_path / "log.jsonl"
    path.write_text(
        "\n".join(json.dumps(row | {"embedding": v}) for row, v in zip(rows, vectors.tolist(), strict=True)) + "\n"
    )
    np.testing.assert_array_equal(read_all(read_log(path))["embedding"], vectors)


def test_another_name() -> None:
    table = make_table(minilm=fixed(VECTORS))
    assert "minilm" in validate(table).other_columns
    found = read_all(read_log(table, columns={"embedding": "minilm"}))
    np.testing.assert_array_equal(found["embedding"], VECTORS)


# What is refused.


def refused(table: pa.Table) -> SchemaError:
    """The error that reading raises, after checking that validating reports the same column and row."""
    with pytest.raises(SchemaError) as caught:
        read_all(read_log(table), batch_rows=50)
    report = validate(table)
    assert (caught.value.column, caught.value.row) in [(fault.column, fault.row) for fault in report.faults]
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("row", [0, 3, 77, N - 1])
def test_lengths_that_differ(row: int) -> None:
    error = refused(changed(row, [1.0, 2.0]))
    if row == 0:
        assert (error.row, error.message) == (1, "an embedding of 5 numbers where earlier rows have 2")
    else:
        assert (error.row, error.message) == (row, "an embedding of 2 numbers where earlier rows have 5")
    assert error.column == "embedding"


@pytest.mark.parametrize("row", [0, 77])
def test_empty_lists(row: int) -> None:
    error = refused(changed(row, []))
    assert (error.row, error.message) == (row, "an empty embedding")


@pytest.mark.parametrize("row", [0, 77])
@pytest.mark.parametrize("layout", ["list", "fixed"])
def test_nulls(layout: str, row: int) -> None:
    rows: list[Any] = VECTORS.tolist()
    rows[row] = None
    type_ = pa.list_(pa.float32(), WIDTH) if layout == "fixed" else pa.list_(pa.float32())
    error = refused(with_vectors(pa.array(rows, type_)))
    assert (error.row, error.message) == (row, "missing value (null)")
    rows[row] = [1.0, 2.0, None, 4.0, 5.0]
    error = refused(with_vectors(pa.array(rows, type_)))
    assert (error.row, error.message) == (row, "missing value (null) inside the embedding, at element 2")


def test_nothing_but_nulls() -> None:
    assert refused(with_vectors(pa.nulls(N))).message == "missing value (null)"
    assert "missing value (null) inside" in refused(with_vectors(pa.array([[None]] * N))).message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, float("nan"), 0.0, 0.0, 0.0], "NaN or infinity in the embedding"),
        ([1.0, float("-inf"), 0.0, 0.0, 0.0], "NaN or infinity in the embedding"),
        ([0.0] * WIDTH, "the embedding is zero, and so has no direction"),
    ],
)
def test_validate_finds_vectors_without_a_direction(value: list[float], message: str) -> None:
    """Reading leaves these to the kernel."""
    report = validate(changed(77, value))
    assert [(f.column, f.row, f.message) for f in report.faults] == [("embedding", 77, message)]


def test_validate_counts_all_of_them() -> None:
    rows: list[Any] = VECTORS.tolist()
    rows[4], rows[9], rows[50], rows[60] = [1.0], [0.0] * WIDTH, None, [0.0] * WIDTH
    report = validate(with_vectors(pa.array(rows, pa.list_(pa.float32()))))
    assert {(f.row, f.count) for f in report.faults} == {(4, 1), (9, 2), (50, 1)}


@pytest.mark.parametrize("column", [["a"] * N, np.arange(N), pa.array([["a"]] * N)])
def test_types_that_cannot_be(column: Any) -> None:
    with pytest.raises(SchemaError, match="lists of numbers, all of one length"):
        read_log(with_vectors(column)).batches()


def test_files_of_other_widths(tmp_path: Path) -> None:
    pq.write_table(with_vectors(fixed(VECTORS)), tmp_path / "a.parquet")
    pq.write_table(with_vectors(fixed(VECTORS[:, :3])), tmp_path / "b.parquet")
    log: FeedbackLog = read_log(str(tmp_path / "*.parquet"))
    with pytest.raises(SchemaError, match="3 numbers where earlier rows have 5") as caught:
        read_all(log)
    assert caught.value.row == N
