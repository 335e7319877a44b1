"""A fixed reference collapses, the current policy's surprisal does not (theory 2.4)."""

from __future__ import annotations

import math

import pytest
import torch
from table_policy import Table, gradient, small_table
from torch import Tensor

from pope_fast.align.losses import Diversity, Objective, RunningMarginal, pope_loss
from pope_fast.align.losses.weights import UNTRUNCATED

CLUSTERS = 4


@pytest.fixture
def table() -> Table:
    """No reward at all, and a behavior policy that is skewed towards the first clusters."""
    table = small_table(n_types=3, menu=8, clusters=CLUSTERS)
    table.counts = torch.tensor([[12.0, 6, 3, 2, 11, 5, 4, 1]], dtype=torch.float64).repeat(3, 1)
    table.reward = torch.zeros_like(table.reward)
    table.theta = table.behavior.log().clone().requires_grad_()
    table.ref_theta = table.behavior.log()
    return table


def entropy(table: Table) -> float:
    with torch.no_grad():
        q = table.shares().mean(dim=0)
        return float(-torch.xlogy(q, q).sum())


def train(table: Table, objective: Objective, reference: Tensor | RunningMarginal | None, steps: int = 80) -> None:
    for _ in range(steps):
        batch = table.population(100)
        if isinstance(reference, RunningMarginal):
            reference.update(batch, objective.weighting)
            masses: Tensor | None = reference.masses()
        else:
            masses = reference
        loss, _ = pope_loss(batch, objective, reference=masses)
        with torch.no_grad():
            table.theta -= 6.0 * gradient(loss, table.theta)


def objective(measure: str = "shannon", level: str = "marginal", **changes: object) -> Objective:
    diversity = Diversity(measure, level=level, n_clusters=CLUSTERS)  # type: ignore[arg-type]
    settings = {
        "diversity_weight": 1.0,
        "beta": 0.0,
        "kl": "k3",
        "weighting": UNTRUNCATED,
        **changes,
    }
    return Objective(diversity=diversity, **settings)  # type: ignore[arg-type]


def test_a_fixed_reference_collapses_onto_the_cluster_it_holds_rarest(table: Table) -> None:
    fixed = table.shares(table.behavior).mean(dim=0)
    start = entropy(table)
    train(table, objective(), fixed, steps=150)
    shares = table.shares().mean(dim=0)
    assert int(shares.argmax()) == int(fixed.argmin())
    assert float(shares.detach().max()) > 0.95
    assert entropy(table) < 0.25 < 1.0 < start


@pytest.mark.parametrize(
    ("measure", "level"),
    [("shannon", "marginal"), ("h_m", "prompt"), ("gini", "prompt"), ("coverage", "prompt"), ("shannon", "prompt")],
)
def test_the_current_policys_surprisal_does_not(table: Table, measure: str, level: str) -> None:
    train(table, objective(measure, level), None)
    assert entropy(table) > 0.99 * math.log(CLUSTERS)


def test_neither_does_a_reference_that_is_refreshed(table: Table) -> None:
    train(table, objective(), RunningMarginal(CLUSTERS, decay=0.5, smoothing=0.01))
    assert entropy(table) > 0.99 * math.log(CLUSTERS)


def test_nor_a_fixed_one_with_its_divergence(table: Table) -> None:
    """``E_pi[-log t(c)] - KL(pi || pi_t)`` is the minoriser: its maximum gives every cluster the same share."""
    train(table, objective(beta=1.0), table.shares(table.behavior).mean(dim=0))
    assert entropy(table) > 0.99 * math.log(CLUSTERS)
