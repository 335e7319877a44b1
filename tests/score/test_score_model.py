from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from naive_scores import naive_logprobs, pairs, rows
from torch import nn

from pope_fast.errors import PopeError
from pope_fast.score import model as model_module
from pope_fast.score.budget import default_token_budget, is_out_of_memory
from pope_fast.score.forward import Forward
from pope_fast.score.model import ModelScorer
from pope_fast.score.plan import make_plan
from tiny_models import KINDS, tiny_model

ALL_KINDS = (*KINDS, "cohere")


def largest_error(model: Any, scorer: ModelScorer, contexts: Any, completions: Any) -> float:
    """Return the largest difference to the naive computation, over all tokens."""
    found = scorer.score(contexts, completions)
    assert [[scores.size for scores in group] for group in found] == [[c.size for c in group] for group in completions]
    return max(
        float(np.abs(scores - naive_logprobs(model, prompt, completion, scorer.temperature)).max())
        for prompt, group, results in zip(contexts, completions, found, strict=True)
        for completion, scores in zip(group, results, strict=True)
    )


def everything(scorer: ModelScorer, plan: Any, batches: Any = None) -> dict[int, np.ndarray]:
    """Return the log-probs of each pair of some batches."""
    return {
        int(pair): batch.logprobs[start:stop].copy()
        for batch in scorer.run(plan, batches)
        for pair, start, stop in zip(batch.pairs, batch.offsets[:-1], batch.offsets[1:], strict=True)
    }


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("share", [True, "auto", False])
def test_every_path_gives_what_full_float32_logits_give(kind: str, share: Any) -> None:
    model = tiny_model(kind)
    contexts, completions = pairs()
    for budget, temperature in ((4096, 1.0), (64, 1.3), (9, 0.7)):
        scorer = ModelScorer(model, temperature=temperature, token_budget=budget, share_prompt=share)
        assert not scorer.own_head
        assert scorer.shares_prompts == (share is not False)
        assert largest_error(model, scorer, contexts, completions) < 1e-4


@pytest.mark.parametrize("kind", ["mistral", "gemma"])
def test_prompts_and_completions_may_be_longer_than_the_sliding_window(kind: str) -> None:
    model = tiny_model(kind)
    contexts, completions = pairs(prompts=(3, 6, 30, 40, 5), counts=(3, 2, 4, 3, 2), longest=25)
    for share in (True, False):
        scorer = ModelScorer(model, share_prompt=share, token_budget=128)
        assert largest_error(model, scorer, contexts, completions) < 1e-4


def test_short_texts_never_fill_a_wide_window() -> None:
    model = tiny_model("mistral", sliding_window=30)
    scorer = ModelScorer(model, share_prompt=True)
    short, long = pairs(prompts=(9, 12), counts=(3, 3)), pairs(prompts=(9, 25), counts=(3, 3))
    ways = []
    inner = Forward.shared

    def shared(self: Forward, pairs: Any, chunks: Any, way: Any) -> Any:
        ways.append(way)
        return inner(self, pairs, chunks, way)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forward, "shared", shared)
        for contexts, completions in (short, long):
            assert largest_error(model, scorer, contexts, completions) < 1e-4
    assert ways == ["split", "expanded"]


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("way", ["split", "expanded"])
def test_both_ways_of_sharing_are_right_for_any_grouping(way: Any, key_heads: int) -> None:
    model = tiny_model("llama", num_key_value_heads=key_heads)
    scorer = ModelScorer(model, token_budget=150)
    assert scorer._forward.way == "split"
    scorer._forward.way = way
    for prompts, counts in (((7,) * 5, (4,) * 5), ((9, 7, 7, 2), (1, 9, 2, 3)), ((4,), (17,)), ((3, 8), (1, 1))):
        contexts, completions = pairs(prompts=prompts, counts=counts)
        assert largest_error(model, scorer, contexts, completions) < 1e-4


def test_attention_that_needs_a_mask_is_expanded() -> None:
    scorer = ModelScorer(tiny_model("gemma"))
    assert scorer._forward.way == "expanded"
    eager = tiny_model("llama")
    eager.set_attn_implementation("eager")
    contexts, completions = pairs()
    for kind in ("eager", "sdpa"):
        eager.set_attn_implementation(kind)
        scorer = ModelScorer(eager, share_prompt=True)
        assert scorer.attention == kind
        assert largest_error(eager, scorer, contexts, completions) < 1e-4
        assert eager.config._attn_implementation == kind


