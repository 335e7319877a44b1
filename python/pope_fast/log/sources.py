"""Where rows come from: what every reader of a log can do, and which reader a source needs."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pope_fast.errors import PopeError
from pope_fast.log.arrow_types import DataType

__all__ = ["Source", "open_source", "rebatch"]

#: Batches with fewer rows are joined: a kernel call per handful of rows would cost more than the rows.
MIN_BATCH_ROWS = 1 << 16


class Source(ABC):
    """A log's rows, readable from the start as often as asked.

    Attributes
    ----------
    description : str
        For people.
    schema : pyarrow.Schema
        Every column that is there.
    """

    description: str
    schema: pa.Schema

    @property
    def num_rows(self) -> int | None:
        """Number of rows, None where counting would mean reading."""
        return None

    @abstractmethod
    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order; batches have the columns asked for and at most ``batch_rows`` rows."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a cheap digest that changes when the rows do."""

    def refine(self, types: Mapping[str, DataType]) -> None:
        """Take note of the types that the roles need: text formats only infer theirs."""
        return

    def file_schemas(self) -> list[pa.Schema]:
        """Return the schema of every file with its metadata, the log's own one where there are no files."""
        return [self.schema]

    def bounds(self, column: str) -> tuple[float, float] | None:
        """Return the smallest and largest value from metadata, None if only reading can tell."""
        return None

    def locate(self, row: int) -> str | None:
        """Say where a row lies (file, and row or line in it), None if there is nothing to add."""
        return None


def digest(parts: Iterable[str]) -> str:
    """Return a short hexadecimal digest of some strings."""
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def select(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """Return the columns of a batch in the order asked for."""
    return pa.RecordBatch.from_arrays([batch.column(name) for name in columns], names=list(columns))


def rebatch(batches: Iterable[pa.RecordBatch], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Join small batches and cut large ones, so that none has more than ``batch_rows`` rows."""
    floor = min(MIN_BATCH_ROWS, batch_rows)
    waiting: list[pa.RecordBatch] = []
    rows = 0
    try:
        for batch in batches:
            if batch.num_rows == 0:
                continue
            if waiting and rows + batch.num_rows > batch_rows:
                yield from _joined(waiting, batch_rows)
                waiting, rows = [], 0
            if not waiting and batch.num_rows >= floor:
                yield from _cut(batch, batch_rows)
                continue
            waiting.append(batch)
            rows += batch.num_rows
            if rows >= floor:
                yield from _joined(waiting, batch_rows)
                waiting, rows = [], 0
    except Exception:
        # What was read before a fault is not lost with it: it may hold an earlier fault.
        if waiting:
            yield from _joined(waiting, batch_rows)
        raise
    if waiting:
        yield from _joined(waiting, batch_rows)


def _cut(batch: pa.RecordBatch, batch_rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, batch_rows):
        yield batch.slice(start, batch_rows)


def _joined(batches: list[pa.RecordBatch], batch_rows: int) -> Iterator[pa.RecordBatch]:
    if len(batches) == 1:
        yield from _cut(batches[0], batch_rows)
        return
    if any(batch.schema != batches[0].schema for batch in batches):
        # Files of one log may differ in width of types; they are converted one by one.
        for batch in batches:
            yield from _cut(batch, batch_rows)
        return
    table = pa.Table.from_batches(batches).combine_chunks()
    for batch in table.to_batches(max_chunksize=batch_rows):
        if batch.num_rows:
            yield batch


def open_source(
    source: Any,
    *,
    format: str | None = None,
    filesystem: Any = None,
    memory_limit: int = 1 << 30,
    temp_dir: str | os.PathLike[str] | None = None,
) -> Source:
    """Return the reader for whatever the user gave.

    Parameters
    ----------
    source : path, URI, glob, list of paths, table, data frame, data set, stream or dict of arrays
        Anything with ``__arrow_c_stream__`` will do.
    format, filesystem
        For files.
    memory_limit : int
        Bytes; a one-shot stream larger than a quarter of it is kept on disk.
    temp_dir : path, optional
        Where.

    Raises
    ------
    PopeError
        If the source cannot be read.
    """
    paths = isinstance(source, (str, os.PathLike)) or (
        isinstance(source, (list, tuple)) and all(isinstance(item, (str, os.PathLike)) for item in source)
    )
    if paths:
        from pope_fast.log.files import find_files

        files = find_files(source, format=format, filesystem=filesystem)
        if files.format == "parquet":
            from pope_fast.log.parquet import ParquetSource

            return ParquetSource(files)
        if files.format == "jsonl":
            from pope_fast.log.jsonl import JsonLinesSource

            return JsonLinesSource(files)
        from pope_fast.log.csv import CsvSource

        return CsvSource(files)
    if format is not None or filesystem is not None:
        raise PopeError("format= and filesystem= are for paths; the source is an object in memory")
    from pope_fast.log.tables import open_object

    return open_object(source, memory_limit // 4, None if temp_dir is None else os.fspath(temp_dir))
