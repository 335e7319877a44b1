"""Diversity of the policy's clusters from weighted draws, and what one more response of a cluster adds to it.

A measure is ``D(q) = sum_c phi(q_c)`` of the cluster distribution q, either of each prompt (``level="prompt"``) or of
the average over prompts (``level="marginal"``). Its gradient is

    grad D = E0[ w  phi'(q_c(y))  grad log pi(y|x) ],

so ``phi'(q_c)``, the *surprisal* of the response's cluster under the current policy, is the diversity part of the
reward (for Shannon's entropy ``phi' = -log q - 1``). The polynomials

    zeta_v = sum_c q_c (1 - q_c)^v,
    Gini-Simpson = zeta_1,   H_M = sum_{v=1..M} zeta_v / v,   coverage@m = sum_{v<m} zeta_v

have exactly unbiased estimates of value and of surprisal from finitely many draws, by elementary symmetric polynomials
of the weights (U-statistics, Hoeffding 1948); H_M increases to the entropy with M and is concave, with its maximum at
equal shares, for every M. The entropy itself has none at any number of draws, so its surprisal is a smoothed plug-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pope_fast.align.losses.inputs import LossInputs
from pope_fast.align.losses.weights import Weighting, row_weights
from pope_fast.errors import PopeError, SchemaError

__all__ = [
    "Diversity",
    "RunningMarginal",
    "cluster_masses",
    "cluster_moments",
    "elementary",
    "falling",
    "lower_variable",
    "marginal_surprisal",
    "prompt_surprisal",
    "reference_surprisal",
]

Measure = Literal["h_m", "gini", "coverage", "shannon"]
DiversityLevel = Literal["prompt", "marginal"]


@dataclass(frozen=True, slots=True)
class Diversity:
    """Which diversity is rewarded.

    Attributes
    ----------
    measure : {"h_m", "gini", "coverage", "shannon"}
        ``h_m``: H_M of order M. ``gini``: Gini-Simpson. ``coverage``: expected number of distinct clusters in m draws.
        ``shannon``: the entropy, by plug-in.
    order : int
        M of ``h_m`` or m of ``coverage``.
    level : {"prompt", "marginal"}
        Diversity of the answers to one prompt, or of the average policy over prompts.
    smoothing : float
        For ``shannon``: pseudo-draws of the prior (equal shares, or the reference masses where these are given) that
        are added to those of the prompt.
    bounded : bool
        Whether surprisals are cut to the range of ``phi'`` on [0, 1]. Unbiased estimates leave it where weights are
        large; cutting them is biased and tamer.
    n_clusters : int, optional
        Number of clusters; by default one more than the largest label of the batch. Must be given where parts of a
        batch are to be added up.

    Raises
    ------
    PopeError
        If an option is unknown or out of its range.
    """

    measure: Measure = "h_m"
    order: int = 3
    level: DiversityLevel = "prompt"
    smoothing: float = 1.0
    bounded: bool = False
    n_clusters: int | None = None

    def __post_init__(self) -> None:
        for name, choice in (("measure", Measure), ("level", DiversityLevel)):
            if getattr(self, name) not in get_args(choice):
                known = ", ".join(get_args(choice))
                raise PopeError(f"{name} must be one of {known}, not {getattr(self, name)!r}")
        if not 1 <= self.order <= 8:
            raise PopeError(f"order must be 1 to 8, not {self.order}")
        if self.measure == "coverage" and self.order < 2:
            raise PopeError("coverage needs an order of at least 2: one draw always covers one cluster")
        if not self.smoothing >= 0:
            raise PopeError(f"smoothing must not be negative, got {self.smoothing}")
        if self.n_clusters is not None and self.n_clusters < 1:
            raise PopeError(f"n_clusters must be at least 1, not {self.n_clusters}")

    @property
    def zeta_weights(self) -> tuple[float, ...]:
        """Weights a_v of ``D = sum_v a_v zeta_v``, from v = 0; empty for ``shannon``."""
        if self.measure == "gini":
            return (0.0, 1.0)
        if self.measure == "h_m":
            return (0.0, *(1.0 / v for v in range(1, self.order + 1)))
        if self.measure == "coverage":
            return (1.0,) * self.order
        return ()

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Coefficients b_d of ``phi(q) = sum_d b_d q^d``, from d = 1; empty for ``shannon``."""
        a = self.zeta_weights
        return tuple((-1.0) ** s * sum(a[v] * comb(v, s) for v in range(s, len(a))) for s in range(len(a)))

    @property
    def degree(self) -> int:
        """Draws that an unbiased estimate needs: responses per prompt, or prompts at the marginal level."""
        return len(self.zeta_weights) or (2 if self.level == "prompt" else 1)

    def derivative(self, q: Tensor) -> Tensor:
        """Surprisal ``phi'(q)``; for ``shannon`` ``-log q``, which differs by a constant of no effect."""
        if self.measure == "shannon":
            return -q.log()
        result = torch.zeros_like(q)
        for d, b in reversed(list(enumerate(self.coefficients, start=1))):
            result = result * q + d * b
        return result

    def clusters(self, batch: LossInputs) -> int:
        """Return the number of clusters for a batch.

        Raises
        ------
        SchemaError
            If there is no cluster column, or a label is beyond ``n_clusters``.
        """
        if batch.cluster is None:
            raise SchemaError(
                "diversity needs clusters", column="cluster", remedy="cluster the log, or set lambda to 0"
            )
        largest = int(batch.cluster.max())
        if self.n_clusters is not None and largest >= self.n_clusters:
            raise SchemaError(f"label {largest} is beyond the {self.n_clusters} clusters declared", column="cluster")
        return self.n_clusters or max(largest + 1, 1)


