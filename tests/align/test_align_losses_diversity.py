"""Moments, surprisals and masses against the NumPy reference and against enumeration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from table_policy import small_table
from torch import Tensor

from pope_fast.align.losses import Diversity, LossInputs, Objective, RunningMarginal, pope_loss
from pope_fast.align.losses.diversity import (
    cluster_masses,
    cluster_moments,
    elementary,
    lower_variable,
    marginal_surprisal,
    prompt_surprisal,
    reference_surprisal,
)
from pope_fast.align.losses.weights import UNTRUNCATED
from pope_fast.errors import PopeError, SchemaError
from pope_fast.reference.diversity import (
    collision_moment,
    elementary_symmetric,
    harmonic_entropy,
    within_prompt,
    zeta_unit_kernel,
)

ONE = torch.ones((), dtype=torch.float64)


def random_batch(seed: int = 0, prompts: int = 6, draws: int = 5, clusters: int = 3, none: bool = False) -> LossInputs:
    g = torch.Generator().manual_seed(seed)
    n = prompts * draws
    behavior = -3.0 * torch.rand(n, generator=g, dtype=torch.float64) - 2.0
    cluster = torch.randint(-1 if none else 0, clusters, (n,), generator=g)
    return LossInputs(
        logprob=(behavior + 0.8 * torch.randn(n, generator=g, dtype=torch.float64)).requires_grad_(),
        behavior_logprob=behavior,
        reward=torch.rand(n, generator=g, dtype=torch.float64),
        prompt=torch.arange(prompts).repeat_interleave(draws),
        cluster=cluster,
    )


def weights(batch: LossInputs) -> Tensor:
    return batch.log_ratio.exp()


def by_prompt(batch: LossInputs) -> list[tuple[np.ndarray, np.ndarray]]:
    w, assert_cluster = weights(batch).detach().numpy(), batch.cluster
    assert assert_cluster is not None
    of = batch.prompt.numpy()
    return [(w[of == i], assert_cluster.numpy()[of == i]) for i in range(batch.n_prompts)]


def test_newtons_identities() -> None:
    values = torch.tensor([0.3, 2.0, 1.1, 0.7], dtype=torch.float64)
    e = elementary([(values**k).sum() for k in range(1, 5)])
    for order in range(5):
        assert float(e[order]) == pytest.approx(elementary_symmetric(values.numpy(), order), rel=1e-12)


def test_moments_are_those_of_the_reference() -> None:
    batch = random_batch()
    found = cluster_moments(batch, weights(batch).detach(), Diversity(order=3))
    for i, (w, c) in enumerate(by_prompt(batch)):
        for d in range(1, 5):
            assert float(found[d - 1, i]) == pytest.approx(collision_moment(w, c, d), rel=1e-10, abs=1e-12)


def test_self_normalized_estimate_is_that_of_evaluate() -> None:
    batch = random_batch()
    assert batch.cluster is not None
    family = within_prompt(batch.log_ratio.detach().numpy(), batch.cluster.numpy(), batch.prompt.numpy(), max_order=3)
    raw = Objective(weighting=UNTRUNCATED)
    _, metrics = pope_loss(batch, raw)
    assert metrics["diversity"] == pytest.approx(harmonic_entropy(family, 3).value, rel=1e-10)


@pytest.mark.parametrize("diversity", [Diversity("gini"), Diversity("h_m", order=3), Diversity("coverage", order=3)])
def test_lower_variable_is_that_of_the_reference(diversity: Diversity) -> None:
    batch = random_batch(1)
    found = lower_variable(batch, weights(batch).detach(), diversity)
    for i, (w, c) in enumerate(by_prompt(batch)):
        terms = [a * zeta_unit_kernel(w, c, v, "product") for v, a in enumerate(diversity.zeta_weights) if a]
        assert float(found[i]) == pytest.approx(sum(terms), rel=1e-9, abs=1e-12)
    assert bool((found >= 0).all())


@pytest.mark.parametrize("diversity", [Diversity("gini"), Diversity("h_m", order=3), Diversity("coverage", order=4)])
def test_surprisal_is_the_derivative_of_the_measure(diversity: Diversity) -> None:
    q = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    value = sum(a * q * (1 - q) ** v for v, a in enumerate(diversity.zeta_weights))
    assert isinstance(value, Tensor)
    assert torch.allclose(diversity.derivative(q), torch.autograd.grad(value.sum(), q)[0], atol=1e-12)


def test_surprisal_is_unbiased_whatever_the_row_itself_is() -> None:
    """Mean over the other draws, the row held fixed: phi'(q_c) of its cluster, exactly."""
    table = small_table(5, n_types=1, menu=3)
    diversity = Diversity("h_m", order=2, bounded=False)
    q = table.shares()[0].detach()
    for own in range(3):
        total = 0.0
        for chance, others in table.logs(2):
            chosen = [
                int(k) for k in (table.behavior.log()[0][None] == others.behavior_logprob[:, None]).int().argmax(1)
            ]
            batch = table.batch([0], [[own, *chosen]])
            w = weights(batch).detach()
            total += chance * float(prompt_surprisal(batch, w, diversity, ONE)[0])
        assert total == pytest.approx(float(diversity.derivative(q)[table.cluster[0, own]]), rel=1e-10)


