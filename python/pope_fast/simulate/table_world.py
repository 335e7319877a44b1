"""E1, the table: softmax policies over a menu of responses to each of a few prompt types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast.errors import PopeError
from pope_fast.simulate.exact import sigmoid, softmax
from pope_fast.simulate.finite_world import FiniteWorld
from pope_fast.simulate.simulated_log import (
    SimulatedLog,
    check_draws,
    check_size,
    labeled,
    make_table,
    vector_column,
)

TILTS = {"near": 0.4, "far": 8.0}


def table_world(
    *,
    prompt_types: int = 128,
    menu: int = 48,
    n_clusters: int = 6,
    groups: Sequence[str] = (),
    tilts: Mapping[str, float] = TILTS,
    spread: float = 2.0,
    embedding_width: int = 0,
    world_seed: int = 0,
) -> FiniteWorld:
    """Build the world of :func:`table`; see there for the parameters."""
    check_size(prompt_types=prompt_types, menu=menu, n_clusters=n_clusters)
    rng = np.random.default_rng([world_seed, 1])
    shape = (prompt_types, menu)
    cluster = rng.integers(0, n_clusters, size=shape)
    quality = rng.normal(size=shape)
    # A response has one quality for all and, on top, what each group thinks of its cluster.
    taste = rng.normal(size=(n_clusters, max(len(groups), 1))) * (0.8 if groups else 0.4)
    reward = sigmoid(0.7 * quality[:, :, None] + taste[cluster])
    habit = rng.normal(size=shape)
    # Target policies move towards quality, and away from what the behavior policy is in the habit of saying.
    direction = 0.6 * quality - 0.8 * habit + 0.5 * rng.normal(size=shape)
    logits = spread * habit
    targets = {name: softmax(logits + tilt * direction) for name, tilt in tilts.items()}
    embedding = _embedding(cluster, embedding_width, world_seed) if embedding_width else None
    return FiniteWorld(softmax(logits), targets, cluster, reward, tuple(groups), embedding)


def _embedding(cluster: npt.NDArray[np.int64], width: int, world_seed: int) -> npt.NDArray[np.float32]:
    """Give each response a vector: what all answers to its prompt share, its perspective, and its own wording."""
    # Draws of their own, so that the rest of the world is the same with embeddings and without.
    rng = np.random.default_rng([world_seed, 2])
    n_types, menu = cluster.shape
    perspective = rng.normal(size=(int(cluster.max()) + 1, width))
    vectors = (
        rng.normal(size=(n_types, 1, width)) + perspective[cluster] + 0.7 * rng.normal(size=(n_types, menu, width))
    )
    return np.asarray(vectors, dtype=np.float32)


def table(
    prompts: int = 2000,
    responses: int = 8,
    seed: int = 0,
    *,
    prompt_types: int = 128,
    menu: int = 48,
    n_clusters: int = 6,
    groups: Sequence[str] = (),
    cluster_names: Sequence[str] | None = None,
    tilts: Mapping[str, float] = TILTS,
    spread: float = 2.0,
    embedding_width: int = 0,
    world_seed: int = 0,
) -> SimulatedLog:
    """Simulate E1: prompt types x responses x clusters, softmax policies, truth by summation.

    Parameters
    ----------
    prompts, responses : int
        Logged prompts and responses to each.  A prompt is drawn uniformly from the types, with its own
        identifier.
    seed : int
        Seed of the draws; the world itself depends on ``world_seed`` alone.
    prompt_types, menu, n_clusters : int
        Size of the world.
    groups : sequence of str
        Annotator groups with different tastes; every response is judged by one, drawn at random.
    cluster_names : sequence of str, optional
        Names of the clusters, ``n_clusters`` of them; by default they are integers.
    tilts : mapping of str to float
        Target policies: the logits of the behavior policy plus this much of one direction, which leads to
        quality and away from the habits of the behavior policy.
    spread : float
        Standard deviation of the behavior policy's logits.
    embedding_width : int
        Elements of the responses' embeddings; 0 for a log without them.

    Returns
    -------
    SimulatedLog
        Boolean rewards; columns ``prompt_id``, ``prompt``, ``reward``, ``behavior_logprob``,
        ``target_logprob/NAME``, ``cluster`` and, with groups, ``group``; with embeddings ``embedding``, float32.

    Raises
    ------
    PopeError
        If a size is below 1, the width negative, or the number of cluster names is not ``n_clusters``.
    """
    check_draws(prompts, responses, seed)
    if embedding_width < 0:
        raise PopeError(f"embedding_width must be at least 0, got {embedding_width}")
    if cluster_names is not None and len(cluster_names) != n_clusters:
        raise PopeError(f"cluster_names must be {n_clusters} names, got {len(cluster_names)}")
    world = table_world(
        prompt_types=prompt_types,
        menu=menu,
        n_clusters=n_clusters,
        groups=groups,
        tilts=tilts,
        spread=spread,
        embedding_width=embedding_width,
        world_seed=world_seed,
    )
    rng = np.random.default_rng([seed, 11])
    draws = world.draw(rng, prompts, responses)
    cluster = world.cluster[draws.prompt_type, draws.response]
    columns: dict[str, Any] = {
        "prompt_id": draws.prompt_id,
        "prompt": labeled(draws.prompt_type, [f"question {x}" for x in range(prompt_types)]),
        "reward": rng.random(len(cluster)) < world.mean_reward(draws),
        "behavior_logprob": world.log_probability(world.behavior, draws),
    }
    for name, p in world.targets.items():
        columns[f"target_logprob/{name}"] = world.log_probability(p, draws)
    columns["cluster"] = cluster if cluster_names is None else labeled(cluster, list(cluster_names))
    if groups:
        columns["group"] = labeled(draws.group, list(groups))
    if world.embedding is not None:
        columns["embedding"] = vector_column(world.embedding[draws.prompt_type, draws.response])
    parameters = {
        "prompts": prompts,
        "responses": responses,
        "prompt_types": prompt_types,
        "menu": menu,
        "n_clusters": n_clusters,
        "groups": list(groups),
        "tilts": dict(tilts),
        "spread": spread,
        **({"embedding_width": embedding_width} if embedding_width else {}),
        "world_seed": world_seed,
    }
    truth = {"kind": "table", "seed": seed, "parameters": parameters, "reward_range": [0, 1]}
    return SimulatedLog(make_table(columns), truth | world.truth(responses))
