"""Baselines that regress: the log-ratio to the reference is fitted to the reward."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pope_fast.align.losses.advantages import mean_of_others
from pope_fast.align.losses.inputs import LossInputs
from pope_fast.align.losses.report import report
from pope_fast.errors import PopeError, SchemaError

__all__ = ["dro_v_loss", "qrpo_loss", "quantiles"]


def dro_v_loss(batch: LossInputs, *, beta: float = 1.0) -> tuple[Tensor, dict[str, float]]:
    """Direct reward optimization with a value function.

        loss = 1/2 mean (r - V(x) - beta log(pi / pi_ref))^2

    At the optimum ``pi = pi_ref exp((r - V) / beta)``: the policy of the KL-regularized problem. With ``batch.value``
    the loss trains policy and value together. Without it V(x) is set to its own minimizer given the policy, estimated
    from the *other* responses to the prompt so that the gradient keeps its mean.

    Parameters
    ----------
    batch : LossInputs
        With ``value``, or with two or more responses to every prompt.
    beta : float
        Strength of the regularization (tau in the source), in units of the reward.

    Notes
    -----
    Source: DRO-V (Richemond et al. 2024).
    """
    _positive(beta)
    log_ratio = batch.ref_log_ratio
    reward = batch.reward.to(log_ratio.dtype)
    if batch.value is not None:
        value = batch.value.to(log_ratio.dtype)
    else:
        _several(batch, "dro_v without value")
        value = mean_of_others(batch, torch.ones_like(reward), reward - beta * log_ratio)
    residual = reward - value - beta * log_ratio
    loss = 0.5 * batch.mean(residual.square())
    return loss, report(batch, loss, value_mean=batch.mean(value.detach()))


def qrpo_loss(batch: LossInputs, *, beta: float = 0.1) -> tuple[Tensor, dict[str, float]]:
    """Quantile reward policy optimization.

        loss = mean (q - beta log Z - beta log(pi / pi_ref))^2,   Z = beta (exp(1 / beta) - 1)

    q is the quantile of the reward among responses of the reference policy to the same prompt. It is uniform under the
    reference if rewards have no ties, which makes the partition function Z known; with many ties, as of upvotes, Z is
    not that of the problem and the loss is a heuristic.

    Parameters
    ----------
    batch : LossInputs
        With ``quantile``, or with two or more responses to every prompt: then q is the share of the other logged
        responses with no larger reward, which stand for the reference if that is the behavior policy.
    beta : float
        Strength of the regularization, in quantiles.

    Notes
    -----
    Source: QRPO (Matrenok et al. 2025).
    """
    _positive(beta)
    quantile = quantiles(batch) if batch.quantile is None else batch.quantile.to(batch.draws.dtype)
    log_partition = math.log(beta) + 1.0 / beta + math.log1p(-math.exp(-1.0 / beta))
    loss = batch.mean((quantile - beta * log_partition - beta * batch.ref_log_ratio).square())
    return loss, report(batch, loss, quantile_mean=batch.mean(quantile))


def quantiles(batch: LossInputs) -> Tensor:
    """Share of the other draws of the prompt with no larger reward, shape (N,)."""
    _several(batch, "qrpo without quantile")
    same = batch.prompt[:, None] == batch.prompt[None, :]
    below = same & (batch.reward[None, :] <= batch.reward[:, None])
    # The row itself is among them: one draw less.
    count = torch.where(below, batch.draws[None, :], 0.0).sum(dim=1) - 1.0
    return count / (batch.of_prompt(batch.prompt_draws()) - 1.0)


def _positive(beta: float) -> None:
    if not 0 < beta < math.inf:
        raise PopeError(f"beta must be positive and finite, not {beta}")


def _several(batch: LossInputs, what: str) -> None:
    if bool((batch.prompt_draws() < 2).any()):
        raise SchemaError(
            f"{what} needs two or more responses to every prompt",
            column="prompt",
            remedy="leave out prompts with a single response, or give the column",
        )
