"""A log read in any pieces, by any number of threads, in any order: the same bits."""

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

from pope_fast import _core, ope

Array = npt.NDArray[Any]
POLICIES = ["near", "far"]
RANGE = (0.0, 1.0)


@dataclass(frozen=True)
class Rows:
    """Columns of a log with two policies."""

    unit: Array | None
    behavior: Array
    near: Array
    far: Array
    reward: Array
    cluster: Array
    group: Array
    tokens: Array
    baseline: Array
    near_mean: Array
    far_mean: Array
    count: Array | None = None

    def __len__(self) -> int:
        return len(self.reward)

    def at(self, index: Array | slice) -> Rows:
        return replace(self, **{k: v[index] for k, v in vars(self).items() if v is not None})

    def but(self, **changes: Any) -> Rows:
        return replace(self, **changes)

    def state(self, policies: list[str] = POLICIES) -> _core.State:
        return _core.State(
            policies,
            RANGE,
            row_units=self.unit is None,
            has_cluster=True,
            has_group=True,
            has_tokens=True,
            has_baseline=True,
            tail_capacity=40,
        )

    def feed(
        self, state: _core.State, policies: list[str] = POLICIES, first_row: int = 0, threads: int = 1
    ) -> _core.State:
        state.update(
            self.unit,
            self.behavior,
            [np.ascontiguousarray(getattr(self, name)) for name in policies],
            self.reward,
            cluster=self.cluster,
            group=self.group,
            count=self.count,
            num_tokens=self.tokens,
            baseline=self.baseline,
            baseline_means=[getattr(self, f"{name}_mean") for name in policies],
            first_row=first_row,
            threads=threads,
        )
        return state


def make(
    seed: int, units: int, *, largest: int = 7, counts: bool = False, spread: float = 1.2, clusters: int = 9
) -> Rows:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, largest + 1, size=units)
    key = np.repeat(rng.integers(-(2**63), 2**63 - 1, size=units), sizes)
    n = len(key)
    behavior = -rng.exponential(30.0, size=n) - 10.0 * spread
    near = np.minimum(behavior + spread * rng.normal(size=n) - 0.5 * spread**2, 0.0)
    far = np.minimum(behavior + 4.0 * spread * rng.normal(size=n) - 1.0, 0.0)
    far[rng.uniform(size=n) < 0.05] = -np.inf
    labels = rng.integers(-(2**63), 2**63 - 1, size=clusters)
    labels[: clusters // 2] = np.arange(clusters // 2)
    return Rows(
        unit=key,
        behavior=behavior,
        near=near,
        far=far,
        reward=rng.uniform(size=n),
        cluster=labels[rng.integers(0, clusters, size=n)],
        group=rng.choice([-3, 5, 10**12], size=n),
        tokens=rng.integers(1, 500, size=n).astype(float),
        baseline=rng.normal(size=n),
        near_mean=rng.normal(size=n),
        far_mean=rng.normal(size=n),
        count=rng.integers(1, 6, size=n).astype(float) if counts else None,
    )


def read(state: _core.State) -> str:
    """Everything that a state says, to the last bit (repr of a double is exact; 0.0 and -0.0 differ)."""
    snapshot = state.snapshot()
    parts: list[Any] = [snapshot.summary(name, diversity_weight=0.3) for name in POLICIES]
    return repr([*parts, snapshot.differences(POLICIES), snapshot.behavior(), state.n_rows])


KINDS = {
    "prompts": make(0, 110),
    "counts": make(1, 90, counts=True),
    "large prompts": make(2, 12, largest=300),
    "far": make(3, 100, spread=60.0),
    "many clusters": make(4, 100, clusters=150),
}


@pytest.fixture(scope="module", params=KINDS)
def rows(request: pytest.FixtureRequest) -> Rows:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def whole(rows: Rows) -> str:
    return read(rows.feed(rows.state()))


def test_reading_is_not_touching(rows, whole):
    """A snapshot leaves the state as it is, and more rows may follow."""
    half = len(rows) // 2
    state = rows.at(slice(0, half)).feed(rows.state())
    state.snapshot()
    state.to_bytes()
    assert read(rows.at(slice(half, None)).feed(state, first_row=half)) == whole


@pytest.mark.parametrize("pieces", [2, 7, 100])
def test_batches(rows, whole, pieces):
    """Cuts anywhere, also inside a prompt."""
    rng = np.random.default_rng(pieces)
    cuts = np.sort(rng.integers(0, len(rows) + 1, size=pieces - 1)).tolist()
    state = rows.state()
    for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        rows.at(slice(start, end)).feed(state, first_row=start)
    assert read(state) == whole


def through(state: _core.State, way: int) -> _core.State:
    """As it travels between processes."""
    if way % 3 == 1:
        return _core.State.from_bytes(state.to_bytes())
    if way % 3 == 2:
        return pickle.loads(pickle.dumps(state))
    return state


def merged(rows: Rows, pieces: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, len(rows) + 1, size=pieces - 1)).tolist()
    parts = [
        rows.at(slice(start, end)).feed(rows.state(), first_row=start)
        for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True)
    ]
    states = [
        through(parts[i], int(way))
        for i, way in zip(rng.permutation(pieces), rng.integers(0, 3, size=pieces), strict=True)
    ]
    while len(states) > 1:
        a, b = (states.pop(int(rng.integers(len(states)))) for _ in range(2))
        a.merge(b)
        states.append(through(a, int(rng.integers(3))))
    return read(states[0])


