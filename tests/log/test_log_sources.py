"""One log through every door must give the same arrays."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from log_tables import make_table, read_all

from pope_fast.errors import PopeError, SchemaError
from pope_fast.log import read_log, validate

TABLE = make_table()


def json_lines(table: pa.Table) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in table.to_pylist())


def csv_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    return sink.getvalue().to_pybytes()


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert set(left) == set(right)
    for name, values in left.items():
        np.testing.assert_array_equal(values, right[name], err_msg=name)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return read_all(read_log(TABLE))


def test_a_table_gives_its_own_values(expected: dict[str, np.ndarray]) -> None:
    assert expected["unit_key"].dtype == np.int64
    assert expected["cluster"].dtype == np.int32
    for role, column in [
        ("unit_key", "prompt_id"),
        ("cluster", "cluster"),
        ("reward", "reward"),
        ("behavior_logprob", "behavior_logprob"),
        ("target_logprob/far", "target_logprob/far"),
    ]:
        np.testing.assert_array_equal(expected[role], TABLE.column(column).to_numpy())


@pytest.mark.parametrize("name", ["log.parquet", "log.pq", "LOG.PARQUET"])
@pytest.mark.parametrize("row_group_size", [7, 1000])
def test_parquet(tmp_path: Path, expected: dict[str, np.ndarray], name: str, row_group_size: int) -> None:
    pq.write_table(TABLE, tmp_path / name, row_group_size=row_group_size)
    for path in (tmp_path / name, str(tmp_path / name), [tmp_path / name]):
        log = read_log(path)
        assert log.num_rows == TABLE.num_rows
        same(read_all(log), expected)


def test_parquet_without_a_telling_name(tmp_path: Path, expected: dict[str, np.ndarray]) -> None:
    pq.write_table(TABLE, tmp_path / "part-0001")
    same(read_all(read_log(tmp_path / "part-0001")), expected)
    (tmp_path / "notes").write_text("nothing")
    with pytest.raises(PopeError, match="does not tell the format"):
        read_log(tmp_path / "notes")


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "jsonl.gz", "jsonl.zst", "jsonl.bz2"])
def test_json_lines(tmp_path: Path, expected: dict[str, np.ndarray], suffix: str) -> None:
    path = tmp_path / f"log.{suffix}"
    compression = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}.get(suffix.rpartition(".")[2])
    with pa.output_stream(str(path), compression=compression) as stream:
        stream.write(json_lines(TABLE))
    log = read_log(path)
    assert log.num_rows is None
    same(read_all(log), expected)
    assert log.num_rows == TABLE.num_rows
    assert sorted(log.group_labels.values()) == ["a", "b", "c"]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv"])
def test_csv(tmp_path: Path, expected: dict[str, np.ndarray], suffix: str) -> None:
    data = csv_bytes(TABLE)
    if suffix == "tsv":
        data = data.replace(b",", b"\t")
    path = tmp_path / f"log.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    same(read_all(read_log(path)), expected)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_format_of_a_name_without_suffix(tmp_path: Path, expected: dict[str, np.ndarray], kind: str) -> None:
    path = tmp_path / "log"
    if kind == "parquet":
        pq.write_table(TABLE, path)
    else:
        path.write_bytes(json_lines(TABLE) if kind == "jsonl" else csv_bytes(TABLE))
    same(read_all(read_log(path, format=kind)), expected)  # type: ignore[arg-type]


def parts(folder: Path, pieces: int = 4) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    edges = np.linspace(0, TABLE.num_rows, pieces + 1).astype(int)
    paths = []
    for i in range(pieces):
        paths.append(folder / f"part-{i}.parquet")
        pq.write_table(TABLE.slice(edges[i], edges[i + 1] - edges[i]), paths[-1])
    return paths


def test_folder_glob_list_and_filesystem(tmp_path: Path, expected: dict[str, np.ndarray]) -> None:
    paths = parts(tmp_path / "log")
    (tmp_path / "log" / "_SUCCESS").write_text("")
    (tmp_path / "log" / ".hidden.parquet").write_text("")
    (tmp_path / "log" / "README.md").write_text("")
    local = pyarrow.fs.LocalFileSystem()
    inside = pyarrow.fs.SubTreeFileSystem(str(tmp_path), local)
    for log in (
        read_log(tmp_path / "log"),
        read_log(f"{tmp_path}/log/part-*.parquet"),
        read_log(f"{tmp_path}/**/*.parquet"),
        read_log(f"{tmp_path}/log/part-[0-3].parquet"),
        read_log(paths),
        read_log("log", filesystem=inside),
        read_log("log/part-?.parquet", filesystem=inside),
        read_log("**/part-[0-3].parquet", filesystem=inside),
        read_log([f"log/part-{i}.parquet" for i in range(4)], filesystem=inside),
        read_log(f"file://{tmp_path}/log"),
        read_log(f"file://{tmp_path}/log/*.parquet"),
    ):
        assert log.num_rows == TABLE.num_rows
        same(read_all(log), expected)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_text_files_from_a_filesystem(tmp_path: Path, expected: dict[str, np.ndarray], kind: str) -> None:
    data = json_lines(TABLE) if kind == "jsonl" else csv_bytes(TABLE)
    (tmp_path / f"log.{kind}.gz").write_bytes(gzip.compress(data))
    inside = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    same(read_all(read_log(f"log.{kind}.gz", filesystem=inside)), expected)


def test_an_fsspec_filesystem(expected: dict[str, np.ndarray]) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    with memory.open("/pope/log.parquet", "wb") as file:
        pq.write_table(TABLE, file)
    same(read_all(read_log("/pope/log.parquet", filesystem=memory)), expected)
    same(read_all(read_log("memory://pope/log.parquet")), expected)
    assert read_log("/pope/log.parquet", filesystem=memory).fingerprint()


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_hive_partitions_become_columns(tmp_path: Path, kind: str) -> None:
    table = TABLE.drop_columns(["cluster", "group"])
    for i, (cluster, group) in enumerate([(3, "x%2Fy"), (11, "z")]):
        folder = tmp_path / f"cluster={cluster}" / f"group={group}"
        folder.mkdir(parents=True)
        piece = table.slice(60 * i, 60)
        if kind == "parquet":
            pq.write_table(piece, folder / "part.parquet")
        else:
            data = json_lines(piece) if kind == "jsonl" else csv_bytes(piece)
            (folder / f"part.{kind}").write_bytes(data)
    logs = [read_log(tmp_path), read_log(f"{tmp_path}/*/*/*.{kind}")]
    if kind == "parquet":
        inside = pyarrow.fs.SubTreeFileSystem(str(tmp_path.parent), pyarrow.fs.LocalFileSystem())
        logs.append(read_log(tmp_path.name, filesystem=inside))
    for log in logs:
        arrays = read_all(log)
        # Folders are read in the order of their names: "cluster=11" comes before "cluster=3".
        np.testing.assert_array_equal(arrays["cluster"], [11] * 60 + [3] * 60)
        labels = [log.group_labels[key] for key in arrays["group"].tolist()]
        assert labels == ["z"] * 60 + ["x/y"] * 60


def test_a_null_partition_is_a_missing_value(tmp_path: Path) -> None:
    folder = tmp_path / "cluster=__HIVE_DEFAULT_PARTITION__"
    folder.mkdir()
    pq.write_table(TABLE.drop_columns(["cluster"]), folder / "a.parquet")
    with pytest.raises(SchemaError, match="null"):
        read_all(read_log(tmp_path))


def _hf() -> Any:
    return pytest.importorskip("datasets").Dataset(TABLE)


def _hf_with_indices() -> Any:
    back = pytest.importorskip("datasets").Dataset(TABLE.take(np.arange(TABLE.num_rows)[::-1]))
    return back.select(range(TABLE.num_rows - 1, -1, -1))


def _polars() -> Any:
    return pytest.importorskip("polars").from_arrow(TABLE)


def _pandas() -> Any:
    pytest.importorskip("pandas")
    return TABLE.to_pandas()


FRAMES: dict[str, Callable[[], Any]] = {
    "record batch": lambda: TABLE.combine_chunks().to_batches()[0],
    "polars": _polars,
    "polars lazy": lambda: _polars().lazy(),
    "pandas": _pandas,
    "duckdb": lambda: pytest.importorskip("duckdb").from_arrow(TABLE),
    "reader": lambda: TABLE.to_reader(max_chunksize=11),
    "dict": lambda: {name: TABLE.column(name).to_numpy() for name in TABLE.column_names},
    "datasets": _hf,
    "datasets with indices": _hf_with_indices,
    "datasets split": lambda: pytest.importorskip("datasets").DatasetDict({"train": _hf()}),
    "datasets stream": lambda: _hf().to_iterable_dataset(),
    "tiny chunks": lambda: pa.Table.from_batches(TABLE.to_batches(max_chunksize=1)),
}


@pytest.mark.parametrize("kind", list(FRAMES))
def test_objects_in_memory_twice(expected: dict[str, np.ndarray], kind: str) -> None:
    source = FRAMES[kind]()
    log = read_log(source)
    for _ in range(2):
        arrays = read_all(log)
        if kind in ("polars", "polars lazy", "pandas", "dict", "duckdb"):
            arrays["cluster"] = arrays["cluster"].astype(np.int32)
        same(arrays, expected)
    assert sorted(log.group_labels.values()) == ["a", "b", "c"]
    assert len(log.fingerprint()) == 32


def test_large_streams_go_to_a_file_that_is_removed(tmp_path: Path, expected: dict[str, np.ndarray]) -> None:
    log = read_log(TABLE.to_reader(max_chunksize=11), memory_limit=4000, temp_dir=tmp_path)
    for _ in range(2):
        same(read_all(log), expected)
        assert [path.suffix for path in tmp_path.iterdir()] == [".arrow"]
    assert log.num_rows == TABLE.num_rows
    del log
    assert list(tmp_path.iterdir()) == []


def test_a_failing_stream_is_a_clean_error() -> None:
    def batches() -> Any:
        yield TABLE.to_batches()[0]
        raise OSError("the other end hung up")

    log = read_log(pa.RecordBatchReader.from_batches(TABLE.schema, batches()))
    with pytest.raises(PopeError, match="hung up"):
        read_all(log)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.parquet", "no such file or folder"),
        ("nowhere/*.parquet", "no Parquet, JSONL or CSV file matches"),
        ([], "empty list"),
        (3, "cannot read a log from"),
        (object(), "cannot read a log from"),
        ({"a": [1, 2], "b": [1]}, "cannot be read as a table"),
    ],
)
def test_sources_that_are_none(source: Any, message: str) -> None:
    with pytest.raises(PopeError, match=message):
        read_log(source)


def test_mistakes_around_paths(tmp_path: Path) -> None:
    with pytest.raises(PopeError, match="no Parquet, JSONL or CSV file in the folder"):
        read_log(tmp_path)
    pq.write_table(TABLE, tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_bytes(json_lines(TABLE))
    with pytest.raises(PopeError, match="several formats"):
        read_log(tmp_path)
    with pytest.raises(PopeError, match="unknown format"):
        read_log(tmp_path / "a.parquet", format="xml")  # type: ignore[arg-type]
    with pytest.raises(PopeError, match="for paths"):
        read_log(TABLE, format="csv")
    with pytest.raises(PopeError, match="memory_limit"):
        read_log(TABLE, memory_limit=0)
    with pytest.raises(PopeError, match="temp_dir"):
        read_log(TABLE, temp_dir=tmp_path / "none")
    with pytest.raises(PopeError, match="cannot reach"):
        read_log("gopher://x/y.parquet")


def test_several_splits_are_ambiguous() -> None:
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset(TABLE)
    with pytest.raises(PopeError, match="several splits"):
        read_log(datasets.DatasetDict({"train": part, "test": part}))


def test_truncated_parquet(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    pq.write_table(TABLE, whole)
    data = whole.read_bytes()
    for size in (0, 3, len(data) // 2, len(data) - 1):
        cut = tmp_path / "cut.parquet"
        cut.write_bytes(data[:size])
        with pytest.raises(SchemaError, match="not a whole Parquet file"):
            read_log(cut)


def test_damaged_pages(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    rng = np.random.default_rng(0)
    pq.write_table(make_table(prompts=3000, reward=rng.random(9000)), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(4).data_page_offset
    data[start : start + 400] = b"\xff" * 400
    path.write_bytes(data)
    with pytest.raises(SchemaError, match="not a whole Parquet file"):
        read_all(read_log(path, reward_range=(0, 1)))


def test_a_second_file_without_a_column(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet")
    pq.write_table(TABLE.drop_columns(["reward"]), tmp_path / "b.parquet")
    with pytest.raises(SchemaError, match=r"no such column in .*b\.parquet") as error:
        read_all(read_log(tmp_path, unit="row"))
    assert error.value.column == "reward"


def test_files_may_differ_in_width(tmp_path: Path) -> None:
    pq.write_table(TABLE.slice(0, 60), tmp_path / "a.parquet")
    narrow = TABLE.schema.set(0, pa.field("prompt_id", pa.int32())).set(5, pa.field("cluster", pa.int64()))
    pq.write_table(TABLE.slice(60).cast(narrow), tmp_path / "b.parquet")
    arrays = read_all(read_log(tmp_path))
    np.testing.assert_array_equal(arrays["unit_key"], TABLE.column("prompt_id").to_numpy())
    np.testing.assert_array_equal(arrays["cluster"], TABLE.column("cluster").to_numpy())


def test_errors_name_the_file_and_its_row(tmp_path: Path) -> None:
    paths = parts(tmp_path / "log")
    table = pq.read_table(paths[2])
    values = [*table.column("reward").to_pylist()[:-1], None]
    pq.write_table(table.set_column(4, "reward", pa.array(values, pa.float64())), paths[2])
    with pytest.raises(SchemaError) as error:
        read_all(read_log(tmp_path / "log"))
    assert error.value.row == 89
    assert "row 29 of part-2.parquet" in str(error.value)


def test_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(TABLE, path)
    before = read_log(path).fingerprint()
    assert read_log(path).fingerprint() == before
    os.utime(path, ns=(1, 1))
    assert read_log(path).fingerprint() != before


def test_raw_columns(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "log.parquet")
    log = read_log(tmp_path / "log.parquet")
    rows = pa.Table.from_batches(log.record_batches(["group", "reward"], 50))
    assert rows.equals(TABLE.select(["group", "reward"]))
    with pytest.raises(SchemaError, match="no such column"):
        log.record_batches(["nothing"])


def test_repr_tells_the_source_and_the_policies(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "log.parquet")
    assert repr(read_log(tmp_path / "log.parquet")).endswith("log.parquet', 120 rows, policies: near, far)")


def test_files_of_unlike_columns_are_joined(tmp_path: Path) -> None:
    first = make_table(prompts=2, note=[1] * 6)
    second = make_table(prompts=2, seed=1, note=["x"] * 6, late=pa.array([2**63] * 6, pa.uint64()))
    for name, part in (("a", first), ("b", second)):
        pq.write_table(part, tmp_path / f"{name}.parquet")
    read = read_log(tmp_path).to_arrow()
    assert read["note"].to_pylist() == ["1"] * 6 + ["x"] * 6
    assert read["late"].to_pylist() == [None] * 6 + [2**63] * 6


def test_a_role_that_a_file_lacks_is_no_null(tmp_path: Path) -> None:
    pq.write_table(make_table(prompts=2), tmp_path / "a.parquet")
    pq.write_table(make_table(prompts=2, seed=1, count=[2] * 6), tmp_path / "b.parquet")
    with pytest.raises(SchemaError, match="no such column") as caught:
        list(read_log(tmp_path).batches())
    assert caught.value.column == "count"
    assert not validate(tmp_path).ok


def test_a_list_of_records() -> None:
    records = make_table(prompts=2).to_pylist()
    records[1]["mixed"], records[2]["mixed"], records[5]["late"] = 1, "a", 2**64 - 1
    log = read_log(records)
    assert log.to_arrow()["mixed"].to_pylist() == [None, "1", '"a"', None, None, None]
    assert log.to_arrow()["late"].to_pylist()[5] == 2**64 - 1
    expected = read_all(read_log(make_table(prompts=2)))
    np.testing.assert_array_equal(read_all(log)["reward"], expected["reward"])


def test_the_layout_of_a_downloaded_data_set(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(make_table(prompts=2), tmp_path / "data" / "train-00000-of-00002.parquet")
    pq.write_table(make_table(prompts=3), tmp_path / "data" / "train-00001-of-00002.parquet")
    for name in ("README.md", ".gitattributes", "dataset_infos.json", "log.truth.json"):
        (tmp_path / name).write_text("{}")
    assert read_log(tmp_path).num_rows == 15


def test_http_is_refused_without_a_try() -> None:
    with pytest.raises(PopeError, match="download the log"):
        read_log("https://user:secret@example.org/log.parquet")


def test_a_prompt_of_two_types_is_no_text(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "hello"}]] * 6
    parts = [make_table(prompts=2, prompt=["hello"] * 6), make_table(prompts=2, prompt=messages)]
    with pytest.raises(SchemaError, match="same type") as caught:
        read_log([row for part in parts for row in part.to_pylist()])
    assert caught.value.column == "prompt"
    for name, part in zip("ab", parts, strict=True):
        pq.write_table(part, tmp_path / f"{name}.parquet")
    with pytest.raises(SchemaError, match="same type") as caught:
        read_log(tmp_path).to_arrow()
    assert caught.value.column == "prompt"
