"""``pope validate``: what it shows, faults and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from runs import Run


def test_a_good_log(run: Run, log: Path) -> None:
    outcome = run("validate", log)
    assert outcome.code == 0
    for needle in ("prompt_id", "reward", "behavior_logprob", "near", "far", "300", "1,200"):
        assert needle in outcome.stdout


def test_faults_are_listed_and_exit_code_is_1(run: Run, table: pa.Table, tmp_path: Path) -> None:
    rewards = table["reward"].to_pylist()
    rewards[7] = float("nan")
    path = tmp_path / "bad.parquet"
    pq.write_table(table.set_column(table.column_names.index("reward"), "reward", pa.array(rewards)), path)
    outcome = run("validate", path)
    assert outcome.code == 1
    assert "reward" in outcome.stdout
    assert "7" in outcome.stdout
    report = run("validate", path, "--json", "-")
    assert report.code == 1
    (fault,) = json.loads(report.stdout)["faults"]
    assert (fault["column"], fault["row"]) == ("reward", 7)
    assert fault["remedy"]


def test_json_to_a_file(run: Run, log: Path, tmp_path: Path) -> None:
    outcome = run("validate", log, "--json", tmp_path / "report.json")
    assert outcome.code == 0
    assert "prompt_id" in outcome.stdout
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["faults"] == []


def test_what_cannot_be_read_is_exit_code_2(run: Run, tmp_path: Path) -> None:
    outcome = run("validate", tmp_path / "no.parquet")
    assert outcome.code == 2
    assert "no.parquet" in outcome.stderr
    assert "Traceback" not in outcome.stderr
