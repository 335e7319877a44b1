"""First-step gradient of every baseline: the expected one over all logs is that of its objective, summed exactly."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from table_policy import Table, TinyLM, distance, expected_gradient, gradient, number, small_table, tiny_lm
from torch import Tensor
from torch.nn.functional import logsigmoid

from pope_fast.align.losses import (
    LOSSES,
    LossInputs,
    a_lol_loss,
    cispo_loss,
    darling_loss,
    diverse_pairs,
    divpo_loss,
    dpo_loss,
    dro_v_loss,
    filtered_bc_loss,
    gspo_loss,
    ips_pg_loss,
    kto_loss,
    make_pairs,
    offline_pg_loss,
    preference_rows,
    qrpo_loss,
    rwr_loss,
    thumb_rows,
    token_ratio_loss,
    topr_loss,
)
from pope_fast.align.losses.weights import UNTRUNCATED
from pope_fast.errors import PopeError, SchemaError

NEAR = 1e-10


@pytest.fixture(params=[0, 1], ids=["table 0", "table 1"])
def table(request: pytest.FixtureRequest) -> Table:
    return small_table(request.param, menu=4)


@pytest.fixture
def lm() -> TinyLM:
    return tiny_lm(vocabulary=2)


def logpi(table: Table) -> Tensor:
    return table.theta.log_softmax(dim=1)


def log_ratio(table: Table) -> Tensor:
    """``log pi - log pi_ref``."""
    return logpi(table) - table.ref_theta.log_softmax(dim=1)


def behavior_value(table: Table) -> Tensor:
    return (table.behavior * table.reward).sum(dim=1, keepdim=True)


def test_rwr_is_a_weighted_likelihood(table: Table) -> None:
    objective = -table.behavior_mean((table.reward / 0.3).exp() * logpi(table))
    found = expected_gradient(table.logs(2), lambda b: rwr_loss(b, temperature=0.3, advantage="none"), table.theta)
    assert distance(found, gradient(objective, table.theta)) < NEAR
    # The cap, and plain supervised fine-tuning as its limit.
    capped = -table.behavior_mean((table.reward / 0.3).exp().clamp(max=2.0) * logpi(table))
    found = expected_gradient(
        table.logs(1), lambda b: rwr_loss(b, temperature=0.3, advantage="none", max_weight=2.0), table.theta
    )
    assert distance(found, gradient(capped, table.theta)) < NEAR
    plain = expected_gradient(table.logs(1), lambda b: rwr_loss(b, temperature=math.inf), table.theta)
    assert distance(plain, gradient(-table.behavior_mean(logpi(table)), table.theta)) < NEAR


def test_filtered_bc_is_the_likelihood_of_what_was_kept(table: Table) -> None:
    threshold = float(table.reward.median())
    kept = (table.reward >= threshold).double()
    chance = (table.behavior * kept).sum(dim=1)
    inside = (table.behavior * kept * logpi(table)).sum(dim=1) / chance
    objective = -((1 - (1 - chance) ** 3) * inside).mean()
    found = expected_gradient(table.logs(3), lambda b: filtered_bc_loss(b, threshold=threshold), table.theta)
    assert distance(found, gradient(objective, table.theta)) < NEAR


def test_filtered_bc_keeps_the_top_share_with_ties() -> None:
    table = small_table(menu=4)
    table.reward = torch.tensor([[1.0, 2, 2, 0], [0, 1, 2, 3]], dtype=torch.float64)
    batch = table.batch([0, 1], [[0, 1, 2, 3], [0, 1, 2, 3]])
    loss, metrics = filtered_bc_loss(batch, top=0.25)
    expected = -(logpi(table)[0, 1:3].mean() + logpi(table)[1, 3]) / 2
    assert number(loss) == pytest.approx(number(expected))
    assert metrics["kept_share"] == 3 / 8


@pytest.mark.parametrize("advantage", ["none", "loo"])
def test_offline_pg_is_not_the_policys_gradient(table: Table, advantage: str) -> None:
    centered = table.reward - (behavior_value(table) if advantage == "loo" else 0.0)
    objective = -table.behavior_mean(centered * logpi(table))
    found = expected_gradient(table.logs(3), lambda b: offline_pg_loss(b, advantage=advantage), table.theta)
    assert distance(found, gradient(objective, table.theta)) < NEAR
    assert distance(found, -gradient(table.utility(), table.theta)) > 0.1


@pytest.mark.parametrize("advantage", ["none", "loo"])
def test_ips_pg_is(table: Table, advantage: str) -> None:
    found = expected_gradient(table.logs(3), lambda b: ips_pg_loss(b, advantage=advantage), table.theta)
    assert distance(found, -gradient(table.utility(), table.theta)) < NEAR


def test_a_lol_clips_the_ratio_to_the_reference_and_drops_the_bad(table: Table) -> None:
    ratio = log_ratio(table).exp().detach()
    gain = table.reward - table.reward.median()
    shifted = Table(**{**table.__dict__, "reward": gain})
    for level, weight in (("sequence", ratio.clamp(0.8, 1.2)), ("none", torch.ones_like(ratio))):
        objective = -table.behavior_mean(weight * gain.clamp(min=0) * logpi(table))
        found = expected_gradient(
            shifted.logs(2),
            lambda b, level=level: a_lol_loss(b, advantage="none", level=level),  # type: ignore[misc]
            table.theta,
        )
        assert distance(found, gradient(objective, table.theta)) < NEAR


def test_topr_tapers_by_the_sign(table: Table) -> None:
    gain = table.reward - table.reward.median()
    shifted = Table(**{**table.__dict__, "reward": gain})
    ratio = table.ratio().detach()
    weight = torch.where(gain >= 0, 1.0, ratio.clamp(max=1.0))
    objective = -table.behavior_mean(weight * gain * logpi(table))
    found = expected_gradient(shifted.logs(2), lambda b: topr_loss(b, advantage="none"), table.theta)
    assert distance(found, gradient(objective, table.theta)) < NEAR


def test_dro_v_regresses_with_a_given_value_and_with_its_minimizer(table: Table) -> None:
    beta = 0.4
    target = table.reward - beta * log_ratio(table)
    best = (table.behavior * target).sum(dim=1, keepdim=True).detach()
    profiled = 0.5 * table.behavior_mean((target - best).square())
    found = expected_gradient(table.logs(3), lambda b: dro_v_loss(b, beta=beta), table.theta)
    assert distance(found, gradient(profiled, table.theta)) < NEAR
    table.value = torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True)
    given = 0.5 * table.behavior_mean((target - table.value[:, None]).square())
    found = expected_gradient(table.logs(2), lambda b: dro_v_loss(b, beta=beta), table.theta)
    assert distance(found, gradient(given, table.theta)) < NEAR
    found = expected_gradient(table.logs(2), lambda b: dro_v_loss(b, beta=beta), table.value)
    assert distance(found, gradient(given, table.value)) < NEAR


def test_dro_v_is_least_at_the_regularized_optimum(table: Table) -> None:
    beta = 0.4
    with torch.no_grad():
        table.theta.copy_(table.ref_theta + table.reward / beta)
    loss, _ = dro_v_loss(table.population(), beta=beta)
    assert number(loss) == pytest.approx(0.0, abs=1e-12)


def test_qrpo_regresses_on_quantiles(table: Table) -> None:
    beta = 0.2
    below = table.reward[:, None, :] <= table.reward[:, :, None]
    quantile = (table.behavior[:, None, :] * below).sum(dim=2)
    partition = math.log(beta * (math.exp(1 / beta) - 1))
    objective = table.behavior_mean((quantile - beta * partition - beta * log_ratio(table)).square())
    # The share among the other draws has the quantile as its mean, and enters the gradient linearly.
    found = expected_gradient(table.logs(3), lambda b: qrpo_loss(b, beta=beta), table.theta)
    assert distance(found, gradient(objective, table.theta)) < NEAR
    table.quantile = quantile
    found = expected_gradient(table.logs(1), lambda b: qrpo_loss(b, beta=beta), table.theta)
    assert distance(found, gradient(objective, table.theta)) < NEAR


def test_kto_weighs_thumbs(table: Table) -> None:
    beta, point = 0.5, 0.2
    liked = table.reward > 0.5
    gain = 1.5 * (1 - torch.sigmoid(beta * (log_ratio(table) - point)))
    pain = 1 - torch.sigmoid(beta * (point - log_ratio(table)))
    objective = table.behavior_mean(torch.where(liked, gain, pain))
    found = expected_gradient(
        table.logs(2), lambda b: kto_loss(b, beta=beta, kl=point, desirable_weight=1.5), table.theta
    )
    assert distance(found, gradient(objective, table.theta)) < NEAR


def test_ktos_reference_point_is_the_divergence(table: Table) -> None:
    cut = table.ratio().clamp(max=math.sqrt(2.0))  # SN-TIPS, of two prompts with mean weight 1
    weighted = table.behavior_mean(cut * log_ratio(table)) / table.behavior_mean(cut)
    for kl, expected in (("weighted", weighted), ("matched", table.behavior_mean(log_ratio(table)))):
        _, metrics = kto_loss(table.population(), kl=kl)  # type: ignore[arg-type]
        assert metrics["reference_point"] == pytest.approx(max(0.0, number(expected)), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge"])
def test_dpo_on_pairs_of_the_log(table: Table, kind: str) -> None:
    """Of two draws, the pair is the better and the worse one, unless they tie."""
    beta, total = 0.5, torch.zeros((), dtype=torch.float64)
    score = log_ratio(table)
    for x, a, b in product(range(2), range(4), range(4)):
        if table.reward[x, a] > table.reward[x, b]:
            delta = score[x, a] - score[x, b]
            each = {
                "sigmoid": -logsigmoid(beta * delta),
                "ipo": (delta - 1 / (2 * beta)) ** 2,
                "hinge": torch.relu(1 - beta * delta),
            }[kind]
            total = total + 2 * table.behavior[x, a] * table.behavior[x, b] * each / 2
    for how in ("best_worst", "all"):
        found = expected_gradient(
            table.logs(2),
            lambda b, how=how: dpo_loss(b, beta=beta, kind=kind, how=how),  # type: ignore[misc]
            table.theta,
        )
        assert distance(found, gradient(total, table.theta)) < NEAR


def test_darling_multiplies_quality_and_diversity(table: Table) -> None:
    """Of two draws, either counts only if they differ in cluster."""
    total = torch.zeros((), dtype=torch.float64)
    for x, a, b in product(range(2), range(4), range(4)):
        apart = float(table.cluster[x, a] != table.cluster[x, b])
        advantage = apart * (table.reward[x, a] - table.reward[x, b])
        total = total - table.behavior[x, a] * table.behavior[x, b] * advantage * logpi(table)[x, a] / 2
    found = expected_gradient(table.logs(2), lambda b: darling_loss(b, weighting=None), table.theta)
    assert distance(found, gradient(total, table.theta)) < NEAR


def test_darling_weighted_is_that_of_the_policys_own_responses(table: Table) -> None:
    """With weights the log stands for the policy: the gradient is the on-policy one."""
    p = table.policy
    total = torch.zeros((), dtype=torch.float64)
    shares = table.shares().detach()
    for x, a in product(range(2), range(4)):
        fused = table.reward[x, a] * (1 - shares[x, table.cluster[x, a]])
        total = total - p[x, a].detach() * fused * logpi(table)[x, a] / 2
    exact = gradient(total, table.theta)
    loss, _ = darling_loss(table.population(10**4), weighting=UNTRUNCATED)
    assert distance(gradient(loss, table.theta), exact) < 1e-3


def test_divpo_pairs_rare_and_good_with_common_and_bad() -> None:
    table = small_table(n_types=1, menu=6, clusters=3)
    table.reward = torch.tensor([[0.9, 0.8, 0.7, 0.1, 0.2, 0.3]], dtype=torch.float64)
    batch = table.batch([0], [[0, 1, 2, 3, 4, 5]], cluster=torch.tensor([0, 0, 1, 0, 2, 0]))
    pairs = diverse_pairs(batch, top=0.5)
    # Good: rows 0 to 2, of which row 2 is alone in its cluster. Bad: 3 to 5, of which 3 is in the largest one.
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([2], [3])
    loss, metrics = divpo_loss(batch, beta=0.5)
    delta = batch.ref_log_ratio[2] - batch.ref_log_ratio[3]
    assert number(loss) == pytest.approx(number(-logsigmoid(0.5 * delta)))
    assert metrics["paired_prompts"] == 1.0
    by_probability = diverse_pairs(batch, top=0.5, criterion="logprob")
    behavior = table.behavior[0]
    assert by_probability.chosen.tolist() == [int(behavior[:3].argmin())]
    assert by_probability.rejected.tolist() == [3 + int(behavior[3:].argmax())]


def test_divpo_gradient_over_all_logs(table: Table) -> None:
    """Of two draws that differ in reward the better one is the good one, whatever the clusters."""
    total = torch.zeros((), dtype=torch.float64)
    score = log_ratio(table)
    for x, a, b in product(range(2), range(4), range(4)):
        if table.reward[x, a] > table.reward[x, b]:
            total = total - table.behavior[x, a] * table.behavior[x, b] * logsigmoid(0.3 * (score[x, a] - score[x, b]))
    found = expected_gradient(table.logs(2), lambda b: divpo_loss(b, beta=0.3), table.theta)
    assert distance(found, gradient(total, table.theta)) < NEAR


def lm_world(lm: TinyLM) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token log-probabilities, token ratios, probability of each sequence in the log, and its reward."""
    new, old = lm.tokens(lm.logits), lm.tokens(lm.behavior_logits)
    reward = (lm.sequences == 1).double().mean(dim=1) - 0.4
    return new, (new - old).exp(), old.sum(dim=1).exp(), reward


