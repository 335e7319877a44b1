"""The loss of this library: utility and diversity that the log says the policy has, less its divergence."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from pope_fast.align.losses.advantages import mean_of_others
from pope_fast.align.losses.diagnostics import numbers, weight_diagnostics
from pope_fast.align.losses.diversity import (
    cluster_masses,
    cluster_moments,
    elementary,
    falling,
    marginal_surprisal,
    prompt_surprisal,
    reference_surprisal,
)
from pope_fast.align.losses.inputs import LossInputs
from pope_fast.align.losses.objective import (
    Objective,
    Parts,
    Statistics,
    evaluate_objective,
    linearized,
    pope_statistics,
    weigh,
)
from pope_fast.align.losses.weights import RowWeights, score_weights
from pope_fast.errors import PopeError, SchemaError

__all__ = ["pope_loss"]

Form = Literal["score", "direct"]
Baseline = Literal["loo", "mean", "value", "none"]


def pope_loss(
    batch: LossInputs,
    objective: Objective | None = None,
    *,
    form: Form = "score",
    baseline: Baseline = "loo",
    reference: Tensor | None = None,
    normalizer: Statistics | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Maximize ``J = U + lambda D - beta KL`` of the policy, estimated from the log.

    Parameters
    ----------
    batch : LossInputs
        Whole prompts; with ``diversity_weight > 0`` with clusters.
    objective : Objective, optional
        lambda, beta, weights, diversity, welfare; ``Objective()`` by default.
    form : {"score", "direct"}
        ``direct``: minus the estimate of J, differentiated through the weights. A truncated weight is constant, so a
        response that has left the range is no longer pulled. ``score``: ``-sg[w] A log pi(y|x)`` with w the truncated
        weight and the unified reward ``A = (r - baseline) + lambda (s - baseline)``, s the surprisal of the response's
        cluster under the current policy, less ``beta log pi`` (or, with k1 and k3, ``- beta (l - baseline)`` in A,
        ``l = log pi - log pi_ref``); truncated responses keep their pull. Without truncation, baseline and
        self-normalization the two gradients are equal.
    baseline : {"loo", "mean", "value", "none"}
        Of the score form. ``loo``: means over the other responses to the prompt for r and l, over other prompts for s:
        nothing that depends on the response itself, so the gradient keeps its mean. ``mean``: estimates of the batch,
        which makes the gradient that of the self-normalized estimate. ``value``: ``batch.value`` for r, else as
        ``loo``.
    reference : Tensor, shape (C,), optional
        Cluster masses, as of :meth:`RunningMarginal.masses`: the prior of ``shannon`` within prompts; at level
        ``marginal`` what surprisal refers to, in place of the other prompts of the batch. Must follow the policy.
    normalizer : Statistics, optional
        Sums of the whole batch of which this one is a part (:func:`pope_statistics` of all of it), or a running mean of
        earlier ones: losses of the parts then add up to the loss of the whole, with the same gradient.

    Returns
    -------
    loss : Tensor, scalar
        Its value is -J (or the part's share of it), whatever the form; its gradient is the form's.
    metrics : dict of str to float
        ``value``, ``utility``, ``diversity``, ``kl`` (estimates from this batch), ``loss``, those of
        :func:`weight_diagnostics`, and with groups ``utility/group0``, ...

    Raises
    ------
    SchemaError
        If a column that is needed is not there.
    PopeError
        If options do not go together, or no prompt has enough responses.

    Notes
    -----
    Source: the programme of POPE (arXiv 2509.19333) as stated in this library's theory; score form as REINFORCE
    (Williams 1992) with importance weights, truncated as in CISPO (MiniMax 2025).
    """
    objective = Objective() if objective is None else objective
    if form not in get_args(Form) or baseline not in get_args(Baseline):
        raise PopeError(f"form is 'score' or 'direct' and baseline one of {', '.join(get_args(Baseline))}")
    _check(batch, objective, form, reference)
    if reference is not None:
        reference = reference.to(batch.prompt.device)
    rows = weigh(batch, objective, normalizer)
    statistics = pope_statistics(batch, objective, rows=rows, reference=reference, normalizer=normalizer)
    referred = reference is not None
    whole = statistics if normalizer is None else normalizer
    parts = evaluate_objective(whole.detach(), objective, referred=referred)
    if form == "direct":
        gain = (
            evaluate_objective(statistics, objective, referred=referred).value
            if normalizer is None
            else linearized(statistics, whole, objective, referred=referred)
        )
        loss = -gain
    else:
        surrogate = _surrogate(batch, objective, rows, whole.detach(), baseline, reference, normalizer is not None)
        share = batch.n_prompts / float(whole.prompts)
        loss = surrogate - surrogate.detach() - share * parts.value.detach()
    if not bool(torch.isfinite(loss)):
        raise PopeError("the loss is not finite. Remedy: look at mean_log_weight; lower the step, or raise beta.")
    return loss, _metrics(batch, objective, rows, parts, loss)


