"""Every number that the state says about a policy against the NumPy twins, on logs of every kind."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from core_logs import Log, logs, make, ragged
from twin import Twin
from twin_units import leaves, quantile

from pope_fast.reference import utility

# Both sides work in double precision and differ in the order of their sums and by an ulp of exp; conditioning
# turns that into some 1e-13 on well-posed numbers of order 1.
CLOSE = 1e-11
ABSOLUTE = 1e-13

LOGS = logs()
SECTIONS = (
    "utility",
    "value",
    "diversity",
    "prompt",
    "pairs",
    "marginal",
    "variance",
    "groups",
    "welfare",
    "diagnostics",
)


def looser(name: str, path: str) -> tuple[float, float] | None:
    """Relative and absolute tolerance of the few numbers that double precision cannot give as exactly."""
    if "shift" in name and path == ".mean_log_weight_standard_error":
        # Mean of squares less square of the mean, of log-weights near 1500 with a spread near 1.
        return 1e-9, 0.0
    if name == "shift up" and ("[robust]" in path or "[certified]" in path):
        # Every weight is cut at one level, so observations are equal and on edges of the histogram (45, say):
        # rounding decides for one of two bins that are 2^-8 apart. The ends are differences of such means.
        return 0.02, 0.0
    if "tau far above" in name and "jackknife" in path:
        # Fourth powers of weights that differ by 1e8, without truncation to speak of.
        return 1e-9, 0.0
    if name == "two units" and path.startswith("[cv]"):
        # A line through two points leaves no residual: what both print is the root of their rounding.
        return 1e-6, 1e-6
    return None


def disagreements(found: dict[str, Any], expected: dict[str, Any], name: str = "") -> list[str]:
    """Leaves that differ, in words; the worst first."""
    lines = [f"only found: {path}" for path in found.keys() - expected.keys()]
    lines += [f"only expected: {path}" for path in expected.keys() - found.keys()]
    wrong = []
    for path in found.keys() & expected.keys():
        ours, twin = found[path], expected[path]
        if isinstance(twin, (float, np.floating)) and isinstance(ours, float):
            if not math.isfinite(twin):
                # Overflow is overflow: infinite or undefined, but never a finite number.
                if math.isfinite(ours):
                    wrong.append((math.inf, f"{path}: {ours!r}, twin {twin!r}"))
                continue
            relative, absolute = looser(name, path) or (CLOSE, ABSOLUTE)
            error = abs(ours - twin)
            if not error <= max(relative * abs(twin), absolute):
                wrong.append((error, f"{path}: {ours!r}, twin {float(twin)!r}"))
        elif ours != twin:
            wrong.append((math.inf, f"{path}: {ours!r}, twin {twin!r}"))
    return lines + [line for _, line in sorted(wrong, reverse=True)]


def section(summary: dict[str, Any], name: str) -> dict[str, Any]:
    return leaves(summary[name])


@cache
def both(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return LOGS[name].summary(), Twin(LOGS[name]).summary()


@pytest.mark.parametrize("part", SECTIONS)
@pytest.mark.parametrize("name", LOGS)
def test_every_number(name: str, part: str) -> None:
    found, expected = both(name)
    assert found["policy"] == "p"
    assert found.keys() == expected.keys()
    assert found["diversity_level"] == expected["diversity_level"]
    assert disagreements(section(found, part), section(expected, part), name) == []


def test_the_logs_are_of_every_kind() -> None:
    """The comparison above says something about the branches it is meant for."""
    found = {name: both(name)[0] for name in LOGS}
    assert {summary["diversity_level"] for summary in found.values()} == {"prompt", "marginal", None}
    orders = {summary["prompt"]["order"] for summary in found.values() if summary["prompt"]}
    assert orders == {1, 2, 3}
    d = {name: summary["diagnostics"] for name, summary in found.items()}
    assert d["heavy tail"]["truncated_share"] > 0.05
    assert d["heavy tail, rows"]["k_hat"] > 0.7
    assert d["uniform K=8"]["truncated_share"] == 0.0
    assert d["impossible"]["zero_weight_draws"] > 50
    assert d["shift up"]["mean_weight"] == math.inf
    assert d["shift down"]["mean_weight"] == 0.0
    assert found["ragged K"]["prompt"]["units_left_out"] > 5
    assert found["200 clusters"]["marginal"]["n_clusters"] > 150
    assert d["rows with counts"]["n_units"] == d["rows with counts"]["n_draws"] > d["rows with counts"]["n_rows"]


OPTIONS: dict[str, dict[str, Any]] = {
    "level": {"level": 0.8},
    "high level": {"level": 0.999},
    "weight": {"diversity_weight": 0.35},
    "no weight": {"diversity_weight": 0.0},
    "order 1": {"diversity_order": 1},
    "order 2": {"diversity_order": 2},
    "tau": {"tau": 1.5},
    "tau far above": {"tau": 1e9},
    "kappa": {"kappa": 1.28},
    "kappa below 1": {"kappa": 0.8},
    "always prompts": {"repeated_share": 0.0, "order_share": 0.1},
    "hardly prompts": {"repeated_share": 1.0, "order_share": 1.0},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["ragged K", "heavy tail", "few repeated", "rows with counts"])
def test_options(name: str, option: str) -> None:
    options = OPTIONS[option]
    found, expected = LOGS[name].summary(**options), Twin(LOGS[name], **options).summary()
    assert found["diversity_level"] == expected["diversity_level"]
    for part in SECTIONS:
        assert disagreements(section(found, part), section(expected, part), option) == [], part


@pytest.mark.parametrize("name", ["uniform K=8", "heavy tail", "heavy tail, rows", "impossible"])
def test_small_tail_agrees_where_the_level_is_feasible(name: str) -> None:
    """Few units reach the level: keeping 100 of them is as good as keeping all."""
    log = LOGS[name]
    whole, small = (log.summary(tail_capacity=capacity) for capacity in (32768, 100))
    assert not whole["diagnostics"]["truncation_raised"]
    assert not small["diagnostics"]["truncation_raised"]
    apart = {path for path, value in leaves(whole).items() if repr(leaves(small)[path]) != repr(value)}
    # The tail index and the smoothing look at the draws above the least kept unit alone.
    assert all("psis" in path or path.startswith(".diagnostics.k_hat") for path in apart), sorted(apart)


def test_small_tail_keeps_the_tail_index_of_rows() -> None:
    log = LOGS["heavy tail, rows"]
    whole, small = (log.summary(tail_capacity=capacity) for capacity in (32768, 80))
    assert repr(small) == repr(whole)


@pytest.mark.parametrize("capacity", [3, 8, 64])
def test_raised_level(capacity: int) -> None:
    """Where too few units are kept, weights are cut at the last one of them, and the result says so."""
    log = make(31, ragged(31, 150, 6), spread=1.5)
    options = {"tau": 1.2}
    found = log.summary(tail_capacity=capacity, **options)
    twin = Twin(log, tail_capacity=capacity, **options)
    assert found["diagnostics"]["truncation_raised"]
    assert found["diagnostics"]["truncation"] == pytest.approx(math.exp(twin.log_tau), rel=CLOSE)
    assert found["diagnostics"]["truncation"] > 1.2
    records = {record["name"]: record for record in found["utility"]}
    value, error = twin.affine(twin.sn_tips_point)
    assert disagreements(leaves(records["sn_tips"]), leaves(twin.sn_tips(value, error))) == []
    for part in ("prompt", "marginal", "variance", "groups", "welfare"):
        expected = {
            "prompt": lambda: twin.prompt(twin.where[1]),
            "marginal": twin.over_log,
            "variance": twin.variance,
            "groups": lambda: twin.groups()[0],
            "welfare": lambda: twin.groups()[1],
        }[part]()
        assert disagreements(section(found, part), leaves(expected)) == [], part


@pytest.mark.parametrize("name", LOGS)
def test_behavior(name: str) -> None:
    log = LOGS[name]
    twin = Twin(log)
    found = log.feed(log.state()).snapshot().behavior(level=0.9)
    value, error = twin.affine(utility.behavior_mean(twin.r, twin.unit, twin.count))
    assert found["value"] == pytest.approx(value, rel=CLOSE)
    # Mean of squares less square of the mean, on rewards in [0, 1]: a few ulp of 1 under a root of 1e-2.
    assert found["standard_error"] == pytest.approx(error, rel=1e-10)
    half = quantile(0.9, twin.n - 1) * error
    assert found["interval"]["low"] == pytest.approx(value - half, rel=1e-10)
    assert found["interval"]["high"] == pytest.approx(value + half, rel=1e-10)
    assert (found["n_units"], found["n_rows"], found["n_draws"]) == (twin.n, len(log), twin.n_draws)


def pair(name: str) -> tuple[Log, Log]:
    """The log for its policy, and for another one on the same rows."""
    log = LOGS[name]
    rng = np.random.default_rng(5)
    return log, log.but(target=log.behavior + 0.6 * log.logw + 0.2 * rng.normal(size=len(log)) - 0.1)


@pytest.mark.parametrize("name", ["uniform K=8", "ragged K", "few repeated", "counts", "rows with counts"])
def test_differences(name: str) -> None:
    """Values are those of the two summaries; errors are of the jackknife over the units both share."""
    a, b = pair(name)
    state = a.state(policies=["a", "b"])
    means = None if a.baseline_mean is None else [a.baseline_mean, a.baseline_mean]
    state.update(
        a.unit,
        a.behavior,
        [a.target, b.target],
        a.reward,
        cluster=a.cluster,
        group=a.group,
        count=a.count,
        num_tokens=a.tokens,
        baseline=a.baseline,
        baseline_means=means,
    )
    snapshot = state.snapshot()
    (found,) = snapshot.differences(["a", "b"], level=0.9, diversity_weight=0.5)
    assert (found["a"], found["b"]) == ("a", "b")
    twins = [Twin(log, diversity_weight=0.5) for log in (a, b)]
    us = [twin.u_statistic() for twin in twins]
    ds = [twin.d_statistic() for twin in twins]
    statistics = {
        "utility": lambda kept: us[0](kept) - us[1](kept),
        "diversity": lambda kept: ds[0](kept) - ds[1](kept),
        "value": lambda kept: us[0](kept) - us[1](kept) + 0.5 * (ds[0](kept) - ds[1](kept)),
    }
    summaries = [snapshot.summary(p, diversity_weight=0.5) for p in ("a", "b")]
    for part, statistic in statistics.items():
        twin = twins[0].jackknife(statistic)
        assert twin is not None
        record = found[part]
        assert record["standard_error"] == pytest.approx(twin.standard_error, rel=1e-9), part
        half = quantile(0.9, twin.degrees_of_freedom) * twin.standard_error
        (interval,) = record["intervals"]
        assert interval["method"] == "jackknife"
        assert interval["interval"]["low"] == pytest.approx(record["value"] - half, rel=1e-9, abs=1e-10)
        assert interval["interval"]["high"] == pytest.approx(record["value"] + half, rel=1e-9, abs=1e-10)
        values = [
            next(r for r in s["utility"] if r["name"] == "sn_tips") if part == "utility" else s[part] for s in summaries
        ]
        expected = values[0]["value"] - values[1]["value"]
        assert record["value"] == pytest.approx(expected, rel=1e-9, abs=1e-11), part


def test_aggregated_rows_are_repeated_rows() -> None:
    """A row of multiplicity m says what m equal rows of the unit say, to the last digits."""
    log = LOGS["heavy tail, counts"]
    assert log.count is not None
    spread = log.rows(np.repeat(np.arange(len(log)), log.count.astype(int))).but(count=None)
    found, expected = leaves(log.summary()), leaves(spread.summary())
    # How many rows there are is the one thing that does differ.
    for path in [path for path in found if path.endswith((".n_rows", ".rows"))]:
        assert found.pop(path) < expected.pop(path)
    assert disagreements(found, expected) == []


def free_of_scale(record: Any) -> dict[str, Any]:
    """Leaves without the intervals that hold weights against 1."""
    bounded = ("robust", "certified", "sandwich", ".intervals#")
    return {path: x for path, x in leaves(record).items() if not any(word in path for word in bounded)}


@pytest.mark.parametrize("shift", [-1500.0, -300.0, 300.0, 1500.0])
def test_scale_of_the_weights(shift: float) -> None:
    """What is free of scale does not see a constant in all log-weights."""
    near = make(40, ragged(40, 90, 6), spread=1.2)
    # Exact differences on both sides: log-probs on a grid of 2^-20.
    logw, behavior = (np.round(x * 2**20) / 2**20 for x in (near.logw, near.behavior - max(shift, 0.0)))
    here = near.but(behavior=behavior, target=behavior + logw).summary()
    there = near.but(behavior=behavior, target=behavior + logw + shift).summary()
    for part in ("prompt", "marginal", "variance", "groups", "welfare"):
        assert disagreements(free_of_scale(there[part]), free_of_scale(here[part])) == [], part
    for name in ("snips", "sn_tips", "psis", "dm", "sndr"):
        records = [next(r for r in s["utility"] if r["name"] == name) for s in (there, here)]
        assert disagreements(*map(free_of_scale, records)) == [], name
    d, e = there["diagnostics"], here["diagnostics"]
    for name in ("ess", "max_weight_share", "truncated_share", "k_hat", "length_target"):
        assert d[name] == pytest.approx(e[name], rel=1e-10), name
    assert d["kl_target_behavior"] == pytest.approx(e["kl_target_behavior"] + shift, rel=1e-12)
    assert d["mean_log_weight"] == pytest.approx(e["mean_log_weight"] + shift, rel=1e-12)


def test_draws_that_all_differ_leave_the_upper_bound_alone() -> None:
    """No two draws share a cluster: nothing speaks against the greatest diversity, whatever the weights."""
    n = 60
    logw = 12.0 + np.random.default_rng(0).normal(size=4 * n)
    log = make(0, np.full(n, 4), rich=False)
    behavior = log.behavior - 30.0
    log = log.but(behavior=behavior, target=behavior + logw, cluster=np.tile(np.arange(4), n))
    prompt = log.summary()["prompt"]
    record = next(r for r in prompt["control"] if r["name"] == "H_3")
    highs = {i["method"]: i["interval"]["high"] for i in record["intervals"]}
    assert highs["certified"] == pytest.approx(1.0 + 1.0 / 2 + 1.0 / 3, rel=1e-9)
    assert highs["robust"] == pytest.approx(1.0 + 1.0 / 2 + 1.0 / 3, rel=1e-9)
