from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from ref_worlds import small_log

from pope_fast.reference import diversity, units

FORMS = ["control", "product"]


def _unit(k=6, seed=0, clusters=3):
    rng = np.random.default_rng(seed)
    return rng.exponential(size=k) * 1.3, rng.integers(0, clusters, size=k)


@pytest.mark.parametrize("order", range(6))
def test_elementary_symmetric_polynomials(order):
    values = np.random.default_rng(0).normal(size=5)
    enumerated = diversity.elementary_symmetric(values, order)
    assert diversity.elementary_symmetric_recursive(values, order) == pytest.approx(enumerated, abs=1e-14)
    # Coefficients of prod (t + x).
    coefficients = np.append(np.poly(-values), 0.0)
    assert enumerated == pytest.approx(coefficients[order], abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kernel_form_equals_definition(form, order, seed):
    w, c = _unit(seed=seed)
    definition = diversity.zeta_unit(w, c, order, form)
    assert diversity.zeta_unit_kernel(w, c, order, form) == pytest.approx(definition, rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("k", [4, 5])
def test_exactly_unbiased_by_enumerating_every_sample(form, order, k):
    """Sum over all K-tuples of responses with their probabilities: no sampling, so no Monte Carlo error."""
    pi0, pi, cluster = (
        np.array([0.4, 0.3, 0.2, 0.1]),
        np.array([0.1, 0.2, 0.45, 0.25]),
        np.array([0, 1, 0, 2]),
    )
    q = np.bincount(cluster, pi)
    expectation = 0.0
    for sample in product(range(4), repeat=k):
        y = np.array(sample)
        expectation += np.prod(pi0[y]) * diversity.zeta_unit_kernel((pi / pi0)[y], cluster[y], order, form)
    assert expectation == pytest.approx(diversity.exact_zeta(q, order), rel=1e-11)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_moments_are_unbiased(degree):
    pi0, pi, cluster = np.array([0.4, 0.3, 0.3]), np.array([0.1, 0.2, 0.7]), np.array([0, 1, 0])
    q = np.bincount(cluster, pi)
    collision = total = 0.0
    for sample in product(range(3), repeat=4):
        y = np.array(sample)
        p = np.prod(pi0[y])
        collision += p * diversity.collision_moment((pi / pi0)[y], cluster[y], degree)
        total += p * diversity.total_moment((pi / pi0)[y], degree)
    assert collision == pytest.approx(np.sum(q**degree), rel=1e-12)
    assert total == pytest.approx(1.0, rel=1e-12)


def test_bounding_variables_also_for_truncated_weights():
    """X_M and Y_M are non-negative and bracket H_M when weights are cut."""
    pi0, pi, cluster = np.array([0.5, 0.4, 0.1]), np.array([0.1, 0.2, 0.7]), np.array([0, 1, 2])
    w, order = np.minimum(pi / pi0, 3.0), 2
    exact = diversity.exact_harmonic_entropy(pi, order)
    lower = upper = 0.0
    for sample in product(range(3), repeat=4):
        y = np.array(sample)
        x, z = (
            diversity.lower_variable(w[y], cluster[y], order),
            diversity.upper_variable(w[y], cluster[y], order),
        )
        assert x >= 0
        assert z >= -1e-14
        lower += np.prod(pi0[y]) * x
        upper += np.prod(pi0[y]) * z
    assert lower < exact < (1 + 1 / 2) - upper


def test_too_few_responses():
    with pytest.raises(ValueError, match="needs 4 responses"):
        diversity.zeta_unit([1.0, 1.0], [0, 1], 3)


@pytest.mark.parametrize("form", FORMS)
def test_family_averages_units_and_leaves_short_ones_out(form):
    log = small_log(11, largest_count=2)
    family = diversity.within_prompt(log.logw, log.cluster, log.unit, log.count, max_order=3, form=form)
    draws = log.draws()
    sizes = units.unit_sizes(log.unit, log.count)
    np.testing.assert_array_equal(family.used, sizes >= 4)
    assert 0 < family.used.sum() < len(sizes)
    kept = np.unique(log.unit)[family.used]
    w, mean_a = np.exp(draws.logw), np.mean([np.exp(draws.logw[draws.unit == i]).mean() for i in kept])
    for v in range(4):
        # Self-normalizing is dividing every weight by the global mean.
        per_unit = [
            diversity.zeta_unit(w[draws.unit == i] / mean_a, draws.cluster[draws.unit == i], v, form) for i in kept
        ]
        assert family.zeta[v] == pytest.approx(np.mean(per_unit), rel=1e-11)
    assert family.zeta[0] == pytest.approx(1.0)
    assert np.max(np.abs(family.influence.sum(axis=0))) < 1e-9


@pytest.mark.parametrize("form", FORMS)
def test_influence_is_the_derivative_in_the_share_of_a_unit(form):
    """Copy each unit 400 times and unit 3 once more: the estimate moves by influence / (400 n)."""
    log = small_log(12, units=15, largest_count=2)
    family = diversity.within_prompt(log.logw, log.cluster, log.unit, log.count, max_order=2, form=form)
    kept = np.unique(log.unit)[family.used]
    copies = 400
    index, n = 3, len(kept)
    sizes = n * copies + 1
    a = units.unit_means(np.exp(log.logw), log.unit, log.count)[family.used]
    share = np.full(n, copies / sizes)
    share[index] += 1 / sizes
    mean_a = float(share @ a)
    draws = log.draws()
    for v in (1, 2):
        unit_moments = []
        for i in kept:
            rows = draws.unit == i
            unit_moments.append(diversity.zeta_unit(np.exp(draws.logw[rows]) / mean_a, draws.cluster[rows], v, form))
        slope = (float(share @ np.array(unit_moments)) - family.zeta[v]) * sizes
        assert slope == pytest.approx(family.influence[index, v], rel=0.02, abs=2e-3)


def test_functionals_of_the_family():
    log = small_log(13, largest_count=3)
    family = diversity.within_prompt(log.logw, log.cluster, log.unit, log.count)
    z = family.zeta
    assert diversity.gini_simpson(family).value == z[1]
    assert diversity.coverage(family, 1).value == pytest.approx(1.0)
    assert diversity.coverage(family, 4).value == pytest.approx(z.sum())
    assert diversity.harmonic_entropy(family, 3).value == pytest.approx(z[1] + z[2] / 2 + z[3] / 3)
    assert diversity.harmonic_entropy(family, 3).standard_error > 0


def test_control_form_is_kept_in_its_range():
    """One draw dwarfs the rest: its cluster is taken for all there is, and more."""
    logw, cluster, unit = np.log([1.0, 50.0, 50.0, 1.0, 1.0, 1.0]), [0, 1, 1, 0, 1, 2], [0, 0, 0, 1, 1, 1]
    family = diversity.within_prompt(logw, cluster, unit, max_order=2)
    assert family.zeta[1] < 0
    assert diversity.gini_simpson(family).value == 0.0
    assert diversity.coverage(family, 2).value == 1.0
    assert diversity.harmonic_entropy(family, 1).value == 0.0


@pytest.mark.parametrize("q", [[0.5, 0.5], [0.7, 0.2, 0.1], [0.05] * 20, [1.0]])
def test_harmonic_entropy_rises_to_shannon(q):
    p = np.array(q)
    shannon = -np.sum(p * np.log(p))
    values = [diversity.exact_harmonic_entropy(p, m) for m in range(1, 60)]
    assert np.all(np.diff(values) >= 0)
    for m, value in enumerate(values, start=1):
        assert value <= shannon + 1e-12
        assert shannon <= value + len(p) / (m + 1)
    assert diversity.renyi_two_lower(diversity.exact_zeta(p, 1)) <= shannon + 1e-12


def test_control_form_has_less_variance():
    rng = np.random.default_rng(14)
    control, prod = [], []
    for _ in range(300):
        z = rng.normal(size=6)
        w, c = np.exp(0.7 * z - 0.245), rng.integers(0, 3, size=6)
        control.append(diversity.zeta_unit_kernel(w, c, 2, "control"))
        prod.append(diversity.zeta_unit_kernel(w, c, 2, "product"))
    assert np.var(control) < 0.6 * np.var(prod)
