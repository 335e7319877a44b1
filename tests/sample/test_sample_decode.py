"""Drawing: exact log-probs on every kind of model, the right frequencies, and draws that depend on no batch."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from sample_worlds import draws, keys_of, naive, same, some_prompts
from scipy import stats

from pope_fast.errors import PopeError
from pope_fast.sample import decode as module
from pope_fast.sample.decode import decode
from pope_fast.sample.settings import Sampling
from tiny_models import KINDS, tiny_model


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model("llama")


@pytest.mark.parametrize("kind", [*KINDS, "cohere"])
def test_log_probs_are_those_of_full_logits(kind: str) -> None:
    """Prompts of several lengths in one padded batch; Mistral's and Gemma's windows are shorter than the longest."""
    model, prompts = tiny_model(kind), some_prompts()
    options = {"temperature": 0.8, "top_k": 60, "top_p": 0.95, "max_new_tokens": 10}
    for prompt, of_prompt in zip(prompts, draws(model, prompts, **options), strict=True):
        for draw in of_prompt:
            sampler, softmax = naive(model, prompt, draw, Sampling(**options))
            np.testing.assert_allclose(draw.logprobs, sampler, atol=1e-4)
            np.testing.assert_allclose(draw.softmax, softmax, atol=1e-4)
            assert (draw.logprobs >= draw.softmax - 1e-5).all()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_batches_do_not_matter(kind: str) -> None:
    model, prompts = tiny_model(kind), some_prompts()
    first = draws(model, prompts, budget=10_000)
    for budget in (1, 60, 150):
        assert same(first, draws(model, prompts, budget=budget))
    back = draws(model, prompts[::-1], budget=200)[::-1]
    assert same(first, back)
    assert same([of[:2] for of in first], draws(model, prompts, 2, budget=200))
    for a, b in zip(first, back, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x.logprobs, y.logprobs, atol=1e-5)


def test_seeds_and_draws_differ(llama: Any) -> None:
    prompts = some_prompts()
    first = draws(llama, prompts)
    assert len({tuple(draw.ids.tolist()) for of in first for draw in of}) == 20
    assert same(first, draws(llama, prompts))
    assert not same(first, draws(llama, prompts, seed=1))


def test_sequences_come_as_often_as_they_should() -> None:
    """Every sequence of up to three tokens over four letters, one of which ends it: frequencies against exact ones."""
    model = tiny_model("llama", vocab_size=4, eos_token_id=2, bos_token_id=1, pad_token_id=0)
    prompt = np.array([1, 3], np.int32)
    exact: dict[tuple[int, ...], float] = {}
    for tokens in product(range(4), repeat=3):
        ended = tokens.index(2) + 1 if 2 in tokens else 3
        kept = tokens[:ended]
        if kept not in exact:
            ids = torch.tensor([[1, 3, *kept]])
            with torch.no_grad():
                table = torch.log_softmax(model(ids).logits[0, 1:-1].double() / 1.5, -1)
            exact[kept] = float(table.gather(-1, torch.tensor(kept)[:, None]).sum().exp())
    assert sum(exact.values()) == pytest.approx(1.0, abs=1e-6)
    n = 20_000
    (drawn,) = draws(model, [prompt], n, stop_ids=[2], temperature=1.5, max_new_tokens=3, budget=1 << 20)
    counts = dict.fromkeys(exact, 0)
    for draw in drawn:
        counts[tuple(draw.ids.tolist())] += 1
        assert draw.logprobs.sum() == pytest.approx(np.log(exact[tuple(draw.ids.tolist())]), abs=1e-4)
    expected = np.array([exact[key] * n for key in counts])
    observed = np.array(list(counts.values()))
    assert expected.min() > 5
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def test_the_end_is_counted_and_nothing_after_it(llama: Any) -> None:
    flat = [draw for of in draws(llama, some_prompts(), 20) for draw in of]
    stopped = [draw for draw in flat if draw.stopped]
    assert 10 < len(stopped) < 90
    for draw in flat:
        assert np.isin(draw.ids[:-1], [2, 5, 7]).sum() == 0
        assert np.isin(draw.ids[-1], [2, 5, 7]) == draw.stopped
        assert draw.ids.size == draw.logprobs.size == draw.softmax.size <= 10
        assert draw.stopped or draw.ids.size == 10
    assert any(draw.ids.size < 10 for draw in stopped)
    never = [draw for of in draws(llama, some_prompts(), 2, stop_ids=[]) for draw in of]
    assert not any(draw.stopped for draw in never)


def test_a_prompt_is_computed_once_and_what_has_ended_leaves_the_batch(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    forward = module._Runner._forward

    def spy(self: Any, text: Any, cache: Any, **options: Any) -> Any:
        output = forward(self, text, cache, **options)
        shapes.append((*(text.ids.shape if cache is None else text.ids[:, -1:].shape), output.logits.shape[1]))
        return output

    monkeypatch.setattr(module._Runner, "_forward", spy)
    drawn = draws(llama, some_prompts((6, 4, 5)), 8, budget=10_000, stop_ids=range(40))
    assert shapes[0] == (3, 6, 1)  # three prompts, not 24, and only the last logits of each
    assert all(length == 1 for _, length, _ in shapes[1:])
    rows = [n for n, _, _ in shapes[1:]]
    assert rows[0] < 24
    assert rows == sorted(rows, reverse=True)
    needed = [sum(draw.ids.size > step for of in drawn for draw in of) for step in range(1, len(rows) + 1)]
    assert all(n <= max(1, live / 0.75) for n, live in zip(rows, needed, strict=True))


def test_too_little_memory_means_smaller_batches(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = some_prompts()
    expected = draws(llama, prompts)
    forward = module._Runner._forward
    most = 4
    refused = []

    def small(self: Any, text: Any, cache: Any, **options: Any) -> Any:
        if text.ids.shape[0] > most:
            refused.append(text.ids.shape[0])
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, text, cache, **options)

    monkeypatch.setattr(module._Runner, "_forward", small)
    seen = []
    sampling = Sampling(max_new_tokens=10)
    again = decode(llama, prompts, keys_of(prompts, 4), sampling, [2, 5, 7], token_budget=10_000, advance=seen.append)
    assert same(expected, again)
    assert refused
    assert sum(seen) == 20
    most = 0
    with pytest.raises(PopeError, match="not enough memory for one response"):
        draws(llama, prompts, 1)


def test_an_error_of_the_model_is_not_taken_for_a_lack_of_memory(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(module._Runner, "_forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        draws(llama, some_prompts())


def test_logits_that_are_no_numbers_are_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(PopeError, match="not numbers"):
        draws(model, some_prompts())


def test_the_model_is_left_as_it_was(llama: Any) -> None:
    llama.train()
    try:
        first = draws(llama, some_prompts())
        assert llama.training
    finally:
        llama.eval()
    assert same(first, draws(llama, some_prompts()))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in llama.parameters())


def test_a_model_with_recurrent_states_is_run_without_padding() -> None:
    """Mamba keeps no cache of the usual kind: everything is computed again for each token, in batches of one length."""
    import transformers

    config = transformers.MambaConfig(
        vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=2, eos_token_id=2, pad_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.MambaForCausalLM(config).eval()
    prompts = some_prompts((5, 8, 5), 50)
    options = {"max_new_tokens": 5, "temperature": 0.9}
    drawn = draws(model, prompts, 3, **options)
    assert same(drawn, draws(model, prompts, 3, budget=1, **options))
    for prompt, of_prompt in zip(prompts, drawn, strict=True):
        for draw in of_prompt:
            np.testing.assert_allclose(draw.logprobs, naive(model, prompt, draw, Sampling(**options))[0], atol=1e-4)
