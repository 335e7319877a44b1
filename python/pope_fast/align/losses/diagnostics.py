"""What is logged at every step, to see whether the weights still let the log speak for the policy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pope_fast.align.losses.inputs import LossInputs, wide
from pope_fast.align.losses.weights import RowWeights
from pope_fast.reference.tails import pareto_k

_MOST_DRAWS = 100_000

__all__ = ["numbers", "weight_diagnostics"]


def weight_diagnostics(batch: LossInputs, rows: RowWeights) -> dict[str, Tensor]:
    """Diagnose the weights of a batch.

    Those called raw are computed from the log-ratios, before anything is clamped, truncated or rejected: a clamped
    effective sample size cannot sink. The unit is the prompt: ``A_i = mean_k w_ik``.

    Returns
    -------
    dict of str to scalar Tensor
        ``ess`` (raw) = ``(sum A)^2 / sum A^2`` (Kish 1965), ``ess_fraction`` = ess / P, ``largest_share`` (raw) of one
        prompt in the total weight, ``mean_weight`` (raw; 1 in expectation under full support), ``mean_log_weight``
        (raw; minus the divergence KL(pi0 || pi), never above 0 in expectation), ``k_hat`` (raw, over draws; Zhang &
        Stephens 2009, Vehtari et al. 2024), ``ess_clipped`` of the weights in use, ``truncated_share`` and
        ``rejected_share`` of the draws, ``tau``.
    """
    log_ratio = rows.log_ratio.detach()
    top = log_ratio.max()
    unit = batch.prompt_mean((log_ratio - top).exp())
    ess = unit.sum().square() / unit.square().sum()
    used = batch.prompt_mean(rows.weight.detach())
    # All weights may have been rejected; then nothing is left to be effective.
    ess_clipped = (used.sum().square() / used.square().sum()).nan_to_num(nan=0.0)
    share = batch.draws / batch.draws.sum()
    return {
        "ess": ess,
        "ess_fraction": ess / batch.n_prompts,
        "ess_clipped": ess_clipped,
        "largest_share": unit.max() / unit.sum(),
        "mean_weight": top.exp() * unit.mean(),
        "mean_log_weight": batch.mean(log_ratio),
        "k_hat": log_ratio.new_tensor(_tail_index(log_ratio, batch.count)),
        "truncated_share": (share * rows.truncated).sum(),
        "rejected_share": (share * ~rows.kept).sum(),
        "tau": rows.tau,
    }


def _tail_index(log_ratio: Tensor, count: Tensor | None) -> float:
    weights = log_ratio.cpu().double().numpy()
    if count is None:
        return pareto_k(weights)
    draws = count.cpu().double().numpy()
    # Rows are repeated as often as they count; a log of millions of ratings has the same tail when thinned evenly.
    return pareto_k(weights, np.ceil(draws * min(1.0, _MOST_DRAWS / draws.sum())))


def numbers(metrics: dict[str, Tensor | float]) -> dict[str, float]:
    """Turn metrics into plain floats; those on a device are fetched in one transfer."""
    tensors = {name: wide(value.detach()) for name, value in metrics.items() if isinstance(value, Tensor)}
    fetched: dict[str, float] = {}
    if tensors:
        fetched = dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
    return {name: fetched[name] if name in fetched else float(value) for name, value in metrics.items()}
