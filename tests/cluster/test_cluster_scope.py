"""An evaluation knows from the log's metadata whether its clusters mean the same in every prompt."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from cluster_logs import text_log
from typer.testing import CliRunner

from pope_fast.cli import app
from pope_fast.cluster import cluster
from pope_fast.errors import PopeWarning
from pope_fast.evaluate import evaluate


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scope") / "log.parquet"
    cluster(text_log(), path, threshold=0.2)
    return path


@pytest.mark.filterwarnings("ignore::pope_fast.errors.PopeWarning")
def test_the_scope_is_that_of_the_clusters(clustered: Path) -> None:
    found = evaluate(clustered)
    assert found.settings.cluster_scope == "prompt"
    assert found["even"].diversity == evaluate(clustered, cluster_scope="prompt")["even"].diversity
    themes = cluster(text_log(), scope="log", n_clusters=5)
    assert evaluate(themes.log).settings.cluster_scope == "log"
    foreign = cluster(text_log(), threshold=0.2).table().replace_schema_metadata(None)
    assert evaluate(foreign).settings.cluster_scope == "log"


def test_labels_of_prompts_are_not_compared_across_prompts_unsaid(clustered: Path) -> None:
    with pytest.warns(PopeWarning, match="'cluster' was clustered within each prompt"):
        found = evaluate(clustered, cluster_scope="log")
    assert found.settings.cluster_scope == "log"
    assert any("clustered within each prompt" in message for message in found.warnings)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        evaluate(clustered, cluster_scope="prompt")
    assert not any("clustered within each prompt" in str(item.message) for item in said)


def test_the_sensitivity_is_printed_and_in_the_json(clustered: Path) -> None:
    printed = CliRunner().invoke(app, ["evaluate", str(clustered), "--cluster-sensitivity"])
    assert printed.exit_code == 0
    assert "D (H_3) and V by the threshold of the clusters" in printed.stdout
    written = CliRunner().invoke(app, ["evaluate", str(clustered), "--cluster-sensitivity", "--json", "-"])
    content = json.loads(written.stdout)
    sensitivity = content["pope"]["cluster_sensitivity"]
    assert sensitivity["own"] == 0.2
    assert len(sensitivity["thresholds"]) == len(sensitivity["policies"]["even"]["diversity"]) == 7


def test_a_log_that_was_not_clustered_here_has_no_sensitivity(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(cluster(text_log(), threshold=0.2).table().replace_schema_metadata(None), tmp_path / "log.parquet")
    refused = CliRunner().invoke(app, ["evaluate", str(tmp_path / "log.parquet"), "--cluster-sensitivity"])
    assert refused.exit_code == 2
    assert "does not say how it was clustered" in refused.stderr
