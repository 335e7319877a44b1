"""Where finished log-probs are kept: in memory, or in a folder beside the output from which a killed run continues.

On disk, a job (one column) has a folder of shards. A shard holds some whole batches of the job's plan; it is written to
a temporary name, synced and renamed, so a shard that is there is whole. The manifest says what was scored with what;
a run that would mix other scores in is refused. Locks are those of the operating system: they end with their process.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pope_fast import _core
from pope_fast.errors import PopeError, PopeWarning
from pope_fast.log.arrays import as_numpy
from pope_fast.score.files import is_locked, locked_folder, write_synced
from pope_fast.score.plan import Plan

__all__ = ["DiskStore", "Job", "MemoryStore", "PairScores", "Part"]

_FORMAT = 1
_META = b"pope_fast.shard"
#: Tokens that are held back at most before they are written (32 MB).
_MOST_TOKENS = 1 << 23
_POLL = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Scores of some pairs of a plan.

    Attributes
    ----------
    batches : tuple of int
        The batches of the plan that they are, whole.
    pairs : int64 array of shape (n,)
    offsets : int64 array of shape (n + 1,)
    logprobs : float32 array of shape (offsets[-1],)
        Of the tokens of pair i: ``logprobs[offsets[i]:offsets[i + 1]]``; none for a pair with an error.
    errors : dict of int to str
        Pairs that could not be scored, and why.
    """

    batches: tuple[int, ...]
    pairs: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float32]
    errors: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[Part]) -> Part:
        """Return several parts as one."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        return cls(
            tuple(batch for part in parts for batch in part.batches),
            np.concatenate([part.pairs for part in parts]),
            np.concatenate(([0], np.cumsum(lengths))),
            np.concatenate([part.logprobs for part in parts]),
            {pair: error for part in parts for pair, error in part.errors.items()},
        )


@dataclass(frozen=True, slots=True, eq=False)
class PairScores:
    """Scores of all pairs of a plan, in the order of their ids.

    Attributes
    ----------
    sums : float64 array of shape (n_pairs,)
        Log-prob of each completion in nats; NaN where there is an error.
    offsets, logprobs
        Those of tokens (float32), as in :class:`Part`; None unless they were asked for.
    errors : dict of int to str
    """

    sums: npt.NDArray[np.float64]
    offsets: npt.NDArray[np.int64] | None
    logprobs: npt.NDArray[np.float32] | None
    errors: Mapping[int, str]


def _gathered(plan: Plan, parts: Iterable[Part], tokens: bool) -> PairScores:
    """Put parts into the order of the pairs' ids."""
    lengths = plan.completion_lengths.copy()
    sums = np.full(plan.n_pairs, np.nan)
    errors: dict[int, str] = {}
    held = []
    for part in parts:
        # NaN, which a model gives when its numbers overflow, has no sum; the pair is left without one.
        wrong = ~(part.logprobs < np.inf)
        scored = np.diff(part.offsets) > 0
        scored[np.searchsorted(part.offsets, np.flatnonzero(wrong), side="right") - 1] = False
        sums[part.pairs[scored]] = _core.sum_tokens(part.offsets, np.where(wrong, 0, part.logprobs))[scored]
        errors.update(part.errors)
        if tokens:
            held.append(part)
    if not tokens:
        return PairScores(sums, None, None, errors)
    lengths[list(errors)] = 0
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    logprobs = np.empty(offsets[-1], np.float32)
    for part in held:
        sizes = np.diff(part.offsets)
        logprobs[np.repeat(offsets[part.pairs] - part.offsets[:-1], sizes) + np.arange(part.logprobs.size)] = (
            part.logprobs
        )
    return PairScores(sums, offsets, logprobs, errors)


class Job:
    """Scores of one column: what is there, what is missing. This one keeps them in memory."""

    def __init__(self) -> None:
        self._parts: dict[int, Part] = {}

    def missing(self, plan: Plan) -> list[int]:
        """Return the batches of the plan that are not scored yet, in order."""
        done = {batch for part in self._parts.values() for batch in part.batches}
        return [batch for batch in range(len(plan)) if batch not in done]

    def add(self, part: Part) -> None:
        """Take finished batches."""
        self._parts[part.batches[0]] = part

    def flush(self) -> None:
        """Make lasting what was taken."""

    def collect(self, plan: Plan, *, tokens: bool) -> PairScores:
        """Return everything, by pair."""
        return _gathered(plan, (self._parts[first] for first in sorted(self._parts)), tokens)


class MemoryStore:
    """Scores that are gone when the process is; for one process."""

    def entry(self, column: str) -> Mapping[str, Any] | None:
        """Return what an earlier run noted of a job: nothing."""
        return None

    def job(self, column: str, key: Mapping[str, Any], facts: Mapping[str, Any]) -> Job:
        """Begin a job."""
        return Job()

    def share(self, batches: Sequence[int]) -> list[int]:
        """Return the batches that are this process's: all."""
        return list(batches)

    def left_over(self, job: Job, plan: Plan) -> list[int]:
        """Return the batches that no other process will score: none that this one has not."""
        return job.missing(plan)