def test_harmonic_surprisal_tends_to_that_of_the_entropy() -> None:
    q = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)
    gaps = [float((Diversity("h_m", order=m).derivative(q) + q.log() + 1.0).abs().max()) for m in (1, 3, 8)]
    assert gaps[0] > gaps[1] > gaps[2]


def test_plug_in_surprisal_by_hand() -> None:
    batch = random_batch(prompts=1, draws=4)
    batch = LossInputs(
        logprob=batch.logprob, behavior_logprob=batch.behavior_logprob, reward=batch.reward, prompt=batch.prompt,
        cluster=torch.tensor([0, 1, 0, 2]),
    )  # fmt: skip
    w = weights(batch).detach()
    found = prompt_surprisal(batch, w, Diversity("shannon", smoothing=0.5), 2.0 * ONE)
    expected = -torch.log((w[2] + 0.5 * 2.0 / 3) / (w[1] + w[2] + w[3] + 0.5 * 2.0))
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-12)
    prior = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    shrunk = prompt_surprisal(batch, w, Diversity("shannon", smoothing=0.5), 2.0 * ONE, prior)
    expected = -torch.log((0.5 * 2.0 * 0.3) / (w[0] + w[2] + w[3] + 0.5 * 2.0))
    assert float(shrunk[1]) == pytest.approx(float(expected), rel=1e-12)
    with pytest.raises(PopeError, match="smoothing > 0"):
        prompt_surprisal(batch, w, Diversity("shannon", smoothing=0.0), ONE)


