"""Logs of every kind that the kernels treat differently, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast import _core

Array = npt.NDArray[Any]
RANGE = (-1.0, 3.0)


@dataclass(frozen=True)
class Log:
    """Columns of a log for one policy; ``unit=None`` makes every draw a unit.

    ``behavior`` is chosen so that ``target`` stays below 0 nats; ``logw`` is their difference.
    """

    unit: Array | None
    behavior: Array
    target: Array
    reward: Array
    cluster: Array | None = None
    group: Array | None = None
    count: Array | None = None
    tokens: Array | None = None
    baseline: Array | None = None
    baseline_mean: Array | None = None
    embedding: Array | None = None
    reward_range: tuple[float, float] = RANGE
    cluster_scope: str = "log"

    @property
    def logw(self) -> Array:
        return self.target - self.behavior

    def __len__(self) -> int:
        return len(self.reward)

    def rows(self, index: Array) -> Log:
        """The log with these rows alone, in this order."""
        return replace(
            self,
            **{name: column[index] for name, column in vars(self).items() if isinstance(column, np.ndarray)},
        )

    def but(self, **changes: Any) -> Log:
        return replace(self, **changes)

    def state(self, tail_capacity: int = 32768, policies: list[str] | None = None) -> _core.State:
        """An empty state for logs like this one."""
        return _core.State(
            policies or ["p"],
            self.reward_range,
            row_units=self.unit is None,
            has_cluster=self.cluster is not None,
            has_group=self.group is not None,
            has_tokens=self.tokens is not None,
            has_baseline=self.baseline is not None,
            has_embedding=self.embedding is not None,
            cluster_scope=self.cluster_scope,
            tail_capacity=tail_capacity,
        )

    def feed(self, state: _core.State, *, threads: int = 1, first_row: int = 0) -> _core.State:
        state.update(
            self.unit,
            self.behavior,
            [self.target],
            self.reward,
            cluster=self.cluster,
            group=self.group,
            count=self.count,
            num_tokens=self.tokens,
            baseline=self.baseline,
            baseline_means=None if self.baseline_mean is None else [self.baseline_mean],
            embedding=self.embedding,
            first_row=first_row,
            threads=threads,
        )
        return state

    def summary(self, *, tail_capacity: int = 32768, threads: int = 1, **options: Any) -> dict[str, Any]:
        return self.feed(self.state(tail_capacity), threads=threads).snapshot().summary("p", **options)


def by_clusters(rng: np.random.Generator, unit: Array, clusters: int) -> tuple[Array, Array]:
    """Clusters that each prompt prefers in its own way, and how much it likes each row's cluster."""
    taste = rng.normal(size=(unit.max() + 1, clusters))
    share = np.exp(taste - taste.max(axis=1, keepdims=True))
    edges = np.cumsum(share / share.sum(axis=1, keepdims=True), axis=1)
    cluster = (rng.uniform(size=len(unit))[:, None] > edges[unit]).sum(axis=1).clip(0, clusters - 1)
    return cluster, taste[unit, cluster]


def make(
    seed: int,
    sizes: Array,
    *,
    spread: float = 0.8,
    shift: float = 0.0,
    clusters: int = 5,
    largest_count: int = 1,
    pull: float = 0.3,
    rich: bool = True,
) -> Log:
    """A log with ``sizes[i]`` rows in prompt ``i``; ``rich`` adds groups, tokens and a reward model."""
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(len(sizes)), sizes)
    keys = rng.permutation(10 * len(sizes))[: len(sizes)] * 7919 - 12345
    n = len(code)
    cluster, taste = by_clusters(rng, code, clusters)
    logw = spread * rng.normal(size=n) - spread**2 / 2 + pull * taste
    behavior = -40.0 - rng.exponential(20.0, size=n) - max(shift, 0.0)
    low, high = RANGE
    reward = low + (high - low) * rng.beta(1.5, 1.0 + (cluster % 3), size=n)
    mean = low + (high - low) * rng.uniform(size=len(sizes))[code]
    return Log(
        unit=keys[code],
        behavior=behavior,
        target=behavior + logw + shift,
        reward=reward,
        cluster=cluster * 3 - 4,
        group=rng.choice([-5, 2, 900], size=n, p=[0.5, 0.3, 0.2]) if rich else None,
        count=rng.integers(1, largest_count + 1, size=n).astype(float) if largest_count > 1 else None,
        tokens=rng.integers(1, 400, size=n).astype(float) if rich else None,
        baseline=reward + rng.normal(size=n) if rich else None,
        baseline_mean=mean if rich else None,
    )


def ragged(seed: int, units: int, largest: int = 12) -> Array:
    return np.random.default_rng(seed).integers(1, largest + 1, size=units)


def honest(log: Log) -> Log:
    """The same with weights of mean 1, as those of two policies are, so that no bound is contradicted."""
    return log.but(target=log.target - np.log(np.mean(np.exp(log.logw))))


