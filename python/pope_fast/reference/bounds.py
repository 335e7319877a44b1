"""Inequalities for the variance of importance-weighted estimators, on a known finite world.

Everything here takes probabilities, not samples: ``target`` and ``behavior`` are distributions over the same
finite set of responses (to one prompt), ``reward`` the reward of each response.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def kl_divergence(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    """KL(p || q) in nats; infinite if p has mass where q has none."""
    a, b = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if np.any((a > 0) & (b == 0)):
        return math.inf
    live = a > 0
    return float(np.sum(a[live] * np.log(a[live] / b[live])))


def chi_square(target: npt.ArrayLike, behavior: npt.ArrayLike) -> float:
    """chi^2(pi || pi0) = E0[w^2] - 1, which sets the effective sample size n / (1 + chi^2)."""
    p, q = np.asarray(target, dtype=np.float64), np.asarray(behavior, dtype=np.float64)
    return float(np.sum(p[q > 0] ** 2 / q[q > 0])) - 1.0


def ips_variance(target: npt.ArrayLike, behavior: npt.ArrayLike, reward: npt.ArrayLike) -> float:
    """Exact ``n Var(IPS) = E0[w^2 r^2] - U^2`` of one response per unit."""
    p, q, r = (np.asarray(x, dtype=np.float64) for x in (target, behavior, reward))
    live = q > 0
    return float(np.sum(p[live] ** 2 * r[live] ** 2 / q[live]) - np.sum(p * r) ** 2)


def jensen_lower(target: npt.ArrayLike, behavior: npt.ArrayLike, reward: npt.ArrayLike) -> float:
    """L2: ``n Var(IPS) >= exp(KL(pi || pi0) + 2 E_pi log r) - U^2``; vacuous if a reward with mass is 0."""
    p, r = np.asarray(target, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    utility = float(np.sum(p * r))
    if np.any(r[p > 0] <= 0):
        return -(utility**2)
    log_r = float(np.sum(p[p > 0] * np.log(r[p > 0])))
    return math.exp(kl_divergence(p, behavior) + 2.0 * log_r) - utility**2


def tilted_jensen_lower(target: npt.ArrayLike, behavior: npt.ArrayLike, reward: npt.ArrayLike) -> float:
    """L2 tilted by the reward: ``m2 exp(E_{pi r^2 / m2}[log w]) - U^2`` with ``m2 = E_pi r^2``."""
    p, q, r = (np.asarray(x, dtype=np.float64) for x in (target, behavior, reward))
    tilted = p * r**2
    m2 = float(tilted.sum())
    live = tilted > 0
    mean_log_w = float(np.sum(tilted[live] * np.log(p[live] / q[live]))) / m2
    return m2 * math.exp(mean_log_w) - float(np.sum(p * r)) ** 2


def event_lower(target: npt.ArrayLike, behavior: npt.ArrayLike, reward: npt.ArrayLike, event: npt.ArrayLike) -> float:
    """L3: ``n Var(IPS) >= sum_B (E_pi r 1_B)^2 / pi0(B) - U^2`` over a partition (Cauchy-Schwarz)."""
    p, q, r = (np.asarray(x, dtype=np.float64) for x in (target, behavior, reward))
    label = np.asarray(event)
    total = sum(
        float(np.sum((p * r)[label == b])) ** 2 / float(q[label == b].sum())
        for b in np.unique(label)
        if q[label == b].sum() > 0
    )
    return total - float(np.sum(p * r)) ** 2


def hammersley_chapman_robbins_lower(target: npt.ArrayLike, behavior: npt.ArrayLike) -> float:
    """L4: ``chi^2 >= (KL(pi || pi0) + KL(pi0 || pi))^2 / Var0(log w)``."""
    p, q = np.asarray(target, dtype=np.float64), np.asarray(behavior, dtype=np.float64)
    log_w = np.log(p / q)
    mean = float(np.sum(q * log_w))
    variance = float(np.sum(q * (log_w - mean) ** 2))
    jeffreys = kl_divergence(p, q) + kl_divergence(q, p)
    return jeffreys**2 / variance if variance > 0 else 0.0


def popoviciu_upper(largest_weight: float, n: int) -> float:
    """Popoviciu's *upper* bound ``M^2 / (4 n)`` on the variance of a mean of variables in [0, M]."""
    return largest_weight**2 / (4.0 * n)
