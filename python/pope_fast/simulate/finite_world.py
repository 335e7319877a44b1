"""Worlds with finitely many prompt types and responses: everything exact by summation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast.simulate.exact import FloatArray, pair_truth, policy_truth

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Draws:
    """Logged responses, K to each of n prompts: arrays of shape (n * K,), prompt by prompt."""

    prompt_id: IntArray
    prompt_type: IntArray
    response: IntArray
    group: IntArray


@dataclass(frozen=True)
class FiniteWorld:
    """Equally likely prompt types, a finite menu of responses to each, clusters, groups and policies.

    Attributes
    ----------
    behavior : ndarray, shape (n_types, n_responses)
        Probabilities of the behavior policy.
    targets : mapping of name to ndarray, shape (n_types, n_responses)
        Probabilities of the target policies.
    cluster : ndarray of int, shape (n_types, n_responses)
        Cluster of each response, 0 to ``n_clusters - 1``.
    reward : ndarray, shape (n_types, n_responses, n_groups)
        Mean reward given by each annotator group; the groups are equally likely.
    group_names : tuple of str
        Names of the groups; empty if there is a single, nameless one.
    embedding : ndarray, shape (n_types, n_responses, width), optional
        Embedding of each response, float32.
    """

    behavior: FloatArray
    targets: Mapping[str, FloatArray]
    cluster: IntArray
    reward: FloatArray
    group_names: tuple[str, ...] = ()
    embedding: npt.NDArray[np.float32] | None = None

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return int(self.cluster.max()) + 1

    def draw(self, rng: np.random.Generator, prompts: int, responses: int) -> Draws:
        """Draw prompts, responses by the behavior policy, and the group of the annotator of each."""
        n_types, n_menu = self.behavior.shape
        prompt_type = np.repeat(rng.integers(0, n_types, size=prompts), responses)
        # Inverse distribution function of all types at once: row x of the table lies in [x, x + 1].
        ladder = (np.cumsum(self.behavior, axis=1) + np.arange(n_types)[:, None]).ravel()
        u = rng.random(prompts * responses)
        response = np.searchsorted(ladder, prompt_type + u, side="right") - prompt_type * n_menu
        # Rounding can put u beyond the last step of the ladder, or short of the first.
        response = np.clip(response, 0, n_menu - 1)
        group = rng.integers(0, self.reward.shape[2], size=prompts * responses)
        return Draws(np.repeat(np.arange(prompts), responses), prompt_type, response, group)

    def mean_reward(self, draws: Draws) -> FloatArray:
        """Mean reward of each logged response."""
        return self.reward[draws.prompt_type, draws.response, draws.group]

    def log_probability(self, probabilities: FloatArray, draws: Draws) -> FloatArray:
        """Log-probability of each logged response under a policy, ``-inf`` where it has none."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(probabilities)[draws.prompt_type, draws.response], dtype=np.float64)

    def shares(self, probabilities: FloatArray) -> FloatArray:
        """Cluster distribution of a policy, shape (n_types, n_clusters)."""
        inside = self.cluster[:, :, None] == np.arange(self.n_clusters)
        return np.asarray(np.sum(probabilities[:, :, None] * inside, axis=1), dtype=np.float64)

    def policy_truth(self, probabilities: FloatArray, responses: int) -> dict[str, Any]:
        """Exact truth of one policy for logs with ``responses`` responses per prompt."""
        p, q = probabilities, self.behavior
        by_group = np.einsum("xy,xyg->g", p, self.reward) / len(p)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_ratio = np.log(p) - np.log(q)
        truth = policy_truth(
            utility=float(by_group.mean()),
            shares=self.shares(p),
            kl_target_behavior=float(np.mean(np.sum(np.where(p > 0, p * log_ratio, 0.0), axis=1))),
            kl_behavior_target=float(-np.mean(np.sum(np.where(q > 0, q * log_ratio, 0.0), axis=1))),
            second_moment=float(np.mean(np.sum(p**2 / q, axis=1))),
            responses=responses,
            groups=dict(zip(self.group_names, by_group.tolist(), strict=True)) if self.group_names else None,
        )
        if self.embedding is not None:
            truth["diversity"] |= pair_truth(p, self.embedding)
        return truth

    def truth(self, responses: int) -> dict[str, Any]:
        """Exact truth of all policies: the ``policies`` and ``behavior`` entries of a truth file."""
        return {
            "policies": {name: self.policy_truth(p, responses) for name, p in self.targets.items()},
            "behavior": self.policy_truth(self.behavior, responses),
        }
