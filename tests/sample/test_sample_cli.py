"""``pope sample``: from a log and the files of a model to a log of draws, and on to the bridge check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from pope_fast.cli.evaluate import evaluate
from pope_fast.cli.sample import sample
from pope_fast.score import HFPolicy, score
from pope_fast.score.metadata import read_provenance
from tiny_models import tiny_model, tiny_tokenizer

app = typer.Typer()
for verb in (sample, evaluate):
    app.command()(verb)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, "old" and "new" with other weights, and a log of prompts."""
    path = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer()
    for name, seed in (("old", 0), ("new", 1)):
        tiny_model(vocab_size=len(tokenizer), seed=seed, initializer_range=0.03).save_pretrained(path / name)
        tokenizer.save_pretrained(path / name)
    pq.write_table(pa.table({"question": [f"trees {i}" for i in range(9)] * 2}), path / "log.parquet")
    return path


def test_options_reach_the_draws(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "fresh.parquet"
    words = (
        "-k 2 --name mine --temperature 0.8 --top-k 50 --top-p 0.9 --min-p 0.01 --max-new-tokens 4 --seed 3 --prompts 5"
    )
    flags = "--dtype float64 --device cpu --attention eager --token-budget 64 --tokens --column prompt=question"
    outcome = run(
        "sample", folder / "log.parquet", "--model", folder / "new", "-o", out, *words.split(), *flags.split()
    )
    assert outcome.exit_code == 0, outcome.output
    assert "wrote 10 draws" in outcome.stdout
    assert "pope score" in outcome.stdout
    table = pq.read_table(out)
    assert table["sampling"][0].as_py() == {
        **{"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "max_new_tokens": 4, "seed": 3}
    }
    assert "behavior_token_logprobs" in table.column_names
    made = read_provenance(table.schema)["behavior_logprob"]
    assert (made.policy, made.dtype, made.attention) == ("mine", "float64", "eager")
    assert made.model == str(folder / "new")


def test_from_a_log_to_the_check(folder: Path, tmp_path: Path) -> None:
    logged, scored, fresh = (tmp_path / f"{name}.parquet" for name in ("logged", "scored", "fresh"))
    common = ("--device", "cpu", "-q", "--column", "prompt=question", "--max-new-tokens", 3)
    outcome = run("sample", folder / "log.parquet", "--model", folder / "old", "-k", 4, "-o", logged, *common)
    assert (outcome.exit_code, outcome.stdout) == (0, "")
    table = pq.read_table(logged)
    rewards = np.random.default_rng(0).random(len(table))
    score(table.append_column("reward", pa.array(rewards)), [HFPolicy("new", str(folder / "new"))], scored)
    outcome = run(
        *("sample", scored, "--model", folder / "new", "-k", 4, "-o", fresh, "--device", "cpu"),
        *("--max-new-tokens", 3, "--score-under", f"logger={folder / 'old'}"),
    )
    assert outcome.exit_code == 0, outcome.output
    assert f"pope evaluate {scored} --fresh new={fresh}" in outcome.stdout
    outcome = run("evaluate", scored, "--fresh", f"new={fresh}", "--json", "-")
    assert outcome.exit_code == 0, outcome.output
    bridge = json.loads(outcome.stdout)["pope"]["policies"]["new"]["bridge"]
    assert bridge["n_fresh"] == 36
    assert bridge["paired"] is True
    assert bridge["p_value"] > 0.001
    again = run("evaluate", scored, "--fresh", fresh, "--fresh-logger", "target_logprob/logger")
    assert "bridge check passed: 36 fresh draws on 9 prompts" in " ".join(again.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no/such/model"], "no/such/model"),
        (["--temperature", "0"], "temperature"),
        (["--top-p", "2"], "top_p"),
        (["--score-under", "old"], "NAME=VALUE"),
        (["--max-new-tokens", "500"], "context of 128"),
        (["--column", "prompt=answer"], "answer"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_and_exit_code_2(
    folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    given = ["sample", folder / "log.parquet", "-o", tmp_path / "x.parquet", "--device", "cpu"]
    given += [] if "--model" in arguments else ["--model", folder / "new"]
    given += [] if "--column" in arguments else ["--column", "prompt=question"]
    outcome = run(*given, *arguments)
    assert outcome.exit_code == 2
    assert message in outcome.stderr
    assert "Traceback" not in outcome.output
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_kept(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "fresh.parquet"
    out.write_text("mine")
    given = ("sample", folder / "log.parquet", "--model", folder / "new", "-o", out, "--column", "prompt=question")
    outcome = run(*given, "--device", "cpu", "--max-new-tokens", 2)
    assert outcome.exit_code == 2
    assert "--overwrite" in outcome.stderr
    assert out.read_text() == "mine"
    assert run(*given, "--device", "cpu", "--max-new-tokens", 2, "--overwrite").exit_code == 0
    assert pq.read_metadata(out).num_rows == 9
