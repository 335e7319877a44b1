"""The simulated logs: schema, seeds, files, and that they are drawn from what their truth says."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from pope_fast import simulate
from pope_fast.errors import PopeError
from pope_fast.reference import diagnostics, tails, units, utility
from pope_fast.simulate.simulated_log import plain

KINDS = list(simulate.KINDS)


def log_weights(log, policy):
    if f"target_logprob/{policy}" in log.table.column_names:
        target, behavior = log.table[f"target_logprob/{policy}"], log.table["behavior_logprob"]
        return target.to_numpy() - behavior.to_numpy()
    sums = [
        np.array([sum(tokens) for tokens in log.table[name].to_pylist()])
        for name in (f"target_token_logprobs/{policy}", "behavior_token_logprobs")
    ]
    return sums[0] - sums[1]


def rewards(log):
    return np.array(log.table["reward"].to_pylist(), dtype=np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_shape_and_schema(kind):
    log = simulate.simulate(kind, prompts=30, responses=3, seed=5)
    names = log.table.column_names
    assert log.table.num_rows == 90
    assert {"prompt_id", "reward", "cluster"} <= set(names)
    assert log.table["prompt_id"].to_pylist() == [i for i in range(30) for _ in range(3)]
    assert {"near", "far"} <= set(log.truth["policies"])
    for policy in log.truth["policies"]:
        assert np.all(np.isfinite(log_weights(log, policy)))
    for name in names:
        if name.endswith("_logprob") or name.startswith("target_logprob/"):
            assert log.table[name].to_numpy().max() <= 0
    assert all(column.null_count == 0 for column in log.table.columns)
    r = rewards(log)
    assert 0 <= r.min() < r.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_seeds(kind):
    first, again, other = (simulate.simulate(kind, prompts=40, seed=seed) for seed in (1, 1, 2))
    assert first.table.equals(again.table)
    assert first.truth == again.truth
    assert not first.table.equals(other.table)
    # Another seed is another log of the same world.
    assert first.truth["policies"] == other.truth["policies"]


def test_another_world():
    a, b = (simulate.table(prompts=5, world_seed=seed).truth["policies"]["near"] for seed in (0, 1))
    assert a["utility"] != b["utility"]


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_from_what_the_truth_says(kind):
    log = simulate.simulate(kind, prompts=20_000, responses=2, seed=3)
    unit, r = log.table["prompt_id"].to_numpy(), rewards(log)
    behavior = utility.behavior_mean(r, unit)
    assert behavior.value == pytest.approx(log.truth["behavior"]["utility"], abs=4.5 * behavior.standard_error)
    logw, truth = log_weights(log, "near"), log.truth["policies"]["near"]
    for estimate, expected in [
        (utility.ips(logw, r, unit), truth["utility"]),
        (utility.snips(logw, r, unit), truth["utility"]),
        (diagnostics.mean_weight(logw, unit), truth["mean_weight"]),
        (diagnostics.mean_log_weight(logw, unit), -truth["kl_behavior_target"]),
    ]:
        assert estimate.value == pytest.approx(expected, abs=4.5 * estimate.standard_error)
    ess = diagnostics.effective_sample_size(logw, unit)
    assert ess / 20_000 == pytest.approx(truth["ess_fraction"], rel=0.05)
    assert diagnostics.kl_target_behavior(logw, unit) == pytest.approx(truth["kl_target_behavior"], rel=0.15)
    masses = np.bincount(np.unique(log.table["cluster"].to_numpy(), return_inverse=True)[1], np.exp(logw))
    q = masses / masses.sum()
    assert -np.sum(q * np.log(q)) == pytest.approx(truth["diversity"]["entropy_marginal"], abs=0.02)


def test_groups_disagree_as_the_truth_says():
    log = simulate.table(prompts=20_000, responses=2, groups=("young", "old"), seed=4)
    group, r = np.array(log.table["group"].to_pylist()), rewards(log)
    logw = log_weights(log, "near")
    truth = log.truth["policies"]["near"]["groups"]
    assert set(truth) == {"young", "old"}
    for name, expected in truth.items():
        rows = group == name
        estimate = utility.snips(logw[rows], r[rows], log.table["prompt_id"].to_numpy()[rows])
        assert estimate.value == pytest.approx(expected, abs=4.5 * estimate.standard_error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [300, 4000])
def test_near_is_reliable_and_far_is_not(kind, prompts):
    log = simulate.simulate(kind, prompts=prompts, seed=9)
    unit = log.table["prompt_id"].to_numpy()
    verdicts = {}
    for policy in ("near", "far"):
        logw = log_weights(log, policy)
        verdicts[policy] = diagnostics.verdict(
            k_hat=tails.pareto_k(logw),
            ess=diagnostics.effective_sample_size(logw, unit),
            kl=diagnostics.kl_target_behavior(logw, unit),
            n_units=prompts,
        )
    assert verdicts == {"near": "reliable", "far": "unreliable"}


@pytest.mark.parametrize("kind", KINDS)
def test_write(kind, tmp_path):
    log = simulate.simulate(kind, prompts=20, seed=6)
    path, truth_path = log.write(tmp_path / "log.parquet")
    assert truth_path.name == "log.truth.json"
    assert pq.read_table(path).equals(log.table)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    truth = json.loads(truth_path.read_text(), parse_constant=refuse)
    assert truth == plain(log.truth)
    assert truth["kind"] == kind


def test_infinity_is_written_as_null(tmp_path):
    _, truth_path = simulate.no_support(prompts=20).write(tmp_path / "log.parquet")
    assert json.loads(truth_path.read_text())["policies"]["gap"]["kl_target_behavior"] is None


def test_named_clusters():
    log = simulate.table(prompts=50, n_clusters=2, cluster_names=("for", "against"))
    assert set(log.table["cluster"].to_pylist()) == {"for", "against"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simulate.simulate("nonsense"), "no simulation named 'nonsense'; there are table, lognormal"),
        (lambda: simulate.table(prompts=0), "prompts must be at least 1, got 0"),
        (lambda: simulate.clusters(responses=-1), "responses must be at least 1"),
        (lambda: simulate.tiny_lm(seed=-1), "seed must be at least 0, got -1"),
        (lambda: simulate.lognormal(divergences={"p": -1.0}), "divergence of policy 'p'"),
        (lambda: simulate.no_support(off_reward=2.0), "off_reward"),
        (lambda: simulate.no_support(policies={"p": simulate.PartlySupported(1.0, 1.0)}), "policy 'p'"),
        (lambda: simulate.tiny_lm(vocabulary=10, length=10), "sequences"),
        (lambda: simulate.table(n_clusters=3, cluster_names=("a", "b")), "cluster_names"),
        (lambda: simulate.lognormal(prompts=1).write("log.csv"), "does not end in .parquet"),
    ],
)
def test_mistakes_are_explained(call, message):
    with pytest.raises(PopeError, match=message):
        call()


def test_import_is_light():
    code = "import sys, pope_fast.simulate; assert 'pyarrow' not in sys.modules, 'pyarrow'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_response_per_prompt_by_default_where_the_theory_has_one():
    log = simulate.lognormal(prompts=10)
    assert units.unit_sizes(log.table["prompt_id"].to_numpy()).tolist() == [1.0] * 10
