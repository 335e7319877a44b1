"""Can the log answer?  Effective sample size, divergences, missing mass and the verdict."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pope_fast.reference._types import PointEstimate
from pope_fast.reference.units import counts_or_ones, unit_means
from pope_fast.reference.weights import importance_weights, shifted_weights, truncate, truncation_level


def effective_sample_size(logw: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None) -> float:
    """Kish's effective number of units, ``(sum A)^2 / sum A^2``."""
    a = unit_means(shifted_weights(logw), unit, count)
    return float(a.sum() ** 2 / np.sum(a**2))


def effective_sample_size_ceiling(
    logw: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None
) -> float:
    """``n exp(-KL)``: what the effective sample size cannot exceed in expectation (Jensen)."""
    n = len(unit_means(shifted_weights(logw), unit, count))
    return n * math.exp(-kl_target_behavior(logw, unit, count))


def reward_effective_sample_size(
    logw: npt.ArrayLike, reward: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None
) -> float | None:
    """Kish's effective number of units of the reward or of its absence, whichever is smaller.

    Of the truncated ``w r`` and ``w (1 - r)``, with rewards in [0, 1]; None if every reward is at the same end. The
    weights alone cannot show that an outcome is rare, or that it happens just where the weights are large.
    """
    x = np.asarray(logw, dtype=np.float64)
    x = x - np.max(x)
    w = truncate(x, truncation_level(x, unit, count))
    r = np.asarray(reward, dtype=np.float64)
    earned, missed = (unit_means(w * part, unit, count) for part in (r, 1.0 - r))
    least = 1e-12 * float(np.sum(earned + missed))
    if earned.sum() <= least or missed.sum() <= least:
        return None
    return float(min(part.sum() ** 2 / np.sum(part**2) for part in (earned, missed)))


def max_weight_share(logw: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None) -> float:
    """Share of the largest unit in the total weight."""
    a = unit_means(shifted_weights(logw), unit, count)
    return float(a.max() / a.sum())


def mean_weight(logw: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None) -> PointEstimate:
    """Mean weight: 1 in expectation with common support and exact log-probabilities."""
    a = unit_means(importance_weights(logw), unit, count)
    return PointEstimate(float(a.mean()), a - a.mean())


def missing_mass(
    logw: npt.ArrayLike,
    unit: npt.ArrayLike,
    count: npt.ArrayLike | None = None,
    *,
    tau: float | None = None,
) -> float:
    """``1 - mean_i mean_k min(w, tau)`` with ``tau = sqrt n``: mass truncated or off the log's support."""
    tau = truncation_level(logw, unit, count, relative=False) if tau is None else tau
    return float(1.0 - np.mean(unit_means(truncate(logw, tau), unit, count)))


def kl_target_behavior(logw: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None) -> float:
    """KL(pi || pi0) in nats by the self-normalized mean of the log-weight, ``sum w log w / sum w``.

    Without overlap it can come out negative, which is itself a finding: the divergence is never negative.
    """
    x = np.asarray(logw, dtype=np.float64)
    w = shifted_weights(x)
    product = np.where(w > 0, w * np.where(w > 0, x, 0.0), 0.0)
    return float(unit_means(product, unit, count).sum() / unit_means(w, unit, count).sum())


def mean_log_weight(logw: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None) -> PointEstimate:
    """Mean log-weight over units; never positive in expectation.  Its negative estimates KL(pi0 || pi)."""
    x = unit_means(logw, unit, count)
    mean = float(x.mean())
    if not math.isfinite(mean):
        return PointEstimate(mean, np.full(len(x), math.nan))
    return PointEstimate(mean, x - mean)


def kl_behavior_target(logw: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None) -> float:
    """KL(pi0 || pi) in nats, ``-mean log w``; infinite as soon as one logged response has weight 0."""
    return -mean_log_weight(logw, unit, count).value


def zero_weight_rows(logw: npt.ArrayLike) -> int:
    """Rows that the target policy cannot produce (log-probability ``-inf``)."""
    return int(np.count_nonzero(np.asarray(logw, dtype=np.float64) == -np.inf))


def length_under_target(
    logw: npt.ArrayLike, num_tokens: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None
) -> float:
    """Mean length under the target policy, ``E0[w T] / E0[w]``: beside the logged mean, the length drift."""
    w = shifted_weights(logw)
    numerator = unit_means(w * np.asarray(num_tokens, dtype=np.float64), unit, count)
    return float(numerator.sum() / unit_means(w, unit, count).sum())


class AACalibration(NamedTuple):
    """What a second scoring of the behavior policy says about the noise of the log-probabilities.

    Attributes
    ----------
    kappa : float
        ``E exp(eps)``: the mean weight of a policy against itself, 1 without noise.
    sd_log_noise : float
        Standard deviation of ``eps`` in nats.
    share_exact : float
        Share of draws that agreed exactly.
    """

    kappa: float
    sd_log_noise: float
    share_exact: float


def aa_calibration(
    aa_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    unit: npt.ArrayLike,
    count: npt.ArrayLike | None = None,
) -> AACalibration:
    """Calibrate the noise from the behavior policy scored twice (A/A): every weight should be 1."""
    noise = np.asarray(aa_logprob, dtype=np.float64) - np.asarray(behavior_logprob, dtype=np.float64)
    m = counts_or_ones(count, len(noise))
    mean = float(np.sum(m * noise) / m.sum())
    sd = math.sqrt(float(np.sum(m * (noise - mean) ** 2)) / (m.sum() - 1.0))
    kappa = float(np.mean(unit_means(np.exp(noise), unit, count)))
    return AACalibration(kappa, sd, float(np.sum(m[noise == 0.0]) / m.sum()))


def verdict(
    *,
    k_hat: float,
    ess: float,
    kl: float,
    n_units: int,
    k_hat_log_p: float = 0.0,
    max_k_hat: float = 0.7,
    min_k_hat_p: float = 0.001,
    min_ess: float = 50.0,
    kl_margin: float = 1.0,
) -> Literal["unreliable", "reliable"]:
    """Apply the hard gates: k-hat > .7, ESS < 50, KL > log n - 1, or KL significantly below 0 (no overlap).

    k-hat is that of a heavy tail only if such a tail can end where the weights do: see
    :func:`~pope_fast.reference.tails.pareto_k_log_p`. The estimate of KL is at least the log of the mean weight, whose
    standard error is that of the second gate.
    """
    noise = math.sqrt(max(1.0 / ess - 1.0 / n_units, 0.0))
    heavy = k_hat > max_k_hat and k_hat_log_p >= math.log(min_k_hat_p)
    no_answer = heavy or ess < min_ess or kl > math.log(n_units) - kl_margin or kl < -3.0 * noise
    return "unreliable" if no_answer else "reliable"
