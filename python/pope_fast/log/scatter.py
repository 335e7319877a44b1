"""Bringing the rows of a unit together when a log has them scattered, within a budget of memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pope_fast.errors import PopeError
from pope_fast.log.batches import LogBatch

__all__ = ["gather", "mixed_keys"]

_BITS = 6  # 64 partitions per level: as many files are open at once
_MAX_LEVEL = 64 // _BITS


def mixed_keys(keys: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Mix the bits of keys by the finalizer of splitmix64 (Steele, Lea & Flood 2014), a bijection."""
    z = keys.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def gather(
    batches: Iterable[LogBatch],
    *,
    memory_limit: int,
    temp_dir: str | None = None,
    batch_rows: int = 1 << 20,
) -> Iterator[LogBatch]:
    """Reorder rows so that those of a unit are adjacent; no row is lost.

    Rows come out sorted by the mixed key and, within a unit, in the order of the log: the same sequence
    whatever the memory limit, and so whether or not files were needed.

    Parameters
    ----------
    batches : iterable of LogBatch
        With ``unit_key``.
    memory_limit : int
        Bytes. Up to a quarter of it is sorted at once; more goes through temporary files, partitioned by the
        leading bits of the mixed key (and those that are still too large, by the bits after).
    temp_dir : str, optional
        Where the files lie while the rows are read; they are removed at the end, also after an error.
    batch_rows : int
        Most rows per batch of the result.

    Yields
    ------
    LogBatch
        With ``row_index``, the place of each row in the log, and ``first_row`` counting in the new order.
    """
    budget = max(memory_limit // 4, 1)
    emitted = 0
    for sorted_rows in _sorted_runs(_flat(batches), budget, temp_dir, 0):
        rows = len(sorted_rows["unit_key"])
        order = sorted_rows.pop("__order")
        for start in range(0, rows, batch_rows):
            taken = order[start : start + batch_rows]
            flat = {name: values[taken] for name, values in sorted_rows.items()}
            yield LogBatch.from_arrays(flat, emitted)
            emitted += len(taken)


Flat = dict[str, NDArray[Any]]


def _flat(batches: Iterable[LogBatch]) -> Iterator[Flat]:
    for batch in batches:
        flat = batch.arrays()
        flat.setdefault("row_index", np.arange(batch.first_row, batch.first_row + len(batch), dtype=np.int64))
        yield flat


def _sorted_runs(chunks: Iterator[Flat], budget: int, temp_dir: str | None, level: int) -> Iterator[Flat]:
    """Yield sets of rows with the order that sorts them; no unit is in two sets."""
    held: list[Flat] = []
    size = 0
    for chunk in chunks:
        held.append(chunk)
        size += sum(values.nbytes for values in chunk.values())
        if size > budget and level < _MAX_LEVEL and not _one_unit(held):
            yield from _through_files(held, chunks, budget, temp_dir, level)
            return
    if held:
        rows = {name: np.concatenate([chunk[name] for chunk in held]) for name in held[0]}
        held.clear()
        rows["__order"] = np.argsort(mixed_keys(rows["unit_key"]), kind="stable")
        yield rows


def _one_unit(held: list[Flat]) -> bool:
    """Tell whether all rows belong to one unit, which no partition can split."""
    first = held[0]["unit_key"][0]
    return all(bool((chunk["unit_key"] == first).all()) for chunk in held)


def _through_files(
    held: list[Flat], rest: Iterator[Flat], budget: int, temp_dir: str | None, level: int
) -> Iterator[Flat]:
    with tempfile.TemporaryDirectory(prefix="pope-", dir=temp_dir) as folder:
        paths = [Path(folder) / f"{part:02d}" for part in range(1 << _BITS)]
        files: list[IO[bytes]] = []
        try:
            files.extend(path.open("wb") for path in paths)
            while held:
                _write(held.pop(0), files, level)
            for chunk in rest:
                _write(chunk, files, level)
        except OSError as error:
            raise PopeError(
                f"gathering scattered rows needs temporary files, and {folder} cannot hold them ({error}); "
                "name a folder with more room (temp_dir=), allow more memory (memory_limit=), or sort the log"
            ) from error
        finally:
            for file in files:
                file.close()
        for path in paths:
            if path.stat().st_size:
                yield from _sorted_runs(_read(path), budget, folder, level + 1)
            path.unlink()


def _write(chunk: Flat, files: list[IO[bytes]], level: int) -> None:
    shift = np.uint64(max(64 - _BITS * (level + 1), 0))
    part = ((mixed_keys(chunk["unit_key"]) >> shift) & np.uint64((1 << _BITS) - 1)).astype(np.uint8)
    order = np.argsort(part, kind="stable")
    edges = np.searchsorted(part[order], np.arange((1 << _BITS) + 1))
    for i, file in enumerate(files):
        rows = order[edges[i] : edges[i + 1]]
        if rows.size:
            # Each chunk carries its own types: they may differ between the files of a log.
            np.save(file, np.array(list(chunk)), allow_pickle=False)
            for values in chunk.values():
                np.save(file, values[rows], allow_pickle=False)


def _read(path: Path) -> Iterator[Flat]:
    size = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            names = [str(name) for name in np.load(file, allow_pickle=False)]
            yield {name: np.load(file, allow_pickle=False) for name in names}
