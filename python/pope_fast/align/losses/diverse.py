"""Baselines that want diversity: a reward multiplied by it, and pairs chosen for it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pope_fast.align.losses.advantages import mean_of_others
from pope_fast.align.losses.inputs import LossInputs
from pope_fast.align.losses.pairs import Pairs, best_of_prompt, pair_loss, pair_metrics
from pope_fast.align.losses.report import report
from pope_fast.align.losses.sft import draws_above
from pope_fast.align.losses.weights import Weighting, row_weights
from pope_fast.errors import PopeError, SchemaError

__all__ = ["darling_loss", "distinctness", "diverse_pairs", "divpo_loss"]

_PLAIN = Weighting()


def distinctness(batch: LossInputs, weight: Tensor | None = None) -> Tensor:
    """Share of the other draws of the prompt that lie in another cluster than the row, shape (N,), in [0, 1].

    Parameters
    ----------
    batch : LossInputs
        With clusters; a row without a cluster differs from every other.
    weight : Tensor, shape (N,), optional
        Weights of the others, so that they stand for the current policy; equal by default.
    """
    if batch.cluster is None:
        raise SchemaError("diversity needs clusters", column="cluster", remedy="cluster the log")
    w = torch.ones_like(batch.draws) if weight is None else weight.detach()
    same = (batch.prompt[:, None] == batch.prompt[None, :]) & (batch.cluster[:, None] == batch.cluster[None, :])
    same &= (batch.cluster >= 0)[:, None]
    alike = torch.where(same, (batch.draws * w)[None, :], 0.0).sum(dim=1)
    alike = (alike - torch.where(batch.cluster >= 0, w, 0.0)).clamp(min=0.0)
    others = batch.sum_of_others(w)
    if bool((batch.prompt_draws() < 2).any()):
        raise SchemaError(
            "how different a response is takes two or more responses to every prompt",
            column="prompt",
            remedy="leave out prompts with a single response",
        )
    return torch.where(others > 1e-9 * w, 1.0 - alike / others.clamp(min=1e-30), 1.0).clamp(0.0, 1.0)


def darling_loss(
    batch: LossInputs,
    *,
    weighting: Weighting | None = _PLAIN,
    reward_low: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """Policy gradient of quality times diversity.

        loss = -mean sg[w] (R - mean of the others' R) log pi(y|x),   R = (r - low) * share of other responses in
                                                                          another cluster

    Parameters
    ----------
    batch : LossInputs
        With clusters, and two or more responses to every prompt.
    weighting : Weighting, optional
        Importance weights of rows, here and in the share, which make the log stand for the policy's own responses (the
        source draws these); None: none.
    reward_low : float
        The worst reward: the product needs rewards that are not negative.

    Notes
    -----
    Source: in the manner of DARLING (Li et al. 2025), off policy.
    """
    if weighting is not None and (weighting.level == "token" or weighting.taper != "none"):
        raise PopeError("darling weighs whole responses, without taper")
    quality = batch.reward.to(batch.draws.dtype) - reward_low
    if bool((quality < 0).any()):
        raise SchemaError(
            "a reward is below reward_low, and times diversity it would punish the diverse",
            column="reward",
            remedy="give the worst reward as reward_low",
        )
    weight = torch.ones_like(quality)
    scale = weight.new_ones(())
    if weighting is not None:
        weight = row_weights(batch, weighting).weight.detach()
        scale = batch.mean(weight)
    share = distinctness(batch, weight)
    fused = quality * share
    advantage = fused - mean_of_others(batch, weight, fused)
    loss = -batch.mean(weight * advantage * batch.logprob) / scale
    return loss, report(batch, loss, distinctness=batch.mean(weight * share) / scale)


def diverse_pairs(
    batch: LossInputs, *, top: float = 0.5, criterion: Literal["frequency", "logprob"] = "frequency"
) -> Pairs:
    """Pair the most diverse of the good responses with the least diverse of the bad ones, one pair per prompt.

    Parameters
    ----------
    batch : LossInputs
        With clusters for ``frequency``.
    top : float
        Share of each prompt's responses that count as good, and as bad; at most one half.
    criterion : {"frequency", "logprob"}
        Diverse is what lies in a cluster with few logged responses to the prompt, or what the behavior policy holds
        improbable. Ties go to the better (of the good) and the worse (of the bad).
    """
    if not 0 < top <= 0.5:
        raise PopeError(f"top must lie in (0, 0.5], got {top}")
    if criterion == "frequency":
        common = 1.0 - distinctness(batch)
    elif criterion == "logprob":
        common = batch.behavior_logprob.to(batch.draws.dtype)
    else:
        raise PopeError(f"criterion must be 'frequency' or 'logprob', not {criterion!r}")
    quota = batch.of_prompt((top * batch.prompt_draws() - 1e-9).ceil())
    above = draws_above(batch)
    at_least = torch.where(
        (batch.prompt[:, None] == batch.prompt[None, :]) & (batch.reward[None, :] >= batch.reward[:, None]),
        batch.draws[None, :],
        0.0,
    ).sum(dim=1)
    below = batch.of_prompt(batch.prompt_draws()) - at_least
    good, bad = above < quota, below < quota
    chosen = best_of_prompt(batch, good, common, -batch.reward)
    rejected = best_of_prompt(batch, bad, -common, batch.reward)
    keep = batch.reward[chosen] > batch.reward[rejected]
    chosen, rejected = chosen[keep], rejected[keep]
    return Pairs(chosen, rejected, torch.ones_like(batch.draws[chosen]))


def divpo_loss(
    batch: LossInputs,
    *,
    beta: float = 0.1,
    top: float = 0.5,
    criterion: Literal["frequency", "logprob"] = "frequency",
) -> tuple[Tensor, dict[str, float]]:
    """Diverse preference optimization: DPO on pairs chosen for diversity.

        loss = -mean log sigmoid(beta (l_chosen - l_rejected)),   l = log(pi / pi_ref)

    with the pairs of :func:`diverse_pairs`.

    Notes
    -----
    Source: in the manner of DivPO (Lanchantin et al. 2025), on logged responses.
    """
    pairs = diverse_pairs(batch, top=top, criterion=criterion)
    loss, margins = pair_loss(batch, pairs, beta=beta)
    return loss, report(batch, loss, **pair_metrics(batch, pairs, margins))
