"""Intervals for a utility in [0, 1], from the sharpest to the most certain."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pope_fast.reference._types import FloatArray, Interval, PointEstimate
from pope_fast.reference.special import student_t_quantile
from pope_fast.reference.units import unit_means
from pope_fast.reference.utility import sn_tips
from pope_fast.reference.weights import importance_weights, shifted_weights, truncate, truncation_level

LAMBDAS: FloatArray = np.geomspace(1e-3, 3.0, 24)
THETAS: FloatArray = np.linspace(0.05, 0.95, 10)


def delta(estimate: PointEstimate, level: float = 0.95) -> Interval:
    """Delta method with Student's t on ``n - 1`` degrees of freedom."""
    half = student_t_quantile(0.5 + level / 2.0, len(estimate.influence) - 1) * estimate.standard_error
    return Interval(estimate.value - half, estimate.value + half)


def lost_mass(logw: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None) -> float:
    """Share of the weight that truncation at ``sqrt(n) mean A`` takes away, ``1 - sum A~ / sum A``."""
    x = np.asarray(logw, dtype=np.float64)
    x = x - np.max(x)
    kept = unit_means(truncate(x, truncation_level(x, unit, count)), unit, count)
    return float(1.0 - kept.sum() / unit_means(shifted_weights(logw), unit, count).sum())


def worst_case_tail(
    logw: npt.ArrayLike,
    reward: npt.ArrayLike,
    unit: npt.ArrayLike,
    count: npt.ArrayLike | None = None,
    *,
    level: float = 0.95,
) -> Interval:
    """Default: the SN-TIPS interval widened by all that the truncated mass m could have earned.

    ``[(v - h)(1 - m), (v + h)(1 - m) + m]`` with h the delta half-width; rewards in [0, 1].
    """
    low, high = delta(sn_tips(logw, reward, unit, count), level)
    m = lost_mass(logw, unit, count)
    return Interval(low * (1.0 - m), high * (1.0 - m) + m)


def one_sided_t(per_unit: npt.ArrayLike, alpha: float) -> float:
    """Lower limit ``mean - t_{n-1, 1-alpha} se`` of the mean over units."""
    x = np.asarray(per_unit, dtype=np.float64)
    se = float(np.std(x, ddof=1)) / math.sqrt(len(x))
    return float(np.mean(x)) - student_t_quantile(1.0 - alpha, len(x) - 1) * se


def mirrored_truncated_t(
    logw: npt.ArrayLike,
    reward: npt.ArrayLike,
    unit: npt.ArrayLike,
    count: npt.ArrayLike | None = None,
    *,
    level: float = 0.95,
    tau: float | None = None,
) -> Interval:
    """Robust: lower limits for the truncated means of ``r`` and of ``1 - r``, the second mirrored.

    Truncation at ``sqrt n`` only lowers both means (``E0[min(w, tau) f] <= E_pi f`` for f >= 0), so neither
    overlap nor common support is assumed; rewards in [0, 1].
    """
    tau = truncation_level(logw, unit, count, relative=False) if tau is None else tau
    w, r = truncate(logw, tau), np.asarray(reward, dtype=np.float64)
    alpha = (1.0 - level) / 2.0
    low = one_sided_t(unit_means(w * r, unit, count), alpha)
    high = 1.0 - one_sided_t(unit_means(w * (1.0 - r), unit, count), alpha)
    return Interval(low, high)


def floor_mantissa(x: npt.ArrayLike, bits: int = 8) -> FloatArray:
    """Round non-negative numbers down to ``bits`` fraction bits; below 2^-40 is 0, above 2^40 is 2^40.

    Flooring turns the sums over units into an integer histogram that no order of addition can change, and
    it only lowers a lower bound or a betting martingale, so their validity is kept.
    """
    values = np.asarray(x, dtype=np.float64)
    mantissa, exponent = np.frexp(np.minimum(values, 2.0**40))
    scale = 2.0 ** (bits + 1)
    floored = np.ldexp(np.floor(mantissa * scale) / scale, exponent)
    return np.where(values < 2.0**-40, 0.0, floored)


