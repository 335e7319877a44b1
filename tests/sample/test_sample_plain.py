"""Caches that are broken are found on the first batch: the draws are then right all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sample_worlds import draws, naive, some_prompts

from pope_fast.errors import PopeError, PopeWarning
from pope_fast.sample import decode as module
from pope_fast.sample.settings import Sampling
from tiny_models import tiny_model

OPTIONS = {"max_new_tokens": 6, "temperature": 0.9}


def check(model: Any, prompts: list[Any], drawn: Any) -> None:
    for prompt, of_prompt in zip(prompts, drawn, strict=True):
        for draw in of_prompt:
            np.testing.assert_allclose(draw.logprobs, naive(model, prompt, draw, Sampling(**OPTIONS))[0], atol=1e-4)


def mamba() -> Any:
    config = transformers.MambaConfig(
        vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=2, eos_token_id=2, pad_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.MambaForCausalLM(config).eval()


def without_cache(self: Any, text: Any, cache: Any, **options: Any) -> Any:
    """Ignore the cache: the last token alone, without its context."""
    if cache is not None:
        text = module._Text(text.ids[:, -1:], text.mask[:, -1:])
    return FORWARD(self, text, None, **options)


FORWARD = module._Runner._forward


@pytest.mark.parametrize("make", [mamba, lambda: tiny_model("llama", vocab_size=50)])
def test_a_cache_that_the_model_ignores(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = make(), some_prompts((5, 8, 5), 50)
    right = draws(model, prompts, 3, **OPTIONS)
    monkeypatch.setattr(module._Runner, "_forward", without_cache)
    # Old versions keep no cache of Mamba that can be reordered: nothing is broken then.
    if module.cache_argument(model) == "cache_params":
        pytest.skip("this transformers has no cache of Mamba that can be reordered")
    with pytest.warns(PopeWarning, match="with its cache"):
        drawn = draws(model, prompts, 3, **OPTIONS)
    check(model, prompts, drawn)
    assert [[d.ids.tolist() for d in of] for of in drawn] == [[d.ids.tolist() for d in of] for of in right]


def test_a_cache_that_is_reordered_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model("llama", vocab_size=50), some_prompts((5, 8, 6), 50)
    reorder = transformers.DynamicCache.reorder_cache
    monkeypatch.setattr(transformers.DynamicCache, "reorder_cache", lambda self, rows: reorder(self, rows.flip(0)))
    with pytest.warns(PopeWarning, match="with its cache"):
        drawn = draws(model, prompts, 3, **OPTIONS)
    check(model, prompts, drawn)


@pytest.mark.filterwarnings("error::pope_fast.errors.PopeWarning")
def test_mamba_is_right_without_a_word() -> None:
    model, prompts = mamba(), some_prompts((5, 8, 5), 50)
    check(model, prompts, draws(model, prompts, 3, **OPTIONS))


def test_a_model_that_is_not_causal_is_refused() -> None:
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(PopeError, match="is not causal"):
        draws(model, some_prompts(vocabulary=60))
