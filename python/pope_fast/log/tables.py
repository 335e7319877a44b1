"""Reading what is already in memory: tables, data frames, one-shot streams and Hugging Face data sets."""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pope_fast.errors import PopeError, SchemaError
from pope_fast.log.columns import ROLE_KINDS
from pope_fast.log.sources import Source, digest, rebatch, select

__all__ = ["DatasetSource", "StreamSource", "TableSource", "open_object"]


class TableSource(Source):
    """A table in memory (or mapped into it)."""

    def __init__(self, table: pa.Table, description: str) -> None:
        self.table = table
        self.description = description
        self.schema = table.schema

    @property
    def num_rows(self) -> int | None:
        """Number of rows, None where counting would mean reading."""
        return int(self.table.num_rows)

    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, with the columns asked for."""
        if not columns:
            return iter(())
        return rebatch(self.table.select(list(columns)).to_batches(), batch_rows)

    def fingerprint(self) -> str:
        """Return a cheap digest that changes when the rows do."""
        addresses = [
            str(buffer.address)
            for column in self.table.columns
            for chunk in column.chunks
            for buffer in chunk.buffers()
            if buffer is not None
        ]
        return digest([str(self.schema), str(self.table.num_rows), *addresses])


class StreamSource(Source):
    """A stream that can be read once: kept in memory if it is small, else in a temporary file.

    The first pass over it needs the whole stream, because a second may ask for other columns.
    """

    def __init__(self, reader: pa.RecordBatchReader, description: str, memory: int, temp_dir: str | None) -> None:
        self.description = description
        self.schema = reader.schema
        self._reader: pa.RecordBatchReader | None = reader
        self._memory = memory
        self._temp_dir = temp_dir
        self._kept: list[pa.RecordBatch] = []
        self._path: str | None = None
        self._rows = 0

    @property
    def num_rows(self) -> int | None:
        """Number of rows, None where counting would mean reading."""
        return self._rows if self._reader is None else None

    def _drain(self) -> None:
        """Read the stream to its end, once."""
        if self._reader is None:
            return
        held = 0
        writer: pa.RecordBatchFileWriter | None = None
        try:
            for batch in self._reader:
                if batch.num_rows == 0:
                    continue
                self._rows += batch.num_rows
                held += batch.nbytes
                if writer is None and held <= self._memory:
                    self._kept.append(batch)
                    continue
                if writer is None:
                    writer = self._start_spool()
                    for earlier in self._kept:
                        writer.write_batch(earlier)
                    self._kept = []
                writer.write_batch(batch)
        except (pa.ArrowException, OSError) as error:
            raise PopeError(f"reading {self.description} failed: {error}") from error
        finally:
            if writer is not None:
                writer.close()
            self._reader = None

    def _start_spool(self) -> pa.RecordBatchFileWriter:
        handle, self._path = tempfile.mkstemp(prefix="pope-", suffix=".arrow", dir=self._temp_dir)
        os.close(handle)
        weakref.finalize(self, _remove, self._path)
        return pa.ipc.new_file(self._path, self.schema)

    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, with the columns asked for."""
        self._drain()
        return rebatch((select(batch, columns) for batch in self._batches()), batch_rows)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        if self._path is None:
            yield from self._kept
            return
        with pa.memory_map(self._path) as file:
            reader = pa.ipc.open_file(file)
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)

    def fingerprint(self) -> str:
        """Return a cheap digest that changes when the rows do."""
        return digest([str(self.schema), self.description, str(id(self))])


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.remove(path)


