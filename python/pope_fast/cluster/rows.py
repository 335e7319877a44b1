"""The rows of a log, prompt by prompt, in blocks that fit into a cache; scattered rows are brought together first."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast import _core
from pope_fast.errors import PopeError
from pope_fast.log.arrays import as_numpy
from pope_fast.log.arrow_types import Array
from pope_fast.log.batches import unit_keys
from pope_fast.log.feedback_log import FeedbackLog
from pope_fast.log.ranges import empty_log
from pope_fast.log.scatter import mixed_keys

__all__ = ["Block", "Rows"]

#: Rows of a block: the n-grams of so many responses stay in a processor's cache.
BLOCK_ROWS = 2048
_READ_ROWS = 1 << 16
_PARTITION_BITS = 6
_KEY, _ROW = "\0key", "\0row"  # no columns of a user's


@dataclass(frozen=True, slots=True)
class Block:
    """All rows of some prompts.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
        Their places in the log; those of a prompt are side by side, in the order of the log.
    offsets : ndarray of int64, shape (p + 1,)
        ``offsets[i]:offsets[i + 1]`` are the rows of the block's i-th prompt.
    keys : ndarray of int64, shape (p,)
        The prompts' keys.
    columns : dict of str to pyarrow.Array
        What was asked for, n values each.
    """

    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    keys: NDArray[np.int64]
    columns: dict[str, Array]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of rows of each prompt."""
        return np.diff(self.offsets)

    def take(self, prompts: NDArray[np.int64]) -> Block:
        """Return some of the prompts, with all of their rows."""
        sizes = self.sizes[prompts]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        chosen = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1] - self.offsets[prompts], sizes)
        columns = {name: array.take(pa.array(chosen)) for name, array in self.columns.items()}
        return Block(self.rows[chosen], offsets, self.keys[prompts], columns)