def test_single_tokens_single_rows_and_duplicates() -> None:
    model = tiny_model("qwen")
    for contexts, completions in (
        ([np.array([5])], [[np.array([7])]]),
        ([np.array([5])], [[np.array([7]), np.array([8]), np.array([7])]]),
        ([np.array([5]), np.array([5])], [[np.array([7, 1, 2])], [np.array([7, 1, 2]), np.array([7])]]),
    ):
        for share in (True, False):
            assert largest_error(model, ModelScorer(model, share_prompt=share), contexts, completions) < 1e-4
    assert ModelScorer(model).score([], []) == []
    assert ModelScorer(model).score([[1]], [[]]) == [[]]


def test_duplicates_are_computed_once() -> None:
    model = tiny_model("llama")
    calls = []
    model.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: calls.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    scorer = ModelScorer(model, share_prompt=False)
    calls.clear()
    scorer.score([[1, 2]], [[[3, 4, 5]] * 20])
    # The batch, and the plain forward that the first batch of a run is held against.
    assert calls == [(1, 4), (1, 4)]


def test_a_prompt_is_computed_once_for_all_its_completions() -> None:
    model = tiny_model("llama")
    scorer = ModelScorer(model)
    tokens = []
    model.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    rng = np.random.default_rng(0)
    scorer.score([rng.integers(0, 97, 50)], [[rng.integers(0, 97, 5) for _ in range(8)]])
    # Then four pairs of the first batch, each in the plain forward that it is held against.
    assert tokens == [50, 8 * 4, *[50 + 4] * 4]


@pytest.mark.parametrize("kind", ["llama", "gemma"])
@pytest.mark.parametrize("share", [True, False])
def test_the_models_own_head_is_used_where_nothing_else_is_right(kind: str, share: bool) -> None:
    class Bent(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.layer, self.weight = layer, layer.weight

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.sinh(self.layer(hidden) / 5)

    model = tiny_model(kind)
    model.lm_head = Bent(model.lm_head)
    contexts, completions = pairs()
    with pytest.MonkeyPatch.context() as patch:
        for limit in (1 << 29, 97 * 4 * 20):  # the second one cuts batches
            patch.setattr(model_module, "_LOGITS_BYTES", limit)
            scorer = ModelScorer(model, temperature=1.2, share_prompt=share)
            assert scorer.own_head
            assert largest_error(model, scorer, contexts, completions) < 1e-4


def test_a_model_without_a_standard_cache_is_run_unshared() -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=0)
    model = transformers.MambaForCausalLM(config).eval()
    scorer = ModelScorer(model)
    assert not scorer.shares_prompts
    assert scorer.why_unshared
    assert largest_error(model, scorer, *pairs()) < 1e-4
    with pytest.raises(PopeError, match="cannot share prompts"):
        ModelScorer(model, share_prompt=True)


def test_a_cache_that_forgets_is_noticed() -> None:
    model = tiny_model("llama")
    inner = model.model.forward

    def forgetful(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        if output.past_key_values is not None:
            for layer in output.past_key_values.layers:
                layer.values = torch.zeros_like(layer.values)
        return output

    model.model.forward = forgetful
    scorer = ModelScorer(model)
    assert not scorer.shares_prompts
    assert "differ" in str(scorer.why_unshared)
    assert largest_error(model, scorer, *pairs()) < 1e-4


def test_16_bit_models_are_summed_in_float32() -> None:
    model = tiny_model("llama", vocab_size=2000).bfloat16()
    contexts, completions = pairs(vocabulary=2000)
    found = ModelScorer(model, share_prompt=False).score(contexts, completions)
    for prompt, group, results in zip(contexts, completions, found, strict=True):
        for completion, scores in zip(group, results, strict=True):
            ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))[None]
            with torch.no_grad():
                hidden = model.model(ids).last_hidden_state[0].float()
            logprobs = torch.log_softmax(hidden @ model.lm_head.weight.detach().float().t(), 1)[prompt.size - 1 : -1]
            wanted = logprobs.gather(1, ids[0, prompt.size :, None])[:, 0].numpy()
            assert scores.dtype == np.float32
            # Padding changes the shapes of the model's 16-bit products, hence their rounding.
            np.testing.assert_allclose(scores, wanted, atol=0.15)
            assert np.abs(scores - wanted).mean() < 0.03
    shared = ModelScorer(model, share_prompt=True).score(contexts, completions)
    differences = np.concatenate([a - b for x, y in zip(found, shared, strict=True) for a, b in zip(x, y, strict=True)])
    assert np.abs(differences).mean() < 0.03


@pytest.mark.parametrize("share", [True, False])
def test_a_batch_has_the_same_bits_whatever_was_run_before_it(share: bool) -> None:
    model = tiny_model("llama")
    plan = make_plan(*rows(*pairs(counts=(4, 6, 8, 5, 3, 7, 2))), token_budget=48, share_prompt=share)
    assert len(plan) > 3
    scorer = ModelScorer(model, deterministic=True, share_prompt=share)
    whole = everything(scorer, plan)
    for cut in range(len(plan)):
        parts = (
            everything(scorer, plan, range(cut)),
            everything(ModelScorer(model, deterministic=True, share_prompt=share), plan, range(cut, len(plan))),
        )
        for pair, scores in (parts[0] | parts[1]).items():
            assert scores.tobytes() == whole[pair].tobytes()
    backwards = everything(scorer, plan, reversed(range(len(plan))))
    assert all(backwards[pair].tobytes() == scores.tobytes() for pair, scores in whole.items())
    assert not torch.are_deterministic_algorithms_enabled()


