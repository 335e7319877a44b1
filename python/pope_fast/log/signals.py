"""Signs that a log's numbers may not mean what the estimators take them to mean: they warn, not refuse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast.log.arrays import as_numpy, plain
from pope_fast.log.arrow_types import Array
from pope_fast.log.columns import ColumnMap, bare_type, is_number_type, is_text_type
from pope_fast.log.scatter import mixed_keys

__all__ = ["SCORES_KEY", "SamplingCheck", "duplicate_rows", "duplicate_warning", "retokenized_warning"]

#: Key of the schema metadata in which scoring notes how columns were made.
SCORES_KEY = b"pope_fast.scores"

_PARAMETERS = ("temperature", "top_p", "top_k", "min_p")


class _Place(NamedTuple):
    column: str
    field: str | None


class SamplingCheck:
    """Watches the sampling parameters of a log for samplers that change the distribution of the responses.

    Looks into the ``sampling`` column (a struct, or a string of JSON) and, beside it, into flat columns named
    ``sampling.top_p``, ``sampling/top_p`` or ``top_p``.
    """

    def __init__(self, schema: pa.Schema, columns: ColumnMap) -> None:
        self._places: list[tuple[str, _Place]] = []
        self._json: str | None = None
        self._seen: dict[str, dict[str, tuple[float, float]]] = {parameter: {} for parameter in _PARAMETERS}
        for parameter in _PARAMETERS:
            for name in (f"sampling.{parameter}", f"sampling/{parameter}", parameter):
                if schema.names.count(name) == 1 and is_number_type(schema.field(name).type):
                    self._places.append((parameter, _Place(name, None)))
        column = columns.get("sampling")
        if column is not None and schema.names.count(column) == 1:
            type_ = bare_type(schema.field(column).type)
            if pa.types.is_struct(type_):
                for field in type_:
                    if field.name in _PARAMETERS and is_number_type(field.type):
                        self._places.append((field.name, _Place(column, field.name)))
            elif is_text_type(type_):
                self._json = column

    @property
    def columns(self) -> list[str]:
        """The columns to read, each once."""
        names = [place.column for _, place in self._places]
        return list(dict.fromkeys([*names, *([self._json] if self._json else [])]))

    def feed(self, batch: pa.RecordBatch) -> None:
        """Look at one batch."""
        structs: dict[str, dict[str, Array]] = {}
        for parameter, (column, field) in self._places:
            array = batch.column(column)
            if field is not None:
                if column not in structs:
                    struct = plain(array)
                    names = [inner.name for inner in struct.type]
                    structs[column] = dict(zip(names, struct.flatten(), strict=True))
                found = structs[column].get(field)
                if found is None:
                    continue
                array = found
            self._see(parameter, column, array)
        if self._json is not None:
            self._see_json(self._json, batch.column(self._json))

    def _see(self, parameter: str, column: str, array: Array) -> None:
        import pyarrow.compute as pc

        if array.null_count == len(array):
            return
        bounds = pc.min_max(plain(array).cast(pa.float64()))
        low, high = bounds["min"].as_py(), bounds["max"].as_py()
        if low is not None:
            known = self._seen[parameter].get(column, (low, high))
            self._seen[parameter][column] = min(low, known[0]), max(high, known[1])

    def _see_json(self, column: str, array: Array) -> None:
        for text in plain(array).unique().to_pylist()[:1000]:
            try:
                values = json.loads(text) if text else {}
            except (ValueError, TypeError):
                continue
            for parameter in _PARAMETERS if isinstance(values, Mapping) else ():
                if isinstance(values.get(parameter), (int, float)):
                    self._see(parameter, column, pa.array([float(values[parameter])]))

    @property
    def temperatures(self) -> Mapping[str, tuple[float, float]]:
        """The lowest and the highest temperature that each column names."""
        return self._seen["temperature"]

    def _low(self, parameter: str, default: float) -> float:
        return min((low for low, _ in self._seen[parameter].values()), default=default)

    def _high(self, parameter: str, default: float) -> float:
        return max((high for _, high in self._seen[parameter].values()), default=default)

    def warnings(self) -> list[str]:
        """Return what is to be said about what was seen so far."""
        cuts = []
        if (top_p := self._low("top_p", 1.0)) < 1:
            cuts.append(f"top_p {top_p:g}")
        if (top_k := self._high("top_k", 0.0)) > 0:
            cuts.append(f"top_k {top_k:g}")
        if (min_p := self._high("min_p", 0.0)) > 0:
            cuts.append(f"min_p {min_p:g}")
        said = []
        if cuts:
            said.append(
                f"responses were sampled with {', '.join(cuts)}: the behavior log-probs must be those of "
                "this truncated sampler, renormalized, not of the whole softmax; a target policy that puts "
                "mass outside of it has no support in this log"
            )
        low, high = self._low("temperature", 1.0), self._high("temperature", 1.0)
        if low != 1 or high != 1:
            value = span(low, high)
            said.append(f"responses were sampled at temperature {value}: the behavior log-probs must be taken at it")
        return said


def span(low: float, high: float) -> str:
    """Write a value, or from where to where it goes."""
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def scored_temperature(schema: pa.Schema, column: str) -> float | None:
    """Return the temperature at which scoring says that it made a column, ``None`` if it does not say."""
    try:
        noted = json.loads((schema.metadata or {}).get(SCORES_KEY, b"{}"))[column]["temperature"]
    except (ValueError, TypeError, KeyError):
        return None  # a note that is damaged is refused where it is read for what else it says
    return float(noted) if isinstance(noted, (int, float)) else None


def duplicate_rows(unit_key: NDArray[np.int64] | None, text: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return one 64-bit mark per row, equal for rows of one unit with identical text."""
    if unit_key is None:
        return text
    return mixed_keys((mixed_keys(unit_key) ^ text).view(np.int64))


def count_repeats(marks: NDArray[np.uint64]) -> int:
    """Return how many rows repeat an earlier one."""
    return int(marks.size - np.unique(marks).size)


def duplicate_warning(repeats: int, rows: int) -> str:
    """Say that identical responses are counted as separate draws."""
    return (
        f"{repeats:,} of {rows:,} rows repeat the text of another response to their prompt; each is counted "
        "as a separate draw, which is right for independent samples and wrong for copies (retries, a cache): "
        "drop copies, or aggregate rows with a 'count' column"
    )


def retokenized_warning(column: str, row: int, tokens: int, ids: int) -> str:
    """Say that token log-probs and token ids do not describe the same tokens."""
    return (
        f"column {column!r}, row {row}: {tokens} token log-probs for {ids} completion_ids; the text may have "
        "been tokenized again, which gives log-probs of other tokens than the sampled ones"
    )


def lengths_or_none(array: Array) -> NDArray[Any] | None:
    """Return the lengths of the lists of a column (-1 for null), None if it holds none."""
    import pyarrow.compute as pc

    try:
        return as_numpy(pc.list_value_length(plain(array)).fill_null(-1))
    except (pa.ArrowException, TypeError):
        return None
