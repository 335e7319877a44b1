"""The command line as a whole: help, version, and what a start loads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import Run

import pope_fast


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"pope_fast {pope_fast.__version__}\n", "")


def test_help_names_every_verb(run: Run) -> None:
    outcome = run("--help")
    assert outcome.code == 0
    for verb in ("evaluate", "validate", "simulate"):
        assert verb in outcome.stdout


@pytest.mark.parametrize("verb", ["evaluate", "validate", "simulate"])
def test_every_verb_has_help(run: Run, verb: str) -> None:
    outcome = run(verb, "--help")
    assert outcome.code == 0
    assert outcome.stderr == ""


@pytest.mark.parametrize("arguments", [["nope"], ["evaluate"], ["--nope"], ["simulate"]])
def test_wrong_usage_is_exit_code_2(run: Run, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.both


def test_a_start_loads_no_data_library() -> None:
    code = (
        "import sys, json\n"
        "from pope_fast.cli import main\n"
        "sys.argv = ['pope', '--version']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    loaded = set(json.loads(done.stdout.decode().splitlines()[-1]))
    assert loaded.isdisjoint({"pandas", "pyarrow", "torch", "ray", "matplotlib", "scipy", "polars"})


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
