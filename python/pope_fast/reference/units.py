"""Units, draws and hashed buckets: what is independent of what."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast.reference._types import FloatArray, IntArray

BUCKETS = 128


def counts_or_ones(count: npt.ArrayLike | None, n: int) -> FloatArray:
    """Multiplicities as floats; 1 for every row if there are none."""
    return np.ones(n) if count is None else np.asarray(count, dtype=np.float64)


def unit_codes(unit: npt.ArrayLike) -> tuple[IntArray, IntArray]:
    """Distinct unit identifiers in increasing order and, per row, the index of its unit."""
    identifiers, codes = np.unique(np.asarray(unit), return_inverse=True)
    return identifiers, codes


def unit_sizes(unit: npt.ArrayLike, count: npt.ArrayLike | None = None) -> FloatArray:
    """Responses per unit, ``K_i = sum_k m_ik``."""
    identifiers, codes = unit_codes(unit)
    sizes = np.bincount(codes, counts_or_ones(count, len(codes)), minlength=len(identifiers))
    return sizes.astype(np.float64)


def unit_means(values: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None) -> FloatArray:
    """Mean of ``values`` over the responses of each unit, ``sum_k m_ik v_ik / K_i``."""
    identifiers, codes = unit_codes(unit)
    m = counts_or_ones(count, len(codes))
    totals = np.zeros(len(identifiers))
    np.add.at(totals, codes, m * np.asarray(values, dtype=np.float64))
    return totals / unit_sizes(unit, count)


def expand_draws(count: npt.ArrayLike, *columns: npt.ArrayLike) -> tuple[npt.NDArray[Any], ...]:
    """Repeat each row as many times as its multiplicity says: one row per draw.

    Raises
    ------
    ValueError
        If a multiplicity is not a whole number; only sums, not draws, can use such a log.
    """
    m = np.asarray(count, dtype=np.float64)
    if not np.array_equal(m, np.rint(m)):
        raise ValueError("draws need whole-number multiplicities")
    return tuple(np.repeat(np.asarray(column), m.astype(np.int64)) for column in columns)


def splitmix64(key: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Hash of 64-bit keys (Steele, Lea & Flood 2014): one step of the SplitMix64 generator."""
    z = np.asarray(key).astype(np.int64).view(np.uint64)
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return hashed


def bucket(key: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Jackknife bucket of each unit key: the top seven bits of its hash, 0..127."""
    return (splitmix64(np.atleast_1d(np.asarray(key))) >> np.uint64(57)).astype(np.int64)
