"""Diversity from embeddings: the same bits for any batches, threads, partitions and order of rows."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pope_fast import _core

Array = npt.NDArray[Any]
POLICIES = ["near", "far"]
RANGE = (0.0, 1.0)


@dataclass(frozen=True)
class Rows:
    """Columns of a log with two policies and embeddings."""

    unit: Array
    behavior: Array
    near: Array
    far: Array
    reward: Array
    embedding: Array
    count: Array | None = None

    def __len__(self) -> int:
        return len(self.reward)

    def at(self, index: Array | slice) -> Rows:
        return replace(self, **{k: v[index] for k, v in vars(self).items() if v is not None})

    def but(self, **changes: Any) -> Rows:
        return replace(self, **changes)

    def state(self, policies: list[str] = POLICIES) -> _core.State:
        return _core.State(policies, RANGE, has_embedding=True, tail_capacity=40)

    def feed(self, state: _core.State, policies: list[str] = POLICIES, threads: int = 1) -> _core.State:
        state.update(
            self.unit,
            self.behavior,
            [np.ascontiguousarray(getattr(self, name)) for name in policies],
            self.reward,
            count=self.count,
            embedding=self.embedding,
            threads=threads,
        )
        return state


def make(seed: int, sizes: Array, *, width: int = 9, counts: bool = False, spread: float = 1.2, kinds: int = 0) -> Rows:
    """A log; with ``kinds`` there are so few different embeddings that many rows have the same."""
    rng = np.random.default_rng(seed)
    key = np.repeat(rng.integers(-(2**63), 2**63 - 1, size=len(sizes)), sizes)
    n = len(key)
    behavior = -rng.exponential(30.0, size=n) - 10.0 * spread
    far = np.minimum(behavior + 4.0 * spread * rng.normal(size=n) - 1.0, 0.0)
    far[rng.uniform(size=n) < 0.05] = -np.inf
    vectors = rng.normal(size=(kinds or n, width)).astype(np.float32) + np.float32(0.4)
    return Rows(
        unit=key,
        behavior=behavior,
        near=np.minimum(behavior + spread * rng.normal(size=n) - 0.5 * spread**2, 0.0),
        far=far,
        reward=rng.uniform(size=n),
        embedding=vectors[rng.integers(0, kinds, size=n)] if kinds else vectors,
        count=rng.integers(1, 6, size=n).astype(float) if counts else None,
    )


def ragged(seed: int, units: int, largest: int) -> Array:
    return np.random.default_rng(seed).integers(1, largest + 1, size=units)


def read(state: _core.State) -> str:
    """Everything that a state says, to the last bit."""
    snapshot = state.snapshot()
    parts: list[Any] = [snapshot.summary(name, diversity=choice) for name in POLICIES for choice in ("rao", "vendi")]
    return repr([*parts, snapshot.differences(POLICIES, diversity="rao"), state.n_rows])


KINDS = {
    "prompts": make(0, ragged(0, 110, 7)),
    "counts": make(1, ragged(1, 90, 7), counts=True),
    "few kinds": make(2, ragged(2, 60, 12), kinds=5, counts=True),
    "wide": make(3, ragged(3, 60, 6), width=100),
    "far": make(4, ragged(4, 90, 7), spread=60.0),
    # One of them is cut into blocks.
    "large prompts": make(5, np.array([3, 1300, 40, 300, 2]), width=3, kinds=700, counts=True),
}


@pytest.fixture(scope="module", params=KINDS)
def rows(request: pytest.FixtureRequest) -> Rows:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def whole(rows: Rows) -> str:
    return read(rows.feed(rows.state()))


def test_reading_is_not_touching(rows, whole):
    half = len(rows) // 2
    state = rows.at(slice(0, half)).feed(rows.state())
    state.snapshot()
    state.to_bytes()
    assert read(rows.at(slice(half, None)).feed(state)) == whole


@pytest.mark.parametrize("pieces", [2, 7, 60])
def test_batches(rows, whole, pieces):
    """Cuts anywhere, also inside a prompt, whose embeddings then wait for the rest of it."""
    cuts = np.sort(np.random.default_rng(pieces).integers(0, len(rows) + 1, size=pieces - 1)).tolist()
    state = rows.state()
    for start, end in pairwise([0, *cuts, len(rows)]):
        rows.at(slice(start, end)).feed(state)
    assert read(state) == whole


def through(state: _core.State, way: int) -> _core.State:
    if way % 3 == 1:
        return _core.State.from_bytes(state.to_bytes())
    return pickle.loads(pickle.dumps(state)) if way % 3 == 2 else state


@pytest.mark.parametrize(("pieces", "seed"), [(1, 0), (7, 0), (7, 1), (25, 0)])
def test_partitions(rows, whole, pieces, seed):
    """States of parts, merged in any order and grouping, on the way through bytes and pickle."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, len(rows) + 1, size=pieces - 1)).tolist()
    states = [
        through(rows.at(slice(start, end)).feed(rows.state()), int(rng.integers(3)))
        for start, end in pairwise([0, *cuts, len(rows)])
    ]
    while len(states) > 1:
        a, b = (states.pop(int(rng.integers(len(states)))) for _ in range(2))
        a.merge(b)
        states.append(through(a, int(rng.integers(3))))
    assert read(states[0]) == whole


