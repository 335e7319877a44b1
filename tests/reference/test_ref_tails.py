from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from pope_fast.reference import tails

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz


SAMPLES = {
    "lognormal, light": lambda rng: 0.5 * rng.normal(size=4000),
    "lognormal, heavy": lambda rng: 3.0 * rng.normal(size=4000),
    "pareto": lambda rng: np.log(rng.pareto(1.2, size=2500)),
    "bounded": lambda rng: np.log(rng.uniform(size=1000)),
    "few": lambda rng: rng.normal(size=30),
    "ties": lambda rng: np.round(rng.normal(size=900), 1),
    "zero weights": lambda rng: np.where(rng.uniform(size=900) < 0.3, -np.inf, rng.normal(size=900)),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_k_and_smoothed_weights_against_arviz(name):
    logw = SAMPLES[name](np.random.default_rng(3))
    with np.errstate(divide="ignore", invalid="ignore"):
        smoothed, k = arviz.psislw(logw.copy(), normalize=True)
    assert tails.pareto_k(logw) == pytest.approx(float(k), rel=1e-11)
    ours = tails.smoothed_log_weights(logw)
    live = np.isfinite(logw)
    assert np.all(np.isneginf(ours[~live]))
    ours, theirs = np.exp(ours - logsumexp(ours)), np.exp(np.asarray(smoothed))
    if name == "ties":
        # ArviZ gives tied weights different order statistics, by their place; ours all get their mean.
        _, tie = np.unique(logw, return_inverse=True)
        theirs = (np.bincount(tie, theirs) / np.bincount(tie))[tie]
    np.testing.assert_allclose(ours[live], theirs[live], rtol=1e-10)


def test_no_tail_to_fit():
    assert tails.pareto_k(np.zeros(1000)) == np.inf
    assert tails.pareto_k(np.zeros(1)) == np.inf
    assert tails.pareto_k(np.random.default_rng(0).normal(size=20)) == np.inf
    np.testing.assert_array_equal(tails.smoothed_log_weights(np.zeros(10)), np.zeros(10))


@pytest.mark.parametrize(("k", "sigma"), [(0.7, 2.0), (-0.2, 1.0), (0.0, 3.0)])
def test_quantiles_against_scipy(k, sigma):
    p = np.linspace(0.01, 0.99, 13)
    np.testing.assert_allclose(
        tails.generalized_pareto_quantile(p, k, sigma), stats.genpareto.ppf(p, k, scale=sigma), rtol=1e-12
    )


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_fit_recovers_a_known_shape(k):
    y = stats.genpareto.rvs(k, scale=2.0, size=20_000, random_state=5)
    shape, scale = tails.fit_generalized_pareto(y)
    # Asymptotic standard error of the shape: (1 + k) / sqrt n.
    assert shape == pytest.approx(k, abs=4 * (1 + k) / np.sqrt(20_000))
    assert scale == pytest.approx(2.0, rel=0.06)


def test_draws_of_a_counted_row():
    logw, count = (
        np.random.default_rng(1).normal(size=400) * 2,
        np.random.default_rng(2).integers(1, 4, size=400),
    )
    assert tails.pareto_k(logw, count) == tails.pareto_k(np.repeat(logw, count))
    total = np.exp(tails.smoothed_log_weights(np.repeat(logw, count))).sum()
    assert np.sum(count * np.exp(tails.smoothed_log_weights(logw, count))) == pytest.approx(total, rel=1e-12)


def test_tail_size():
    assert tails.tail_size(100) == 20
    assert tails.tail_size(10_000) == 300
    assert tails.tail_size(10_001) == 301
