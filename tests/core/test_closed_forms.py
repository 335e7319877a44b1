"""What has an answer on paper."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from core_logs import RANGE, Log, as_rows, honest, make, ragged
from twin_units import leaves

from pope_fast import ope


def records(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {record["name"]: record for record in summary["utility"]}


def ends(record: dict[str, Any]) -> dict[str, tuple[float, float]]:
    return {i["method"]: (i["interval"]["low"], i["interval"]["high"]) for i in record["intervals"]}


def itself(log: Log) -> Log:
    return log.but(target=log.behavior.copy())


@pytest.mark.parametrize("kind", ["prompts", "counts", "rows", "single"])
def test_a_policy_against_itself(kind):
    """pi = pi0: every weight is 1 and U is the mean reward, exactly."""
    log = {
        "prompts": make(1, ragged(1, 64)),
        "counts": make(2, ragged(2, 64), largest_count=4),
        "rows": as_rows(make(3, np.full(64, 4))),
        "single": make(4, np.full(64, 1)),
    }[kind]
    # Dyadic rewards of dyadic bounds: their mean has no rounding to speak of.
    log = itself(log).but(reward=np.random.default_rng(0).choice([-1.0, 0.0, 1.0, 3.0], size=len(log)))
    snapshot = log.feed(log.state()).snapshot()
    summary, behavior = snapshot.summary("p"), snapshot.behavior()
    d = summary["diagnostics"]
    n = d["n_units"]
    assert d["ess"] == pytest.approx(n, rel=1e-15)
    assert d["ess_ceiling"] == n
    assert d["mean_weight"] == 1.0
    assert d["missing_mass"] == 0.0
    assert d["truncated_share"] == 0.0
    assert d["k_hat"] is None
    assert d["log_e_value"] == 0.0
    assert (d["kl_target_behavior"], d["kl_behavior_target"], d["mean_log_weight"]) == (0.0, 0.0, 0.0)
    assert d["max_weight_share"] == pytest.approx(1.0 / n, rel=1e-15)
    assert d["truncation"] == pytest.approx(math.sqrt(n), rel=1e-14)
    found = records(summary)
    for name in ("ips", "snips", "tips", "sn_tips", "psis", "cv"):
        assert found[name]["value"] == pytest.approx(behavior["value"], rel=1e-15), name
        if name != "cv":
            assert found[name]["standard_error"] == pytest.approx(behavior["standard_error"], rel=1e-13), name
    low, high = ends(found["sn_tips"])["delta"]
    assert ends(found["sn_tips"])["worst_case_tail"] == (low, high)
    if summary["marginal"] is not None:
        for cluster in summary["marginal"]["clusters"]:
            if kind in ("rows", "single"):
                assert cluster["target"] == pytest.approx(cluster["behavior"], rel=1e-14)


def test_baseline_dr_of_the_logger_is_the_mean():
    """With weight 1 the leave-one-out baselines cancel."""
    log = itself(make(5, np.full(50, 5)))
    assert records(log.summary())["baseline_dr"]["value"] == pytest.approx(log.reward.mean(), rel=1e-14)


@pytest.mark.parametrize("shift", [-1.0, -37.25, -1000.0, -1960.0])
def test_what_both_policies_share_changes_nothing(shift):
    """Shifting both log-probs shifts no difference: the same bits."""
    log = make(6, ragged(6, 80), spread=1.5)
    grid = [np.round(x * 2**16) / 2**16 for x in (log.behavior, log.target)]
    here = log.but(behavior=grid[0], target=grid[1])
    there = log.but(behavior=grid[0] + shift, target=grid[1] + shift)
    assert repr(there.summary()) == repr(here.summary())


@pytest.mark.parametrize("constant", [-2.0, 0.75, 5.0])
def test_self_normalized_estimates_do_not_see_a_constant(constant):
    log = make(7, ragged(7, 120), spread=1.5)
    here, there = (records(x.summary()) for x in (log, log.but(target=log.target + constant - 0.0)))
    for name in ("snips", "sn_tips", "psis"):
        for key in ("value", "standard_error"):
            assert there[name][key] == pytest.approx(here[name][key], rel=1e-12), name
    assert there["ips"]["value"] == pytest.approx(here["ips"]["value"] * math.exp(constant), rel=1e-12)


def test_log_probs_of_minus_2000():
    """Long responses: only differences matter, and exp of neither log-prob exists."""
    log = make(8, ragged(8, 80))
    grid = [np.round(x * 2**16) / 2**16 for x in (log.behavior, log.target)]
    summary = log.but(behavior=grid[0] - 2000.0, target=grid[1] - 2000.0).summary()
    bad = [path for path, x in leaves(summary).items() if isinstance(x, float) and not math.isfinite(x)]
    assert bad == []
    assert repr(summary) == repr(log.but(behavior=grid[0], target=grid[1]).summary())


def test_far_log_ratios_leave_finite_self_normalized_numbers():
    """Log-ratios of -2000 and of +2000 in one log: the largest decide, nothing overflows."""
    rng = np.random.default_rng(9)
    log = make(9, np.full(100, 4), rich=False)
    logw = np.where(rng.uniform(size=len(log)) < 0.5, -2000.0, 2000.0) + rng.normal(size=len(log))
    log = log.but(behavior=np.full(len(log), -3000.0), target=-3000.0 + logw)
    summary = log.summary()
    found = records(summary)
    large = logw > 0
    w = np.exp(logw[large] - 2000.0)
    unit = log.unit[large]
    assert found["snips"]["value"] == pytest.approx(np.sum(w * log.reward[large]) / w.sum(), rel=1e-12)
    assert found["ips"]["value"] in (math.inf, -math.inf)
    assert 0 < summary["diagnostics"]["ess"] <= len(np.unique(unit))
    assert 0.0 <= summary["diversity"]["value"] <= 11 / 6


def one_prompt_kind(q: list[float], n: int, k: int, seed: int) -> dict[str, Any]:
    """Prompts of one cluster distribution, the target the logger: every measure has a known mean."""
    rng = np.random.default_rng(seed)
    cluster = rng.choice(len(q), size=n * k, p=q)
    zeros = np.full(n * k, -5.0)
    return ope.summary(
        zeros,
        zeros,
        np.zeros(n * k),
        prompt_id=np.repeat(np.arange(n), k),
        cluster=cluster,
        reward_range=(0.0, 1.0),
    )


def measures(summary: dict[str, Any], form: str = "control") -> dict[str, float]:
    return {record["name"]: record["value"] for record in summary["prompt"][form]}


@pytest.mark.parametrize("form", ["control", "product"])
def test_identities_between_measures(form):
    """zeta_1 is Gini; coverage and H are sums of the zetas; both rise with their order."""
    found = measures(make(10, ragged(10, 100, 9), spread=1.0).summary(order_share=0.3), form)
    assert found["H_1"] == found["gini_simpson"]
    assert found["coverage@2"] == pytest.approx(1.0 + found["gini_simpson"], rel=1e-14)
    assert found["H_1"] < found["H_2"] < found["H_3"]
    assert 1.0 < found["coverage@2"] < found["coverage@3"] < found["coverage@4"]
    zeta_2 = 2.0 * (found["H_2"] - found["H_1"])
    zeta_3 = 3.0 * (found["H_3"] - found["H_2"])
    assert found["coverage@3"] == pytest.approx(1.0 + found["gini_simpson"] + zeta_2, rel=1e-12)
    assert found["coverage@4"] == pytest.approx(1.0 + found["gini_simpson"] + zeta_2 + zeta_3, rel=1e-12)
    assert found["gini_simpson"] >= zeta_2 >= zeta_3 > 0


def test_weight_one_gives_counts_of_pairs_by_hand():
    """K = 4 with clusters (0, 0, 1, 2) in every prompt: pairs, triples and quadruples counted on fingers."""
    n = 40
    arrays = np.full(4 * n, -3.0), np.full(4 * n, -3.0), np.tile([0, 0, 1, 2], n)
    prompt = np.repeat(np.arange(n), 4)
    for form in ("control", "product"):
        assert ope.gini_simpson(*arrays, prompt_id=prompt, form=form).value == pytest.approx(5 / 6, rel=1e-14)
        # Of four triples two hold both zeros: 2 clusters there, 3 in the others.
        assert ope.coverage(*arrays, draws=3, prompt_id=prompt, form=form).value == pytest.approx(2.5, rel=1e-14)
        assert ope.coverage(*arrays, draws=4, prompt_id=prompt, form=form).value == pytest.approx(3.0, rel=1e-14)
    exact = ope.gini_simpson(*arrays, prompt_id=prompt)
    assert exact.standard_error == pytest.approx(0.0, abs=1e-8)


def test_one_cluster_has_no_diversity():
    log = make(11, ragged(11, 60))
    summary = log.but(cluster=np.zeros(len(log), dtype=np.int64)).summary(order_share=0.0)
    for name, value in measures(summary, "product").items():
        assert value == (1.0 if name.startswith("coverage") else 0.0), name
    # The control form estimates the same zero with an error, which its standard error knows.
    for record in summary["prompt"]["control"]:
        zero = 1.0 if record["name"].startswith("coverage") else 0.0
        assert zero <= record["value"] <= zero + 4 * record["standard_error"], record["name"]
    assert summary["marginal"]["plug_in"] == 0.0
    assert summary["marginal"]["entropy"]["value"] == 0.0


def test_sandwich_holds_the_entropy():
    q = [0.5, 0.25, 0.125, 0.125]
    summary = one_prompt_kind(q, 3000, 8, 0)
    truth = -sum(p * math.log(p) for p in q)
    low, high = (summary["prompt"]["sandwich"][end] for end in ("low", "high"))
    assert low < truth < high
    # Renyi's entropy of order 2 is what the lower end aims at; the upper one at the entropy itself.
    assert low == pytest.approx(-math.log(sum(p * p for p in q)), abs=0.1)
    assert measures(summary)["H_3"] < truth


@pytest.mark.parametrize("counts", [[5, 5], [7, 2, 1], [1, 1, 1, 1], [30, 20, 10, 5, 2]])
def test_miller_madow_of_weight_one(counts):
    """The second-order bias of the plug-in with equal weights is -(C - 1) / (2 n)."""
    cluster = np.repeat(np.arange(len(counts)), counts)
    n = len(cluster)
    found = ope.summary(np.full(n, -1.0), np.full(n, -1.0), np.zeros(n), cluster=cluster, reward_range=(0.0, 1.0))[
        "marginal"
    ]
    q = np.array(counts) / n
    assert found["plug_in"] == pytest.approx(-np.sum(q * np.log(q)), rel=1e-13)
    assert found["bias"] == pytest.approx(-(len(counts) - 1) / (2 * n), rel=1e-11)


def test_unseen_mass_is_good_turing():
    cluster = np.array([0, 0, 1, 2, 2, 3, 4])
    logw = np.log([1.0, 3.0, 3.0, 1.0, 1.5, 2.0, 1.0])
    behavior = np.full(7, -9.0)
    found = ope.summary(behavior + logw, behavior, np.zeros(7), cluster=cluster, reward_range=(0.0, 1.0))["marginal"]
    assert found["unseen_mass"] == pytest.approx((3.0 + 2.0 + 1.0) / 12.5, rel=1e-14)
    shares = {c["key"]: c["target"] for c in found["clusters"]}
    assert shares == pytest.approx({0: 4 / 12.5, 1: 3 / 12.5, 2: 2.5 / 12.5, 3: 2 / 12.5, 4: 1 / 12.5}, rel=1e-14)
    assert [c["key"] for c in found["clusters"]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("seed", range(3))
def test_inequalities(seed, spread):
    log = make(100 + seed, ragged(seed, 90, 7), spread=spread).but(reward_range=(0.0, 3.0))
    log = log.but(reward=np.abs(log.reward), baseline=None, baseline_mean=None)
    summary = log.summary(diversity_weight=0.7)
    found = records(summary)
    bounds = ends(found["sn_tips"])
    # A finite-sample lower bound of E[w r] is below its plain estimate (concavity of the logarithm).
    assert bounds["certified"][0] <= found["ips"]["value"]
    # Wider assumptions, wider intervals: each level costs.
    assert bounds["worst_case_tail"][1] - bounds["worst_case_tail"][0] > 0
    parts = summary["variance"]
    assert parts["lower_bound"] <= parts["total"] * (1 + 1e-12)
    assert parts["total"] <= parts["upper_bound"] * (1 + 1e-12)
    assert parts["covariance"] ** 2 <= parts["utility"] * parts["diversity"] * (1 + 1e-12)
    d = summary["diagnostics"]
    assert 1.0 <= d["ess"] <= d["n_units"]
    assert 1.0 / d["n_units"] <= d["max_weight_share"] <= 1.0


def test_truncated_means_rise_with_the_level():
    """F3: E min(w, tau) r rises with tau towards E w r."""
    log = make(12, ragged(12, 150), spread=2.0).but(reward_range=(0.0, 3.0))
    arrays = log.target, log.behavior, np.abs(log.reward)
    levels = [0.01, 0.1, 1.0, 3.0, 10.0, 100.0, 1e6]
    values = [ope.tips(*arrays, prompt_id=log.unit, tau=tau).value for tau in levels]
    assert values == sorted(values)
    assert values[0] < values[3] < values[5]
    assert values[-1] == pytest.approx(ope.ips(*arrays, prompt_id=log.unit).value, rel=1e-14)
    shares = [ope.diagnostics(*arrays[:2], prompt_id=log.unit, tau=tau)["truncated_share"] for tau in levels]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0.0


def test_small_level_gives_the_mean_of_the_log():
    """Weights all cut at one level weigh the same."""
    log = make(13, ragged(13, 70), spread=0.5)
    sn_tips = ope.sn_tips(log.target, log.behavior, log.reward, prompt_id=log.unit, tau=1e-6)
    means = [log.reward[log.unit == u].mean() for u in np.unique(log.unit)]
    assert sn_tips.value == pytest.approx(np.mean(means), rel=1e-12)


def test_levels_nest():
    log = honest(make(14, ragged(14, 120), spread=1.0))
    last: dict[str, float] = {}
    for level in (0.5, 0.8, 0.95, 0.99, 0.999):
        summary = log.summary(level=level)
        widths = {
            f"{record['name']} {method}": high - low
            for record in [*summary["utility"], summary["value"], summary["diversity"], *summary["groups"]]
            for record in [record.get("utility", record)]
            for method, (low, high) in ends(record).items()
        }
        for name, width in widths.items():
            assert width >= last.get(name, 0.0), name
        last = widths
    assert len(last) > 15


def test_reward_bounds_only_matter_to_bounded_intervals():
    log = honest(make(15, ragged(15, 100), spread=1.0))
    near, far = (records(log.but(reward_range=bounds).summary()) for bounds in (RANGE, (-100.0, 100.0)))
    for name in near:
        if name == "baseline_dr":
            continue  # Prompts with one response take the lower bound for a baseline.
        assert far[name]["value"] == pytest.approx(near[name]["value"], rel=1e-11, abs=1e-11), name
        assert far[name]["standard_error"] == pytest.approx(near[name]["standard_error"], rel=1e-9), name
    inner, outer = (ends(found["sn_tips"]) for found in (near, far))
    for method in ("robust", "certified"):
        assert outer[method][0] < inner[method][0]
        assert inner[method][1] < outer[method][1]


def test_rewards_of_one_value():
    """A constant reward is the answer of every self-normalized estimator, without error."""
    log = make(16, ragged(16, 60), spread=1.5)
    log = log.but(reward=np.full(len(log), 1.25), baseline=None, baseline_mean=None)
    found = records(log.summary())
    for name in ("snips", "sn_tips", "psis"):
        assert found[name]["value"] == pytest.approx(1.25, rel=1e-14), name
        # The root of what rounding leaves of a sum of squares that cancels.
        assert found[name]["standard_error"] == pytest.approx(0.0, abs=1e-7), name


def test_welfare_of_known_groups():
    """Two groups with constant rewards 0 and 1 on [0, 1]; and 1 and 4 on [0, 4]: mean, min and Nash by hand."""
    n = 100
    prompt, group = np.repeat(np.arange(n), 2), np.tile([3, 8], n)
    behavior = np.full(2 * n, -7.0)
    for values, low_high, nash in (((0.0, 1.0), (0.0, 1.0), 0.0), ((1.0, 4.0), (0.0, 4.0), 2.0)):
        reward = np.where(group == 3, *values)
        summary = ope.summary(behavior, behavior, reward, prompt_id=prompt, group=group, reward_range=low_high)
        welfare = {record["name"]: record["value"] for record in summary["welfare"]}
        assert welfare["mean"] == pytest.approx(np.mean(values), rel=1e-14)
        assert welfare["min"] == pytest.approx(min(values), abs=1e-14)
        assert welfare["nash"] == pytest.approx(nash, abs=1e-14)
        assert {g["key"]: g["units"] for g in summary["groups"]} == {3: n, 8: n}


def test_a_rare_group_does_not_silence_the_others():
    """A group of one prompt has no jackknife error, which is no reason for others to have none."""
    log = make(17, np.full(100, 4))
    group = np.where(np.arange(len(log)) == 5, 77, np.arange(len(log)) % 2)
    found = {g["key"]: g["utility"] for g in log.but(group=group).summary()["groups"]}
    assert found[77]["standard_error"] is None
    assert found[0]["standard_error"] > 0
    assert found[1]["standard_error"] > 0


def test_unbounded_options_of_the_level_rule():
    """The headline's order is the largest that nine of ten repeated prompts can estimate."""
    sizes = np.array([4] * 89 + [3] * 11)
    log = make(18, sizes)
    assert log.summary()["prompt"]["order"] == 2
    assert log.rows(np.arange(4 * 90 - 4)).summary()["prompt"]["order"] == 3
    assert make(18, np.array([4] * 90 + [3] * 10)).summary()["prompt"]["order"] == 3
    assert make(18, np.array([2] * 50 + [1] * 50)).summary()["diversity_level"] == "prompt"
    assert make(18, np.array([2] * 49 + [1] * 51)).summary()["diversity_level"] == "marginal"
