"""The small kernels: a first scan of a log, token sums, hashes, and the watch on the order of keys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pope_fast import _core, ope
from pope_fast.errors import PopeError, SchemaError
from pope_fast.reference import weights
from pope_fast.reference.units import unit_codes


def scanned(prompt, target, behavior, reward, cluster=None, clip=10.0) -> dict[str, Any]:
    """What a scan says, row by row in NumPy."""
    w = np.exp(target - behavior)
    codes = unit_codes(prompt)[1]
    v = float(np.sum(w * reward) / w.sum())
    residual = np.bincount(codes, w * (reward - v))
    n = len(residual)
    found: dict[str, Any] = {
        "ips": float(np.mean(w * reward)),
        "snips": v,
        "clipped_ips": float(np.mean(np.minimum(w, clip) * reward)),
        "ess": float(w.sum() ** 2 / np.sum(w**2)),
        "max_weight": float(w.max()),
        "snips_standard_error": math.sqrt(n / (n - 1) * float(np.sum(residual**2))) / float(w.sum()),
        "entropy_mean": None,
        "entropy_variance": None,
        "n_rows": len(w),
        "n_prompts": n,
    }
    if cluster is not None:
        entropies = []
        for i in range(n):
            rows = codes == i
            mass = np.array([w[rows & (cluster == c)].sum() for c in np.unique(cluster[rows])])
            q = mass[mass > 0] / mass.sum() if mass.sum() > 0 else np.ones(1)
            entropies.append(-float(np.sum(q * np.log(q))))
        found["entropy_mean"] = float(np.mean(entropies))
        found["entropy_variance"] = float(np.var(entropies, ddof=1))
    return found


def arrays(seed: int, prompts: int, largest: int, spread: float, clusters: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    prompt = np.repeat(rng.permutation(prompts) - prompts // 2, rng.integers(1, largest + 1, size=prompts))
    n = len(prompt)
    behavior = -rng.exponential(20.0, size=n) - 20.0
    target = behavior + spread * rng.normal(size=n)
    target[rng.uniform(size=n) < 0.03] = -np.inf
    return prompt, target, behavior, rng.normal(3.0, 2.0, size=n), rng.integers(-5, clusters, size=n) * 31


@pytest.mark.parametrize("clustered", [True, False])
@pytest.mark.parametrize(
    ("prompts", "largest", "spread", "clusters"), [(300, 9, 0.7, 6), (100, 1, 2.0, 3), (20, 200, 1.0, 150)]
)
def test_scan(prompts, largest, spread, clusters, clustered):
    columns = arrays(prompts, prompts, largest, spread, clusters)
    columns = columns if clustered else columns[:4]
    for clip in (0.5, 10.0):
        found, expected = ope.prompt_scan(*columns, clip=clip), scanned(*columns, clip=clip)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == (value if value is None else pytest.approx(value, rel=1e-10)), name


def test_scan_of_single_precision():
    prompt, *floats, cluster = arrays(0, 200, 6, 0.5, 5)
    single = [x.astype(np.float32) for x in floats]
    double = [x.astype(np.float64) for x in single]
    assert repr(ope.prompt_scan(prompt, *single, cluster.astype(np.int32))) == repr(
        ope.prompt_scan(prompt, *double, cluster)
    )


def test_scan_refuses_what_it_cannot_read():
    prompt, target, behavior, reward, cluster = arrays(0, 50, 4, 0.5, 5)
    with pytest.raises(SchemaError):
        ope.prompt_scan(prompt, target[:-1], behavior, reward, cluster)
    spoiled = reward.copy()
    spoiled[11] = np.nan
    with pytest.raises(SchemaError) as caught:
        ope.prompt_scan(prompt, target, behavior, spoiled, cluster)
    assert (caught.value.column, caught.value.row) == ("reward", 11)
    with pytest.raises(PopeError):
        ope.prompt_scan([], [], [], [])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("longest", [1, 15, 16, 17, 33, 700])
def test_token_sums(dtype, longest):
    """All lengths about the width of the lanes, empty rows among them."""
    rng = np.random.default_rng(longest)
    lengths = rng.integers(0, longest + 1, size=200)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = -rng.exponential(size=offsets[-1]).astype(dtype)
    np.testing.assert_allclose(ope.sequence_logprob(values, offsets), weights.sum_tokens(offsets, values), rtol=1e-13)
    target, behavior = values.astype(np.float32), -rng.exponential(size=offsets[-1]).astype(np.float32)
    twin = weights.token_sums(offsets, target, behavior, 0.7)
    # Token ratios are formed in single precision: half an ulp of numbers near 1, times the square root of the length.
    tolerance = 1e-6 * math.sqrt(longest)
    for found, expected in zip(ope.token_sums(target, behavior, offsets, clip=0.7), twin, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=tolerance)


def test_tokens_that_cannot_be():
    """An impossible token makes an impossible sequence; offsets need not begin at 0."""
    values = [-1.0, -np.inf, -0.5, -2.0]
    np.testing.assert_array_equal(ope.sequence_logprob(values, [0, 2, 2, 4]), [-np.inf, 0.0, -2.5])
    np.testing.assert_array_equal(ope.sequence_logprob(values, [2, 3, 4]), [-0.5, -2.0])


def test_hashes_are_xxh3():
    xxhash = pytest.importorskip("xxhash")
    texts = ["", "a", "abc", "prompt 17", "ü" * 100, "x" * 1000]
    data = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, data)]).astype(np.int64)
    found = _core.hash_strings(offsets, np.frombuffer(b"".join(data), dtype=np.uint8).copy())
    assert found.tolist() == [xxhash.xxh3_64_intdigest(x) for x in data]
    narrow = _core.hash_strings(offsets.astype(np.int32), np.frombuffer(b"".join(data), dtype=np.uint8).copy())
    assert narrow.tolist() == found.tolist()


def test_hashes_of_token_lists():
    """One list has one hash, whichever integers hold it."""
    xxhash = pytest.importorskip("xxhash")
    values = np.array([1, 2, 3, -7, 2**31 - 1], dtype=np.int32)
    offsets = np.array([0, 2, 2, 5], dtype=np.int64)
    found = _core.hash_lists(offsets, values)
    assert found.tolist() == _core.hash_lists(offsets, values.astype(np.int64)).tolist()
    wide = values.astype("<i8")
    assert found.tolist() == [xxhash.xxh3_64_intdigest(wide[a:b].tobytes()) for a, b in ((0, 2), (2, 2), (2, 5))]


@pytest.mark.parametrize(
    ("batches", "expected", "units"),
    [
        ([[1, 1, 2, 3, 3]], [-1], 3),
        ([[1, 1], [1, 2], [2, 2, 5]], [-1, -1, -1], 3),
        ([[1, 2], [1]], [-1, 0], 2),
        ([[5, 4, 3, 5]], [3], 3),
        ([[1, 2, 3], [7, 8, 2]], [-1, 2], 5),
        ([[-(2**63), 0, 2**63 - 1, 0]], [3], 3),
        ([[], [3], []], [-1, -1, -1], 1),
    ],
)
def test_keys_that_come_back(batches, expected, units):
    scan = _core.UnitScan()
    found = [scan.feed(np.array(batch, dtype=np.int64)) for batch in batches]
    assert found == expected
    if -1 in found[-1:]:
        assert scan.n_units == units


def test_build_info():
    info = _core.build_info()
    assert set(info) >= {"version", "profile", "target", "simd"}
    assert all(isinstance(value, str) for value in info.values())
    assert _core.num_threads() >= 1
