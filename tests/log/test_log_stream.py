"""Streaming: cuts change nothing, only needed columns are read, and the reading thread never stays behind."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
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

from pope_fast import _core
from pope_fast.errors import PopeError
from pope_fast.log import read_log
from pope_fast.log.readahead import read_ahead
from pope_fast.log.sources import rebatch

TABLE = make_table(prompts=60)


def state_of(log: Any, **options: Any) -> _core.State:
    """The state of an evaluation, which is to be the same bits however the log was cut."""

    def start() -> _core.State:
        return _core.State(["near", "far"], (0.0, 1.0), has_cluster=True, has_group=True)

    def step(state: _core.State, batch: Any) -> None:
        state.update(
            batch.unit_key,
            batch.behavior_logprob,
            [batch.target_logprob["near"], batch.target_logprob["far"]],
            batch.reward,
            cluster=batch.cluster,
            group=batch.group,
            first_row=batch.first_row,
        )

    state: _core.State = log.fold(start, step, **options)
    return state


def summaries(state: _core.State) -> str:
    """Every number of the evaluation, in full precision."""
    snapshot = state.snapshot()
    return repr([snapshot.summary(policy) for policy in ("near", "far")])


@settings(max_examples=25, deadline=None)
@given(
    row_group=st.integers(1, 200),
    batch_rows=st.integers(1, 200),
    files=st.lists(st.integers(1, 179), max_size=3, unique=True),
)
def test_cuts_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, row_group: int, batch_rows: int, files: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    edges = [0, *sorted(files), TABLE.num_rows]
    for i, (start, stop) in enumerate(itertools.pairwise(edges)):
        pq.write_table(TABLE.slice(start, stop - start), folder / f"{i}.parquet", row_group_size=row_group)
    log = read_log(folder)
    expected = read_all(read_log(TABLE))
    batches = list(log.batches(batch_rows=batch_rows))
    assert max(map(len, batches)) <= batch_rows
    arrays = joined(batches)
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values)
    assert state_of(log, batch_rows=batch_rows).to_bytes() == state_of(read_log(TABLE)).to_bytes()


def test_scattering_changes_nothing() -> None:
    shuffled = TABLE.take(np.random.default_rng(0).permutation(TABLE.num_rows))
    expected = summaries(state_of(read_log(TABLE)))
    with pytest.warns(match="scattered"):
        assert summaries(state_of(read_log(shuffled), batch_rows=17)) == expected
    log = read_log(shuffled, memory_limit=2000)
    with pytest.warns(match="scattered"):
        assert summaries(state_of(log, batch_rows=17)) == expected


def test_large_row_groups_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pope_fast.log.parquet.BATCH_BYTES", 2000)
    pq.write_table(TABLE, tmp_path / "log.parquet")
    log = read_log(tmp_path / "log.parquet")
    sizes = [batch.num_rows for batch in log.reader._read_file(log.reader.files.files[0], ["reward"], 1000)]  # type: ignore[attr-defined]
    assert sum(sizes) == TABLE.num_rows
    for name, values in read_all(read_log(TABLE)).items():
        np.testing.assert_array_equal(read_all(log)[name], values)


class _Spy:
    """A source that notes the columns that are asked for."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.asked: list[list[str]] = []

    def read(self, columns: Any, batch_rows: int) -> Any:
        self.asked.append(list(columns))
        return self.source.read(columns, batch_rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


def test_only_needed_columns_are_read() -> None:
    log = read_log(make_table(prompt=["text"] * 120, notes=["unused"] * 120))
    spy = _Spy(log.reader)
    log.reader = spy  # type: ignore[assignment]
    list(log.batches(["cluster"], policies=["far"]))
    assert spy.asked == [
        ["prompt_id"],
        ["prompt_id", "behavior_logprob", "target_logprob/far", "reward", "cluster"],
    ]
    spy.asked.clear()
    log.reward_range()
    assert spy.asked == [["reward"]]
    spy.asked.clear()
    list(log.batches(["cluster"], policies=["far"]))  # known by now to be contiguous
    assert len(spy.asked) == 1


def test_plain_columns_are_views_of_arrow_memory() -> None:
    table = make_table().combine_chunks()
    batch = next(iter(read_log(table).batches()))
    for role, column in [
        ("unit_key", "prompt_id"),
        ("behavior_logprob", "behavior_logprob"),
        ("reward", "reward"),
        ("cluster", "cluster"),
    ]:
        address = table.column(column).chunk(0).buffers()[1].address
        assert batch.arrays()[role].__array_interface__["data"][0] == address


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), max_size=20), batch_rows=st.integers(1, 40))
def test_rebatching_keeps_rows(sizes: list[int], batch_rows: int) -> None:
    edges = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
    batches = [pa.record_batch({"x": np.arange(start, stop)}) for start, stop in itertools.pairwise(edges)]
    out = list(rebatch(batches, batch_rows))
    assert all(0 < batch.num_rows <= batch_rows for batch in out)
    assert [x for batch in out for x in batch.column("x").to_pylist()] == list(range(sum(sizes)))


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pope-read-ahead"]


