"""The objective as a function of sums over prompts, so that parts of a batch can be added up without changing it.

Every estimate in ``J = U + lambda D - beta KL`` is a function f of a few sums T over the prompts of a batch. Of a part
of the batch only its own sums carry gradient, so with the whole batch's sums T* known (without gradient)

    grad J = sum over parts of  f'(T*) . grad T_part

exactly: that is what ``normalizer`` is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from pope_fast.align.losses.diversity import (
    Diversity,
    cluster_masses,
    cluster_moments,
    elementary,
    falling,
    lower_variable,
    prompt_surprisal,
    reference_surprisal,
)
from pope_fast.align.losses.inputs import LossInputs
from pope_fast.align.losses.weights import CEILING, RowWeights, Weighting, row_weights
from pope_fast.align.losses.welfare import Welfare, welfare
from pope_fast.errors import PopeError, SchemaError

__all__ = ["Objective", "Parts", "Statistics", "evaluate_objective", "linearized", "pope_statistics", "weigh"]

KL = Literal["k3", "k1", "forward"]

_WEIGHTING = Weighting()
_DIVERSITY = Diversity()

# exp(100) is far beyond what a weight of exp(-100) could bring back: larger exponents only overflow.
_LARGEST_EXPONENT = 100.0


@dataclass(frozen=True, slots=True)
class Objective:
    """What is maximized: ``J = U + lambda D - beta KL``, and how its parts are estimated.

    Attributes
    ----------
    diversity_weight : float
        lambda, in reward units per unit of diversity.
    beta : float
        Weight of the divergence from the reference policy.
    weighting : Weighting
        Importance weights.
    diversity : Diversity
        The measure D.
    self_normalize : bool
        Whether estimates are divided by (powers of) the mean weight of all prompts: a little bias of order 1/P against
        much variance. Without it and without truncation the gradient is exactly unbiased.
    kl : {"forward", "k3", "k1"}
        Which divergence, with ``l = log pi - log pi_ref`` of a logged response. ``forward``, the default:
        ``KL(pi_ref || pi) = E_ref[log pi_ref - log pi]``; it needs no weights of the policy and so keeps its pull on
        responses whose weights have died out, which is what holds a language model to texts that mean something. The
        others estimate ``KL(pi || pi_ref)``. ``k1``: ``w l``. ``k3``:
        ``w (l + exp(-l) - 1)``, never negative (Schulman 2020, importance-weighted). Both have the mean
        ``KL(pi || pi_ref)``; since ``w exp(-l) = pi_ref / pi0`` does not depend on the policy, the gradient of k3 is
        ``w l grad log pi``, that of k1 with its term of mean zero, ``w grad log pi``, taken away. Without the weight
        (as k3 is used on policy) the gradient would be that of the other divergence.
    welfare : {"mean", "nash", "softmin"}
        How the utilities of annotator groups make U; see :func:`welfare`. Without a group column U is the mean.
    welfare_temperature, nash_floor : float
        Of ``softmin`` and ``nash``.
    group_shares : tuple of float, optional
        Shares a_g of the groups; also declares their number. For ``mean`` without them, every unit counts as it comes.
    pessimism : float, optional
        Parameter of the log-smoothing lower bound: U becomes ``mean_i log(1 + p N_i) / p`` with N_i the prompt's mean
        of weighted rewards in [0, 1], and D the same of a non-negative variable (Sakhi et al. 2024). Biased
        downwards, the more the larger the weights: a policy that leaves the log is not rewarded for it. Direct form.
    reward_range : (float, float), optional
        Bounds of the reward, needed for ``pessimism``.

    Raises
    ------
    PopeError
        If an option is unknown or out of its range, or two do not go together.
    """

    diversity_weight: float = 1.0
    beta: float = 0.05
    weighting: Weighting = _WEIGHTING
    diversity: Diversity = _DIVERSITY
    self_normalize: bool = True
    kl: KL = "forward"
    welfare: Welfare = "mean"
    welfare_temperature: float = 0.1
    nash_floor: float = 1e-3
    group_shares: tuple[float, ...] | None = None
    pessimism: float | None = None
    reward_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, choice in (("kl", KL), ("welfare", Welfare)):
            if getattr(self, name) not in get_args(choice):
                known = ", ".join(get_args(choice))
                raise PopeError(f"{name} must be one of {known}, not {getattr(self, name)!r}")
        for name in ("diversity_weight", "beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise PopeError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        if self.group_shares is not None and not (self.group_shares and min(self.group_shares) > 0):
            raise PopeError("group_shares must be positive numbers, one for each group")
        if self.pessimism is None:
            return
        if not self.pessimism > 0:
            raise PopeError(f"pessimism must be positive, not {self.pessimism}")
        if self.reward_range is None or not self.reward_range[0] < self.reward_range[1]:
            raise PopeError("pessimism needs reward_range=(low, high): its bound is one of rewards in [0, 1]")
        if self.diversity_weight > 0 and (self.diversity.measure == "shannon" or self.diversity.level == "marginal"):
            raise PopeError("pessimism needs a diversity of measure 'h_m', 'gini' or 'coverage' at level 'prompt'")

    @property
    def by_group(self) -> bool:
        """Whether utilities are taken group by group."""
        return self.welfare != "mean" or self.group_shares is not None

    @property
    def linear_diversity(self) -> bool:
        """Whether D enters through surprisals held fixed: the entropy within prompts has no sums of its own."""
        return self.diversity.measure == "shannon" and self.diversity.level == "prompt"


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Sums over the prompts of a batch; those of disjoint batches add.

    Attributes
    ----------
    prompts, raw_weight, weight : Tensor, scalar
        Number of prompts; sums of their mean weights before and after truncation and rejection.
    group_units, group_weight, group_reward, group_lower : Tensor, shape (G,)
        For each group the prompts with rows of it, and the sums of their mean weights, weighted rewards and
        log-smoothed weighted rewards. One group of all rows unless utilities are taken by group.
    spread_units, spread_weight, spread_outside, spread_lower : Tensor, scalar
        Prompts with enough draws for D, and their sums of mean weights, of weight without a cluster, and of the
        log-smoothed lower variable.
    moments : Tensor, shape (degree,)
        Sums of the unbiased estimates of ``sum_c q_c^d`` of these prompts.
    masses : Tensor, shape (degree, C)
        Power sums of the cluster masses of all prompts.
    surprise : Tensor, scalar
        Sum of the mean weighted surprisals, these held fixed.
    kl : Tensor, scalar
        Sum of the mean terms of the divergence.
    reward, log_ratio : Tensor, scalar
        Sums of the mean weighted reward and log-ratio to the reference: what baselines are made of.
    """

    prompts: Tensor
    raw_weight: Tensor
    weight: Tensor
    group_units: Tensor
    group_weight: Tensor
    group_reward: Tensor
    group_lower: Tensor
    spread_units: Tensor
    spread_weight: Tensor
    spread_outside: Tensor
    spread_lower: Tensor
    moments: Tensor
    masses: Tensor
    surprise: Tensor
    kl: Tensor
    reward: Tensor
    log_ratio: Tensor

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{field.name: function(getattr(self, field.name)) for field in fields(self)})

    def __add__(self, other: Statistics) -> Statistics:
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        for name, (mine, theirs) in pairs.items():
            if mine.shape != theirs.shape:
                raise PopeError(
                    f"statistics of different shape cannot be added ({name}: {tuple(mine.shape)} and "
                    f"{tuple(theirs.shape)}). Remedy: declare Diversity(n_clusters=...) and group_shares."
                )
        return replace(self, **{name: mine + theirs for name, (mine, theirs) in pairs.items()})

    def detach(self) -> Self:
        """Return the sums without gradient."""
        return self._map(lambda tensor: tensor.detach())

    def averaged(self, other: Statistics, decay: float) -> Statistics:
        """Return the running mean ``decay * self + (1 - decay) * other``: a normalizer from earlier steps."""
        return self._map(lambda tensor: decay * tensor) + other._map(lambda tensor: (1.0 - decay) * tensor)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Value of the objective and of its parts, scalars; ``group_utility`` has shape (G,), NaN without rows."""

    value: Tensor
    utility: Tensor
    diversity: Tensor
    kl: Tensor
    group_utility: Tensor


def pope_statistics(
    batch: LossInputs,
    objective: Objective,
    *,
    rows: RowWeights | None = None,
    reference: Tensor | None = None,
    normalizer: Statistics | None = None,
) -> Statistics:
    """Compute the sums that the objective is a function of; they carry the gradient of the batch.

    Parameters
    ----------
    batch, objective
        The batch and what is maximized.
    rows : RowWeights, optional
        The batch's weights, if they are there already.
    reference : Tensor, shape (C,), optional
        Masses of a reference: the prior of plug-in surprisals, and at level ``marginal`` what surprisal refers to.
    normalizer : Statistics, optional
        Sums of the whole of which the batch is a part: its level of truncation and mean weight are used.
    """
    rows = weigh(batch, objective, normalizer) if rows is None else rows
    weight = rows.weight
    zero = weight.new_zeros(())
    raw = batch.prompt_mean(rows.log_ratio.detach().clamp(max=CEILING).exp()).sum()
    prompts = weight.new_tensor(float(batch.n_prompts))
    units, group_weight, group_reward, group_lower = _group_sums(batch, objective, weight)
    spread_units = spread_weight = outside = lower = surprise = zero
    moments, masses = zero[None], zero[None, None]
    if objective.diversity_weight > 0:
        diversity = objective.diversity
        clusters = diversity.clusters(batch)
        assert batch.cluster is not None  # clusters() has asked for it
        enough = (batch.prompt_draws() >= _draws_needed(diversity)).to(weight.dtype)
        loose = torch.where(batch.cluster < 0, weight, 0.0)
        spread_units = enough.sum()
        spread_weight = (enough * batch.prompt_mean(weight)).sum()
        outside = (enough * batch.prompt_mean(loose)).sum()
        if reference is not None and diversity.level == "marginal":
            surprise = batch.prompt_mean(weight * reference_surprisal(batch, reference, diversity)).sum()
        elif objective.linear_diversity:
            of = _mean_weight(
                objective,
                spread_weight if normalizer is None else normalizer.spread_weight,
                spread_units if normalizer is None else normalizer.spread_units,
            )
            fixed = prompt_surprisal(batch, weight, diversity, of, reference)
            surprise = (enough * batch.prompt_mean(weight * fixed)).sum()
        elif diversity.level == "prompt":
            moments = (enough * cluster_moments(batch, weight, diversity)).sum(dim=1)
        if diversity.level == "marginal":
            table = cluster_masses(batch, weight, clusters)
            masses = torch.stack([(table**k).sum(dim=0) for k in range(1, diversity.degree + 1)])
        if objective.pessimism is not None:
            variable = lower_variable(batch, weight, diversity)
            lower = (enough * torch.log1p(objective.pessimism * variable)).sum() / objective.pessimism
    return Statistics(
        prompts=prompts,
        raw_weight=raw,
        weight=batch.prompt_mean(weight).sum(),
        group_units=units,
        group_weight=group_weight,
        group_reward=group_reward,
        group_lower=group_lower,
        spread_units=spread_units,
        spread_weight=spread_weight,
        spread_outside=outside,
        spread_lower=lower,
        moments=moments,
        masses=masses,
        surprise=surprise,
        kl=_divergence(batch, objective, weight),
        reward=batch.prompt_mean(weight.detach() * batch.reward).sum(),
        log_ratio=batch.prompt_mean(weight.detach() * batch.ref_log_ratio.detach()).sum(),
    )


def evaluate_objective(total: Statistics, objective: Objective, *, referred: bool = False) -> Parts:
    """Evaluate the objective, and its parts, at the sums of a batch.

    Parameters
    ----------
    total, objective
        The sums, and what they were computed for.
    referred : bool
        Whether the surprisal at level ``marginal`` is that under a reference.

    Raises
    ------
    PopeError
        If no prompt has enough responses for the diversity asked for.
    """
    if objective.self_normalize and not bool(total.weight.detach() > 0):
        raise PopeError(
            "every response has weight 0: the policy has left the log, or all were rejected. "
            "Remedy: a lower learning rate, a larger beta, or wider bounds of the rejection."
        )
    present = total.group_units > 0
    units = total.group_units[present]
    if objective.pessimism is not None:
        low, high = objective.reward_range or (0.0, 1.0)
        by_group = low + (high - low) * total.group_lower[present] / units
    else:
        by_group = total.group_reward[present] / (total.group_weight[present] if objective.self_normalize else units)
    if objective.by_group:
        shares = None if objective.group_shares is None else by_group.new_tensor(objective.group_shares)[present]
        utility = welfare(
            by_group,
            objective.welfare,
            weights=shares,
            temperature=objective.welfare_temperature,
            floor=objective.nash_floor,
        )
    else:
        utility = by_group[0]
    kl = total.kl / (total.weight if objective.self_normalize and objective.kl != "forward" else total.prompts)
    diversity = _diversity(total, objective, referred) if objective.diversity_weight > 0 else torch.zeros_like(kl)
    value = utility + objective.diversity_weight * diversity - objective.beta * kl
    shown = torch.full_like(total.group_units, math.nan)
    shown[present] = by_group.detach()
    return Parts(value, utility, diversity, kl, shown)


def linearized(part: Statistics, whole: Statistics, objective: Objective, *, referred: bool = False) -> Tensor:
    """Return the part's share of the objective: value shares add up to J, gradients to that of J.

    Parameters
    ----------
    part : Statistics
        Sums of a part, with gradient.
    whole : Statistics
        Sums of the whole batch, or a running mean of those of earlier ones.
    objective, referred
        As in :func:`evaluate_objective`.
    """
    leaves = whole._map(lambda tensor: tensor.detach().clone().requires_grad_())
    value = evaluate_objective(leaves, objective, referred=referred).value
    names = [field.name for field in fields(Statistics)]
    slopes = torch.autograd.grad(value, [getattr(leaves, name) for name in names], allow_unused=True)
    moved = value.new_zeros(())
    for name, slope in zip(names, slopes, strict=True):
        mine = getattr(part, name)
        theirs = getattr(whole, name)
        if mine.shape != theirs.shape:
            raise PopeError(
                f"the part's {name} have shape {tuple(mine.shape)}, the normalizer's {tuple(theirs.shape)}. "
                "Remedy: declare Diversity(n_clusters=...) and group_shares."
            )
        if slope is not None:
            moved = moved + (slope * mine).sum()
    return moved - moved.detach() + value.detach() * part.prompts / whole.prompts


def weigh(batch: LossInputs, objective: Objective, normalizer: Statistics | None) -> RowWeights:
    """Weigh the rows of a batch, or of a part of one with the level of truncation of the whole."""
    tau = None
    if normalizer is not None:
        if objective.weighting.truncation == "psis":
            raise PopeError("truncation 'psis' ranks the weights of a whole batch. Remedy: backward_plan, or 'sn_tips'")
        units = objective.weighting.n_units or float(normalizer.prompts)
        tau = math.sqrt(units) * float(normalizer.raw_weight / normalizer.prompts)
    return row_weights(batch, objective.weighting, tau)


def _draws_needed(diversity: Diversity) -> int:
    return diversity.degree if diversity.level == "prompt" else 1


def _mean_weight(objective: Objective, weight: Tensor, units: Tensor) -> Tensor:
    return (weight / units.clamp(min=1.0)).detach() if objective.self_normalize else torch.ones_like(weight)


def _group_sums(batch: LossInputs, objective: Objective, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Units, weights, weighted rewards and log-smoothed weighted rewards of each group, shapes (G,)."""
    reward = batch.reward.to(weight.dtype)
    if objective.by_group:
        if batch.group is None:
            raise SchemaError(
                "welfare of groups needs the group of each rating",
                column="group",
                remedy="add the column, or use welfare='mean' without group_shares",
            )
        largest = int(batch.group.max())
        groups = largest + 1 if objective.group_shares is None else len(objective.group_shares)
        if largest >= groups:
            raise SchemaError(f"group {largest} is beyond the {groups} of group_shares", column="group")
        key = batch.prompt * groups + batch.group
    else:
        groups, key = 1, batch.prompt

    def sums(values: Tensor) -> Tensor:
        flat = torch.zeros(batch.n_prompts * groups, dtype=weight.dtype, device=weight.device)
        return flat.index_add(0, key, batch.draws * values).view(batch.n_prompts, groups)

    draws = sums(torch.ones_like(weight))
    per_unit = draws.clamp(min=1.0)
    units = (draws > 0).to(weight.dtype).sum(dim=0)
    lower = torch.zeros_like(units)
    if objective.pessimism is not None:
        low, high = objective.reward_range or (0.0, 1.0)
        scaled = (reward - low) / (high - low)
        if bool((scaled < 0).any()) or bool((scaled > 1).any()):
            raise SchemaError(f"a reward lies outside reward_range [{low}, {high}]", column="reward")
        earned = sums(weight * scaled) / per_unit
        lower = torch.log1p(objective.pessimism * earned).sum(dim=0) / objective.pessimism
    return units, (sums(weight) / per_unit).sum(dim=0), (sums(weight * reward) / per_unit).sum(dim=0), lower


