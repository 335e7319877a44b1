"""Importance weights: at which level, cut how, which rows left out, tapered how. Four choices, made separately."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pope_fast.align.losses.inputs import LossInputs
from pope_fast.errors import PopeError
from pope_fast.reference.tails import smoothed_log_weights

__all__ = ["SN_TIPS", "UNTRUNCATED", "WEIGHTINGS", "RowWeights", "Weighting", "row_weights", "score_weights"]

Level = Literal["sequence", "token", "geometric"]
Truncation = Literal["none", "clip", "sn_tips", "psis"]
Rejection = Literal["none", "ratio", "geometric", "k3", "token"]
RejectOnly = Literal["all", "negative"]
Taper = Literal["none", "ppo", "logistic", "topr", "gspo"]

#: Log-ratios above this many nats count as this many: powers of the weight must not overflow. The raw diagnostics are
#: computed from the log-ratios themselves.
CEILING = 200.0


@dataclass(frozen=True, slots=True)
class Weighting:
    """How responses of the behavior policy are made to stand for those of the policy being trained.

    Attributes
    ----------
    level : {"sequence", "token", "geometric"}
        What a weight is a ratio of. ``sequence``: ``w = prod_t pi_t / pi0_t``, the only one under which the log speaks
        for pi. ``token``: each token's term has its own ratio ``pi_t / pi0_t`` (score form only). ``geometric``:
        ``w^(1/T)``, which speaks for another policy, the geometric mixture. The last two are surrogates: less variance,
        and a bias that does not vanish with more data.
    truncation : {"none", "clip", "sn_tips", "psis"}
        ``clip``: ``min(w, clip)``. ``sn_tips``: ``min(w, tau)`` with ``tau = sqrt(n) * mean w`` (rate: Ionides 2008).
        ``psis``: the largest weights are replaced by quantiles of a fitted generalized Pareto distribution (Vehtari et
        al. 2024); needs the whole batch at once.
    clip : float
        Level of ``clip``. Low by default: with few draws per prompt the variance of large weights costs more than the
        bias of cutting them.
    n_units : int, optional
        The n of ``tau``: by default the prompts of the batch. A larger one truncates less.
    rejection : {"none", "ratio", "geometric", "k3", "token"}
        Rows whose statistic lies outside ``[reject_below, reject_above]`` get weight 0: the sequence ratio w; the
        geometric mean ratio ``w^(1/T)``; the mean over tokens of ``ratio - 1 - log ratio`` (an estimate of the
        divergence from pi0 to pi); or any single token's ratio.
    reject_below, reject_above : float
        The bounds.
    reject_only : {"all", "negative"}
        Whether rejection concerns all rows or only those with negative advantage (the off-policy sequence mask of
        DeepSeek-V3.2, 2025); ``negative`` is for score forms.
    taper : {"none", "ppo", "logistic", "topr", "gspo"}
        Score form only. ``ppo``: truncated weights of positive advantages become 0, so what is already
        much likelier than in the log is pulled no further up, but can still be pushed down (the pessimistic minimum of
        Schulman et al. 2017); in the direct form a truncated weight is constant, which is as pessimistic.
        ``logistic``: the weight ``4 s (1 - s)``, ``s = sigmoid(sharpness * log w)``: 1 at w = 1 and fading both ways,
        the slope of the bounded value function of KTO (Ethayarajh et al. 2024). The surrogate
        ``E0[(4 / sharpness) s A]`` stands in for the policy's own mean, and every response is heard. ``topr``: weight
        1 for positive advantages, ``min(w, 1)`` for negative ones (Le Roux et al. 2025). ``gspo``: the weight
        ``w^(1/T) / T``, and 0 where PPO's clipping of ``w^(1/T)`` to ``[1 - epsilon_low, 1 + epsilon_high]`` stops the
        gradient (Zheng et al. 2025); needs level ``geometric``.
    epsilon_low, epsilon_high : float
        Bounds of ``gspo``.
    sharpness : float
        Of ``logistic``, per nat.

    Raises
    ------
    PopeError
        If an option is unknown or out of its range, or two do not go together.
    """

    level: Level = "sequence"
    truncation: Truncation = "clip"
    clip: float = 2.0
    n_units: int | None = None
    rejection: Rejection = "none"
    reject_below: float = 0.0
    reject_above: float = math.inf
    reject_only: RejectOnly = "all"
    taper: Taper = "none"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    sharpness: float = 0.3

    def __post_init__(self) -> None:
        choices = {
            "level": Level,
            "truncation": Truncation,
            "rejection": Rejection,
            "reject_only": RejectOnly,
            "taper": Taper,
        }
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                known = ", ".join(get_args(choice))
                raise PopeError(f"{name} must be one of {known}, not {getattr(self, name)!r}")
        if not self.clip > 0:
            raise PopeError(f"clip must be positive, not {self.clip}")
        if self.n_units is not None and self.n_units < 1:
            raise PopeError(f"n_units must be at least 1, not {self.n_units}")
        if not 0 <= self.reject_below <= self.reject_above:
            raise PopeError(f"rejection keeps [{self.reject_below}, {self.reject_above}], which is no interval")
        if self.taper == "gspo" and self.level != "geometric":
            raise PopeError("taper 'gspo' needs level 'geometric'")
        if self.taper in ("topr", "logistic") and self.level == "token":
            raise PopeError(f"taper {self.taper!r} weighs whole responses, and level 'token' does not")
        if not self.sharpness > 0:
            raise PopeError(f"sharpness must be positive, not {self.sharpness}")


UNTRUNCATED = Weighting(truncation="none", taper="none")
"""Plain importance weights."""

SN_TIPS = Weighting(truncation="sn_tips", taper="none")
"""Weights of the estimator that the evaluation of logs shows first."""

WEIGHTINGS: dict[str, Weighting] = {
    "default": Weighting(),
    "none": UNTRUNCATED,
    "sn_tips": SN_TIPS,
    "psis": Weighting(truncation="psis", taper="none"),
    "logistic": Weighting(taper="logistic"),
    "topr": Weighting(truncation="none", taper="topr"),
    "cispo": Weighting(level="token", clip=1.28, taper="none"),
    "gspo": Weighting(level="geometric", truncation="none", taper="gspo", epsilon_low=3e-4, epsilon_high=4e-4),
}
"""Combinations that have a name."""


@dataclass(frozen=True, slots=True, eq=False)
class RowWeights:
    """Weights of the rows of a batch.

    Attributes
    ----------
    log_ratio : Tensor, shape (N,)
        Log of the raw weight, before anything is cut; carries gradient.
    weight : Tensor, shape (N,)
        The weight after truncation and rejection; carries gradient, none where it was cut. At level ``token`` these
        are sequence weights: masses of clusters and means of rewards are about whole responses.
    token_weight, token_truncated : Tensor, shape (N, T), or None
        Weights of tokens at level ``token``, without gradient, and which of them the truncation lowered.
    tau : Tensor, scalar
        Where weights were truncated; infinite if nowhere.
    truncated, kept : Tensor of bool, shape (N,)
        Rows whose weight was lowered by the truncation; rows that the rejection left in (``reject_only="all"``).
    suspect : Tensor of bool, shape (N,)
        Rows outside the bounds of the rejection, whatever ``reject_only`` says.
    """

    log_ratio: Tensor
    weight: Tensor
    token_weight: Tensor | None
    token_truncated: Tensor | None
    tau: Tensor
    truncated: Tensor
    kept: Tensor
    suspect: Tensor


def row_weights(batch: LossInputs, weighting: Weighting, tau: float | None = None) -> RowWeights:
    """Compute the weights of a batch.

    Parameters
    ----------
    batch : LossInputs
        The batch.
    weighting : Weighting
        Level, truncation and rejection.
    tau : float, optional
        Level of truncation of ``sn_tips``, if it is already known for the whole of which this batch is a part.

    Raises
    ------
    SchemaError
        If tokens or lengths are needed and not there.
    """
    log_ratio = batch.log_ratio
    if weighting.level == "geometric":
        log_ratio = log_ratio / batch.lengths
    limit = _tau(batch, weighting, log_ratio, tau)
    weight, truncated = _cut(batch, weighting, log_ratio, limit)
    tokens: tuple[Tensor | None, Tensor | None] = (None, None)
    if weighting.level == "token":
        tokens = _token_weights(batch, weighting)
    suspect = _suspect(batch, weighting)
    dropped = suspect if weighting.reject_only == "all" else torch.zeros_like(suspect)
    weight = torch.where(dropped, 0.0, weight)
    return RowWeights(log_ratio, weight, *tokens, limit, truncated, ~dropped, suspect)


def score_weights(batch: LossInputs, rows: RowWeights, weighting: Weighting, advantage: Tensor) -> Tensor:
    """Weights of the score form, without gradient: shape (N,), or (N, T) at level ``token``.

    Parameters
    ----------
    batch, rows, weighting
        The batch, its weights and how they were made.
    advantage : Tensor, shape (N,)
        What multiplies the score; its sign decides about tapering and ``reject_only="negative"``.
    """
    raw = rows.log_ratio.detach().clamp(max=CEILING).exp()
    stopped = rows.truncated
    if weighting.taper == "topr":
        weight = torch.where(advantage >= 0, 1.0, raw.clamp(max=1.0))
    elif weighting.taper == "logistic":
        chosen = torch.sigmoid(weighting.sharpness * rows.log_ratio.detach())
        weight = 4.0 * chosen * (1.0 - chosen)
    elif weighting.taper == "gspo":
        high, low = raw > 1.0 + weighting.epsilon_high, raw < 1.0 - weighting.epsilon_low
        weight = torch.where(torch.where(advantage >= 0, high, low), 0.0, raw / batch.lengths)
    elif rows.token_weight is not None and rows.token_truncated is not None:
        weight, stopped = rows.token_weight, rows.token_truncated
    else:
        weight = rows.weight.detach()
    if weighting.taper == "ppo":
        gaining = advantage > 0
        weight = torch.where(stopped & (gaining if weight.dim() == 1 else gaining[:, None]), 0.0, weight)
    dropped = rows.suspect & (advantage < 0) if weighting.reject_only == "negative" else ~rows.kept
    return torch.where(dropped if weight.dim() == 1 else dropped[:, None], 0.0, weight)


def _tau(batch: LossInputs, weighting: Weighting, log_ratio: Tensor, tau: float | None) -> Tensor:
    if weighting.truncation == "clip":
        return log_ratio.new_tensor(weighting.clip)
    if weighting.truncation != "sn_tips":
        return log_ratio.new_tensor(math.inf)
    if tau is not None:
        return log_ratio.new_tensor(tau)
    units = weighting.n_units or batch.n_prompts
    return math.sqrt(units) * batch.mean(log_ratio.detach().clamp(max=CEILING).exp())


def _cut(batch: LossInputs, weighting: Weighting, log_ratio: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    bounded = log_ratio.clamp(max=CEILING)
    if weighting.truncation == "psis":
        smoothed = _smoothed(log_ratio.detach(), batch.count)
        # The smoothed value, with the gradient of a weight: its size times that of the log-probability.
        shifted = bounded + (smoothed.clamp(max=CEILING) - bounded).detach()
        return shifted.exp(), smoothed < log_ratio.detach()
    # The minimum is taken of the logs: exp(log_ratio) itself may overflow, and inf * 0 is no gradient.
    cut = log_ratio > limit.log()
    return torch.where(cut, limit, torch.where(cut, 0.0, bounded).exp()), cut


def _smoothed(log_ratio: Tensor, count: Tensor | None) -> Tensor:
    raw = log_ratio.cpu().double().numpy()
    relative = smoothed_log_weights(raw, None if count is None else count.cpu().numpy())
    return torch.as_tensor(relative + raw.max(), dtype=log_ratio.dtype, device=log_ratio.device)


def _token_weights(batch: LossInputs, weighting: Weighting) -> tuple[Tensor, Tensor]:
    log_ratio = batch.token_log_ratio.detach()
    assert batch.mask is not None  # token_log_ratio has asked for it
    present = batch.mask.bool()
    if weighting.truncation == "psis":
        draws = None if batch.count is None else batch.draws[:, None].expand_as(log_ratio)[present]
        result = torch.zeros_like(log_ratio)
        result[present] = _smoothed(log_ratio[present], draws).clamp(max=CEILING).exp()
        return result, present & (result < log_ratio.clamp(max=CEILING).exp())
    weight = log_ratio.clamp(max=CEILING).exp()
    limit = math.inf
    if weighting.truncation == "clip":
        limit = weighting.clip
    elif weighting.truncation == "sn_tips":
        units = weighting.n_units or batch.n_prompts
        draws = batch.draws[:, None] * present
        limit = math.sqrt(units) * float((draws * weight).sum() / draws.sum())
    return torch.where(present, weight.clamp(max=limit), 0.0), present & (weight > limit)


def _suspect(batch: LossInputs, weighting: Weighting) -> Tensor:
    low, high = weighting.reject_below, weighting.reject_above
    if weighting.rejection == "none":
        return torch.zeros(len(batch), dtype=torch.bool, device=batch.prompt.device)
    if weighting.rejection in ("ratio", "geometric"):
        log_ratio = batch.log_ratio.detach()
        if weighting.rejection == "geometric":
            log_ratio = log_ratio / batch.lengths
        statistic = log_ratio.exp()
        return (statistic < low) | (statistic > high)
    log_ratio = batch.token_log_ratio.detach()
    assert batch.mask is not None  # token_log_ratio has asked for it
    ratio = log_ratio.exp()
    if weighting.rejection == "token":
        return (batch.mask.bool() & ((ratio < low) | (ratio > high))).any(dim=1)
    divergence = torch.where(batch.mask.bool(), ratio - 1.0 - log_ratio, 0.0).sum(dim=1) / batch.lengths
    return (divergence < low) | (divergence > high)
