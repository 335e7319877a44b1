from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from ref_worlds import small_log

from pope_fast.reference import diversity, pairs, utility
from pope_fast.reference.value import spread

PI0, PI = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.45, 0.25])
VECTORS = np.array([[1.0, 0.0, 0.2], [0.5, 0.5, 0.0], [-0.3, 1.0, 0.4], [0.0, 0.0, 2.0]])


def _embedding(n, width=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)) + 0.5


def test_similarity_by_hand():
    k = pairs.similarity([[1.0, 0.0], [3.0, 3.0], [0.0, 2.0], [-5.0, 0.0]])
    half = np.rint(np.sqrt(0.5) * 2**30) / 2**30
    expected = [[1, half, 0, -1], [half, 1, half, -half], [0, half, 1, 0], [-1, -half, 0, 1]]
    np.testing.assert_array_equal(k, expected)
    assert pairs.similarity([[1e-300, 1e-300], [1e300, 0.0]])[0, 1] == half


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("power", [0, 1, 2])
def test_exactly_unbiased_by_enumerating_every_sample(k, power):
    """Sum over all K-tuples of responses with their probabilities: no sampling, so no Monte Carlo error."""
    kernel = pairs.similarity(VECTORS) ** power
    expectation = sum(
        np.prod(PI0[y]) * pairs.pair_moment((PI / PI0)[y], kernel[np.ix_(y, y)])
        for y in map(np.array, product(range(4), repeat=k))
    )
    assert expectation == pytest.approx(PI @ kernel @ PI, rel=1e-12)


def test_exact_values():
    """Rao is 1 - |E v|^2; the Vendi score of order 2 is the exponential of a Renyi entropy of eigenvalues."""
    units = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    assert pairs.exact_rao(PI, VECTORS) == pytest.approx(1.0 - np.sum((PI @ units) ** 2), abs=1e-8)
    root = np.sqrt(PI)
    eigenvalues = np.linalg.eigvalsh(root[:, None] * (units @ units.T) * root[None, :])
    renyi = -np.log(np.sum(eigenvalues**2))
    assert 1.0 / pairs.exact_squared_similarity(PI, VECTORS) == pytest.approx(np.exp(renyi), rel=1e-8)


def test_ranges():
    """E k is at least 0 and E k^2 at least 1 / width, however the vectors lie."""
    rng = np.random.default_rng(1)
    for width in (1, 2, 5):
        for _ in range(50):
            p, v = rng.dirichlet(np.full(6, 0.3)), rng.normal(size=(6, width))
            assert pairs.exact_rao(p, v) <= 1.0 + 1e-8
            assert 1.0 / width - 1e-8 <= pairs.exact_squared_similarity(p, v) <= 1.0 + 1e-12


def test_bounding_variables_also_for_truncated_weights():
    k = pairs.similarity(VECTORS)
    rao, square = pairs.exact_rao(PI, VECTORS), pairs.exact_squared_similarity(PI, VECTORS)
    w = np.minimum(PI / PI0, 1.2)
    means = np.zeros(4)
    for sample in product(range(4), repeat=3):
        y = np.array(sample)
        moments = [np.array([pairs.pair_moment(w[y], k[np.ix_(y, y)] ** p)]) for p in (0, 1, 2)]
        found = pairs.bound_variables(pairs.PairMoments(np.zeros(1), *moments, np.ones(1, dtype=bool), 3))
        assert min(float(x[0]) for x in found) >= -1e-15
        means += np.prod(PI0[y]) * np.array([x[0] for x in found])
    apart, near, same, unlike = means
    assert apart < rao < 2.0 - near
    assert same < square < 1.0 - unlike


def test_one_hot_is_gini_simpson():
    log = small_log(2)
    labels, code = np.unique(log.cluster, return_inverse=True)
    moments = pairs.pair_moments(log.logw, np.eye(len(labels))[code], log.unit, log.count)
    family = diversity.within_prompt(log.logw, log.cluster, log.unit, log.count, max_order=1)
    gini = diversity.gini_simpson(family).value
    np.testing.assert_array_equal(moments.used, family.used)
    assert pairs.rao_control(moments) == pytest.approx(gini, rel=1e-13)
    assert pairs.vendi_control(moments) == pytest.approx(1.0 / (1.0 - gini), rel=1e-13)
    same = pairs.pair_moments(np.zeros(len(log.logw)), np.eye(len(labels))[code], log.unit, log.count)
    assert pairs.rao(same).value == pytest.approx(pairs.rao_control(same), rel=1e-13)


def test_multiplicity_is_repetition():
    log = small_log(3)
    x = _embedding(len(log.logw))
    draws = log.draws()
    a = pairs.pair_moments(log.logw, x, log.unit, log.count)
    b = pairs.pair_moments(draws.logw, np.repeat(x, log.count, axis=0), draws.unit)
    for name in ("a", "b", "q1", "q2"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-12)


def test_free_of_scale():
    log = small_log(4)
    x = _embedding(len(log.logw))
    near, far = (pairs.pair_moments(log.logw + shift, x, log.unit, log.count) for shift in (0.0, 1.7))
    for measure in (pairs.rao, pairs.vendi):
        assert measure(near).value == pytest.approx(measure(far).value, rel=1e-12)
        np.testing.assert_allclose(measure(near).influence, measure(far).influence, rtol=1e-9, atol=1e-12)
    assert pairs.rao_control(near) == pytest.approx(pairs.rao_control(far), rel=1e-12)
    assert pairs.vendi_control(near) == pytest.approx(pairs.vendi_control(far), rel=1e-12)


@pytest.mark.parametrize("measure", [pairs.rao, pairs.vendi])
def test_influence_is_the_derivative(measure):
    """Give one unit a little more weight and see how the estimate moves."""
    log = small_log(5)
    moments = pairs.pair_moments(log.logw, _embedding(len(log.logw), width=9), log.unit, log.count)
    point, n, step = measure(moments), len(moments.b), 1e-6
    assert abs(point.influence.sum()) < 1e-12
    for i in (0, 3, n - 1):
        share = np.full(n, (1.0 - step) / n)
        share[i] += step
        moved = moments._replace(**{name: getattr(moments, name) * share * n for name in ("a", "b", "q1", "q2")})
        assert (measure(moved).value - point.value) / step == pytest.approx(point.influence[i], rel=1e-4, abs=1e-7)


def test_units_with_one_draw_are_left_out():
    log = small_log(6, largest_count=1)
    moments = pairs.pair_moments(log.logw, _embedding(len(log.logw)), log.unit)
    assert 0 < np.count_nonzero(~moments.used) < len(moments.used)
    full = spread(pairs.rao(moments).influence, moments.used)
    assert len(full) == len(utility.snips(log.logw, log.reward, log.unit).influence)
    assert np.all(full[~moments.used] == 0.0)