def _check(batch: LossInputs, objective: Objective, form: Form, reference: Tensor | None) -> None:
    weighting = objective.weighting
    if form == "direct":
        if weighting.level == "token":
            raise PopeError("the direct form has no weights of tokens. Remedy: form='score', or loss 'token_ratio'")
        if weighting.taper not in ("none", "ppo") or weighting.reject_only == "negative":
            raise PopeError("the direct form has no advantages to taper or reject by. Remedy: form='score'")
    elif objective.pessimism is not None:
        raise PopeError("pessimism smooths the estimates themselves. Remedy: form='direct'")
    if reference is not None:
        if objective.diversity_weight == 0:
            raise PopeError("reference masses are of no use without diversity")
        clusters = objective.diversity.clusters(batch)
        if tuple(reference.shape) != (clusters,):
            raise PopeError(
                f"reference has shape {tuple(reference.shape)}, but there are {clusters} clusters. "
                "Remedy: declare Diversity(n_clusters=...)."
            )
        if not bool((reference > 0).all()):
            raise PopeError("reference masses must be positive. Remedy: smooth them")


def _surrogate(
    batch: LossInputs,
    objective: Objective,
    rows: RowWeights,
    whole: Statistics,
    baseline: Baseline,
    reference: Tensor | None,
    part: bool,
) -> Tensor:
    """``-mean sg[w] A log pi`` over the prompts of the whole."""
    advantage = _utility_part(batch, objective, rows, whole, baseline)
    if objective.diversity_weight > 0:
        advantage = advantage + objective.diversity_weight * _diversity_part(
            batch, objective, rows, whole, baseline, reference, part
        )
    mean = _scale(objective, whole.weight / whole.prompts)
    if objective.beta > 0 and objective.kl != "forward":
        log_ratio = batch.ref_log_ratio.detach()
        advantage = (
            advantage
            - objective.beta * (log_ratio - _level(batch, rows, log_ratio, whole.log_ratio, whole, baseline)) / mean
        )
    weight = score_weights(batch, rows, objective.weighting, advantage)
    if weight.dim() == 2:
        if batch.token_logprobs is None or batch.mask is None:
            raise SchemaError("level 'token' needs the log-probabilities of tokens", column="token_logprobs")
        tokens = torch.where(batch.mask.bool(), batch.token_logprobs.to(weight.dtype), 0.0)
        score = (weight * tokens).sum(dim=1)
    else:
        score = weight * batch.logprob.to(weight.dtype)
    surrogate = -batch.prompt_mean(advantage * score).sum() / whole.prompts
    if objective.beta > 0 and objective.kl == "forward":
        from_log = (batch.ref_log_ratio - batch.log_ratio).detach().neg().clamp(max=100.0).exp()
        surrogate = surrogate - objective.beta * batch.prompt_mean(from_log * batch.logprob.to(weight.dtype)).sum() / (
            whole.prompts
        )
    return surrogate


def _scale(objective: Objective, mean_weight: Tensor) -> Tensor:
    """Return what rows of the score form are divided by; a taper sets the scale of its weights itself."""
    if (
        objective.self_normalize
        and objective.weighting.taper in ("none", "ppo")
        and objective.weighting.level != "token"
    ):
        return mean_weight
    return torch.ones_like(mean_weight)


def _level(
    batch: LossInputs, rows: RowWeights, values: Tensor, total: Tensor, whole: Statistics, baseline: Baseline
) -> Tensor:
    """Baseline of values whose weighted sum over the whole is ``total``."""
    if baseline == "none":
        return torch.zeros_like(values)
    if baseline == "mean":
        return (total / whole.weight).expand_as(values)
    return mean_of_others(batch, rows.weight, values, whole=(whole.weight, total))


def _utility_part(
    batch: LossInputs, objective: Objective, rows: RowWeights, whole: Statistics, baseline: Baseline
) -> Tensor:
    """Slope of U in each row's weighted reward, times its centered reward, in units of 1 / (P K_i)."""
    reward = batch.reward.to(rows.weight.dtype)
    if baseline == "value":
        if batch.value is None:
            raise SchemaError("baseline 'value' needs V(x)", column="value", remedy="give value, or use baseline 'loo'")
        centered = reward - batch.value.to(reward.dtype).detach()
    elif baseline == "mean" and objective.self_normalize:
        utility = whole.group_reward / whole.group_weight
        centered = reward - (utility[batch.group] if objective.by_group and batch.group is not None else utility[0])
    else:
        centered = reward - _level(batch, rows, reward, whole.reward, whole, baseline)
    mean = _scale(objective, whole.group_weight / whole.group_units.clamp(min=1.0))
    if not objective.by_group or batch.group is None:
        return centered / mean[0]
    leaf = whole.group_reward.clone().requires_grad_()
    utility = evaluate_objective(replace(whole, group_reward=leaf), objective, referred=True).utility
    slope = torch.autograd.grad(utility, leaf)[0]
    # The slope is per unit sum of the group's weighted rewards: undo its self-normalization, which _scale settles.
    if objective.self_normalize:
        slope = slope * whole.group_weight / whole.group_units.clamp(min=1.0)
    groups = len(slope)
    key = batch.prompt * groups + batch.group
    flat = torch.zeros(batch.n_prompts * groups, dtype=reward.dtype, device=reward.device)
    of_group = flat.index_add(0, key, batch.draws)[key]
    of_prompt = batch.of_prompt(batch.prompt_draws())
    return centered * slope[batch.group] * whole.prompts * (of_prompt / of_group) / mean[batch.group]


