"""Baselines made for other feedback: pairs of responses and thumbs, both made here from logged rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pope_fast.align.losses.inputs import LossInputs
from pope_fast.align.losses.report import report
from pope_fast.align.losses.weights import Weighting, row_weights
from pope_fast.errors import PopeError

__all__ = [
    "Pairs",
    "best_of_prompt",
    "dpo_loss",
    "kto_loss",
    "make_pairs",
    "pair_loss",
    "pair_metrics",
    "preference_rows",
    "thumb_rows",
]

PairKind = Literal["best_worst", "all"]
PairLoss = Literal["sigmoid", "ipo", "hinge"]


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Pairs of rows of a batch.

    Attributes
    ----------
    chosen, rejected : Tensor of int64, shape (M,)
        Row indices; both of one prompt.
    weight : Tensor, shape (M,)
        Weight of each pair; those of one prompt sum to 1.
    """

    chosen: Tensor
    rejected: Tensor
    weight: Tensor


def make_pairs(batch: LossInputs, how: PairKind = "best_worst", margin: float = 0.0) -> Pairs:
    """Make preference pairs from the rewards of the responses to each prompt.

    Parameters
    ----------
    batch : LossInputs
        The batch.
    how : {"best_worst", "all"}
        One pair per prompt, of largest and smallest reward (the first of ties); or every pair that differs, weighted
        by the draws that the two rows stand for.
    margin : float
        By how much the rewards must differ at least.
    """
    if not margin >= 0:
        raise PopeError(f"margin must not be negative, got {margin}")
    gap = batch.reward[:, None] - batch.reward[None, :]
    better = (batch.prompt[:, None] == batch.prompt[None, :]) & (gap > 0) & (gap >= margin)
    if how == "all":
        chosen, rejected = better.nonzero(as_tuple=True)
    elif how == "best_worst":
        everything = torch.ones_like(better[0])
        best = best_of_prompt(batch, everything, -batch.reward)
        worst = best_of_prompt(batch, everything, batch.reward)
        keep = better[best, worst]
        chosen, rejected = best[keep], worst[keep]
    else:
        raise PopeError(f"how must be 'best_worst' or 'all', not {how!r}")
    draws = batch.draws[chosen] * batch.draws[rejected] if how == "all" else torch.ones_like(batch.draws[chosen])
    total = torch.zeros(batch.n_prompts, dtype=draws.dtype, device=draws.device)
    total = total.index_add(0, batch.prompt[chosen], draws)
    return Pairs(chosen, rejected, draws / total[batch.prompt[chosen]])


def best_of_prompt(batch: LossInputs, eligible: Tensor, *keys: Tensor) -> Tensor:
    """Index of the eligible row of each prompt that is least by the keys, the first of them foremost.

    Prompts without an eligible row are left out; ties go to the first row.
    """
    order = eligible.nonzero()[:, 0]
    for key in reversed(keys):
        order = order[torch.argsort(key[order], stable=True)]
    order = order[torch.argsort(batch.prompt[order], stable=True)]
    first = torch.diff(batch.prompt[order], prepend=batch.prompt.new_tensor([-1])) > 0
    return order[first]