class DiskStore:
    """Scores in a folder beside the output, for one of several processes.

    Parameters
    ----------
    output : Path
        The file that will hold the scored log.
    rank, world : int
        Number of this process among those that share the work; the first one also keeps the manifest.
    flush_seconds : float
        Finished batches are written when the last ones were written so long ago.
    """

    def __init__(self, output: Path, *, rank: int = 0, world: int = 1, flush_seconds: float = 30.0) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")
        self.rank = rank
        self.world = world
        self.flush_seconds = flush_seconds
        self._lock: IO[str] | None = None

    def open(self, *, overwrite: bool = False, restart: bool = False) -> None:
        """Take the lock; as the first process, also clear away what must not be continued.

        Raises
        ------
        PopeError
            If another run has the lock, or the output is there already.
        """
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            if self.rank == 0 and self.output.exists() and not overwrite and not self._manifest_path.exists():
                raise PopeError(f"{self.output} exists. Remedy: give another name, or overwrite=True (--overwrite).")
            self._lock = locked_folder(self.folder, self._lock_name(self.rank), self.output)
            if self.rank == 0:
                self._clean(restart)
        except OSError as error:
            raise PopeError(f"cannot write {error.filename or self.folder}: {error.strerror or error}") from error

    def _clean(self, restart: bool) -> None:
        """Remove half-written files of a killed run, and with ``restart`` all that it finished."""
        for stale in self.output.parent.glob(f".{self.output.name}.*.tmp"):
            stale.unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name.endswith(".tmp"):
                path.unlink()
            elif path.is_dir() and (restart or not self._manifest_path.exists()):
                shutil.rmtree(path)
            elif path.is_dir():
                for stale in path.glob("*.tmp"):
                    stale.unlink()
        if restart:
            self._manifest_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the lock; what was finished stays for the next run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def remove(self) -> None:
        """Remove the folder, when the output is complete."""
        # Without the manifest, the rest is nothing that a later run would continue.
        self._manifest_path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    def _lock_name(self, rank: int) -> str:
        return f"process-{rank}.lock"

    def _manifest(self) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads(self._manifest_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"format": _FORMAT, "jobs": {}}
        except (OSError, ValueError) as error:
            raise PopeError(
                f"{self._manifest_path} cannot be read ({error}). Remedy: score anew with restart=True (--restart)."
            ) from error
        if manifest.get("format") != _FORMAT:
            raise PopeError(
                f"{self.folder} is of another version of pope_fast. Remedy: score anew with restart=True (--restart)."
            )
        return manifest

    def entry(self, column: str) -> Mapping[str, Any] | None:
        """Return what an earlier run noted of a job: ``{"key": ..., "facts": ...}``, None if there was none.

        A process that is not the first waits until the first one has begun the job.
        """
        while True:
            entry: dict[str, Any] | None = self._manifest()["jobs"].get(column)
            if entry is not None or self.rank == 0:
                return entry
            if not self.alive(0):
                raise PopeError("the first process ended before this one; its message says why")
            time.sleep(_POLL)

    def job(self, column: str, key: Mapping[str, Any], facts: Mapping[str, Any]) -> Job:
        """Begin or continue a job.

        Parameters
        ----------
        column : str
            The job's column.
        key : mapping
            What the scores depend on; plain values. A job is continued only with the same.
        facts : mapping
            What a later run may want to know before it loads the model.

        Raises
        ------
        PopeError
            If the job was begun with another key.
        """
        manifest = self._manifest()
        entry = manifest["jobs"].get(column)
        if entry is not None and entry["key"] != json.loads(json.dumps(key)):
            raise self._changed(column, entry["key"], json.loads(json.dumps(key)))
        if self.rank == 0 and (entry is None or entry["facts"] != json.loads(json.dumps(facts))):
            manifest["jobs"][column] = {"key": key, "facts": facts}
            text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
            write_synced(self._manifest_path, text.encode())
        name = hashlib.blake2b(column.encode(), digest_size=8).hexdigest()
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()
        return _DiskJob(self, self.folder / name, digest)

    def _changed(self, column: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> PopeError:
        parts = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
        listed = "; ".join(f"{name} ({_short(before.get(name))} before, {_short(now.get(name))} now)" for name in parts)
        return PopeError(
            f"{self.folder} holds scores of {column!r} from a run with other inputs: {listed}. Remedy: undo the "
            "change, or score anew with restart=True (--restart), or give another output."
        )

    def alive(self, rank: int) -> bool:
        """Tell whether a process still holds its lock."""
        if rank == self.rank:
            return True
        return is_locked(self.folder / self._lock_name(rank))

    def share(self, batches: Sequence[int]) -> list[int]:
        """Return the batches that are this process's."""
        return [batch for batch in batches if batch % self.world == self.rank]

    def left_over(self, job: Job, plan: Plan) -> list[int]:
        """Wait until all batches of a job are scored, or only those of processes that have ended are missing."""
        while missing := job.missing(plan):
            orphans = [batch for batch in missing if not self.alive(batch % self.world) or batch % self.world == 0]
            if orphans:
                # Between the look at the shards and that at the locks the owner may have finished.
                again = set(job.missing(plan))
                if orphans := [batch for batch in orphans if batch in again]:
                    return orphans
            time.sleep(_POLL)
        return []

    def wait_for_output(self) -> None:
        """Wait, as another process than the first, until that one has written the output.

        Raises
        ------
        PopeError
            If it ended without.
        """
        while self._manifest_path.exists():
            if not self.alive(0):
                if self._manifest_path.exists():
                    raise PopeError("the first process ended before the output was written; its message says why")
                return
            time.sleep(_POLL)


class _DiskJob(Job):
    """Scores of one column in a folder of shards."""

    def __init__(self, store: DiskStore, folder: Path, digest: str) -> None:
        super().__init__()
        self._store = store
        self._folder = folder
        self._digest = digest
        self._held: list[Part] = []
        self._flushed = time.monotonic()
        self._known: dict[str, tuple[int, ...]] = {}
        folder.mkdir(exist_ok=True)

    def missing(self, plan: Plan) -> list[int]:
        """Return the batches of the plan that are in no shard, in order."""
        done: set[int] = set()
        for path in self._shards():
            if path.name not in self._known:
                part = self._read(path)
                if part is None:
                    continue
                self._known[path.name] = part.batches
            done.update(self._known[path.name])
        return [batch for batch in range(len(plan)) if batch not in done]

    def add(self, part: Part) -> None:
        """Take finished batches, and write them out now and then."""
        self._held.append(part)
        held = sum(part.logprobs.size for part in self._held)
        if time.monotonic() - self._flushed >= self._store.flush_seconds or held >= _MOST_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write what was taken since the last time as one shard."""
        if self._held:
            part = Part.joined(self._held)
            name = f"{min(part.batches):08d}-{max(part.batches):08d}-{self._store.rank}.arrow"
            _write_shard(self._folder / name, part, self._digest)
            self._known[name] = part.batches
            self._held = []
        self._flushed = time.monotonic()

    def collect(self, plan: Plan, *, tokens: bool) -> PairScores:
        """Return everything, by pair."""

        def parts() -> Iterable[Part]:
            seen: set[int] = set()
            for path in self._shards():
                part = self._read(path)
                # Two processes may have scored one batch, if one of them was taken for dead.
                if part is not None and not seen.issuperset(part.batches):
                    seen.update(part.batches)
                    yield part
            if len(seen) < len(plan):
                raise PopeError(f"shards vanished from {self._folder} while they were read. Remedy: score again.")

        return _gathered(plan, parts(), tokens)

    def _shards(self) -> list[Path]:
        return sorted(self._folder.glob("*.arrow"))

    def _read(self, path: Path) -> Part | None:
        """Read a shard; None if it is damaged (then it is removed) or of another key."""
        try:
            part, digest = _read_shard(path)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            warnings.warn(
                f"{path} is damaged ({error}): it is removed, and its batches are scored again",
                PopeWarning,
                stacklevel=2,
            )
            path.unlink(missing_ok=True)
            return None
        return part if digest == self._digest else None


def _write_shard(path: Path, part: Part, digest: str) -> None:
    errors: Any = pa.array([part.errors.get(pair) for pair in part.pairs.tolist()], pa.string())
    offsets: Any = pa.array(part.offsets)
    logprobs = pa.LargeListArray.from_arrays(offsets, pa.array(part.logprobs))
    table = pa.table({"pair": pa.array(part.pairs), "logprobs": logprobs, "error": errors})
    notes = {"key": digest, "batches": list(part.batches), "sum": _checksum(part)}
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({_META: json.dumps(notes).encode()})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_synced(path, sink.getvalue())


def _read_shard(path: Path) -> tuple[Part, str]:
    with pa.OSFile(str(path), "rb") as file:
        table = pa.ipc.open_file(file).read_all().combine_chunks()
    notes = json.loads((table.schema.metadata or {})[_META])
    logprobs: Any = table["logprobs"].chunk(0)
    pairs = as_numpy(table["pair"])
    errors = {
        int(pair): error for pair, error in zip(pairs, table["error"].to_pylist(), strict=True) if error is not None
    }
    part = Part(tuple(notes["batches"]), pairs, as_numpy(logprobs.offsets), as_numpy(logprobs.values), errors)
    if _checksum(part) != notes["sum"]:
        raise ValueError("its checksum is wrong")
    return part, notes["key"]


def _checksum(part: Part) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in (part.pairs, part.offsets, part.logprobs):
        digest.update(np.ascontiguousarray(array).data)
    digest.update(json.dumps([list(part.batches), sorted(part.errors.items())]).encode())
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 40 else f"{text[:37]}..."
