"""``pope evaluate --diversity``."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import Run

from pope_fast import simulate


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embedded") / "log.parquet"
    simulate.table(prompts=200, responses=4, seed=1, embedding_width=6).write(path)
    return path


@pytest.mark.parametrize(("name", "legend"), [("rao", "Rao's entropy"), ("vendi", "Vendi score"), ("gini", "Gini")])
def test_the_choice_is_the_headline(run: Run, embedded: Path, name: str, legend: str) -> None:
    outcome = run("evaluate", embedded, "--diversity", name)
    assert outcome.code == 0
    assert legend in outcome.stdout


def test_without_clusters(run: Run, embedded: Path, tmp_path: Path) -> None:
    path = tmp_path / "alone.parquet"
    pq.write_table(pq.read_table(embedded).drop_columns(["cluster"]), path)
    outcome = run("evaluate", path, "--json", "-")
    assert outcome.code == 0
    assert json.loads(outcome.stdout)["results"]["near"]["diversity,rao"] > 0.0
    truth = embedded.with_suffix(".truth.json")
    assert " OUT" not in run("evaluate", path, "--truth", truth).stdout


def test_a_choice_that_is_none(run: Run, embedded: Path) -> None:
    outcome = run("evaluate", embedded, "--diversity", "shannon")
    assert outcome.code == 2
    assert "there is no diversity 'shannon'" in outcome.stderr


def test_a_log_without_embeddings(run: Run, log: Path) -> None:
    outcome = run("evaluate", log, "--diversity", "rao")
    assert outcome.code == 2
    assert "embedding" in outcome.stderr
    assert "--column ROLE=COLUMN" in outcome.stderr
