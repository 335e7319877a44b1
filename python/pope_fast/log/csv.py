"""Reading CSV (and tab-separated values), with the row at fault named when Arrow's parser refuses one."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from pope_fast.errors import SchemaError
from pope_fast.log.arrow_types import DataType
from pope_fast.log.columns import ROLE_KINDS
from pope_fast.log.files import FileSet, LogFile
from pope_fast.log.sources import Source, digest, rebatch, select

__all__ = ["CsvSource"]

_BLOCK_BYTES = 16 << 20
_SAMPLE_BYTES = 1 << 20
_DECIMAL_COMMA = re.compile(rb"[;\n]\s*-?\d+,\d+(?:[eE][+-]?\d+)?\s*[;\r\n]")
_DECIMAL_POINT = re.compile(rb"[;\n]\s*-?\d+\.\d+(?:[eE][+-]?\d+)?\s*[;\r\n]")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")


class CsvSource(Source):
    """One or many CSV files with a header line; an empty field is a missing value.

    Fields are separated by commas, or by the semicolon, tab or bar that a header without commas
    has; numbers between semicolons may have decimal commas.
    """

    def __init__(self, files: FileSet) -> None:
        self.files = files
        self.description = files.description
        self._types: dict[str, DataType] = {}
        self._delimiter, self._decimal = ",", "."
        self.schema = self._infer()

    def _infer(self) -> pa.Schema:
        file = self.files.files[0]
        with self.files.open_stream(file) as stream:
            try:
                sample = stream.read_buffer(_SAMPLE_BYTES).to_pybytes()  # read() leaks when it fails
            except (OSError, pa.ArrowException, EOFError) as error:
                raise _cut_short(file, error) from error
        if not sample.strip():
            raise SchemaError("the log is empty", remedy=f"check that {file.path} is the file that you mean")
        self._learn_dialect(file, sample)
        whole = sample if len(sample) < _SAMPLE_BYTES else _up_to_last_row(sample)
        table = self._open(file, pa.BufferReader(whole), {}, None).read_all()
        fields = dict(zip(table.schema.names, table.schema.types, strict=True))
        for name, type_ in fields.items():
            if pa.types.is_temporal(type_):
                fields[name] = pa.string()  # a log has no use for dates, and an id may look like one
            # "007" is an integer to the parser, and another prompt than "7".
            if ROLE_KINDS.get(name) == "key" and pa.types.is_integer(type_):
                texts = self._open(file, pa.BufferReader(whole), {name: pa.string()}, [name]).read_all()
                values = texts.column(name).drop_null().to_pylist()
                if not all(_INTEGER.fullmatch(value) for value in values):
                    fields[name] = pa.string()
        if len(fields) < len(table.schema.names):
            duplicated: pa.Schema = table.schema
            return duplicated
        self._refuse_late_columns(set(fields))
        for name, type_ in self.files.partition_types.items():
            fields.setdefault(name, type_)
        return pa.schema(list(fields.items()))

    def _refuse_late_columns(self, known: set[str]) -> None:
        """Refuse a column that only a later file has: it would be ignored without a word."""
        for file in self.files.files[1:]:
            with suppress(OSError, pa.ArrowException), self.files.open_stream(file) as stream:
                head = stream.read_buffer(_SAMPLE_BYTES).to_pybytes().removeprefix(b"\xef\xbb\xbf")
                text = io.StringIO(head.decode(errors="replace"))
                names = next(csv.reader(text, delimiter=self._delimiter), [])
                late = [name for name in names if name not in known]
                if late:
                    raise SchemaError(
                        f"in {file.path}, but not in {self.files.files[0].path}",
                        column=late[0],
                        remedy="give all files of a log the same columns",
                    )

    def _learn_dialect(self, file: LogFile, sample: bytes) -> None:
        """Find out what separates fields, and decimals; refuse a header that is no UTF-8."""
        header = sample.splitlines()[0]
        try:
            text = header.decode()
        except UnicodeDecodeError as error:
            raise SchemaError(
                f"{file.path}, line 1: byte 0x{header[error.start]:02x} is no UTF-8", remedy="write the file in UTF-8"
            ) from error
        # A spreadsheet that writes decimal commas separates by semicolons.
        self._delimiter = "\t" if ".tsv" in file.name.lower() else ","
        for other in ";\t|":
            if self._delimiter not in text and other in text:
                self._delimiter = other
                break
        if self._delimiter == ";" and _DECIMAL_COMMA.search(sample) and not _DECIMAL_POINT.search(sample):
            self._decimal = ","

    def _open(self, file: LogFile, stream: Any, types: Mapping[str, DataType], columns: Sequence[str] | None) -> Any:
        from pyarrow import csv as arrow_csv

        try:
            return arrow_csv.open_csv(
                stream,
                read_options=arrow_csv.ReadOptions(block_size=_BLOCK_BYTES),
                parse_options=arrow_csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=dict(types),
                    decimal_point=self._decimal,
                    include_columns=None if columns is None else list(columns),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            )
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._diagnose(file, types, columns, error) from error

    def refine(self, types: Mapping[str, DataType]) -> None:
        """Take note of the types that the roles need."""
        self._types.update(types)

    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, with the columns asked for."""
        return rebatch(self._read(columns), batch_rows)

    def _read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        inside = [name for name in columns if name not in self.files.partition_types]
        types = {name: self._types.get(name, self.schema.field(name).type) for name in inside}
        types = {name: pa.string() if pa.types.is_null(type_) else type_ for name, type_ in types.items()}
        for file in self.files.files:
            with self.files.open_stream(file) as stream:
                reader = self._open(file, stream, types, inside)
                try:
                    for batch in reader:
                        for name in columns:
                            if name not in inside:
                                added = self.files.partition_column(name, file, batch.num_rows)
                                batch = batch.append_column(name, added)
                        yield select(batch, columns)
                except (pa.ArrowException, OSError) as error:
                    raise self._diagnose(file, types, inside, error) from error

    def _diagnose(
        self,
        file: LogFile,
        types: Mapping[str, DataType],
        columns: Sequence[str] | None,
        error: Exception,
    ) -> SchemaError:
        """Find the line that Arrow refused, whose own message does not name it."""
        try:
            with (
                self.files.open_stream(file) as stream,
                io.TextIOWrapper(stream, "utf-8", newline="") as text,
            ):
                rows = csv.reader(text, delimiter=self._delimiter)
                header = next(rows, [])
                for name in columns or ():
                    if name not in header:
                        return SchemaError(
                            f"no such column in {file.path}",
                            column=name,
                            remedy="all files of a log must have the columns that are read",
                        )
                for fields in rows:
                    fault = _row_fault(fields, header, types, self._decimal)
                    if fault is not None:
                        column, message = fault
                        return SchemaError(
                            f"{file.path}, line {rows.line_num}: {message}",
                            column=column,
                            remedy="correct the line; quote fields with commas, quotes or line breaks",
                        )
        except (OSError, pa.ArrowException, EOFError, UnicodeDecodeError, csv.Error) as second:
            return _cut_short(file, second)
        return SchemaError(
            f"{file.path} cannot be read as CSV: {error}", remedy="write the log as Parquet or JSON lines"
        )

    def fingerprint(self) -> str:
        """Return a cheap digest that changes when the rows do."""
        return digest([str(self.schema), *self.files.fingerprint()])


