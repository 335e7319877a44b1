"""The first rows of a log with the texts of their responses, which it would take too long to read to the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast.log.arrays import as_numpy, plain, text_hashes
from pope_fast.log.arrow_types import Array
from pope_fast.log.batches import convert, make_plan
from pope_fast.log.columns import is_list_type, is_text_type
from pope_fast.log.inspection.inspection import HEAD_ROWS, Inspection, Texts

if TYPE_CHECKING:
    from pope_fast.log.feedback_log import FeedbackLog

__all__ = ["inspect_head"]


def inspect_head(log: FeedbackLog, policies: Sequence[str], *, prompts: bool) -> Inspection | None:
    """Look at the texts of the first rows; ``None`` if the log has no texts.

    Parameters
    ----------
    log : FeedbackLog
        The log.
    policies : sequence of str
        Target policies.
    prompts : bool
        Whether the unit is the prompt.

    Raises
    ------
    SchemaError
        If a value of these rows is not what it has to be.
    """
    text = log.columns.get("completion") or log.columns.get("completion_ids")
    if text is None:
        return None
    roles = [role for role in ("cluster", "count", "num_tokens") if log.has(role)]
    unit = "prompt" if prompts else "row"
    plan = make_plan(log.schema, log.columns, policies, roles, unit=unit)
    wanted = list(dict.fromkeys([*plan.columns(), text]))
    inspection = Inspection(policies, prompts=prompts)
    row = 0
    reader = log.record_batches(wanted, HEAD_ROWS)
    try:
        for record_batch in reader:
            taken = record_batch.slice(0, HEAD_ROWS - row)
            inspection.add(convert(taken, plan, row), _texts(taken.column(text)))
            row += taken.num_rows
            if row >= HEAD_ROWS:
                break
    finally:
        getattr(reader, "close", lambda: None)()
    return inspection


def _texts(array: Array) -> Texts:
    return Texts(text_hashes(array), _lengths(plain(array)))


def _lengths(array: Array) -> NDArray[np.int64] | None:
    """Return the length of each text in bytes, or in tokens; ``None`` for messages, which have no one length."""
    import pyarrow.compute as pc

    if is_text_type(array.type) and not pa.types.is_fixed_size_binary(array.type):
        lengths: Any = pc.binary_length(array)
    elif is_list_type(array.type) and pa.types.is_integer(array.type.value_type):
        lengths = pc.list_value_length(array)
    else:
        return None
    return as_numpy(lengths.fill_null(0)).astype(np.int64)
