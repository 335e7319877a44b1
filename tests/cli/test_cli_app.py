"""The command line as a whole: help, version, and what a start loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs import Run

import pope_fast


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"pope_fast {pope_fast.__version__}\n", "")


def test_help_names_every_verb(run: Run) -> None:
    outcome = run("--help")
    assert outcome.code == 0
    for verb in ("validate", "score", "cluster", "evaluate", "sample", "simulate", "align"):
        assert verb in outcome.stdout


@pytest.mark.parametrize("verb", ["validate", "score", "cluster", "evaluate", "sample", "simulate", "align"])
def test_every_verb_has_help(run: Run, verb: str) -> None:
    outcome = run(verb, "--help")
    assert outcome.code == 0
    assert outcome.stderr == ""


@pytest.mark.parametrize("arguments", [["nope"], ["evaluate"], ["--nope"], ["simulate"]])
def test_wrong_usage_is_exit_code_2(run: Run, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.both


def loaded_by(*arguments: str) -> set[str]:
    """Names of the modules that a run of the command line has loaded at its end."""
    code = (
        "import sys, json\n"
        "from pope_fast.cli import main\n"
        f"sys.argv = ['pope', *{list(arguments)!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=True)
    return set(json.loads(done.stdout.decode().splitlines()[-1]))


def test_a_start_loads_no_data_library() -> None:
    heavy = {"numpy", "pandas", "polars", "pyarrow", "ray", "scipy", "torch", "matplotlib"}
    assert loaded_by("--help").isdisjoint(heavy)
    assert loaded_by("--version").isdisjoint(heavy - {"numpy"})


def test_an_evaluation_loads_no_data_frame_library(log: Path) -> None:
    # Some conversions of pyarrow import pandas where it is installed; that takes longer than the evaluation.
    heavy = {"pandas", "polars", "ray", "scipy", "torch", "matplotlib", "pyarrow.dataset"}
    assert loaded_by("evaluate", str(log)).isdisjoint(heavy)
    assert loaded_by("evaluate", str(log), "--json", "-").isdisjoint(heavy)


def test_the_package_and_its_function_of_one_name_live_together() -> None:
    # `pope_fast.evaluate` is a sub-package, which the import system binds, and the function that users call.
    code = (
        "import pope_fast\n"
        "import pope_fast.evaluate.results, pope_fast.report.table\n"
        "assert callable(pope_fast.evaluate) and callable(pope_fast.validate)\n"
        "from pope_fast.evaluate.results import Evaluation\n"
        "assert pope_fast.Evaluation is Evaluation\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
