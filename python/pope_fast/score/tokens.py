"""Lists of token ids, flat as in Arrow, and which of them are equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast import _core
from pope_fast.errors import SchemaError

__all__ = ["TokenLists", "distinct", "positions"]

_Int64 = npt.NDArray[np.int64]
_Int32 = npt.NDArray[np.int32]

# Tokens compared at once when rows of equal hash are checked; bounds the memory of the check to some 100 MB.
_BLOCK_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True)
class TokenLists:
    """Lists of token ids, flat as in Arrow.

    Attributes
    ----------
    offsets : int64 array of shape (n + 1,)
        List i is ``values[offsets[i]:offsets[i + 1]]``.
    values : int32 array
        Token ids of all lists.
    """

    offsets: _Int64
    values: _Int32

    @classmethod
    def of(cls, lists: TokenLists | Sequence[Any]) -> TokenLists:
        """Return lists in this form; each may be an integer array or a sequence of integers.

        Raises
        ------
        SchemaError
            If a list holds anything but integers of 32 bits.
        """
        if isinstance(lists, TokenLists):
            return lists
        arrays = [np.asarray(item) for item in lists]
        lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        if not offsets[-1]:
            return cls(offsets, np.empty(0, np.int32))
        # An empty list becomes an array of floats, which would make everything float.
        values = np.concatenate([array for array in arrays if array.size])
        if values.dtype.kind not in "iu":
            raise SchemaError(f"token ids must be integers, not {values.dtype}")
        if values.dtype != np.int32:
            if values.min() < -(2**31) or values.max() >= 2**31:
                raise SchemaError("token ids must fit into 32 bits")
            values = values.astype(np.int32)
        return cls(offsets, np.ascontiguousarray(values))

    @property
    def lengths(self) -> _Int64:
        """Number of tokens of each list."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return self.offsets.size - 1

    def __getitem__(self, index: int) -> _Int32:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def take(self, rows: _Int64) -> TokenLists:
        """Return the lists at ``rows``, in that order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        values = np.empty(offsets[-1], np.int32)
        for block in _blocks(lengths):
            source = positions(self.offsets[rows[block]], lengths[block])
            values[offsets[block.start] : offsets[block.stop]] = self.values[source]
        return TokenLists(offsets, values)


def _blocks(lengths: _Int64) -> Iterator[slice]:
    """Cut rows into blocks of bounded tokens; a block has at least one row."""
    ends = np.cumsum(lengths)
    start = 0
    while start < lengths.size:
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _BLOCK_TOKENS, side="right")))
        yield slice(start, stop)
        start = stop


def positions(starts: _Int64, lengths: _Int64) -> _Int64:
    """Return the concatenation of ``arange(start, start + length)`` over all pairs."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    return np.repeat(starts - ends + lengths, lengths) + np.arange(total)


def _hashes(lists: TokenLists, rows: _Int64) -> npt.NDArray[np.uint64]:
    """Hash the bytes of each list: as exact as hashing the numbers, without a copy of them as 64-bit integers."""
    hashes = _core.hash_strings(lists.offsets * 4, lists.values.view(np.uint8))
    return hashes if rows.size == hashes.size else hashes[rows]


def distinct(lists: TokenLists, rows: _Int64) -> tuple[_Int64, _Int64]:
    """Find equal lists among ``rows``.

    Returns
    -------
    first, label : int64 arrays
        ``rows[first]`` are the first appearances, in order; ``label`` is the number of each row's list among them.
    """
    hashes = _hashes(lists, rows)
    first_equal = np.arange(rows.size)
    pending = first_equal
    while pending.size:
        _, first, group = np.unique(hashes[pending], return_index=True, return_inverse=True)
        candidate = pending[first][group]
        equal = _equal(lists, rows[pending], rows[candidate])
        first_equal[pending[equal]] = candidate[equal]
        # Lists that merely share a hash with the first of their group are compared with each other next.
        pending = pending[~equal]
    firsts = np.flatnonzero(first_equal == np.arange(rows.size))
    return firsts, np.searchsorted(firsts, first_equal)


def _equal(lists: TokenLists, left: _Int64, right: _Int64) -> npt.NDArray[np.bool_]:
    """Return whether the lists at ``left[i]`` and ``right[i]`` are equal, for every i."""
    lengths = lists.lengths
    equal: npt.NDArray[np.bool_] = lengths[left] == lengths[right]
    compared = np.flatnonzero(equal & (left != right) & (lengths[left] > 0))
    for block in _blocks(lengths[left[compared]]):
        at = compared[block]
        sizes = lengths[left[at]]
        mine = positions(lists.offsets[left[at]], sizes)
        other = mine + np.repeat(lists.offsets[right[at]] - lists.offsets[left[at]], sizes)
        differs = lists.values[mine] != lists.values[other]
        equal[at] = ~np.logical_or.reduceat(differs, np.cumsum(sizes) - sizes)
    return equal
