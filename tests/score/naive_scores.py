"""What the scorer must give: float32 logits of the whole sequence, log-softmax, choice of the completion's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def naive_logprobs(model: Any, prompt: Any, completion: Any, temperature: float = 1.0) -> np.ndarray:
    ids = torch.tensor([[*map(int, prompt), *map(int, completion)]])
    with torch.no_grad():
        logits = model(ids).logits[0].float() / temperature
    logprobs = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()


def pairs(
    seed: int = 0,
    vocabulary: int = 97,
    prompts: Sequence[int] = (1, 5, 5, 12, 20, 20, 3),
    counts: Sequence[int] = (1, 3, 6, 4, 2, 4, 1),
    longest: int = 12,
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Return prompts of these lengths, and so many completions of each; some pairs come twice."""
    rng = np.random.default_rng(seed)
    contexts = [rng.integers(0, vocabulary, length, dtype=np.int32) for length in prompts]
    completions = [
        [rng.integers(0, vocabulary, length, dtype=np.int32) for length in rng.integers(1, longest, count)]
        for count in counts
    ]
    for group in completions:
        if len(group) > 2:
            group[-1] = group[0].copy()
    return contexts, completions


def rows(contexts: list[np.ndarray], completions: list[list[np.ndarray]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return one prompt and one completion a row."""
    lists = [(prompt, completion) for prompt, group in zip(contexts, completions, strict=True) for completion in group]
    return [prompt for prompt, _ in lists], [completion for _, completion in lists]
