"""What the tests of sampling share: log-probs from full logits, and draws of several prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pope_fast.sample.decode import Draw, decode
from pope_fast.sample.distribution import log_distribution
from pope_fast.sample.settings import Sampling
from pope_fast.sample.streams import draw_key

LENGTHS = (3, 9, 4, 14, 9)


def some_prompts(lengths: Sequence[int] = LENGTHS, vocabulary: int = 97, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocabulary, n).astype(np.int32) for n in lengths]


def keys_of(prompts: Sequence[np.ndarray], k: int, seed: int = 0) -> list[np.ndarray]:
    return [np.array([draw_key(seed, ids, j) for j in range(k)], np.uint64) for ids in prompts]


def draws(
    model: Any,
    prompts: Sequence[np.ndarray],
    k: int = 4,
    *,
    stop_ids: Sequence[int] = (2, 5, 7),
    seed: int = 0,
    budget: int | None = None,
    **sampling: Any,
) -> list[list[Draw]]:
    sampler = Sampling(**{"max_new_tokens": 10, **sampling})
    return decode(model, prompts, keys_of(prompts, k, seed), sampler, stop_ids, token_budget=budget)


def naive(model: Any, prompt: np.ndarray, draw: Draw, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs of a draw under sampler and softmax: one call, no padding, no cache, every logit."""
    ids = torch.from_numpy(np.concatenate([prompt, draw.ids]).astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    sampler, softmax = log_distribution(logits.float(), sampling)
    chosen = torch.from_numpy(draw.ids.astype(np.int64))[:, None]
    first, second = (table.gather(-1, chosen)[:, 0].numpy() for table in (sampler, softmax))
    return first, second


def same(a: Sequence[Sequence[Draw]], b: Sequence[Sequence[Draw]]) -> bool:
    return [[d.ids.tolist() for d in of] for of in a] == [[d.ids.tolist() for d in of] for of in b]
