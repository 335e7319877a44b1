"""What the baselines log: the same numbers as the loss of this library, so that runs can be laid side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from pope_fast.align.losses.diagnostics import numbers, weight_diagnostics
from pope_fast.align.losses.diversity import Diversity
from pope_fast.align.losses.inputs import LossInputs
from pope_fast.align.losses.objective import Objective, evaluate_objective, pope_statistics
from pope_fast.align.losses.weights import row_weights

__all__ = ["report"]

_MOST = 3


@torch.no_grad()
def report(batch: LossInputs, loss: Tensor, **extra: Tensor | float) -> dict[str, float]:
    """Metrics of a step of any loss.

    Returns
    -------
    dict of str to float
        ``loss``; what the loss adds; raw and clipped weight diagnostics of sequence weights cut as in SN-TIPS; the
        estimates ``utility`` (SN-TIPS), ``kl`` (k3) and, with clusters and two responses to some prompt, ``diversity``:
        H_M within prompts with the largest M up to 3 that the largest prompt allows, ``diversity_order``.
    """
    batch = batch.detach()
    objective = Objective(diversity_weight=0.0)
    orders = min(_MOST, int(batch.prompt_draws().max()) - 1)
    if batch.cluster is not None and orders > 0:
        objective = Objective(diversity=Diversity(order=orders))
    rows = row_weights(batch, objective.weighting)
    parts = evaluate_objective(pope_statistics(batch, objective, rows=rows), objective)
    metrics: dict[str, Tensor | float] = {"loss": loss, **extra, "utility": parts.utility, "kl": parts.kl}
    if objective.diversity_weight > 0:
        metrics |= {"diversity": parts.diversity, "diversity_order": float(orders)}
    return numbers({**metrics, **weight_diagnostics(batch, rows)})
