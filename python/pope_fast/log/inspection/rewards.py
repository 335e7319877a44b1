"""Rewards that are no rewards: 99 among ratings of 1 to 5, -1 among clicks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pope_fast.log.inspection.sample import Places, rows_at
from pope_fast.log.inspection.signs import SENTINEL, Sign

__all__ = ["RewardValues", "sentinel_signs"]

#: A reward with more different values is not counted value by value.
_MOST_VALUES = 32
_PROBE_ROWS = 1 << 12

#: Numbers that stand for "no answer" in surveys and programs.
_USUAL = frozenset(
    {-1.0, -2.0, -8.0, -9.0, -98.0, -99.0, -100.0, -999.0, -9999.0, -99999.0, -32768.0, -2147483648.0, -1e9, -1e10}
    | {-1e20, -1e30, 88.0, 98.0, 99.0, 255.0, 777.0, 888.0, 999.0, 9999.0, 99999.0, 999999.0, 32767.0, 65535.0}
    | {2147483647.0, 4294967295.0, 1e9, 1e10, 1e20, 1e30}
)
_SCALE = 12  # a scale has at most so many values; a reward with more is continuous, or a count
_NEIGHBORS = 10  # rows that the nearest value of a scale must have: a scale does not trail off, as counts do
_FAR = 3.0  # how many times the range of the others a value that is no usual sentinel must lie outside
_RARE = 0.01  # the largest share of such a value
_COMMON = 0.1  # and the least share of the value nearest to it
_BESIDE = 0.005  # the largest share of a -1 right beside a scale that starts at 0: more is a rating
_ATOM = 3  # rows with exactly the same value outside of a continuous range


@dataclass(slots=True)
class _Seen:
    """How often a value occurs, and in which row first."""

    count: int
    row: int

    def and_also(self, other: _Seen | None) -> _Seen:
        return self if other is None else _Seen(self.count + other.count, min(self.row, other.row))


class RewardValues:
    """Counts of every reward as long as there are few different ones, else of the two at either end.

    What it knows in the end depends on the rows alone, not on their order or partition.

    Attributes
    ----------
    n_rows : int
        Rewards seen.
    counts : dict of float to count and first row, or None
        Every value; ``None`` once there are too many.
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self.counts: dict[float, _Seen] | None = {}
        self._ends: tuple[dict[float, _Seen], dict[float, _Seen]] = ({}, {})

    def add(self, values: NDArray[np.floating[Any]], rows: Places) -> None:
        """Look at the rewards of a batch, all of them finite, and their places in the log: the first, or each."""
        self.n_rows += len(values)
        if self.counts is not None:
            self._add_counts(values, rows)
        else:
            self._add_ends(values, rows)

    def merge(self, other: RewardValues) -> None:
        """Take in what was seen of other rows of the log."""
        self.n_rows += other.n_rows
        if self.counts is not None and other.counts is not None:
            for value, seen in other.counts.items():
                self.counts[value] = seen.and_also(self.counts.get(value))
            if len(self.counts) > _MOST_VALUES:
                self._give_up_counts()
            return
        if self.counts is not None:
            self._give_up_counts()
        theirs = other._ends if other.counts is None else (other.counts, other.counts)
        for mine, new, high in zip(self._ends, theirs, (False, True), strict=True):
            for value, seen in new.items():
                mine[value] = seen.and_also(mine.get(value))
            _keep_two(mine, high)

    def table(self) -> tuple[dict[float, _Seen], bool]:
        """Return value -> count and first row, in ascending order, and whether these are all values."""
        found = {**self._ends[0], **self._ends[1]} if self.counts is None else self.counts
        return dict(sorted(found.items())), self.counts is not None

    def _add_counts(self, values: NDArray[np.floating[Any]], rows: Places) -> None:
        assert self.counts is not None
        left, places = values, rows
        wanted = list(self.counts) or _distinct(left)
        while left.size:
            if len(self.counts.keys() | wanted) > _MOST_VALUES:
                self._give_up_counts()
                self._add_ends(left, places)
                return
            n_matched = 0
            for value in wanted:
                same = left == value
                count = int(np.count_nonzero(same))
                if count:
                    seen = _Seen(count, _first(places, same))
                    self.counts[value] = seen.and_also(self.counts.get(value))
                    n_matched += count
                    if n_matched == len(left):
                        return
            # Hardly ever: a value that was not seen before.
            new = np.flatnonzero(~np.isin(left, wanted))
            left, places = left[new], rows_at(places, new)
            wanted = _distinct(left)

    def _give_up_counts(self) -> None:
        assert self.counts is not None
        for ends, high in zip(self._ends, (False, True), strict=True):
            ends.update(self.counts)
            _keep_two(ends, high)
        self.counts = None

    def _add_ends(self, values: NDArray[np.floating[Any]], rows: Places) -> None:
        for ends, high in zip(self._ends, (False, True), strict=True):
            left = values
            for _ in range(2):
                if left.size == 0:
                    break
                end = float(left.max() if high else left.min()) + 0.0
                if len(ends) == 2 and (end < min(ends) if high else end > max(ends)):
                    break  # this batch has nothing as far out
                same = values == end
                seen = _Seen(int(np.count_nonzero(same)), _first(rows, same))
                ends[end] = seen.and_also(ends.get(end))
                left = left[left < end] if high else left[left > end]
            _keep_two(ends, high)


