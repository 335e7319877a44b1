"""A log is written whole or not at all, in encodings that decode fast, and always the same for the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pope_fast.errors import PopeError
from pope_fast.log.writing import ROW_GROUP_ROWS, write_log


@pytest.fixture(scope="module")
def table() -> pa.Table:
    n = ROW_GROUP_ROWS + 1000
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "prompt_id": np.arange(n) // 8,
            "target_logprob/new": rng.normal(size=n),
            "a.b": rng.normal(size=n).astype(np.float32),
            "target_token_logprobs/new": pa.array([[0.5, -1.5]] * n, pa.list_(pa.float32())),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=3 * n)), 3),
            "sampling": pa.array([{"temperature": 0.5, "top_k": 3}] * n),
            "prompt": pa.array([[{"role": "user", "content": "hello"}]] * n),
            "label": pa.array(["yes", "no"] * (n // 2)).dictionary_encode(),
            "nothing": pa.nulls(n),
            "map": pa.array([[("a", 0.5)]] * n, pa.map_(pa.string(), pa.float64())),
        },
        metadata={b"mine": b"stays", b"ours": b"old"},
    )


def test_rows_types_and_metadata_survive(table: pa.Table, tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.parquet", table, metadata={b"ours": b"new"})
    back = pq.read_table(path)
    assert back.schema.metadata == {b"mine": b"stays", b"ours": b"new"}
    assert back.replace_schema_metadata(None).equals(table.replace_schema_metadata(None))


def test_floats_are_split_by_byte_and_nothing_else_is(table: pa.Table, tmp_path: Path) -> None:
    metadata = pq.ParquetFile(write_log(tmp_path / "log.parquet", table)).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [ROW_GROUP_ROWS, 1000]
    split = set()
    for index in range(metadata.num_columns):
        chunk = metadata.row_group(0).column(index)
        assert chunk.compression == "ZSTD"
        floating = chunk.physical_type in ("FLOAT", "DOUBLE")
        assert ("BYTE_STREAM_SPLIT" in chunk.encodings) is floating, chunk.path_in_schema
        assert ("RLE_DICTIONARY" in chunk.encodings) is not floating, chunk.path_in_schema
        if floating:
            split.add(chunk.path_in_schema.partition(".")[0])
    assert split == {"target_logprob/new", "a", "target_token_logprobs/new", "vector", "sampling", "map"}


@pytest.mark.parametrize("batch_rows", [999, 1 << 16, 1 << 20])
def test_the_bytes_do_not_depend_on_the_batches(table: pa.Table, tmp_path: Path, batch_rows: int) -> None:
    whole = write_log(tmp_path / "a.parquet", table).read_bytes()
    batches = table.to_batches(max_chunksize=batch_rows)
    assert write_log(tmp_path / "b.parquet", iter(batches), schema=table.schema).read_bytes() == whole


def test_batches_may_bring_their_schema(table: pa.Table, tmp_path: Path) -> None:
    path = write_log(tmp_path / "a.parquet", iter(table.slice(0, 100).to_batches()))
    assert pq.read_table(path).num_rows == 100
    empty = write_log(tmp_path / "b.parquet", [], schema=table.schema)
    assert pq.read_table(empty).num_rows == 0
    with pytest.raises(PopeError, match="nothing to write"):
        write_log(tmp_path / "c.parquet", [])


def test_widths_are_brought_to_the_schema(tmp_path: Path) -> None:
    schema = pa.schema([("n", pa.int64()), ("s", pa.large_string())])
    batches = [
        pa.record_batch({"n": pa.array([1], pa.int32()), "s": ["a"]}),
        pa.record_batch({"n": pa.array([2], pa.int32()), "s": ["b"]}),
    ]
    assert pq.read_table(write_log(tmp_path / "a.parquet", batches, schema=schema)).schema.equals(schema)


def test_a_failure_leaves_the_old_file(table: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    path.write_bytes(b"old")

    def batches() -> Iterator[pa.RecordBatch]:
        yield table.slice(0, 10).to_batches()[0]
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        write_log(path, batches(), schema=table.schema)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["log.parquet"]


def test_the_source_may_be_the_target(table: pa.Table, tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.parquet", table)
    with pq.ParquetFile(path) as opened:
        write_log(path, opened.iter_batches(1000), schema=table.schema)
    assert pq.read_table(path).equals(table)


def test_a_place_that_cannot_be_written(table: pa.Table, tmp_path: Path) -> None:
    with pytest.raises(PopeError, match=r"cannot write .*nowhere.*No such file"):
        write_log(tmp_path / "nowhere" / "log.parquet", table)
    with pytest.raises(PopeError, match="cannot write"):
        write_log(tmp_path, table.slice(0, 1))
    assert list(tmp_path.iterdir()) == []
