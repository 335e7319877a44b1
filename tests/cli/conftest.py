"""A small log on disk, and two ways to run the command line: in this process, and as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import Outcome, Run
from typer.testing import CliRunner

from pope_fast.cli import app

PROMPTS, RESPONSES = 300, 4


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "120")

    def invoke(*arguments: object) -> Outcome:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture
def process() -> Run:
    def invoke(*arguments: object, environment: dict[str, str] | None = None) -> Outcome:
        command = [sys.executable, "-m", "pope_fast.cli", *(str(argument) for argument in arguments)]
        done = subprocess.run(
            command, capture_output=True, timeout=120, check=False, env=os.environ | (environment or {})
        )
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())

    return invoke


@pytest.fixture(scope="session")
def table() -> pa.Table:
    """Two policies with exact weights: "near" (log-weight .3 up or down), "far" (log-normal, KL 8 nats)."""
    rng = np.random.default_rng(1)
    n = PROMPTS * RESPONSES
    sign = rng.choice([-1.0, 1.0], n)
    return pa.table(
        {
            "prompt_id": np.repeat(np.arange(PROMPTS), RESPONSES),
            "behavior_logprob": np.full(n, -40.0),
            "target_logprob/near": -40.0 + 0.3 * sign - np.log(np.cosh(0.3)),
            "target_logprob/far": -40.0 + 4.0 * rng.standard_normal(n) - 8.0,
            "reward": (rng.random(n) < 0.5 + 0.2 * sign).astype(np.float64),
            "cluster": rng.integers(0, 3, n),
        }
    )


@pytest.fixture(scope="session")
def log(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    pq.write_table(table, path)
    return path