def padded_tokens(shared: bool, pairs: Any, chunks: Any = ()) -> int:
    """Return the tokens of the largest call for a piece."""
    if not shared:
        return int((pairs.prompt_length + pairs.length).max()) * len(pairs)
    prompts = np.unique(pairs.prompt).size * int(pairs.prompt_length.max())
    return max(prompts, *(pairs.length[chunk].size * int(pairs.length[chunk].max()) for chunk in chunks))


def failing_above(limit: int, error: Callable[[], Exception], patch: pytest.MonkeyPatch) -> list[int]:
    """Let calls of more tokens run out of memory; return the sizes that did."""
    failed: list[int] = []
    unshared, shared = Forward.unshared, Forward.shared

    def check(size: int) -> None:
        if size > limit:
            failed.append(size)
            raise error()

    def first(self: Forward, pairs: Any) -> Any:
        check(padded_tokens(False, pairs))
        return unshared(self, pairs)

    def second(self: Forward, pairs: Any, chunks: Any, way: Any) -> Any:
        check(padded_tokens(True, pairs, chunks))
        return shared(self, pairs, chunks, way)

    patch.setattr(Forward, "unshared", first)
    patch.setattr(Forward, "shared", second)
    return failed


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory."),
        lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        lambda: MemoryError(),
    ],
)
def test_running_out_of_memory_halves_the_budget_and_loses_nothing(share: bool, error: Any) -> None:
    model = tiny_model("llama")
    contexts, completions = pairs(counts=(4, 6, 8, 5, 3, 7, 2))
    scorer = ModelScorer(model, token_budget=1024, share_prompt=share)
    with pytest.MonkeyPatch.context() as patch:
        failed = failing_above(70, error, patch)
        assert largest_error(model, scorer, contexts, completions) < 1e-4
        assert len(failed) >= 1
        before = len(failed)
        assert largest_error(model, scorer, contexts, completions) < 1e-4
        assert len(failed) == before, "the smaller budget is remembered"


@pytest.mark.parametrize("share", [True, False])
def test_memory_that_does_not_suffice_for_one_pair_is_an_error(share: bool) -> None:
    scorer = ModelScorer(tiny_model("llama"), share_prompt=share)
    with pytest.MonkeyPatch.context() as patch:
        failing_above(5, lambda: torch.OutOfMemoryError("CUDA out of memory."), patch)
        with pytest.raises(PopeError, match="single pair of"):
            scorer.score(*pairs())


def test_a_deterministic_run_does_not_change_its_batches() -> None:
    scorer = ModelScorer(tiny_model("llama"), deterministic=True)
    with pytest.MonkeyPatch.context() as patch:
        failing_above(70, lambda: torch.OutOfMemoryError("CUDA out of memory."), patch)
        with pytest.raises(PopeError, match="lower token_budget"):
            scorer.score(*pairs())
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    scorer = ModelScorer(tiny_model("llama"))
    with pytest.MonkeyPatch.context() as patch:
        failing_above(5, lambda: RuntimeError("shapes do not match"), patch)
        with pytest.raises(RuntimeError, match="shapes do not match"):
            scorer.score(*pairs())
    assert not is_out_of_memory(ValueError("out of memory"))


def test_one_plan_serves_several_models() -> None:
    contexts, completions = pairs()
    plan = make_plan(*rows(contexts, completions), token_budget=100)
    flat = list(zip(*rows(contexts, completions), strict=True))
    for kind in ("llama", "mistral", "gpt2"):
        model = tiny_model(kind, seed=3)
        found = everything(ModelScorer(model), plan)
        for (prompt, completion), pair in zip(flat, plan.inverse.tolist(), strict=True):
            np.testing.assert_allclose(found[pair], naive_logprobs(model, prompt, completion), atol=1e-4)


def test_results_say_which_pairs_they_are_of() -> None:
    contexts, completions = pairs()
    plan = make_plan(*rows(contexts, completions), token_budget=100)
    scorer = ModelScorer(tiny_model("llama"))
    seen = []
    for batch in scorer.run(plan, [2, 0]):
        seen.append(batch.batch)
        np.testing.assert_array_equal(batch.pairs, plan[batch.batch].pairs)
        np.testing.assert_array_equal(np.diff(batch.offsets), plan.completion_lengths[batch.pairs])
        assert (batch.logprobs.dtype, batch.sums.dtype) == (np.float32, np.float64)
        parts = np.split(batch.logprobs.astype(np.float64), batch.offsets[1:-1])
        np.testing.assert_allclose(batch.sums, [part.sum() for part in parts], rtol=1e-12)
        assert np.isfinite(batch.logprobs).all()
    assert seen == [2, 0]


