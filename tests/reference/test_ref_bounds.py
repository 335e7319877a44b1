from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pope_fast.reference import bounds


def _world(seed):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(12)), rng.dirichlet(2 * np.ones(12))
    return p, q, rng.uniform(0.05, 1.0, size=12), rng.integers(0, 3, size=12)


@pytest.mark.parametrize("seed", range(20))
def test_lower_bounds_hold(seed):
    p, q, r, event = _world(seed)
    exact = bounds.ips_variance(p, q, r)
    assert bounds.jensen_lower(p, q, r) <= exact
    assert bounds.tilted_jensen_lower(p, q, r) <= exact
    assert bounds.event_lower(p, q, r, event) <= exact
    assert bounds.hammersley_chapman_robbins_lower(p, q) <= bounds.chi_square(p, q)
    assert exact <= 4 * bounds.popoviciu_upper(np.max(p / q * r), 1)


def test_bounds_are_tight_where_they_should_be():
    p, q, r, event = _world(0)
    # Untilted Jensen: w r^2 constant.  Tilted: w constant.  Cauchy-Schwarz: w r constant within each event.
    flat = np.sqrt(q / p)
    assert bounds.jensen_lower(p, q, flat) == pytest.approx(bounds.ips_variance(p, q, flat), abs=1e-12)
    assert bounds.tilted_jensen_lower(p, p, r) == pytest.approx(bounds.ips_variance(p, p, r), abs=1e-12)
    stepped = (1.0 + event) * q / p
    assert bounds.event_lower(p, q, stepped, event) == pytest.approx(bounds.ips_variance(p, q, stepped), abs=1e-12)
    # None of the first two is always the better one.
    assert bounds.jensen_lower(p, q, flat) > bounds.tilted_jensen_lower(p, q, flat)
    assert bounds.jensen_lower(p, p, r) < bounds.tilted_jensen_lower(p, p, r)
    # Two points: the log-weight is a linear function of the weight.
    assert bounds.hammersley_chapman_robbins_lower([0.3, 0.7], [0.6, 0.4]) == pytest.approx(
        bounds.chi_square([0.3, 0.7], [0.6, 0.4])
    )


def test_divergences():
    p, q, _, _ = _world(1)
    assert bounds.kl_divergence(p, q) == pytest.approx(stats.entropy(p, q))
    assert bounds.kl_divergence([0.5, 0.5], [1.0, 0.0]) == np.inf
    assert bounds.kl_divergence([1.0, 0.0], [0.5, 0.5]) == pytest.approx(np.log(2))
    assert bounds.chi_square(q, q) == pytest.approx(0.0, abs=1e-14)
    assert bounds.hammersley_chapman_robbins_lower(q, q) == 0.0


def test_zero_rewards_make_the_untilted_bound_vacuous():
    p, q, r, _ = _world(2)
    r[0] = 0.0
    assert bounds.jensen_lower(p, q, r) < 0
    assert (
        0
        < bounds.tilted_jensen_lower(p, q, r) + np.sum(p * r) ** 2
        <= bounds.ips_variance(p, q, r) + np.sum(p * r) ** 2
    )


def test_popoviciu_is_an_upper_bound_attained_by_two_points():
    # Half the mass at 0, half at M: the variance of a mean of n is M^2 / (4 n).
    assert bounds.popoviciu_upper(2.0, 10) == pytest.approx(np.var([0.0, 2.0]) / 10)
