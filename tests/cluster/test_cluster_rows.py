"""Rows come prompt by prompt, whole and once, whether the log is sorted, scattered, or larger than memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pope_fast.cluster import rows as rows_module
from pope_fast.cluster.rows import Block, Rows
from pope_fast.errors import SchemaError
from pope_fast.log.arrays import text_hashes
from pope_fast.log.opening import open_log

SIZES = [3, 1, 8, 200, 2, 5, 40, 1, 1, 7]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    prompt = np.repeat([f"p{i}" for i in range(len(SIZES))], SIZES)
    return pa.table({"prompt_id": prompt, "completion": [f"text {i % 90}" for i in range(len(prompt))]})


def shuffled(table: pa.Table, seed: int = 0) -> pa.Table:
    return table.take(np.random.default_rng(seed).permutation(len(table)))


def contents(blocks: list[Block], source: pa.Table) -> dict[str, list[str]]:
    """Prompt -> its texts, checked against the rows that the blocks name."""
    found: dict[str, list[str]] = {}
    prompt, text = source["prompt_id"].to_pylist(), source["completion"].to_pylist()
    for block in blocks:
        texts = block.columns["completion"].to_pylist()
        assert texts == [text[row] for row in block.rows]
        for start, stop in zip(block.offsets[:-1], block.offsets[1:], strict=True):
            names = {prompt[row] for row in block.rows[start:stop]}
            assert len(names) == 1
            assert np.all(np.diff(block.rows[start:stop]) > 0)
            name = names.pop()
            assert name not in found
            found[name] = texts[start:stop]
    return found


@pytest.mark.parametrize("read_rows", [3, 50, 1000])
@pytest.mark.parametrize("block_rows", [1, 16, 10_000])
def test_sorted_rows(table: pa.Table, monkeypatch: pytest.MonkeyPatch, read_rows: int, block_rows: int) -> None:
    monkeypatch.setattr(rows_module, "_READ_ROWS", read_rows)
    rows = Rows(open_log(table), "prompt_id")
    assert (rows.n_rows, rows.n_units, rows.scattered) == (sum(SIZES), len(SIZES), False)
    blocks = list(rows.blocks(["completion"], block_rows))
    found = contents(blocks, table)
    assert [len(texts) for texts in found.values()] == SIZES
    assert np.array_equal(np.concatenate([block.rows for block in blocks]), np.arange(sum(SIZES)))
    assert all(len(block) <= max(block_rows, max(block.sizes)) for block in blocks)


@pytest.mark.parametrize("memory_limit", [1, 4000, 1 << 30])
def test_scattered_rows(table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_limit: int) -> None:
    monkeypatch.setattr(rows_module, "_READ_ROWS", 20)
    mixed = shuffled(table)
    rows = Rows(open_log(mixed), "prompt_id", memory_limit=memory_limit, temp_dir=str(tmp_path))
    assert rows.scattered
    found = contents(list(rows.blocks(["completion"], 16)), mixed)
    assert {name: len(texts) for name, texts in found.items()} == {f"p{i}": size for i, size in enumerate(SIZES)}
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_go_away_when_the_consumer_stops(table: pa.Table, tmp_path: Path) -> None:
    rows = Rows(open_log(shuffled(table)), "prompt_id", memory_limit=1, temp_dir=str(tmp_path))
    blocks = rows.blocks(["completion"], 1)
    next(blocks)
    assert list(tmp_path.iterdir())
    blocks.close()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def test_files_of_one_log_may_differ_in_the_width_of_a_type(table: pa.Table, tmp_path: Path) -> None:
    half = len(table) // 2
    wide = table.set_column(1, "completion", table["completion"].cast(pa.large_string()))
    pq.write_table(table.slice(0, half), tmp_path / "a.parquet")
    pq.write_table(wide.slice(half), tmp_path / "b.parquet")
    for limit in (1, 1 << 30):
        rows = Rows(open_log(str(tmp_path)), "prompt_id", memory_limit=limit)
        assert len(contents(list(rows.blocks(["completion"])), table)) == len(SIZES)


def test_rows_as_units(table: pa.Table) -> None:
    rows = Rows(open_log(table), None, "row")
    blocks = list(rows.blocks(["completion"], 50))
    assert rows.n_units == rows.n_rows == sum(len(block.keys) for block in blocks) == len(table)
    assert all(len(block) <= 50 for block in blocks)


def test_sampled_prompts_do_not_depend_on_the_order_of_the_log(table: pa.Table) -> None:
    samples = []
    for source in (table, shuffled(table, 1), shuffled(table, 2)):
        sample = Rows(open_log(source), "prompt_id").sample(["completion"], 100, seed=5)
        samples.append({name: sorted(texts) for name, texts in contents([sample], source).items()})
    assert samples[0] == samples[1] == samples[2]
    assert 0 < len(samples[0]) < len(SIZES)
    everything = Rows(open_log(table), "prompt_id").sample(["completion"], 10_000, seed=5)
    assert len(everything) == len(table)


def test_sampled_rows_do_not_depend_on_the_order_of_the_log(table: pa.Table) -> None:
    def content(block: Block) -> np.ndarray:
        return text_hashes(block.columns["completion"])

    samples = [
        Rows(open_log(source), None, "row")
        .sample_rows(["completion"], 100, 3, content)
        .columns["completion"]
        .to_pylist()
        for source in (table, shuffled(table, 1))
    ]
    assert samples[0] == samples[1]
    assert 40 < len(samples[0]) < 200


def test_no_rows_and_no_prompt_are_errors(table: pa.Table) -> None:
    with pytest.raises(SchemaError, match="empty"):
        Rows(open_log(table.slice(0, 0)), "prompt_id")
    holed = pa.table({"prompt_id": ["a", None, "b"], "completion": ["x", "y", "z"]})
    with pytest.raises(SchemaError, match=r"column 'prompt_id', row 1: missing value"):
        Rows(open_log(holed), "prompt_id")