def log_smoothing_lower(per_unit: npt.ArrayLike, alpha: float, *, floored: bool = True) -> float:
    """Certified lower limit of the mean of non-negative variables, any tails, any sample size.

    ``max_j (exp(L_j / n - log(J / alpha) / n) - 1) / lambda_j`` with ``L_j = sum_i log(1 + lambda_j X_i)``:
    Markov's inequality on ``prod_i (1 + lambda_j X_i) / (1 + lambda_j mu)``, a test martingale, and a union
    over the grid (after Sakhi et al. 2024).  Holds at any stopping time by Ville's inequality.
    """
    x = floor_mantissa(per_unit) if floored else np.asarray(per_unit, dtype=np.float64)
    n = len(x)
    price = math.log(len(LAMBDAS) / alpha)
    growth = [(step, float(np.sum(np.log1p(step * x))) - price) for step in map(float, LAMBDAS)]
    return max(math.expm1(log_wealth / n) / step for step, log_wealth in growth)


def log_smoothing(
    logw: npt.ArrayLike,
    reward: npt.ArrayLike,
    unit: npt.ArrayLike,
    count: npt.ArrayLike | None = None,
    *,
    level: float = 0.95,
    floored: bool = True,
) -> Interval:
    """Certified: log-smoothing lower limits for ``r`` and, mirrored, for ``1 - r``; rewards in [0, 1]."""
    w, r = importance_weights(logw), np.asarray(reward, dtype=np.float64)
    alpha = (1.0 - level) / 2.0
    low = log_smoothing_lower(unit_means(w * r, unit, count), alpha, floored=floored)
    high = 1.0 - log_smoothing_lower(unit_means(w * (1.0 - r), unit, count), alpha, floored=floored)
    return Interval(low, high)


def mean_weight_e_value(per_unit_weight: npt.ArrayLike, *, floored: bool = True) -> float:
    """Bet against ``E w <= 1``: ``mean_j prod_i (1 + theta_j (A_i - 1))`` over ten bets theta in (0, 1).

    Under valid log-probabilities its mean is at most 1, so ``e > 1 / alpha`` happens with chance at most
    alpha at any stopping time (Ville).  Only the upper side is tested: a mean below 1 is missing mass, not
    a contradiction.
    """
    a = np.asarray(per_unit_weight, dtype=np.float64)
    a = floor_mantissa(a) if floored else a
    logs = np.array([float(np.sum(np.log1p(theta * (a - 1.0)))) for theta in THETAS.tolist()])
    top = float(logs.max())
    log_mean = top + math.log(float(np.mean(np.exp(logs - top))))
    return math.exp(log_mean) if log_mean < 709.0 else math.inf


def cross_entropy_upper(
    logw: npt.ArrayLike,
    surprisal: npt.ArrayLike,
    largest: float,
    unit: npt.ArrayLike,
    count: npt.ArrayLike | None = None,
    *,
    alpha: float = 0.025,
) -> float:
    """Certified upper limit of the cross-entropy ``E_pi[-log t(c|x)]`` against a fixed reference t.

    Parameters
    ----------
    surprisal : array_like
        ``-log t(c)`` of each row, in ``[0, largest]``.
    largest : float
        Largest surprisal that *any* cluster could have, seen or not.
    """
    missing = importance_weights(logw) * (1.0 - np.asarray(surprisal, dtype=np.float64) / largest)
    return largest * (1.0 - log_smoothing_lower(unit_means(missing, unit, count), alpha))


def paired_difference(a: PointEstimate, b: PointEstimate) -> PointEstimate:
    """Difference ``a - b`` of two policies on the same units: the influence functions subtract."""
    return PointEstimate(a.value - b.value, a.influence - b.influence)
