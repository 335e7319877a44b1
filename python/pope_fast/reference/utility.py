"""Point estimators of the utility U = E_x E_{y ~ pi} r, each with its influence function over units.

Unit sums: ``A_i = mean_k w_ik`` and ``N_i = mean_k w_ik r_ik``; a tilde marks truncated weights.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pope_fast.reference._types import FloatArray, PointEstimate
from pope_fast.reference.tails import smoothed_log_weights
from pope_fast.reference.units import counts_or_ones, unit_codes, unit_means
from pope_fast.reference.weights import importance_weights, shifted_weights, truncate, truncation_level


def _average(per_unit: FloatArray) -> PointEstimate:
    """Plain mean over units."""
    mean = float(np.mean(per_unit))
    return PointEstimate(mean, per_unit - mean)


def _ratio(numerator: FloatArray, denominator: FloatArray) -> PointEstimate:
    """Ratio of two means over units; influence ``(N_i - v A_i) / mean A`` (delta method)."""
    value = float(np.sum(numerator) / np.sum(denominator))
    return PointEstimate(value, (numerator - value * denominator) / np.mean(denominator))


def _numerator(w: FloatArray, reward: npt.ArrayLike, unit: npt.ArrayLike, m: npt.ArrayLike | None) -> FloatArray:
    return unit_means(w * np.asarray(reward, dtype=np.float64), unit, m)


def rescale(reward: npt.ArrayLike, low: float, high: float) -> FloatArray:
    """Rewards mapped from ``[low, high]`` to [0, 1]."""
    return (np.asarray(reward, dtype=np.float64) - low) / (high - low)


def behavior_mean(reward: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None) -> PointEstimate:
    """Mean reward of the log: the value of the behavior policy."""
    return _average(unit_means(reward, unit, count))


def ips(
    logw: npt.ArrayLike, reward: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None
) -> PointEstimate:
    """Inverse propensity score, ``mean_i N_i``: unbiased with common support."""
    return _average(_numerator(importance_weights(logw), reward, unit, count))


def snips(
    logw: npt.ArrayLike, reward: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None
) -> PointEstimate:
    """Self-normalized IPS, ``sum_i N_i / sum_i A_i`` (Swaminathan & Joachims 2015)."""
    w = shifted_weights(logw)
    return _ratio(_numerator(w, reward, unit, count), unit_means(w, unit, count))


def tips(
    logw: npt.ArrayLike,
    reward: npt.ArrayLike,
    unit: npt.ArrayLike,
    count: npt.ArrayLike | None = None,
    *,
    tau: float | None = None,
) -> PointEstimate:
    """Average truncated weighted rewards, ``mean_i mean_k min(w, tau) r``; ``tau = sqrt(n) mean A``."""
    tau = truncation_level(logw, unit, count) if tau is None else tau
    return _average(_numerator(truncate(logw, tau), reward, unit, count))


def sn_tips(
    logw: npt.ArrayLike,
    reward: npt.ArrayLike,
    unit: npt.ArrayLike,
    count: npt.ArrayLike | None = None,
    *,
    tau: float | None = None,
) -> PointEstimate:
    """Self-normalized truncated IPS, the default; its influence takes ``tau = sqrt(n) mean A`` as fixed."""
    if tau is None:
        # Scale-free: divide weights and level by the largest weight, so that no log-ratio can overflow.
        logw = np.asarray(logw, dtype=np.float64)
        logw = logw - np.max(logw)
        tau = truncation_level(logw, unit, count)
    wt = truncate(logw, tau)
    return _ratio(_numerator(wt, reward, unit, count), unit_means(wt, unit, count))


def control_variate(
    logw: npt.ArrayLike, reward: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None
) -> PointEstimate:
    """IPS with the mean weight as control variate: ``mean N - b (mean A - 1)``, ``b = Cov(N, A) / Var A``."""
    w = importance_weights(logw)
    a, numerator = unit_means(w, unit, count), _numerator(w, reward, unit, count)
    variance = float(np.var(a))
    b = float(np.mean((numerator - numerator.mean()) * (a - a.mean()))) / variance if variance > 0 else 0.0
    return _average(numerator - b * (a - 1.0))


def baseline_dr(
    logw: npt.ArrayLike, reward: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None
) -> PointEstimate:
    """Doubly robust with the leave-one-out mean reward of the unit as prompt baseline.

    Draw ``k`` is corrected by ``b_{-k} = mean_{j != k} r_j``, which is independent of ``w_k`` given the
    prompt, so ``mean_k [w_k (r_k - b_{-k}) + b_{-k}]`` is exactly unbiased.  A unit with one draw has no
    baseline: plain IPS.
    """
    w, r = importance_weights(logw), np.asarray(reward, dtype=np.float64)
    m = counts_or_ones(count, len(w))
    identifiers, codes = unit_codes(unit)
    size = np.bincount(codes, m, minlength=len(identifiers))[codes]
    total = np.bincount(codes, m * r, minlength=len(identifiers))[codes]
    # The other copies of a row of multiplicity m are draws like any other: only one draw is left out.
    baseline = np.where(size > 1, (total - r) / np.maximum(size - 1.0, 1.0), 0.0)
    return _average(unit_means(w * (r - baseline) + baseline, unit, count))


def psis(
    logw: npt.ArrayLike, reward: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None
) -> PointEstimate:
    """Self-normalized IPS with Pareto-smoothed weights (Vehtari, Simpson, Gelman, Yao & Gabry 2024)."""
    w = shifted_weights(smoothed_log_weights(logw, count))
    return _ratio(_numerator(w, reward, unit, count), unit_means(w, unit, count))


def direct_method(
    baseline_mean: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None
) -> PointEstimate:
    """Direct method: mean over units of the reward model's mean under the target policy."""
    return _average(unit_means(baseline_mean, unit, count))


def doubly_robust(
    logw: npt.ArrayLike,
    reward: npt.ArrayLike,
    baseline: npt.ArrayLike,
    baseline_mean: npt.ArrayLike,
    unit: npt.ArrayLike,
    count: npt.ArrayLike | None = None,
) -> PointEstimate:
    """Doubly robust, ``mean_i [mean_k w (r - f) + E_pi f]`` (Dudik, Langford & Li 2011)."""
    residual = np.asarray(reward, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    correction = _numerator(importance_weights(logw), residual, unit, count)
    return _average(correction + unit_means(baseline_mean, unit, count))


def self_normalized_dr(
    logw: npt.ArrayLike,
    reward: npt.ArrayLike,
    baseline: npt.ArrayLike,
    baseline_mean: npt.ArrayLike,
    unit: npt.ArrayLike,
    count: npt.ArrayLike | None = None,
) -> PointEstimate:
    """Doubly robust with a self-normalized correction (Thomas & Brunskill 2016)."""
    residual = np.asarray(reward, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    correction = snips(logw, residual, unit, count)
    model = direct_method(baseline_mean, unit, count)
    return PointEstimate(correction.value + model.value, correction.influence + model.influence)
