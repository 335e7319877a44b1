"""Small language models of the text world: tokenizer, training, skills, exact log-probabilities."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from pope_fast.errors import PopeError
from pope_fast.simulate import text_models as tm
from pope_fast.simulate.text_world import TextWorld

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def world():
    return TextWorld(seed=1, n_prompts=6, n_perspectives=3, n_phrasings=4)


@pytest.fixture(scope="module")
def examples(world):
    return tm.mixture(world, 600, seed=1)


@pytest.fixture(scope="module")
def tokenizer(examples):
    return tm.make_tokenizer(examples)


@pytest.fixture(scope="module")
def small(tokenizer):
    return tm.make_model(tokenizer, hidden=32, layers=1, heads=2)


def test_skills_are_right():
    for example in tm.copying(50, 1):
        given = example.prompt.removeprefix("copy: ").removesuffix(" =")
        assert example.completion == f"{given}."
        assert len(given.split()) == 4
    for example in tm.adding(50, 1):
        a, b = example.prompt.removeprefix("add: ").removesuffix(" =").split(" + ")
        assert example.completion == f"{int(a) + int(b)}."
    assert tm.copying(5, 1) == tm.copying(5, 1) != tm.copying(5, 2)
    assert len(set(tm.sentences(50, 1))) > 40


def test_the_mixture_has_half_questions(world, examples):
    assert len(examples) == 600
    asked = [example for example in examples if example.prompt in world.prompts]
    assert len(asked) == 300
    assert all(world.parse(example.prompt, example.completion) is not None for example in asked)


def test_answers_follow_the_policy(world):
    answers = tm.world_examples(world, world.policy([1, 0, 0], [0, 1, 0, 0]), 30, 2)
    assert {world.parse_response(a.prompt, a.completion) for a in answers} == {(0, 1)}


def test_tokens_give_back_the_text_together_and_apart(world, tokenizer, examples):
    for example in examples[:100]:
        whole = tokenizer(example.prompt + example.completion).input_ids
        ((prompt, completion),) = tm.encode(tokenizer, [example])
        assert [*prompt, *completion] == [*whole, tokenizer.eos_token_id]
        assert prompt[0] == tokenizer.bos_token_id
        assert tokenizer.decode(completion, skip_special_tokens=True) == example.completion
        assert tokenizer.unk_token_id not in whole


def test_model_size_and_seed(tokenizer):
    model = tm.make_model(tokenizer)
    assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 5e6
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, three = (tm.make_model(tokenizer, seed, hidden=16, layers=1, heads=2) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, three.lm_head.weight)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_menu_logprobs_are_those_of_the_plain_model(world, tokenizer, small, temperature):
    found = tm.menu_logprobs(small, tokenizer, world, [4, 1], temperature=temperature)
    assert found.shape == (2, 12)
    for row, x in zip(found, (4, 1), strict=True):
        for value, text in zip(row, world.responses(x), strict=True):
            ((prompt, completion),) = tm.encode(tokenizer, [tm.Example(world.prompts[x], text)])
            ids = torch.tensor([[*prompt, *completion]])
            with torch.no_grad():
                logits = small(input_ids=ids).logits[0, len(prompt) - 1 : -1].double() / temperature
            expected = torch.log_softmax(logits, -1)[range(len(completion)), completion].sum()
            assert value == pytest.approx(float(expected), abs=1e-4)
    assert np.exp(found).sum(axis=1).max() < 1.0


def test_perplexity_does_not_depend_on_batches(tokenizer, small, examples):
    some = examples[:40]
    one, many = (tm.perplexity(small, tokenizer, some, batch_size=size) for size in (1, 64))
    assert one == pytest.approx(many, rel=1e-5)
    # Untrained: no better than guessing among the whole vocabulary.
    assert one > 0.5 * len(tokenizer)


def test_accuracy_is_that_of_greedy_decoding(tokenizer, examples):
    model = tm.make_model(tokenizer, seed=3, hidden=32, layers=1, heads=2)
    sums = tm.adding(12, 5)
    tm.train(model, tokenizer, sums, steps=25, batch_size=12, learning_rate=1e-2)
    right = 0
    for prompt, completion in tm.encode(tokenizer, sums):
        out = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=len(completion),
            do_sample=False,
        )
        right += out[0, len(prompt) :].tolist() == completion
    assert tm.accuracy(model, tokenizer, sums) == right / len(sums) > 0


def test_training_lowers_the_loss_and_is_reproducible(tokenizer, examples):
    losses, weights = [], []
    for seed in (1, 1, 2):
        model = tm.make_model(tokenizer, hidden=32, layers=1, heads=2)
        losses.append(tm.train(model, tokenizer, examples, steps=20, batch_size=16, learning_rate=1e-2, seed=seed))
        weights.append(model.lm_head.weight)
        assert not model.training
    assert np.mean(losses[0][-3:]) < 0.7 * losses[0][0]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(weights[0], weights[1])


def test_training_on_completions_only_leaves_prompts_out(tokenizer):
    models = [tm.make_model(tokenizer, hidden=32, layers=1, heads=2) for _ in range(2)]
    sums = tm.adding(64, 1)
    for model, only in zip(models, (False, True), strict=True):
        tm.train(model, tokenizer, sums, steps=30, batch_size=32, learning_rate=1e-2, completions_only=only)
    # The fixed words of the prompts are learned at once, where they count.
    whole, only = (tm.perplexity(model, tokenizer, sums) for model in models)
    assert whole < 0.5 * only


@pytest.mark.slow
def test_a_model_of_default_size_learns_a_small_world(world, tokenizer, examples):
    model = tm.make_model(tokenizer)
    tm.train(model, tokenizer, tm.world_examples(world, world.policy(), 3000, 1), steps=90, batch_size=32)
    menu = np.exp(tm.menu_logprobs(model, tokenizer, world))
    assert menu.sum(axis=1).mean() > 0.5
    truth = world.truth(menu)
    assert truth["unclear"] == pytest.approx(1 - menu.sum(axis=1).mean(), abs=1e-6)


def test_nothing_to_train_on_is_an_error(tokenizer, small):
    with pytest.raises(PopeError, match="no examples"):
        tm.train(small, tokenizer, [], steps=1)


def test_without_transformers_the_error_names_the_extra(monkeypatch, examples):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "transformers":
            raise ImportError("no transformers here")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr("pope_fast._extras.import_module", lambda name: refuse(name))
    with pytest.raises(PopeError, match=r"pope_fast\[torch\]"):
        tm.make_tokenizer(examples)
