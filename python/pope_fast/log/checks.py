"""Every check that a log's values must pass, made over whole batches, with the rows that fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast.log.arrays import NULL_REMEDIES, as_numpy, plain, ragged
from pope_fast.log.arrow_types import Array
from pope_fast.log.batches import LOGPROB_SLACK, UNKNOWN_REMEDY, unknown_logprobs
from pope_fast.log.columns import Fault, split_role
from pope_fast.log.vectors import elements, split_vectors

__all__ = ["FaultBook", "check_key", "check_lengths", "check_number", "check_tokens", "check_vectors"]

#: Finite log-probs below this are masks, not measurements (as in the kernel).
LOGPROB_FLOOR = -1e6
_LISTED_ROWS = 10

_LOGPROB_REMEDY = "write natural logarithms of probabilities: at most 0"
_NAN_REMEDY = "score the response again, or drop the row"


@dataclass
class _Entry:
    message: str
    remedy: str
    count: int = 0
    rows: list[int] = field(default_factory=list)


class FaultBook:
    """Collects faults: one entry per column and kind, with the number of rows and the first few of them."""

    def __init__(self) -> None:
        self._general: list[Fault] = []
        self._by_row: dict[tuple[str, str], _Entry] = {}

    def add(self, fault: Fault) -> None:
        """Enter a fault that is not one of many rows."""
        if fault not in self._general:
            self._general.append(fault)

    def rows(self, column: str, kind: str, message: str, remedy: str, rows: NDArray[Any]) -> None:
        """Enter rows (global indices, ascending) that fail in one way; the first message stays."""
        if rows.size == 0:
            return
        entry = self._by_row.setdefault((column, kind), _Entry(message, remedy))
        entry.count += int(rows.size)
        entry.rows += rows[: _LISTED_ROWS - len(entry.rows)].tolist() if len(entry.rows) < _LISTED_ROWS else []

    def __iter__(self) -> Iterator[Fault]:
        yield from self._general
        for (column, _), entry in self._by_row.items():
            yield Fault(column, entry.rows[0], entry.message, entry.remedy, entry.count, tuple(entry.rows))


def check_key(book: FaultBook, array: Array, role: str, column: str, first_row: int) -> None:
    """Check a key column: no nulls."""
    _nulls(book, array, role, column, first_row)


def check_number(
    book: FaultBook,
    array: Array,
    role: str,
    column: str,
    first_row: int,
    declared: tuple[float, float] | None = None,
) -> NDArray[np.float64]:
    """Check a numeric column and return its values, NaN where they are null.

    Parameters
    ----------
    book : FaultBook
        Where faults go.
    array : pyarrow.Array
        The column of a batch.
    role, column, first_row
        What it is for, its name, and the global index of its first row.
    declared : (float, float), optional
        The declared reward range.
    """
    array = plain(array)
    present = ~_nulls(book, array, role, column, first_row)
    values = np.full(len(array), np.nan)
    if not pa.types.is_null(array.type):
        values[present] = as_numpy(array.drop_null().cast(pa.float64(), safe=False))

    def fault(kind: str, bad: NDArray[np.bool_], message: str, remedy: str) -> None:
        rows = np.flatnonzero(bad & present)
        if rows.size:
            book.rows(column, kind, message.format(values[rows[0]]), remedy, rows + first_row)

    stem = split_role(role)[0]
    if stem in ("behavior_logprob", "target_logprob"):
        fault("nan", np.isnan(values), "NaN log-prob", _NAN_REMEDY)
        fault("positive", values > LOGPROB_SLACK, "log-prob {:g} > 0", _LOGPROB_REMEDY)
        mask = (values < LOGPROB_FLOOR) & np.isfinite(values)
        fault("unknown", _unknown(values), "log-prob {:g} stands for 'unknown'", UNKNOWN_REMEDY)
        fault("mask", mask, "log-prob {:g} looks like a mask value", "write -inf under a target policy")
        if stem == "behavior_logprob":
            _impossible(book, column, np.flatnonzero(np.isneginf(values)) + first_row)
    elif stem == "reward":
        fault("nan", np.isnan(values), "NaN reward", "drop the row, or log a finite reward")
        fault("infinite", np.isinf(values), "infinite reward", "drop the row, or log a finite reward")
        if declared is not None:
            low, high = declared
            outside = np.isfinite(values) & ((values < low) | (values > high))
            message = f"reward {{:g}} outside of the declared range [{low:g}, {high:g}]"
            fault("range", outside, message, "declare a range that holds all possible rewards")
    elif stem == "count":
        whole = (values >= 1) & (values <= 9e15) & (np.floor(values) == values)
        message = "count {:g} is not a positive whole number"
        fault("count", ~whole, message, "drop rows that stand for no draw; round counts")
    elif stem == "num_tokens":
        good = (values >= 0) & (values <= 1e12)
        fault("length", ~good, "token count {:g} is not a non-negative number", "log the number of tokens")
    else:
        fault("finite", ~np.isfinite(values), "prediction {:g} is not finite", "predict again or drop the row")
    return values


def check_tokens(book: FaultBook, array: Array, role: str, column: str, first_row: int) -> NDArray[np.int64]:
    """Check a column of token log-probs and return the lengths of its lists, -1 for null."""
    array = plain(array)
    null = _nulls(book, array, role, column, first_row)
    if pa.types.is_null(array.type):
        return np.full(len(array), -1, dtype=np.int64)
    offsets, inner = ragged(array)
    inner = plain(inner)
    lengths = np.where(null, -1, np.diff(offsets))
    remedy = "score the response; an empty list would mean a propensity of 1"
    empty = np.flatnonzero((lengths == 0) & ~null)
    book.rows(column, "empty", "empty list of token log-probs", remedy, empty + first_row)
    parents = np.repeat(np.arange(len(array)), np.diff(offsets))

    def fault(kind: str, bad: NDArray[np.bool_], message: str, remedy: str) -> None:
        book.rows(column, kind, message, remedy, np.unique(parents[bad]) + first_row)

    missing = as_numpy(inner.is_null())
    fault("null inside", missing, "missing value (null) inside the list", "leave the prompt's tokens out")
    values = np.zeros(len(inner))
    if not pa.types.is_null(inner.type):
        values[~missing] = as_numpy(inner.drop_null().cast(pa.float64(), safe=False))
    fault("nan", np.isnan(values), "NaN token log-prob", _NAN_REMEDY)
    fault("positive", values > LOGPROB_SLACK, "token log-prob > 0", _LOGPROB_REMEDY)
    fault("unknown", _unknown(values), "token log-prob that stands for 'unknown'", UNKNOWN_REMEDY)
    if role.startswith("behavior"):
        _impossible(book, column, np.unique(parents[np.isneginf(values)]) + first_row)
    return lengths


def check_vectors(
    book: FaultBook, array: Array, role: str, column: str, first_row: int, width: int | None
) -> int | None:
    """Check a column of embeddings and return their width, that of the first one."""
    array = plain(array)
    null = _nulls(book, array, role, column, first_row)
    if null.all() or pa.types.is_null(array.type):
        return width
    lengths, inner = split_vectors(array)
    if width is None:
        width = int(lengths[~null][0])
    remedy = "embed every response with one model"
    odd = np.flatnonzero((lengths != width) & ~null)
    if odd.size:
        message = f"an embedding of {lengths[odd[0]]} numbers where earlier rows have {width}"
        book.rows(column, "width", message, remedy, odd + first_row)
    if width == 0:
        book.rows(column, "empty", "an empty embedding", remedy, np.flatnonzero(~null & (lengths == 0)) + first_row)
    parents = np.repeat(np.arange(len(array)), lengths)

    def fault(kind: str, bad: NDArray[np.bool_], message: str) -> NDArray[Any]:
        rows = np.unique(parents[bad])
        book.rows(column, kind, message, "embed the response again, or drop the row", rows + first_row)
        return rows

    missing = np.asarray(as_numpy(inner.is_null()), dtype=np.bool_)
    fault("null inside", missing, "missing value (null) inside the embedding")
    values = np.ones(len(inner))
    if not pa.types.is_null(inner.type):
        values[~missing] = elements(inner.drop_null())
    fault("finite", ~np.isfinite(values), "NaN or infinity in the embedding")
    length = np.bincount(parents, values != 0, minlength=len(array))
    zero = np.flatnonzero((length == 0) & (lengths > 0))
    book.rows(column, "zero", "the embedding is zero, and so has no direction", remedy, zero + first_row)
    return width


def check_lengths(
    book: FaultBook,
    column: str,
    lengths: NDArray[np.int64],
    reference: str,
    expected: NDArray[np.int64],
    first_row: int,
) -> None:
    """Check that two columns of token lists have equal lengths in every row."""
    rows = np.flatnonzero((lengths != expected) & (lengths > 0) & (expected > 0))
    if rows.size:
        row = rows[0]
        message = f"{lengths[row]} token log-probs, but {expected[row]} in {reference!r}"
        remedy = "score the same completion tokens under both policies, with one tokenizer"
        book.rows(column, "lengths", message, remedy, rows + first_row)


def _nulls(book: FaultBook, array: Array, role: str, column: str, first_row: int) -> NDArray[np.bool_]:
    """Enter the nulls of a column and return where they are."""
    null = np.asarray(as_numpy(plain(array).is_null()), dtype=np.bool_)
    stem = split_role(role)[0].replace("_token_logprobs", "_logprob")
    remedy = NULL_REMEDIES.get(stem, "fill in the value or drop the row")
    book.rows(column, "null", "missing value (null)", remedy, np.flatnonzero(null) + first_row)
    return null


def _unknown(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    found = np.zeros(len(values), dtype=np.bool_)
    found[unknown_logprobs(values)] = True
    return found


def _impossible(book: FaultBook, column: str, rows: NDArray[Any]) -> None:
    message = "log-prob -inf of a logged response under the policy that produced it"
    remedy = "log the probabilities of the distribution that was sampled from (after top-p, top-k, temperature)"
    book.rows(column, "impossible", message, remedy, rows)
