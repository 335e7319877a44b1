"""A world with few parameters and a finite log, where a policy can run off what the log supports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pope_fast.align.losses import LossInputs

CLUSTERS, PHRASINGS, DRAWS = 6, 5, 8
MENU = CLUSTERS * PHRASINGS
Loss = Callable[[LossInputs], tuple[Tensor, dict[str, float]]]


@dataclass
class FeatureWorld:
    """256 prompts; logits are the behavior policy's plus features times 19 parameters."""

    features: Tensor
    base: Tensor
    chance: Tensor
    cluster: Tensor
    logged: Tensor
    votes: Tensor

    def truth(self, theta: Tensor, weight: float) -> dict[str, float]:
        """Exact value of a policy: utility, mean entropy within prompts, divergence from the behavior policy."""
        p = (self.base + self.features @ theta).softmax(dim=1)
        q = torch.zeros(len(p), CLUSTERS, dtype=p.dtype).index_add(1, self.cluster, p)
        entropy = float(-torch.xlogy(q, q).sum(dim=1).mean())
        utility = float((p * self.chance).sum(dim=1).mean())
        divergence = float((p * (p.log() - self.base.log_softmax(dim=1))).sum(dim=1).mean())
        return {"value": utility + weight * entropy, "utility": utility, "entropy": entropy, "kl": divergence}

    def batch(self, prompts: Tensor, theta: Tensor) -> LossInputs:
        rows = self.logged[prompts]
        new = (self.base[prompts] + self.features[prompts] @ theta).log_softmax(dim=1)
        return LossInputs(
            logprob=new.gather(1, rows).flatten(),
            behavior_logprob=self.base[prompts].log_softmax(dim=1).gather(1, rows).flatten(),
            reward=self.votes[prompts].flatten(),
            prompt=torch.arange(len(prompts)).repeat_interleave(DRAWS),
            cluster=self.cluster[rows].flatten(),
        )


def feature_world(seed: int, prompts: int = 256) -> FeatureWorld:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    cluster = torch.arange(MENU) // PHRASINGS
    of_cluster = one_hot(cluster, CLUSTERS).double()
    features = torch.cat(
        [of_cluster.expand(prompts, -1, -1), normal(prompts, MENU, 10), normal(prompts, 1, 3) * of_cluster[:, :3]],
        dim=2,
    )
    skew = torch.tensor([2.5, 1.5, 0.5, 0.0, -0.5, -1.0], dtype=torch.float64)
    base = skew[cluster] + 0.8 * normal(prompts, MENU) + 0.5 * normal(prompts, CLUSTERS)[:, cluster]
    taste = torch.zeros(features.shape[2], dtype=torch.float64)
    taste[CLUSTERS : CLUSTERS + 4] = torch.tensor([1.0, -0.7, 0.5, 0.5], dtype=torch.float64)
    chance = torch.sigmoid(features @ taste + 0.5 * normal(CLUSTERS)[cluster] - 0.3)
    logged = torch.multinomial(base.softmax(dim=1), DRAWS, replacement=True, generator=g)
    luck = torch.rand(logged.shape, generator=g, dtype=torch.float64)
    return FeatureWorld(features, base, chance, cluster, logged, (luck < chance.gather(1, logged)).double())


def train(
    loss: Loss, seed: int, *, weight: float, steps: int = 300, size: int = 32, rate: float = 0.05
) -> dict[str, float]:
    """Train by Adam with clipped gradients; return the truth at the end, the best value seen, and the last metrics."""
    world = feature_world(seed)
    theta = torch.zeros(world.features.shape[2], dtype=torch.float64, requires_grad=True)
    g = torch.Generator().manual_seed(seed + 99)
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    best = ess = 0.0
    for step in range(1, steps + 1):
        value, metrics = loss(world.batch(torch.randperm(len(world.base), generator=g)[:size], theta))
        ess = metrics["ess"]
        slope = torch.autograd.grad(value, theta)[0]
        slope = slope / max(1.0, float(slope.norm()))
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope.square()
        with torch.no_grad():
            theta -= rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        if step % 25 == 0:
            best = max(best, world.truth(theta.detach(), weight)["value"])
    return {**world.truth(theta.detach(), weight), "best": best, "ess": ess}
