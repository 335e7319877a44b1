"""Reading JSON lines: Arrow's parser for speed, Python's for what it refuses and to find bad lines."""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pope_fast.errors import PopeError, SchemaError
from pope_fast.log.arrays import as_numpy
from pope_fast.log.arrow_types import Array, DataType
from pope_fast.log.columns import ROLE_KINDS, bare_type, is_list_type, is_number_type
from pope_fast.log.files import FileSet, LogFile
from pope_fast.log.sources import Source, common_type, digest, rebatch, select

__all__ = ["JsonLinesSource"]

_BLOCK_BYTES = 16 << 20
_INT64 = range(-(1 << 63), 1 << 63)
_UINT64 = range(1 << 64)
#: A line may be this long (bytes) unless the environment says otherwise: a few megabytes can unpack to gigabytes.
MAX_LINE_BYTES = 64 << 20
MAX_LINE_VARIABLE = "POPE_MAX_LINE_BYTES"
#: Lists and objects may be nested this deep: far less than what a parser's stack takes.
MAX_DEPTH = 100
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


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
    """One or many files with a JSON object on each line; columns and types are those of all lines.

    A column that holds values of several types (a number here, a list there) is read as the JSON text of each, unless
    it plays a role: then the first line of another type is an error. Integers beyond 64 bits are read as their digits.
    ``NaN``, ``Infinity`` and ``-Infinity``, which Python writes, are read as such.
    """

    def __init__(self, files: FileSet) -> None:
        self.files = files
        self.description = files.description
        self._types: dict[str, DataType] = {}
        self._marks: list[_Mark] = []
        self._mixed: set[str] = set()
        self._digits: set[str] = set()
        self.schema = self._infer()

    def _infer(self) -> pa.Schema:
        """Parse every line: a column or a type may turn up in the last one."""
        types: dict[str, DataType] = {}
        try:
            for file in self.files.files:
                for block in self._blocks(file, _BLOCK_BYTES):
                    self._learn(types, self._parse(block, file, None))
        except SchemaError:
            if not types:
                raise
            # Reading reports it, after the rows before it.
        if not types:
            raise SchemaError("the log is empty", remedy=f"check that {self.description} is the file that you mean")
        for name, type_ in self.files.partition_types.items():
            types.setdefault(name, type_)
        return pa.schema(list(types.items()))

    def _learn(self, types: dict[str, DataType], table: pa.Table) -> None:
        """Bring the types of one block together with those of the blocks before it."""
        for name, type_ in zip(table.schema.names, table.schema.types, strict=True):
            # A log has no use for dates, and an id may look like one.
            type_ = pa.string() if pa.types.is_temporal(type_) else type_
            known = types.setdefault(name, type_)
            if name in self._mixed or known.equals(type_):
                continue
            if {known, type_} == {pa.int64(), pa.uint64()} or (
                name in self._digits and (pa.types.is_integer(type_) or pa.types.is_integer(known))
            ):
                self._digits.add(name)
                types[name] = pa.string()
                continue
            joined = common_type(known, type_)
            if _is_key(name) and pa.types.is_integer(known) and pa.types.is_floating(type_):
                self._mixed.add(name)  # an id of 2.5 is a fault, which reading names
            elif joined.equals(pa.string()) and not pa.types.is_null(known) and not pa.types.is_null(type_):
                self._mixed.add(name)
            else:
                types[name] = joined

    def refine(self, types: Mapping[str, DataType]) -> None:
        """Take note of the types that the roles need."""
        texts = self._mixed - self.roles
        self._types.update({name: type_ for name, type_ in types.items() if name not in texts})
        # Mixed values of a column that plays no role come as JSON text.
        fields = [field.with_type(pa.string()) if field.name in texts else field for field in self.schema]
        self.schema = pa.schema(fields)

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
        longest = _longest_line()
        pieces: list[bytes] = []
        held = 0
        with self.files.open_stream(file) as stream:
            while True:
                try:
                    # Not read(), which leaks what it has allocated when it fails.
                    piece = stream.read_buffer(size).to_pybytes()
                except (OSError, pa.ArrowException, EOFError) as error:
                    raise SchemaError(
                        f"{file.path} cannot be read beyond line {line}: {error}",
                        remedy="the file was cut short or damaged: write or copy it again",
                    ) from error
                if line == 1 and not pieces and piece.startswith(b"\xef\xbb\xbf"):
                    piece = piece[3:]
                end = piece.rfind(b"\n") + 1
                if piece and not end:
                    pieces.append(piece)
                    held += len(piece)
                    if held > longest:
                        raise _too_long(file, line, longest)
                    continue
                whole = b"".join([*pieces, piece[:end]])
                rest = piece[end:]
                pieces, held = [rest] if rest else [], len(rest)
                if whole.strip():
                    yield _Block(whole, line)
                line += whole.count(b"\n")
                if not piece:
                    return

    def _parse(self, block: _Block, file: LogFile, schema: pa.Schema | None) -> pa.Table:
        """Parse a block, with the given columns or, without a schema, with all that are there."""
        _check_text(block, file)
        lines = _lines(block.data)
        exact = schema is not None and not any(field.name in self._mixed | self._digits for field in schema)
        for block_size in (4 << 20, len(block.data) + 1) if schema is None or exact else ():
            try:
                table = _arrow_parse(block.data, schema, block_size)
            except pa.ArrowException:
                continue
            if schema is None and _hides_integers(table):
                break  # integers beyond 64 bits, whose digits Arrow has not kept
            # Fewer rows than lines: blank lines. More: several objects on one line, which Arrow lets pass.
            if table.num_rows == lines or table.num_rows == _lines(block.data, blank=False):
                return table
            break
        return self._python_parse(block, file, schema)

    def _python_parse(self, block: _Block, file: LogFile, schema: pa.Schema | None) -> pa.Table:
        """Parse a block line by line; raises on the first line that is no JSON object of the right types."""
        rows, numbers = _objects(block, file)
        if schema is None:
            names = dict.fromkeys(name for row in rows for name in row)
            return pa.table({name: self._guess([row.get(name) for row in rows], name) for name in names})
        arrays = []
        for field in schema:
            values = [row.get(field.name) for row in rows]
            if field.name in self._mixed and field.name not in self.roles:
                values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
            elif field.name in self._digits:
                values = [str(value) if _is_whole(value) else value for value in values]
            type_ = None if _is_open(field.type) else field.type
            arrays.append(_column(values, type_, field.name, file, numbers))
        return pa.Table.from_arrays(arrays, names=schema.names)

    def _guess(self, values: list[Any], name: str) -> Array:
        """Return values in the type that they agree on; the first value's type alone where they do not."""
        present = [value for value in values if value is not None]
        if present and all(map(_is_whole, present)):
            for range_, type_ in ((_INT64, pa.int64()), (_UINT64, pa.uint64())):
                if min(present) in range_ and max(present) in range_:
                    return pa.array(values, type_)
            self._digits.add(name)
            return pa.nulls(len(values), pa.string())
        if _is_key(name) and present and _is_whole(present[0]):
            self._mixed.add(name)
            return pa.nulls(len(values), pa.int64())
        try:
            return pa.array(values)
        except UnicodeEncodeError:
            return pa.nulls(len(values), pa.string())  # a lone surrogate, which reading reports
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            self._mixed.add(name)
        for value in present:
            try:
                return pa.nulls(len(values), pa.array([value]).type)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                continue
        return pa.nulls(len(values), pa.string())

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


