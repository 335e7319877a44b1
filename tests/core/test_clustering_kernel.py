"""Clustering within prompts: against the twin, scikit-learn and SciPy, and what must not matter."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.cluster.hierarchy import linkage as scipy_linkage
from scipy.spatial.distance import pdist

from pope_fast import _core
from pope_fast.errors import PopeError, SchemaError
from pope_fast.reference import clustering

LINKAGES = ("average", "complete", "leader")
TREES = ("average", "complete")


def offsets_of(sizes) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def answers(seed, sizes, dims=24, spread=1.0, kinds=3) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and embeddings: each prompt has a few directions, each response is one of them and noise."""
    rng = np.random.default_rng(seed)
    offsets = offsets_of(sizes)
    x = rng.normal(size=(offsets[-1], dims)) * spread
    for start, end in itertools.pairwise(offsets):
        x[start:end] += rng.normal(size=(kinds, dims))[rng.integers(kinds, size=end - start)]
    return offsets, x.astype(np.float32)


def clustered(offsets, x, thresholds, linkage, **options) -> np.ndarray:
    return _core.cluster_prompts(offsets, x, np.asarray(thresholds, dtype=np.float64), linkage, **options)


def together(labels) -> np.ndarray:
    return labels[:, None] == labels[None, :]


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("spread", [0.4, 1.0, 2.0])
def test_against_the_twin(linkage, spread):
    sizes = [8, 1, 0, 2, 3, 8, 13, 5, 30, 66, 0]
    offsets, x = answers(3, sizes, spread=spread)
    thresholds = [0.1, 0.7, 0.3, 0.5]
    found = clustered(offsets, x, thresholds, linkage)
    assert found.dtype == np.int32
    assert found.shape == (len(thresholds), len(x))
    for row, threshold in zip(found, thresholds, strict=True):
        for start, end in itertools.pairwise(offsets):
            expected = clustering.cluster_prompt(x[start:end], threshold, linkage)
            np.testing.assert_array_equal(row[start:end], expected)


@pytest.mark.parametrize("linkage", TREES)
@pytest.mark.parametrize("n", [2, 5, 8, 40, 150])
def test_against_scikit_learn(linkage, n):
    cluster = pytest.importorskip("sklearn.cluster")
    offsets, x = answers(n, [n], dims=16)
    for threshold in (0.05, 0.2, 0.4, 0.6, 0.8):
        peer = cluster.AgglomerativeClustering(
            n_clusters=None, metric="cosine", linkage=linkage, distance_threshold=1 - threshold
        )
        expected = peer.fit_predict(x.astype(np.float64))
        np.testing.assert_array_equal(together(clustered(offsets, x, [threshold], linkage)[0]), together(expected))


def leaves(children, n) -> list[frozenset[int]]:
    nodes = [frozenset([i]) for i in range(n)]
    for a, b in np.asarray(children, dtype=int).tolist():
        nodes.append(nodes[a] | nodes[b])
    return nodes[n:]


@pytest.mark.parametrize("linkage", TREES)
def test_trees_against_scipy(linkage):
    sizes = [2, 8, 1, 0, 50, 200, 300]
    offsets, x = answers(5, sizes, dims=12)
    children, similarity = _core.dendrograms(offsets, x, linkage)
    assert children.shape == (sum(max(n - 1, 0) for n in sizes), 2)
    done = 0
    for start, end in itertools.pairwise(offsets):
        n = int(end - start)
        if n < 2:
            continue
        expected = scipy_linkage(pdist(x[start:end].astype(np.float64), "cosine"), linkage)
        part = slice(done, done + n - 1)
        np.testing.assert_allclose(1 - similarity[part], expected[:, 2], atol=3e-7)
        assert leaves(children[part], n) == leaves(expected[:, :2], n)
        done += n - 1


@pytest.mark.parametrize("linkage", TREES)
def test_cutting_a_tree_gives_the_labels(linkage):
    offsets, x = answers(8, [25, 60])
    children, similarity = _core.dendrograms(offsets, x, linkage)
    for threshold in (0.15, 0.45):
        labels = clustered(offsets, x, [threshold], linkage)[0]
        for start, end, first in ((0, 25, 0), (25, 85, 24)):
            part = slice(first, first + end - start - 1)
            above = (similarity[part] >= threshold).sum()
            assert labels[start:end].max() + 1 == end - start - above
            for members in leaves(children[part][:above], end - start):
                assert len(set(labels[start:end][sorted(members)].tolist())) == 1


