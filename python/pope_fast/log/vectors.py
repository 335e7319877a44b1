"""Columns of embeddings: lists of numbers, all of one length, as matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast.errors import SchemaError
from pope_fast.log.arrays import as_numpy, null_error, plain, ragged
from pope_fast.log.arrow_types import Array, DataType
from pope_fast.log.columns import bare_type

__all__ = ["rows_per_batch", "split_vectors", "vectors"]

#: Embeddings of one batch aim at no more bytes than this.
_BATCH_BYTES = 64 << 20
#: Elements that an embedding is taken to have where its type does not say.
_USUAL_WIDTH = 1024

_REMEDY = "embed every response with one model, or leave the column out"


def rows_per_batch(types: Iterable[DataType], most: int) -> int:
    """Return how many rows a batch may have, with embeddings of these types; ``most`` if there are none."""
    for type_ in types:
        bare = bare_type(type_)
        if pa.types.is_null(bare):
            continue
        value = bare_type(bare.value_type)
        width = bare.list_size if pa.types.is_fixed_size_list(bare) else _USUAL_WIDTH
        size = 8 if pa.types.is_null(value) else max(value.bit_width // 8, 4)
        most = min(most, max(_BATCH_BYTES // (max(width, 1) * size), 1))
    return most


def split_vectors(array: Array) -> tuple[NDArray[np.int64], Array]:
    """Return the length of each list (0 for null) and all their elements."""
    if pa.types.is_fixed_size_list(array.type):
        # The slots of null lists have elements, which flatten() leaves out.
        lengths = np.where(as_numpy(array.is_null()), 0, array.type.list_size).astype(np.int64)
        return lengths, plain(array.flatten())
    offsets, inner = ragged(array)
    return np.diff(offsets), plain(inner)


def vectors(array: Array, role: str, column: str, first_row: int, width: int | None) -> NDArray[np.floating[Any]]:
    """Return a column of embeddings as a matrix, a view where it can be.

    Parameters
    ----------
    array : pyarrow.Array
        The column of one batch: fixed-size or other lists of numbers.
    role, column, first_row
        For errors, as in :func:`pope_fast.log.arrays.numbers`.
    width : int or None
        Elements of the embeddings of earlier rows, None if these are the first.

    Returns
    -------
    numpy.ndarray, shape (n, width)
        float32 and float64 keep their type; float16 becomes float32, everything else float64.

    Raises
    ------
    SchemaError
        On nulls, on empty lists and on lists of different lengths.
    """
    array = plain(array)
    if array.null_count:
        raise null_error(array, role, column, first_row)
    if len(array) == 0:
        return np.empty((0, width or 1), dtype=np.float32)
    lengths, inner = split_vectors(array)
    expected = int(lengths[0]) if width is None else width
    odd = np.flatnonzero((lengths != expected) | (lengths == 0))
    if odd.size:
        row = int(odd[0])
        message = f"an embedding of {lengths[row]} numbers where earlier rows have {expected}"
        raise SchemaError(
            message if lengths[row] else "an empty embedding", column=column, row=first_row + row, remedy=_REMEDY
        )
    if inner.null_count:
        item = int(np.flatnonzero(as_numpy(inner.is_null()))[0])
        raise SchemaError(
            f"missing value (null) inside the embedding, at element {item % expected}",
            column=column,
            row=first_row + item // expected,
            remedy=_REMEDY,
        )
    return elements(inner).reshape(len(array), expected)


def elements(inner: Array) -> NDArray[np.floating[Any]]:
    """Return numbers without nulls as float32 or float64."""
    if pa.types.is_float32(inner.type) or pa.types.is_float64(inner.type):
        return as_numpy(inner)
    if pa.types.is_float16(inner.type):
        return as_numpy(inner).astype(np.float32)
    return as_numpy(inner.cast(pa.float64()))