def pair_loss(
    batch: LossInputs,
    pairs: Pairs,
    *,
    beta: float = 0.1,
    kind: PairLoss = "sigmoid",
    label_smoothing: float = 0.0,
    length_normalize: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss of given pairs and their margins ``beta (l_chosen - l_rejected)``; see :func:`dpo_loss`."""
    if not beta > 0 or not 0 <= label_smoothing < 0.5:
        raise PopeError("beta must be positive and label_smoothing in [0, 0.5)")
    if label_smoothing > 0 and kind != "sigmoid":
        raise PopeError("label_smoothing goes with the sigmoid loss")
    score = batch.ref_log_ratio
    if length_normalize:
        score = score / batch.lengths
    delta = score[pairs.chosen] - score[pairs.rejected]
    if kind == "sigmoid":
        each = -(1.0 - label_smoothing) * logsigmoid(beta * delta) - label_smoothing * logsigmoid(-beta * delta)
    elif kind == "ipo":
        each = (delta - 1.0 / (2.0 * beta)).square()
    elif kind == "hinge":
        each = torch.relu(1.0 - beta * delta)
    else:
        raise PopeError(f"kind must be 'sigmoid', 'ipo' or 'hinge', not {kind!r}")
    # Without pairs the sum is an empty one, with a gradient of 0.
    return (pairs.weight * each).sum() / batch.n_prompts, beta * delta


def dpo_loss(
    batch: LossInputs,
    *,
    beta: float = 0.1,
    how: PairKind = "best_worst",
    margin: float = 0.0,
    kind: PairLoss = "sigmoid",
    label_smoothing: float = 0.0,
    length_normalize: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """Direct preference optimization on pairs made from the log.

        sigmoid:  loss = -mean log sigmoid(beta delta),   delta = l_chosen - l_rejected,   l = log(pi / pi_ref)
        ipo:      loss =  mean (delta - 1 / (2 beta))^2
        hinge:    loss =  mean max(0, 1 - beta delta)

    The mean is over pairs within a prompt, then over prompts; a prompt without a pair adds 0.

    Parameters
    ----------
    batch : LossInputs
        The batch.
    beta : float
        Strength of the regularization.
    how, margin
        See :func:`make_pairs`.
    kind : {"sigmoid", "ipo", "hinge"}
        The loss.
    label_smoothing : float
        Share of pairs that are taken to be the wrong way round (``sigmoid`` only).
    length_normalize : bool
        Divide l by the number of tokens (as TRL does for ``ipo``).

    Notes
    -----
    Source: DPO (Rafailov et al. 2023), IPO (Azar et al. 2023), SLiC (Zhao et al. 2023); label smoothing:
    Mitchell (2023).
    """
    pairs = make_pairs(batch, how, margin)
    loss, margins = pair_loss(
        batch, pairs, beta=beta, kind=kind, label_smoothing=label_smoothing, length_normalize=length_normalize
    )
    return loss, report(batch, loss, **pair_metrics(batch, pairs, margins))


def pair_metrics(batch: LossInputs, pairs: Pairs, margins: Tensor) -> dict[str, Tensor | float]:
    """Share of prompts with a pair, and mean margin and accuracy of the pairs (0 without any)."""
    prompts = pairs.weight.sum()
    none = prompts.clamp(min=1.0)
    return {
        "paired_prompts": prompts / batch.n_prompts,
        "reward_margin": (pairs.weight * margins.detach()).sum() / none,
        "reward_accuracy": (pairs.weight * (margins > 0)).sum() / none,
    }


def kto_loss(
    batch: LossInputs,
    *,
    beta: float = 0.1,
    threshold: float = 0.5,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    kl: float | Literal["weighted", "matched"] = "weighted",
) -> tuple[Tensor, dict[str, float]]:
    """Kahneman-Tversky optimization on thumbs made from the log.

        desirable:    d (1 - sigmoid(beta (l - z)))        l = log(pi / pi_ref)
        undesirable:  u (1 - sigmoid(beta (z - l)))        z = max(0, KL(pi || pi_ref)), without gradient

    Parameters
    ----------
    batch : LossInputs
        The batch.
    beta : float
        Strength of the regularization.
    threshold : float
        Rewards above it are desirable; the default suits upvotes of 0 and 1.
    desirable_weight, undesirable_weight : float
        The weights d and u.
    kl : float or {"weighted", "matched"}
        The reference point z: a number; the self-normalized importance-weighted estimate from the batch; or the plain
        mean of l over it. (The source pairs prompts with other prompts' responses, which a log has no
        log-probabilities of.)

    Notes
    -----
    Source: KTO (Ethayarajh et al. 2024).
    """
    if not beta > 0 or not min(desirable_weight, undesirable_weight) >= 0:
        raise PopeError("beta must be positive and the weights not negative")
    log_ratio = batch.ref_log_ratio
    if isinstance(kl, str):
        if kl not in ("weighted", "matched"):
            raise PopeError(f"kl must be a number, 'weighted' or 'matched', not {kl!r}")
        detached = log_ratio.detach()
        weight = row_weights(batch.detach(), Weighting()).weight if kl == "weighted" else torch.ones_like(detached)
        point = (batch.mean(weight * detached) / batch.mean(weight)).clamp(min=0.0)
    else:
        if not 0 <= kl < math.inf:
            raise PopeError(f"kl must be finite and not negative, got {kl}")
        point = log_ratio.new_tensor(float(kl))
    liked = batch.reward > threshold
    gain = desirable_weight * (1.0 - torch.sigmoid(beta * (log_ratio - point)))
    pain = undesirable_weight * (1.0 - torch.sigmoid(beta * (point - log_ratio)))
    loss = batch.mean(torch.where(liked, gain, pain))
    return loss, report(batch, loss, reference_point=point, desirable_share=batch.mean(liked.to(gain.dtype)))


def preference_rows(
    batch: LossInputs, pairs: Pairs, prompts: Sequence[Any], completions: Sequence[Any]
) -> list[dict[str, Any]]:
    """Rows of a preference data set as TRL's ``DPOTrainer`` reads it.

    Parameters
    ----------
    batch, pairs
        The batch and its pairs.
    prompts, completions : sequence, length N
        Texts or lists of messages of every row of the batch.

    Returns
    -------
    list of dict
        With ``prompt``, ``chosen`` and ``rejected``.
    """
    _same_length(batch, prompts, completions)
    return [
        {"prompt": prompts[chosen], "chosen": completions[chosen], "rejected": completions[rejected]}
        for chosen, rejected in zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)
    ]


def thumb_rows(
    batch: LossInputs, prompts: Sequence[Any], completions: Sequence[Any], threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Rows of an unpaired data set as TRL's ``KTOTrainer`` reads it: ``prompt``, ``completion`` and ``label``.

    Parameters
    ----------
    batch : LossInputs
        The batch; a row stands ``count`` times.
    prompts, completions : sequence, length N
        Texts or lists of messages of every row of the batch.
    threshold : float
        Rewards above it are labeled True.
    """
    _same_length(batch, prompts, completions)
    rows = zip(prompts, completions, (batch.reward > threshold).tolist(), batch.draws.tolist(), strict=True)
    return [
        {"prompt": prompt, "completion": completion, "label": label}
        for prompt, completion, label, draws in rows
        for _ in range(int(draws))
    ]


def _same_length(batch: LossInputs, prompts: Sequence[Any], completions: Sequence[Any]) -> None:
    if not len(batch) == len(prompts) == len(completions):
        raise PopeError(f"{len(prompts)} prompts and {len(completions)} completions for a batch of {len(batch)} rows")
