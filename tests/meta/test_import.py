"""`import pope_fast` is light: it costs a command-line tool or a notebook next to nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys

import pope_fast

LIMIT_SECONDS = 0.150
TOO_HEAVY = ("torch", "matplotlib", "ray", "pandas", "polars", "scipy", "duckdb", "pyarrow.dataset")


def in_fresh_interpreter(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_import_takes_less_than_150_ms_beyond_numpy() -> None:
    code = "import time, numpy; t = time.perf_counter(); import pope_fast; print(time.perf_counter() - t)"
    in_fresh_interpreter(code)  # writes the bytecode and warms the disk cache
    seconds = [float(in_fresh_interpreter(code)) for _ in range(9)]
    assert statistics.median(seconds) < LIMIT_SECONDS, seconds


def test_import_leaves_heavy_packages_alone() -> None:
    loaded = set(in_fresh_interpreter("import sys, pope_fast; print(*sys.modules)").split())
    assert "pope_fast" in loaded
    assert not loaded & set(TOO_HEAVY)


def test_every_public_name_resolves_and_is_listed() -> None:
    assert len(set(pope_fast.__all__)) == len(pope_fast.__all__) > 0
    for name in pope_fast.__all__:
        assert getattr(pope_fast, name) is not None
        assert name in dir(pope_fast)


def test_an_unknown_name_is_an_attribute_error() -> None:
    # A lazy `__getattr__` that answers anything would turn a typing mistake into a puzzle further on.
    assert not hasattr(pope_fast, "evalute")