class Rows:
    """The rows of a log by unit: one look at the unit's column tells how many there are, and if they are scattered.

    Parameters
    ----------
    log : FeedbackLog
        The log.
    column : str or None
        The column that tells the units (prompts) apart; None takes every row for a unit.
    role : str
        Its role, for errors.
    memory_limit : int
        Bytes. More than a quarter of it in scattered rows goes through temporary files.
    temp_dir : str, optional
        Where those lie.

    Attributes
    ----------
    n_rows, n_units : int
        How many there are; units that are scattered may be counted more than once.
    scattered : bool
        Whether a unit came back after other rows.

    Raises
    ------
    SchemaError
        If there are no rows, or a unit is null.
    """

    def __init__(
        self,
        log: FeedbackLog,
        column: str | None,
        role: str = "prompt_id",
        *,
        memory_limit: int = 1 << 30,
        temp_dir: str | None = None,
    ) -> None:
        self.log = log
        self.column = column
        self._role = role
        self._memory_limit = memory_limit
        self._temp_dir = temp_dir
        self.scattered = False
        self.n_rows = self.n_units = 0
        scan = _core.UnitScan()
        first = column if column is not None else next(iter(log.schema.names), None)
        for batch in log.record_batches([] if first is None else [first], 1 << 20):
            keys = self._keys(batch, self.n_rows)
            if not self.scattered:
                self.scattered = scan.feed(keys) >= 0
            self.n_rows += batch.num_rows
        self.n_units = int(scan.n_units)
        if self.n_rows == 0:
            raise empty_log(log.source)

    def _keys(self, batch: pa.RecordBatch, first_row: int) -> NDArray[np.int64]:
        keys = unit_keys(batch, self.column, self._role, first_row)
        return np.arange(first_row, first_row + batch.num_rows, dtype=np.int64) if keys is None else keys

    def blocks(self, columns: Sequence[str], block_rows: int = BLOCK_ROWS) -> Iterator[Block]:
        """Yield the units in blocks of about ``block_rows`` rows, with the given columns."""
        wanted = list(dict.fromkeys([*([self.column] if self.column is not None else []), *columns]))
        parts = self._read(wanted or self.log.schema.names[:1])
        for part in self._gathered(parts) if self.scattered else _uncut(parts):
            yield from _blocks(part, columns, block_rows)

    def sample(self, columns: Sequence[str], n_rows: int, seed: int) -> Block:
        """Return about ``n_rows`` rows (all if there are no more): whole units, chosen by their keys alone.

        The choice does not depend on the order of the log. Units are sorted by key.
        """
        salt = mixed_keys(np.array([seed], dtype=np.int64))[0]
        share = min(1.0, n_rows / self.n_rows)
        limit = np.uint64(min(int(share * 2.0**64), 2**64 - 1))
        kept: list[Block] = []
        for block in self.blocks(columns):
            marks = mixed_keys((mixed_keys(block.keys) ^ salt).view(np.int64))
            chosen = np.arange(len(marks)) if share == 1.0 else np.flatnonzero(marks <= limit)
            if chosen.size:
                kept.append(block.take(chosen))
        joined = _join(kept, columns)
        return joined.take(np.argsort(joined.keys, kind="stable"))

    def _read(self, columns: Sequence[str]) -> Iterator[_Part]:
        row = 0
        for batch in self.log.record_batches(columns, _READ_ROWS):
            keys = self._keys(batch, row)
            yield _Part(pa.Table.from_batches([batch]), keys, np.arange(row, row + len(keys), dtype=np.int64))
            row += len(keys)

    def _gathered(self, parts: Iterable[_Part]) -> Iterator[_Part]:
        budget = max(self._memory_limit // 4, 1)
        held: list[_Part] = []
        size = 0
        stream = iter(parts)
        for part in stream:
            held.append(part)
            size += part.table.nbytes
            if size > budget:
                break
        else:
            yield _sorted(_joined(held))
            return
        try:
            with tempfile.TemporaryDirectory(prefix="pope-", dir=self._temp_dir) as folder:
                spools = [_Spool(Path(folder) / f"{i:02d}.arrow") for i in range(1 << _PARTITION_BITS)]
                for part in held:
                    _spread(part, spools)
                held.clear()
                for part in stream:
                    _spread(part, spools)
                for spool in spools:
                    partition = spool.read()
                    if partition is not None:
                        yield _sorted(partition)
        except OSError as error:
            raise PopeError(
                f"bringing scattered rows together needs temporary files, and they cannot be written ({error}); name a "
                "folder with more room (temp_dir=), allow more memory (memory_limit=), or sort the log by prompt"
            ) from error


@dataclass(frozen=True, slots=True)
class _Part:
    table: pa.Table
    keys: NDArray[np.int64]
    rows: NDArray[np.int64]

    def take(self, order: NDArray[np.int64]) -> _Part:
        return _Part(self.table.take(order), self.keys[order], self.rows[order])

    def slice(self, start: int, stop: int) -> _Part:
        return _Part(self.table.slice(start, stop - start), self.keys[start:stop], self.rows[start:stop])


def _joined(parts: Sequence[_Part]) -> _Part:
    # The files of a log may differ in the width of a type.
    table = pa.concat_tables([part.table for part in parts], promote_options="permissive")
    return _Part(table, np.concatenate([part.keys for part in parts]), np.concatenate([part.rows for part in parts]))


def _sorted(part: _Part) -> _Part:
    """Sort by the mixed key; rows of a unit stay in the order of the log."""
    return part.take(np.argsort(mixed_keys(part.keys), kind="stable"))


def _uncut(parts: Iterable[_Part]) -> Iterator[_Part]:
    """Cut a stream anew, where units end."""
    held: list[_Part] = []
    for part in parts:
        if held and held[-1].keys[-1] != part.keys[0]:
            yield _joined(held)
            held = []
        changes = np.flatnonzero(part.keys[1:] != part.keys[:-1])
        if changes.size == 0:
            held.append(part)
            continue
        last = int(changes[-1]) + 1
        yield _joined([*held, part.slice(0, last)])
        held = [part.slice(last, len(part.keys))]
    if held:
        yield _joined(held)


def _blocks(part: _Part, columns: Sequence[str], block_rows: int) -> Iterator[Block]:
    edges = np.concatenate([[0], np.flatnonzero(part.keys[1:] != part.keys[:-1]) + 1, [len(part.keys)]])
    start = 0
    while start < len(edges) - 1:
        stop = max(start + 1, int(np.searchsorted(edges, edges[start] + block_rows, side="right")) - 1)
        low, high = int(edges[start]), int(edges[stop])
        cut = part.slice(low, high)
        arrays = {name: _one_chunk(cut.table.column(name)) for name in columns}
        yield Block(cut.rows, (edges[start : stop + 1] - low).astype(np.int64), part.keys[edges[start:stop]], arrays)
        start = stop


def _one_chunk(column: Any) -> Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _join(blocks: Sequence[Block], columns: Sequence[str]) -> Block:
    if not blocks:
        return Block(np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.int64), {})
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([block.sizes for block in blocks]))]).astype(np.int64)
    tables = [pa.table(block.columns) for block in blocks] if columns else []
    joined = pa.concat_tables(tables, promote_options="permissive") if columns else None
    return Block(
        np.concatenate([block.rows for block in blocks]),
        offsets,
        np.concatenate([block.keys for block in blocks]),
        {} if joined is None else {name: _one_chunk(joined.column(name)) for name in columns},
    )


class _Spool:
    """Rows of one partition, in a file; every chunk carries its own types."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, part: _Part) -> None:
        names = [*part.table.column_names, _KEY, _ROW]
        arrays = [*part.table.columns, pa.chunked_array([pa.array(part.keys)]), pa.chunked_array([pa.array(part.rows)])]
        table = pa.table(dict(zip(names, arrays, strict=True)))
        with self._path.open("ab") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)

    def read(self) -> _Part | None:
        if not self._path.exists():
            return None
        parts = []
        size = self._path.stat().st_size
        with self._path.open("rb") as file:
            while file.tell() < size:
                table = pa.ipc.open_stream(file).read_all()
                keys, rows = (as_numpy(table.column(name)).copy() for name in (_KEY, _ROW))
                parts.append(_Part(table.drop_columns([_KEY, _ROW]), keys, rows))
        self._path.unlink()
        return _joined(parts)


def _spread(part: _Part, spools: Sequence[_Spool]) -> None:
    """Write rows to the files of their partitions, by the leading bits of the mixed key."""
    partition = (mixed_keys(part.keys) >> np.uint64(64 - _PARTITION_BITS)).astype(np.int64)
    order = np.argsort(partition, kind="stable")
    edges = np.searchsorted(partition[order], np.arange(len(spools) + 1))
    for index, spool in enumerate(spools):
        chosen = order[edges[index] : edges[index + 1]]
        if chosen.size:
            spool.write(part.take(chosen))