@pytest.mark.parametrize(("pieces", "seed"), [(1, 0), (7, 0), (7, 1), (7, 2), (25, 0)])
def test_partitions(rows, whole, pieces, seed):
    """States of parts, merged in any order and grouping, on the way through bytes and pickle."""
    assert merged(rows, pieces, seed) == whole


@pytest.mark.parametrize("kind", ["prompts", "many clusters"])
def test_a_hundred_partitions(kind):
    rows = KINDS[kind]
    assert merged(rows, 100, 1) == read(rows.feed(rows.state()))


def test_merge_has_an_identity(rows, whole):
    for first, second in ((rows.state(), rows.feed(rows.state())), (rows.feed(rows.state()), rows.state())):
        first.merge(second)
        assert read(first) == whole


def test_bytes_are_stable(rows):
    """The same state gives the same bytes, and they survive a round trip."""
    data = rows.feed(rows.state()).to_bytes()
    assert _core.State.from_bytes(data).to_bytes() == data


def prompts_of(rows: Rows) -> list[Array]:
    assert rows.unit is not None
    edges = np.flatnonzero(np.diff(rows.unit)) + 1
    return np.split(np.arange(len(rows)), edges)


@pytest.mark.parametrize("seed", range(4))
def test_order_of_rows(rows, whole, seed):
    """Rows shuffled within their prompts, and the prompts among themselves."""
    rng = np.random.default_rng(seed)
    prompts = [rng.permutation(index) for index in prompts_of(rows)]
    order = np.concatenate([prompts[i] for i in rng.permutation(len(prompts))])
    assert read(rows.at(order).feed(rows.state())) == whole


def test_single_precision(rows):
    """Which type a value comes in says nothing about the value."""
    names = ("behavior", "near", "far", "reward")
    single = rows.but(**{name: getattr(rows, name).astype(np.float32) for name in names})
    double = rows.but(**{name: getattr(single, name).astype(np.float64) for name in names})
    mixed = double.but(far=single.far, reward=single.reward)
    expected = read(double.feed(rows.state()))
    assert read(single.feed(rows.state())) == expected
    assert read(mixed.feed(rows.state())) == expected


def test_single_precision_of_other_batches(rows):
    """Batches may differ in type, also within a prompt."""
    single = rows.but(reward=rows.reward.astype(np.float32), near=rows.near.astype(np.float32))
    double = rows.but(reward=single.reward.astype(np.float64), near=single.near.astype(np.float64))
    state, half = rows.state(), len(rows) // 2 + 1
    single.at(slice(0, half)).feed(state)
    double.at(slice(half, None)).feed(state)
    assert read(state) == read(double.feed(rows.state()))


def test_narrow_labels():
    rows = KINDS["prompts"]
    rows = rows.but(cluster=rows.cluster % 1000 - 500)
    narrow = rows.but(cluster=rows.cluster.astype(np.int32), group=(rows.group % 7).astype(np.int32))
    wide = narrow.but(group=narrow.group.astype(np.int64), cluster=rows.cluster)
    assert read(narrow.feed(rows.state())) == read(wide.feed(rows.state()))


def test_policies_together_and_alone(rows):
    """A policy's numbers do not depend on who else is evaluated."""
    together = rows.feed(rows.state()).snapshot()
    for name in POLICIES:
        alone = rows.feed(rows.state([name]), [name]).snapshot()
        assert repr(alone.summary(name)) == repr(together.summary(name))
    swapped = rows.feed(rows.state(POLICIES[::-1]), POLICIES[::-1]).snapshot()
    assert repr(swapped.summary("far")) == repr(together.summary("far"))
    assert repr(swapped.differences(POLICIES)) == repr(together.differences(POLICIES))