def _row_fault(
    fields: Sequence[str], header: Sequence[str], types: Mapping[str, DataType], decimal: str = "."
) -> tuple[str | None, str] | None:
    if not fields:
        return None
    if len(fields) != len(header):
        return None, f"{len(fields)} fields, but the header has {len(header)}"
    for name, text in zip(header, fields, strict=True):
        type_ = types.get(name)
        if type_ is None or text == "":
            continue
        if pa.types.is_integer(type_) and not re.fullmatch(r"\s*[+-]?\d+\s*", text):
            return name, f"{text!r} is no integer, as the rows before have"
        if pa.types.is_floating(type_):
            try:
                float(text.replace(decimal, "."))
            except ValueError:
                return name, f"{text!r} is no number"
        if pa.types.is_boolean(type_) and text.lower() not in ("true", "false", "0", "1"):
            return name, f"{text!r} is neither true nor false"
    return None


def _cut_short(file: LogFile, error: Exception) -> SchemaError:
    return SchemaError(
        f"{file.path} cannot be read to its end: {error}",
        remedy="the file was cut short or damaged: write or copy it again",
    )


def _up_to_last_row(sample: bytes) -> bytes:
    """Drop the row that the end of the sample cuts: back to the last line break outside quotes."""
    end = len(sample)
    while True:
        end = sample.rfind(b"\n", 0, end)
        if end <= 0:
            return sample
        if sample.count(b'"', 0, end) % 2 == 0:
            return sample[: end + 1]
