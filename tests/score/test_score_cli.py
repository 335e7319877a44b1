"""``pope score``: options reach the right policies, and what is said afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from score_worlds import ModelServer, naive_sums, serving, token_log
from typer.testing import CliRunner

import pope_fast.score
from pope_fast.cli.score import score as verb
from pope_fast.score import HFPolicy, ServerPolicy, read_provenance
from tiny_models import tiny_model, tiny_tokenizer

app = typer.Typer()
app.command()(verb)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return token_log()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 0), ("two", 1)):
        tiny_model("llama", seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(tiny_model("llama"), config).save_pretrained(folder / "x")
    return folder


@pytest.fixture
def log(tmp_path: Path, table: pa.Table) -> Path:
    path = tmp_path / "log.parquet"
    pq.write_table(table, path)
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_models_get_their_names(log: Path, saved: Path, tmp_path: Path, table: pa.Table) -> None:
    output = tmp_path / "scored.parquet"
    models = ("--model", saved / "one", "--name", "a", "--model", saved / "two", "--name", "b")
    done = run(log, *models, "-o", output, "--tokens", "--deterministic", "--token-budget", 64)
    assert done.exit_code == 0, done.output
    written = pq.read_table(output)
    for name, seed in (("a", 0), ("b", 1)):
        expected = naive_sums(tiny_model("llama", seed=seed), table)
        assert written[f"target_logprob/{name}"].to_pylist() == pytest.approx(expected.tolist(), abs=1e-4)
        assert f"target_token_logprobs/{name}" in written.column_names
    assert f"target_logprob/a: 18 rows ({saved / 'one'}, stored)" in done.stdout
    assert f"wrote {output}; next: pope evaluate {output}" in done.stdout


def test_without_names_the_ends_of_the_paths_do(log: Path, saved: Path, tmp_path: Path) -> None:
    output = tmp_path / "scored.parquet"
    done = run(log, "--model", saved / "one", "--model", saved / "two", "-o", output, "--quiet")
    assert (done.exit_code, done.stdout) == (0, "")
    assert set(read_provenance(pq.read_schema(output))) == {"target_logprob/one", "target_logprob/two"}


def test_adapters_are_policies_and_the_base_is_one_if_it_has_a_name(log: Path, saved: Path, tmp_path: Path) -> None:
    output, both = tmp_path / "scored.parquet", tmp_path / "both.parquet"
    options = (log, "--model", saved / "one", "--adapter", f"x={saved / 'x'}", "-q")
    assert run(*options, "-o", output).exit_code == 0
    assert set(read_provenance(pq.read_schema(output))) == {"target_logprob/x"}
    assert run(*options, "-o", both, "--name", "base").exit_code == 0
    made = read_provenance(pq.read_schema(both))
    assert set(made) == {"target_logprob/x", "target_logprob/base"}
    assert made["target_logprob/x"].adapter == str(saved / "x")


def test_the_behavior_policy_and_its_second_scoring(log: Path, saved: Path, tmp_path: Path, table: pa.Table) -> None:
    pq.write_table(table.drop(["behavior_logprob"]), log)
    output = tmp_path / "scored.parquet"
    done = run(log, "--behavior-model", saved / "one", "--aa", "-o", output)
    assert done.exit_code == 0, done.output
    assert {"behavior_logprob", "behavior_logprob_again"} <= set(pq.read_schema(output).names)


def test_a_server_is_a_policy(log: Path, tmp_path: Path, table: pa.Table) -> None:
    model = tiny_model("llama")
    output = tmp_path / "scored.parquet"
    with serving(ModelServer(model, "vllm"), {"data": [{"id": "tiny"}]}) as url:
        done = run(log, "--server", url, "--server-model", "tiny", "--name", "served", "-o", output)
        assert done.exit_code == 0, done.output
        refused = run(log, "--server", url, "--server-model", "big", "-o", tmp_path / "other.parquet")
    assert refused.exit_code == 2
    assert "has no model 'big'" in refused.stderr
    values = pq.read_table(output)["target_logprob/served"].to_pylist()
    assert values == pytest.approx(naive_sums(model, table).tolist(), abs=1e-4)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the verb passes on to the function."""
    seen: dict[str, Any] = {}

    def noted(log: Any, policies: Any, output: Any, **options: Any) -> Any:
        seen.update(log=log, policies=policies, output=output, **options)
        return pope_fast.read_log({"reward": [1.0]})

    monkeypatch.setattr(pope_fast.score, "score", noted)
    return seen


