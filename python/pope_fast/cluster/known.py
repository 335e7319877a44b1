"""Known clusters in a log's own column, to hold found ones against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pope_fast.log.arrays import keys
from pope_fast.log.batches import unit_column, unit_keys
from pope_fast.log.feedback_log import FeedbackLog
from pope_fast.log.remedies import missing_column

__all__ = ["known_clusters"]


def known_clusters(log: FeedbackLog, column: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a column of integers or strings as integers, and the key of each row's prompt.

    Parameters
    ----------
    log : FeedbackLog
        The log.
    column : str
        Its column of known clusters.

    Returns
    -------
    tuple of ndarray of int64, shape (rows,)
        For :func:`pope_fast.cluster.agreement`.

    Raises
    ------
    SchemaError
        If the column is missing, of another type, or has a null.
    """
    if column not in log.schema.names:
        raise missing_column(column, log.schema.names)
    unit, role = unit_column(log.columns, log.schema.names, "prompt")
    assert unit is not None
    known: list[NDArray[np.int64]] = []
    prompts: list[NDArray[np.int64]] = []
    row = 0
    for batch in log.record_batches(list(dict.fromkeys([unit, column]))):
        known.append(np.asarray(keys(batch.column(column), "cluster", column, row), dtype=np.int64))
        prompt = unit_keys(batch, unit, role, row)
        assert prompt is not None
        prompts.append(prompt)
        row += batch.num_rows
    return np.concatenate(known or [np.empty(0, np.int64)]), np.concatenate(prompts or [np.empty(0, np.int64)])
