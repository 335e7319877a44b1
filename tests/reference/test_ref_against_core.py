"""The compiled kernels against their twins: ragged logs, multiplicities, clusters, groups, heavy weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ref_worlds import SmallLog, small_log

from pope_fast import _core
from pope_fast.reference import (
    diagnostics,
    diversity,
    intervals,
    jackknife,
    marginal,
    tails,
    units,
    utility,
    value,
    weights,
    welfare,
)
from pope_fast.reference._types import PointEstimate

COMMON = -80.0
CLOSE = 1e-10
LOGS = {"mild": (0, 90, 0.5), "heavy": (1, 90, 2.0), "hopeless": (2, 60, 5.0)}


def by_unit(log: SmallLog) -> SmallLog:
    order = np.argsort(log.unit, kind="stable")
    return SmallLog(*(x[order] for x in (log.logw, log.reward, log.cluster, log.group, log.unit, log.count)))


class Case:
    """One log, what the product says of it, and the weights as the product cuts them."""

    def __init__(self, name: str) -> None:
        seed, n, spread = LOGS[name]
        self.log = log = by_unit(small_log(seed, units=n, spread=spread, largest_count=3 if seed != 1 else 1))
        state = _core.State(
            ["p", "q"], (0.0, 1.0), has_cluster=True, has_group=True, has_tokens=True, has_baseline=True
        )
        rng = np.random.default_rng(seed)
        rows = len(log.logw)
        self.tokens = rng.integers(1, 30, size=rows).astype(float)
        self.baseline = rng.uniform(size=rows)
        means = rng.uniform(size=n)
        self.baseline_mean = means[units.unit_codes(log.unit)[1]]
        state.update(
            log.unit,
            np.full(rows, COMMON),
            [log.logw + COMMON, 0.5 * log.logw + COMMON],
            log.reward,
            cluster=log.cluster,
            group=log.group,
            count=log.count.astype(float),
            num_tokens=self.tokens,
            baseline=self.baseline,
            baseline_means=[self.baseline_mean, self.baseline_mean],
        )
        self.logw = (log.logw + COMMON) - COMMON
        self.snapshot = state.snapshot()
        self.summary = self.snapshot.summary("p")
        tau = weights.truncation_level(self.logw, log.unit, log.count)
        self.cut = np.minimum(self.logw, math.log(tau))
        self.keys = np.unique(log.unit)

    def rows(self) -> tuple[np.ndarray, ...]:
        return self.logw, self.log.reward, self.log.unit, self.log.count


@pytest.fixture(scope="module", params=LOGS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def named(records: list[dict], name: str) -> dict:
    return next(record for record in records if record["name"] == name)


def interval(record: dict, method: str) -> tuple[float, float]:
    found = next(i["interval"] for i in record["intervals"] if i["method"] == method)
    return found["low"], found["high"]


def assert_same(record: dict, estimate: PointEstimate) -> None:
    assert record["value"] == pytest.approx(estimate.value, rel=CLOSE, abs=1e-13)
    assert record["standard_error"] == pytest.approx(estimate.standard_error, rel=1e-8, abs=1e-12)


def clip(ends: tuple[float, float]) -> tuple[float, float]:
    return max(ends[0], 0.0), min(ends[1], 1.0)


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("ips", utility.ips),
        ("snips", utility.snips),
        ("tips", utility.tips),
        ("sn_tips", utility.sn_tips),
        ("cv", utility.control_variate),
        ("baseline_dr", utility.baseline_dr),
    ],
)
def test_utility_estimators(name, twin, case):
    assert_same(named(case.summary["utility"], name), twin(*case.rows()))


@pytest.mark.parametrize(("seed", "largest_count", "digits"), [(3, 1, None), (4, 1, None), (3, 3, None), (4, 3, 1)])
def test_psis(seed, largest_count, digits):
    """Also with counted rows and, where weights are rounded, with ties: these share the mean of their ranks."""
    log = by_unit(small_log(seed, units=150, spread=1.8, largest_count=largest_count))
    logw = log.logw if digits is None else np.round(log.logw, digits)
    state = _core.State(["p"], (0.0, 1.0))
    behavior = np.full(len(logw), COMMON)
    state.update(log.unit, behavior, [logw + COMMON], log.reward, count=log.count.astype(float))
    record = named(state.snapshot().summary("p")["utility"], "psis")
    assert_same(record, utility.psis((logw + COMMON) - COMMON, log.reward, log.unit, log.count))


def test_rows_as_units():
    """Every draw is a unit, and a row of multiplicity m is m of them."""
    log = small_log(5, units=70, spread=1.2)
    behavior = np.full(len(log.logw), COMMON)
    state = _core.State(["p"], (0.0, 1.0), row_units=True, has_cluster=True)
    count = log.count.astype(float)
    state.update(None, behavior, [log.logw + COMMON], log.reward, cluster=log.cluster, count=count)
    summary = state.snapshot().summary("p")
    logw, reward, cluster = units.expand_draws(log.count, (log.logw + COMMON) - COMMON, log.reward, log.cluster)
    unit = np.arange(len(logw))
    assert summary["diagnostics"]["n_units"] == len(unit)
    for name, twin in {"ips": utility.ips, "sn_tips": utility.sn_tips, "cv": utility.control_variate}.items():
        assert_same(named(summary["utility"], name), twin(logw, reward, unit))
    record = named(summary["utility"], "sn_tips")
    robust = clip(intervals.mirrored_truncated_t(logw, reward, unit))
    assert interval(record, "robust") == pytest.approx(robust, abs=1e-9)
    certified = clip(intervals.log_smoothing(logw, reward, unit))
    assert interval(record, "certified") == pytest.approx(certified, abs=1e-4)
    assert summary["diversity_level"] == "marginal"
    cut = np.minimum(logw, math.log(weights.truncation_level(logw, unit)))
    _, table = marginal.cluster_table(cut, cluster, unit)
    assert summary["marginal"]["plug_in"] == pytest.approx(marginal.entropy_plug_in(table).value, rel=CLOSE)
    assert summary["marginal"]["bias"] == pytest.approx(marginal.miller_madow_bias(table), rel=1e-8)


def test_model_based_estimators(case):
    log, records = case.log, case.summary["utility"]
    residual = (case.logw, log.reward, case.baseline, case.baseline_mean, log.unit, log.count)
    assert_same(named(records, "dm"), utility.direct_method(case.baseline_mean, log.unit, log.count))
    assert_same(named(records, "dr"), utility.doubly_robust(*residual))
    assert_same(named(records, "sndr"), utility.self_normalized_dr(*residual))


def test_utility_intervals(case):
    record = named(case.summary["utility"], "sn_tips")
    estimate = utility.sn_tips(*case.rows())
    assert interval(record, "delta") == pytest.approx(intervals.delta(estimate), abs=1e-9)
    assert interval(record, "worst_case_tail") == pytest.approx(clip(intervals.worst_case_tail(*case.rows())), abs=1e-9)
    assert interval(record, "robust") == pytest.approx(clip(intervals.mirrored_truncated_t(*case.rows())), abs=1e-9)
    # The histogram may put a value that lies on an edge, up to rounding, into the bin below.
    assert interval(record, "certified") == pytest.approx(clip(intervals.log_smoothing(*case.rows())), abs=1e-4)


def test_jackknife_of_utility(case):
    log = case.log
    a = units.unit_means(np.exp(case.cut), log.unit, log.count)
    n = units.unit_means(np.exp(case.cut) * log.reward, log.unit, log.count)
    twin = jackknife.by_recomputation(lambda kept: float(n[kept].sum() / a[kept].sum()), units.bucket(case.keys))
    low, high = interval(named(case.summary["utility"], "sn_tips"), "jackknife")
    assert (low + high) / 2 == pytest.approx(twin.value, rel=1e-9)
    assert high - low > twin.standard_error * 3.9


def test_diagnostics(case):
    log, found = case.log, case.summary["diagnostics"]
    arguments = (case.logw, log.unit, log.count)
    assert found["ess"] == pytest.approx(diagnostics.effective_sample_size(*arguments), rel=CLOSE)
    assert found["ess_ceiling"] == pytest.approx(diagnostics.effective_sample_size_ceiling(*arguments), rel=CLOSE)
    reward_ess = diagnostics.reward_effective_sample_size(case.logw, log.reward, log.unit, log.count)
    assert found["reward_ess"] == pytest.approx(reward_ess, rel=CLOSE)
    assert found["max_weight_share"] == pytest.approx(diagnostics.max_weight_share(*arguments), rel=CLOSE)
    assert found["mean_weight"] == pytest.approx(diagnostics.mean_weight(*arguments).value, rel=CLOSE)
    assert found["missing_mass"] == pytest.approx(diagnostics.missing_mass(*arguments), rel=CLOSE, abs=1e-12)
    assert found["truncated_share"] == pytest.approx(intervals.lost_mass(*arguments), rel=1e-9, abs=1e-13)
    assert found["kl_target_behavior"] == pytest.approx(diagnostics.kl_target_behavior(*arguments), rel=CLOSE)
    assert found["kl_behavior_target"] == pytest.approx(diagnostics.kl_behavior_target(*arguments), rel=CLOSE)
    mean_log = diagnostics.mean_log_weight(*arguments)
    assert found["mean_log_weight_standard_error"] == pytest.approx(mean_log.standard_error, rel=1e-8)
    assert found["k_hat"] == pytest.approx(tails.pareto_k(case.logw, log.count), rel=1e-8)
    assert found["k_hat_log_p"] == pytest.approx(tails.pareto_k_log_p(case.logw, log.count), rel=1e-6)
    assert found["length_target"] == pytest.approx(
        diagnostics.length_under_target(case.logw, case.tokens, log.unit, log.count), rel=CLOSE
    )
    e = intervals.mean_weight_e_value(units.unit_means(np.exp(case.logw), log.unit, log.count))
    assert found["log_e_value"] == pytest.approx(math.log(e), rel=1e-3, abs=0.02)


@pytest.mark.parametrize("form", ["control", "product"])
def test_diversity_within_prompts(form, case):
    log, found = case.log, case.summary["prompt"]
    order = found["order"]
    family = diversity.within_prompt(case.cut, log.cluster, log.unit, log.count, max_order=order, form=form)
    assert found["units_used"] == family.used.sum()
    assert found["units_left_out"] == len(family.used) - family.used.sum()
    twins = {"gini_simpson": diversity.gini_simpson(family)}
    twins |= {f"coverage@{m}": diversity.coverage(family, m) for m in range(2, order + 2)}
    twins |= {f"H_{m}": diversity.harmonic_entropy(family, m) for m in range(1, order + 1)}
    assert {record["name"] for record in found[form]} == set(twins)
    for name, twin in twins.items():
        record = named(found[form], name)
        if form == "control":
            assert_same(record, twin)
        else:
            # Product-form errors come from the jackknife; zeta_0 is 1 by construction only in control form.
            expected = twin.value - (family.zeta[0] - 1.0 if name.startswith("coverage") else 0.0)
            assert record["value"] == pytest.approx(expected, rel=CLOSE)


def test_bounded_diversity(case):
    log, found = case.log, case.summary["prompt"]
    order = found["order"]
    record = named(found["control"], f"H_{order}")
    draws = log.draws()
    logw = np.repeat(case.logw, log.count)
    lower, upper = [], []
    for i in case.keys:
        rows = draws.unit == i
        if rows.sum() > order:
            w = np.exp(logw[rows])
            lower.append(diversity.lower_variable(w, draws.cluster[rows], order))
            upper.append(diversity.upper_variable(w, draws.cluster[rows], order))
    most = sum(1 / v for v in range(1, order + 1))
    low = max(intervals.log_smoothing_lower(np.maximum(lower, 0.0), 0.025), 0.0)
    high = most - max(intervals.log_smoothing_lower(np.maximum(upper, 0.0), 0.025), 0.0)
    assert interval(record, "certified") == pytest.approx((low, high), rel=1e-3, abs=1e-3)


def test_marginal_diversity(case):
    log, found = case.log, case.summary["marginal"]
    labels, table = marginal.cluster_table(case.cut, log.cluster, log.unit, log.count)
    assert found["plug_in"] == pytest.approx(marginal.entropy_plug_in(table).value, rel=CLOSE)
    assert found["bias"] == pytest.approx(marginal.miller_madow_bias(table), rel=1e-8)
    twin = marginal.entropy_jackknife(table, case.keys)
    assert found["entropy"]["value"] == pytest.approx(twin.value, rel=1e-9)
    assert found["entropy"]["standard_error"] == pytest.approx(twin.standard_error, rel=1e-7)
    assert found["unseen_mass"] == pytest.approx(marginal.unseen_mass(table), abs=1e-12)
    shares = dict(zip(labels.tolist(), marginal.shares(table).tolist(), strict=True))
    assert {c["key"]: c["target"] for c in found["clusters"]} == pytest.approx(shares, rel=1e-9)


def test_groups_and_welfare(case):
    log = case.log
    twins = welfare.group_utilities(case.logw, log.reward, log.group, log.unit, log.count)
    for record in case.summary["groups"]:
        assert record["utility"]["value"] == pytest.approx(twins[record["key"]].value, rel=1e-9)
    records = case.summary["welfare"]
    assert named(records, "mean")["value"] == pytest.approx(welfare.mean_welfare(twins).value, rel=1e-9)
    assert named(records, "min")["value"] == pytest.approx(welfare.min_welfare(twins).value, rel=1e-9)
    assert named(records, "nash")["value"] == pytest.approx(welfare.nash_welfare(twins).value, rel=1e-9)


def test_value_and_its_variance(case):
    log, order = case.log, case.summary["prompt"]["order"]
    summary = case.snapshot.summary("p", diversity_weight=0.4)
    u = utility.sn_tips(*case.rows())
    family = diversity.within_prompt(case.cut, log.cluster, log.unit, log.count, max_order=order)
    h = diversity.harmonic_entropy(family, order)
    d = PointEstimate(h.value, value.spread(h.influence, family.used))
    assert summary["value"]["value"] == pytest.approx(u.value + 0.4 * h.value, rel=1e-9)
    parts = summary["variance"]
    assert parts["utility"] == pytest.approx(u.standard_error**2, rel=1e-7)
    assert parts["diversity"] == pytest.approx(h.standard_error**2, rel=1e-7)
    # Left-out units make the two n / (n - 1) corrections differ in the covariance, by O(1/n).
    cov = float(np.sum(u.influence * d.influence)) / len(u.influence) ** 2
    assert parts["covariance"] == pytest.approx(cov, rel=3 / len(u.influence), abs=1e-12)
    assert parts["lower_bound"] <= parts["total"] <= parts["upper_bound"]


def test_behavior(case):
    log = case.log
    found, twin = case.snapshot.behavior(), utility.behavior_mean(log.reward, log.unit, log.count)
    assert found["value"] == pytest.approx(twin.value, rel=CLOSE)
    assert found["standard_error"] == pytest.approx(twin.standard_error, rel=1e-8)


def test_token_sums():
    rng = np.random.default_rng(7)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 12, size=50))]).astype(np.int64)
    target, behavior = (-rng.exponential(size=offsets[-1]).astype(np.float32) for _ in range(2))
    twin = weights.token_sums(offsets, target, behavior, 0.5)
    for found, expected in zip(_core.token_sums(offsets, target, behavior, 0.5), twin, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(_core.sum_tokens(offsets, target), weights.sum_tokens(offsets, target), rtol=1e-6)
