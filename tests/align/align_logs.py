"""Small logs for the trainer: drawn from a tiny random model by a plain loop, rewarded by a plain rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

VOCABULARY = 24
LIKED = 7
"""Responses that begin with an id above this are rewarded more often."""


def tiny_policy(seed: int = 0, **changes: Any) -> Any:
    from tiny_models import tiny_model

    return tiny_model("llama", seed=seed, vocab_size=VOCABULARY, initializer_range=0.12, **changes)


@torch.no_grad()
def draw(model: Any, prompts: list[list[int]], responses: int, length: int, seed: int) -> tuple[Any, Any]:
    """Draw responses token by token; return ids and log-probs of tokens, both (prompts, responses, length)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(prompts).repeat_interleave(responses, dim=0)
    start = ids.shape[1]
    logprobs = []
    for _ in range(length):
        table = torch.log_softmax(model(input_ids=ids).logits[:, -1].double(), dim=1)
        token = torch.multinomial(table.exp(), 1, generator=generator)
        logprobs.append(table.gather(1, token))
        ids = torch.cat([ids, token], dim=1)
    shape = (len(prompts), responses, length)
    return ids[:, start:].reshape(shape).numpy(), torch.cat(logprobs, dim=1).reshape(shape).numpy()


def make_log(
    model: Any, prompts: int = 24, responses: int = 4, length: int = 3, seed: int = 0, **changes: Any
) -> pa.Table:
    """A log of token ids: reward 1 with probability .8 or .2 by the first token, clusters by the first token mod 3."""
    rng = np.random.default_rng(seed)
    texts = [[1, *rng.integers(3, VOCABULARY, 3).tolist()] for _ in range(prompts)]
    ids, logprobs = draw(model, texts, responses, length, seed)
    first = ids[:, :, 0].reshape(-1)
    columns: dict[str, Any] = {
        "prompt_id": np.repeat(np.arange(prompts), responses),
        "prompt_ids": [text for text in texts for _ in range(responses)],
        "completion_ids": ids.reshape(-1, length).tolist(),
        "reward": (rng.random(first.size) < np.where(first > LIKED, 0.8, 0.2)).astype(float),
        "behavior_logprob": logprobs.sum(axis=2).reshape(-1),
        "behavior_token_logprobs": logprobs.reshape(-1, length).tolist(),
        "cluster": first % 3,
        "group": rng.integers(0, 2, first.size),
    }
    columns.update(changes)
    return pa.table({name: values for name, values in columns.items() if values is not None})
