"""Columns of a log to plain strings: text, messages, bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast.errors import SchemaError
from pope_fast.log.arrays import as_numpy, plain
from pope_fast.log.arrow_types import Array, DataType
from pope_fast.log.columns import bare_type, is_list_type, is_text_type

__all__ = ["check_text_type", "text_list"]


def check_text_type(type_: DataType, column: str) -> None:
    """Refuse a column that holds neither text nor messages.

    Raises
    ------
    SchemaError
        If it does not.
    """
    bare = bare_type(type_)
    messages = is_list_type(bare) and pa.types.is_struct(bare_type(bare.value_type))
    if not (is_text_type(bare) or messages or pa.types.is_null(bare)):
        remedy = "cast the column to strings"
        if is_list_type(bare):
            remedy = "decode token ids with the tokenizer into a column of strings, or give embeddings"
        raise SchemaError(f"wrong type {type_}: text or messages are needed", column=column, remedy=remedy)


def text_list(array: Array, column: str, rows: NDArray[np.int64], *, null: str | None = None) -> list[str]:
    """Return the texts of a column; of messages, the contents, a line each.

    Parameters
    ----------
    array : pyarrow.Array, length n
        Strings, bytes in UTF-8, or lists of messages.
    column : str
        Its name, for errors.
    rows : ndarray of int64, shape (n,)
        Places in the log, for errors.
    null : str, optional
        What a null stands for; without it a null is an error. An empty text is a text.

    Raises
    ------
    SchemaError
        On a null, on bytes that are no UTF-8, and on other types.
    """
    array = plain(array)
    check_text_type(array.type, column)
    if array.null_count and null is None:
        missing = int(rows[np.flatnonzero(as_numpy(array.is_null()))[0]])
        raise SchemaError(
            "missing text (null)",
            column=column,
            row=missing,
            remedy="drop the row, or write an empty text if the response was empty",
        )
    values = array.to_pylist()
    if is_list_type(array.type):
        return [null or "" if messages is None else "\n".join(map(_content, messages)) for messages in values]
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        return [null or "" if text is None else text for text in values]
    return [null or "" if raw is None else _decoded(raw, column, row) for raw, row in zip(values, rows, strict=True)]


def _content(message: Any) -> str:
    """Return what a message says; of a message in parts, its texts."""
    content = None if message is None else message.get("content")
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part, dict) and part.get("text"))
    return "" if content is None else str(content)


def _decoded(raw: bytes, column: str, row: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise SchemaError("bytes that are no UTF-8", column=column, row=int(row), remedy="cast it to strings") from None
