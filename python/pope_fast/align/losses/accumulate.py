"""Gradient accumulation that does not change the objective, for any loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pope_fast.align.losses.inputs import LossInputs
from pope_fast.errors import PopeError

__all__ = ["BackwardPlan", "backward_plan"]

_TRAINED = ("logprob", "token_logprobs", "value")


@dataclass(frozen=True, slots=True, eq=False)
class BackwardPlan:
    """A loss of a whole batch, and its derivative in everything that depends on the model.

    Attributes
    ----------
    loss : Tensor, scalar
        Without gradient.
    metrics : dict of str to float
        Of the whole batch.
    gradients : dict of str to Tensor
        ``d loss / d logprob`` and, where the batch has them, ``token_logprobs`` and ``value``; shapes of the columns.
    """

    loss: Tensor
    metrics: dict[str, float]
    gradients: dict[str, Tensor]

    def surrogate(self, part: LossInputs, first_row: int) -> Tensor:
        """Return a scalar whose gradient is the part's share of the gradient of the whole loss.

        Parameters
        ----------
        part : LossInputs
            Rows ``first_row, first_row + 1, ...`` of the batch, now computed with gradient. Columns without gradient
            are skipped; ``token_logprobs`` may be padded to another length.
        first_row : int
            Where the part begins.

        Raises
        ------
        PopeError
            If the part is not within the batch, or none of its columns has gradient.
        """
        rows = slice(first_row, first_row + len(part))
        if first_row < 0 or rows.stop > len(self.gradients["logprob"]):
            raise PopeError(f"rows {first_row} to {rows.stop - 1} are not all in the batch")
        total: Tensor | None = None
        for name, gradient in self.gradients.items():
            column = getattr(part, name)
            if column is None or not column.requires_grad:
                continue
            share = gradient[rows]
            if column.dim() == 2:
                width = min(column.shape[1], share.shape[1])
                column, share = column[:, :width], share[:, :width]
            # A column that only copies another one is masked by a gradient of 0; padding may hold anything.
            term = torch.where(share != 0, column * share.to(column.dtype), 0.0).sum()
            total = term if total is None else total + term
        if total is None:
            raise PopeError("none of logprob, token_logprobs and value of the part has gradient")
        return total


def backward_plan(
    function: Callable[..., tuple[Tensor, dict[str, float]]], batch: LossInputs, **options: Any
) -> BackwardPlan:
    """Evaluate a loss on a whole batch whose log-probabilities were computed without gradient.

    Two passes instead of one: score all micro-batches without gradient and concatenate them; call this; then score each
    micro-batch again with gradient and call ``plan.surrogate(part, first_row).backward()``. The gradients add up to
    that of the whole batch's loss exactly, whatever it is (the chain rule, as in GradCache: Gao et al. 2021), for one
    more forward pass. The two passes must compute the same: no dropout, or the same random state.

    Parameters
    ----------
    function : callable
        Any loss of this package.
    batch : LossInputs
        The whole batch.
    **options
        Options of the loss.
    """
    leaves: dict[str, Tensor] = {}
    for name in _TRAINED:
        column = getattr(batch, name)
        if column is not None:
            leaves[name] = column.detach().clone().requires_grad_()
    with torch.enable_grad():
        loss, metrics = function(replace(batch, **leaves), **options)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(leaf) if gradient is None else gradient.detach()
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }
    return BackwardPlan(loss.detach(), metrics, gradients)
