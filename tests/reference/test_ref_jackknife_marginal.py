from __future__ import annotations

import numpy as np
import pytest
from ref_worlds import small_log
from scipy import stats

from pope_fast.reference import jackknife, marginal, units


def test_jackknife_of_a_mean_is_the_mean():
    """For a linear statistic with groups of one unit: no correction, and the usual standard error."""
    x = np.random.default_rng(0).normal(size=50)
    estimate = jackknife.by_recomputation(lambda kept: float(x[kept].mean()), np.arange(50))
    assert estimate.value == pytest.approx(x.mean(), rel=1e-12)
    assert estimate.standard_error == pytest.approx(x.std(ddof=1) / np.sqrt(50), rel=1e-12)
    assert estimate.degrees_of_freedom == 49


def test_jackknife_of_a_mean_with_unequal_groups():
    rng = np.random.default_rng(1)
    x, bucket = rng.normal(size=5000), units.bucket(np.arange(5000))
    estimate = jackknife.by_recomputation(lambda kept: float(x[kept].mean()), bucket)
    assert estimate.value == pytest.approx(x.mean(), rel=1e-9)
    # 127 degrees of freedom: relative error of the standard error about 1 / sqrt(2 * 127) = 6 %.
    assert estimate.standard_error == pytest.approx(x.std(ddof=1) / np.sqrt(5000), rel=0.25)
    # For a linear statistic the pseudo-values are the group means.
    sizes = np.bincount(bucket)
    means = np.bincount(bucket, x) / sizes
    h = 5000 / sizes
    assert estimate.standard_error**2 == pytest.approx(np.mean((means - x.mean()) ** 2 / (h - 1)), rel=1e-9)


def test_jackknife_removes_the_bias_of_a_square_exactly():
    """The plug-in of mu^2 has bias sigma^2 / n; deletion of single units gives the unbiased U-statistic."""
    x = np.random.default_rng(2).normal(size=12)
    estimate = jackknife.by_recomputation(lambda kept: float(x[kept].mean() ** 2), np.arange(12))
    unbiased = (x.sum() ** 2 - np.sum(x**2)) / (12 * 11)
    assert estimate.value == pytest.approx(unbiased, rel=1e-10)


def test_jackknife_needs_two_groups():
    with pytest.raises(ValueError, match="two"):
        jackknife.by_recomputation(lambda kept: float(kept.sum()), np.zeros(5))


def _table(seed=0, spread=0.8):
    log = small_log(seed, spread=spread)
    return log, marginal.cluster_table(log.logw, log.cluster, log.unit, log.count)[1]


def test_table_by_hand():
    labels, table = marginal.cluster_table([0.0, 0.0, np.log(0.5)], [7, 3, 7], [1, 1, 2], [1, 3, 2])
    np.testing.assert_array_equal(labels, [3, 7])
    np.testing.assert_allclose(table, [[0.75, 0.25], [0.0, 0.5]])


def test_plug_in_entropy():
    _, table = _table(1)
    estimate = marginal.entropy_plug_in(table)
    assert estimate.value == pytest.approx(stats.entropy(table.sum(axis=0)), rel=1e-13)
    assert abs(estimate.influence.sum()) < 1e-10
    assert marginal.entropy([0.5, 0.5, 0.0]) == pytest.approx(np.log(2))


def test_influence_is_the_derivative_in_the_weight_of_a_unit():
    _, table = _table(2)
    n, h = len(table), 1e-6
    for i in (0, 5, 17):
        more, less = table.copy(), table.copy()
        more[i] *= 1 + h
        less[i] *= 1 - h
        slope = (marginal.entropy(marginal.shares(more)) - marginal.entropy(marginal.shares(less))) / (2 * h)
        assert marginal.entropy_plug_in(table).influence[i] == pytest.approx(n * slope, rel=1e-5, abs=1e-7)


