"""Softmax tables: worlds so small that every objective and every expected gradient is a sum over all outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from math import factorial, prod
from typing import Any

import torch
from torch import Tensor

from pope_fast.align.losses import LossInputs
from pope_fast.simulate.tiny_lm_world import all_sequences

Loss = Callable[[LossInputs], tuple[Tensor, dict[str, float]]]


@dataclass
class Table:
    """X prompts, Y responses to each; the behavior policy is ``counts / counts.sum(1)``, the policy a softmax."""

    counts: Tensor
    reward: Tensor
    cluster: Tensor
    theta: Tensor
    ref_theta: Tensor
    group_reward: Tensor | None = None
    value: Tensor | None = None
    quantile: Tensor | None = None

    @property
    def behavior(self) -> Tensor:
        return self.counts / self.counts.sum(dim=1, keepdim=True)

    @property
    def policy(self) -> Tensor:
        return self.theta.log_softmax(dim=1).exp()

    @property
    def reference(self) -> Tensor:
        return self.ref_theta.log_softmax(dim=1).exp()

    def shares(self, probabilities: Tensor | None = None) -> Tensor:
        """Cluster distribution of each prompt, shape (X, C)."""
        p = self.policy if probabilities is None else probabilities
        inside = self.cluster[:, :, None] == torch.arange(int(self.cluster.max()) + 1)
        return (p[:, :, None] * inside).sum(dim=1)

    def utility(self) -> Tensor:
        return (self.policy * self.reward).sum(dim=1).mean()

    def divergence(self) -> Tensor:
        p = self.policy
        return (p * (p.log() - self.reference.log())).sum(dim=1).mean()

    def forward_divergence(self) -> Tensor:
        r = self.reference
        return (r * (r.log() - self.policy.log())).sum(dim=1).mean()

    def behavior_mean(self, values: Tensor) -> Tensor:
        """E0 of values of shape (X, Y)."""
        return (self.behavior * values).sum(dim=1).mean()

    def ratio(self) -> Tensor:
        return self.policy / self.behavior

    def batch(self, prompts: list[int], responses: list[list[int]], **columns: Any) -> LossInputs:
        """Log the given responses to the given prompt types."""
        x = torch.tensor([kind for kind, row in zip(prompts, responses, strict=True) for _ in row])
        y = torch.tensor([response for row in responses for response in row])
        index = torch.tensor([i for i, row in enumerate(responses) for _ in row])
        for name in ("value", "quantile"):
            table = getattr(self, name)
            if table is not None:
                columns.setdefault(name, table[x] if table.dim() == 1 else table[x, y])
        return LossInputs(
            logprob=self.theta.log_softmax(dim=1)[x, y],
            behavior_logprob=self.behavior.log()[x, y],
            ref_logprob=self.ref_theta.log_softmax(dim=1)[x, y].detach(),
            reward=self.reward[x, y],
            prompt=index,
            cluster=self.cluster[x, y],
            **columns,
        )

    def population(self, scale: int = 1) -> LossInputs:
        """The log in which every response stands exactly as often as the behavior policy says."""
        n_types, menu = self.counts.shape
        return self.batch(
            list(range(n_types)), [list(range(menu))] * n_types, count=(self.counts * scale).flatten().double()
        )

    def group_population(self) -> LossInputs:
        """The same with every response judged once by each group."""
        assert self.group_reward is not None
        n_types, menu, groups = self.group_reward.shape
        x = torch.arange(n_types).repeat_interleave(menu * groups)
        y = torch.arange(menu).repeat_interleave(groups).repeat(n_types)
        g = torch.arange(groups).repeat(n_types * menu)
        return LossInputs(
            logprob=self.theta.log_softmax(dim=1)[x, y],
            behavior_logprob=self.behavior.log()[x, y],
            ref_logprob=self.ref_theta.log_softmax(dim=1)[x, y].detach(),
            reward=self.group_reward[x, y, g],
            prompt=x,
            cluster=self.cluster[x, y],
            group=g,
            count=self.counts[x, y].double(),
        )

    def logs(self, draws: int) -> Iterator[tuple[float, LossInputs]]:
        """Every log with one prompt of each type and this many draws, with its probability."""
        menus = [list(_multisets(row.tolist(), draws)) for row in self.behavior]
        for combination in product(*menus):
            probability = prod(chance for chance, _ in combination)
            yield probability, self.batch(list(range(len(menus))), [list(drawn) for _, drawn in combination])

    def random_prompts(self, prompts: int) -> Iterator[tuple[float, LossInputs]]:
        """Every log of this many prompts of random type with one response each, with its probability."""
        n_types, menu = self.counts.shape
        chances = (self.behavior / n_types).flatten().tolist()
        for chance, drawn in _multisets(chances, prompts):
            yield chance, self.batch([k // menu for k in drawn], [[k % menu] for k in drawn])


def _multisets(chances: list[float], draws: int) -> Iterator[tuple[float, tuple[int, ...]]]:
    for drawn in combinations_with_replacement(range(len(chances)), draws):
        ways = factorial(draws) // prod(factorial(n) for n in Counter(drawn).values())
        yield ways * prod(chances[k] for k in drawn), drawn


def small_table(seed: int = 0, n_types: int = 2, menu: int = 3, clusters: int = 2) -> Table:
    """Return a table whose policy, behavior policy and reference all differ."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    counts = torch.randint(1, 6, (n_types, menu), generator=g).double()
    # Rows of one sum, so that the population log has equally many draws of every prompt.
    counts[:, -1] += counts.sum(dim=1).max() - counts.sum(dim=1)
    return Table(
        counts=counts,
        reward=torch.rand((n_types, menu), generator=g, dtype=torch.float64),
        cluster=(torch.arange(menu) % clusters).repeat(n_types, 1),
        theta=normal(n_types, menu).requires_grad_(),
        ref_theta=normal(n_types, menu),
        group_reward=torch.rand((n_types, menu, 2), generator=g, dtype=torch.float64),
    )


