"""The files of a release agree with each other."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pope_fast
from pope_fast import _core

ROOT = Path(__file__).resolve().parents[2]
VERSION: str = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["package"]["version"]


def test_the_version_is_written_once_and_agrees_everywhere() -> None:
    assert pope_fast.__version__ == VERSION
    assert importlib.metadata.version("pope_fast") == VERSION
    assert _core.build_info()["version"] == VERSION
    assert f"version: {VERSION}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert released[0] == VERSION
    for manifest in (ROOT / "rust").glob("*/Cargo.toml"):
        assert tomllib.loads(manifest.read_text(encoding="utf-8"))["package"]["version"] == {"workspace": True}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" in project["dynamic"]


def test_the_oldest_python_agrees_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11"
    assert "abi3-py311" in (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    assert "sys.version_info < (3, 11)" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_extension_is_an_optimized_build() -> None:
    # A debug build gives the same numbers, a hundred times slower.
    assert _core.build_info()["profile"] == "release"


def test_the_paper_is_cited() -> None:
    assert "arxiv.org/abs/2509.19333" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_package_carries_its_types_and_its_log() -> None:
    package = Path(pope_fast.__file__).parent
    assert (package / "py.typed").is_file()
    log = Path(pope_fast.demo_log())
    assert log.is_relative_to(package)
    assert 0 < log.stat().st_size < 1_000_000
    assert log.with_suffix(".truth.json").is_file()


def test_actions_are_pinned_by_commit_and_permissions_are_minimal() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert {path.name for path in workflows} == {"test.yml", "wheels.yml"}
    for path in workflows:
        text = path.read_text(encoding="utf-8")
        used = re.findall(r"uses: (.*)", text)
        assert used
        for action in used:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
        assert "\npermissions: {}\n" in text
        assert set(re.findall(r"^ +(\S+): write$", text, re.M)) <= {"id-token"}
        assert "pull_request_target" not in text
        # Every checkout leaves no credentials behind for later steps.
        assert text.count("actions/checkout@") == text.count("persist-credentials: false")