def test_bias_is_the_trace_of_hessian_and_second_moments():
    """B = 1/2 sum_cd H_cd sum_i A_ic A_id, the Hessian of the entropy in the masses by differences."""
    _, table = _table(3)
    mass, c = table.sum(axis=0), table.shape[1]
    h = 1e-4 * mass.mean()

    def entropy_at(a, b, sa, sb):
        s = mass.copy()
        s[a] += sa * h
        s[b] += sb * h
        return marginal.entropy(s / s.sum())

    hessian = np.array(
        [
            [
                (entropy_at(a, b, 1, 1) - entropy_at(a, b, 1, -1) - entropy_at(a, b, -1, 1) + entropy_at(a, b, -1, -1))
                / (4 * h * h)
                for b in range(c)
            ]
            for a in range(c)
        ]
    )
    # Uncentered and centered second moments agree: H is homogeneous of degree 0 in the masses.
    uncentered = table.T @ table
    centered = uncentered - np.outer(mass, mass) / len(table)
    assert marginal.miller_madow_bias(table) == pytest.approx(0.5 * np.sum(hessian * uncentered), rel=1e-5)
    assert marginal.miller_madow_bias(table) == pytest.approx(0.5 * np.sum(hessian * centered), rel=1e-5)


def test_bias_of_one_response_per_unit_in_its_short_form():
    rng = np.random.default_rng(4)
    w, cluster = np.exp(rng.normal(size=300)), rng.integers(0, 5, size=300)
    _, table = marginal.cluster_table(np.log(w), cluster, np.arange(300))
    w = w / w.max()
    s2_c = np.array([np.sum(w[cluster == c] ** 2) for c in range(5)])
    q = np.array([w[cluster == c].sum() for c in range(5)]) / w.sum()
    s2 = s2_c.sum()
    short = (np.sum(np.log(q) * (s2_c - q * s2)) - 0.5 * (np.sum(s2_c / q) - s2)) / w.sum() ** 2
    assert marginal.miller_madow_bias(table) == pytest.approx(short, rel=1e-11)


def test_bias_without_weights_is_the_classical_one():
    cluster = np.random.default_rng(5).integers(0, 9, size=200)
    _, table = marginal.cluster_table(np.zeros(200), cluster, np.arange(200))
    assert marginal.miller_madow_bias(table) == pytest.approx(-8 / 400, rel=1e-12)


def test_clusters_without_mass_change_nothing():
    log, table = _table(6)
    padded = np.column_stack([table, np.zeros(len(table))])
    key = np.unique(log.unit)
    assert marginal.entropy_miller_madow(padded) == pytest.approx(marginal.entropy_miller_madow(table), rel=1e-14)
    assert marginal.entropy_jackknife(padded, key) == marginal.entropy_jackknife(table, key)


def test_jackknife_entropy_is_capped_and_near_miller_madow():
    log, table = _table(7)
    key = np.unique(log.unit)
    assert marginal.entropy_jackknife(table, key).value <= np.log(4)
    free = marginal.entropy_jackknife(table, key, cap=False)
    plug_in, mm = marginal.entropy_plug_in(table).value, marginal.entropy_miller_madow(table)
    assert free.value > plug_in
    assert abs(free.value - mm) < 0.5 * (mm - plug_in)
    assert marginal.entropy_jackknife(np.ones((30, 1)), np.arange(30)).value == 0.0


def test_unseen_mass_by_hand():
    table = [[1.0, 0.0, 2.0], [1.0, 0.5, 0.0], [0.5, 0.0, 0.0]]
    assert marginal.unseen_mass(table) == pytest.approx(2.5 / 5.0)


def test_degenerate_at_uniform_shares():
    even = np.tile(np.eye(4), (10, 1))
    assert marginal.is_degenerate(even)
    skewed = np.repeat(np.eye(3), [400, 80, 20], axis=0)
    assert not marginal.is_degenerate(skewed)
