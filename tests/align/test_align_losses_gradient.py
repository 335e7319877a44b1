"""The expected gradient of the loss is the gradient of J: by enumeration of every log, without Monte Carlo error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from table_policy import Table, distance, expected_gradient, gradient, number, small_table, tiny_lm
from torch import Tensor

from pope_fast.align.losses import Diversity, LossInputs, Objective, Weighting, pope_loss

RAW = Weighting(truncation="none", taper="none")
LAMBDA, BETA = 0.7, 0.3


def exact_diversity(measure: str = "h_m", **changes: object) -> Diversity:
    return Diversity(measure, bounded=False, **changes)  # type: ignore[arg-type]


MEASURES = (exact_diversity("gini"), exact_diversity("h_m", order=2), exact_diversity("coverage", order=3))


def unbiased(**changes: object) -> Objective:
    settings = {"diversity_weight": LAMBDA, "beta": BETA, "kl": "k3", "weighting": RAW, "self_normalize": False}
    return Objective(**{**settings, **changes})  # type: ignore[arg-type]


def polynomial(diversity: Diversity, q: Tensor) -> Tensor:
    """D straight from the definition of zeta_v, for shares of shape (X, C)."""
    zeta = [(q * (1 - q) ** v).sum(dim=-1) for v in range(len(diversity.zeta_weights))]
    return sum(a * z for a, z in zip(diversity.zeta_weights, zeta, strict=True)).mean()  # type: ignore[union-attr]


def entropy(q: Tensor) -> Tensor:
    return -(q * q.log()).sum(dim=-1).mean()


@pytest.fixture(params=[0, 1], ids=["table 0", "table 1"])
def table(request: pytest.FixtureRequest) -> Table:
    return small_table(request.param)


@pytest.mark.parametrize("form", ["direct", "score"])
@pytest.mark.parametrize("diversity", MEASURES, ids=lambda d: d.measure)
def test_gradient_is_exact_within_prompts(table: Table, form: str, diversity: Diversity) -> None:
    value = table.utility() + LAMBDA * polynomial(diversity, table.shares()) - BETA * table.divergence()
    exact = -gradient(value, table.theta)
    found = expected_gradient(
        table.logs(3), lambda b: pope_loss(b, unbiased(diversity=diversity), form=form), table.theta
    )
    assert distance(found, exact) < 1e-10


@pytest.mark.parametrize("baseline", ["none", "loo"])
@pytest.mark.parametrize("order", [1, 2])
def test_gradient_is_exact_at_the_marginal_level(table: Table, baseline: str, order: int) -> None:
    diversity = exact_diversity("h_m", order=order, level="marginal", n_clusters=2)
    value = table.utility() + LAMBDA * polynomial(diversity, table.shares().mean(dim=0)) - BETA * table.divergence()
    exact = -gradient(value, table.theta)
    # One response to each of order + 2 prompts: enough for the baseline, too.
    found = expected_gradient(
        table.random_prompts(order + 2),
        lambda b: pope_loss(b, unbiased(diversity=diversity), baseline=baseline),
        table.theta,
    )
    assert distance(found, exact) < 1e-10


def test_direct_marginal_gradient_is_exact(table: Table) -> None:
    diversity = exact_diversity("h_m", order=2, level="marginal", n_clusters=2)
    value = table.utility() + LAMBDA * polynomial(diversity, table.shares().mean(dim=0)) - BETA * table.divergence()
    objective = unbiased(diversity=diversity)
    found = expected_gradient(table.random_prompts(3), lambda b: pope_loss(b, objective, form="direct"), table.theta)
    assert distance(found, -gradient(value, table.theta)) < 1e-10


@pytest.mark.parametrize("form", ["direct", "score"])
@pytest.mark.parametrize("kl", ["k1", "k3", "forward"])
def test_every_divergence_has_its_own_gradient(table: Table, form: str, kl: str) -> None:
    divergence = table.forward_divergence() if kl == "forward" else table.divergence()
    exact = -gradient(table.utility() - BETA * divergence, table.theta)
    objective = unbiased(kl=kl, diversity_weight=0.0)
    found = expected_gradient(table.logs(2), lambda b: pope_loss(b, objective, form=form), table.theta)
    assert distance(found, exact) < 1e-10


def test_k3_without_weights_has_the_gradient_of_the_other_divergence(table: Table) -> None:
    def unweighted(batch: LossInputs) -> tuple[Tensor, dict[str, float]]:
        log_ratio = batch.ref_log_ratio
        return batch.mean((-log_ratio).exp() - 1 + log_ratio), {}

    with torch.no_grad():
        table.theta.copy_(table.behavior.log())  # on policy, where the term is used
    found = expected_gradient(table.logs(1), unweighted, table.theta)
    assert distance(found, gradient(table.forward_divergence(), table.theta)) < 1e-10
    assert distance(found, gradient(table.divergence(), table.theta)) > 0.1


def test_value_baseline_keeps_the_mean_and_all_baselines_change_the_variance(table: Table) -> None:
    table.value = torch.tensor([0.4, 0.9], dtype=torch.float64)
    exact = -gradient(table.utility() + LAMBDA * polynomial(exact_diversity("gini"), table.shares()), table.theta)
    spread = {}
    for baseline in ("none", "value", "loo"):
        objective = unbiased(diversity=exact_diversity("gini"), beta=0.0)
        gradients = [
            (p, gradient(pope_loss(batch, objective, baseline=baseline)[0], table.theta)) for p, batch in table.logs(2)
        ]
        mean = sum(p * g for p, g in gradients)
        assert distance(mean, exact) < 1e-10
        spread[baseline] = float(sum(p * (g - mean).square().sum() for p, g in gradients))
    assert len({round(s, 12) for s in spread.values()}) == 3


def test_score_and_direct_form_have_one_gradient_log_by_log(table: Table) -> None:
    objective = unbiased(diversity=exact_diversity("h_m", order=2), kl="k3")
    for _, batch in table.logs(3):
        score = gradient(pope_loss(batch, objective, form="score", baseline="none")[0], table.theta)
        direct = gradient(pope_loss(batch, objective, form="direct")[0], table.theta)
        # They differ by the constant in phi', whose weight the direct form knows to be 1.
        constant = gradient(batch.mean(batch.log_ratio.exp()), table.theta)
        assert torch.allclose(score, direct - LAMBDA * objective.diversity.coefficients[0] * constant, atol=1e-12)


def test_self_normalized_gradient_is_exact_on_the_population(table: Table) -> None:
    """SNIPS is a ratio: its gradient is exact where the means are."""
    exact = -gradient(
        table.utility() + LAMBDA * entropy(table.shares().mean(dim=0)) - BETA * table.divergence(), table.theta
    )
    objective = Objective(
        diversity_weight=LAMBDA,
        beta=BETA,
        kl="k3",
        weighting=RAW,
        diversity=exact_diversity("shannon", level="marginal", smoothing=0.0),
    )
    loss, metrics = pope_loss(table.population(), objective, form="direct")
    assert distance(gradient(loss, table.theta), exact) < 1e-10
    assert metrics["utility"] == pytest.approx(number(table.utility()), abs=1e-12)
    assert metrics["kl"] == pytest.approx(number(table.divergence()), abs=1e-12)
    assert metrics["diversity"] == pytest.approx(number(entropy(table.shares().mean(dim=0))), abs=1e-12)
    assert number(loss) == pytest.approx(-metrics["value"], abs=1e-12)


@pytest.mark.parametrize("form", ["direct", "score"])
@pytest.mark.parametrize("self_normalize", [False, True])
def test_gradient_within_prompts_tends_to_the_exact_one_with_more_draws(form: str, self_normalize: bool) -> None:
    table = small_table(2)
    diversity = exact_diversity("h_m", order=3)
    exact = -gradient(
        table.utility() + LAMBDA * polynomial(diversity, table.shares()) - BETA * table.divergence(), table.theta
    )
    objective = unbiased(diversity=diversity, self_normalize=self_normalize)
    loss, metrics = pope_loss(
        table.population(10**6), objective, form=form, baseline="mean" if self_normalize else "loo"
    )
    assert distance(gradient(loss, table.theta), exact) < 1e-5
    assert metrics["diversity"] == pytest.approx(number(polynomial(diversity, table.shares())), abs=1e-5)


def test_plug_in_entropy_is_biased_at_few_draws_and_less_with_more() -> None:
    """No unbiased estimate of the entropy exists (F2): the polynomials are exact, the plug-in is not."""
    table = small_table(3, n_types=1)
    exact = -gradient(entropy(table.shares()), table.theta)
    objective = unbiased(diversity=exact_diversity("shannon"), diversity_weight=1.0, beta=0.0)
    errors = []
    for draws in (2, 8):
        zero = Table(**{**table.__dict__, "reward": torch.zeros_like(table.reward)})
        found = expected_gradient(zero.logs(draws), lambda b: pope_loss(b, objective, baseline="none"), table.theta)
        errors.append(distance(found, exact))
    assert errors[0] > 0.05
    assert errors[1] < 0.5 * errors[0]


def fixed_reference(table: Table) -> Tensor:
    return table.shares(table.behavior).mean(dim=0).detach()


def test_the_fixed_reference_has_another_gradient(table: Table) -> None:
    """Theory 2.4: E_pi[-log t(c)] is H + KL(q || t). Its gradient is that of H only at t = q."""
    exact = -gradient(table.utility() + LAMBDA * entropy(table.shares().mean(dim=0)), table.theta)
    objective = unbiased(diversity=exact_diversity("shannon", level="marginal", n_clusters=2), beta=0.0)

    def surrogate(reference: Tensor) -> Tensor:
        logs: Iterator[tuple[float, LossInputs]] = table.random_prompts(2)
        return expected_gradient(logs, lambda b: pope_loss(b, objective, reference=reference), table.theta)

    assert distance(surrogate(fixed_reference(table)), exact) > 0.05
    assert distance(surrogate(table.shares().mean(dim=0).detach()), exact) < 1e-10


def test_the_response_itself_must_be_left_out() -> None:
    """With it in the plug-in, a response's surprisal depends on its own draw and the gradient is another one."""
    table = small_table(1)
    exact = -gradient(polynomial(exact_diversity("gini"), table.shares()), table.theta)

    def with_itself(batch: LossInputs) -> tuple[Tensor, dict[str, float]]:
        w = batch.log_ratio.exp().detach()
        same = (batch.prompt[:, None] == batch.prompt) & (batch.cluster[:, None] == batch.cluster)
        q = (same * w).sum(dim=1) / batch.of_prompt(batch.prompt_draws())
        return -batch.mean(w * (1 - 2 * q) * batch.logprob), {}

    assert distance(expected_gradient(table.logs(3), with_itself, table.theta), exact) > 0.1


