"""Finished shards are whole, known by what they were made with, and belong to one run at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pope_fast.errors import PopeError, PopeWarning
from pope_fast.score import workers
from pope_fast.score.files import is_locked, lock_file, write_synced
from pope_fast.score.plan import Plan, make_plan
from pope_fast.score.store import DiskStore, Job, MemoryStore, Part
from pope_fast.score.workers import Workers, find_workers

KEY = {"the model": "m", "versions": {"torch": "2"}}
COLUMN = "target_logprob/a/b c"


@pytest.fixture
def plan() -> Plan:
    rng = np.random.default_rng(0)
    prompts = [[1, int(p)] for p in rng.integers(0, 9, 40)]
    completions = [rng.integers(0, 50, rng.integers(1, 6)).tolist() for _ in prompts]
    return make_plan(prompts, completions, token_budget=16, share_prompt=False)


def part_of(plan: Plan, batch: int, bad: int | None = None) -> Part:
    """Log-probs that tell pair and token: -(pair + token / 100)."""
    pairs = plan[batch].pairs
    lengths = np.where(pairs == bad, 0, plan.completion_lengths[pairs])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    token = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    logprobs = -(np.repeat(pairs, lengths) + token / 100).astype(np.float32)
    return Part((batch,), pairs, offsets, logprobs, {bad: "no"} if bad is not None and bad in pairs else {})


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "scored.parquet"


@pytest.fixture
def opened(output: Path) -> Iterator[DiskStore]:
    store = DiskStore(output, flush_seconds=0.0)
    store.open()
    yield store
    store.close()


def shards(output: Path) -> list[Path]:
    return sorted(output.with_name(f"{output.name}.parts").rglob("*.arrow"))


def check(job: Job, plan: Plan, tokens: bool = True) -> None:
    scores = job.collect(plan, tokens=tokens)
    lengths = plan.completion_lengths
    expected = [
        sum(np.float32(-(pair + token / 100)).astype(float) for token in range(length))
        for pair, length in enumerate(lengths.tolist())
    ]
    np.testing.assert_allclose(scores.sums, expected, rtol=1e-14)
    assert scores.errors == {}
    if tokens:
        assert scores.offsets is not None
        assert scores.logprobs is not None
        assert (np.diff(scores.offsets) == lengths).all()
        assert (np.floor(-scores.logprobs + 1e-4) == np.repeat(np.arange(plan.n_pairs), lengths)).all()
    else:
        assert scores.logprobs is None


@pytest.mark.parametrize("order", [1, -1])
def test_memory_and_disk_give_pairs_in_order_of_their_ids(plan: Plan, opened: DiskStore, order: int) -> None:
    for store in (MemoryStore(), opened):
        job = store.job(COLUMN, KEY, {})
        assert store.share(job.missing(plan)) == list(range(len(plan)))
        for batch in list(range(len(plan)))[::order]:
            job.add(part_of(plan, batch))
        job.flush()
        assert job.missing(plan) == []
        assert store.left_over(job, plan) == []
        check(job, plan)
        check(job, plan, tokens=False)


def test_errors_of_pairs_are_kept(plan: Plan, opened: DiskStore) -> None:
    for store in (MemoryStore(), opened):
        job = store.job(COLUMN, KEY, {})
        for batch in range(len(plan)):
            job.add(part_of(plan, batch, bad=3))
        job.flush()
        scores = job.collect(plan, tokens=True)
        assert scores.errors == {3: "no"}
        assert np.flatnonzero(np.isnan(scores.sums)).tolist() == [3]
        assert scores.offsets is not None
        assert np.diff(scores.offsets)[3] == 0


def test_what_was_flushed_is_there_for_the_next_run(plan: Plan, output: Path) -> None:
    first = DiskStore(output, flush_seconds=0.0)
    first.open()
    job = first.job(COLUMN, KEY, {"budget": 16})
    for batch in (0, 2, 3):
        job.add(part_of(plan, batch))
    first.close()
    second = DiskStore(output, flush_seconds=3600.0)
    second.open()
    assert second.entry(COLUMN) == {"key": KEY, "facts": {"budget": 16}}
    assert second.entry("target_logprob/other") is None
    job = second.job(COLUMN, KEY, {"budget": 16})
    rest = job.missing(plan)
    assert rest == [batch for batch in range(len(plan)) if batch not in (0, 2, 3)]
    for batch in rest:
        job.add(part_of(plan, batch))
    assert len(shards(output)) == 3  # Held back until it is time, or the end.
    job.flush()
    assert len(shards(output)) == 4
    check(job, plan)
    second.close()


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ({**KEY, "the model": "n"}, r"the model \(m before, n now\)"),
        ({**KEY, "versions": {"torch": "3"}}, "versions"),
        ({**KEY, "the tokenizer": "t"}, r"the tokenizer \(null before, t now\)"),
    ],
)
def test_other_inputs_are_refused_and_named(plan: Plan, output: Path, key: dict[str, Any], named: str) -> None:
    store = DiskStore(output, flush_seconds=0.0)
    store.open()
    store.job(COLUMN, KEY, {}).add(part_of(plan, 0))
    with pytest.raises(PopeError, match=named) as caught:
        store.job(COLUMN, key, {})
    assert "--restart" in str(caught.value)
    assert COLUMN in str(caught.value)
    assert len(shards(output)) == 1
    store.close()
    again = DiskStore(output)
    again.open(restart=True)
    assert shards(output) == []
    assert again.job(COLUMN, key, {}).missing(plan) == list(range(len(plan)))
    again.close()


def test_jobs_do_not_mix(plan: Plan, opened: DiskStore) -> None:
    one, two = opened.job("target_logprob/a", KEY, {}), opened.job("target_logprob/b", KEY, {})
    one.add(part_of(plan, 0))
    assert two.missing(plan) == list(range(len(plan)))


def test_shards_of_other_inputs_are_not_taken_for_these(plan: Plan, opened: DiskStore, output: Path) -> None:
    opened.job(COLUMN, KEY, {}).add(part_of(plan, 0))
    # Another process of a launch may have an older manifest before it than its first process writes.
    (opened.folder / "manifest.json").unlink()
    job = opened.job(COLUMN, {**KEY, "the model": "n"}, {})
    assert job.missing(plan) == list(range(len(plan)))
    assert len(shards(output)) == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_shard_is_scored_again(plan: Plan, opened: DiskStore, output: Path, damage: str) -> None:
    job = opened.job(COLUMN, KEY, {})
    for batch in range(len(plan)):
        job.add(part_of(plan, batch))
    path = shards(output)[1]
    data = bytearray(path.read_bytes())
    if damage == "flip":
        part = part_of(plan, 1)
        at = data.index(part.logprobs.tobytes())
        data[at + 1] ^= 1
    path.write_bytes({"cut": data[: len(data) // 2], "flip": data, "empty": b""}[damage])
    again = opened.job(COLUMN, KEY, {})
    with pytest.warns(PopeWarning, match="damaged"):
        assert again.missing(plan) == [1]
    assert not path.exists()
    again.add(part_of(plan, 1))
    check(again, plan)


def test_half_written_files_are_cleared_away(plan: Plan, output: Path) -> None:
    store = DiskStore(output, flush_seconds=0.0)
    store.open()
    store.job(COLUMN, KEY, {}).add(part_of(plan, 0))
    store.close()
    left = [
        output.with_name(f".{output.name}.123.tmp"),
        store.folder / ".manifest.json.123.tmp",
        shards(output)[0].with_name(".00000001-00000001-0.arrow.123.tmp"),
    ]
    for path in left:
        path.write_bytes(b"half")
    other = output.with_name(".another.parquet.123.tmp")
    other.write_bytes(b"of another run")
    store.open()
    assert not any(path.exists() for path in left)
    assert other.exists()
    assert store.job(COLUMN, KEY, {}).missing(plan) == list(range(1, len(plan)))
    store.close()


def test_an_output_that_exists_is_not_replaced_unasked(plan: Plan, output: Path) -> None:
    output.write_bytes(b"days of work")
    store = DiskStore(output, flush_seconds=0.0)
    with pytest.raises(PopeError, match="--overwrite"):
        store.open()
    assert not store.folder.exists()
    store.open(overwrite=True)
    store.job(COLUMN, KEY, {}).add(part_of(plan, 0))
    store.close()
    store.open()  # The run that was allowed to is continued.
    store.remove()
    store.close()
    assert not store.folder.exists()
    assert output.read_bytes() == b"days of work"


def test_leftovers_of_a_finished_run_are_not_continued(plan: Plan, output: Path) -> None:
    store = DiskStore(output, flush_seconds=0.0)
    store.open()
    store.job(COLUMN, KEY, {}).add(part_of(plan, 0))
    (store.folder / "manifest.json").unlink()  # As if it was killed while removing the folder.
    store.close()
    store.open()
    assert shards(output) == []
    store.close()


@pytest.mark.parametrize("text", ["{", '{"format": 0, "jobs": {}}'])
def test_a_manifest_that_cannot_be_read(output: Path, text: str) -> None:
    store = DiskStore(output)
    store.open()
    (store.folder / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(PopeError, match="--restart"):
        store.entry(COLUMN)
    store.close()
    store.open(restart=True)
    assert store.entry(COLUMN) is None
    store.close()


HOLD = """
import sys, time
from pathlib import Path
from pope_fast.score.store import DiskStore
store = DiskStore(Path(sys.argv[1]), rank=int(sys.argv[2]), world=2)
store.open()
print("locked", flush=True)
time.sleep(60)
"""


def holding(output: Path, rank: int = 0) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(output), str(rank)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    return process


def test_two_runs_on_one_output_exclude_each_other_and_death_frees_it(output: Path) -> None:
    process = holding(output)
    store = DiskStore(output)
    try:
        with pytest.raises(PopeError, match=f"process {process.pid}"):
            store.open()
        other = DiskStore(output.with_name("other.parquet"))
        other.open()
        other.close()
    finally:
        process.kill()
        process.communicate()
    store.open()
    store.close()


def test_locks_end_when_they_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    lock = lock_file(path)
    assert lock is not None
    assert lock_file(path) is None
    assert is_locked(path)
    lock.close()
    assert not is_locked(path)


def test_processes_share_batches_and_the_first_takes_over_from_the_dead(plan: Plan, output: Path) -> None:
    stores = [DiskStore(output, rank=rank, world=2, flush_seconds=0.0) for rank in (0, 1)]
    stores[0].open()
    jobs = [stores[0].job(COLUMN, KEY, {})]
    process = holding(output, rank=1)
    shares = [store.share(range(len(plan))) for store in stores]
    assert sorted(shares[0] + shares[1]) == list(range(len(plan)))
    assert abs(len(shares[0]) - len(shares[1])) <= 1
    for batch in shares[0]:
        jobs[0].add(part_of(plan, batch))
    found: list[list[int]] = []
    waiter = threading.Thread(target=lambda: found.append(stores[0].left_over(jobs[0], plan)))
    waiter.start()
    waiter.join(0.6)
    assert waiter.is_alive()  # The other one may still be at it.
    process.kill()
    process.communicate()
    waiter.join(30)
    assert found == [shares[1]]
    for batch in found[0]:
        jobs[0].add(part_of(plan, batch))
    assert stores[0].left_over(jobs[0], plan) == []
    check(jobs[0], plan)
    stores[0].close()


def test_another_process_sees_what_the_first_noted_and_when_it_is_done(plan: Plan, output: Path) -> None:
    first, other = (DiskStore(output, rank=rank, world=2) for rank in (0, 1))
    first.open()
    other.open()
    found: list[Any] = []
    waiter = threading.Thread(target=lambda: found.append(other.entry(COLUMN)))
    waiter.start()
    first.job(COLUMN, KEY, {"budget": 7})
    waiter.join(30)
    assert found == [{"key": KEY, "facts": {"budget": 7}}]
    with pytest.raises(PopeError, match="the model"):
        other.job(COLUMN, {**KEY, "the model": "n"}, {})
    other.job(COLUMN, KEY, {"budget": 8})
    assert first.entry(COLUMN) == found[0]  # Only the first one writes.
    waiter = threading.Thread(target=other.wait_for_output)
    waiter.start()
    time.sleep(0.05)
    assert waiter.is_alive()
    first.remove()
    waiter.join(30)
    assert not waiter.is_alive()
    first.close()
    other.close()


def test_another_process_does_not_wait_for_a_dead_first_one(output: Path) -> None:
    first, other = (DiskStore(output, rank=rank, world=2) for rank in (0, 1))
    first.open()
    first.job(COLUMN, KEY, {})
    other.open()
    first.close()
    with pytest.raises(PopeError, match="first process ended"):
        other.entry("target_logprob/later")
    with pytest.raises(PopeError, match="first process ended"):
        other.wait_for_output()
    other.close()


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file"
    write_synced(path, b"one")
    assert path.read_bytes() == b"one"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, full)
    with pytest.raises(PopeError, match="No space left"):
        write_synced(path, b"two")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"one"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(PopeError, match="cannot write"):
        DiskStore(tmp_path / "file" / "scored.parquet").open()


def test_the_manifest_is_readable_by_people(opened: DiskStore) -> None:
    opened.job(COLUMN, KEY, {"budget": 5})
    manifest = json.loads((opened.folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["jobs"][COLUMN]["key"] == KEY


@pytest.mark.parametrize(("failure", "ran"), [(None, ["others"]), ("the output exists", [])])
def test_all_processes_fail_if_the_first_does(
    monkeypatch: pytest.MonkeyPatch, failure: str | None, ran: list[str]
) -> None:
    sent: list[str | None] = []
    received: list[str | None] = []
    for rank in (0, 1):

        @contextmanager
        def messages(rank: int = rank) -> Iterator[Any]:
            yield lambda message: sent.append(message) if rank == 0 else failure

        def first() -> None:
            if failure is not None:
                raise PopeError(failure)

        called: list[str | None] = []
        monkeypatch.setattr(workers, "_messages", messages)
        with pytest.raises(PopeError, match=failure) if failure else nullcontext():
            Workers(rank, 2).first_then_all(first, lambda called=called: called.append("others"))
        received += called
    assert sent == [failure]
    assert received == ran


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, (0, 1)), ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)), ({"WORLD_SIZE": "1"}, (0, 1))],
)
def test_a_launcher_says_which_process_this_is(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[int, int]
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
        if name in environment:
            monkeypatch.setenv(name, environment[name])
    assert find_workers() == expected


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "2"}, {"WORLD_SIZE": "x"}])
def test_a_launcher_that_says_half_of_it(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    monkeypatch.delenv("RANK", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PopeError, match="WORLD_SIZE"):
        find_workers()
