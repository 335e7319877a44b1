"""The demo log that ships with the package."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pope_fast.reference import diagnostics, intervals, tails, units

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "python" / "pope_fast" / "data" / "demo.parquet"


@pytest.fixture(scope="module")
def demo():
    return pq.read_table(DEMO), json.loads(DEMO.with_suffix(".truth.json").read_text())


def _columns(table, policy):
    logw = table[f"target_logprob/{policy}"].to_numpy().astype(float)
    logw -= table["behavior_logprob"].to_numpy().astype(float)
    return logw, np.array(table["reward"].to_pylist(), dtype=float), table["prompt_id"].to_numpy()


def test_size_and_shape(demo):
    table, truth = demo
    assert DEMO.stat().st_size < 1_000_000
    assert np.all(units.unit_sizes(table["prompt_id"].to_numpy()) == 8)
    assert table.num_rows == 24_000
    assert set(truth["policies"]) == {"near", "far"}
    assert len(set(table["cluster"].to_pylist())) == 6
    assert set(table["group"].to_pylist()) == set(truth["policies"]["near"]["groups"])


def test_one_policy_can_be_evaluated_and_one_cannot(demo):
    table, truth = demo
    for policy, expected in {"near": "reliable", "far": "unreliable"}.items():
        logw, r, unit = _columns(table, policy)
        verdict = diagnostics.verdict(
            k_hat=tails.pareto_k(logw),
            ess=diagnostics.effective_sample_size(logw, unit),
            kl=diagnostics.kl_target_behavior(logw, unit),
            n_units=3000,
        )
        assert verdict == expected
        low, high = intervals.log_smoothing(logw, r, unit)
        assert low < truth["policies"][policy]["utility"] < high


def test_groups_have_different_tastes(demo):
    _, truth = demo
    values = list(truth["policies"]["near"]["groups"].values())
    assert max(values) - min(values) > 0.05


def test_the_script_makes_the_shipped_files(demo, tmp_path):
    """Integers and truth exactly; single-precision log-probabilities up to another machine's exp."""
    spec = importlib.util.spec_from_file_location("make_demo_log", ROOT / "scripts" / "make_demo_log.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    log, truth_path = script.demo_log().write(tmp_path / "demo.parquet", compression="zstd")
    made, shipped = pq.read_table(log), demo[0]
    assert made.schema == shipped.schema
    for name in made.column_names:
        if "logprob" in name:
            np.testing.assert_allclose(made[name].to_numpy(), shipped[name].to_numpy(), rtol=1e-5)
        else:
            assert made[name].to_pylist() == shipped[name].to_pylist(), name
    ours, theirs = json.loads(truth_path.read_text()), demo[1]
    assert ours["policies"]["near"]["utility"] == pytest.approx(theirs["policies"]["near"]["utility"], rel=1e-12)
    assert ours["parameters"] == theirs["parameters"]