def test_options_reach_the_function(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(
        *("log.parquet", "-o", "out.parquet", "--model", "org/m", "--tokenizer", "org/t", "--temperature", 0.7),
        *("--dtype", "bfloat16", "--device", "cuda:1", "--attention", "eager", "--revision", "v2"),
        *("--retokenize", "--trust-remote-code", "--server", "http://host/v1", "--api-key-env", "KEY"),
        *("--server-api", "echo-text", "--concurrency", 3, "--eos", "always", "--no-share-prompt"),
        *("--token-budget", 99, "--deterministic", "--overwrite", "--restart", "--column", "reward=stars", "--tokens"),
    )
    assert done.exit_code == 0, done.output
    model = HFPolicy(
        *("m", "org/m", "org/t"),
        temperature=0.7,
        dtype="bfloat16",
        device="cuda:1",
        attention="eager",
        revision="v2",
        trust_remote_code=True,
        tokens="text",
    )
    server = ServerPolicy(
        *("server", "http://host/v1"),
        processing_class="org/t",
        api="echo-text",
        api_key_env="KEY",
        concurrency=3,
        tokens="text",
        revision="v2",
        trust_remote_code=True,
    )
    assert given["policies"] == [model, server]
    expected = {
        **{"log": "log.parquet", "output": "out.parquet", "behavior": None, "aa": False, "eos": "always"},
        **{"columns": {"reward": "stars"}, "token_logprobs": True, "share_prompt": False, "token_budget": 99},
        **{"deterministic": True, "overwrite": True, "restart": True, "progress": None},
    }
    assert {name: given[name] for name in expected} == expected


def test_defaults_are_those_of_the_function(given: dict[str, Any]) -> None:
    assert run("log.parquet", "-o", "out.parquet", "--model", "m", "--quiet").exit_code == 0
    assert given["policies"] == [HFPolicy("m", "m")]
    assert given["share_prompt"] == "auto"
    assert given["progress"] is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "a", "--name", "x", "--name", "y"], "2 names for 1"),
        (["--model", "a", "--model", "b", "--name", "x"], "1 names for 2"),
        (["--adapter", "x=p"], "exactly one --model"),
        (["--model", "a", "--model", "b", "--adapter", "x=p"], "exactly one --model"),
        (["--model", "a", "--adapter", "x"], "NAME=VALUE"),
        (["--model", "a", "--dtype", "int8"], "int8"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str) -> None:
    done = run("log.parquet", "-o", "out.parquet", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.output


def test_mistakes_are_one_line(log: Path, tmp_path: Path, saved: Path) -> None:
    for arguments, said in (
        ([], "no policy to score"),
        (["--model", str(tmp_path / "nothing")], "cannot be loaded"),
        (["--model", "a", "--model", "b/a"], "two policies of one name"),
        (["--model", "a", "--temperature", "0"], "temperature must be positive"),
    ):
        done = run(log, "-o", tmp_path / "out.parquet", *arguments)
        assert done.exit_code == 2
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert said in done.stderr
    assert not (tmp_path / "out.parquet").exists()


def test_warnings_are_printed(log: Path, tmp_path: Path, saved: Path) -> None:
    pq.write_table(pa.table({"prompt": ["the city "] * 2, "completion": ["costs", ""]}), log)
    done = run(log, "--model", saved / "one", "-o", tmp_path / "out.parquet")
    assert done.exit_code == 0, done.output
    assert "warning: completions were tokenized from their text" in done.stderr
    assert "row 1: empty completion" in done.stderr
    assert "1 rows, 1 without" in done.stdout