def _diversity_part(
    batch: LossInputs,
    objective: Objective,
    rows: RowWeights,
    whole: Statistics,
    baseline: Baseline,
    reference: Tensor | None,
    part: bool,
) -> Tensor:
    """Centered surprisal of each row's cluster, in units of 1 / (P K_i); 0 in prompts with too few responses."""
    diversity = objective.diversity
    weight = rows.weight.detach()
    mean = whole.spread_weight / whole.spread_units.clamp(min=1.0)
    divisor = mean if objective.self_normalize else torch.ones_like(mean)
    usable = torch.ones_like(weight)
    if diversity.level == "prompt":
        surprisal = prompt_surprisal(batch, weight, diversity, divisor, reference)
        usable = batch.of_prompt((batch.prompt_draws() >= diversity.degree).to(weight.dtype))
    elif reference is not None:
        surprisal = reference_surprisal(batch, reference, diversity)
    else:
        totals = whole.masses if part else None
        surprisal = marginal_surprisal(
            batch,
            weight,
            diversity,
            divisor if objective.self_normalize else None,
            totals,
            whole.prompts if part else None,
        )
    level = torch.zeros_like(surprisal)
    if baseline != "none":
        level = _diversity_level(batch, objective, rows, whole, divisor, surprisal, reference)
    centered = torch.where(usable > 0, surprisal - level, 0.0)
    return centered * whole.prompts / whole.spread_units.clamp(min=1.0) / _scale(objective, mean)


def _diversity_level(
    batch: LossInputs,
    objective: Objective,
    rows: RowWeights,
    whole: Statistics,
    divisor: Tensor,
    surprisal: Tensor,
    reference: Tensor | None,
) -> Tensor:
    """Mean surprisal of the policy, ``sum_c q_c phi'(q_c)``, from other prompts than the row's own."""
    diversity = objective.diversity
    weight = rows.weight.detach()
    enough = torch.ones(batch.n_prompts, dtype=weight.dtype, device=weight.device)
    if diversity.level == "prompt":
        enough = (batch.prompt_draws() >= diversity.degree).to(weight.dtype)
    if objective.linear_diversity or (reference is not None and diversity.level == "marginal"):
        used = weight * batch.of_prompt(enough)
        return mean_of_others(batch, used, surprisal, own_prompt=False, whole=(whole.spread_weight, whole.surprise))
    if float(whole.spread_units) - 1 < (1 if diversity.level == "prompt" else diversity.degree):
        return torch.zeros_like(weight)
    if diversity.level == "prompt":
        own = enough * cluster_moments(batch, weight, diversity)
        means = (whole.moments[:, None] - own) / (whole.spread_units - enough).clamp(min=1.0)
    else:
        masses = cluster_masses(batch, weight, diversity.clusters(batch))
        others = [whole.masses[k - 1] - masses**k for k in range(1, diversity.degree + 1)]
        if diversity.measure == "shannon":
            q = others[0].clamp(min=0.0) / (whole.weight - batch.prompt_mean(weight))[:, None].clamp(min=1e-30)
            return batch.of_prompt(-torch.xlogy(q, q).sum(dim=1))
        e = elementary(others)
        means = torch.stack([e[d].sum(dim=1) / falling(whole.prompts - 1.0, d) for d in range(1, diversity.degree + 1)])
    b = diversity.coefficients
    level = torch.full_like(weight, b[0])
    for d in range(2, len(b) + 1):
        level = level + d * b[d - 1] * batch.of_prompt(means[d - 1]) / divisor**d
    return level


def _metrics(batch: LossInputs, objective: Objective, rows: RowWeights, parts: Parts, loss: Tensor) -> dict[str, float]:
    metrics: dict[str, Tensor | float] = {
        "loss": loss,
        "value": parts.value,
        "utility": parts.utility,
        "kl": parts.kl,
        **weight_diagnostics(batch, rows),
    }
    if objective.diversity_weight > 0:
        metrics["diversity"] = parts.diversity
    if objective.by_group:
        metrics |= {f"utility/group{g}": value for g, value in enumerate(parts.group_utility)}
    return numbers(metrics)