@pytest.mark.parametrize("welfare", ["mean", "nash", "softmin"])
@pytest.mark.parametrize("form", ["direct", "score"])
def test_welfare_of_groups_has_the_exact_gradient_on_the_population(table: Table, welfare: str, form: str) -> None:
    assert table.group_reward is not None
    shares = torch.tensor([0.3, 0.7], dtype=torch.float64)
    values = torch.einsum("xy,xyg->g", table.policy, table.group_reward) / len(table.policy)
    exact = {
        "mean": (shares * values).sum(),
        "nash": (shares * (values + 1e-3).log()).sum().exp() - 1e-3,
        "softmin": -0.1 * (shares * (-values / 0.1).exp()).sum().log(),
    }[welfare]
    objective = Objective(
        diversity_weight=0.0,
        beta=0.0,
        weighting=RAW,
        welfare=welfare,
        group_shares=(0.3, 0.7),  # type: ignore[arg-type]
    )
    loss, metrics = pope_loss(table.group_population(), objective, form=form, baseline="mean")
    assert metrics["utility"] == pytest.approx(number(exact), abs=1e-12)
    assert metrics["utility/group1"] == pytest.approx(number(values[1]), abs=1e-12)
    assert distance(gradient(loss, table.theta), -gradient(exact, table.theta)) < 1e-10


