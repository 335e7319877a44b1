"""What is shared in scoring is held against a plain forward, and models that are not causal are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from score_worlds import naive

from pope_fast.errors import PopeError, PopeWarning
from pope_fast.score import forward
from pope_fast.score.budget import default_token_budget
from pope_fast.score.model import ModelScorer
from pope_fast.score.plain import agrees, check_causal
from tiny_models import KINDS, tiny_model

PROMPTS = [[5, 6, 7, 8], [9, 10]]
COMPLETIONS = [[[11, 12, 13], [14, 15]], [[16, 17, 18, 19], [20], [21, 22, 23]]]


def naive_all(model: Any) -> np.ndarray[Any, Any]:
    pairs = [(prompt, one) for prompt, group in zip(PROMPTS, COMPLETIONS, strict=True) for one in group]
    return np.concatenate([naive(model, *pair) for pair in pairs])


def flat(scores: list[list[Any]]) -> np.ndarray[Any, Any]:
    return np.concatenate([one for group in scores for one in group])


def test_sharing_that_passed_the_probe_and_is_wrong_is_given_up_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    scorer = ModelScorer(model, share_prompt=True)
    assert scorer.shares_prompts
    shared = forward.Forward.shared
    monkeypatch.setattr(forward.Forward, "shared", lambda *what: [part - 0.5 for part in shared(*what)])
    with pytest.warns(PopeWarning, match="shared prompts give other log-probs"):
        scores = scorer.score(PROMPTS, COMPLETIONS)
    np.testing.assert_allclose(flat(scores), naive_all(model), atol=1e-4)
    assert not scorer.shares_prompts


def test_a_head_that_is_not_the_models_is_given_up_with_a_warning() -> None:
    model = tiny_model("llama")
    scorer = ModelScorer(model, share_prompt=False)
    assert not scorer.own_head
    model.lm_head.register_forward_hook(lambda _, __, logits: 2 * logits)  # after the head was looked at
    with pytest.warns(PopeWarning, match="tiled head"):
        scores = scorer.score(PROMPTS, COMPLETIONS)
    np.testing.assert_allclose(flat(scores), naive_all(model), atol=1e-4)
    assert scorer.own_head


@pytest.mark.filterwarnings("error::pope_fast.errors.PopeWarning")
@pytest.mark.parametrize("kind", [*KINDS, "cohere"])
def test_a_right_model_keeps_its_shortcuts(kind: str) -> None:
    model = tiny_model(kind)
    scorer = ModelScorer(model)
    shared = scorer.shares_prompts
    np.testing.assert_allclose(flat(scorer.score(PROMPTS, COMPLETIONS)), naive_all(model), atol=1e-4)
    assert scorer.shares_prompts == shared


SMALL = {
    **{"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.3},
}


def not_causal(kind: str) -> Any:
    made = {
        "bert": lambda: transformers.BertConfig(**SMALL),
        "roberta": lambda: transformers.RobertaConfig(**SMALL),
        "xlnet": lambda: transformers.XLNetConfig(
            vocab_size=60, d_model=32, n_layer=2, n_head=4, d_inner=48, initializer_range=0.3
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(made[kind]()).eval()


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlnet"])
def test_models_that_are_not_causal_are_refused(kind: str) -> None:
    with pytest.raises(PopeError, match="is not causal"):
        ModelScorer(not_causal(kind))


@pytest.mark.parametrize("kind", [*KINDS, "cohere"])
def test_causal_models_are_not(kind: str) -> None:
    check_causal(tiny_model(kind))


def test_what_counts_as_equal() -> None:
    assert agrees([-1.0, -2.0], [-1.0005, -2.0], torch.float32)
    assert not agrees([-1.0, -2.0], [-1.01, -2.0], torch.float32)
    assert agrees([-1.0, -2.0], [-1.1, -2.0], torch.bfloat16)
    assert not agrees([-1.0], [float("nan")], torch.float32)


def test_a_setting_that_differs_between_layers_stops_nothing() -> None:
    """Gemma 4's configuration raises for ``head_dim``, which is not the same in every layer."""

    class Ambiguous(transformers.LlamaConfig):
        def __getattribute__(self, name: str) -> Any:
            if name == "head_dim":
                raise ValueError("ambiguous: global or per layer?")
            return super().__getattribute__(name)

    model = tiny_model("llama")
    expected = default_token_budget(model, torch.device("cpu"))
    model.config.__class__ = Ambiguous
    assert default_token_budget(model, torch.device("cpu")) == expected
