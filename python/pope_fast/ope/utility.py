"""Estimators of the utility U."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from pope_fast.evaluate.choice import Choice
from pope_fast.evaluate.results import Estimate
from pope_fast.ope.arrays import named, summary


def _utility(name: str, arrays: Sequence[npt.ArrayLike], level: float, options: Mapping[str, Any]) -> Estimate:
    target, behavior, reward = arrays
    found = summary(target, behavior, reward, level=level, **options)
    methods = ("worst_case_tail", "delta") if name == "sn_tips" else ("delta",)
    return named(found["utility"], name, level, choice=Choice(methods, "no interval could be formed"))


def ips(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Inverse propensity scoring: the mean of ``w r`` over units. Unbiased, and of huge variance.

    Parameters
    ----------
    target_logprob, behavior_logprob, reward : array_like, shape (n,)
        See :func:`summary`, which also takes the options.
    level : float
        Coverage of the interval.

    References
    ----------
    Horvitz & Thompson (1952), JASA 47.
    """
    return _utility("ips", (target_logprob, behavior_logprob, reward), level, options)


def snips(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Self-normalized inverse propensity scoring: ``sum w r / sum w`` over units.

    Parameters as in :func:`ips`.

    References
    ----------
    Swaminathan & Joachims (2015), NeurIPS.
    """
    return _utility("snips", (target_logprob, behavior_logprob, reward), level, options)


def tips(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    tau: float | None = None,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """TIPS, truncated inverse propensity scoring: the mean of ``min(w, tau) r``.

    Parameters as in :func:`ips`, and ``tau``, the truncation level (sqrt(n) times the mean weight by default).

    References
    ----------
    Ionides (2008), JCGS 17.
    """
    return _utility("tips", (target_logprob, behavior_logprob, reward), level, {"tau": tau, **options})


def sn_tips(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    tau: float | None = None,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Self-normalized TIPS, the default estimator, with every interval that there is.

    Parameters as in :func:`tips`. The headline interval is the worst case over the truncated tail.
    """
    return _utility("sn_tips", (target_logprob, behavior_logprob, reward), level, {"tau": tau, **options})


def control_variate(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """IPS with the weights as control variate: best where the policies are close. Parameters as in :func:`ips`."""
    return _utility("cv", (target_logprob, behavior_logprob, reward), level, options)


def psis(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Self-normalized IPS with Pareto-smoothed weights. Parameters as in :func:`ips`.

    References
    ----------
    Vehtari et al. (2024), JMLR 25(72).
    """
    return _utility("psis", (target_logprob, behavior_logprob, reward), level, options)


def baseline_dr(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    prompt_id: npt.ArrayLike,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Leave-one-out baseline: the mean of ``w_k (r_k - b_k) + b_k``, ``b_k`` the mean of the prompt's other rewards.

    Unbiased like IPS, of smaller variance; needs two responses for half of the prompts. Parameters as in :func:`ips`.
    """
    options["prompt_id"] = prompt_id
    return _utility("baseline_dr", (target_logprob, behavior_logprob, reward), level, options)


def _doubly_robust(
    name: str,
    arrays: Sequence[npt.ArrayLike],
    baseline: npt.ArrayLike,
    baseline_mean: npt.ArrayLike,
    level: float,
    options: dict[str, Any],
) -> Estimate:
    return _utility(name, arrays, level, {"baseline": baseline, "baseline_mean": baseline_mean, **options})


def dm(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    baseline: npt.ArrayLike,
    baseline_mean: npt.ArrayLike,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Direct method: the mean of ``baseline_mean``; as good as the reward model. Parameters as in :func:`dr`."""
    arrays = (target_logprob, behavior_logprob, reward)
    return _doubly_robust("dm", arrays, baseline, baseline_mean, level, options)


def dr(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    baseline: npt.ArrayLike,
    baseline_mean: npt.ArrayLike,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Doubly robust: the mean of ``w (r - baseline) + baseline_mean``.

    Parameters
    ----------
    target_logprob, behavior_logprob, reward : array_like, shape (n,)
        See :func:`summary`, which also takes the options.
    baseline : array_like, shape (n,)
        A reward model's prediction for the logged response.
    baseline_mean : array_like, shape (n,)
        The prediction's mean over the target policy's responses to the prompt.
    level : float
        Coverage of the interval.

    References
    ----------
    Dudik, Langford & Li (2011), ICML.
    """
    arrays = (target_logprob, behavior_logprob, reward)
    return _doubly_robust("dr", arrays, baseline, baseline_mean, level, options)


def sndr(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    baseline: npt.ArrayLike,
    baseline_mean: npt.ArrayLike,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Doubly robust with a self-normalized correction. Parameters as in :func:`dr`."""
    arrays = (target_logprob, behavior_logprob, reward)
    return _doubly_robust("sndr", arrays, baseline, baseline_mean, level, options)