class DatasetSource(Source):
    """A Hugging Face data set, mapped or streamed; its own order of rows is kept."""

    def __init__(self, dataset: Any, description: str) -> None:
        self.description = description
        self._dataset = dataset.with_format("arrow")
        features = dataset.features
        if features is None:
            # A data set streamed from files without declared features tells its types with its first rows.
            first = next(iter(self._dataset.iter(batch_size=1024)), None)
            if first is None:
                raise SchemaError("the log is empty", remedy="check the data set's split and filters")
            self.schema = first.schema
        else:
            self.schema = features.arrow_schema

    @property
    def num_rows(self) -> int | None:
        """Number of rows, None where counting would mean reading."""
        return int(self._dataset.num_rows) if hasattr(self._dataset, "num_rows") else None

    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, with the columns asked for."""
        return rebatch(self._batches(columns, batch_rows), batch_rows)

    def _batches(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        selected = self._dataset.select_columns(list(columns))
        for table in selected.iter(batch_size=batch_rows):
            for batch in table.to_batches():
                yield select(batch, columns)

    def fingerprint(self) -> str:
        """Return a cheap digest that changes when the rows do."""
        return digest([str(self.schema), str(getattr(self._dataset, "_fingerprint", id(self._dataset)))])


def _values(values: list[Any], name: str) -> Any:
    """Return values as a column; where they are of several types, and play no role, as JSON text."""
    for type_ in (None, pa.uint64()):
        try:
            return pa.array(values, type_)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            if name in ROLE_KINDS and type_ is not None:
                raise SchemaError(
                    f"the records do not agree on a type ({error})",
                    column=name,
                    remedy="give every record the same type",
                ) from error
    texts = [None if value is None else json.dumps(value, default=str) for value in values]
    return pa.array(texts, pa.string())


def open_object(source: Any, memory: int, temp_dir: str | None) -> Source:
    """Return the reader for an object in memory.

    Parameters
    ----------
    source : object
        A table, data frame, data set, stream or mapping of columns.
    memory : int
        Bytes of a one-shot stream that are kept in memory; a larger one goes to a file.
    temp_dir : str or None
        Where that file lies.

    Raises
    ------
    PopeError
        If it is none of these.
    """
    library = type(source).__module__.partition(".")[0]
    kind = type(source).__name__
    description = f"{library}.{kind}"
    if isinstance(source, pa.Table):
        return TableSource(source, description)
    if isinstance(source, pa.RecordBatch):
        return TableSource(pa.Table.from_batches([source]), description)
    try:
        if isinstance(source, Mapping) and library == "datasets":
            if len(source) != 1:
                raise PopeError(f"the data set has several splits ({', '.join(source)}); pass one of them")
            return open_object(next(iter(source.values())), memory, temp_dir)
        if isinstance(source, Mapping):
            return TableSource(pa.table(dict(source)), "dict of columns")
        if isinstance(source, (list, tuple)) and source and all(isinstance(row, Mapping) for row in source):
            # Not from_pylist, which takes the names of the first record for those of all.
            names = dict.fromkeys(name for row in source for name in row)
            columns = {name: _values([row.get(name) for row in source], name) for name in names}
            return TableSource(pa.table(columns), f"{len(source):,} records")
        if library == "datasets" and hasattr(source, "with_format"):
            return DatasetSource(source, description)
        if library == "polars" and kind == "LazyFrame":
            source = source.collect()
        if library == "pandas" and not hasattr(source, "__arrow_c_stream__"):
            return TableSource(pa.Table.from_pandas(source, preserve_index=False), description)
        if hasattr(source, "__arrow_c_stream__"):
            if library in ("pandas", "polars"):
                return TableSource(pa.table(source), description)
            # Anything else may be readable only once, or give its rows in another order the second time.
            return StreamSource(pa.RecordBatchReader.from_stream(source), description, memory, temp_dir)
        if hasattr(source, "__arrow_c_array__"):
            return TableSource(pa.Table.from_batches([pa.record_batch(source)]), description)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, PopeError):
            raise
        raise PopeError(f"{description} cannot be read as a table: {error}") from error
    raise PopeError(
        f"cannot read a log from {description}: give a path, or an object with __arrow_c_stream__ (pyarrow, "
        "polars, pandas, DuckDB ...), a Hugging Face data set, a dict of columns or a list of records"
    )
