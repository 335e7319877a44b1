"""Level, truncation, rejection and taper of the weights, and the raw diagnostics, against the NumPy reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from table_policy import gradient, number, small_table
from torch import Tensor

from pope_fast.align.losses import (
    WEIGHTINGS,
    Diversity,
    LossInputs,
    Objective,
    Weighting,
    cispo_loss,
    gspo_loss,
    pope_loss,
    topr_loss,
)
from pope_fast.align.losses.diagnostics import weight_diagnostics
from pope_fast.align.losses.weights import SN_TIPS, UNTRUNCATED, row_weights, score_weights
from pope_fast.errors import PopeError, SchemaError
from pope_fast.reference import diagnostics, tails, weights


def batch_of(log_ratio: Tensor, prompts: int = 20, tokens: int = 3, **columns: Tensor) -> LossInputs:
    """Return a batch with the given sequence log-ratios, spread unevenly over tokens."""
    n = len(log_ratio)
    split = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)[:tokens]
    behavior = torch.full((n, tokens), -1000.0, dtype=torch.float64)
    return LossInputs.from_tokens(
        behavior + log_ratio[:, None] * split / split.sum(),
        torch.ones(n, tokens),
        behavior_logprob=behavior.sum(dim=1),
        behavior_token_logprobs=behavior,
        reward=torch.linspace(0, 1, n, dtype=torch.float64),
        prompt=torch.arange(prompts).repeat_interleave(n // prompts),
        cluster=torch.arange(n) % 3,
        **columns,
    )


@pytest.fixture
def log_ratio() -> Tensor:
    return 1.5 * torch.randn(80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_truncation_is_that_of_the_estimators(log_ratio: Tensor) -> None:
    batch = batch_of(log_ratio)
    logw, unit = batch.log_ratio.numpy(), batch.prompt.numpy()
    tau = weights.truncation_level(logw, unit)
    rows = row_weights(batch, SN_TIPS)
    assert number(rows.tau) == pytest.approx(tau, rel=1e-12)
    np.testing.assert_allclose(rows.weight.numpy(), weights.truncate(logw, tau), rtol=1e-12)
    assert number(row_weights(batch, Weighting(truncation="sn_tips", n_units=2000)).tau) == pytest.approx(10 * tau)
    np.testing.assert_allclose(
        row_weights(batch, Weighting(clip=3.0)).weight, np.minimum(np.exp(logw), 3.0), rtol=1e-12
    )
    np.testing.assert_allclose(row_weights(batch, UNTRUNCATED).weight, np.exp(logw), rtol=1e-12)
    smoothed = np.exp(tails.smoothed_log_weights(logw) + logw.max())
    np.testing.assert_allclose(row_weights(batch, Weighting(truncation="psis")).weight, smoothed, rtol=1e-10)


def test_where_weights_are_cut_there_is_no_gradient_and_under_psis_there_is(log_ratio: Tensor) -> None:
    leaf = log_ratio.clone().requires_grad_()
    batch = batch_of(leaf)
    for weighting in (SN_TIPS, Weighting(clip=1.0), UNTRUNCATED, Weighting(truncation="psis")):
        rows = row_weights(batch, weighting)
        slope = torch.autograd.grad(rows.weight.sum(), leaf, retain_graph=True)[0]
        expected = rows.weight.detach()
        if weighting.truncation != "psis":
            expected = torch.where(rows.truncated, 0.0, expected)
        assert torch.allclose(slope, expected)
        assert bool(rows.truncated.any()) == (weighting.truncation != "none")


def test_levels(log_ratio: Tensor) -> None:
    batch = batch_of(log_ratio)
    geometric = row_weights(batch, Weighting(level="geometric", truncation="none", taper="none"))
    assert torch.allclose(geometric.weight, (log_ratio / 3).exp())
    token = row_weights(batch, Weighting(level="token", truncation="none", taper="none"))
    assert token.token_weight is not None
    assert torch.allclose(token.token_weight.log().sum(dim=1), log_ratio)
    assert torch.allclose(token.weight, log_ratio.exp())
    for truncation, limit in (("clip", 1.2), ("sn_tips", None), ("psis", None)):
        cut = row_weights(batch, Weighting(level="token", truncation=truncation, clip=1.2))  # type: ignore[arg-type]
        assert cut.token_weight is not None
        if limit is None and truncation == "sn_tips":
            limit = math.sqrt(20) * number(token.token_weight.mean())
        if limit is not None:
            assert torch.allclose(cut.token_weight, token.token_weight.clamp(max=limit))
        else:
            assert float(cut.token_weight.max()) <= float(token.token_weight.max()) * (1 + 1e-12)
    with pytest.raises(SchemaError, match="token_logprobs"):
        row_weights(small_table().batch([0], [[0, 1]]), Weighting(level="token"))


def test_rejection_rules(log_ratio: Tensor) -> None:
    batch = batch_of(log_ratio)
    w = log_ratio.exp()
    parts = log_ratio[:, None] * torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    k3 = (parts.exp() - 1 - parts).mean(dim=1)
    bad_token = ((parts.exp() < 0.5) | (parts.exp() > 2.0)).any(dim=1)
    rules = {
        "ratio": (0.5, 2.0, (w < 0.5) | (w > 2.0)),
        "geometric": (0.9, 1.1, ((log_ratio / 3).exp() < 0.9) | ((log_ratio / 3).exp() > 1.1)),
        "k3": (0.0, 0.05, k3 > 0.05),
        "token": (0.5, 2.0, bad_token),
    }
    for rule, (low, high, expected) in rules.items():
        weighting = Weighting(truncation="none", rejection=rule, reject_below=low, reject_above=high)  # type: ignore[arg-type]
        rows = row_weights(batch, weighting)
        assert torch.equal(rows.suspect, expected), rule
        assert bool(expected.any())
        assert not bool(expected.all())
        assert torch.equal(rows.weight == 0, expected)
        assert number(weight_diagnostics(batch, rows)["rejected_share"]) == pytest.approx(
            float(expected.double().mean())
        )
    negative = Weighting(truncation="none", taper="none", rejection="ratio", reject_above=2.0, reject_only="negative")
    rows = row_weights(batch, negative)
    advantage = torch.linspace(-1, 1, 80, dtype=torch.float64)
    used = score_weights(batch, rows, negative, advantage)
    assert torch.equal(used == 0, (w > 2.0) & (advantage < 0))
    assert not bool((rows.weight == 0).any())


def test_tapers(log_ratio: Tensor) -> None:
    batch = batch_of(log_ratio)
    w = log_ratio.exp()
    advantage = torch.where(torch.arange(80) % 2 == 0, 1.0, -1.0).double()

    def used(weighting: Weighting) -> Tensor:
        return score_weights(batch, row_weights(batch, weighting), weighting, advantage)

    good = advantage > 0
    topr = used(Weighting(truncation="none", taper="topr"))
    assert torch.allclose(topr, torch.where(good, 1.0, w.clamp(max=1.0)))
    ppo = used(Weighting(clip=2.0, taper="ppo"))
    assert torch.allclose(ppo, torch.where(good & (w > 2.0), 0.0, w.clamp(max=2.0)))
    slope = torch.autograd.grad(torch.sigmoid(0.2 * (leaf := log_ratio.clone().requires_grad_())).sum(), leaf)[0]
    logistic = used(Weighting(taper="logistic", sharpness=0.2))
    assert torch.allclose(logistic, 4.0 / 0.2 * slope)
    s = (log_ratio / 3).exp()
    gspo = used(Weighting(level="geometric", truncation="none", taper="gspo", epsilon_low=0.1, epsilon_high=0.2))
    stopped = torch.where(good, s > 1.2, s < 0.9)
    assert torch.allclose(gspo, torch.where(stopped, 0.0, s / 3))
    tokens = row_weights(batch, Weighting(level="token", clip=1.2)).token_weight
    assert tokens is not None
    by_token = used(Weighting(level="token", clip=1.2, taper="ppo"))
    raw = (log_ratio[:, None] * torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)).exp()
    assert torch.allclose(by_token, torch.where(good[:, None] & (raw > 1.2), 0.0, tokens))


def test_the_score_form_with_a_taper_has_the_gradient_of_the_loss_of_that_name() -> None:
    leaf = (0.02 * torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).requires_grad_()
    batch = batch_of(leaf, prompts=10)
    named = {
        "topr": topr_loss(batch, advantage="none")[0],
        "gspo": gspo_loss(batch, advantage="none")[0],
        "cispo": 3 * cispo_loss(batch, advantage="none")[0],  # which divides by the tokens
    }
    for name, loss in named.items():
        objective = Objective(diversity_weight=0.0, beta=0.0, weighting=WEIGHTINGS[name])
        same, _ = pope_loss(batch, objective, baseline="none")
        assert torch.allclose(gradient(same, leaf), gradient(loss, leaf), rtol=1e-9, atol=1e-14), name


def test_diagnostics_are_raw_and_those_of_the_evaluation(log_ratio: Tensor) -> None:
    batch = batch_of(log_ratio)
    logw, unit = batch.log_ratio.numpy(), batch.prompt.numpy()
    found = {}
    for name, weighting in (("cut", Weighting(clip=0.1)), ("raw", UNTRUNCATED)):
        rows = row_weights(batch, weighting)
        found[name] = {key: number(value) for key, value in weight_diagnostics(batch, rows).items()}
        d = found[name]
        assert d["ess"] == pytest.approx(diagnostics.effective_sample_size(logw, unit), rel=1e-12)
        assert d["largest_share"] == pytest.approx(diagnostics.max_weight_share(logw, unit), rel=1e-12)
        assert d["mean_weight"] == pytest.approx(diagnostics.mean_weight(logw, unit).value, rel=1e-12)
        assert d["mean_log_weight"] == pytest.approx(diagnostics.mean_log_weight(logw, unit).value, rel=1e-12)
        assert d["k_hat"] == pytest.approx(tails.pareto_k(logw), rel=1e-12)
    # Clamped weights look fine whatever happens; that is why the raw ones are logged.
    assert found["cut"]["ess_clipped"] > 0.9 * 20 > found["cut"]["ess"]
    assert found["raw"]["ess_clipped"] == pytest.approx(found["raw"]["ess"])


def test_nothing_overflows_however_far_the_policy_has_gone() -> None:
    leaf = torch.linspace(895, 905, 40, dtype=torch.float64).requires_grad_()
    batch = batch_of(leaf, prompts=10)
    for weighting in (Weighting(), SN_TIPS):
        loss, metrics = pope_loss(batch, Objective(weighting=weighting, diversity=Diversity(order=2)))
        assert bool(torch.isfinite(gradient(loss, leaf)).all())
        assert metrics["mean_log_weight"] == pytest.approx(900.0, abs=1e-9)
    lost = batch_of(torch.full((40,), -900.0, dtype=torch.float64), prompts=10)
    with pytest.raises(PopeError, match="weight 0"):
        pope_loss(lost, Objective(diversity_weight=0.0))


def test_what_cannot_be_is_refused() -> None:
    for options, message in (
        ({"level": "word"}, "level must be one of"),
        ({"truncation": "hard"}, "truncation must be one of"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"n_units": 0}, "n_units"),
        ({"reject_below": 2.0, "reject_above": 1.0}, "no interval"),
        ({"taper": "gspo"}, "needs level 'geometric'"),
        ({"taper": "topr", "level": "token"}, "whole responses"),
        ({"taper": "logistic", "sharpness": 0.0}, "sharpness"),
    ):
        with pytest.raises(PopeError, match=message):
            Weighting(**options)  # type: ignore[arg-type]
