"""Arrow: one row per policy and metric."""

from __future__ import annotations

import pyarrow.compute as pc
import pytest

from pope_fast.evaluate.results import Evaluation
from pope_fast.report.arrow import SCHEMA


def test_one_headline_row_per_quantity(evaluation: Evaluation) -> None:
    table = evaluation.to_arrow()
    assert table.schema == SCHEMA
    table.validate(full=True)
    rows = table.to_pylist()
    for policy in evaluation:
        headline = [r["metric"] for r in rows if r["policy"] == policy and r["headline"]]
        assert headline[:3] == ["value", "utility", "diversity"]
        assert len(headline) == len(set(headline))
    assert {r["estimator"] for r in rows if r["metric"] == "utility"} == {"sn_tips", "ips", "snips", "dr"}
    assert {r["metric"] for r in rows} >= {"group/expert", "welfare/min"}


def test_figures_and_nulls(evaluation: Evaluation) -> None:
    rows = evaluation.to_arrow().to_pylist()
    (utility,) = [r for r in rows if r["policy"] == "near" and r["metric"] == "utility" and r["headline"]]
    assert utility["value"] == 0.7123
    assert utility["low"] == pytest.approx(0.6913)
    assert utility["method"] == "worst_case_tail"
    assert utility["verdict"] == "reliable"
    (missing,) = [r for r in rows if r["estimator"] == "dr"]
    assert missing["value"] is missing["low"] is missing["method"] is None
    assert missing["note"] == "the log has no baseline column"


def test_a_policy_without_clusters_has_no_diversity_rows(caution: Evaluation) -> None:
    assert not pc.any(pc.equal(caution.to_arrow()["metric"], "diversity")).as_py()