def test_read_ahead_gives_all_items_and_ends() -> None:
    assert list(read_ahead(range(100))) == list(range(100))
    assert list(read_ahead([])) == []
    assert reading_threads() == []


def test_read_ahead_works_ahead() -> None:
    made: list[int] = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            if i == 2:
                third.set()
            yield i

    iterator = read_ahead(items(), depth=1)
    assert next(iterator) == 0
    assert third.wait(10)  # one is ready and one in the making, without being asked for
    iterator.close()  # type: ignore[attr-defined]
    assert len(made) < 10


def test_errors_come_after_the_items_before_them() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    iterator = read_ahead(items())
    assert next(iterator) == 1
    with pytest.raises(KeyError, match="broken"):
        next(iterator)
    assert reading_threads() == []


@pytest.mark.parametrize("wait", [0.0, 0.05])
def test_closing_early_ends_the_thread_and_its_generator(wait: float) -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    iterator = read_ahead(items())
    next(iterator)
    time.sleep(wait)
    iterator.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    assert reading_threads() == []


def test_an_error_of_the_consumer_ends_the_thread() -> None:
    log = read_log(TABLE)
    iterator = log.batches(batch_rows=5)
    next(iterator)
    with pytest.raises(KeyboardInterrupt):
        iterator.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert reading_threads() == []


def test_fold_ends_the_thread_after_an_error() -> None:
    def step(state: list[int], batch: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_log(TABLE).fold(list, step, batch_rows=5)
    assert reading_threads() == []


def test_two_passes_at_once() -> None:
    log = read_log(TABLE)
    left, right = log.batches(batch_rows=7), log.batches(batch_rows=11)
    rewards: tuple[list[float], list[float]] = ([], [])
    for a, b in zip(left, right, strict=False):
        rewards[0].extend(a.reward)
        rewards[1].extend(b.reward)
    expected = TABLE.column("reward").to_pylist()
    for seen in rewards:
        assert seen == expected[: len(seen)]


def test_bad_batch_size() -> None:
    with pytest.raises(PopeError, match="batch_rows"):
        read_log(TABLE).batches(batch_rows=0)


ABANDONED = """
import sys
import pope_fast
iterator = pope_fast.read_log(sys.argv[1]).batches(batch_rows=3)
next(iterator)
print("done", flush=True)
"""


def test_an_abandoned_iterator_does_not_keep_the_interpreter_from_ending(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "log.parquet", row_group_size=3)
    command = [sys.executable, "-c", ABANDONED, str(tmp_path / "log.parquet")]
    # The time limit ends a run that hangs; one that works is far from it.
    run = subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert run.stdout.split() == [b"done"]
    assert run.stderr == b""