def _divergence(batch: LossInputs, objective: Objective, weight: Tensor) -> Tensor:
    log_ratio = batch.ref_log_ratio
    if objective.kl == "forward":
        # Responses of the behavior policy stand for those of the reference by weights that no gradient enters.
        from_log = (log_ratio - batch.log_ratio).detach().neg().clamp(max=CEILING).exp()
        return batch.prompt_mean(-from_log * log_ratio).sum()
    term = log_ratio
    if objective.kl == "k3":
        term = log_ratio + (-log_ratio).clamp(max=_LARGEST_EXPONENT).exp() - 1.0
    return batch.prompt_mean(weight * term).sum()


def _diversity(total: Statistics, objective: Objective, referred: bool) -> Tensor:
    diversity = objective.diversity
    if float(total.spread_units.detach()) == 0:
        raise PopeError(
            f"no prompt has the {_draws_needed(diversity)} responses that diversity {diversity.measure!r} of order "
            f"{diversity.order} needs. Remedy: a lower order, measure 'gini', or level 'marginal'."
        )
    if objective.pessimism is not None:
        return total.spread_lower / total.spread_units
    self_normalize = objective.self_normalize
    if objective.linear_diversity or (referred and diversity.level == "marginal"):
        return total.surprise / (total.spread_weight if self_normalize else total.spread_units)
    mean_weight = total.spread_weight / total.spread_units if self_normalize else torch.ones_like(total.weight)
    if diversity.measure == "shannon":
        q = total.masses[0] / (total.spread_units * mean_weight)
        return -torch.xlogy(q, q).sum()
    b = diversity.coefficients
    # What is in clusters is 1 less what is not: its mean, without the noise of the mean weight.
    inside = 1.0 - total.spread_outside / (total.spread_units * mean_weight)
    if diversity.level == "prompt":
        powers = [total.moments[d - 1] / total.spread_units for d in range(2, len(b) + 1)]
    else:
        if float(total.prompts.detach()) < diversity.degree:
            raise PopeError(
                f"marginal diversity {diversity.measure!r} of order {diversity.order} needs {diversity.degree} prompts "
                f"in a batch, not {float(total.prompts.detach()):g}. Remedy: larger batches, or a RunningMarginal as "
                "reference."
            )
        e = elementary(list(total.masses))
        powers = [e[d].sum() / falling(total.prompts, d) for d in range(2, len(b) + 1)]
    value = b[0] * inside
    for d, power in enumerate(powers, start=2):
        value = value + b[d - 1] * power / mean_weight**d
    return value
