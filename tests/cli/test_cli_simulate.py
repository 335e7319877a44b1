"""``pope simulate``: a log and its truth, for every kind."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import Run

from pope_fast.simulate import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_evaluated_beside_its_truth(run: Run, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log.parquet"
    outcome = run("simulate", kind, "-o", path, "--prompts", 400, "--seed", 3)
    assert outcome.code == 0
    assert str(path) in outcome.stdout
    truth = json.loads((tmp_path / "log.truth.json").read_text(encoding="utf-8"))
    table = run("evaluate", path, "--truth", tmp_path / "log.truth.json")
    assert table.code == 0
    assert table.stdout.count(" in\n") + table.stdout.count(" OUT\n") >= len(truth["policies"])
    for policy in truth["policies"]:
        assert policy in table.stdout


def test_sizes_and_seed(run: Run, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = ("--prompts", 10, "--responses", 3, "--seed", seed, "--quiet")
        assert run("simulate", "table", "-o", tmp_path / f"{name}.parquet", *options) == (0, "", "")
    a, b, c = (pq.read_table(tmp_path / f"{name}.parquet") for name in "abc")
    assert a.num_rows == 30
    assert a.equals(b)
    assert not a.equals(c)


def test_help_names_every_kind(run: Run) -> None:
    text = run("simulate", "--help").stdout
    for kind in KINDS:
        assert kind in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope", "-o", "{}/a.parquet"], "nope"),
        (["table"], "output"),
        (["table", "-o", "{}/a.csv"], "parquet"),
        (["table", "-o", "{}/no/such/a.parquet"], "no/such"),
        (["table", "-o", "{}/a.parquet", "--prompts", "0"], "prompts"),
        (["table", "-o", "{}/a.parquet", "--responses", "-1"], "responses"),
        (["table", "-o", "{}/a.parquet", "--seed", "x"], "seed"),
        (["table", "-o", "{}/a.parquet", "--seed", "-1"], "seed"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(run: Run, tmp_path: Path, arguments: list[str], words: str) -> None:
    outcome = run("simulate", *(argument.format(tmp_path) for argument in arguments))
    assert outcome.code == 2
    assert "Traceback" not in outcome.both
    assert words in outcome.stderr
    assert list(tmp_path.iterdir()) == []
