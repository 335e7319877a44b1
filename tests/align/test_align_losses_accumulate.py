"""Gradient accumulation does not change the objective: of parts, values and gradients add up to those of the whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from table_policy import Table, distance, gradient, number, small_table, tiny_lm
from torch import Tensor

from pope_fast.align.losses import (
    LOSSES,
    Diversity,
    LossInputs,
    Objective,
    Statistics,
    Weighting,
    backward_plan,
    pope_loss,
    pope_statistics,
)
from pope_fast.errors import PopeError

SPLITS = [(0, 2), (2, 3), (3, 5)]


@pytest.fixture
def table() -> Table:
    table = small_table(4, n_types=5, menu=4, clusters=3)
    table.reward = table.reward.clone()
    return table


def whole_batch(table: Table) -> LossInputs:
    rows = [[0, 1, 2, 3, 0], [1, 1, 2, 0], [3, 2, 1, 0, 0], [2, 3, 1, 0], [0, 0, 1, 2]]
    n = sum(map(len, rows))
    group = torch.arange(n) % 2
    return table.batch(list(range(5)), rows, group=group, num_tokens=torch.arange(1, n + 1))


def parts(table: Table) -> list[tuple[LossInputs, int]]:
    """The batch again, part by part, as a trainer computes it."""
    first_rows = [0, 9, 14]
    return [(whole_batch(table).prompts(*split), row) for split, row in zip(SPLITS, first_rows, strict=True)]


OBJECTIVES = {
    "default": Objective(diversity=Diversity(n_clusters=3)),
    "gini": Objective(beta=0.2, diversity=Diversity("gini", n_clusters=3), kl="k1"),
    "plug-in": Objective(
        beta=0.2, diversity=Diversity("shannon", n_clusters=3), weighting=Weighting(truncation="sn_tips")
    ),
    "marginal": Objective(beta=0.1, diversity=Diversity("h_m", order=2, level="marginal", n_clusters=3)),
    "marginal entropy": Objective(kl="forward", diversity=Diversity("shannon", level="marginal", n_clusters=3)),
    "nash": Objective(welfare="nash", group_shares=(0.4, 0.6), diversity=Diversity(order=2, n_clusters=3)),
    "softmin": Objective(welfare="softmin", group_shares=(0.5, 0.5), diversity_weight=0.0, self_normalize=False),
    "pessimistic": Objective(pessimism=0.5, reward_range=(0.0, 1.0), diversity=Diversity("gini", n_clusters=3)),
    "tapered": Objective(weighting=Weighting(truncation="none", taper="topr"), diversity=Diversity(n_clusters=3)),
}


NOT_WITH = {"tapered": "direct", "pessimistic": "score"}
CASES = [(name, form) for name in OBJECTIVES for form in ("score", "direct") if NOT_WITH.get(name) != form]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_one_pass_with_the_sums_of_the_whole(table: Table, name: str, form: Any) -> None:
    objective = OBJECTIVES[name]
    loss, _ = pope_loss(whole_batch(table), objective, form=form)
    exact = gradient(loss, table.theta)
    sums = pope_statistics(whole_batch(table).detach(), objective)
    value, total = 0.0, torch.zeros_like(exact)
    for part, _ in parts(table):
        share, _ = pope_loss(part, objective, form=form, normalizer=sums)
        value += number(share)
        total += gradient(share, table.theta)
    assert value == pytest.approx(number(loss), rel=1e-10)
    assert distance(total, exact) < 1e-9


def test_without_the_sums_the_parts_have_another_gradient(table: Table) -> None:
    objective = OBJECTIVES["default"]
    exact = gradient(pope_loss(whole_batch(table), objective)[0], table.theta)
    total = torch.zeros_like(exact)
    for part, _ in parts(table):
        total += part.n_prompts / 5 * gradient(pope_loss(part, objective)[0], table.theta)
    assert distance(total, exact) > 1e-3


def test_sums_of_parts_are_the_sums_of_the_whole(table: Table) -> None:
    objective = OBJECTIVES["nash"]
    whole = pope_statistics(whole_batch(table).detach(), objective)
    added: Statistics | None = None
    for part, _ in parts(table):
        piece = pope_statistics(part.detach(), objective, normalizer=whole)
        added = piece if added is None else added + piece
    assert added is not None
    for name in ("prompts", "raw_weight", "weight", "group_reward", "moments", "kl", "spread_units", "reward"):
        assert torch.allclose(getattr(added, name), getattr(whole, name)), name
    running = whole.averaged(whole, 0.9)
    assert torch.allclose(running.moments, whole.moments)
    with pytest.raises(PopeError, match="n_clusters"):
        _ = whole + pope_statistics(whole_batch(table).detach(), OBJECTIVES["marginal"])


@pytest.mark.parametrize("name", [name for name, spec in LOSSES.items() if "tokens" not in spec.needs])
def test_two_passes_are_exact_for_every_loss(table: Table, name: str) -> None:
    spec = LOSSES[name]
    loss, metrics = spec.function(whole_batch(table))
    exact = torch.autograd.grad(loss, table.theta, materialize_grads=True, allow_unused=True)[0]
    plan = backward_plan(spec.function, whole_batch(table).detach())
    assert plan.metrics == pytest.approx(metrics, nan_ok=True)
    assert number(plan.loss) == pytest.approx(number(loss))
    total = torch.zeros_like(exact)
    for part, row in parts(table):
        total += gradient(plan.surrogate(part, row), table.theta)
    assert torch.allclose(total, exact, atol=1e-12)


@pytest.mark.parametrize("truncation", ["psis", "sn_tips"])
def test_two_passes_are_exact_where_one_is_not(table: Table, truncation: Any) -> None:
    objective = replace(OBJECTIVES["default"], weighting=Weighting(truncation=truncation))
    exact = gradient(pope_loss(whole_batch(table), objective)[0], table.theta)
    plan = backward_plan(pope_loss, whole_batch(table).detach(), objective=objective)
    total = sum(gradient(plan.surrogate(part, row), table.theta) for part, row in parts(table))
    assert isinstance(total, Tensor)
    assert torch.allclose(total, exact, atol=1e-12)
    if truncation == "psis":
        sums = pope_statistics(whole_batch(table).detach(), objective)
        with pytest.raises(PopeError, match="ranks the weights of a whole batch"):
            pope_loss(parts(table)[0][0], objective, normalizer=sums)


@pytest.mark.parametrize("name", [name for name, spec in LOSSES.items() if spec.additive])
def test_losses_called_additive_are(table: Table, name: str) -> None:
    lm = tiny_lm(vocabulary=2)
    new, old = lm.tokens(lm.logits), lm.tokens(lm.behavior_logits).detach()
    rows = torch.tensor([0, 1, 2, 7, 4, 5, 6, 3, 2, 1])

    def batch() -> LossInputs:
        return LossInputs.from_tokens(
            new[rows],
            torch.ones(10, 3),
            behavior_logprob=old[rows].sum(dim=1),
            behavior_token_logprobs=old[rows],
            reward=torch.linspace(0, 1, 10, dtype=torch.float64).square(),
            prompt=torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2]),
            cluster=rows % 3,
        )

    function = LOSSES[name].function
    whole = function(batch())[0]
    pieces = [(1 / 3, batch().prompts(0, 1)), (2 / 3, batch().prompts(1, 3))]
    added = sum(share * function(part)[0] for share, part in pieces)
    assert isinstance(added, Tensor)
    assert number(added) == pytest.approx(number(whole), rel=1e-10)
    theta = lm.logits[1]
    assert torch.allclose(gradient(added, theta), gradient(whole, theta), atol=1e-12)


def test_two_passes_through_tokens_and_values(table: Table) -> None:
    lm = tiny_lm(vocabulary=2)
    rows = torch.tensor([0, 3, 5, 6])
    value = torch.tensor([0.1, 0.1, 0.4, 0.4], dtype=torch.float64, requires_grad=True)

    def batch(first: int, last: int, width: int = 3) -> LossInputs:
        new, old = lm.tokens(lm.logits), lm.tokens(lm.behavior_logits).detach()
        chosen = rows[first:last]
        # Padding holds anything, and may be longer in the whole than in a part.
        padding = torch.full((len(chosen), width - 3), -9.0, dtype=torch.float64)
        return LossInputs.from_tokens(
            torch.cat([new[chosen], padding], dim=1),
            torch.cat([torch.ones(len(chosen), 3), torch.zeros(len(chosen), width - 3)], dim=1),
            behavior_logprob=old[chosen].sum(dim=1),
            behavior_token_logprobs=torch.cat([old[chosen], padding], dim=1),
            reward=torch.tensor([1.0, 0, 0.3, 0.8], dtype=torch.float64)[first:last],
            prompt=torch.tensor([0, 0, 1, 1])[first:last] - int(first > 0),
            value=value[first:last],
        )

    for name in ("cispo", "token_ratio", "dro_v", "gspo"):
        function = LOSSES[name].function
        exact = torch.autograd.grad(
            function(batch(0, 4))[0], [lm.logits[1], value], materialize_grads=True, allow_unused=True
        )
        plan = backward_plan(function, batch(0, 4, width=5).detach())
        total = [torch.zeros_like(tensor) for tensor in exact]
        for first, last in ((0, 2), (2, 4)):
            found = torch.autograd.grad(plan.surrogate(batch(first, last), first), [lm.logits[1], value])
            total = [t + f for t, f in zip(total, found, strict=True)]
        for t, e in zip(total, exact, strict=True):
            assert torch.allclose(t, e, atol=1e-12), name
    with pytest.raises(PopeError, match="not all in the batch"):
        plan.surrogate(batch(0, 2), 3)
    with pytest.raises(PopeError, match="has gradient"):
        plan.surrogate(batch(0, 2).detach(), 0)
