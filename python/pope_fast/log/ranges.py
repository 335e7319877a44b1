"""The interval that holds every reward: declared, implied by the type, or observed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from pope_fast.errors import PopeError, SchemaError
from pope_fast.log.arrays import numbers
from pope_fast.log.columns import bare_type
from pope_fast.log.readahead import read_ahead
from pope_fast.log.sources import Source

__all__ = ["RewardRange", "declared_range", "find_range"]

_SCAN_ROWS = 1 << 20


@dataclass(frozen=True, slots=True)
class RewardRange:
    """The interval that holds every reward.

    Attributes
    ----------
    low, high : float
        In the user's reward units; equal if all rewards are.
    origin : {"declared", "boolean", "observed"}
        Where the bounds come from. Observed bounds are those of this log: another log may go beyond.
    """

    low: float
    high: float
    origin: Literal["declared", "boolean", "observed"]


def declared_range(reward_range: tuple[float, float]) -> RewardRange:
    """Check a range that the user declared.

    Raises
    ------
    PopeError
        If it is not two finite numbers in ascending order.
    """
    try:
        low, high = (float(bound) for bound in reward_range)
    except (TypeError, ValueError) as error:
        raise PopeError(f"reward_range must be two numbers, not {reward_range!r}") from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise PopeError(f"reward_range must be two finite numbers, the smaller first, not ({low:g}, {high:g})")
    return RewardRange(low, high, "declared")


def find_range(
    source: Source, column: str, locate: Callable[[SchemaError], SchemaError] = lambda error: error
) -> RewardRange:
    """Return (0, 1) for booleans, else the smallest and largest reward of the log.

    The column is read once, by itself: what a Parquet footer says of it may be damaged.

    Raises
    ------
    SchemaError
        On a null, NaN or infinite reward, after ``locate`` has added its place; on an empty log.
    """
    if pa.types.is_boolean(bare_type(source.schema.field(column).type)):
        return RewardRange(0.0, 1.0, "boolean")
    low, high, row = math.inf, -math.inf, 0
    for batch in read_ahead(source.read([column], _SCAN_ROWS)):
        try:
            values = numbers(batch.column(column), "reward", column, row)
        except SchemaError as error:
            raise locate(error) from error
        # A NaN makes both of them NaN.
        least, most = float(values.min()), float(values.max())
        if not (math.isfinite(least) and math.isfinite(most)):
            bad = int(np.flatnonzero(~np.isfinite(values))[0])
            raise locate(
                SchemaError(
                    f"reward is {values[bad]}",
                    column=column,
                    row=row + bad,
                    remedy="drop the row, or log a finite reward",
                )
            )
        low, high = min(low, least), max(high, most)
        row += batch.num_rows
    if row == 0:
        raise empty_log(source.description)
    return RewardRange(low + 0.0, high + 0.0, "observed")  # -0.0 prints badly


def empty_log(source: str) -> SchemaError:
    """Return the error for a log without rows."""
    return SchemaError("the log is empty", remedy=f"check that {source} is the log that you mean")