def test_adapters_are_scored_one_after_the_other() -> None:
    import peft

    base = tiny_model("llama")
    contexts, completions = pairs(prompts=(4, 9), counts=(3, 4))
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2), adapter_name="first")
    model.add_adapter("second", peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["v_proj", "lm_head"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    scorer = ModelScorer(model)
    errors, kinds, scores = [], [], []
    for name in ("first", "second", None):
        with scorer.adapter(name):
            errors.append(largest_error(model, scorer, contexts, completions))
            kinds.append(scorer.own_head)
            scores.append(scorer.score(contexts, completions)[0][0])
    assert max(errors) < 1e-4
    assert kinds == [False, True, False]
    assert np.abs(scores[0] - scores[1]).max() > 0.01
    assert np.abs(scores[0] - scores[2]).max() > 0.01
    assert model.active_adapter == "first"
    with pytest.raises(PopeError, match="no adapter 'c'; it has: first, second"), scorer.adapter("c"):
        pass
    with pytest.raises(PopeError, match="it has: none"), ModelScorer(tiny_model("gpt2")).adapter("a"):
        pass


def test_virtual_tokens_of_an_adapter_are_seen() -> None:
    import peft

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(tiny_model("llama"), config).eval()
    contexts, completions = pairs(prompts=(4, 9), counts=(3, 4))
    found = ModelScorer(model).score(contexts, completions)
    for prompt, group, results in zip(contexts, completions, found, strict=True):
        for completion, scores in zip(group, results, strict=True):
            ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))[None]
            with torch.no_grad():
                logprobs = torch.log_softmax(model(ids).logits[0, 3:], 1)[prompt.size - 1 : -1]
            wanted = logprobs.gather(1, ids[0, prompt.size :, None])[:, 0].numpy()
            np.testing.assert_allclose(scores, wanted, atol=1e-4)


def test_weights_that_wait_on_another_device_are_fetched() -> None:
    from accelerate import cpu_offload

    model = tiny_model("llama")
    contexts, completions = pairs(prompts=(4, 9), counts=(3, 4))
    wanted = ModelScorer(model).score(contexts, completions)
    scorer = ModelScorer(cpu_offload(model, execution_device=torch.device("cpu")))
    assert scorer.device.type == "cpu"
    for group, results in zip(wanted, scorer.score(contexts, completions), strict=True):
        for one, other in zip(group, results, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama", attention_dropout=0.5)
    model.train()
    scorer = ModelScorer(model)
    contexts, completions = pairs()
    first = scorer.score(contexts, completions)
    assert model.training
    again = scorer.score(contexts, completions)
    assert all((a == b).all() for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    assert model.config._attn_implementation == "sdpa"
    # Between batches the caller's own settings hold.
    plan = make_plan(*rows(contexts, completions), token_budget=50)
    for _ in scorer.run(plan):
        assert model.training
        assert torch.is_grad_enabled()
    model(torch.arange(5)[None], labels=torch.arange(5)[None]).loss.backward()


def test_facts_about_the_model() -> None:
    scorer = ModelScorer(tiny_model("llama", context=64))
    facts = scorer.context_length, scorer.vocab_size, scorer.dtype, scorer.attention, scorer.device.type
    assert facts == (64, 97, "float32", "sdpa", "cpu")
    assert ModelScorer(tiny_model("gpt2").bfloat16()).dtype == "bfloat16"
    assert ModelScorer(tiny_model("llama"), token_budget=77).token_budget == 77
    budget = default_token_budget(scorer.model, scorer.device)
    assert scorer.token_budget == budget == 2 ** (budget.bit_length() - 1)


def test_what_the_model_cannot_take_is_an_error() -> None:
    scorer = ModelScorer(tiny_model("llama", context=16))
    with pytest.raises(PopeError, match="token id 97 is outside the model's vocabulary of 97"):
        scorer.score([[1]], [[[97]]])
    with pytest.raises(PopeError, match="17 tokens, the model's context 16"):
        scorer.score([[1] * 16], [[[2]]])
    assert largest_error(scorer.model, scorer, [np.arange(15)], [[np.array([2])]]) < 1e-4


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": float("nan")}, {"token_budget": 0}, {"share_prompt": "maybe"}]
)
def test_bad_options_are_errors(options: Any) -> None:
    with pytest.raises(PopeError, match=next(iter(options))):
        ModelScorer(tiny_model("llama"), **options)
