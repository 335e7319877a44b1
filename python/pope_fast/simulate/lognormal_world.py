"""E2, log-normal weights: w = exp(s Z - s^2 / 2), r ~ Bernoulli(sigmoid(a + b Z)), Z standard normal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast.errors import PopeError
from pope_fast.simulate.exact import FloatArray, normal_bins, normal_expectation, policy_truth, sigmoid
from pope_fast.simulate.simulated_log import SimulatedLog, check_draws, make_table

DIVERGENCES = {"near": 0.125, "far": 4.5}
CLUSTER_EDGES = (-1.5, -0.5, 0.5, 1.5)
# Log-probability of the tokens that both policies agree on; without it a density could exceed 1.
COMMON_LOGPROB = -30.0


def gaussian_logprob(z: npt.ArrayLike, mean: float) -> FloatArray:
    """Log-probability of the response with coordinate ``z`` under the policy centered at ``mean``."""
    x = np.asarray(z, dtype=np.float64)
    return COMMON_LOGPROB - 0.5 * math.log(2.0 * math.pi) - 0.5 * (x - mean) ** 2


def lognormal_utility(shift: float, intercept: float, slope: float) -> float:
    """Integrate the utility ``E sigmoid(a + b Z)`` of the policy ``Z ~ Normal(shift, 1)`` by quadrature."""
    return normal_expectation(lambda z: sigmoid(intercept + slope * z), mean=shift)


def shift_truth(shift: float, intercept: float, slope: float, responses: int) -> dict[str, Any]:
    """Exact truth of the policy ``Z ~ Normal(shift, 1)``: KL = s^2 / 2 both ways, ``E0 w^2 = exp(s^2)``."""
    return policy_truth(
        utility=lognormal_utility(shift, intercept, slope),
        shares=normal_bins(CLUSTER_EDGES, shift)[None, :],
        kl_target_behavior=shift**2 / 2.0,
        kl_behavior_target=shift**2 / 2.0,
        second_moment=math.exp(shift**2),
        responses=responses,
    )


def lognormal(
    prompts: int = 2000,
    responses: int = 1,
    seed: int = 0,
    *,
    divergences: Mapping[str, float] = DIVERGENCES,
    intercept: float = -0.5,
    slope: float = 0.6,
) -> SimulatedLog:
    """Simulate E2: log-normal weights, truth by Gauss-Hermite quadrature.

    Parameters
    ----------
    prompts, responses, seed : int
        Logged prompts, responses to each, seed.  All prompts are alike.
    divergences : mapping of str to float
        Target policies by their divergence KL(pi || pi0) in nats, at least 0: the shift is ``s = sqrt(2
        KL)``.
    intercept, slope : float
        a and b of the mean reward ``sigmoid(a + b Z)``.

    Returns
    -------
    SimulatedLog
        Boolean rewards; the cluster is the bin of Z between -1.5, -.5, .5 and 1.5.

    Raises
    ------
    PopeError
        If a divergence is negative.
    """
    check_draws(prompts, responses, seed)
    for name, kl in divergences.items():
        if not kl >= 0:
            raise PopeError(f"the divergence of policy {name!r} must be at least 0, got {kl}")
    rng = np.random.default_rng([seed, 12])
    z = rng.normal(size=prompts * responses)
    shifts = {name: math.sqrt(2.0 * kl) for name, kl in divergences.items()}
    columns: dict[str, Any] = {
        "prompt_id": np.repeat(np.arange(prompts), responses),
        "reward": rng.random(len(z)) < sigmoid(intercept + slope * z),
        "behavior_logprob": gaussian_logprob(z, 0.0),
    }
    columns |= {f"target_logprob/{name}": gaussian_logprob(z, shift) for name, shift in shifts.items()}
    columns["cluster"] = np.searchsorted(CLUSTER_EDGES, z)
    truth = {
        "kind": "lognormal",
        "seed": seed,
        "parameters": {
            "prompts": prompts,
            "responses": responses,
            "divergences": dict(divergences),
            "intercept": intercept,
            "slope": slope,
        },
        "reward_range": [0, 1],
        "policies": {name: shift_truth(s, intercept, slope, responses) for name, s in shifts.items()},
        "behavior": shift_truth(0.0, intercept, slope, responses),
    }
    return SimulatedLog(make_table(columns), truth)
