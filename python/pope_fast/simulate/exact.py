"""Exact functionals of known distributions: what the truth files are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

MAX_ORDER = 3
HERMITE_NODES = 180


def softmax(logits: npt.ArrayLike) -> FloatArray:
    """Softmax over the last axis."""
    x = np.asarray(logits, dtype=np.float64)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), dtype=np.float64)


def sigmoid(x: npt.ArrayLike) -> FloatArray:
    """Logistic function."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(x, dtype=np.float64))), dtype=np.float64)


def normal_expectation(f: Callable[[FloatArray], FloatArray], mean: float = 0.0) -> float:
    """``E f(Z)`` for ``Z ~ Normal(mean, 1)``, by Gauss-Hermite quadrature; f must be smooth."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(HERMITE_NODES)
    return float(np.sum(weights * f(nodes + mean)) / math.sqrt(2.0 * math.pi))


def entropy(q: npt.ArrayLike) -> FloatArray:
    """Shannon entropy in nats over the last axis."""
    p = np.asarray(q, dtype=np.float64)
    return np.asarray(-np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1), dtype=np.float64)


def diversity_truth(shares: npt.ArrayLike) -> dict[str, float]:
    """Exact diversity of a policy from its cluster distribution per prompt type.

    Parameters
    ----------
    shares : array_like, shape (n_prompt_types, n_clusters)
        Cluster distribution of each prompt type; the types are equally likely.

    Returns
    -------
    dict
        ``gini_simpson``, ``coverage@2..4``, ``H_1..H_3``, ``entropy_within_prompts`` (mean over prompts) and
        ``entropy_marginal`` (of the average policy), in nats where they are entropies.
    """
    q = np.asarray(shares, dtype=np.float64)
    zeta = [float(np.mean(np.sum(q * (1.0 - q) ** v, axis=1))) for v in range(MAX_ORDER + 1)]
    truth = {"gini_simpson": zeta[1]}
    truth |= {f"coverage@{m}": sum(zeta[:m]) for m in range(2, MAX_ORDER + 2)}
    truth |= {f"H_{m}": sum(zeta[v] / v for v in range(1, m + 1)) for m in range(1, MAX_ORDER + 1)}
    truth["entropy_within_prompts"] = float(np.mean(entropy(q)))
    truth["entropy_marginal"] = float(entropy(q.mean(axis=0)))
    return truth


def pair_truth(probabilities: npt.ArrayLike, embedding: npt.ArrayLike) -> dict[str, float]:
    """Exact diversity of a policy from the embeddings of its responses.

    Parameters
    ----------
    probabilities : array_like, shape (n_prompt_types, n_responses)
        Probability of each response; the types are equally likely.
    embedding : array_like, shape (n_prompt_types, n_responses, width)
        A vector for each response, of any length but 0.

    Returns
    -------
    dict
        ``rao``, the mean over prompts of ``1 - |E v|^2`` for unit vectors v, and ``vendi``, the reciprocal of the mean
        of ``|E v v'|^2``.
    """
    p, v = np.asarray(probabilities, dtype=np.float64), np.asarray(embedding, dtype=np.float64)
    v = v / np.linalg.norm(v, axis=2, keepdims=True)
    first = np.einsum("xy,xyi->xi", p, v)
    second = np.einsum("xy,xyi,xyj->xij", p, v, v, optimize=True)
    return {
        "rao": 1.0 - float(np.mean(np.sum(first**2, axis=1))),
        "vendi": 1.0 / float(np.mean(np.sum(second**2, (1, 2)))),
    }


def welfare_truth(group_utilities: Mapping[str, float]) -> dict[str, float]:
    """Mean, minimum and Nash (geometric mean) welfare of the groups."""
    values = np.array(list(group_utilities.values()))
    nash = float(np.exp(np.mean(np.log(values)))) if np.all(values > 0) else 0.0
    return {"mean": float(values.mean()), "min": float(values.min()), "nash": nash}


def policy_truth(
    *,
    utility: float,
    shares: npt.ArrayLike,
    kl_target_behavior: float,
    kl_behavior_target: float,
    second_moment: float,
    responses: int,
    mean_weight: float = 1.0,
    groups: Mapping[str, float] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Assemble the truth of one policy.

    Parameters
    ----------
    second_moment : float
        ``E0 w^2`` of one response.
    responses : int
        Responses per prompt K: the effective sample size of n prompts tends to ``n ess_fraction`` with
        ``ess_fraction = m^2 / (m^2 + (E0 w^2 - m^2) / K)``, m the mean weight.
    """
    m2 = mean_weight**2
    truth: dict[str, Any] = {
        "utility": float(utility),
        "diversity": diversity_truth(shares),
        "kl_target_behavior": float(kl_target_behavior),
        "kl_behavior_target": float(kl_behavior_target),
        "chi_square": float(second_moment - 1.0),
        "mean_weight": float(mean_weight),
        "ess_fraction": float(m2 / (m2 + (second_moment - m2) / responses)),
    }
    if groups:
        truth["groups"] = dict(groups)
        truth["welfare"] = welfare_truth(groups)
    return truth | dict(extra or {})


def normal_cdf(x: float) -> float:
    """Evaluate the standard normal distribution function."""
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def normal_bins(edges: Sequence[float], mean: float) -> FloatArray:
    """Mass of ``Normal(mean, 1)`` in the bins between ``-inf``, the edges, and ``inf``."""
    cumulative = [0.0, *(normal_cdf(edge - mean) for edge in edges), 1.0]
    return np.diff(cumulative)
