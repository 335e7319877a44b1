"""Writing a log: Parquet in encodings that decode fast, under its own name only when it is whole and on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from pope_fast.errors import PopeError
from pope_fast.log.arrow_types import DataType

__all__ = ["ROW_GROUP_ROWS", "parquet_name", "write_log"]

#: Rows of a row group. Fixed, so that the same rows give the same file however they were cut into batches.
ROW_GROUP_ROWS = 1 << 16


#: Names that promise another format than the one that is written.
_OTHER_FORMATS = frozenset(
    (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".arrow", ".feather", ".ipc", ".gz", ".zst", ".bz2")
)


def parquet_name(path: str | os.PathLike[str]) -> Path:
    """Return a path to write Parquet to.

    Raises
    ------
    PopeError
        If its name is that of another format.
    """
    target = Path(path)
    if target.suffix.lower() in _OTHER_FORMATS:
        raise PopeError(f"the output is a Parquet file: {target.name!r} should end in .parquet")
    return target


def write_log(
    path: str | os.PathLike[str],
    data: pa.Table | Iterable[pa.RecordBatch],
    *,
    schema: pa.Schema | None = None,
    metadata: Mapping[bytes, bytes] | None = None,
    row_group_rows: int = ROW_GROUP_ROWS,
) -> Path:
    """Write rows as one Parquet file, all of it or nothing.

    The rows go to a hidden file beside ``path``, which is synced and then renamed: a reader sees the old file or the
    new one, also after a crash. The source of the rows may therefore be ``path`` itself.

    Parameters
    ----------
    path : path
        Where the file goes; an existing one is replaced.
    data : pyarrow.Table, or iterable of pyarrow.RecordBatch
        The rows; batches are taken one after the other, so they need not fit into memory together.
    schema : pyarrow.Schema, optional
        Of the batches; needed if there may be none.
    metadata : mapping of bytes to bytes, optional
        Added to the schema's metadata, replacing entries of the same key.
    row_group_rows : int
        Rows per row group.

    Returns
    -------
    Path
        Where the file lies.

    Raises
    ------
    PopeError
        If the file cannot be written.

    Notes
    -----
    zstd throughout; floating-point numbers, also those in lists, without dictionary and with their bytes split by place
    (BYTE_STREAM_SPLIT), which is smaller and decodes faster. The bytes of the file depend on the rows alone.
    """
    import pyarrow.parquet as pq

    batches: Iterator[pa.RecordBatch]
    if isinstance(data, pa.Table):
        schema, batches = data.schema, iter(data.to_batches())
    else:
        batches = iter(data)
        if schema is None:
            first = next(batches, None)
            if first is None:
                raise PopeError("there is nothing to write: no batches, and no schema")
            schema, batches = first.schema, _chain(first, batches)
    if metadata:
        schema = schema.with_metadata({**(schema.metadata or {}), **metadata})
    target = parquet_name(path)
    hidden = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    floats, others = _leaves(schema)
    try:
        try:
            with (
                hidden.open("wb") as file,
                pq.ParquetWriter(
                    file,
                    schema,
                    compression="zstd",
                    # The stubs know of one flag for all columns only.
                    use_dictionary=others or False,  # type: ignore[arg-type]
                    use_byte_stream_split=floats or False,
                ) as writer,
            ):
                for table in _row_groups(batches, schema, row_group_rows):
                    writer.write_table(table, row_group_size=row_group_rows)
                writer.close()
                file.flush()
                os.fsync(file.fileno())
            os.replace(hidden, target)
        except BaseException:
            with suppress(OSError):
                hidden.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PopeError(f"cannot write {target}: {error.strerror or error}") from error
    _sync_folder(target.parent)
    return target


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _row_groups(batches: Iterator[pa.RecordBatch], schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    """Cut the rows into tables of ``rows`` rows, each in one piece: pages would otherwise end where batches do."""
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            taken = batch.slice(start, rows - size)
            held.append(taken)
            start += taken.num_rows
            size += taken.num_rows
            if size == rows:
                yield _joined(held, schema)
                held, size = [], 0
    if held:
        yield _joined(held, schema)


def _joined(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    table = pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in batches])
    # Files of one log may differ in the width of a type; the file that is written has one schema.
    return table.cast(schema).combine_chunks()


def _leaves(schema: pa.Schema) -> tuple[list[str], list[str]]:
    """Return the Parquet paths of the floating-point leaves, and those of the others."""
    floats: list[str] = []
    others: list[str] = []
    for field in schema:
        _walk(field.name, field.type, floats, others)
    return floats, others


def _walk(path: str, type_: DataType, floats: list[str], others: list[str]) -> None:
    if isinstance(type_, pa.BaseExtensionType):
        _walk(path, type_.storage_type, floats, others)
    elif pa.types.is_struct(type_):
        for field in type_:
            _walk(f"{path}.{field.name}", field.type, floats, others)
    elif pa.types.is_map(type_):
        _walk(f"{path}.key_value.key", type_.key_type, floats, others)
        _walk(f"{path}.key_value.value", type_.item_type, floats, others)
    elif (
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_fixed_size_list(type_)
        or pa.types.is_list_view(type_)
        or pa.types.is_large_list_view(type_)
    ):
        _walk(f"{path}.list.element", type_.value_type, floats, others)
    else:
        (floats if pa.types.is_floating(type_) else others).append(path)


def _sync_folder(folder: Path) -> None:
    """Make a rename last: on POSIX it is an entry of the folder, which has to be synced too."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
