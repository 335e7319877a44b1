"""``pope evaluate``: what it prints and writes, its exit codes, and no traceback for a user's mistake."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from runs import Run

from pope_fast.evaluate import evaluate
from pope_fast.report.table import render_text


def test_the_table_names_every_quantity_and_both_verdicts(run: Run, log: Path) -> None:
    outcome = run("evaluate", log)
    assert outcome.code == 0
    for needle in ("near", "✔ reliable", "far", "✘ unreliable", "V value", "U utility", "D ", "ESS", "next:"):
        assert needle in outcome.stdout
    assert outcome.stdout.strip() == render_text(evaluate(str(log)), width=120).strip()


def test_json_to_stdout_is_all_there_is(process: Run, log: Path) -> None:
    outcome = process("evaluate", log, "--json", "-")
    assert outcome.code == 0
    content = json.loads(outcome.stdout)
    assert set(content["results"]) == {"near", "far"}
    assert content["results"]["far"]["verdict"] == "unreliable"
    assert content["n-samples"]["near"]["original"] == 1200
    assert content["results"]["near"] == evaluate(str(log)).to_json()["results"]["near"]


def test_files_are_written_beside_the_table(run: Run, log: Path, tmp_path: Path) -> None:
    outcome = run("evaluate", log, "--json", tmp_path / "a.json", "--html", tmp_path / "a.html")
    assert outcome.code == 0
    assert "✔ reliable" in outcome.stdout
    assert "near" in json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["results"]
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "✘ unreliable" in page


def test_quiet_prints_nothing(run: Run, log: Path) -> None:
    assert run("evaluate", log, "--quiet") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--fail-on", "unreliable"], 1),
        (["--fail-on", "caution"], 1),
        (["--fail-on", "unreliable", "--policy", "near"], 0),
        (["--fail-on", "caution", "--policy", "near"], 0),
        (["--fail-on", "unreliable", "--policy", "near", "--threshold", "ess=1e9"], 1),
        (["--fail-on", "unreliable:utility"], 1),
        (["--fail-on", "unreliable:utility,diversity", "--policy", "near"], 0),
        (["--fail-on", "unreliable:differences"], 1),
        (["--fail-on", "caution:value", "--fail-on", "unreliable:diversity"], 1),
        (["--fail-on", "unreliable", "--only", "diversity", "--policy", "near"], 0),
        ([], 0),
    ],
)
def test_exit_code_follows_the_verdict(run: Run, log: Path, arguments: list[str], code: int) -> None:
    outcome = run("evaluate", log, *arguments)
    assert outcome.code == code
    assert "U utility" in outcome.stdout
    assert bool(re.search(r"^verdict( on \w+)?: unreliable \(--fail-on ", outcome.stderr)) == (code == 1)


def test_fail_on_one_quantity_looks_at_no_other(run: Run, table: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "rare.parquet"
    reward = np.zeros(table.num_rows)
    reward[:20] = 1.0
    at = table.column_names.index("reward")
    pq.write_table(table.set_column(at, "reward", pa.array(reward)), path)
    arguments = ["evaluate", path, "--policy", "near", "--quiet"]
    assert run(*arguments, "--fail-on", "caution").code == 1
    assert run(*arguments, "--fail-on", "caution", "--only", "diversity").code == 0
    assert run(*arguments, "--fail-on", "caution:diversity").code == 0
    failed = run(*arguments, "--fail-on", "caution:utility,value,diversity")
    assert failed.code == 1
    assert failed.stderr.splitlines() == [
        "verdict on utility: caution (--fail-on caution:utility)",
        "verdict on value: caution (--fail-on caution:value)",
    ]


def test_policies_and_columns_can_be_named(run: Run, table: pa.Table, tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(table.num_columns)]
    path = tmp_path / "renamed.parquet"
    pq.write_table(table.rename_columns(names), path)
    roles = {
        role: name
        for role, name in zip(table.column_names, names, strict=True)
        if not role.startswith("target_logprob")
    }
    options = [f"--column={role}={name}" for role, name in roles.items()]
    position = table.column_names.index("target_logprob/near")
    outcome = run("evaluate", path, *options, "--policy", f"mine=c{position}", "--json", "-")
    assert outcome.code == 0
    results = json.loads(outcome.stdout)["results"]
    assert list(results) == ["mine"]
    expected = evaluate(table)["near"]
    assert results["mine"]["utility,sn_tips"] == expected.utility.value


def test_options_reach_the_evaluation(run: Run, log: Path) -> None:
    options = "--diversity-weight 0.25 --level 0.9 --unit row --reward-range 0,2 --estimator snips --threads 1"
    outcome = run("evaluate", log, *options.split(), "--threshold", "ess=77", "--json", "-")
    assert outcome.code == 0
    settings = json.loads(outcome.stdout)["pope"]["settings"]
    assert settings["diversity_weight"] == 0.25
    assert settings["level"] == 0.9
    assert settings["unit"] == "row"
    assert settings["reward_range"] == {"low": 0.0, "high": 2.0, "origin": "declared"}
    assert settings["estimator"] == "snips"
    assert settings["thresholds"]["ess"] == 77.0


def test_compare_shows_only_the_pairs_asked_for(run: Run, log: Path) -> None:
    outcome = run("evaluate", log, "--compare", "far,near")
    assert outcome.code == 0
    assert "far - near" in outcome.stdout
    assert not re.search(r"^ *near - far +V", outcome.stdout, re.MULTILINE)


def test_truth_adds_a_column(run: Run, log: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"policies": {"near": {"utility": 0.5 + 0.2 * float(np.tanh(0.3))}}}))
    outcome = run("evaluate", log, "--truth", truth)
    assert outcome.code == 0
    assert re.search(r"U utility .*0\.558 in$", outcome.stdout, re.MULTILINE)


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "csv"])
def test_other_formats_give_the_same_numbers(run: Run, table: pa.Table, log: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"log.{form}"
    if form == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        text = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
        path.write_bytes(gzip.compress(text.encode()) if form.endswith("gz") else text.encode())
    there = json.loads(run("evaluate", path, "--json", "-").stdout)["results"]
    here = json.loads(run("evaluate", log, "--json", "-").stdout)["results"]
    assert there == here


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "nope"], "nope"),
        (["--policy", "x=nope"], "nope"),
        (["--policy", "near", "--policy", "near"], "twice"),
        (["--policy", "a=target_logprob/near", "--policy", "a=target_logprob/far"], "twice"),
        (["--policy", "=x"], "NAME"),
        (["--column", "reward"], "reward"),
        (["--column", "reward=nope"], "nope"),
        (["--column", "nope=reward"], "nope"),
        (["--unit", "nope"], "nope"),
        (["--level", "1.5"], "level"),
        (["--level", "nan"], "level"),
        (["--level", "x"], "level"),
        (["--diversity-weight", "-1"], "diversity_weight|diversity weight"),
        (["--diversity-weight", "inf"], "diversity_weight|diversity weight"),
        (["--diversity-order", "0"], "order"),
        (["--diversity-order", "9"], "order"),
        (["--reward-range", "1"], "LO,HI"),
        (["--reward-range", "a,b"], "LO,HI"),
        (["--reward-range", "1,0"], "range"),
        (["--reward-range", "0,nan"], "range"),
        (["--reward-range", "0,0.5"], "range"),
        (["--estimator", "nope"], "nope"),
        (["--cluster-scope", "nope"], "nope"),
        (["--aa-policy", "nope"], "nope"),
        (["--threshold", "ess"], "ess"),
        (["--threshold", "ess=x"], "x"),
        (["--threshold", "nope=1"], "nope"),
        (["--compare", "near"], "A,B"),
        (["--compare", "near,nope"], "nope"),
        (["--compare", "near,near"], "itself"),
        (["--truth", "no/such/truth.json"], "truth"),
        (["--json", "no/such/folder/a.json"], "folder"),
        (["--html", "no/such/folder/a.html"], "folder"),
        (["--fail-on", "nope"], "nope"),
        (["--fail-on", "unreliable:nope"], "nope.*utility"),
        (["--fail-on", "unreliable:"], "quantity"),
        (["--fail-on", "utility"], "caution and unreliable"),
        (["--fail-on", "unreliable:groups"], "no groups"),
        (["--only", "U"], "'U'.*utility"),
        (["--threads", "0"], "threads"),
        (["--nope"], "--nope"),
    ],
)
def test_a_wrong_option_is_one_message_and_exit_code_2(run: Run, log: Path, arguments: list[str], words: str) -> None:
    outcome = run("evaluate", log, *arguments)
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    assert re.search(words, re.sub(r"\s+", " ", outcome.stderr))


def replaced(table: pa.Table, column: str, row: int, value: float | None) -> pa.Table:
    """The table with one value changed."""
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(column), column, pa.array(values, pa.float64()))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("reward", float("nan")),
        ("reward", float("inf")),
        ("reward", None),
        ("behavior_logprob", float("nan")),
        ("behavior_logprob", -float("inf")),
        ("behavior_logprob", 0.5),
        ("behavior_logprob", None),
        ("target_logprob/near", 0.5),
        ("target_logprob/near", float("nan")),
    ],
)
def test_a_bad_value_is_named_with_column_row_and_remedy(
    run: Run, table: pa.Table, tmp_path: Path, column: str, value: float | None
) -> None:
    path = tmp_path / "bad.parquet"
    pq.write_table(replaced(table, column, 17, value), path)
    outcome = run("evaluate", path)
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert re.search(rf"error: column '{column}', row 17\b.*Remedy: ", outcome.stderr)


def test_files_that_are_no_logs(run: Run, table: pa.Table, log: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(log.read_bytes()[:-100])
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt_id": 1}\n{"prompt_id": \n')
    empty = tmp_path / "empty.parquet"
    pq.write_table(table.slice(0, 0), empty)
    single = tmp_path / "single.parquet"
    pq.write_table(table.filter(pc.equal(table["prompt_id"], 0)), single)
    without = tmp_path / "without.parquet"
    pq.write_table(table.drop_columns(["behavior_logprob"]), without)
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, words in (
        (tmp_path / "missing.parquet", "missing.parquet"),
        (cut, "cut.parquet"),
        (broken, "line 2"),
        (empty, "empty|no rows"),
        (single, "two|2"),
        (without, "behavior_logprob"),
        (folder, "folder"),
    ):
        outcome = run("evaluate", path)
        assert outcome.code == 2, path
        assert outcome.stdout == ""
        assert "Traceback" not in outcome.stderr
        assert re.search(words, outcome.stderr), outcome.stderr


def test_an_interrupt_is_no_verdict(run: Run, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("pope_fast.evaluate"), "evaluate", interrupted)
    outcome = run("evaluate", log, "--fail-on", "unreliable")
    assert outcome.code == 130
    assert "Traceback" not in outcome.stderr


def test_a_defect_shows_where_and_is_no_verdict(run: Run, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(import_module("pope_fast.evaluate"), "evaluate", broken)
    outcome = run("evaluate", log, "--fail-on", "unreliable")
    assert outcome.code == 70
    assert "ZeroDivisionError: a defect" in outcome.stderr


def test_a_terminal_without_unicode(process: Run, log: Path) -> None:
    outcome = process("evaluate", log, environment={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert outcome.code == 0
    assert "x unreliable" in outcome.stdout
    assert outcome.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="no head on Windows")
def test_a_closed_pipe_is_no_traceback(log: Path) -> None:
    command = f"{sys.executable} -m pope_fast.cli evaluate {log} | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=120, check=False)
    assert b"pope_fast" in done.stdout
    assert b"Traceback" not in done.stderr
