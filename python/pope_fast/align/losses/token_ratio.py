"""The surrogate with a ratio for every token and no product of them."""

from __future__ import annotations

from torch import Tensor

from pope_fast.align.losses.advantages import Advantage, advantages
from pope_fast.align.losses.inputs import LossInputs
from pope_fast.align.losses.report import report
from pope_fast.align.losses.weights import CEILING
from pope_fast.errors import PopeError

__all__ = ["token_ratio_loss"]


def token_ratio_loss(
    batch: LossInputs, *, advantage: Advantage = "none", clip: float | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Maximize the mean over tokens of ratio times reward.

        loss = -mean (1/T) sum_t (pi_t / pi0_t) A

    Each token is weighted as if the tokens before it had been drawn from the policy, so the estimate is not one of the
    policy's utility and its bias does not vanish with more data; it is the price of its small variance.

    Parameters
    ----------
    batch : LossInputs
        With log-probabilities of tokens under both policies.
    advantage : str
        What A is.
    clip : float, optional
        Upper bound of the ratios; beyond it there is no gradient.

    Notes
    -----
    Source: in the manner of OCEAN's KG-IPS objective (Wu et al. 2024), with the logged reward in place of its
    knowledge-graph feedback on each step.
    """
    if clip is not None and not clip > 0:
        raise PopeError(f"clip must be positive, not {clip}")
    ratio = batch.token_log_ratio.clamp(max=CEILING).exp()
    if clip is not None:
        ratio = ratio.clamp(max=clip)
    assert batch.mask is not None  # token_log_ratio has asked for it
    mean = (ratio * batch.mask.bool()).sum(dim=1) / batch.lengths
    loss = -batch.mean(mean * advantages(batch, advantage))
    return loss, report(batch, loss, token_ratio_mean=batch.mean(mean.detach()))
