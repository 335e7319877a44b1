"""The scored log: every column of the log as it was, and the log-probs beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pope_fast import _core
from pope_fast.errors import PopeError, SchemaError
from pope_fast.log import FeedbackLog
from pope_fast.log.arrays import as_numpy, plain, ragged
from pope_fast.log.arrow_types import Array
from pope_fast.log.columns import is_list_type, is_number_type
from pope_fast.log.writing import write_log
from pope_fast.score.metadata import Provenance, with_provenance
from pope_fast.score.store import PairScores

__all__ = ["CopiedColumn", "Names", "ScoredColumn", "scored_table", "write_scored"]

_BATCH_ROWS = 1 << 16

#: Lists features of the file by column, which no longer fit; readers refuse a file with entries that do not.
_DROPPED_METADATA = frozenset({b"huggingface"})


@dataclass(frozen=True, slots=True)
class Names:
    """The columns that one policy gets.

    Attributes
    ----------
    logprob, tokens, error : str
        For log-probs of sequences, of tokens, and for reasons why there is none.
    """

    logprob: str
    tokens: str
    error: str

    @classmethod
    def of_target(cls, policy: str) -> Names:
        """Return those of a target policy."""
        return cls(f"target_logprob/{policy}", f"target_token_logprobs/{policy}", f"score_error/{policy}")

    @classmethod
    def of_behavior(cls, *, again: bool = False) -> Names:
        """Return those of the behavior policy, or of its second scoring."""
        end = "_again" if again else ""
        return cls(f"behavior_logprob{end}", f"behavior_token_logprobs{end}", f"score_error/behavior{end}")


@dataclass(frozen=True, slots=True, eq=False)
class ScoredColumn:
    """Log-probs of all rows under one policy.

    Attributes
    ----------
    names : Names
    provenance : Provenance
    inverse : int64 array of shape (n_rows,)
        Pair of each row; -1 for rows that were left out.
    scores : PairScores
    row_errors : dict of int to str
        Why rows were left out.
    """

    names: Names
    provenance: Provenance
    inverse: npt.NDArray[np.int64]
    scores: PairScores
    row_errors: Mapping[int, str]
    bad_pairs: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bad_pairs", frozenset(np.flatnonzero(np.isnan(self.scores.sums)).tolist()))

    @property
    def has_errors(self) -> bool:
        """Whether some row has no log-prob."""
        return bool(self.row_errors or self.bad_pairs)

    def count_errors(self) -> int:
        """Return the number of rows without a log-prob."""
        bad = np.isin(self.inverse, list(self.bad_pairs)) if self.bad_pairs else np.zeros(0, np.bool_)
        return len(self.row_errors) + int(np.count_nonzero(bad))

    def first_error(self) -> tuple[int, str]:
        """Return the first row without a log-prob, and why."""
        rows = np.flatnonzero((self.inverse < 0) | np.isin(self.inverse, list(self.bad_pairs)))
        row = int(rows[0])
        return row, self._error(row) or ""

    def _error(self, row: int) -> str | None:
        pair = int(self.inverse[row])
        if pair < 0:
            return self.row_errors.get(row, "left out")
        if pair in self.bad_pairs:
            return self.scores.errors.get(pair, "the model gives NaN: its numbers overflow; score in float32")
        return None

    def columns(self, start: int, stop: int, tokens: bool) -> dict[str, Array]:
        """Return the columns of some rows."""
        pairs = self.inverse[start:stop]
        none = pairs < 0
        sums = self.scores.sums[np.where(none, 0, pairs)] if self.scores.sums.size else np.full(pairs.size, np.nan)
        missing = none | np.isnan(sums)
        made: dict[str, Array] = {self.names.logprob: pa.array(sums, pa.float64(), mask=missing)}
        if tokens:
            made[self.names.tokens] = self._token_lists(pairs, missing)
        if self.has_errors:
            made[self.names.error] = pa.array(
                [self._error(start + i) if lost else None for i, lost in enumerate(missing.tolist())], pa.string()
            )
        return made

    def _token_lists(self, pairs: npt.NDArray[np.int64], missing: npt.NDArray[np.bool_]) -> Array:
        offsets, values = self.scores.offsets, self.scores.logprobs
        assert offsets is not None
        assert values is not None
        kept = pairs[~missing]
        lengths = np.zeros(pairs.size, np.int64)
        lengths[~missing] = offsets[kept + 1] - offsets[kept]
        edges = np.concatenate(([0], np.cumsum(lengths)))
        if edges[-1] >= 1 << 31:
            raise PopeError(f"{pairs.size} rows have {edges[-1]} tokens: too many for one batch of lists")
        taken = values[np.repeat(offsets[kept] - edges[:-1][~missing], lengths[~missing]) + np.arange(edges[-1])]
        type_: Any = pa.list_(pa.float32())
        starts: Any = pa.array(edges.astype(np.int32))
        return pa.ListArray.from_arrays(starts, pa.array(taken, pa.float32()), type=type_, mask=pa.array(missing))


@dataclass(frozen=True, slots=True)
class CopiedColumn:
    """Log-probs that the log has already, under another name."""

    names: Names
    provenance: Provenance
    source: str

    @property
    def has_errors(self) -> bool:
        """Whether some row has no log-prob: reading tells."""
        return False

    def copied(self, array: Array, tokens: bool, first_row: int) -> dict[str, Array]:
        """Return the columns of some rows."""
        array = plain(array)
        if not is_list_type(array.type):
            if not is_number_type(array.type):
                raise SchemaError(
                    f"wrong type {array.type}: numbers, or lists of them, are needed",
                    column=self.source,
                    remedy="name the column that holds log-probs",
                )
            return {self.names.logprob: array.cast(pa.float64())}
        offsets, inner = ragged(array)
        values = as_numpy(plain(inner).cast(pa.float32()).fill_null(float("nan")))
        wrong = np.flatnonzero(np.isnan(values))
        if wrong.size:
            row = first_row + int(np.searchsorted(offsets, wrong[0], side="right")) - 1
            raise SchemaError("NaN or null among token log-probs", column=self.source, row=row, remedy="score it again")
        empty = np.diff(offsets) == 0
        missing = np.array(as_numpy(array.is_null()), np.bool_) | empty
        sums = _core.sum_tokens(offsets, np.ascontiguousarray(values))
        made: dict[str, Array] = {self.names.logprob: pa.array(sums, mask=missing)}
        if tokens:
            made[self.names.tokens] = array.cast(pa.list_(pa.float32()))
        return made


Columns = Sequence[ScoredColumn | CopiedColumn]


def scored_table(log: FeedbackLog, columns: Columns, *, tokens: bool) -> pa.Table:
    """Return the scored log as a table in memory."""
    base = log.schema
    while True:
        schema = _schema(base, columns, tokens)
        try:
            return pa.Table.from_batches(list(_batches(log, columns, tokens, schema)), schema)
        except _WiderError as wider:
            base = wider.schema


def write_scored(path: Path, log: FeedbackLog, columns: Columns, *, tokens: bool) -> None:
    """Write the scored log as a Parquet file, all of it or nothing."""
    base = log.schema
    while True:
        schema = _schema(base, columns, tokens)
        try:
            write_log(path, _batches(log, columns, tokens, schema), schema=schema)
            return
        except _WiderError as wider:
            base = wider.schema


class _WiderError(Exception):
    """A later part of the log has types or fields that its first part has not; comes with a schema for both."""

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__(str(schema))
        self.schema = schema


def _schema(base: pa.Schema, columns: Columns, tokens: bool) -> pa.Schema:
    added: list[Any] = []
    for column in columns:
        added.append(pa.field(column.names.logprob, pa.float64()))
        if tokens and (isinstance(column, ScoredColumn) or is_list_type(base.field(column.source).type)):
            added.append(pa.field(column.names.tokens, pa.list_(pa.float32())))
        if column.has_errors:
            added.append(pa.field(column.names.error, pa.string()))
    kept: Any = {key: value for key, value in (base.metadata or {}).items() if key not in _DROPPED_METADATA}
    schema = pa.schema([*base, *added], metadata=kept)
    return with_provenance(schema, {column.names.logprob: column.provenance for column in columns})


def _batches(log: FeedbackLog, columns: Columns, tokens: bool, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the log's rows with the new columns."""
    row = 0
    width = len(log.schema)
    expected = next((column.inverse.size for column in columns if isinstance(column, ScoredColumn)), None)
    for batch in log.reader.read(log.schema.names, _BATCH_ROWS):
        stop = row + batch.num_rows
        if expected is not None and stop > expected:
            break
        made: dict[str, Array] = {}
        for column in columns:
            if isinstance(column, CopiedColumn):
                made.update(column.copied(batch.column(column.source), tokens, row))
            else:
                made.update(column.columns(row, stop, tokens))
        arrays = [_conformed(batch.column(index), schema, width, index) for index in range(width)]
        yield pa.RecordBatch.from_arrays([*arrays, *(made[name] for name in schema.names[width:])], schema=schema)
        row = stop
    if expected is not None and row != expected:
        raise PopeError(
            f"{log.source} has another number of rows than the {expected:,} that were scored. Remedy: score it when it "
            "no longer changes."
        )


def _conformed(array: Array, schema: pa.Schema, width: int, index: int) -> Array:
    """Return a column of a batch in the type that the schema has for it."""
    wanted = schema.field(index)
    if array.type == wanted.type:
        return array
    try:
        both = [pa.schema([pa.field(wanted.name, type_)]) for type_ in (wanted.type, array.type)]
        merged = pa.unify_schemas(both, promote_options="permissive").field(0)
        if merged.type != wanted.type:
            fields = [merged if i == index else schema.field(i) for i in range(width)]
            kept: Any = schema.metadata
            raise _WiderError(pa.schema(fields, metadata=kept))
        return array.cast(wanted.type)
    except pa.ArrowException as error:
        raise SchemaError(
            f"the log's files or lines do not agree on its type: {wanted.type} and {array.type}",
            column=wanted.name,
            remedy="write the log as one Parquet file with one schema, then score that",
        ) from error