def gradient(value: Tensor, theta: Tensor) -> Tensor:
    return torch.autograd.grad(value, theta, retain_graph=True)[0]


def number(value: Tensor) -> float:
    return float(value.detach())


def expected_gradient(logs: Iterator[tuple[float, LossInputs]], loss: Loss, theta: Tensor) -> Tensor:
    """Mean gradient of a loss over all logs, by enumeration: no Monte Carlo error."""
    total, mass = torch.zeros_like(theta), 0.0
    for probability, batch in logs:
        value = loss(batch)[0]
        total += probability * torch.autograd.grad(value, theta, retain_graph=True, materialize_grads=True)[0]
        mass += probability
    assert abs(mass - 1.0) < 1e-12
    return total


def distance(a: Tensor, b: Tensor) -> float:
    """Relative distance of two gradients."""
    return float((a - b).norm() / b.norm())


@dataclass
class TinyLM:
    """An autoregressive table model over all sequences of a length: one prompt, token by token."""

    logits: list[Tensor]
    behavior_logits: list[Tensor]
    vocabulary: int
    length: int

    @property
    def sequences(self) -> Tensor:
        return torch.as_tensor(all_sequences(self.vocabulary, self.length))

    def tokens(self, logits: list[Tensor]) -> Tensor:
        """Log-probability of each token of every sequence, shape (S, T)."""
        prefix = torch.zeros(len(self.sequences), dtype=torch.int64)
        steps = []
        for t, table in enumerate(logits):
            steps.append(table.log_softmax(dim=1)[prefix, self.sequences[:, t]])
            prefix = prefix * self.vocabulary + self.sequences[:, t]
        return torch.stack(steps, dim=1)

    def logs(self, draws: int, **columns: Tensor) -> Iterator[tuple[float, LossInputs]]:
        """Every log of one prompt with this many draws; columns are per sequence, shape (S,)."""
        new, old = self.tokens(self.logits), self.tokens(self.behavior_logits).detach()
        for chance, drawn in _multisets(old.sum(dim=1).exp().tolist(), draws):
            rows = torch.tensor(drawn)
            yield (
                chance,
                LossInputs.from_tokens(
                    new[rows],
                    torch.ones(len(drawn), self.length, dtype=torch.bool),
                    behavior_logprob=old[rows].sum(dim=1),
                    behavior_token_logprobs=old[rows],
                    prompt=torch.zeros(len(drawn), dtype=torch.int64),
                    **{name: values[rows] for name, values in columns.items()},
                ),
            )


def tiny_lm(seed: int = 0, vocabulary: int = 3, length: int = 3) -> TinyLM:
    g = torch.Generator().manual_seed(seed)

    def tables() -> list[Tensor]:
        return [torch.randn((vocabulary**t, vocabulary), generator=g, dtype=torch.float64) for t in range(length)]

    behavior = tables()
    moved = [old + 0.7 * new for old, new in zip(behavior, tables(), strict=True)]
    return TinyLM([table.requires_grad_() for table in moved], behavior, vocabulary, length)
