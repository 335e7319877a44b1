"""Errors and warnings that pope_fast raises, all children of one base.

Everything a user can do wrong is a :class:`PopeError`; the command line prints ``str(error)`` and exits with
code 2.  Anything else that escapes is a defect of the library.
"""

from __future__ import annotations

__all__ = [
    "OverlapError",
    "PopeError",
    "PopeWarning",
    "SchemaError",
    "StateError",
]


class PopeError(Exception):
    """Base of every error that pope_fast raises for a mistake in its input."""


class SchemaError(PopeError, ValueError):
    """A column, a row or a value of the log is not what it has to be.

    Parameters
    ----------
    message : str
        What is wrong, in words.
    column : str, optional
        The column at fault: the name in the user's data where it is known, else the role.
    row : int, optional
        Index of the row at fault, counted from 0 in reading order.
    remedy : str, optional
        What the user can do about it.

    Attributes
    ----------
    message, column, row, remedy
        As given.

    Examples
    --------
    >>> print(SchemaError("NaN reward", column="reward", row=17, remedy="drop the row"))
    column 'reward', row 17: NaN reward. Remedy: drop the row.
    """

    def __init__(
        self,
        message: str,
        *,
        column: str | None = None,
        row: int | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.column = column
        self.row = row
        self.remedy = remedy

    def __str__(self) -> str:
        place = []
        if self.column is not None:
            place.append(f"column {self.column!r}")
        if self.row is not None:
            place.append(f"row {self.row}")
        text = ", ".join(place)
        text = f"{text}: {self.message}" if text else self.message
        if self.remedy is not None:
            end = "" if self.remedy.endswith("?") else "."
            text = f"{text.rstrip('.')}. Remedy: {self.remedy.rstrip('.')}{end}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        # The keyword-only arguments do not survive the default protocol, and errors cross process borders.
        return _rebuild_schema_error, (type(self), self.message, self.column, self.row, self.remedy)


def _rebuild_schema_error(
    cls: type[SchemaError],
    message: str,
    column: str | None,
    row: int | None,
    remedy: str | None,
) -> SchemaError:
    return cls(message, column=column, row=row, remedy=remedy)


class OverlapError(PopeError, ValueError):
    """The log cannot answer the question, and the caller demanded an answer."""


class StateError(PopeError, ValueError):
    """Bytes that are no state, or states of different configurations that were to be merged."""


class PopeWarning(UserWarning):
    """Something in the log may not mean what the estimators take it to mean."""