def _longest_line() -> int:
    text = os.environ.get(MAX_LINE_VARIABLE, "")
    if text and not (text.isascii() and text.isdigit()):
        raise PopeError(f"the environment variable {MAX_LINE_VARIABLE} must be a number of bytes, not {text!r}")
    return int(text) if text else MAX_LINE_BYTES


def _too_long(file: LogFile, line: int, longest: int) -> SchemaError:
    return SchemaError(
        f"{file.path}, line {line} is longer than {longest:,} bytes",
        remedy=f"write one object per line, or allow longer ones: set {MAX_LINE_VARIABLE} in the environment",
    )


def _check_text(block: _Block, file: LogFile) -> None:
    """Refuse bytes that are no UTF-8, also in names, and nesting that would exhaust the stack of a parser."""
    try:
        block.data.decode()
    except UnicodeDecodeError as error:
        line = block.first_line + block.data.count(b"\n", 0, error.start)
        raise SchemaError(
            f"{file.path}, line {line}: byte 0x{block.data[error.start]:02x} is no UTF-8",
            remedy="write the file in UTF-8",
        ) from error
    view = np.frombuffer(block.data, np.uint8)
    openers = np.flatnonzero((view == ord("[")) | (view == ord("{")))
    ends = np.append(np.flatnonzero(view == ord("\n")), len(view))
    counts = np.diff(np.searchsorted(openers, ends), prepend=0)
    for index in np.flatnonzero(counts > MAX_DEPTH).tolist():
        start = 0 if index == 0 else int(ends[index - 1]) + 1
        brackets = _STRING.sub(b"", block.data[start : int(ends[index])]).translate(None, _NOT_BRACKETS)
        marks = np.frombuffer(brackets, np.uint8)
        steps = np.where((marks == ord("[")) | (marks == ord("{")), 1, -1)
        if steps.size and np.cumsum(steps).max() > MAX_DEPTH:
            raise SchemaError(
                f"{file.path}, line {block.first_line + index}: lists or objects nested more than {MAX_DEPTH} deep",
                remedy="write such a value as a string, or leave it out",
            )


