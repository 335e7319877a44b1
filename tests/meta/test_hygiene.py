"""What no kept file may hold: paths of one machine, hosts of package registries, unfinished work."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The lock file names the registry that cargo itself wrote there.
EXEMPT = {"Cargo.lock", "LICENSE"}
# Written with character classes, so that this file does not hold what it looks for.
HOSTS = (
    r"py[p]i\.org|python[h]osted\.org|crate[s]\.io|npm[j]s\.(org|com)|[p]roxy\.golang|pytorc[h]\.org|anacond[a]\.org"
)
UNFINISHED = ["TO" + "DO", "FIX" + "ME", "X" * 3, "NotImplemented" + "Error", "unimplemented" + "!", "to" + "do!"]
FORBIDDEN = {
    "path of one machine": re.compile(r"(?<![\w.$}/-])/(work|root|tmp|home|Users)/\w"),
    "host of a package registry": re.compile(HOSTS),
    "unfinished work": re.compile(r"\b(" + "|".join(UNFINISHED) + ")"),
}


def kept_files() -> list[str]:
    """Names of the files that git tracks or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return sorted(name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())


def test_the_list_of_files_is_complete() -> None:
    assert {"Makefile", "Cargo.toml", "python/pope_fast/__init__.py", "tests/meta/test_hygiene.py"} <= set(kept_files())


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    found = []
    for name in kept_files():
        content = (ROOT / name).read_bytes()
        if name in EXEMPT or b"\0" in content[:8192]:
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
            if FORBIDDEN[what].search(line):
                found.append(f"{name}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("path of one machine", 'open("/' + 'tmp/log.parquet")'),
        ("path of one machine", "cd /" + "home/someone/src"),
        ("host of a package registry", "pip install --index-url https://py" + "pi.org/simple"),
        ("unfinished work", f"raise {UNFINISHED[3]}"),
    ],
)
def test_the_search_finds_what_it_should(what: str, line: str) -> None:
    assert FORBIDDEN[what].search(line)


def test_no_large_file_is_kept() -> None:
    large = {name: (ROOT / name).stat().st_size for name in kept_files()}
    assert not {name: size for name, size in large.items() if size > 1_000_000}
