"""Arrow columns to the NumPy arrays that the kernels take: keys, numbers and token lists, without copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast import _core
from pope_fast.errors import SchemaError
from pope_fast.log.arrow_types import Array, DataType
from pope_fast.log.columns import is_list_type, is_text_type

__all__ = ["TokenLists", "keys", "numbers", "plain", "text_hashes", "token_lists"]

Labels = dict[int, "str | int"]

#: A dictionary of labels is for people to read; a column with more labels than this is none.
MAX_LABELS = 65_536

NULL_REMEDIES = {
    "behavior_logprob": "score the response under the policy that produced it, or drop the row; "
    "a missing propensity is never assumed to be 1",
    "target_logprob": "score the response under the target policy, or drop the row; where pope score could "
    "not, the column score_error/NAME says why",
    "reward": "drop the rows without feedback",
    "cluster": "give every response a cluster (its own if it is like no other), or leave the column out",
    "prompt_id": "give every row its prompt",
    "group": "give every row its group (for example 'unknown'), or leave the column out",
    "count": "write 1 for a response that was seen once",
    "embedding": "embed every response, or leave the column out",
}


def as_numpy(array: Array) -> NDArray[Any]:
    """Return the values of a numeric array without nulls as a view; booleans, which Arrow packs, as a copy.

    ``pyarrow.Array.to_numpy`` does the same, but imports pandas (a second) wherever it is installed.
    """
    if isinstance(array, pa.ChunkedArray):
        return np.concatenate([as_numpy(chunk) for chunk in array.chunks] or [np.empty(0)])
    if pa.types.is_boolean(array.type):
        return as_numpy(array.cast(pa.uint8())).astype(np.bool_)
    letter = "f" if pa.types.is_floating(array.type) else "i" if pa.types.is_signed_integer(array.type) else "u"
    dtype = np.dtype(f"{letter}{array.type.bit_width // 8}")
    buffer = array.buffers()[1]
    if len(array) == 0 or buffer is None:
        return np.empty(0, dtype=dtype)
    return np.frombuffer(buffer, dtype=dtype, count=len(array), offset=array.offset * dtype.itemsize)


def null_error(array: Array, role: str, column: str, first_row: int) -> SchemaError:
    """Return the error for the first null of an array that must have none."""
    index = int(np.flatnonzero(as_numpy(array.is_null()))[0])
    stem = role.partition("/")[0].replace("_token_logprobs", "_logprob")
    remedy = NULL_REMEDIES.get(stem, "fill in the value or drop the row")
    return SchemaError("missing value (null)", column=column, row=first_row + index, remedy=remedy)


def plain(array: Array) -> Array:
    """Strip extension, dictionary and run-end encodings off an array."""
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif isinstance(array, pa.DictionaryArray):
            array = array.dictionary_decode()
        elif isinstance(array, pa.RunEndEncodedArray):
            import pyarrow.compute as pc

            array = pc.call_function("run_end_decode", [array])
        else:
            return array


def numbers(array: Array, role: str, column: str, first_row: int) -> NDArray[np.floating[Any]]:
    """Return a numeric (or, for rewards, boolean) column as float32 or float64, a view where it can be.

    Parameters
    ----------
    array : pyarrow.Array
        The column of one batch.
    role, column : str
        What it is for and what it is called, for errors.
    first_row : int
        Global index of the batch's first row, for errors.

    Returns
    -------
    numpy.ndarray, shape (n,)
        float32 and float64 keep their type; float16 becomes float32, everything else float64.

    Raises
    ------
    SchemaError
        On nulls and on types that are no numbers.
    """
    array = plain(array)
    if array.null_count:
        raise null_error(array, role, column, first_row)
    type_ = array.type
    if pa.types.is_float32(type_) or pa.types.is_float64(type_):
        return as_numpy(array)
    if pa.types.is_float16(type_):
        return as_numpy(array).astype(np.float32)
    if pa.types.is_boolean(type_) and role == "reward":
        return as_numpy(array).astype(np.float64)
    if pa.types.is_integer(type_):
        return as_numpy(array).astype(np.float64)
    if pa.types.is_decimal(type_):
        return as_numpy(array.cast(pa.float64()))
    raise SchemaError(f"wrong type {type_}: numbers are needed", column=column, remedy="cast the column to numbers")


def keys(
    array: Array,
    role: str,
    column: str,
    first_row: int,
    labels: Labels | None = None,
    *,
    wide: bool = True,
) -> NDArray[np.int64] | NDArray[np.int32]:
    """Return a key column as integers: integers as they are, anything else as 64-bit hashes of its bytes.

    Parameters
    ----------
    array : pyarrow.Array
        Integers, booleans, strings or bytes in any of Arrow's layouts; or messages or token-id lists.
    role, column, first_row
        For errors, as in :func:`numbers`.
    labels : dict of int to str, optional
        Filled with key -> string for columns of strings (up to 65,536 of them).
    wide : bool
        Whether int32 is widened to int64 (the key of a unit) or left as it is (clusters and groups).

    Returns
    -------
    numpy.ndarray, shape (n,), int64 (or int32 if not ``wide``)
        Hashes are XXH3-64, viewed as signed.
    """
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if labels is not None and is_text_type(array.type) and not isinstance(array, pa.DictionaryArray):
        array = _narrow_text(plain(array)).dictionary_encode()
    if isinstance(array, pa.DictionaryArray):
        return _dictionary_keys(array, role, column, first_row, labels)
    array = plain(array)
    if array.null_count:
        raise null_error(array, role, column, first_row)
    type_ = array.type
    if pa.types.is_int64(type_) or (pa.types.is_int32(type_) and not wide):
        return as_numpy(array)
    if pa.types.is_uint64(type_):
        return as_numpy(array).view(np.int64)
    if pa.types.is_integer(type_):
        return as_numpy(array).astype(np.int64)
    if pa.types.is_boolean(type_):
        if labels is not None:
            labels.update({0: "false", 1: "true"})
        return as_numpy(array).astype(np.int64)
    if is_list_type(type_) and _is_integer_list(type_):
        return _list_hashes(array, column, first_row).view(np.int64)
    if is_text_type(type_) or is_list_type(type_) or pa.types.is_struct(type_):
        return text_hashes(array).view(np.int64)
    raise SchemaError(
        f"wrong type {type_}: integers or strings are needed",
        column=column,
        remedy="cast the column to integers or strings",
    )


def _dictionary_keys(array: Array, role: str, column: str, first_row: int, labels: Labels | None) -> NDArray[np.int64]:
    """Hash each distinct value once and spread the hashes over the rows."""
    values, indices = array.dictionary, array.indices
    if indices.null_count or values.null_count:
        decoded = array.dictionary_decode()
        if decoded.null_count:
            raise null_error(decoded, role, column, first_row)
    if len(values) == 0:
        return np.empty(0, dtype=np.int64)
    if values.null_count:
        # No row points at the null; it only has to be hashable.
        values = plain(values).fill_null("" if is_text_type(values.type) else 0)
    hashes = keys(values, role, column, first_row)
    if labels is not None and is_text_type(values.type):
        # As bytes: a file may hold text that is no UTF-8.
        texts = _narrow_text(plain(values)).cast(pa.large_binary()).to_pylist()
        for key, label in zip(hashes.tolist(), texts, strict=True):
            if len(labels) >= MAX_LABELS:
                break
            labels[key] = label.decode("utf-8", "replace")
    spread: NDArray[np.int64] = np.asarray(hashes, dtype=np.int64)[as_numpy(indices)]
    return spread


def _narrow_text(array: Array) -> Array:
    """Bring strings and bytes to a layout with offsets, which is what the hash kernel reads."""
    type_ = array.type
    if pa.types.is_string_view(type_):
        return array.cast(pa.large_string())
    if pa.types.is_binary_view(type_):
        return array.cast(pa.large_binary())
    if pa.types.is_fixed_size_binary(type_):
        return array.cast(pa.binary())
    return array


def text_hashes(array: Array) -> NDArray[np.uint64]:
    """Return XXH3-64 of each text: of the bytes of strings, of role and content of messages.

    The hash of messages (a list of structs) does not depend on the order of a struct's fields, nor on fields
    that are null in this message: readers add those when another message has them.  A null counts as empty.
    """
    array = _narrow_text(plain(array))
    type_ = array.type
    if is_list_type(type_):
        edges, inner = ragged(array)
        return _core.hash_lists(edges, text_hashes(inner).view(np.int64))
    if pa.types.is_struct(type_):
        return text_hashes(_struct_text(array))
    if not is_text_type(type_):
        return text_hashes(array.cast(pa.string()))
    if array.null_count:
        array = array.fill_null(b"" if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) else "")
    wide = pa.types.is_large_string(type_) or pa.types.is_large_binary(type_)
    _, offsets_buffer, data_buffer = array.buffers()
    if len(array) == 0 or offsets_buffer is None:
        return np.empty(0, dtype=np.uint64)
    rows = slice(array.offset, array.offset + len(array) + 1)
    offsets: NDArray[Any] = np.frombuffer(offsets_buffer, dtype=np.int64 if wide else np.int32)[rows]
    data = np.frombuffer(data_buffer, dtype=np.uint8) if data_buffer else np.empty(0, dtype=np.uint8)
    return _core.hash_strings(offsets, data)


def _struct_text(array: Array) -> Array:
    """Write each struct as one string: names and values of its non-null fields, in alphabetical order."""
    import pyarrow.compute as pc

    empty = pa.scalar("", pa.large_string())
    parts: list[Array] = []
    for field, values in sorted(zip(array.type, array.flatten(), strict=True), key=lambda pair: pair[0].name):
        if pa.types.is_null(field.type):
            continue
        nested = is_list_type(field.type) or pa.types.is_struct(field.type)
        # Values that are no text themselves (images, tool calls) enter by their hash.
        text = pa.array(text_hashes(values)) if nested else values
        text = plain(text).cast(pa.large_string())
        tag = pa.scalar(f"\x1e{field.name}\x1f", pa.large_string())
        tagged = pc.binary_join_element_wise(tag, text, empty)
        parts.append(pc.if_else(values.is_null(), empty, tagged))
    if not parts:
        return pa.array([""] * len(array), pa.large_string())
    return pc.binary_join_element_wise(*parts, empty)


def _is_integer_list(type_: DataType) -> bool:
    return is_list_type(type_) and bool(pa.types.is_integer(type_.value_type))


def ragged(array: Array) -> tuple[NDArray[np.int64], Array]:
    """Return offsets that start at 0, and the values that they cut; a null list counts as empty."""
    type_ = array.type
    if array.null_count == 0 and (pa.types.is_list(type_) or pa.types.is_large_list(type_)):
        raw = as_numpy(array.offsets)
        first, last = int(raw[0]), int(raw[-1])
        offsets: NDArray[np.int64] = raw.astype(np.int64, copy=False)
        return offsets if first == 0 else offsets - first, array.values.slice(first, last - first)
    import pyarrow.compute as pc

    # Not by a cast: from list views it gives wrong lists.
    edges = np.zeros(len(array) + 1, dtype=np.int64)
    np.cumsum(as_numpy(pc.list_value_length(array).fill_null(0)), out=edges[1:])
    return edges, pc.list_flatten(array)


def _list_hashes(array: Array, column: str, first_row: int) -> NDArray[np.uint64]:
    lists = token_lists(array, "prompt_ids", column, first_row, allow_empty=True)
    values = lists.values if lists.values.dtype == np.int32 else lists.values.astype(np.int64)
    return _core.hash_lists(lists.offsets, values)


class TokenLists:
    """A ragged column: row i holds ``values[offsets[i]:offsets[i + 1]]``.

    Attributes
    ----------
    offsets : numpy.ndarray, shape (n + 1,), int64
        Starts at 0.
    values : numpy.ndarray, shape (number of tokens,)
        The lists end to end.
    """

    __slots__ = ("offsets", "values")

    def __init__(self, offsets: NDArray[np.int64], values: NDArray[Any]) -> None:
        self.offsets = offsets
        self.values = values

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens per row, shape (n,)."""
        return np.diff(self.offsets)


