"""E5, support deficiency: part of the target policy's mass lies where the behavior policy never goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pope_fast.errors import PopeError
from pope_fast.simulate.exact import normal_bins, policy_truth, sigmoid
from pope_fast.simulate.lognormal_world import CLUSTER_EDGES, gaussian_logprob, lognormal_utility
from pope_fast.simulate.simulated_log import SimulatedLog, check_draws, make_table


@dataclass(frozen=True)
class PartlySupported:
    """A target policy of E5.

    Attributes
    ----------
    unsupported : float
        Share of its mass off the behavior policy's support, in [0, 1).
    kl : float
        Divergence in nats of the rest, renormalized, from the behavior policy.
    """

    unsupported: float
    kl: float


POLICIES = {
    "near": PartlySupported(0.0, 0.125),
    "gap": PartlySupported(0.2, 0.25),
    "far": PartlySupported(0.5, 4.5),
}


def _policy_truth(
    policy: PartlySupported, intercept: float, slope: float, off_reward: float, responses: int
) -> dict[str, Any]:
    shift, on = math.sqrt(2.0 * policy.kl), 1.0 - policy.unsupported
    supported = lognormal_utility(shift, intercept, slope)
    # Unsupported responses form one cluster of their own, the last.
    shares = np.append(on * normal_bins(CLUSTER_EDGES, shift), policy.unsupported)
    return policy_truth(
        utility=on * supported + policy.unsupported * off_reward,
        shares=shares[None, :],
        kl_target_behavior=math.inf if policy.unsupported else policy.kl,
        kl_behavior_target=policy.kl - math.log(on),
        second_moment=on**2 * math.exp(shift**2),
        mean_weight=on,
        responses=responses,
        extra={"unsupported_mass": policy.unsupported, "utility_of_supported_part": supported},
    )


def no_support(
    prompts: int = 2000,
    responses: int = 1,
    seed: int = 0,
    *,
    policies: Mapping[str, PartlySupported] = POLICIES,
    intercept: float = -0.5,
    slope: float = 0.6,
    off_reward: float = 0.1,
) -> SimulatedLog:
    """Simulate E5: what the log shows looks healthy, and a part of the target policy is not in it at all.

    Parameters
    ----------
    prompts, responses, seed : int
        Logged prompts, responses to each, seed.
    policies : mapping of str to PartlySupported
        Target policies; by default a fully supported one, one with 20 % of its mass off the support and one
        with 50 % that is far away besides.
    intercept, slope : float
        a and b of the mean reward ``sigmoid(a + b Z)`` on the support.
    off_reward : float
        Mean reward off the support, in [0, 1].

    Returns
    -------
    SimulatedLog
        As :func:`pope_fast.simulate.lognormal`.  No estimator can see ``off_reward``; an honest interval
        must allow for any value of it.

    Raises
    ------
    PopeError
        If an unsupported share is not in [0, 1), a divergence negative, or the reward off the support not
        in [0, 1].
    """
    check_draws(prompts, responses, seed)
    if not 0.0 <= off_reward <= 1.0:
        raise PopeError(f"off_reward must be in [0, 1], got {off_reward}")
    for name, policy in policies.items():
        if not (0.0 <= policy.unsupported < 1.0 and policy.kl >= 0.0):
            raise PopeError(f"policy {name!r}: need 0 <= unsupported < 1 and kl >= 0, got {policy}")
    rng = np.random.default_rng([seed, 15])
    z = rng.normal(size=prompts * responses)
    columns: dict[str, Any] = {
        "prompt_id": np.repeat(np.arange(prompts), responses),
        "reward": rng.random(len(z)) < sigmoid(intercept + slope * z),
        "behavior_logprob": gaussian_logprob(z, 0.0),
    }
    for name, policy in policies.items():
        on_support = gaussian_logprob(z, math.sqrt(2.0 * policy.kl))
        columns[f"target_logprob/{name}"] = on_support + math.log1p(-policy.unsupported)
    columns["cluster"] = np.searchsorted(CLUSTER_EDGES, z)
    truth = {
        "kind": "no-support",
        "seed": seed,
        "parameters": {
            "prompts": prompts,
            "responses": responses,
            "policies": {name: {"unsupported": p.unsupported, "kl": p.kl} for name, p in policies.items()},
            "intercept": intercept,
            "slope": slope,
            "off_reward": off_reward,
        },
        "reward_range": [0, 1],
        "policies": {
            name: _policy_truth(policy, intercept, slope, off_reward, responses) for name, policy in policies.items()
        },
        "behavior": _policy_truth(PartlySupported(0.0, 0.0), intercept, slope, off_reward, responses),
    }
    return SimulatedLog(make_table(columns), truth)
