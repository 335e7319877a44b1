"""Files and options of a user's that are wrong: exit code 2 and one line, never a defect."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import Run

from pope_fast.data import demo_log

LOG = str(demo_log())


@pytest.mark.parametrize(
    "content", ['{"policies":{"x":5}}', "[" * 50_000, '{"policies":[]}', "\x00", '{"a":' + "9" * 5000]
)
def test_truth_files(tmp_path: Path, run: Run, content: str) -> None:
    (tmp_path / "truth.json").write_text(content)
    outcome = run("evaluate", LOG, "--truth", str(tmp_path / "truth.json"))
    assert outcome.code == 2
    assert outcome.stderr.startswith("error: the truth file ")
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize("order", ["-1", "0", "99999999999999999999"])
def test_orders(run: Run, order: str) -> None:
    outcome = run("evaluate", LOG, "--diversity-order", order)
    assert outcome.code == 2
    assert "defect" not in outcome.both


@pytest.mark.parametrize("verb", ["cluster", "sample", "score"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv.gz", "x.arrow"])
def test_outputs_named_like_another_format(tmp_path: Path, run: Run, verb: str, name: str) -> None:
    outcome = run(verb, LOG, "-o", str(tmp_path / name), *(() if verb == "cluster" else ("--model", "none")))
    assert outcome.code == 2
    if verb == "cluster":
        assert f"{name!r} should end in .parquet" in outcome.stderr
    assert not any(tmp_path.iterdir())
