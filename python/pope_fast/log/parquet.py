"""Reading Parquet: row group by row group, columns pruned, decoded on all threads.

The metadata and statistics of a column chunk are never asked for: pyarrow's accessors (``RowGroupMetaData.column``,
``ColumnChunkMetaData.statistics``) let the C++ exceptions of a damaged footer through, which end the process. Reading
turns the same exceptions into errors. How large rows are is measured on the first of them, and bounds are read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pope_fast.errors import PopeError, SchemaError
from pope_fast.log.files import FileSet, LogFile
from pope_fast.log.sources import Source, conform, digest, missing_in_file, rebatch, union_schema

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData, ParquetFile

__all__ = ["ParquetSource"]

#: Batches aim at no more decoded bytes than this: token lists make rows of a kilobyte.
BATCH_BYTES = 64 << 20
_PAGE_BUFFER = 8 << 20
_PROBE_ROWS = 1024


class ParquetSource(Source):
    """One or many Parquet files; the log has the columns of all of them."""

    def __init__(self, files: FileSet) -> None:
        self.files = files
        self.description = files.description
        self._metadata: dict[str, FileMetaData] = {}
        self._starts: list[int] | None = None
        schemas = [self._footer(files.files[0]).schema.to_arrow_schema()]
        for file in files.files[1:]:
            with suppress(SchemaError):  # for reading to report, after the rows before it
                schemas.append(self._footer(file).schema.to_arrow_schema())
        schema = union_schema(schemas)
        for name, type_ in files.partition_types.items():
            if name not in schema.names:
                schema = schema.append(pa.field(name, type_))
        self.schema: pa.Schema = schema

    def _open(self, file: LogFile, options: Mapping[str, Any]) -> ParquetFile:
        from pyarrow.parquet import ParquetFile

        try:
            opened = ParquetFile(
                file.path, filesystem=self.files.filesystem, metadata=self._metadata.get(file.path), **options
            )
        except FileNotFoundError as error:
            raise PopeError(f"no such file: {file.path}") from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _damaged(file, error) from error
        self._metadata[file.path] = opened.metadata
        return opened

    def _footer(self, file: LogFile) -> FileMetaData:
        if file.path not in self._metadata:
            self._open(file, {}).close()
        return self._metadata[file.path]

    def file_schemas(self) -> list[pa.Schema]:
        """Return the schema of every file with its metadata, from the footers."""
        return [self._footer(file).schema.to_arrow_schema() for file in self.files.files]

    @property
    def num_rows(self) -> int | None:
        """Number of rows, None where counting would mean reading."""
        try:
            return self._row_starts()[-1]
        except SchemaError:
            return None  # a damaged file among many is for reading to report, after the rows before it

    def _row_starts(self) -> list[int]:
        """Return the global index of each file's first row, and the number of rows."""
        if self._starts is None:
            starts = [0]
            for file in self.files.files:
                starts.append(starts[-1] + self._footer(file).num_rows)
            self._starts = starts
        return self._starts

    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, with the columns asked for."""
        return rebatch(
            (batch for file in self.files.files for batch in self._read_file(file, columns, batch_rows)),
            batch_rows,
        )

    def _read_file(self, file: LogFile, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        # Prefetching a whole row group pays only where a read is a round trip.
        with self._open(file, {"pre_buffer": self.files.filesystem is not None}) as opened:
            stored = opened.schema_arrow.names
            inside = [name for name in columns if name in stored]
            for name in columns:
                if name not in stored and name not in self.files.partition_types and name in self.roles:
                    raise missing_in_file(file.path, name)
            try:
                # Partition values alone do not tell how many rows there are, and a footer may say anything.
                for batch in self._row_groups(opened, file, inside or stored[:1], batch_rows):
                    yield self._with_partitions(batch, file, columns, inside)
            except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
                if isinstance(error, SchemaError):
                    raise
                raise _damaged(file, error) from error

    def _row_groups(
        self, opened: ParquetFile, file: LogFile, columns: Sequence[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        metadata = opened.metadata
        sizes = _Sizes(opened, columns)
        group, count = 0, metadata.num_row_groups
        while group < count:
            rows, size = sizes.of(group)
            fitting = max(1, min(batch_rows, int(BATCH_BYTES / max(size, 1) * rows)))
            if rows > 2 * fitting:
                # One large row group: page by page, in a reader of its own that buffers no more than pages.
                with self._open(file, {"pre_buffer": False, "buffer_size": _PAGE_BUFFER}) as paged:
                    yield from paged.iter_batches(fitting, row_groups=[group], columns=list(columns))
                group += 1
                continue
            # Small row groups are decoded together: threads share the columns of one call.
            stop = group + 1
            while stop < count:
                more_rows, more_size = sizes.of(stop)
                if rows + more_rows > batch_rows or size + more_size > BATCH_BYTES:
                    break
                rows, size, stop = rows + more_rows, size + more_size, stop + 1
            table = opened.read_row_groups(list(range(group, stop)), columns=list(columns), use_threads=True)
            if stop - group > 1:
                table = table.combine_chunks()
            yield from table.to_batches()
            group = stop

    def _with_partitions(
        self, batch: pa.RecordBatch, file: LogFile, columns: Sequence[str], inside: Sequence[str]
    ) -> pa.RecordBatch:
        arrays = []
        for name in columns:
            if name in inside:
                role = name if name in self.roles else None
                arrays.append(conform(batch.column(name), self.schema.field(name).type, role))
            elif name in self.files.partition_types:
                arrays.append(self.files.partition_column(name, file, batch.num_rows))
            else:
                arrays.append(pa.nulls(batch.num_rows, self.schema.field(name).type))
        return pa.RecordBatch.from_arrays(arrays, names=list(columns))

    def locate(self, row: int) -> str | None:
        """Say in which file and row or line a row lies."""
        if len(self.files.files) == 1:
            return None
        try:
            starts = self._row_starts()
        except SchemaError:
            return None
        index = min(bisect_right(starts, row) - 1, len(self.files.files) - 1)
        return f"row {row - starts[index]} of {self.files.files[index].name}"

    def fingerprint(self) -> str:
        """Return a cheap digest that changes when the rows do."""
        return digest([str(self.schema), *self.files.fingerprint()])


def _damaged(file: LogFile, error: Exception) -> SchemaError:
    return SchemaError(
        f"{file.path} is not a whole Parquet file ({' '.join(str(error).split())})",
        remedy="it was cut short or damaged: write or copy it again",
    )


class _Sizes:
    """Rows and decoded bytes of each row group, for some of its columns.

    A row group's own bytes are those of all columns; the first rows, decoded, tell the share of the ones that are read.
    """

    def __init__(self, opened: ParquetFile, columns: Sequence[str]) -> None:
        self._metadata = opened.metadata
        self._per_row = self._share = 0.0
        groups = range(self._metadata.num_row_groups)
        first = next((g for g in groups if self._metadata.row_group(g).num_rows > 0), None)
        if first is None:
            return
        group = self._metadata.row_group(first)
        if group.num_rows <= _PROBE_ROWS and len(groups) == 1:
            return  # whatever its rows hold, they are decoded at once
        probe = next(opened.iter_batches(_PROBE_ROWS, row_groups=[first], columns=list(columns)), None)
        if probe is not None and probe.num_rows:
            self._per_row = probe.nbytes / probe.num_rows
            self._share = self._per_row * group.num_rows / max(group.total_byte_size, 1)

    def of(self, group: int) -> tuple[int, float]:
        """Return a row group's number of rows, and about how many bytes they decode to."""
        chunk = self._metadata.row_group(group)
        return chunk.num_rows, max(self._share * chunk.total_byte_size, self._per_row * chunk.num_rows)
