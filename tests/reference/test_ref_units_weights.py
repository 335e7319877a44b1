from __future__ import annotations

import numpy as np
import pytest
from ref_worlds import small_log
from scipy import stats

from pope_fast.reference import special, units, weights


def test_unit_means_by_hand():
    unit = np.array([5, -2, 5, 5])
    mean = units.unit_means([1.0, 10.0, 2.0, 6.0], unit, [1, 4, 1, 2])
    np.testing.assert_array_equal(mean, [10.0, (1 + 2 + 12) / 4])
    np.testing.assert_array_equal(units.unit_sizes(unit, [1, 4, 1, 2]), [4, 4])


def test_counts_are_repeated_draws():
    log = small_log(1)
    draws = log.draws()
    np.testing.assert_allclose(
        units.unit_means(log.reward, log.unit, log.count),
        units.unit_means(draws.reward, draws.unit),
        rtol=1e-14,
    )
    (spread,) = units.expand_draws(log.count, log.reward)
    np.testing.assert_array_equal(spread, draws.reward)


def test_fractional_counts_are_no_draws():
    with pytest.raises(ValueError, match="whole-number"):
        units.expand_draws([1.0, 1.5], [0, 1])


def test_splitmix64_published_sequence():
    # The first outputs of the generator seeded with 0 are the hashes of 0, g, 2 g: g the golden gamma.
    golden = 0x9E3779B97F4A7C15
    keys = np.array([0, golden, 2 * golden % 2**64], dtype=np.uint64)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(h) for h in units.splitmix64(keys.view(np.int64))] == expected


def test_buckets_fill_evenly():
    b = units.bucket(np.arange(128_000))
    assert b.min() == 0
    assert b.max() == 127
    assert stats.chisquare(np.bincount(b, minlength=128)).pvalue > 1e-4


def test_truncation_level():
    log = small_log(2)
    a = units.unit_means(np.exp(log.logw), log.unit, log.count)
    assert weights.truncation_level(log.logw, log.unit, log.count) == pytest.approx(np.sqrt(40) * a.mean())
    assert weights.truncation_level(log.logw, log.unit, relative=False) == pytest.approx(np.sqrt(40))
    assert weights.truncate(log.logw, 0.5).max() == 0.5


def test_weights_of_hopeless_log_probabilities():
    assert weights.importance_weights(weights.log_weights([-2000.0], [-2000.5]))[0] == pytest.approx(np.exp(0.5))
    np.testing.assert_array_equal(weights.importance_weights([-np.inf, 0.0]), [0.0, 1.0])
    np.testing.assert_array_equal(weights.shifted_weights([-np.inf, -np.inf]), [0.0, 0.0])
    np.testing.assert_allclose(weights.shifted_weights([5000.0, 5001.0]), [np.exp(-1), 1.0])


def test_token_sums():
    offsets, target, behavior = [0, 3, 3, 5], [-1.0, -2.0, -0.5, -3.0, -0.25], [-1.5, -1.0, -0.5, -0.5, -0.25]
    sums = weights.token_sums(offsets, target, behavior, clip=0.6)
    np.testing.assert_allclose(sums.log_ratio, [-0.5, 0.0, -2.5])
    np.testing.assert_allclose(sums.mean_log_ratio, [-0.5 / 3, 0.0, -1.25])
    np.testing.assert_allclose(sums.clipped_log_ratio, [0.5 - 0.6, 0.0, -0.6])


@pytest.mark.parametrize("df", [1, 2, 7.5, 127, 4999, 1e6])
@pytest.mark.parametrize("p", [0.0005, 0.025, 0.3, 0.5, 0.9, 0.975, 0.9999])
def test_student_quantile_against_scipy(p, df):
    assert special.student_t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9, abs=1e-9)
    assert special.student_t_cdf(stats.t.ppf(p, df), df) == pytest.approx(p, rel=1e-9)


def test_student_quantile_of_no_probability():
    with pytest.raises(ValueError, match="probability"):
        special.student_t_quantile(1.0, 5)
