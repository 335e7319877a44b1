"""Baselines: what a reward is compared with before it multiplies the score."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from pope_fast.align.losses.inputs import LossInputs
from pope_fast.errors import PopeError, SchemaError

__all__ = ["Advantage", "advantages", "mean_of_others"]

# A sum over the others is a difference of two sums: below this share of them it is rounding, and nobody's.
_NOBODY = 1e-9
_TINY = 1e-30

Advantage = Literal["loo", "group", "center", "mean", "value", "none"]


def mean_of_others(
    batch: LossInputs,
    weight: Tensor,
    values: Tensor,
    *,
    own_prompt: bool = True,
    whole: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Weighted mean of the values of other draws, shape (N,): of the same prompt, else of other prompts.

    The row itself is left out, so the baseline does not depend on it and the gradient keeps its mean. Where a prompt
    has no other draw of positive weight the mean over the *other prompts* is taken; 0 if there are none either.

    Parameters
    ----------
    batch : LossInputs
        The batch.
    weight, values : Tensor, shape (N,)
        Non-negative weights, and what is averaged; neither gets gradient.
    own_prompt : bool
        False: the mean over other prompts for every row.
    whole : tuple of two scalar Tensors, optional
        Sums over prompts of the mean weight and of the mean weighted value, where the batch is part of a larger one.
    """
    w, v = weight.detach(), values.detach()
    mass, total = batch.prompt_mean(w), batch.prompt_mean(w * v)
    all_mass, all_total = (mass.sum(), total.sum()) if whole is None else whole
    rest = all_mass - mass
    elsewhere = torch.where(rest > _NOBODY * all_mass, (all_total - total) / rest.clamp(min=_TINY), 0.0)
    result = batch.of_prompt(elsewhere)
    if not own_prompt:
        return result
    others, all_of_prompt = batch.sum_of_others(w), batch.of_prompt(batch.prompt_sum(w))
    usable = others > _NOBODY * all_of_prompt
    return torch.where(usable, batch.sum_of_others(w * v) / others.clamp(min=_TINY), result)


def advantages(batch: LossInputs, kind: Advantage = "loo", weight: Tensor | None = None) -> Tensor:
    """Rewards less a baseline, shape (N,), without gradient.

    ==========  ==================================================================================================
    ``loo``     less the mean of the other responses to the prompt (Kool et al. 2019; RLOO, Ahmadian et al. 2024)
    ``group``   less the mean of all responses to the prompt, over their standard deviation (GRPO, Shao et al. 2024)
    ``center``  less the mean of all responses to the prompt (Dr. GRPO, Liu et al. 2025)
    ``mean``    less the mean over the batch
    ``value``   less ``batch.value``
    ``none``    the reward itself
    ==========  ==================================================================================================

    Parameters
    ----------
    batch : LossInputs
        The batch.
    kind : str
        The baseline.
    weight : Tensor, shape (N,), optional
        Weights of the means in ``loo`` and ``mean``; equal by default.
    """
    if kind not in get_args(Advantage):
        raise PopeError(f"advantage must be one of {', '.join(get_args(Advantage))}, not {kind!r}")
    weight = torch.ones_like(batch.draws) if weight is None else weight.detach()
    reward = batch.reward.to(weight.dtype).detach()
    if kind == "none":
        return reward
    if kind == "value":
        if batch.value is None:
            raise SchemaError("baseline 'value' needs V(x)", column="value", remedy="give value, or use baseline 'loo'")
        return reward - batch.value.to(weight.dtype).detach()
    if kind == "mean":
        return reward - batch.mean(weight * reward) / batch.mean(weight)
    if kind == "loo":
        return reward - mean_of_others(batch, weight, reward)
    centered = reward - batch.of_prompt(batch.prompt_mean(reward))
    if kind == "center":
        return centered
    draws = batch.prompt_draws()
    variance = batch.prompt_sum(centered.square()) / (draws - 1.0).clamp(min=1.0)
    return centered / (batch.of_prompt(variance.sqrt()) + 1e-4)