def test_cispo_truncates_each_token(lm: TinyLM) -> None:
    tokens, ratio, chance, reward = lm_world(lm)
    weight = ratio.detach().clamp(max=1.1)
    objective = -(chance * reward * (weight * tokens).mean(dim=1)).sum()
    found = expected_gradient(
        lm.logs(2, reward=reward), lambda b: cispo_loss(b, advantage="none", epsilon_high=0.1), lm.logits[2]
    )
    assert distance(found, gradient(objective, lm.logits[2])) < NEAR


def test_gspo_clips_the_geometric_mean(lm: TinyLM) -> None:
    _, ratio, chance, reward = lm_world(lm)
    s = ratio.log().mean(dim=1).exp()
    objective = -(chance * torch.minimum(s * reward, s.clamp(0.9, 1.1) * reward)).sum()
    found = expected_gradient(
        lm.logs(2, reward=reward),
        lambda b: gspo_loss(b, advantage="none", epsilon_low=0.1, epsilon_high=0.1),
        lm.logits[1],
    )
    assert distance(found, gradient(objective, lm.logits[1])) < NEAR


def test_token_ratios_without_their_product(lm: TinyLM) -> None:
    _, ratio, chance, reward = lm_world(lm)
    for clip in (None, 1.1):
        mean = (ratio if clip is None else ratio.clamp(max=clip)).mean(dim=1)
        objective = -(chance * mean * reward).sum()
        found = expected_gradient(
            lm.logs(2, reward=reward),
            lambda b, clip=clip: token_ratio_loss(b, clip=clip),  # type: ignore[misc]
            lm.logits[1],
        )
        assert distance(found, gradient(objective, lm.logits[1])) < NEAR
    policy = lm.tokens(lm.logits).sum(dim=1).exp()
    exact = -gradient((policy * reward).sum(), lm.logits[1])
    found = expected_gradient(lm.logs(2, reward=reward), token_ratio_loss, lm.logits[1])
    assert distance(found, exact) > 0.1


