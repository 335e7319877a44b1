"""Names for Arrow objects in annotations.

pyarrow's stubs tell every layout of an array apart by a generic type of its own; code that takes any
layout, as a reader of other people's files must, cannot be written against them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = ["Array", "DataType"]

#: A ``pyarrow.Array`` of any type.
Array: TypeAlias = Any

#: A ``pyarrow.DataType``.
DataType: TypeAlias = Any