def test_names_of_clusters_do_not_matter(rows):
    """Labels are labels: other large keys in the same order give the same numbers."""
    small = np.abs(rows.cluster // 2) < 2**31
    renamed = rows.but(cluster=np.where(small, rows.cluster, rows.cluster // 2)).feed(rows.state()).snapshot()
    original = rows.feed(rows.state()).snapshot()
    for name in POLICIES:
        a, b = original.summary(name), renamed.summary(name)
        for summary in (a, b):
            for cluster in summary["marginal"]["clusters"]:
                del cluster["key"]
        assert repr(a) == repr(b)


# Threads. Work is cut into tasks of 65,536 rows, so only a longer log sees more than one.


@pytest.fixture(scope="module")
def long() -> Rows:
    return make(7, 80_000, largest=5)


@pytest.fixture(scope="module")
def long_whole(long: Rows) -> str:
    return read(long.feed(long.state(), threads=1))


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads(long, long_whole, threads):
    assert len(long) > 3 * 65_536
    assert read(long.feed(long.state(), threads=threads)) == long_whole


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_and_batches(long, long_whole, threads):
    state = long.state()
    cuts = [0, 1, 70_001, 200_000, len(long)]
    for start, end in pairwise(cuts):
        long.at(slice(start, end)).feed(state, first_row=start, threads=threads)
    assert read(state) == long_whole


def test_threads_and_merges(long, long_whole):
    middle = 131_075
    late = long.at(slice(middle, None)).feed(long.state(), threads=3)
    late.merge(long.at(slice(0, middle)).feed(long.state(), threads=2))
    assert read(late) == long_whole


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_of_other_kernels(threads):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 40, size=30_000)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    target, behavior = (-rng.exponential(size=offsets[-1]).astype(np.float32) for _ in range(2))
    one = [_core.sum_tokens(offsets, target, 1), *_core.token_sums(offsets, target, behavior, 2.0, 1)]
    many = [_core.sum_tokens(offsets, target, threads), *_core.token_sums(offsets, target, behavior, 2.0, threads)]
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a, b)
    n = 200_000
    arguments = (
        np.repeat(np.arange(n // 4), 4),
        -rng.exponential(size=n),
        -rng.exponential(size=n),
        rng.uniform(size=n),
        rng.integers(0, 6, size=n),
    )
    scans = [ope.prompt_scan(*arguments, threads=t) for t in (1, threads)]
    assert repr(scans[0]) == repr(scans[1])


# Row units: a draw's bucket follows from the row's number, so the order of the rows is part of the log.


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("pieces", [1, 7, 100])
def test_partitions_of_row_units(counts, pieces):
    rows = make(9, 90, counts=counts).but(unit=None)
    whole = read(rows.feed(rows.state()))
    rng = np.random.default_rng(pieces)
    cuts = np.sort(rng.integers(0, len(rows) + 1, size=pieces - 1)).tolist()
    states = [
        through(rows.at(slice(start, end)).feed(rows.state(), first_row=start), way)
        for way, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True))
    ]
    total = rows.state()
    for i in rng.permutation(len(states)):
        total.merge(states[i])
    assert read(total) == whole


def without_buckets(record: Any) -> Any:
    """A summary without what is read off hash buckets of row numbers."""
    if isinstance(record, dict):
        if record.get("name") in ("entropy", "value") or ("utility" in record and "rows" in record):
            return {"value": record.get("value") if record.get("name") != "entropy" else None}
        if record.get("method") in ("jackknife",):
            return None
        return {k: without_buckets(v) for k, v in record.items() if k not in ("variance", "welfare", "diversity")}
    return [without_buckets(x) for x in record] if isinstance(record, list) else record


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_order_of_row_units(counts, seed):
    """What does not go by buckets (all but the jackknife, and what is made of it) sees no order."""
    rows = make(10, 80, counts=counts).but(unit=None)
    order = np.random.default_rng(seed).permutation(len(rows))
    summaries = []
    for log in (rows, rows.at(order)):
        summary = log.feed(log.state()).snapshot().summary("near")
        u = next(r for r in summary["utility"] if r["name"] == "sn_tips")
        summary["value"] = None
        # Groups and welfare: values are sums over all buckets, errors are of the jackknife.
        summary["groups"] = [
            (g["key"], g["units"], g["rows"], round(g["utility"]["value"], 11)) for g in summary["groups"]
        ]
        summary["marginal"]["plug_in"] = round(summary["marginal"]["plug_in"], 11)
        for key in ("miller_madow", "bias", "unseen_mass"):
            summary["marginal"][key] = round(summary["marginal"][key], 9)
        for cluster in summary["marginal"]["clusters"]:
            cluster["target"] = round(cluster["target"], 11)
        assert u["value"] is not None
        summaries.append(repr(without_buckets(summary)))
    assert summaries[0] == summaries[1]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6),
    units=st.integers(2, 25),
    largest=st.integers(1, 9),
    counts=st.booleans(),
    spread=st.sampled_from([0.1, 1.0, 3.0, 30.0]),
    cuts=st.lists(st.integers(0, 250), max_size=6),
    order=st.randoms(use_true_random=False),
    ways=st.lists(st.integers(0, 2), min_size=8, max_size=8),
)
def test_any_log_in_any_pieces(seed, units, largest, counts, spread, cuts, order, ways):
    rows = make(seed, units, largest=largest, counts=counts, spread=spread, clusters=4)
    prompts = prompts_of(rows)
    whole = rows.feed(rows.state())
    for index in prompts:
        order.shuffle(index)
    order.shuffle(prompts)
    mixed = rows.at(np.concatenate(prompts))
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    states = [
        through(mixed.at(slice(a, b)).feed(rows.state()), way)
        for (a, b), way in zip(pairwise(edges), ways, strict=False)
    ]
    order.shuffle(states)
    total = rows.state()
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


@settings(max_examples=80)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_an_error_or_a_state(data):
    from pope_fast.errors import StateError

    for given_bytes in (data, b"POPEFAST" + data, KINDS["prompts"].state().to_bytes()[: len(data)] + data):
        with pytest.raises(StateError):
            _core.State.from_bytes(given_bytes)
