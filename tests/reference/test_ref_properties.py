"""Identities and inequalities that hold for every log, not only for typical ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pope_fast.reference import diagnostics, diversity, intervals, marginal, units, utility, weights

ROW = st.tuples(
    st.integers(0, 12),  # unit
    st.floats(-6, 6),  # log-weight
    st.floats(0, 1),  # reward
    st.integers(0, 3),  # cluster
)
LOGS = st.lists(ROW, min_size=8, max_size=60).filter(lambda rows: len({row[0] for row in rows}) >= 3)


def columns(rows):
    unit, logw, reward, cluster = (np.array(x) for x in zip(*rows, strict=True))
    return unit, logw.astype(float), reward.astype(float), cluster


@settings(deadline=None)
@given(LOGS)
def test_truncated_means_rise_with_the_level_to_ips(rows):
    unit, logw, reward, _ = columns(rows)
    values = [utility.tips(logw, reward, unit, tau=tau).value for tau in (0.01, 0.5, 2.0, 50.0, 1e6)]
    assert np.all(np.diff(values) >= -1e-12)
    assert values[-1] == pytest.approx(utility.ips(logw, reward, unit).value)


@settings(deadline=None)
@given(LOGS)
def test_log_smoothing_limit_is_below_the_mean(rows):
    unit, logw, reward, _ = columns(rows)
    x = units.unit_means(np.exp(logw) * reward, unit)
    limit = intervals.log_smoothing_lower(x, 0.05)
    assert limit <= intervals.log_smoothing_lower(x, 0.05, floored=False) + 1e-12
    assert limit <= x.mean() + 1e-12


@settings(deadline=None)
@given(LOGS, st.floats(-500, 500))
def test_a_constant_in_the_log_weights_changes_nothing_self_normalized(rows, shift):
    unit, logw, reward, cluster = columns(rows)
    for estimator in (utility.snips, utility.sn_tips):
        a, b = estimator(logw, reward, unit), estimator(logw + shift, reward, unit)
        assert b.value == pytest.approx(a.value, rel=1e-9, abs=1e-12)
    ess = diagnostics.effective_sample_size
    assert ess(logw + shift, unit) == pytest.approx(ess(logw, unit), rel=1e-9)
    tables = [marginal.cluster_table(x, cluster, unit)[1] for x in (logw, logw + shift)]
    h = [marginal.entropy_plug_in(table).value for table in tables]
    assert h[1] == pytest.approx(h[0], rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(LOGS)
def test_self_normalized_estimates_stay_within_the_rewards(rows):
    unit, logw, reward, _ = columns(rows)
    for estimator in (utility.snips, utility.sn_tips, utility.psis):
        value = estimator(logw, reward, unit).value
        assert reward.min() - 1e-12 <= value <= reward.max() + 1e-12
    assert 0 < diagnostics.effective_sample_size(logw, unit) <= len(np.unique(unit)) * (1 + 1e-12)
    assert 0 <= intervals.lost_mass(logw, unit) < 1


@settings(deadline=None)
@given(LOGS)
def test_shuffled_rows(rows):
    unit, logw, reward, cluster = columns(rows)
    order = np.random.default_rng(len(rows)).permutation(len(rows))
    for estimator in (
        utility.ips,
        utility.sn_tips,
        utility.control_variate,
        utility.baseline_dr,
        utility.psis,
    ):
        a, b = estimator(logw, reward, unit), estimator(logw[order], reward[order], unit[order])
        assert b.value == pytest.approx(a.value, rel=1e-8, abs=1e-10)
    tables = [marginal.cluster_table(logw[i], cluster[i], unit[i])[1] for i in (slice(None), order)]
    assert marginal.miller_madow_bias(tables[0]) == pytest.approx(marginal.miller_madow_bias(tables[1]), abs=1e-10)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 3)), min_size=4, max_size=7), st.integers(1, 3))
def test_zeta_of_one_unit(rows, order):
    w, cluster = (np.array(x) for x in zip(*rows, strict=True))
    scale = max(1.0, float(w.max())) ** (order + 1)
    for form in ("control", "product"):
        definition = diversity.zeta_unit(w, cluster, order, form)
        assert diversity.zeta_unit_kernel(w, cluster, order, form) == pytest.approx(definition, abs=1e-9 * scale)
    weighted = diversity.zeta_unit(w, cluster, order, "product")
    assert -1e-12 <= weighted <= diversity.total_moment(w, order) + 1e-9 * scale
    one = np.ones(len(w))
    plain = [diversity.zeta_unit(one, cluster, order, form) for form in ("control", "product")]
    # Without weights the two forms are one number, a probability.
    assert plain[0] == pytest.approx(plain[1], abs=1e-12)
    assert -1e-12 <= plain[0] <= 1 + 1e-12


@settings(deadline=None)
@given(LOGS)
def test_bounded_intervals_narrow_with_the_level(rows):
    unit, logw, reward, _ = columns(rows)
    for method in (intervals.mirrored_truncated_t, intervals.log_smoothing):
        wide, narrow = method(logw, reward, unit, level=0.99), method(logw, reward, unit, level=0.8)
        assert wide.low <= narrow.low + 1e-12
        assert wide.high >= narrow.high - 1e-12


@settings(deadline=None)
@given(LOGS)
def test_truncation_level_is_relative(rows):
    unit, logw, _, _ = columns(rows)
    tau = weights.truncation_level(logw, unit)
    assert weights.truncation_level(logw + 1.0, unit) == pytest.approx(tau * np.e, rel=1e-9)
    assert weights.truncation_level(logw + 1.0, unit, relative=False) == np.sqrt(len(np.unique(unit)))
