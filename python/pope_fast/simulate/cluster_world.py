"""E4, cluster weights: w = w_c v, v log-normal of mean 1, and a reward that depends on the cluster alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pope_fast.simulate.exact import FloatArray, policy_truth, sigmoid, softmax
from pope_fast.simulate.finite_world import FiniteWorld
from pope_fast.simulate.lognormal_world import gaussian_logprob
from pope_fast.simulate.simulated_log import SimulatedLog, check_draws, check_size, make_table


@dataclass(frozen=True)
class ClusterPolicy:
    """A target policy of E4.

    Attributes
    ----------
    tilt : float
        How far its logits over the clusters are from the behavior policy's.
    within : float
        s of the weight ``v = exp(s Z - s^2 / 2)`` within a cluster: how differently it words the same thing.
    """

    tilt: float
    within: float


POLICIES = {"near": ClusterPolicy(0.4, 0.4), "far": ClusterPolicy(1.5, 3.0)}


def cluster_world(
    *,
    prompt_types: int = 32,
    n_clusters: int = 8,
    policies: Mapping[str, ClusterPolicy] = POLICIES,
    world_seed: int = 0,
) -> FiniteWorld:
    """World over the clusters alone: its responses are the clusters."""
    check_size(prompt_types=prompt_types, n_clusters=n_clusters)
    rng = np.random.default_rng([world_seed, 4])
    shape = (prompt_types, n_clusters)
    logits, direction, reward = (
        rng.normal(size=shape),
        rng.normal(size=shape),
        sigmoid(rng.normal(size=shape)),
    )
    targets = {name: softmax(logits + policy.tilt * direction) for name, policy in policies.items()}
    cluster = np.broadcast_to(np.arange(n_clusters), shape)
    return FiniteWorld(softmax(logits), targets, cluster, reward[:, :, None])


def _truth(
    world: FiniteWorld,
    probabilities: FloatArray,
    within: float,
    responses: int,
    variances: bool = True,
) -> dict[str, Any]:
    """Truth of a policy: weights within clusters add s^2 / 2 to both divergences, and a factor exp(s^2)."""
    on_clusters = world.policy_truth(probabilities, responses)
    p, q, r = probabilities, world.behavior, world.reward[:, :, 0]
    second_moment = (on_clusters["chi_square"] + 1.0) * math.exp(within**2)
    # E0[(w_c r)^2] for one response with a reward in {0, 1}: r^2 = r.
    weighted_reward = float(np.mean(np.sum(p**2 / q * r, axis=1)))
    utility = on_clusters["utility"]
    of_one_response = {
        "ips_variance": weighted_reward * math.exp(within**2) - utility**2,
        "mips_variance": weighted_reward - utility**2,
    }
    return policy_truth(
        utility=utility,
        shares=world.shares(p),
        kl_target_behavior=on_clusters["kl_target_behavior"] + within**2 / 2.0,
        kl_behavior_target=on_clusters["kl_behavior_target"] + within**2 / 2.0,
        second_moment=second_moment,
        responses=responses,
        extra=of_one_response if variances else None,
    )


def clusters(
    prompts: int = 2000,
    responses: int = 4,
    seed: int = 0,
    *,
    prompt_types: int = 32,
    n_clusters: int = 8,
    policies: Mapping[str, ClusterPolicy] = POLICIES,
    world_seed: int = 0,
) -> SimulatedLog:
    """Simulate E4: the weight of a response is that of its cluster times log-normal noise within it.

    Parameters
    ----------
    prompts, responses, seed : int
        Logged prompts, responses to each, seed of the draws.
    prompt_types, n_clusters : int
        Size of the world.
    policies : mapping of str to ClusterPolicy
        Target policies.
    world_seed : int
        Seed of the world itself.

    Returns
    -------
    SimulatedLog
        The columns ``behavior_cluster_logprob`` and ``target_cluster_logprob/NAME`` hold the exact
        log-probabilities of the response's cluster, whose ratio is the marginalized weight w_c.  The truth
        holds, per policy, the variance of one response's ``w r`` (``ips_variance``) and of ``w_c r``
        (``mips_variance``).
    """
    check_draws(prompts, responses, seed)
    world = cluster_world(prompt_types=prompt_types, n_clusters=n_clusters, policies=policies, world_seed=world_seed)
    rng = np.random.default_rng([seed, 14])
    draws = world.draw(rng, prompts, responses)
    z = rng.normal(size=prompts * responses)
    behavior_cluster = world.log_probability(world.behavior, draws)
    columns: dict[str, Any] = {
        "prompt_id": draws.prompt_id,
        "reward": rng.random(len(z)) < world.mean_reward(draws),
        "behavior_logprob": behavior_cluster + gaussian_logprob(z, 0.0),
    }
    for name, policy in policies.items():
        target_cluster = world.log_probability(world.targets[name], draws)
        columns[f"target_logprob/{name}"] = target_cluster + gaussian_logprob(z, policy.within)
        columns[f"target_cluster_logprob/{name}"] = target_cluster
    columns["behavior_cluster_logprob"] = behavior_cluster
    columns["cluster"] = draws.response
    truth = {
        "kind": "clusters",
        "seed": seed,
        "parameters": {
            "prompts": prompts,
            "responses": responses,
            "prompt_types": prompt_types,
            "n_clusters": n_clusters,
            "policies": {name: {"tilt": p.tilt, "within": p.within} for name, p in policies.items()},
            "world_seed": world_seed,
        },
        "reward_range": [0, 1],
        "policies": {
            name: _truth(world, world.targets[name], policy.within, responses) for name, policy in policies.items()
        },
        "behavior": _truth(world, world.behavior, 0.0, responses, variances=False),
    }
    return SimulatedLog(make_table(columns), truth)
