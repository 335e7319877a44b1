"""Baselines that imitate: likelihood of logged responses, weighted or filtered by their rewards."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pope_fast.align.losses.advantages import Advantage, advantages
from pope_fast.align.losses.inputs import LossInputs
from pope_fast.align.losses.report import report
from pope_fast.errors import PopeError

__all__ = ["draws_above", "filtered_bc_loss", "rwr_loss"]


def rwr_loss(
    batch: LossInputs,
    *,
    temperature: float = 1.0,
    advantage: Advantage = "loo",
    max_weight: float = 20.0,
    per_token: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """Supervised fine-tuning with exponential weights of rewards.

        loss = -mean min(exp(A / temperature), max_weight) log pi(y|x)

    Parameters
    ----------
    batch : LossInputs
        The batch.
    temperature : float
        In units of the reward; infinite: plain supervised fine-tuning on all responses.
    advantage : str
        What A is; see :func:`advantages`.
    max_weight : float
        Cap of the weights.
    per_token : bool
        Divide each log-probability by the number of tokens.

    Notes
    -----
    Source: reward-weighted regression (Peters & Schaal 2007); with advantages and cap, AWR (Peng et al. 2019).
    """
    if not temperature > 0 or not max_weight > 0:
        raise PopeError("temperature and max_weight must be positive")
    weight = (advantages(batch, advantage) / temperature).clamp(max=math.log(max_weight)).exp()
    logprob = batch.logprob.to(weight.dtype)
    loss = -batch.mean(weight * (logprob / batch.lengths if per_token else logprob))
    return loss, report(batch, loss, sft_weight_max=weight.max())


def filtered_bc_loss(
    batch: LossInputs, *, top: float = 0.25, threshold: float | None = None, per_token: bool = False
) -> tuple[Tensor, dict[str, float]]:
    """Supervised fine-tuning on the best responses only.

        loss = -mean over prompts of the mean over kept responses of log pi(y|x)

    Parameters
    ----------
    batch : LossInputs
        The batch.
    top : float
        Share of each prompt's responses that is kept, rounded up; ties at the edge are kept.
    threshold : float, optional
        Keep responses with at least this reward instead. A prompt without any adds 0.
    per_token : bool
        Divide each log-probability by the number of tokens.

    Notes
    -----
    Source: filtered behavior cloning, as BC% in Chen et al. (2021) and RAFT (Dong et al. 2023).
    """
    if not 0 < top <= 1:
        raise PopeError(f"top must lie in (0, 1], got {top}")
    if threshold is None:
        # Rounding must not keep one more: a quarter of 8 is 2, however 0.25 * 8 comes out.
        quota = batch.of_prompt((top * batch.prompt_draws() - 1e-9).ceil())
        kept = draws_above(batch) < quota
    else:
        kept = batch.reward >= threshold
    logprob = batch.logprob.to(batch.draws.dtype)
    logprob = logprob / batch.lengths if per_token else logprob
    chosen = kept.to(logprob.dtype)
    total = batch.prompt_sum(chosen)
    loss = -(batch.prompt_sum(chosen * logprob) / total.clamp(min=1.0)).mean()
    return loss, report(batch, loss, kept_share=(batch.draws * chosen).sum() / batch.draws.sum())


def draws_above(batch: LossInputs) -> Tensor:
    """Count the draws of the same prompt with a strictly larger reward, shape (N,)."""
    same = batch.prompt[:, None] == batch.prompt[None, :]
    above = same & (batch.reward[None, :] > batch.reward[:, None])
    return torch.where(above, batch.draws[None, :], 0.0).sum(dim=1)
