"""Where rows come from: what every reader of a log can do, and which reader a source needs."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pope_fast.errors import PopeError, SchemaError
from pope_fast.log.arrow_types import Array, DataType

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
    roles : frozenset of str
        The columns that play a role: one of the others that some files lack is null there, one of these is an error.
    """

    description: str
    schema: pa.Schema
    roles: frozenset[str] = frozenset()

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

    def locate(self, row: int) -> str | None:
        """Say where a row lies (file, and row or line in it), None if there is nothing to add."""
        return None


def digest(parts: Iterable[str]) -> str:
    """Return a short hexadecimal digest of some strings."""
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def select(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """Return the columns of a batch in the order asked for."""
    return pa.RecordBatch.from_arrays([batch.column(name) for name in columns], names=list(columns))


def missing_in_file(path: str, column: str) -> SchemaError:
    """Return the error for a column that one of a log's files lacks."""
    return SchemaError(
        f"no such column in {path}", column=column, remedy="all files of a log must have the columns that are read"
    )


def union_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return every column of some files in order of appearance, in types that hold the values of all."""
    first = schemas[0]
    if len(set(first.names)) < len(first.names):
        return first  # a fault that is reported as such
    fields = {field.name: field for field in first}
    for schema in schemas[1:]:
        for field in schema:
            known = fields.setdefault(field.name, field)
            if not known.type.equals(field.type):
                fields[field.name] = known.with_type(common_type(known.type, field.type))
    joined: pa.Schema = pa.schema(list(fields.values())).with_metadata(first.metadata or {})
    return joined


def common_type(one: DataType, other: DataType) -> DataType:
    """Return a type that holds the values of both: text if nothing else does."""
    if pa.types.is_boolean(one) != pa.types.is_boolean(other) and not (
        pa.types.is_null(one) or pa.types.is_null(other)
    ):
        return pa.string()
    try:
        schemas = [pa.schema([("", one)]), pa.schema([("", other)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowException, TypeError):
        return pa.string()


def conform(array: Array, type_: DataType, role: str | None = None) -> Array:
    """Return a column of one file in the log's type, which holds its values exactly.

    Values that have no such type become JSON text, unless the column, named ``role``, plays one.
    """
    if array.type.equals(type_):
        return array
    try:
        return array.cast(type_)
    except pa.ArrowException as error:
        if role is not None:
            raise SchemaError(
                f"{array.type} in one file, another type in the next",
                column=role,
                remedy="give the column the same type in all files",
            ) from error
        values = (None if value is None else json.dumps(value, default=str) for value in array.to_pylist())
        return pa.array(values, pa.string()).cast(type_)


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
