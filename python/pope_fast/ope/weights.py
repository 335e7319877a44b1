"""The weights themselves: diagnostics, log-probabilities of tokens, and the fast scan of a log."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast import _core
from pope_fast.ope.arrays import floats, summary


def diagnostics(target_logprob: npt.ArrayLike, behavior_logprob: npt.ArrayLike, **options: Any) -> dict[str, Any]:
    """Return the diagnostics of the weights: ESS, k-hat, missing mass, KL estimates, e-value ...

    Parameters
    ----------
    target_logprob, behavior_logprob : array_like, shape (n,)
        See :func:`summary`, which also takes the options.
    """
    reward = np.zeros(len(np.asarray(target_logprob)))
    found = summary(target_logprob, behavior_logprob, reward, reward_range=(0.0, 1.0), **options)
    return dict(found["diagnostics"])


def effective_sample_size(
    target_logprob: npt.ArrayLike, behavior_logprob: npt.ArrayLike, *, prompt_id: npt.ArrayLike | None = None
) -> float:
    """Kish's effective sample size ``(sum A)^2 / sum A^2`` of the units' mean weights, before any truncation."""
    return float(diagnostics(target_logprob, behavior_logprob, prompt_id=prompt_id)["ess"])


def pareto_k(target_logprob: npt.ArrayLike, behavior_logprob: npt.ArrayLike) -> float | None:
    """Tail index k-hat of the weights; None where there is no tail (equal weights). Above .7 a mean cannot be trusted.

    References
    ----------
    Zhang & Stephens (2009), Technometrics 51; Vehtari et al. (2024), JMLR 25(72).
    """
    value = diagnostics(target_logprob, behavior_logprob)["k_hat"]
    return None if value is None else float(value)


def sequence_logprob(
    token_logprobs: npt.ArrayLike, offsets: npt.ArrayLike, *, threads: int | None = None
) -> npt.NDArray[np.float64]:
    """Sum ragged token log-probabilities to sequence log-probabilities.

    Parameters
    ----------
    token_logprobs : array_like of float, shape (tokens,)
        All rows' tokens, one row after the other (nats).
    offsets : array_like of int, shape (n + 1,)
        Row ``i`` is ``token_logprobs[offsets[i]:offsets[i + 1]]``.
    threads : int, optional
        Threads; the result does not depend on it.

    Returns
    -------
    ndarray of float64, shape (n,)

    Examples
    --------
    >>> sequence_logprob([-1.0, -2.0, -0.5], [0, 2, 3])
    array([-3. , -0.5])
    """
    return _core.sum_tokens(_offsets(offsets), floats("token_logprobs", token_logprobs), threads)


def _offsets(offsets: npt.ArrayLike) -> npt.NDArray[np.int64]:
    return np.ascontiguousarray(offsets, dtype=np.int64)


def token_sums(
    target: npt.ArrayLike,
    behavior: npt.ArrayLike,
    offsets: npt.ArrayLike,
    *,
    clip: float = 10.0,
    threads: int | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sequence log-ratio, its mean per token, and the sum of token log-ratios clipped to ``[-clip, clip]``.

    Only the first belongs to the target policy; the others are surrogates that estimate different policies, with a bias
    that does not vanish with n (theory, section 1).

    Parameters
    ----------
    target, behavior : array_like of float32, shape (tokens,)
        Token log-probabilities under both policies (nats).
    offsets : array_like of int, shape (n + 1,)
        As in :func:`sequence_logprob`.
    clip : float
        Bound of a token's log-ratio in the third result.
    threads : int, optional
        Threads; the result does not depend on it.
    """
    first, second = (np.ascontiguousarray(values, dtype=np.float32) for values in (target, behavior))
    return _core.token_sums(_offsets(offsets), first, second, clip, threads)


def prompt_scan(
    prompt_id: npt.ArrayLike,
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    cluster: npt.ArrayLike | None = None,
    *,
    clip: float = 10.0,
    threads: int | None = None,
) -> dict[str, Any]:
    """Take a first look in one pass: IPS, SNIPS and clipped IPS by row, ESS, and plug-in entropies per prompt.

    The plug-in entropy is what practitioners compute; with few responses per prompt it is far too low (theory 2.2), so
    :func:`entropy_within_prompts` is the number to report.

    Parameters
    ----------
    prompt_id : array_like of int, shape (n,)
        Rows of a prompt must stand together.
    target_logprob, behavior_logprob, reward : array_like, shape (n,)
        As in :func:`summary`.
    cluster : array_like of int, shape (n,), optional
        Cluster of each response.
    clip : float
        Weights are clipped here for ``clipped_ips``.
    threads : int, optional
        Threads; the result does not depend on it.

    Returns
    -------
    dict
        ``ips``, ``snips``, ``clipped_ips``, ``ess``, ``max_weight``, ``snips_standard_error`` (clustered by prompt),
        ``entropy_mean``, ``entropy_variance``, ``n_rows``, ``n_prompts``.
    """
    keys = np.ascontiguousarray(prompt_id, dtype=np.int64)
    labels = None if cluster is None else np.asarray(cluster)
    if labels is not None and labels.dtype != np.int32:
        labels = np.ascontiguousarray(labels, dtype=np.int64)
    return _core.prompt_scan(
        keys,
        floats("target_logprob", target_logprob),
        floats("behavior_logprob", behavior_logprob),
        floats("reward", reward),
        labels,
        clip,
        threads,
    )
