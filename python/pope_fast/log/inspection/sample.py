"""A sample of rows by hash: the same rows whatever the order and the partition of the log, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pope_fast import _core

__all__ = ["HashSample", "Places", "Rows", "bits", "rows_at"]

Rows = dict[str, NDArray[Any]]
Places = NDArray[np.int64] | int
"""Where the rows of a batch are in the log: each, or the first if they follow each other."""

Hashes = NDArray[np.uint64]

_LAST_LEVEL = 64  # above it nothing is kept


def bits(values: NDArray[np.floating[Any]]) -> Hashes:
    """Return the bits of numbers as doubles, one zero for both."""
    return (np.asarray(values, dtype=np.float64) + 0.0).view(np.uint64)


def rows_at(places: Places, found: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where in the log some rows of a batch are."""
    return found + places if isinstance(places, int) else places[found]


class HashSample:
    """Rows whose key has a hash with many leading zeros; one more is asked for when there are too many rows.

    Rows of one key are all in it or none, so what happens among rows of a key can be counted. Which rows are in it
    depends on the rows of the log alone: the last level is the lowest at which they fit.

    Parameters
    ----------
    capacity : int
        Most rows that are kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.level = 0
        self._size = 0
        self._parts: list[Rows] = []

    def __len__(self) -> int:
        return self._size

    def add(self, keys: NDArray[Any], columns: Mapping[str, NDArray[Any]], places: Places) -> None:
        """Look at a batch.

        Parameters
        ----------
        keys : ndarray of int64, uint64 or float64, shape (rows,)
            Rows of one key stay together; numbers are keyed by their bits.
        columns : mapping of str to ndarray, shape (rows,)
            What is kept of a row.
        places : ndarray of int64 or int
            Where the rows are in the log, which is kept as ``row``.
        """
        if keys.dtype.kind == "f":
            keys = keys.astype(np.float64, copy=False)
        raw = np.ascontiguousarray(keys).view(np.uint64)
        level, found, hashes = _core.sample_keys(raw, self._hashes(), self.level, self.capacity)
        self._raise(level)
        if found.size:
            part = {name: values[found] for name, values in columns.items()}
            self._parts.append({**part, "row": rows_at(places, found), "hash": hashes})
            self._size += int(found.size)

    def merge(self, other: HashSample) -> None:
        """Take in the sample of other rows of the log."""
        self._raise(other.level)
        self._parts += other._parts
        level, _, _ = _core.sample_keys(np.empty(0, dtype=np.uint64), self._hashes(), self.level, self.capacity)
        self._thin(level)

    def rows(self) -> Rows:
        """Return what is kept, by column; an empty mapping if nothing is."""
        if not self._size:
            return {}
        if len(self._parts) > 1:
            self._parts = [{name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}]
        return {name: values for name, values in self._parts[0].items() if name != "hash"}

    def _hashes(self) -> Hashes:
        return np.concatenate([part["hash"] for part in self._parts] or [np.empty(0, dtype=np.uint64)])

    def _raise(self, level: int) -> None:
        if level > self.level:
            self._thin(level)

    def _thin(self, level: int) -> None:
        """Keep the rows whose hash has that many leading zeros."""
        self.level = level
        limit = np.uint64(((1 << 64) - 1) >> level)
        thinned = []
        for part in self._parts:
            kept = part["hash"] <= limit if level <= _LAST_LEVEL else np.zeros(len(part["hash"]), dtype=np.bool_)
            if kept.all():
                thinned.append(part)
            elif kept.any():
                thinned.append({name: values[kept] for name, values in part.items()})
        self._parts = thinned
        self._size = sum(len(part["hash"]) for part in thinned)
