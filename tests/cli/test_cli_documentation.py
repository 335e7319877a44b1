"""What the documents say of the command line is so: options exist, the demo prints what the README shows."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer.main
from runs import Run

from pope_fast.align import POPEConfig
from pope_fast.cli import app
from pope_fast.evaluate import DEFAULT_THRESHOLDS, results
from pope_fast.simulate import KINDS, simulate

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(document: Path) -> list[list[str]]:
    """The words of every ``pope`` command in the console blocks of a document."""
    blocks = re.findall(r"```console\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ pope ")]


def options() -> dict[str, set[str]]:
    """The options of every verb."""
    group = typer.main.get_command(app)
    found = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }
    found["align"] |= {f"--{item.name}" for item in fields(POPEConfig)}
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_have_these_options(document: Path) -> None:
    known = options()
    for words in commands(document):
        verb = words[1]
        assert verb in known
        used = {word.partition("=")[0] for word in words[2:] if word.startswith("-") and word != "-"}
        assert used <= known[verb], words
        if verb == "simulate":
            assert words[2] in KINDS


def test_documents_do_have_commands() -> None:
    assert sum(len(commands(document)) for document in DOCUMENTS) >= 10


def test_every_option_of_evaluate_is_documented() -> None:
    text = " ".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    left_out = {option for option in options()["evaluate"] if option.startswith("--") and option not in text}
    assert left_out <= {"--help"}


def test_every_result_class_is_in_the_api_page() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    classes = {name for name in results.__all__ if name[0].isupper() and not name.isupper()}
    assert classes == {name for name in classes if f"`{name}`" in text}


def test_the_readme_shows_what_the_demo_prints(process: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    log, truth = "python/pope_fast/data/demo.parquet", "python/pope_fast/data/demo.truth.json"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- demo-output -->\n```text\n(.*?)\n```\n<!-- /demo-output -->", text, re.DOTALL)
    assert block is not None
    environment = {"COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    outcome = process("evaluate", log, "--truth", truth, environment=environment)
    assert outcome.code == 0
    printed = "\n".join(line.rstrip() for line in outcome.stdout.splitlines()).strip("\n")
    assert printed == block[1], "run scripts/update_readme.py"


def test_the_theory_page_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:pope_fast|rust)/[\w/.-]+)`", text))
    assert len(files) >= 15
    for name in files:
        assert (ROOT / name).exists() or (ROOT / "python" / name).exists(), name


def test_every_gate_of_the_verdict_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "howto-evaluate.md").read_text(encoding="utf-8")
    documented: dict[str, float] = {}
    for names, defaults in re.findall(r"^\| (`.*?`) \| ([\d., ]+) \|", text, re.MULTILINE):
        documented |= dict(zip(re.findall(r"`(\w+)`", names), map(float, defaults.split(", ")), strict=True))
    assert documented == dict(DEFAULT_THRESHOLDS)


def python_blocks(document: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL))


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md", "docs/howto-validate.md", "docs/howto-simulate.md"])
def test_python_in_documents_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    world = simulate("table", prompts=100, seed=1).table
    columns = {column: world[column].to_numpy() for column in ("prompt_id", "reward", "behavior_logprob")}
    pq.write_table(world.append_column("upvotes", world["reward"]), "log.parquet")
    names = {**columns, "target_logprob": world["target_logprob/near"].to_numpy()}
    exec(compile(python_blocks(ROOT / name), name, "exec"), names)
    if name == "README.md":
        assert "near" in capsys.readouterr().out
        assert 0.0 < names["result"].value < 1.0