def test_a_lol_by_token(lm: TinyLM) -> None:
    tokens, ratio, chance, reward = lm_world(lm)
    objective = -(chance * reward.clamp(min=0) * (ratio.detach().clamp(0.8, 1.2) * tokens).mean(dim=1)).sum()
    found = expected_gradient(
        lm.logs(2, reward=reward), lambda b: a_lol_loss(b, advantage="none", level="token"), lm.logits[2]
    )
    assert distance(found, gradient(objective, lm.logits[2])) < NEAR


def test_pairs_of_a_log_with_multiplicities_and_margin() -> None:
    table = small_table(n_types=2, menu=3)
    table.reward = torch.tensor([[0.0, 0.5, 1.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    batch = table.batch([0, 1], [[0, 1, 2], [0, 1, 2]], count=torch.tensor([2.0, 1, 3, 1, 1, 1]))
    pairs = make_pairs(batch, "all")
    found = {
        (c, r): w for c, r, w in zip(*(t.tolist() for t in (pairs.chosen, pairs.rejected, pairs.weight)), strict=True)
    }
    assert found == pytest.approx({(1, 0): 2 / 11, (2, 0): 6 / 11, (2, 1): 3 / 11})
    assert make_pairs(batch, "all", margin=0.75).chosen.tolist() == [2]
    assert len(make_pairs(batch, "best_worst", margin=2.0).chosen) == 0
    loss, metrics = dpo_loss(batch, margin=2.0)
    assert number(loss) == 0.0
    assert metrics["paired_prompts"] == 0.0
    assert not gradient(loss, table.theta).any()
    texts = [f"answer {i}" for i in range(6)]
    prompts = ["x"] * 3 + ["y"] * 3
    assert preference_rows(batch, make_pairs(batch), prompts, texts) == [
        {"prompt": "x", "chosen": "answer 2", "rejected": "answer 0"}
    ]
    thumbs = thumb_rows(batch, prompts, texts, threshold=0.7)
    assert [row["label"] for row in thumbs].count(True) == 3
    assert len(thumbs) == 9


def test_every_loss_has_gradient_and_the_common_metrics() -> None:
    lm = tiny_lm()
    reward = (lm.sequences == 1).double().mean(dim=1)
    rows = torch.tensor([0, 5, 9, 13, 26, 3, 8, 22])
    new, old = lm.tokens(lm.logits), lm.tokens(lm.behavior_logits)
    common = {"loss", "utility", "kl", "diversity", "ess", "ess_clipped", "largest_share", "k_hat", "mean_weight"}
    for name, spec in LOSSES.items():
        batch = LossInputs.from_tokens(
            new[rows],
            torch.ones(8, 3),
            behavior_logprob=old[rows].sum(dim=1),
            behavior_token_logprobs=old[rows],
            reward=reward[rows],
            prompt=torch.arange(2).repeat_interleave(4),
            cluster=lm.sequences[rows, 0],
        )
        spec.check(batch)
        loss, metrics = spec.function(batch)
        found = torch.autograd.grad(loss, lm.logits, retain_graph=True)
        # GSPO's narrow bounds may stop every response of a batch.
        assert name == "gspo" or sum(float(g.abs().sum()) for g in found) > 0, name
        assert common <= set(metrics), name
        assert metrics["loss"] == pytest.approx(number(loss))
        assert all(isinstance(value, float) for value in metrics.values())


def test_what_cannot_be_is_refused(table: Table) -> None:
    batch = table.batch([0, 1], [[0, 1], [2]])
    with pytest.raises(SchemaError, match="two or more responses"):
        dro_v_loss(batch)
    with pytest.raises(SchemaError, match="two or more responses"):
        qrpo_loss(batch)
    with pytest.raises(SchemaError, match="two or more responses"):
        darling_loss(batch)
    with pytest.raises(SchemaError, match="token_logprobs"):
        cispo_loss(batch)
    with pytest.raises(SchemaError, match="num_tokens"):
        gspo_loss(batch)
    with pytest.raises(SchemaError, match="reward_low"):
        darling_loss(table.batch([0], [[0, 1]]), reward_low=2.0)
    with pytest.raises(PopeError, match="beta must be positive"):
        qrpo_loss(table.batch([0], [[0, 1]]), beta=0.0)
    with pytest.raises(PopeError, match="label_smoothing"):
        dpo_loss(batch, kind="ipo", label_smoothing=0.1)
    with pytest.raises(PopeError, match="advantage must be one of"):
        offline_pg_loss(batch, advantage="best")  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="needs V"):
        offline_pg_loss(batch, advantage="value")
