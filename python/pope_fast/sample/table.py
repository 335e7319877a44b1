"""Draws as the columns of a log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast.log.arrow_types import Array
from pope_fast.sample.prompts import Prompts
from pope_fast.sample.settings import Sampling
from pope_fast.score.encoding import Encoder
from pope_fast.score.metadata import Provenance, with_provenance

if TYPE_CHECKING:
    from pope_fast.sample.decode import Draw

__all__ = ["draws_table"]


def draws_table(
    prompts: Prompts,
    draws: list[list[Draw]],
    sampling: Sampling,
    seed: int,
    encoder: Encoder | None,
    made: Provenance,
    token_logprobs: bool,
) -> pa.Table:
    """Put the draws into the columns of a log."""
    flat = [draw for of_prompt in draws for draw in of_prompt]
    k = len(draws[0])
    owner: Any = pa.array(np.repeat(np.arange(len(draws)), k))
    columns: dict[str, Any] = {name: prompts.columns[name].take(owner) for name in prompts.columns.column_names}
    if prompts.source == "stored":
        # Prompts that are text are not written as this policy's tokens: others have their own tokenizers and templates.
        columns["prompt_ids"] = _lists([prompts.ids[i] for i in range(len(draws)) for _ in range(k)], pa.int32())
    columns["draw"] = pa.array(np.tile(np.arange(k, dtype=np.int32), len(draws)))
    ended = np.array([draw.stopped for draw in flat])
    if encoder is not None:
        texts = [encoder.decode(draw.ids[:-1] if draw.stopped else draw.ids) for draw in flat]
        columns["completion"] = pa.array(texts, pa.string())
    columns["completion_ids"] = _lists([draw.ids for draw in flat], pa.int32())
    columns["behavior_logprob"] = pa.array([draw.logprobs.sum(dtype=np.float64) for draw in flat], pa.float64())
    if token_logprobs:
        columns["behavior_token_logprobs"] = _lists([draw.logprobs for draw in flat], pa.float32())
    if sampling.truncates:
        columns["untruncated_logprob"] = pa.array([draw.softmax.sum(dtype=np.float64) for draw in flat], pa.float64())
    columns["finish_reason"] = pa.array(np.where(ended, "stop", "length").tolist(), pa.string())
    settings = {**sampling.to_dict(), "seed": seed}
    columns["sampling"] = pa.StructArray.from_arrays(
        [pa.array(np.full(len(flat), value)) for value in settings.values()], names=list(settings)
    )
    table = pa.table(columns)
    return table.replace_schema_metadata(
        with_provenance(table.schema, {"behavior_logprob": replace(made, rows=len(flat), errors=0)}).metadata
    )


def _lists(lists: Sequence[NDArray[Any]], type_: Any) -> Array:
    offsets = np.concatenate(([0], np.cumsum([len(values) for values in lists])))
    values: Any = pa.array(np.concatenate(lists), type_)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values).cast(pa.list_(type_))