def elementary(power_sums: Sequence[Tensor]) -> list[Tensor]:
    """Elementary symmetric polynomials e_0, e_1, ... from power sums ``p_k = sum_j w_j^k``, k = 1, 2, ...

    By Newton's identities, ``d e_d = sum_{k=1..d} (-1)^(k-1) e_{d-k} p_k``: all segments at once, differentiable.
    """
    e = [torch.ones_like(power_sums[0])]
    for d in range(1, len(power_sums) + 1):
        terms = [(-1.0) ** (k - 1) * e[d - k] * power_sums[k - 1] for k in range(1, d + 1)]
        e.append(torch.stack(terms).sum(dim=0) / d)
    return e


def falling(n: Tensor, d: int) -> Tensor:
    """Binomial coefficient ``n over d`` of a tensor of counts, 0 where n < d."""
    result = torch.ones_like(n)
    for k in range(d):
        result = result * (n - k).clamp(min=0.0) / (k + 1)
    return result


def _segments(batch: LossInputs, clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that have a cluster, the (prompt, cluster) segment of each, and the prompt of each segment."""
    assert batch.cluster is not None  # Diversity.clusters has asked for it
    rows = (batch.cluster >= 0).nonzero()[:, 0]
    key = batch.prompt[rows] * clusters + batch.cluster[rows]
    distinct, segment = torch.unique(key, return_inverse=True)
    return rows, segment, distinct // clusters


def _power_sums(batch: LossInputs, weight: Tensor, rows: Tensor, segment: Tensor, n: int, degree: int) -> list[Tensor]:
    w, draws = weight[rows], batch.draws[rows]
    zero = torch.zeros(n, dtype=w.dtype, device=w.device)
    return [zero.index_add(0, segment, draws * w**k) for k in range(1, degree + 1)]


def cluster_moments(batch: LossInputs, weight: Tensor, diversity: Diversity) -> Tensor:
    """Unbiased estimates ``P_d`` of ``sum_c q_c^d`` of each prompt, d = 1 to the degree, shape (degree, P).

    ``P_d = sum_c e_d(weights in c) / binom(K, d)``; 0 where the prompt has fewer than d draws.
    """
    rows, segment, owner = _segments(batch, diversity.clusters(batch))
    e = elementary(_power_sums(batch, weight, rows, segment, len(owner), diversity.degree))
    draws = batch.prompt_draws()
    moments = []
    for d in range(1, diversity.degree + 1):
        total = torch.zeros_like(draws).index_add(0, owner, e[d])
        ways = falling(draws, d)
        moments.append(torch.where(ways > 0, total / ways.clamp(min=1.0), 0.0))
    return torch.stack(moments)


def cluster_masses(batch: LossInputs, weight: Tensor, clusters: int) -> Tensor:
    """Cluster masses ``A_ic = mean_k w_ik 1{c_ik = c}`` of each prompt, shape (P, C)."""
    assert batch.cluster is not None  # Diversity.clusters has asked for it
    inside = batch.cluster >= 0
    key = batch.prompt[inside] * clusters + batch.cluster[inside]
    share = weight * batch.draws / batch.of_prompt(batch.prompt_draws())
    flat = torch.zeros(batch.n_prompts * clusters, dtype=share.dtype, device=share.device)
    return flat.index_add(0, key, share[inside]).view(batch.n_prompts, clusters)


def lower_variable(batch: LossInputs, weight: Tensor, diversity: Diversity) -> Tensor:
    """Non-negative variable of each prompt whose mean is at most D, also for truncated weights, shape (P,).

    The product form ``Z_v = sum_c S_c e_v(weights not in c) / (K binom(K - 1, v))``, summed with the weights of the
    measure: what a pessimistic objective may smooth. 0 where the prompt has too few draws.
    """
    rows, segment, owner = _segments(batch, diversity.clusters(batch))
    inside = _power_sums(batch, weight, rows, segment, len(owner), diversity.degree - 1 or 1)
    everyone = [batch.prompt_sum(weight**k)[owner] for k in range(1, len(inside) + 1)]
    e = elementary([total - part for total, part in zip(everyone, inside, strict=True)])
    draws = batch.prompt_draws()
    result = torch.zeros_like(draws)
    for v, a in enumerate(diversity.zeta_weights):
        ways = draws * falling(draws - 1.0, v)
        total = torch.zeros_like(draws).index_add(0, owner, inside[0] * e[v])
        # The polynomials of non-negative numbers are not negative; their rounding may be.
        result = result + a * torch.where(ways > 0, total.clamp(min=0.0) / ways.clamp(min=1.0), 0.0)
    return torch.where(draws >= diversity.degree, result, 0.0)


def prompt_surprisal(
    batch: LossInputs, weight: Tensor, diversity: Diversity, mean_weight: Tensor, prior: Tensor | None = None
) -> Tensor:
    """Surprisal ``phi'(q_c|x)`` of each row's cluster within its prompt under the current policy, shape (N,).

    The row itself is left out of the estimate: with it, a response would be the less surprising the larger its own
    weight, and the gradient would be biased. For the polynomials the estimate is unbiased,
    ``q^s ~ e_s(weights of the others in c) / binom(K - 1, s)``; for ``shannon`` it is ``-log`` of
    ``(S_c + a m t_c) / (S + a m)``, S_c and S sums over the others, m the mean weight, t the prior, a the smoothing.

    Parameters
    ----------
    batch, weight, diversity
        The batch, its row weights (no gradient is used) and the measure.
    mean_weight : Tensor, scalar
        Mean weight to divide by: 1, or the whole batch's where estimates are self-normalized.
    prior : Tensor, shape (C,), optional
        Reference masses to shrink to (``shannon``); equal shares by default.

    Returns
    -------
    Tensor
        0 for rows without a cluster.
    """
    clusters = diversity.clusters(batch)
    rows, segment, owner = _segments(batch, clusters)
    w = weight.detach()
    result = torch.zeros_like(w)
    assert batch.cluster is not None  # Diversity.clusters has asked for it
    if diversity.measure == "shannon":
        inside = _power_sums(batch, w, rows, segment, len(owner), 1)[0][segment] - w[rows]
        rest = batch.sum_of_others(w)[rows]
        share = prior[batch.cluster[rows]] if prior is not None else torch.full_like(inside, 1.0 / clusters)
        weight_of_prior = diversity.smoothing * mean_weight
        # Differences of sums may fall below 0 by rounding.
        mass = inside.clamp(min=0.0) + weight_of_prior * share
        result[rows] = _surprise(mass / (rest.clamp(min=0.0) + weight_of_prior))
        return result
    sums = _power_sums(batch, w, rows, segment, len(owner), diversity.degree)
    others = [total[segment] - w[rows] ** k for k, total in enumerate(sums, start=1)]
    draws = batch.of_prompt(batch.prompt_draws())[rows] - 1.0
    result[rows] = _bounded(_series(elementary(others), draws, mean_weight, diversity), diversity)
    return torch.where(batch.of_prompt(batch.prompt_draws()) >= diversity.degree, result, 0.0)


def marginal_surprisal(
    batch: LossInputs,
    weight: Tensor,
    diversity: Diversity,
    mean_weight: Tensor | None,
    totals: Tensor | None = None,
    prompts: Tensor | None = None,
) -> Tensor:
    """Surprisal of each row's cluster in the average policy, its own prompt left out, shape (N,).

    Prompts are to the average policy what draws are to a prompt: independent, with mean masses ``q_c``, so the same
    polynomials of the ``A_ic`` of the other prompts are unbiased, from one response per prompt on.

    Parameters
    ----------
    batch, weight, diversity
        The batch, its row weights (no gradient is used) and the measure.
    mean_weight : Tensor, scalar, optional
        Mean weight to divide by where estimates are self-normalized.
    totals : Tensor, shape (degree, C), optional
        Power sums of the masses over the prompts of the whole of which the batch is a part.
    prompts : Tensor, scalar, optional
        Their number.
    """
    w = weight.detach()
    masses = cluster_masses(batch, w, diversity.clusters(batch))
    own = torch.stack([masses**k for k in range(1, diversity.degree + 1)])
    others = (own.sum(dim=1) if totals is None else totals)[:, None, :] - own
    n = w.new_tensor(float(batch.n_prompts)) if prompts is None else prompts
    scale = torch.ones_like(n) if mean_weight is None else mean_weight
    if diversity.measure == "shannon":
        prior = diversity.smoothing * scale
        total = n - 1.0 if mean_weight is None else n * scale - batch.prompt_mean(w)[:, None]
        # Differences of sums may fall below 0 by rounding.
        mass = others[0].clamp(min=0.0) + prior / masses.shape[1]
        return _of_rows(batch, _surprise(mass / (total.clamp(min=0.0) + prior)))
    series = _series(elementary(list(others)), (n - 1.0).expand_as(masses), scale, diversity)
    return _of_rows(batch, _bounded(series, diversity))


def reference_surprisal(batch: LossInputs, reference: Tensor, diversity: Diversity) -> Tensor:
    """Surprisal ``phi'(t_c)`` of each row's cluster under given masses t, shape (N,).

    With t refreshed to the current policy's masses this is the minoriser of theory 2.4. With t fixed, maximizing it
    collapses onto the cluster that t holds rarest: never train on one fixed reference without a KL term to it.
    """
    table = diversity.derivative(reference.to(batch.prompt.device)).expand(batch.n_prompts, -1)
    return _of_rows(batch, table)


def _surprise(q: Tensor) -> Tensor:
    if not bool((q > 0).all()):
        raise PopeError(
            "a cluster has no mass but that of the response itself, so its surprisal is infinite. "
            "Remedy: smoothing > 0, or measure 'h_m'."
        )
    return -q.log()


def _series(e: list[Tensor], draws: Tensor, mean_weight: Tensor, diversity: Diversity) -> Tensor:
    """``sum_d d b_d e_{d-1} / binom(draws, d - 1) / mean_weight^(d-1)``: an estimate of phi'(q)."""
    result = torch.zeros_like(e[0])
    for d, b in enumerate(diversity.coefficients, start=1):
        result = result + d * b * e[d - 1] / (falling(draws, d - 1).clamp(min=1.0) * mean_weight ** (d - 1))
    return result


def _bounded(surprisal: Tensor, diversity: Diversity) -> Tensor:
    if not diversity.bounded:
        return surprisal
    ends = diversity.derivative(surprisal.new_tensor([1.0, 0.0]))
    return surprisal.clamp(min=float(ends[0]), max=float(ends[1]))


def _of_rows(batch: LossInputs, table: Tensor) -> Tensor:
    """Values of (prompt, cluster) pairs for the rows, 0 for those without a cluster."""
    assert batch.cluster is not None  # Diversity.clusters has asked for it
    inside = batch.cluster >= 0
    return torch.where(inside, table[batch.prompt, batch.cluster.clamp(min=0)], 0.0)


class RunningMarginal:
    """Cluster masses of the current policy over all prompts, followed from batch to batch.

    One batch has few prompts; the marginal diversity is about all of them. The sums ``S_c`` and ``W`` are averaged
    exponentially, so old weights, of an older policy, fade: update it after every optimizer step, and give
    :meth:`masses` to the loss as ``reference``.

    Parameters
    ----------
    n_clusters : int
        Number of clusters C.
    decay : float
        Share that stays at each update; ``1 / (1 - decay)`` batches are remembered.
    smoothing : float
        Weight of equal shares, in prompts of mean weight.
    """

    def __init__(self, n_clusters: int, decay: float = 0.9, smoothing: float = 1.0) -> None:
        if n_clusters < 1 or not 0 <= decay < 1 or not smoothing > 0:
            raise PopeError("need n_clusters >= 1, 0 <= decay < 1 and smoothing > 0")
        self.n_clusters = n_clusters
        self.decay = decay
        self.smoothing = smoothing
        self._masses = torch.zeros(n_clusters, dtype=torch.float64)
        self._weight = 0.0
        self._prompts = 0.0

    @torch.no_grad()
    def update(self, batch: LossInputs, weighting: Weighting | None = None) -> None:
        """Take in a batch scored by the current policy."""
        Diversity(n_clusters=self.n_clusters).clusters(batch)
        weight = row_weights(batch, weighting or Weighting()).weight
        masses = cluster_masses(batch, weight, self.n_clusters).sum(dim=0)
        self._masses = self.decay * self._masses + masses.cpu().double()
        self._weight = self.decay * self._weight + float(batch.prompt_mean(weight).sum())
        self._prompts = self.decay * self._prompts + batch.n_prompts

    def masses(self) -> Tensor:
        """Return the current masses, shape (C,), positive; equal shares before the first update."""
        prior = self.smoothing * (self._weight / self._prompts if self._weight > 0 else 1.0)
        return (self._masses + prior / self.n_clusters) / (self._weight + prior)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"masses": self._masses.clone(), "weight": self._weight, "prompts": self._prompts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        if tuple(state["masses"].shape) != (self.n_clusters,):
            raise PopeError(f"the state has {len(state['masses'])} clusters, not {self.n_clusters}")
        self._masses = state["masses"].clone().double()
        self._weight, self._prompts = float(state["weight"]), float(state["prompts"])
