"""Baselines that follow the policy gradient of logged rewards."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pope_fast.align.losses.advantages import Advantage, advantages
from pope_fast.align.losses.inputs import LossInputs
from pope_fast.align.losses.report import report
from pope_fast.align.losses.weights import CEILING, Weighting, row_weights
from pope_fast.errors import PopeError, SchemaError

__all__ = ["a_lol_loss", "cispo_loss", "gspo_loss", "ips_pg_loss", "offline_pg_loss", "per_token", "topr_loss"]

_UNWEIGHTED = Weighting(truncation="none")


def per_token(batch: LossInputs) -> tuple[Tensor, Tensor]:
    """Log-probabilities of tokens, 0 where there is none, and the mask as numbers; both of shape (N, T)."""
    if batch.token_logprobs is None or batch.mask is None:
        raise SchemaError(
            "log-probabilities of tokens are needed",
            column="token_logprobs",
            remedy="give token_logprobs, mask",
        )
    present = batch.mask.bool()
    values = torch.where(present, batch.token_logprobs.to(batch.draws.dtype), 0.0)
    return values, present.to(values.dtype)


def offline_pg_loss(batch: LossInputs, *, advantage: Advantage = "loo") -> tuple[Tensor, dict[str, float]]:
    """Policy gradient on the log as if it were on policy.

        loss = -mean A log pi(y|x)

    Its gradient is that of E0[A log pi], a weighted likelihood, and not that of the policy's utility.

    Notes
    -----
    Source: REINFORCE (Williams 1992) on logged data; with ``advantage="loo"`` RLOO's baseline (Ahmadian et al. 2024).
    """
    loss = -batch.mean(advantages(batch, advantage) * batch.logprob)
    return loss, report(batch, loss)


def ips_pg_loss(
    batch: LossInputs,
    *,
    advantage: Advantage = "loo",
    weighting: Weighting = _UNWEIGHTED,
    self_normalize: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """Policy gradient of the utility by importance weighting.

        loss = -mean w A        (divided by mean w, without gradient, if self-normalized)

    Without truncation its gradient is unbiased for that of the utility, ``E0[w r grad log pi]``.

    Notes
    -----
    Source: Swaminathan & Joachims (2015), Metelli et al. (2018).
    """
    if weighting.level == "token" or weighting.taper != "none" or weighting.reject_only == "negative":
        raise PopeError("ips_pg weighs whole responses, without taper. Remedy: loss 'pope' with form='score'")
    rows = row_weights(batch, weighting)
    scale = batch.mean(rows.weight).detach() if self_normalize else 1.0
    loss = -batch.mean(rows.weight * advantages(batch, advantage, rows.weight)) / scale
    return loss, report(batch, loss)


def a_lol_loss(
    batch: LossInputs,
    *,
    advantage: Advantage = "loo",
    level: Literal["sequence", "token", "none"] = "sequence",
    epsilon: float = 0.2,
) -> tuple[Tensor, dict[str, float]]:
    """Advantage-leftover-lunch RL: likelihood of responses better than expected, with a clipped ratio.

        loss = -mean sg[clip(pi / pi_ref, 1 - epsilon, 1 + epsilon)] max(A, 0) log pi(y|x)

    Parameters
    ----------
    batch : LossInputs
        The batch.
    advantage : str
        What A is: the reward less an estimate of the reference policy's value.
    level : {"sequence", "token", "none"}
        ``sequence``: one ratio per response. ``token``: a ratio per token (to the behavior policy), and the mean over
        tokens. ``none``: no ratio, the reference-free variant.
    epsilon : float
        Bounds of the ratio.

    Notes
    -----
    Source: A-LoL, its "seq" and its reference-free variant (Baheti et al., ICLR 2024).
    """
    if level not in ("sequence", "token", "none") or not 0 <= epsilon < 1:
        raise PopeError("level must be 'sequence', 'token' or 'none', and epsilon in [0, 1)")
    gain = advantages(batch, advantage).clamp(min=0.0)
    if level == "token":
        tokens, present = per_token(batch)
        ratio = batch.token_log_ratio.detach().clamp(max=CEILING).exp().clamp(1.0 - epsilon, 1.0 + epsilon)
        score = (ratio * tokens * present).sum(dim=1) / batch.lengths
    else:
        score = batch.logprob.to(gain.dtype)
        if level == "sequence":
            ratio = batch.ref_log_ratio.detach().clamp(max=CEILING).exp()
            score = ratio.clamp(1.0 - epsilon, 1.0 + epsilon) * score
    loss = -batch.mean(gain * score)
    used = (batch.draws * (gain > 0)).sum() / batch.draws.sum()
    return loss, report(batch, loss, positive_share=used)


def topr_loss(
    batch: LossInputs, *, advantage: Advantage = "loo", limit: float = 1.0
) -> tuple[Tensor, dict[str, float]]:
    """Tapered off-policy REINFORCE: imitate what was good, unlearn what was bad only while it is still likely.

        loss = -mean sg[w'] A log pi(y|x),   w' = 1 if A >= 0 else min(pi / pi0, limit)

    Notes
    -----
    Source: TOPR (Le Roux et al. 2025), with its default limits.
    """
    if not limit > 0:
        raise PopeError(f"limit must be positive, not {limit}")
    gain = advantages(batch, advantage)
    ratio = batch.log_ratio.detach().clamp(max=CEILING).exp().clamp(max=limit)
    loss = -batch.mean(torch.where(gain >= 0, 1.0, ratio) * gain * batch.logprob)
    return loss, report(batch, loss)


def cispo_loss(
    batch: LossInputs,
    *,
    advantage: Advantage = "group",
    epsilon_high: float = 0.28,
    tokens_of: Literal["response", "batch"] = "response",
) -> tuple[Tensor, dict[str, float]]:
    """Clipped importance-sampling policy optimization.

        loss = -sum_t sg[min(pi_t / pi0_t, 1 + epsilon_high)] A log pi_t  / tokens

    Parameters
    ----------
    batch : LossInputs
        With log-probabilities of tokens.
    advantage : str
        What A is.
    epsilon_high : float
        One less than the upper bound of the ratios; there is no lower one.
    tokens_of : {"response", "batch"}
        Divide by the tokens of the response and average over prompts, or by those of the batch.

    Notes
    -----
    Source: CISPO (MiniMax-M1 2025).
    """
    gain = advantages(batch, advantage)
    tokens, _ = per_token(batch)
    log_ratio = batch.token_log_ratio.detach().clamp(max=CEILING)
    score = (log_ratio.exp().clamp(max=1.0 + epsilon_high) * tokens).sum(dim=1)
    loss = _over_tokens(batch, -gain * score, tokens_of)
    return loss, report(batch, loss)


def gspo_loss(
    batch: LossInputs,
    *,
    advantage: Advantage = "group",
    epsilon_low: float = 3e-4,
    epsilon_high: float = 4e-4,
) -> tuple[Tensor, dict[str, float]]:
    """Group sequence policy optimization: PPO's clipping of the geometric mean ratio.

        loss = -mean min(s A, clip(s, 1 - epsilon_low, 1 + epsilon_high) A),   s = (pi(y|x) / pi0(y|x))^(1/T)

    Off policy most ratios lie outside the paper's narrow bounds from the start; widen them there.

    Notes
    -----
    Source: GSPO (Zheng et al. 2025).
    """
    if not 0 <= epsilon_low <= 1 or not epsilon_high >= 0:
        raise PopeError("epsilon_low must lie in [0, 1] and epsilon_high not be negative")
    gain = advantages(batch, advantage)
    ratio = (batch.log_ratio / batch.lengths).clamp(max=CEILING).exp()
    clipped = ratio.clamp(1.0 - epsilon_low, 1.0 + epsilon_high)
    loss = -batch.mean(torch.minimum(ratio * gain, clipped * gain))
    outside = (batch.draws * (clipped != ratio)).sum() / batch.draws.sum()
    return loss, report(batch, loss, clipped_share=outside)


def _over_tokens(batch: LossInputs, summed: Tensor, tokens_of: Literal["response", "batch"]) -> Tensor:
    if tokens_of == "response":
        return batch.mean(summed / batch.lengths)
    if tokens_of == "batch":
        return (batch.draws * summed).sum() / (batch.draws * batch.lengths).sum()
    raise PopeError(f"tokens_of must be 'response' or 'batch', not {tokens_of!r}")