def test_log_smoothing_is_a_lower_bound_with_its_own_gradient(table: Table) -> None:
    p = 0.8
    objective = unbiased(pessimism=p, reward_range=(0.0, 1.0), diversity=exact_diversity("gini"), beta=0.0)
    plain = unbiased(diversity=exact_diversity("gini"), beta=0.0)
    exact = torch.zeros(())
    for probability, batch in table.logs(2):
        w, r = batch.log_ratio.exp().view(2, 2), batch.reward.view(2, 2)
        c = batch.cluster.view(2, 2)
        apart = w[:, 0] * w[:, 1] * (c[:, 0] != c[:, 1])
        lower = torch.log1p(p * (w * r).mean(dim=1)).mean() / p + LAMBDA * torch.log1p(p * apart).mean() / p
        exact = exact + probability * lower
    assert number(exact) < number(table.utility() + LAMBDA * polynomial(exact_diversity("gini"), table.shares()))
    found = expected_gradient(table.logs(2), lambda b: pope_loss(b, objective, form="direct"), table.theta)
    assert distance(found, -gradient(exact, table.theta)) < 1e-10
    assert distance(found, expected_gradient(table.logs(2), lambda b: pope_loss(b, plain), table.theta)) > 0.05


@pytest.mark.parametrize("form", ["direct", "score"])
def test_sequence_weights_of_a_language_model_have_the_exact_gradient(form: str) -> None:
    """E3: the product over tokens is what makes the log speak for the policy; surrogates have another gradient."""
    lm = tiny_lm(vocabulary=2)
    reward = (lm.sequences == 1).double().mean(dim=1)
    cluster = lm.sequences[:, 0]
    p = lm.tokens(lm.logits).sum(dim=1).exp()
    q = torch.stack([p[cluster == c].sum() for c in range(lm.vocabulary)])
    theta = lm.logits[1]
    exact = -gradient((p * reward).sum() + LAMBDA * (q * (1 - q)).sum(), theta)

    def found(weighting: Weighting) -> Tensor:
        objective = unbiased(weighting=weighting, diversity=exact_diversity("gini"), beta=0.0)
        logs = lm.logs(2, reward=reward, cluster=cluster)
        return expected_gradient(logs, lambda b: pope_loss(b, objective, form=form), theta)

    assert distance(found(RAW), exact) < 1e-10
    assert distance(found(Weighting(level="geometric", truncation="none", taper="none")), exact) > 0.1
    if form == "score":
        assert distance(found(Weighting(level="token", truncation="none", taper="none")), exact) > 0.1


def test_the_logistic_taper_has_the_gradient_of_its_bounded_surrogate(table: Table) -> None:
    sharpness = 0.4
    weighting = Weighting(taper="logistic", sharpness=sharpness)
    objective = Objective(diversity_weight=0.0, beta=0.0, weighting=weighting)
    log_weight = table.theta.log_softmax(dim=1) - table.behavior.log()
    surrogate = table.behavior_mean(4.0 / sharpness * torch.sigmoid(sharpness * log_weight) * table.reward)
    found = expected_gradient(table.logs(2), lambda b: pope_loss(b, objective, baseline="none"), table.theta)
    assert distance(found, -gradient(surrogate, table.theta)) < 1e-10
    assert distance(found, -gradient(table.utility(), table.theta)) > 0.05
