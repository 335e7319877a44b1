"""Reading JSON lines: Arrow's parser for speed, Python's for what it refuses and to find bad lines."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pope_fast.errors import SchemaError
from pope_fast.log.arrow_types import Array, DataType
from pope_fast.log.columns import bare_type, is_list_type, is_number_type
from pope_fast.log.files import FileSet, LogFile
from pope_fast.log.sources import Source, digest, rebatch, select

__all__ = ["JsonLinesSource"]

_BLOCK_BYTES = 16 << 20
_SAMPLE_BYTES = 4 << 20
_INT64 = range(-(1 << 63), 1 << 63)


class _Block(NamedTuple):
    data: bytes
    first_line: int  # counted from 1, as editors do


class _Mark(NamedTuple):
    """Where a block starts: lets a row be traced back to its line."""

    first_row: int
    file: str
    first_line: int
    dense: bool  # no blank lines: row and line advance together


class JsonLinesSource(Source):
    """One or many files with a JSON object on each line; types are inferred from the first lines.

    ``NaN``, ``Infinity`` and ``-Infinity``, which Python writes, are read as such.
    """

    def __init__(self, files: FileSet) -> None:
        self.files = files
        self.description = files.description
        self._types: dict[str, DataType] = {}
        self._marks: list[_Mark] = []
        self.schema = self._infer()

    def _infer(self) -> pa.Schema:
        for file in self.files.files:
            block = next(iter(self._blocks(file, _SAMPLE_BYTES)), None)
            if block is None or not block.data.strip():
                continue
            table = self._parse(block, file, None)
            # A log has no use for dates, and an id may look like one.
            fields = [
                (name, pa.string() if pa.types.is_temporal(type_) else type_)
                for name, type_ in zip(table.schema.names, table.schema.types, strict=True)
            ]
            present = {name for name, _ in fields}
            fields += [(name, type_) for name, type_ in self.files.partition_types.items() if name not in present]
            return pa.schema(fields)
        raise SchemaError("the log is empty", remedy=f"check that {self.description} is the file that you mean")

    def refine(self, types: Mapping[str, DataType]) -> None:
        """Take note of the types that the roles need."""
        self._types.update(types)

    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, with the columns asked for."""
        return rebatch(self._read(columns), batch_rows)

    def _read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        self._marks = []
        row = 0
        inside = [name for name in columns if name not in self.files.partition_types]
        fields = [(name, self._types.get(name, self.schema.field(name).type)) for name in inside]
        schema = pa.schema(fields)
        for file in self.files.files:
            for block in self._blocks(file, _BLOCK_BYTES):
                table = self._parse(block, file, schema)
                dense = table.num_rows == _lines(block.data)
                self._marks.append(_Mark(row, file.path, block.first_line, dense))
                row += table.num_rows
                for name in columns:
                    if name not in inside:
                        added = self.files.partition_column(name, file, table.num_rows)
                        table = table.append_column(name, added)
                for batch in table.combine_chunks().to_batches():
                    yield select(batch, columns)

    def _blocks(self, file: LogFile, size: int) -> Iterator[_Block]:
        """Cut a file into blocks of whole lines."""
        line = 1
        rest = b""
        with self.files.open_stream(file) as stream:
            while True:
                try:
                    piece = stream.read(size)
                except (OSError, pa.ArrowException, EOFError) as error:
                    raise SchemaError(
                        f"{file.path} cannot be read beyond line {line}: {error}",
                        remedy="the file was cut short or damaged: write or copy it again",
                    ) from error
                if line == 1 and not rest and piece.startswith(b"\xef\xbb\xbf"):
                    piece = piece[3:]
                end = piece.rfind(b"\n") + 1 if piece else 0
                if piece and not end:
                    rest += piece
                    continue
                whole = rest + piece[:end] if piece else rest
                rest = piece[end:]
                if whole:
                    yield _Block(whole, line)
                    line += whole.count(b"\n")
                if not piece:
                    return

    def _parse(self, block: _Block, file: LogFile, schema: pa.Schema | None) -> pa.Table:
        """Parse a block, with the given columns or, without a schema, with all that are there."""
        lines = _lines(block.data)
        for block_size in (4 << 20, len(block.data) + 1):
            try:
                table = _arrow_parse(block.data, schema, block_size)
            except pa.ArrowException:
                continue
            # Fewer rows than lines: blank lines. More: several objects on one line, which Arrow lets pass.
            if table.num_rows == lines or table.num_rows == _lines(block.data, blank=False):
                return table
            break
        return _python_parse(block, file, schema)

    def locate(self, row: int) -> str | None:
        """Say in which file and row or line a row lies."""
        index = bisect_right([mark.first_row for mark in self._marks], row) - 1
        if index < 0 or not self._marks[index].dense:
            return None
        mark = self._marks[index]
        where = f"line {mark.first_line + row - mark.first_row}"
        return where if len(self.files.files) == 1 else f"{where} of {mark.file.rsplit('/', 1)[-1]}"

    def fingerprint(self) -> str:
        """Return a cheap digest that changes when the rows do."""
        return digest([str(self.schema), *self.files.fingerprint()])