def _distinct(values: NDArray[np.floating[Any]]) -> list[float]:
    """Return the different values of the first rows."""
    found: list[float] = (np.unique(values[:_PROBE_ROWS]) + 0.0).tolist()
    return found


def _first(places: Places, found: NDArray[np.bool_]) -> int:
    if isinstance(places, int):
        return places + int(np.argmax(found))
    # Rows of scattered prompts come in another order than that of the log.
    return int(places[found].min())


def _keep_two(ends: dict[float, _Seen], high: bool) -> None:
    for value in sorted(ends, reverse=high)[2:]:
        del ends[value]


def sentinel_signs(seen: RewardValues, column: str | None, declared: tuple[float, float] | None) -> list[Sign]:
    """Find rewards outside of the others that stand for something else.

    Parameters
    ----------
    seen : RewardValues
        All rewards of the log.
    column : str or None
        Their column.
    declared : (float, float) or None
        The declared range: its bounds are meant.
    """
    table, complete = seen.table()
    meant = frozenset(declared or ())
    signs = []
    for value, nearest, core in _ends(table):
        if value in meant or not _is_sentinel(value, nearest, core, table, complete, seen.n_rows):
            continue
        found = table[value]
        be = "is" if found.count == 1 else "are"
        message = (
            f"{found.count:,} of {seen.n_rows:,} rewards {be} {value:g}, the first in row {found.row:,}, where all "
            f"others lie between {min(core):g} and {max(core):g}: does it stand for a missing reward?"
        )
        share = found.count / seen.n_rows
        signs.append(Sign(SENTINEL, "caution", message, column, found.row, found.count, share, quantities=("utility",)))
    return signs


def _ends(table: Mapping[float, _Seen]) -> Iterator[tuple[float, float, list[float]]]:
    """Yield each extreme value, its neighbor, and the values that are no possible sentinels."""
    values = list(table)
    if len(values) < 3:
        return
    suspects = {values[0], values[-1]} & _USUAL
    for value, nearest in ((values[0], values[1]), (values[-1], values[-2])):
        core = [other for other in values if other != value and other not in suspects]
        if len(core) >= 2:
            yield value, nearest, core


def _is_sentinel(
    value: float, nearest: float, core: list[float], table: Mapping[float, _Seen], complete: bool, n_rows: int
) -> bool:
    gap, width = abs(value - nearest), max(core) - min(core)
    count, beside = table[value].count, table[nearest].count
    usual = value in _USUAL
    if count > n_rows / 2:
        return False
    if not complete or len(core) > _SCALE:
        if not usual:
            return False
        if gap > 10 * width or (gap > _FAR * width and count > 1):
            return True
        return value < 0 <= min(core) and count >= _ATOM and gap >= width / 2
    if beside < _NEIGHBORS:
        return False
    if not usual:
        return gap > _FAR * width and count <= _RARE * n_rows and beside >= _COMMON * n_rows
    if gap > width:
        return True
    below = value < 0 <= min(core)
    step = max(b - a for a, b in pairwise(core))
    whole = all(float(other).is_integer() for other in core)
    if below and len(core) > 2 and gap > 1.5 * step:
        return True
    return below and value == -1 and whole and count <= _BESIDE * n_rows
