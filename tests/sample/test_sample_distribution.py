"""The sampler's distribution against plain NumPy and transformers; the choice of tokens against probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from pope_fast.errors import PopeError
from pope_fast.sample.distribution import log_distribution
from pope_fast.sample.settings import Sampling
from pope_fast.sample.streams import HEAD, choose, draw_key, exponentials, step_keys

SAMPLERS = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"min_p": 0.2},
    {"temperature": 0.7},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1},
]


def logits(rows: int = 40, vocabulary: int = 60, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn((rows, vocabulary), generator=torch.Generator().manual_seed(seed))


def plain(row: np.ndarray, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """Probabilities of one row, in double precision, token by token."""
    p = np.exp(row / temperature - np.max(row / temperature))
    p /= p.sum()
    order = sorted(range(p.size), key=lambda v: (-p[v], v))
    if top_k:
        for v in order[top_k:]:
            p[v] = 0.0
        p /= p.sum()
    if top_p < 1:
        reached = 0.0
        for v in order:
            reached, p[v] = reached + p[v], p[v] if reached < top_p else 0.0
        p /= p.sum()
    p[p < min_p * p.max()] = 0.0
    return p / p.sum()


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
def test_it_is_the_plain_one(options) -> None:
    given = logits()
    sampler, softmax = log_distribution(given, Sampling(**options))
    for row, mine, whole in zip(
        given.double().numpy(), sampler.double().numpy(), softmax.double().numpy(), strict=True
    ):
        np.testing.assert_allclose(np.exp(mine), plain(row, **options), atol=1e-6)
        np.testing.assert_allclose(np.exp(whole), plain(row, options.get("temperature", 1.0)), atol=1e-6)
    assert np.all(np.isneginf(sampler.numpy()) == (np.exp(sampler.numpy()) == 0))


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
def test_it_is_that_of_generate(options) -> None:
    """The processors of transformers, in the order in which its generate applies them."""
    from transformers.generation import logits_process as hf

    given = scores = logits(seed=1)
    if "temperature" in options:
        scores = hf.TemperatureLogitsWarper(options["temperature"])(None, scores)
    if "top_k" in options:
        scores = hf.TopKLogitsWarper(options["top_k"])(None, scores)
    if "top_p" in options:
        scores = hf.TopPLogitsWarper(options["top_p"])(None, scores)
    if "min_p" in options:
        scores = hf.MinPLogitsWarper(options["min_p"])(None, scores)
    sampler, _ = log_distribution(given, Sampling(**options))
    torch.testing.assert_close(sampler, torch.log_softmax(scores, -1), atol=1e-5, rtol=1e-5)


def test_a_tie_keeps_the_size_that_top_k_names() -> None:
    sampler, _ = log_distribution(torch.zeros(1, 9), Sampling(top_k=4))
    assert torch.exp(sampler)[0].tolist() == pytest.approx([0.25] * 4 + [0.0] * 5)
    sampler, _ = log_distribution(torch.zeros(1, 10), Sampling(top_p=0.35))
    assert int((sampler > -np.inf).sum()) == 4


def test_half_precision_logits_are_normalized_in_single() -> None:
    sampler, _ = log_distribution(logits().bfloat16(), Sampling(top_p=0.9))
    assert sampler.dtype == torch.float32
    np.testing.assert_allclose(torch.exp(sampler).sum(-1).numpy(), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 1.0},
        {"max_new_tokens": 0},
    ],
    ids=str,
)
def test_what_is_no_sampler_is_refused(wrong) -> None:
    with pytest.raises(PopeError, match=next(iter(wrong))):
        Sampling(**wrong)


def drawn(p: np.ndarray, n: int, step: int = 0, seed: int = 3) -> np.ndarray:
    keys = np.random.default_rng(seed).integers(0, 2**63, n, dtype=np.uint64)
    table = torch.log(torch.from_numpy(p).float()).expand(n, -1)
    return choose(table, torch.from_numpy(step_keys(keys, step))).numpy()


@pytest.mark.parametrize("vocabulary", [7, 2 * HEAD, 5 * HEAD])
def test_tokens_come_as_often_as_they_should(vocabulary: int) -> None:
    """The smallest case has one race; in the largest one the tail races too, and gets a third of the draws."""
    rng = np.random.default_rng(vocabulary)
    p = rng.dirichlet(np.full(vocabulary, 0.7))
    p[1] = 0.0
    p /= p.sum()
    n = 40_000
    counts = np.bincount(drawn(p, n), minlength=vocabulary)
    assert counts[1] == 0
    assert vocabulary <= 2 * HEAD or np.sort(p)[:-HEAD].sum() > 0.3
    likely = p * n >= 5
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(p[likely], p[~likely].sum()) * n
    observed, expected = observed[expected > 0], expected[expected > 0]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_steps_and_draws_are_independent() -> None:
    p = np.full(5, 0.2)
    table = np.zeros((5, 5))
    np.add.at(table, (drawn(p, 50_000, step=0), drawn(p, 50_000, step=1)), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3
    keys = [draw_key(0, np.array([4, 5], np.int32), draw) for draw in range(20_001)]
    rows = torch.log(torch.full((20_001, 5), 0.2))
    tokens = choose(rows, torch.from_numpy(step_keys(np.array(keys, np.uint64), 0))).numpy()
    table = np.zeros((5, 5))
    np.add.at(table, (tokens[:-1], tokens[1:]), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_exponentials_are_exponential() -> None:
    keys = torch.from_numpy(step_keys(np.arange(50, dtype=np.uint64), 0))[:, None]
    values = exponentials(keys, torch.arange(1000)[None, :]).numpy()
    assert values.min() > 0
    assert stats.kstest(values.ravel(), "expon").pvalue > 1e-3
    assert np.abs(np.corrcoef(values[:20])[np.triu_indices(20, 1)]).max() < 0.13


def test_rounding_of_the_logits_hardly_changes_draws() -> None:
    """What "same seed, same draws" rests on: noise of 1e-5 nats changes about one draw in 1e5, however many tokens."""
    n, vocabulary = 4000, 3000
    keys = torch.from_numpy(step_keys(np.arange(n, dtype=np.uint64), 0))
    noise = 1e-5 * torch.randn((n, vocabulary), generator=torch.Generator().manual_seed(1))
    flat = torch.randn(vocabulary, generator=torch.Generator().manual_seed(0)).expand(n, -1)
    first, second = (choose(torch.log_softmax(given, -1), keys) for given in (flat, flat + noise))
    assert int((first != second).sum()) <= 2


def test_streams_stay_the_same_between_versions() -> None:
    """A seed that was written into a log shall give its draws again."""
    key = draw_key(7, np.array([1, 2, 3], np.int32), 4)
    keys = step_keys(np.array([key], np.uint64), 5)
    assert (key, int(keys[0])) == (FROZEN_KEY, FROZEN_STEP)
    value = exponentials(torch.from_numpy(keys)[:, None], torch.tensor([[6]])).item()
    assert value == pytest.approx(FROZEN_VALUE, rel=1e-15)


FROZEN_KEY = 18291300595053782323
FROZEN_STEP = 3970370355636880531
FROZEN_VALUE = 1.4773807727597068
