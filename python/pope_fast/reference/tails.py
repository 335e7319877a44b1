"""The tail of the weights: generalized Pareto fit, k-hat and Pareto smoothing."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pope_fast.reference._types import FloatArray
from pope_fast.reference.units import expand_draws


def fit_generalized_pareto(exceedances: npt.ArrayLike) -> tuple[float, float]:
    """Shape ``k`` and scale ``sigma`` of a generalized Pareto distribution.

    The profile-likelihood posterior mean of Zhang & Stephens (2009) with their prior on ``b = -k / sigma``
    and, on ``k``, the weak prior of Vehtari et al. (2024): ten observations' worth of k = 0.5.

    Parameters
    ----------
    exceedances : array_like, shape (n,)
        Positive exceedances over the threshold, in any order.
    """
    y = np.sort(np.asarray(exceedances, dtype=np.float64))
    n = len(y)
    grid_size = 30 + math.isqrt(n)
    j = np.arange(1, grid_size + 1)
    first_quartile = y[math.floor(n / 4 + 0.5) - 1]
    # Positive sign convention of Zhang & Stephens: theta_j = -k_j / sigma_j.
    theta = 1.0 / y[-1] + (1.0 - np.sqrt(grid_size / (j - 0.5))) / (3.0 * first_quartile)
    k_of_theta = np.array([np.mean(np.log1p(-t * y)) for t in theta])
    log_likelihood = n * (np.log(-theta / k_of_theta) - k_of_theta - 1.0)
    with np.errstate(over="ignore"):  # A negligible grid point: its weight 1 / inf is 0.
        weight = np.array([1.0 / np.sum(np.exp(log_likelihood - value)) for value in log_likelihood])
    keep = weight >= 10 * np.finfo(np.float64).eps
    theta_hat = float(np.sum(theta[keep] * weight[keep]) / np.sum(weight[keep]))
    k = float(np.mean(np.log1p(-theta_hat * y)))
    sigma = -k / theta_hat
    return (n * k + 10 * 0.5) / (n + 10), sigma


def generalized_pareto_quantile(probability: npt.ArrayLike, k: float, sigma: float) -> FloatArray:
    """Quantiles of the generalized Pareto distribution, ``sigma ((1 - p)^-k - 1) / k``."""
    log_survival = np.log1p(-np.asarray(probability, dtype=np.float64))
    if abs(k) < np.finfo(np.float64).eps:
        return -sigma * log_survival
    return np.asarray(sigma * np.expm1(-k * log_survival) / k, dtype=np.float64)


def tail_size(n_draws: int) -> int:
    """Count the largest weights that the fit may use, ``ceil(min(n / 5, 3 sqrt n))``."""
    return math.ceil(min(n_draws / 5, 3 * math.sqrt(n_draws)))


def _tail(logw: FloatArray) -> tuple[npt.NDArray[np.int64], float]:
    """Return the indices of the tail, by increasing weight, and the cutoff relative to the largest weight."""
    order = np.argsort(logw, kind="stable")
    cutoff = max(float(logw[order[-tail_size(len(logw)) - 1]]), math.log(np.finfo(np.float64).tiny))
    # Strictly above: ties with the cutoff are body, so the tail may be shorter than tail_size.
    return order[logw[order] > cutoff], cutoff


def _draws(logw: npt.ArrayLike, count: npt.ArrayLike | None) -> FloatArray:
    x = np.asarray(logw, dtype=np.float64)
    if count is not None:
        (x,) = expand_draws(count, x)
    return x - np.max(x)


def pareto_k(logw: npt.ArrayLike, count: npt.ArrayLike | None = None) -> float:
    """Pareto k-hat of the row weights; ``inf`` if fewer than five exceed the cutoff (as ArviZ does)."""
    x = _draws(logw, count)
    if len(x) < 2:
        return math.inf
    tail, cutoff = _tail(x)
    if len(tail) <= 4:
        return math.inf
    return fit_generalized_pareto(np.exp(x[tail]) - math.exp(cutoff))[0]


def pareto_k_log_p(logw: npt.ArrayLike, count: npt.ArrayLike | None = None) -> float:
    """Log of the chance that the largest draw of the fitted tail is no larger than the largest weight there is.

    ``M log F(y_max)`` with F the fitted generalized Pareto distribution of the M exceedances y.  Where the weights do
    have such a tail it is about the log of a uniform number, and so rarely below -7.  A mixture of many weights near 1
    and some near 8 is taken for a tail of index 2, whose largest draw would be in the thousands: there it is far below.
    0 if fewer than five weights exceed the cutoff.
    """
    x = _draws(logw, count)
    tail, cutoff = _tail(x) if len(x) >= 2 else (np.arange(0), 0.0)
    if len(tail) <= 4:
        return 0.0
    exceedances = np.exp(x[tail]) - math.exp(cutoff)
    k, sigma = fit_generalized_pareto(exceedances)
    reach = 1.0 + k * float(exceedances.max()) / sigma
    if reach <= 0.0:
        return 0.0
    log_above = -float(exceedances.max()) / sigma if k == 0.0 else -math.log(reach) / k
    return len(tail) * math.log1p(-math.exp(log_above))


def smoothed_log_weights(logw: npt.ArrayLike, count: npt.ArrayLike | None = None) -> FloatArray:
    """Pareto-smoothed log-weights, relative to the largest raw one, one per row.

    The tail is replaced by the expected order statistics of the fitted distribution and capped at the
    largest raw weight.  Tied draws, and so the draws that one row of multiplicity m stands for, share the
    mean of their smoothed weights: otherwise the estimate would depend on the order of the rows.
    """
    x = _draws(logw, count)
    n_rows = len(np.asarray(logw))
    row = np.arange(n_rows)
    if count is not None:
        (row,) = expand_draws(count, row)
    if len(x) >= 2:
        tail, cutoff = _tail(x)
        if len(tail) > 4:
            k, sigma = fit_generalized_pareto(np.exp(x[tail]) - math.exp(cutoff))
            if math.isfinite(k):
                p = (np.arange(len(tail)) + 0.5) / len(tail)
                smoothed = np.minimum(generalized_pareto_quantile(p, k, sigma) + math.exp(cutoff), 1.0)
                _, tie = np.unique(x[tail], return_inverse=True)
                x[tail] = np.log(np.bincount(tie, smoothed) / np.bincount(tie))[tie]
    result = np.empty(n_rows)
    result[row] = x
    return result