def test_bounded_surprisal_stays_in_the_range_of_the_derivative() -> None:
    batch = random_batch(3)
    wild = weights(batch).detach() * 3.0
    free = prompt_surprisal(batch, wild, Diversity(bounded=False), ONE)
    tame = prompt_surprisal(batch, wild, Diversity(), ONE)
    low, high = Diversity().derivative(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    assert float(free.max()) > high or float(free.min()) < low
    assert torch.equal(tame, free.clamp(low, high))


def test_marginal_surprisal_leaves_the_own_prompt_out() -> None:
    batch = random_batch(4, prompts=4, draws=2)
    assert batch.cluster is not None
    w = weights(batch).detach()
    masses = cluster_masses(batch, w, 3)
    found = marginal_surprisal(batch, w, Diversity("gini", level="marginal", bounded=False), None)
    others = masses.sum(dim=0) - masses[0]
    assert float(found[0]) == pytest.approx(1.0 - 2.0 * float(others[batch.cluster[0]]) / 3.0, rel=1e-12)


def test_rows_without_a_cluster_hold_mass_and_add_nothing() -> None:
    batch = random_batch(6, none=True)
    assert batch.cluster is not None
    loose = batch.cluster < 0
    assert bool(loose.any())
    w = weights(batch)
    assert bool((prompt_surprisal(batch, w, Diversity(), ONE)[loose] == 0).all())
    assert bool(
        (reference_surprisal(batch, torch.full((3,), 1 / 3, dtype=torch.float64), Diversity())[loose] == 0).all()
    )
    moments = cluster_moments(batch, w.detach(), Diversity("gini"))
    inside = torch.where(loose, 0.0, w.detach())
    assert torch.allclose(moments[0], batch.prompt_mean(inside))
    plain = Objective(weighting=UNTRUNCATED, self_normalize=False, diversity=Diversity("gini"))
    _, metrics = pope_loss(batch, plain, form="direct")
    expected = 1.0 - float(batch.mean(w.detach() - inside)) - float(moments[1].mean())
    assert metrics["diversity"] == pytest.approx(expected, rel=1e-10)


def test_multiplicities_are_draws() -> None:
    single = small_table(7, menu=4).batch([0, 1], [[0, 1, 1, 3], [2, 2, 2, 0, 1]])
    table = small_table(7, menu=4)
    counted = table.batch([0, 1], [[0, 1, 3], [2, 0, 1]], count=torch.tensor([1, 2, 1, 3, 1, 1], dtype=torch.float64))
    for diversity in (Diversity(order=2), Diversity("shannon"), Diversity("shannon", level="marginal")):
        for form in ("score", "direct"):
            objective = Objective(beta=0.2, diversity=diversity)
            a, first = pope_loss(single, objective, form=form)  # type: ignore[arg-type]
            b, second = pope_loss(counted, objective, form=form)  # type: ignore[arg-type]
            assert float(a.detach()) == pytest.approx(float(b.detach()), rel=1e-12)
            assert first == pytest.approx(second, rel=1e-9)


def test_prompts_with_too_few_responses_are_left_out_of_diversity_alone() -> None:
    table = small_table(8)
    with_short = table.batch([0, 1, 0], [[0, 1, 2, 1], [0, 2, 2, 1], [0, 1]])
    without = table.batch([0, 1], [[0, 1, 2, 1], [0, 2, 2, 1]])
    raw = Objective(weighting=UNTRUNCATED, diversity=Diversity(order=3), self_normalize=False)
    _, first = pope_loss(with_short, raw)
    _, second = pope_loss(without, raw)
    assert first["diversity"] == pytest.approx(second["diversity"], rel=1e-12)
    assert first["utility"] != pytest.approx(second["utility"], rel=1e-3)
    with pytest.raises(PopeError, match="no prompt has the 4 responses"):
        pope_loss(table.batch([0], [[0, 1]]), raw)


def test_running_marginal_follows_the_policy() -> None:
    table = small_table(9)
    running = RunningMarginal(2, decay=0.5, smoothing=1e-6)
    assert running.masses().tolist() == [0.5, 0.5]
    raw = UNTRUNCATED
    for _ in range(3):
        running.update(table.population(), raw)
    assert torch.allclose(running.masses(), table.shares().mean(dim=0).detach(), atol=1e-5)
    copy = RunningMarginal(2)
    copy.load_state_dict(running.state_dict())
    assert torch.allclose(copy.masses(), running.masses(), atol=1e-1)
    with torch.no_grad():
        table.theta.zero_()
    for _ in range(40):
        running.update(table.population(), raw)
    assert torch.allclose(running.masses(), table.shares().mean(dim=0).detach(), atol=1e-5)
    with pytest.raises(PopeError, match="3 clusters, not 2"):
        running.load_state_dict({"masses": torch.ones(3), "weight": 1.0, "prompts": 1.0})


def test_what_cannot_be_is_refused() -> None:
    batch = random_batch()
    with pytest.raises(PopeError, match="measure must be one of"):
        Diversity("simpson")  # type: ignore[arg-type]
    with pytest.raises(PopeError, match="order must be 1 to 8"):
        Diversity(order=9)
    with pytest.raises(PopeError, match="coverage needs"):
        Diversity("coverage", order=1)
    with pytest.raises(SchemaError, match="beyond the 2 clusters"):
        pope_loss(batch, Objective(diversity=Diversity(n_clusters=2)))
    with pytest.raises(SchemaError, match="set lambda to 0"):
        pope_loss(small_table().batch([0], [[0, 1, 2, 2]], cluster=None))
    with pytest.raises(PopeError, match="needs 4 prompts"):
        pope_loss(random_batch(prompts=3), Objective(diversity=Diversity(level="marginal")))
    with pytest.raises(PopeError, match="reference has shape"):
        pope_loss(batch, reference=torch.ones(2))
