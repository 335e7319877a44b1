"""``pope align``: one run, YAML and flags, a sweep with its figure, and mistakes that are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from align_logs import make_log, tiny_policy
from typer.testing import CliRunner

from pope_fast.align.command import parse_settings
from pope_fast.cli import app
from pope_fast.errors import PopeError
from tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("align")
    model = tiny_policy(1)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    pq.write_table(make_log(model, prompts=40), folder / "log.parquet")
    return folder / "log.parquet", folder / "model"


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["align", *(str(word) for word in words)])


COMMON = ("--use_cpu", "true", "--per_device_train_batch_size", "8", "--diversity_order", "1", "--report_to", "none")


def test_one_run_saves_a_model_and_says_what_it_is_worth(start: tuple[Path, Path], tmp_path: Path) -> None:
    import transformers

    log, model = start
    done = run(log, "--model", model, "-o", tmp_path / "out", "--max_steps", 2, *COMMON)
    assert done.exit_code == 0, done.output
    assert "after" in done.output
    assert "before" in done.output
    trained = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert trained.config.vocab_size == tiny_policy().config.vocab_size
    assert "Value estimated off-policy" in (tmp_path / "out" / "README.md").read_text()


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "align.yaml"
    file.write_text("model: start\nlearning_rate: 3e-4\nbeta: 0.2\nlora_rank: 8\ncolumns: {reward: stars}\n")
    flags = ["--beta", "0.3", "--use_cpu", "true"]
    arguments, args = parse_settings(flags, str(file), log="log.parquet", output_dir=str(tmp_path / "out"))
    assert (args.beta, args.learning_rate) == (0.3, 3e-4)
    assert (arguments.model, arguments.lora_rank, arguments.columns) == ("start", 8, {"reward": "stars"})


def test_a_sweep_writes_its_frontier(start: tuple[Path, Path], tmp_path: Path) -> None:
    log, model = start
    figure = tmp_path / "frontier.png"
    out = tmp_path / "out"
    done = run(log, "--model", model, "-o", out, "--sweep", "0,0.5", "--max_steps", 1, "--plot", figure, *COMMON)
    assert done.exit_code == 0, done.output
    points = json.loads((out / "frontier.json").read_text())["points"]
    assert [point["diversity_weight"] for point in points] == [None, 0.0, 0.5]
    assert all(Path(point["output_dir"], "config.json").exists() for point in points[1:])
    assert figure.read_bytes().startswith(b"\x89PNG")
    # Before training the policy is the logger: its weights are 1, and its utility is the mean reward.
    assert points[0]["held_out_ess"] == pytest.approx(8)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--beta", "much"], "--beta"),
        (["--lamda", "1"], "no such option: --lamda"),
        (["--diversity_wieght", "1"], "Did you mean --diversity_weight"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--sweep", "a,b"], "not of the form"),
        (["--max_steps", "1", "--plot", "x.png"], "--sweep"),
    ],
)
def test_mistakes_are_named(start: tuple[Path, Path], tmp_path: Path, words: list[str], said: str) -> None:
    log, model = start
    done = run(log, "--model", model, "-o", tmp_path, *words, *COMMON)
    assert done.exit_code == 2
    assert said in done.output


def test_an_unknown_name_in_the_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "align.yaml"
    file.write_text("model: start\nlearning_rte: 1.0e-4\n")
    with pytest.raises(PopeError, match="'learning_rate'"):
        parse_settings([], str(file), log="log.parquet", output_dir="out")


def test_every_setting_is_listed() -> None:
    done = run("--settings")
    assert done.exit_code == 0
    for name in ("--diversity_weight", "--on_unreliable", "--learning_rate", "--gradient_accumulation_steps"):
        assert name in done.output
