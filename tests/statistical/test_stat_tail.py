"""Is a large k-hat a heavy tail? Its own chance of the largest weight excuses mixtures, and no heavy tail."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from pope_fast import ope

pytestmark = pytest.mark.slow

GATE = math.log(0.001)
Draw = Callable[[np.random.Generator, int], np.ndarray]


def softmax(rng: np.random.Generator, n: int, actions: int, scale: float) -> np.ndarray:
    """Log-weights of the actions drawn from tables of logits."""
    behavior = rng.normal(size=(n, actions))
    target = behavior + scale * rng.normal(size=(n, actions))
    p = np.exp(behavior) / np.exp(behavior).sum(1, keepdims=True)
    drawn = (p.cumsum(1) < rng.random((n, 1))).sum(1).clip(max=actions - 1)
    difference = target - behavior
    difference -= np.log((p * np.exp(difference)).sum(1, keepdims=True))
    return difference[np.arange(n), drawn]


def mixture(rng: np.random.Generator, n: int, share: float, large: float) -> np.ndarray:
    """Log-weights near 0, and a share of them near that of a large weight."""
    return np.where(rng.random(n) < share, math.log(large) + 0.1 * rng.normal(size=n), 0.25 * rng.normal(size=n))


TAILS: dict[str, Draw] = {
    **{f"log-normal {s}": lambda rng, n, s=s: s * rng.normal(size=n) for s in (1.0, 1.5, 2.0, 3.0, 5.0)},
    **{f"Pareto {k}": lambda rng, n, k=k: k * rng.exponential(size=n) for k in (0.5, 0.8, 1.0, 1.5)},
    "Student": lambda rng, n: 0.5 * rng.standard_t(3, size=n),
    "softmax": lambda rng, n: softmax(rng, n, 30, 2.5),
}


def fits(draw: Draw, n: int, logs: int, seed: int) -> np.ndarray:
    """k-hat, and the log of the chance, of some logs; shape (logs, 2)."""
    rng = np.random.default_rng([29, n, seed])
    found = []
    for _ in range(logs):
        weights = draw(rng, n)
        d = ope.diagnostics(weights - weights.max(), np.zeros(n))
        found.append((d["k_hat"], d["k_hat_log_p"]))
    return np.array(found)


@pytest.mark.parametrize("name", TAILS)
def test_no_tail_is_excused(name: str) -> None:
    for n, logs in ((400, 400), (5_000, 400), (50_000, 60)):
        found = fits(TAILS[name], n, logs, sum(map(ord, name)))
        assert (found[:, 1] > GATE).all(), (n, found[:, 1].min())


def test_heavy_tails_are_found_nevertheless() -> None:
    assert (fits(TAILS["Pareto 1.0"], 5_000, 200, 1)[:, 0] > 0.7).mean() > 0.95


@pytest.mark.parametrize(("share", "large"), [(0.015, 8.0), (0.02, 10.0), (0.01, 30.0)])
def test_mixtures_of_many_draws_are(share: float, large: float) -> None:
    found = fits(lambda rng, n: mixture(rng, n, share, large), 4_800, 200, 2)
    assert (found[:, 0] > 0.7).mean() > 0.95
    assert (found[:, 1] < GATE).mean() > 0.9


def test_few_large_weights_are_not() -> None:
    """Ten of 4,800 draws decide: that is what k-hat is for."""
    found = fits(lambda rng, n: mixture(rng, n, 0.002, 50.0), 4_800, 200, 3)
    assert (found[:, 1] < GATE).mean() < 0.05
