"""Logs of texts for the tests of clustering."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa

from pope_fast.simulate.text_world import TextWorld


@cache
def text_log(
    prompts: int = 120, responses: int = 8, phrasings: int = 12, seed: int = 1, perspectives: tuple[int, ...] = ()
) -> pa.Table:
    """A log of the text world; the column "perspective" has the true cluster."""
    weights = perspectives or (6, 4, 3, 2, 1, 1)
    world = TextWorld(seed=seed, n_prompts=64, n_perspectives=len(weights), n_phrasings=phrasings)
    policies = {"majority": world.majority_policy(1.0), "even": world.policy()}
    table = world.log(world.policy(weights), policies, prompts=prompts, responses=responses, seed=seed).table
    return table.rename_columns(["perspective" if name == "cluster" else name for name in table.column_names])


def partition(labels: np.ndarray, prompt: np.ndarray) -> set[frozenset[int]]:
    """Clusters within prompts as sets of rows."""
    groups: dict[tuple[object, int], list[int]] = {}
    for row, key in enumerate(zip(prompt.tolist(), labels.tolist(), strict=True)):
        groups.setdefault(key, []).append(row)
    return {frozenset(rows) for rows in groups.values()}