# Coordinates of few values make copies, zero vectors, opposite vectors and ties of every kind.
coarse = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 20), st.just(3)), elements=st.sampled_from([-1.0, 0.0, 1.0, 2.0])
)
thresholds_of = st.lists(st.floats(-1, 1), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(coarse, thresholds_of, st.sampled_from(LINKAGES), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(x, thresholds, linkage, random):
    order = list(range(len(x)))
    random.shuffle(order)
    offsets = np.array([0, len(x)], dtype=np.int64)
    straight, shuffled = clustered(offsets, x, thresholds, linkage), clustered(offsets, x[order], thresholds, linkage)
    for a, b in zip(straight, shuffled, strict=True):
        np.testing.assert_array_equal(together(a)[np.ix_(order, order)], together(b))


@settings(max_examples=200, deadline=None)
@given(coarse, thresholds_of, st.sampled_from(LINKAGES))
def test_equal_rows_are_together_and_zero_rows_apart(x, thresholds, linkage):
    labels = clustered(np.array([0, len(x)], dtype=np.int64), x, thresholds, linkage)
    equal = (x[:, None] == x[None, :]).all(axis=2)
    zero = ~x.any(axis=1)
    for row in labels:
        assert together(row)[equal].all()
        assert not together(row)[zero][:, ~zero].any()
        # Numbered in the order in which clusters appear.
        assert list(dict.fromkeys(row.tolist())) == list(range(row.max() + 1))


@settings(max_examples=100, deadline=None)
@given(coarse, st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.sampled_from(TREES))
def test_partitions_are_nested(x, thresholds, linkage):
    labels = clustered(np.array([0, len(x)], dtype=np.int64), x, sorted(thresholds), linkage)
    for coarser, finer in itertools.pairwise(labels):
        assert together(coarser)[together(finer)].all()


@settings(max_examples=60, deadline=None)
@given(coarse, thresholds_of, st.sampled_from(LINKAGES))
def test_one_run_for_many_thresholds(x, thresholds, linkage):
    offsets = np.array([0, len(x)], dtype=np.int64)
    for threshold, row in zip(thresholds, clustered(offsets, x, thresholds, linkage), strict=True):
        np.testing.assert_array_equal(row, clustered(offsets, x, [threshold], linkage)[0])


@pytest.mark.parametrize("linkage", LINKAGES)
def test_the_same_bits_for_any_number_of_threads(linkage):
    offsets, x = answers(9, [7, 200, 0, 3, 9] * 40 + [2100], dims=8)
    x[::11] = x[5]
    one = clustered(offsets, x, [0.3, 0.6], linkage, threads=1)
    for threads in (2, 5):
        np.testing.assert_array_equal(one, clustered(offsets, x, [0.3, 0.6], linkage, threads=threads))
    if linkage != "leader":
        trees = [_core.dendrograms(offsets, x, linkage, threads=threads) for threads in (1, 3)]
        assert trees[0][0].tobytes() == trees[1][0].tobytes()
        assert trees[0][1].tobytes() == trees[1][1].tobytes()


def test_the_length_of_a_vector_does_not_matter():
    offsets, x = answers(4, [12] * 20)
    scale = np.exp2(np.random.default_rng(0).integers(-100, 100, size=(len(x), 1))).astype(np.float32)
    for linkage in TREES:
        np.testing.assert_array_equal(
            clustered(offsets, x, [0.4], linkage), clustered(offsets, x * scale, [0.4], linkage)
        )


# ---- Given relations

relation = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        st.just(n), st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=math.comb(n, 2), max_size=math.comb(n, 2))
    )
)


def square(n, condensed) -> np.ndarray:
    matrix = np.eye(n)
    matrix[np.triu_indices(n, 1)] = condensed
    return np.maximum(matrix, matrix.T)


@settings(max_examples=300, deadline=None)
@given(relation, st.sampled_from([0.25, 0.5, 0.75, 1.0]), st.sampled_from(LINKAGES), st.randoms(use_true_random=False))
def test_relations_with_ties_against_the_twin(given_relation, threshold, linkage, random):
    """Ties are broken by the keys, in the twin as in the kernel, and rows may come in any order."""
    n, condensed = given_relation
    keys = np.array(random.sample(range(1000), n), dtype=np.uint64)
    order = np.argsort(keys).tolist()
    similarity = square(n, condensed)
    if linkage == "leader":
        expected = clustering.greedy_leaders(similarity, threshold, order)
    else:
        expected = clustering.agglomerate(similarity, threshold, linkage, order)[0]
    for _ in range(2):
        shuffle = random.sample(range(n), n)
        part = similarity[np.ix_(shuffle, shuffle)][np.triu_indices(n, 1)].astype(np.float32)
        found = _core.cluster_pairs(offsets_of([n]), part, np.array([threshold]), linkage, keys=keys[shuffle])[0]
        np.testing.assert_array_equal(together(found), together(expected)[np.ix_(shuffle, shuffle)])


