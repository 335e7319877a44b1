"""Reading Parquet: row group by row group, columns pruned, decoded on all threads."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pope_fast.errors import PopeError, SchemaError
from pope_fast.log.files import FileSet, LogFile
from pope_fast.log.sources import Source, digest, rebatch

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData, ParquetFile

__all__ = ["ParquetSource"]

#: Batches aim at no more decoded bytes than this: token lists make rows of a kilobyte.
BATCH_BYTES = 64 << 20
_PAGE_BUFFER = 8 << 20


class ParquetSource(Source):
    """One or many Parquet files; the first one's schema is the log's."""

    def __init__(self, files: FileSet) -> None:
        self.files = files
        self.description = files.description
        self._metadata: dict[str, FileMetaData] = {}
        self._starts: list[int] | None = None
        first = self._open(files.files[0], {})
        schema = first.schema_arrow
        first.close()
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
            added = [name for name in columns if name not in stored]
            for name in added:
                if name not in self.files.partition_types:
                    raise SchemaError(
                        f"no such column in {file.path}",
                        column=name,
                        remedy="all files of a log must have the columns that are read",
                    )
            try:
                for batch in self._row_groups(opened, file, inside, batch_rows):
                    yield self._with_partitions(batch, file, columns, inside)
            except (pa.ArrowException, OSError) as error:
                raise _damaged(file, error) from error

    def _row_groups(
        self, opened: ParquetFile, file: LogFile, columns: Sequence[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        metadata = opened.metadata
        group, count = 0, metadata.num_row_groups
        leaves = _leaves(metadata, columns)
        while group < count:
            rows, size = _extent(metadata, group, leaves)
            if not columns:
                yield _no_columns(rows)
                group += 1
                continue
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
                more_rows, more_size = _extent(metadata, stop, leaves)
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
        arrays = [
            batch.column(name) if name in inside else self.files.partition_column(name, file, batch.num_rows)
            for name in columns
        ]
        return pa.RecordBatch.from_arrays(arrays, names=list(columns))

    def bounds(self, column: str) -> tuple[float, float] | None:
        """Return the bounds that the footers promise, None if one of them does not, or not finitely."""
        low, high = math.inf, -math.inf
        for file in self.files.files:
            metadata = self._footer(file)
            leaf = _leaf_index(metadata, column)
            if leaf is None:
                return None
            for group in range(metadata.num_row_groups):
                chunk = metadata.row_group(group)
                if chunk.num_rows == 0:
                    continue
                statistics = chunk.column(leaf).statistics
                if statistics is None or not statistics.has_min_max:
                    return None
                try:
                    bounds = _number(statistics.min), _number(statistics.max)
                except (TypeError, ValueError):
                    return None
                # Some writers let a NaN into the bounds; comparisons with it would silently drop the rest.
                if not all(map(math.isfinite, bounds)):
                    return None
                low, high = min(low, bounds[0]), max(high, bounds[1])
        return (low, high) if low <= high else None

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


def _number(value: Any) -> float:
    return float(value)


def _damaged(file: LogFile, error: Exception) -> SchemaError:
    return SchemaError(
        f"{file.path} is not a whole Parquet file ({' '.join(str(error).split())})",
        remedy="it was cut short or damaged: write or copy it again",
    )


def _no_columns(rows: int) -> pa.RecordBatch:
    """Return a batch that has rows but no columns of its own (those of a hive partition are added)."""
    return pa.RecordBatch.from_arrays([pa.nulls(rows)], names=[""])


def _leaves(metadata: FileMetaData, columns: Sequence[str]) -> list[int]:
    """Return the indices of the leaves below the given columns."""
    wanted = set(columns)
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    return [i for i, path in enumerate(paths) if path in wanted or path.partition(".")[0] in wanted]


def _extent(metadata: FileMetaData, group: int, leaves: Sequence[int]) -> tuple[int, int]:
    """Return a row group's number of rows and the decompressed bytes of some of its leaves."""
    chunk = metadata.row_group(group)
    return chunk.num_rows, sum(chunk.column(i).total_uncompressed_size for i in leaves)


def _leaf_index(metadata: FileMetaData, column: str) -> int | None:
    """Return the index of a flat column among the leaves, None if it is nested or absent."""
    for i in range(metadata.num_columns):
        if metadata.schema.column(i).path == column:
            return i
    return None
