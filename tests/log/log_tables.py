"""Small logs that the tests write, read and break."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pope_fast.log import FeedbackLog, LogBatch


def make_table(prompts: int = 40, responses: int = 3, seed: int = 0, **changed: Any) -> pa.Table:
    """A log without faults; ``changed`` replaces, adds or (None) drops columns."""
    rng = np.random.default_rng(seed)
    n = prompts * responses
    behavior = -rng.gamma(4.0, 1.0, n)
    columns: dict[str, Any] = {
        "prompt_id": np.repeat(np.arange(prompts), responses),
        "behavior_logprob": behavior,
        "target_logprob/near": behavior - 0.25 * rng.random(n),
        "target_logprob/far": behavior - 3.0 * rng.random(n),
        "reward": rng.integers(0, 5, n) / 4.0,
        "cluster": rng.integers(0, 4, n).astype(np.int32),
        "group": [("a", "b", "c")[i] for i in rng.integers(0, 3, n)],
    }
    for name, value in changed.items():
        if value is None:
            columns.pop(name)
        else:
            columns[name] = value
    return pa.table(columns)


def spoiled(name: str, row: int, value: Any, **options: Any) -> pa.Table:
    """The log of :func:`make_table` with one value replaced."""
    table = make_table(**options)
    values = table.column(name).to_pylist()
    values[row] = value
    type_ = table.schema.field(name).type
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, type_))


def joined(batches: Any) -> dict[str, np.ndarray]:
    """The arrays of all batches end to end, after checking that the batches follow one another."""
    taken: list[LogBatch] = list(batches)
    row = 0
    for batch in taken:
        assert batch.first_row == row
        lengths = {name: len(values) for name, values in batch.arrays().items()}
        assert set(lengths.values()) == {len(batch)}, lengths
        row += len(batch)
    return {name: np.concatenate([b.arrays()[name] for b in taken]) for name in taken[0].arrays()}


def read_all(log: FeedbackLog, *args: Any, **options: Any) -> dict[str, np.ndarray]:
    """All rows of a log as arrays."""
    return joined(log.batches(*args, **options))