def _lines(data: bytes, *, blank: bool = True) -> int:
    if not blank:
        return sum(1 for line in data.split(b"\n") if line.strip())
    return data.count(b"\n") + (not data.endswith(b"\n"))


def _arrow_parse(data: bytes, schema: pa.Schema | None, block_size: int) -> pa.Table:
    from pyarrow import json as arrow_json

    if schema is not None and any(_is_open(field.type) for field in schema):
        # Structs may gain fields later in the file, and a declared struct would lose those.
        declared = pa.schema([field for field in schema if not _is_open(field.type)])
        options = arrow_json.ParseOptions(explicit_schema=declared, unexpected_field_behavior="infer")
    elif schema is not None:
        options = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    else:
        options = arrow_json.ParseOptions()
    buffer: Any = pa.BufferReader(data)
    table = arrow_json.read_json(buffer, arrow_json.ReadOptions(block_size=block_size), parse_options=options)
    if schema is not None:
        for name in schema.names:
            if name not in table.schema.names:
                table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
        table = table.select(schema.names)
    return table


def _is_open(type_: DataType) -> bool:
    """Tell whether a type holds structs whose fields may differ from line to line (messages)."""
    if is_list_type(type_):
        return _is_open(bare_type(type_).value_type)
    return pa.types.is_struct(type_) and not all(is_number_type(field.type) for field in type_)


def _python_parse(block: _Block, file: LogFile, schema: pa.Schema | None) -> pa.Table:
    """Parse a block line by line; raises on the first line that is no JSON object of the right types."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    for number, line in enumerate(block.data.split(b"\n"), start=block.first_line):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise SchemaError(
                f"{file.path}, line {number}: malformed JSON ({error})",
                remedy="every line must be one whole JSON object (the last is not if the file was cut)",
            ) from error
        if not isinstance(value, dict):
            hint = " (a JSON array: write one object per line)" if isinstance(value, list) else ""
            raise SchemaError(
                f"{file.path}, line {number}: a JSON object is needed, not {type(value).__name__}{hint}",
                remedy="every line must be one JSON object",
            )
        rows.append(value)
        numbers.append(number)
    if schema is None:
        names: Iterable[str] = dict.fromkeys(name for row in rows for name in row)
        fields = [(name, None) for name in names]
    else:
        fields = [(field.name, None if _is_open(field.type) else field.type) for field in schema]
    arrays = [_column([row.get(name) for row in rows], type_, name, file, numbers) for name, type_ in fields]
    return pa.Table.from_arrays(arrays, names=[name for name, _ in fields])


def _column(values: list[Any], type_: DataType | None, name: str, file: LogFile, numbers: Sequence[int]) -> Array:
    try:
        if type_ is not None and pa.types.is_integer(type_):
            # Arrow would cut 2.5 to 2 here.
            bad = next((i for i, value in enumerate(values) if not _is_integer(value)), None)
            if bad is not None:
                raise _wrong_value(values[bad], type_, name, file, numbers[bad])
        return pa.array(values, type=type_)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, SchemaError):
            raise
        for value, number in zip(values, numbers, strict=True):
            try:
                pa.array([value], type=type_)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                raise _wrong_value(value, type_, name, file, number) from error
        raise SchemaError(
            f"{file.path}: lines {numbers[0]} to {numbers[-1]} do not agree on a type ({error})",
            column=name,
            remedy="write the same type on every line",
        ) from error


def _is_integer(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value in _INT64)


def _wrong_value(value: Any, type_: DataType | None, name: str, file: LogFile, number: int) -> SchemaError:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return SchemaError(
        f"{file.path}, line {number}: {shown} where the lines before hold {type_}",
        column=name,
        remedy="write the same type on every line",
    )