@pytest.mark.parametrize("linkage", LINKAGES)
def test_counts_stand_for_copies(linkage):
    rng = np.random.default_rng(12)
    n = 7
    similarity = square(n, rng.uniform(size=math.comb(n, 2)).astype(np.float32))
    counts = rng.integers(1, 5, size=n)
    copies = np.repeat(np.arange(n), counts)
    condensed = similarity[np.triu_indices(n, 1)].astype(np.float32)
    for threshold in (0.3, 0.5, 0.7):
        found = _core.cluster_pairs(offsets_of([n]), condensed, np.array([threshold]), linkage, counts=counts)[0]
        full = similarity[np.ix_(copies, copies)]
        if linkage == "leader":
            expected = clustering.greedy_leaders(full, threshold)
        else:
            expected = clustering.agglomerate(full, threshold, linkage)[0]
        np.testing.assert_array_equal(found[copies], expected)


def test_relations_of_many_prompts():
    sizes = [3, 0, 1, 80, 2]
    offsets, x = answers(21, sizes)
    parts = []
    for start, end in itertools.pairwise(offsets):
        similarity = clustering.cosine_similarity(x[start:end])
        parts.append(similarity[np.triu_indices(end - start, 1)])
    similarities = np.concatenate(parts).astype(np.float32)
    for linkage in LINKAGES:
        found = _core.cluster_pairs(offsets, similarities, np.array([0.5, 0.2]), linkage)
        np.testing.assert_array_equal(found, clustered(offsets, x, [0.5, 0.2], linkage))


# ---- Agreement


def test_agreement_against_the_twin_and_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    offsets = offsets_of([5, 0, 1, 12, 30, 2])
    labels = rng.integers(-2, 4, size=(4, offsets[-1])).astype(np.int32)
    labels[2] = labels[1] % 2
    clusters, rand = _core.compare_labels(offsets, labels, threads=2)
    prompt = np.repeat(np.arange(6), np.diff(offsets))
    assert clusters.tolist() == [len(set(zip(prompt.tolist(), row.tolist(), strict=True))) for row in labels]
    expected = [clustering.adjusted_rand(offsets, a, b) for a, b in itertools.pairwise(labels)]
    np.testing.assert_allclose(rand, expected, rtol=1e-12)
    _, whole = _core.compare_labels(offsets_of([offsets[-1]]), labels)
    peer = [metrics.adjusted_rand_score(a, b) for a, b in itertools.pairwise(labels)]
    np.testing.assert_allclose(whole, peer, atol=1e-12)


# ---- Faults


def test_what_cannot_be_clustered():
    offsets, x = answers(0, [3, 4])
    for bad, row in ((np.nan, 4), (np.inf, 6)):
        spoiled = x.copy()
        spoiled[row, 2] = bad
        with pytest.raises(SchemaError) as caught:
            clustered(offsets, spoiled, [0.5], "average")
        assert (caught.value.column, caught.value.row) == ("embedding", row)
    for thresholds in ([], [1.5], [np.nan]):
        with pytest.raises(PopeError, match="threshold"):
            clustered(offsets, x, thresholds, "average")
    with pytest.raises(PopeError, match="'average', 'complete' and 'leader'"):
        clustered(offsets, x, [0.5], "single")
    with pytest.raises(PopeError, match="threads"):
        clustered(offsets, x, [0.5], "average", threads=0)
    with pytest.raises(SchemaError, match="offsets"):
        clustered(offsets[:-1], x, [0.5], "average")
    with pytest.raises(SchemaError, match="contiguous"):
        clustered(offsets, np.asfortranarray(x), [0.5], "average")
    with pytest.raises(SchemaError, match="dimensions"):
        clustered(offsets, x[:, :0], [0.5], "average")
    with pytest.raises(PopeError, match="leaders make no tree"):
        _core.dendrograms(offsets, x, "leader")
    with pytest.raises(SchemaError, match="2 keys for 7 rows"):
        _core.cluster_pairs(
            offsets, np.zeros(9, np.float32), np.array([0.5]), "average", keys=np.zeros(2, dtype=np.uint64)
        )
    with pytest.raises(SchemaError) as caught:
        _core.cluster_pairs(offsets, np.full(9, 2.0, np.float32), np.array([0.5]), "average")
    assert (caught.value.column, caught.value.row) == ("similarity", 0)


def test_a_prompt_too_large_for_a_matrix():
    """The limit is named together with the way out, and the way out works."""
    n = 16_385
    x = np.stack([np.ones(n), np.arange(n)], axis=1).astype(np.float32)
    offsets = offsets_of([n])
    for linkage in TREES:
        with pytest.raises(PopeError, match=r"16385 distinct responses.*16384.*leader"):
            clustered(offsets, x, [0.9], linkage)
    assert clustered(offsets, x, [-1.0], "leader").max() == 0
