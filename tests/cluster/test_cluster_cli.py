"""``pope cluster``: options to arguments, what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from cluster_logs import text_log
from typer.testing import CliRunner

from pope_fast.cli.cluster import cluster as command
from pope_fast.cluster import agreement, cluster


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Outcome:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = text_log()
    points = np.random.default_rng(0).normal(size=(len(table), 4))
    path = tmp_path_factory.mktemp("cli") / "log.parquet"
    pq.write_table(table.append_column("vector", pa.array(points.tolist())), path)
    return path


def clusters(path: Path, column: str = "cluster") -> np.ndarray:
    return np.asarray(pq.read_table(path)[column].to_numpy())


def test_the_log_is_written_and_described(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    outcome = run(log, "-o", out)
    assert outcome.code == 0, outcome.stderr
    assert "TF-IDF of character n-grams" in outcome.stdout
    assert "stable" in outcome.stdout
    assert outcome.stdout.rstrip().endswith(f"next: pope evaluate {out}")
    assert np.array_equal(clusters(out), cluster(log).labels)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--features", "normalized"], {"features": "normalized"}),
        (["--features", "tfidf-word", "--threshold", "0.3"], {"features": "tfidf-word", "threshold": 0.3}),
        (["--method", "leader", "--threshold", ".25"], {"method": "leader", "threshold": 0.25}),
        (["--embeddings", "vector", "--threshold", "0.5"], {"embeddings": "vector", "threshold": 0.5}),
        (["--threshold", "auto", "--seed", "3", "--threads", "2"], {"threshold": "auto", "seed": 3}),
        (["--scope", "log", "--themes", "5"], {"scope": "log", "n_clusters": 5}),
        (
            ["--scope", "log", "--method", "hdbscan", "--min-cluster-size", "15"],
            {"scope": "log", "method": "hdbscan", "min_cluster_size": 15},
        ),
        (
            ["--column", "completion=prompt", "--features", "exact"],
            {"columns": {"completion": "prompt"}, "features": "exact"},
        ),
    ],
)
def test_options_are_passed_on(log: Path, tmp_path: Path, arguments: list[str], options: dict[str, object]) -> None:
    out = tmp_path / "out.parquet"
    outcome = run(log, "-o", out, "--quiet", *arguments)
    assert (outcome.code, outcome.stdout) == (0, ""), outcome.stderr
    assert np.array_equal(clusters(out), cluster(log, **options).labels)  # type: ignore[arg-type]


def test_a_column_is_replaced_only_if_asked(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert run(log, "-o", out, "--features", "exact", "--into", "views").code == 0
    before = out.read_bytes()
    refused = run(out, "-o", out, "--features", "normalized", "--into", "views")
    assert refused.code == 2
    assert refused.stderr.startswith("error: column 'views'")
    assert "--overwrite" in refused.stderr
    assert out.read_bytes() == before
    assert run(out, "-o", out, "--features", "normalized", "--into", "views", "--overwrite").code == 0
    assert np.array_equal(clusters(out, "views"), cluster(log, features="normalized").labels)


def test_json_and_known_clusters(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    outcome = run(log, "-o", out, "--threshold", "0.2", "--against", "perspective", "--json", "-")
    content = json.loads(outcome.stdout)
    table = text_log()
    expected = agreement(clusters(out), table["perspective"].to_numpy(), table["prompt_id"].to_numpy())
    assert content["agreement"]["ari"] == pytest.approx(expected.ari)
    assert content["info"]["threshold"] == 0.2
    assert content["output"] == str(out)
    printed = run(log, "-o", out, "--threshold", "0.2", "--against", "perspective", "--json", tmp_path / "a.json")
    assert f"agreement with the known clusters: {expected}" in printed.stdout
    assert json.loads((tmp_path / "a.json").read_text())["n_rows"] == len(table)
    missing = run(log, "-o", out, "--against", "perspectives")
    assert missing.code == 2
    assert "did you mean 'perspective'?" in missing.stderr


def test_the_stability_plot(log: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    assert run(log, "-o", tmp_path / "out.parquet", "--stability-plot", plot).code == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    refused = run(log, "-o", tmp_path / "out.parquet", "--threshold", "0.2", "--stability-plot", plot)
    assert refused.code == 2
    assert "no stability curve to draw: no threshold was chosen" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "high"], "neither 'auto' nor a number"),
        (["--threshold", "3"], "between -1 and 1"),
        (["--features", "bert"], "Invalid value for '--features'"),
        (["--features", "exact", "--embeddings", "vector"], "say in one way only"),
        (["--embeddings", "vectors"], "no such column"),
        (["--nli", "no/such/model"], "cannot be loaded"),
        (["--scope", "log", "--method", "leader"], "the methods with scope='log'"),
    ],
)
def test_a_users_mistake_is_one_line_and_code_2(log: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    outcome = run(log, "-o", tmp_path / "out.parquet", *arguments)
    assert outcome.code == 2
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not list(tmp_path.iterdir())


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    outcome = run(tmp_path / "no.parquet", "-o", tmp_path / "out.parquet")
    assert outcome.code == 2
    assert "no such file" in outcome.stderr
