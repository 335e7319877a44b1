"""The bridge check on a language model: it finds a wrong chat template and a wrong temperature, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pope_fast.evaluate import Evaluation, evaluate
from pope_fast.sample import sample
from pope_fast.score import HFPolicy, score
from tiny_models import TEXTS, tiny_model, tiny_tokenizer

PROMPTS, K, TOKENS = 150, 4, 8


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def forgetful(tokenizer: Any) -> Any:
    """The same tokenizer with a template that does not open the assistant's turn."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace("<|assistant|>{% endif %}", "{% endif %}")
    assert other.chat_template != tokenizer.chat_template
    return other


@pytest.fixture(scope="module")
def models(tokenizer: Any) -> dict[str, Any]:
    """The model that wrote the log, and another one near it."""
    logger = tiny_model(vocab_size=len(tokenizer))
    new = copy.deepcopy(logger)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return {"logger": logger, "new": new}


@pytest.fixture(scope="module")
def prompts() -> list[Any]:
    rng = np.random.default_rng(0)
    words = sorted({word for text in TEXTS for word in text.split()})
    return [[{"role": "user", "content": " ".join(rng.choice(words, 4))}] for _ in range(PROMPTS)]


@pytest.fixture(scope="module")
def logged(models: dict[str, Any], tokenizer: Any, prompts: list[Any]) -> pa.Table:
    log = sample(models["logger"], prompts, K, processing_class=tokenizer, max_new_tokens=TOKENS, seed=1)
    table = log.reader.table
    return table.append_column("reward", pa.array(np.random.default_rng(1).random(len(table))))


@pytest.fixture(scope="module")
def draws(models: dict[str, Any], tokenizer: Any, prompts: list[Any]) -> Any:
    def draw(temperature: float = 1.0, scored: Any = None) -> Any:
        under = [HFPolicy("logger", models["logger"], processing_class=tokenizer)]
        if scored is not None:
            under.append(HFPolicy("new", models["new"], processing_class=scored))
        return sample(
            models["new"],
            prompts,
            K,
            name="new",
            processing_class=tokenizer,
            temperature=temperature,
            max_new_tokens=TOKENS,
            seed=2,
            score_under=under,
        )

    return draw


def evaluated(logged: pa.Table, models: dict[str, Any], tokenizer: Any, fresh: Any, **policy: Any) -> Evaluation:
    log = score(logged, [HFPolicy("new", models["new"], processing_class=tokenizer, **policy)])
    return evaluate(log, fresh=fresh, reward_range=(0.0, 1.0))


def codes(evaluation: Evaluation) -> dict[str, str]:
    return {finding.code: finding.severity for finding in evaluation["new"].verdict.findings}


def test_right_log_probs_pass(logged: pa.Table, models: Any, tokenizer: Any, draws: Any) -> None:
    found = evaluated(logged, models, tokenizer, draws(scored=tokenizer))
    bridge = found["new"].bridge
    assert "bridge" not in codes(found)
    assert (bridge.paired, bridge.n_fresh) == (True, PROMPTS * K)
    assert bridge.sampler_excess.value == pytest.approx(0.0, abs=1e-4)
    assert bridge.fresh_log_weight.value > 0
    assert not {"different_tokens", "different_scorers"} & set(codes(found))
    cold = evaluated(logged, models, tokenizer, draws(0.9), temperature=0.9)
    assert "bridge" not in codes(cold)


def test_a_wrong_chat_template_is_found(
    logged: pa.Table, models: Any, tokenizer: Any, forgetful: Any, draws: Any
) -> None:
    found = evaluated(logged, models, forgetful, draws())
    assert found["new"].bridge.p_value < 1e-9
    assert codes(found)["bridge"] == "unreliable"
    assert codes(found)["different_tokens"] == "caution"
    everywhere = evaluated(logged, models, forgetful, draws(scored=forgetful))
    assert everywhere["new"].bridge.sampler_excess.value > 1
    assert codes(everywhere)["bridge"] == "unreliable"


def test_a_temperature_of_point_nine_taken_for_one_is_found(
    logged: pa.Table, models: Any, tokenizer: Any, draws: Any
) -> None:
    found = evaluated(logged, models, tokenizer, draws(0.9))
    assert found["new"].bridge.tilt_p_value < 0.001
    assert "at a lower temperature of the policy" in str(found["new"].verdict)
    assert codes(found)["bridge"] == "caution"
    scored = evaluated(logged, models, tokenizer, draws(0.9, scored=tokenizer))
    assert scored["new"].bridge.tilt_p_value < 0.001
    assert "under their sampler" in str(scored["new"].verdict)


def test_a_wrong_temperature_of_the_logger_is_found(
    models: Any, tokenizer: Any, prompts: list[Any], draws: Any
) -> None:
    """The log was written at .9, and its log-probs were taken at 1 afterwards."""
    log = sample(models["logger"], prompts, K, processing_class=tokenizer, max_new_tokens=TOKENS, temperature=0.9)
    table = log.reader.table.drop_columns(["behavior_logprob"])
    table = table.append_column("reward", pa.array(np.random.default_rng(1).random(len(table))))
    policies = {name: HFPolicy(name, model, processing_class=tokenizer) for name, model in models.items()}
    scored = score(table, [policies["new"]], behavior=policies["logger"])
    found = evaluate(scored, fresh=draws(), reward_range=(0.0, 1.0))
    assert "a lower one of the logger" in str(found["new"].verdict)