def token_lists(array: Array, role: str, column: str, first_row: int, *, allow_empty: bool = False) -> TokenLists:
    """Return a list column as offsets and values, without nulls, a view where it can be.

    Raises
    ------
    SchemaError
        On a null list, a null inside a list, an empty list (unless ``allow_empty``) and on other types.
    """
    array = plain(array)
    if array.null_count:
        raise null_error(array, role, column, first_row)
    if not is_list_type(array.type):
        raise SchemaError(
            f"wrong type {array.type}: lists are needed", column=column, remedy="cast the column to lists"
        )
    offsets, inner = ragged(array)
    inner = plain(inner)
    if inner.null_count:
        token = int(np.flatnonzero(as_numpy(inner.is_null()))[0])
        row = int(np.searchsorted(offsets, token, side="right")) - 1
        raise SchemaError(
            f"missing value (null) inside the list, at token {token - int(offsets[row])}",
            column=column,
            row=first_row + row,
            remedy="a list needs one value per completion token; leave the prompt's tokens out",
        )
    if not allow_empty:
        empty = np.flatnonzero(offsets[1:] == offsets[:-1])
        if empty.size:
            raise SchemaError(
                "empty list of token log-probs",
                column=column,
                row=first_row + int(empty[0]),
                remedy="score the response; an empty list would mean a propensity of 1",
            )
    return TokenLists(offsets, _token_values(inner, role, column))


def _token_values(inner: Array, role: str, column: str) -> NDArray[Any]:
    type_ = inner.type
    if pa.types.is_float32(type_) or pa.types.is_float64(type_):
        return as_numpy(inner)
    if pa.types.is_float16(type_):
        return as_numpy(inner).astype(np.float32)
    if pa.types.is_integer(type_):
        values = as_numpy(inner)
        return values if role.endswith("_ids") else values.astype(np.float64)
    if pa.types.is_null(type_):
        return np.empty(0, dtype=np.float64)
    raise SchemaError(
        f"wrong type list of {type_}: lists of numbers are needed",
        column=column,
        remedy="cast the lists to floating-point numbers",
    )
