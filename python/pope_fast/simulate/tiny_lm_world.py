"""E3, a tiny autoregressive language model: vocabulary 3, length 4, so 81 sequences, all enumerated."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast.errors import PopeError
from pope_fast.simulate.exact import FloatArray, softmax
from pope_fast.simulate.finite_world import FiniteWorld, IntArray
from pope_fast.simulate.simulated_log import SimulatedLog, check_draws, check_size, labeled, make_table

TILTS = {"near": 0.3, "far": 6.0}
WORDS = "abcdefghijklmnopqrstuvwxyz"
MAX_SEQUENCES = 20_000


def all_sequences(vocabulary: int, length: int) -> IntArray:
    """Every sequence of tokens, in lexicographic order, shape (vocabulary ** length, length)."""
    return np.array(list(product(range(vocabulary), repeat=length)), dtype=np.int64)


def token_logprobs(logits: list[FloatArray], sequences: IntArray) -> FloatArray:
    """Log-probability of each token given the ones before it.

    Parameters
    ----------
    logits : list of ndarray, shape (n_types, vocabulary ** t, vocabulary)
        Next-token logits at position t for every prompt type and every prefix, prefixes in lexicographic
        order.
    sequences : ndarray, shape (n_sequences, length)
        Tokens.

    Returns
    -------
    ndarray, shape (n_types, n_sequences, length)
        Their sum over the last axis is the log-probability of the sequence.
    """
    vocabulary = logits[0].shape[2]
    prefix = np.zeros(len(sequences), dtype=np.int64)
    steps = []
    for t, table in enumerate(logits):
        step = np.log(softmax(table))
        steps.append(step[:, prefix, sequences[:, t]])
        prefix = prefix * vocabulary + sequences[:, t]
    return np.stack(steps, axis=2)


def tiny_lm_world(
    *,
    vocabulary: int = 3,
    length: int = 4,
    prompt_types: int = 16,
    tilts: Mapping[str, float] = TILTS,
    world_seed: int = 0,
) -> tuple[FiniteWorld, IntArray, dict[str, FloatArray]]:
    """Build the model: the world over whole sequences, the sequences, and the token log-probabilities.

    Returns
    -------
    tuple
        World; sequences, shape (n_sequences, length); per policy (``"behavior"`` included) the token
        log-probabilities, shape (n_types, n_sequences, length).

    Raises
    ------
    PopeError
        If there are too many sequences to enumerate.
    """
    check_size(vocabulary=vocabulary, length=length, prompt_types=prompt_types)
    if vocabulary**length > MAX_SEQUENCES:
        raise PopeError(f"{vocabulary}^{length} sequences are more than the {MAX_SEQUENCES} that are enumerated")
    rng = np.random.default_rng([world_seed, 3])
    sequences = all_sequences(vocabulary, length)
    shapes = [(prompt_types, vocabulary**t, vocabulary) for t in range(length)]
    base = [rng.normal(size=shape) for shape in shapes]
    noise = [rng.normal(size=shape) for shape in shapes]
    wanted = rng.integers(0, vocabulary, size=prompt_types)
    # Target policies like the token that the prompt asks for, and leave the habits of the behavior policy.
    likes = (np.arange(vocabulary) == wanted[:, None])[:, None, :]
    drift = [likes - 0.8 * habit + 0.5 * own for habit, own in zip(base, noise, strict=True)]
    tokens = {"behavior": token_logprobs(base, sequences)}
    for name, tilt in tilts.items():
        tilted = [b + tilt * d for b, d in zip(base, drift, strict=True)]
        tokens[name] = token_logprobs(tilted, sequences)
    probabilities = {name: np.exp(values.sum(axis=2)) for name, values in tokens.items()}
    # The rating is the share of wanted tokens; the cluster is the most frequent token (the first of ties).
    rating = np.mean(sequences[None, :, :] == wanted[:, None, None], axis=2)
    frequency = np.sum(sequences[:, :, None] == np.arange(vocabulary), axis=1)
    cluster = np.broadcast_to(np.argmax(frequency, axis=1), rating.shape)
    behavior = probabilities.pop("behavior")
    return FiniteWorld(behavior, probabilities, cluster, rating[:, :, None]), sequences, tokens


def tiny_lm(
    prompts: int = 1000,
    responses: int = 4,
    seed: int = 0,
    *,
    vocabulary: int = 3,
    length: int = 4,
    prompt_types: int = 16,
    tilts: Mapping[str, float] = TILTS,
    world_seed: int = 0,
) -> SimulatedLog:
    """Simulate E3: a language model small enough to enumerate, logged token by token.

    Parameters
    ----------
    prompts, responses, seed : int
        Logged prompts, responses to each, seed of the draws.
    vocabulary, length, prompt_types : int
        Size of the model; all ``vocabulary ** length`` sequences are enumerated.
    tilts : mapping of str to float
        Target policies: how far their next-token logits are from the behavior policy's.
    world_seed : int
        Seed of the model itself.

    Returns
    -------
    SimulatedLog
        Columns ``prompt_id``, ``prompt``, ``completion``, ``completion_ids``, ``behavior_token_logprobs``,
        ``target_token_logprobs/NAME`` (lists, one number per token), ``reward`` (the share of wanted
        tokens, a number in [0, 1]) and ``cluster`` (the most frequent token).
    """
    check_draws(prompts, responses, seed)
    world, sequences, tokens = tiny_lm_world(
        vocabulary=vocabulary, length=length, prompt_types=prompt_types, tilts=tilts, world_seed=world_seed
    )
    draws = world.draw(np.random.default_rng([seed, 13]), prompts, responses)
    x, y = draws.prompt_type, draws.response
    texts = [" ".join(WORDS[t % 26] for t in sequence) for sequence in sequences.tolist()]
    columns: dict[str, Any] = {
        "prompt_id": draws.prompt_id,
        "prompt": labeled(x, [f"prompt {i}" for i in range(prompt_types)]),
        "completion": labeled(y, texts),
        "completion_ids": _lists(sequences[y].astype(np.int32)),
        "behavior_token_logprobs": _lists(tokens["behavior"][x, y].astype(np.float32)),
    }
    for name in world.targets:
        columns[f"target_token_logprobs/{name}"] = _lists(tokens[name][x, y].astype(np.float32))
    columns["reward"] = world.mean_reward(draws)
    columns["cluster"] = world.cluster[x, y]
    truth = {
        "kind": "tiny-lm",
        "seed": seed,
        "parameters": {
            "prompts": prompts,
            "responses": responses,
            "vocabulary": vocabulary,
            "length": length,
            "prompt_types": prompt_types,
            "tilts": dict(tilts),
            "world_seed": world_seed,
        },
        "reward_range": [0, 1],
    }
    return SimulatedLog(make_table(columns), truth | world.truth(responses))


def _lists(values: npt.NDArray[Any]) -> Any:
    """Rows of a matrix as an Arrow list column."""
    import pyarrow as pa

    rows, length = values.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * length)
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).ravel()))