def _hides_integers(table: pa.Table) -> bool:
    """Tell whether a column that Arrow took for floating-point numbers may be one of integers.

    Integers beyond 64 bits lose their digits there, and ids of which a few are no integers their type.
    """
    for name, column in zip(table.schema.names, table.columns, strict=True):
        if pa.types.is_float64(column.type):
            values = as_numpy(column.drop_null())
            if _is_key(name) or np.abs(values).max(initial=0.0) >= 2.0**63:
                return True
    return False


def _is_key(name: str) -> bool:
    return ROLE_KINDS.get(name) == "key"


def _lines(data: bytes, *, blank: bool = True) -> int:
    if not blank:
        return sum(1 for _ in re.finditer(rb"\S[^\n]*+", data))
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


def _objects(block: _Block, file: LogFile) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the object of each line that is not blank, and the line's number."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    known: set[str] = set()
    for number, line in enumerate(block.data.split(b"\n"), start=block.first_line):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            # A plain ValueError is an integer of more digits than Python takes.
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
        for name in value.keys() - known:
            if _has_surrogate(name):
                raise SchemaError(
                    f"{file.path}, line {number}: half of a surrogate pair in the name {ascii(name)[:60]}",
                    remedy="write whole characters",
                )
        known |= value.keys()
        rows.append(value)
        numbers.append(number)
    return rows, numbers


def _column(values: list[Any], type_: DataType | None, name: str, file: LogFile, numbers: Sequence[int]) -> Array:
    try:
        if type_ is not None and pa.types.is_integer(type_):
            # Arrow would cut 2.5 to 2 here.
            range_ = _UINT64 if pa.types.is_uint64(type_) else _INT64
            fits = (value is None or (_is_whole(value) and value in range_) for value in values)
            bad = next((i for i, fit in enumerate(fits) if not fit), None)
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


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong_value(value: Any, type_: DataType | None, name: str, file: LogFile, number: int) -> SchemaError:
    shown = json.dumps(value)
    if isinstance(value, str) and _has_surrogate(value):
        return SchemaError(
            f"{file.path}, line {number}: half of a surrogate pair in {shown[:60]} is no text",
            column=name,
            remedy="write whole characters",
        )
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return SchemaError(
        f"{file.path}, line {number}: {shown} where the lines before hold {type_}",
        column=name,
        remedy="write the same type on every line",
    )