def as_rows(log: Log) -> Log:
    """The same rows, each draw a unit."""
    return log.but(unit=None)


def impossible(log: Log, seed: int, share: float = 0.15) -> Log:
    """Some responses, and one whole prompt, that the target would never give."""
    never = np.random.default_rng(seed).uniform(size=len(log)) < share
    if log.unit is not None:
        never |= log.unit == log.unit[len(log) // 2]
    return log.but(target=np.where(never, -np.inf, log.target))


def embedded(log: Log, seed: int, width: int = 6, noise: float = 0.5) -> Log:
    """The same with embeddings: a direction for each cluster, one that all share, and noise."""
    rng = np.random.default_rng(seed)
    labels, code = np.unique(log.cluster, return_inverse=True)
    centers = rng.normal(size=(len(labels), width)) + 0.7
    scale = rng.exponential(size=(len(log), 1)) + 0.1
    return log.but(embedding=scale * (centers[code] + noise * rng.normal(size=(len(log), width))))


def one_hot(log: Log) -> Log:
    """The same with clusters as embeddings."""
    labels, code = np.unique(log.cluster, return_inverse=True)
    return log.but(embedding=np.eye(len(labels), dtype=np.float32)[code])


def _clusters(log: Log, labels: Array) -> Log:
    return log.but(cluster=labels)


def logs() -> dict[str, Log]:
    """Every log by name."""
    eight = np.full(120, 8)
    uniform = make(0, eight)
    counted = make(2, ragged(2, 110, 6), largest_count=9)
    wide = make(6, np.full(100, 8), clusters=200)
    rng = np.random.default_rng(99)
    return {
        "uniform K=8": uniform,
        "ragged K": make(1, ragged(1, 130)),
        "K=2": make(11, np.full(150, 2), clusters=3),
        "K=3 and 1": make(12, np.where(np.arange(150) % 3 == 0, 1, 3), clusters=3),
        "one response": make(13, np.full(300, 1), clusters=6),
        "few repeated": make(14, np.where(np.arange(250) % 5 == 0, 4, 1)),
        "counts": counted,
        "large counts": make(15, ragged(15, 80, 4), largest_count=5000).but(cluster=None),
        "rows": as_rows(make(3, np.full(60, 6))),
        "rows with counts": as_rows(make(4, np.full(50, 6), largest_count=7)),
        "heavy tail": make(5, np.full(150, 8), spread=3.0),
        "heavy tail, rows": as_rows(make(16, np.full(500, 1), spread=3.0)),
        "heavy tail, counts": make(17, ragged(17, 120, 5), spread=3.0, largest_count=6),
        "shift up": make(7, ragged(7, 90, 6), shift=1500.0),
        "shift down": make(8, ragged(8, 90, 6), shift=-1500.0),
        "impossible": impossible(make(9, ragged(9, 120, 9)), 9),
        "impossible, counts": impossible(make(18, ragged(18, 100, 5), largest_count=5), 18),
        "impossible, rows": impossible(as_rows(make(19, np.full(300, 1))), 19),
        "200 clusters": wide.but(cluster=wide.cluster - 50),
        "huge keys": uniform.but(cluster=rng.integers(-(2**62), 2**62, size=7)[np.abs(uniform.cluster) % 7]),
        "one cluster": _clusters(make(10, ragged(10, 80, 5)), np.full(ragged(10, 80, 5).sum(), 17)),
        "clusters of a prompt": make(20, ragged(20, 100, 9)).but(cluster_scope="prompt"),
        "nearly the logger": make(21, ragged(21, 100, 6), spread=0.01, pull=0.0).but(reward_range=(-2.0, 5.0)),
        "two units": make(22, np.array([9, 7])),
        "embeddings": embedded(make(23, np.full(100, 8)), 23),
        "embeddings alone": embedded(make(24, ragged(24, 110, 7)), 24, width=40).but(cluster=None),
        "embeddings, counts": embedded(make(25, ragged(25, 90, 4), largest_count=4), 25).but(cluster=None),
        "embeddings, one response": embedded(make(26, np.full(200, 1)), 26),
        "embeddings, a prompt's clusters": embedded(
            make(27, np.where(np.arange(150) % 9 == 0, 5, 1)).but(cluster_scope="prompt"), 27
        ),
        "embeddings, heavy tail": embedded(make(28, np.full(120, 6), spread=2.5), 28).but(cluster=None),
        "embeddings, impossible": embedded(impossible(make(29, ragged(29, 110, 8)), 29), 29).but(cluster=None),
        "embeddings, shift": embedded(make(30, ragged(30, 80, 5), shift=-1500.0), 30).but(cluster=None),
        "one-hot": one_hot(make(31, ragged(31, 110, 9))),
    }