def prompts_of(rows: Rows) -> list[Array]:
    return np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows.unit)) + 1)


@pytest.mark.parametrize("seed", range(3))
def test_order_of_rows(rows, whole, seed):
    """Rows shuffled within their prompts, and the prompts among themselves."""
    rng = np.random.default_rng(seed)
    prompts = [rng.permutation(index) for index in prompts_of(rows)]
    order = np.concatenate([prompts[i] for i in rng.permutation(len(prompts))])
    assert read(rows.at(order).feed(rows.state())) == whole


def test_single_and_double_precision(rows, whole):
    """Which type an embedding comes in says nothing about it; batches may differ, also within a prompt."""
    double = rows.but(embedding=rows.embedding.astype(np.float64))
    assert read(double.feed(rows.state())) == whole
    half = len(rows) // 2 + 1
    state = rows.at(slice(0, half)).feed(rows.state())
    assert read(double.at(slice(half, None)).feed(state)) == whole


def test_policies_together_and_alone(rows):
    together = rows.feed(rows.state()).snapshot()
    for name in POLICIES:
        alone = rows.feed(rows.state([name]), [name]).snapshot()
        assert repr(alone.summary(name)) == repr(together.summary(name))


def test_bytes_are_stable(rows):
    data = rows.feed(rows.state()).to_bytes()
    assert _core.State.from_bytes(data).to_bytes() == data


# Threads: with embeddings work is cut into tasks of 2,048 rows.


@pytest.fixture(scope="module")
def long() -> Rows:
    return make(7, ragged(7, 8_000, 5), width=12)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads(long, threads):
    assert len(long) > 8 * 2048
    assert read(long.feed(long.state(), threads=threads)) == read(long.feed(long.state(), threads=1))


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6),
    units=st.integers(2, 20),
    largest=st.integers(1, 9),
    counts=st.booleans(),
    kinds=st.sampled_from([0, 1, 3]),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
    cuts=st.lists(st.integers(0, 150), max_size=6),
    order=st.randoms(use_true_random=False),
    ways=st.lists(st.integers(0, 2), min_size=8, max_size=8),
)
def test_any_log_in_any_pieces(seed, units, largest, counts, kinds, spread, cuts, order, ways):
    rows = make(seed, ragged(seed, units, largest), counts=counts, kinds=kinds, spread=spread, width=4)
    whole, prompts = rows.feed(rows.state()), prompts_of(rows)
    for index in prompts:
        order.shuffle(index)
    order.shuffle(prompts)
    mixed = rows.at(np.concatenate(prompts))
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    total = rows.state()
    states = [
        through(mixed.at(slice(a, b)).feed(rows.state()), way)
        for (a, b), way in zip(pairwise(edges), ways, strict=False)
    ]
    order.shuffle(states)
    for state in states:
        total.merge(state)
    for name in POLICIES:
        try:
            expected = repr(whole.snapshot().summary(name))
        except Exception as error:
            with pytest.raises(type(error)):
                total.snapshot().summary(name)
        else:
            assert repr(total.snapshot().summary(name)) == expected
