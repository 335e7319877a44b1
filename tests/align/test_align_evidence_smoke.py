"""The alignment experiment in its smallest size: every part runs, is resumed, and its arithmetic is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

BENCH = Path(__file__).resolve().parents[2] / "benches" / "alignment"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BENCH.exists(), reason="the benchmarks are not part of the source distribution"),
]


def _run(out: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCH / "run.py"), "--quick", "--out", str(out), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("evidence")
    _run(out)
    return out


def test_all_parts_leave_their_results(folder):
    results = json.loads((folder / "report" / "alignment.json").read_text())
    assert set(results["alignment"]["methods"]) == {"logger", "rwr", "dpo", "pope 0", "pope 0.1"}
    assert results["alignment"]["seeds"] == 2
    assert len(results["evaluation"]["truth"]) == 9
    assert set(results["ablation"]) == {"no weights", "no truncation"}
    report = (folder / "report" / "alignment.md").read_text()
    for section in ("Evaluation", "Alignment", "General capabilities", "Ablation", "Tuning"):
        assert f"\n## {section}" in report
    for figure in ("frontier.png", "estimates.png", "ablation.png"):
        assert (folder / "report" / figure).read_bytes().startswith(b"\x89PNG")


def test_values_are_consistent(folder):
    """Exact values agree with fresh samples, V adds up, means over worlds are means over worlds."""
    runs = [json.loads(path.read_text()) for path in folder.glob("final-*.json")]
    assert len(runs) == 8
    for run in runs:
        exact, fresh = run["exact"], run["fresh"]
        # Rare answers are liked more than unclear text; a few draws can miss them all, hence the constant.
        assert abs(exact["utility"] - fresh["utility"]) < 5 * fresh["standard_error"] + 0.03
        assert 0 <= exact["unclear"] <= 1
        assert exact["worst"] <= exact["utility"]
        assert exact["nash"] <= exact["utility"] + 1e-9
        assert run["kl_from_logger"] >= 0
    results = json.loads((folder / "report" / "alignment.json").read_text())["alignment"]
    mean = sum(run["exact"]["utility"] for run in runs if run["method"] == "rwr") / 2
    assert results["methods"]["rwr"]["utility"]["mean"] == pytest.approx(mean)


def test_the_logger_is_worth_what_its_own_log_says(folder):
    data = json.loads((folder / "evaluation.json").read_text())
    assert data["truth"]["logger"]["kl"] == pytest.approx(0.0, abs=1e-9)
    for log in data["logs"]:
        for name, record in log["policies"].items():
            assert record["verdict"] in ("reliable", "caution", "unreliable")
            interval = record["utility"]["interval"]
            # Where there is none, the verdict says why.
            assert interval is not None or record["verdict"] != "reliable"
            if interval is not None:
                assert interval[0] <= record["utility"]["value"] <= interval[1]
            assert record["others"]["snips (obp)"]["value"] == pytest.approx(record["snips"], abs=1e-9)
            assert record["others"]["ips (obp)"]["value"] == pytest.approx(record["ips"], abs=1e-9), name


def test_what_is_there_is_not_run_again(folder):
    kept = folder / "final-rwr-10.json"
    before = kept.read_bytes()
    removed = folder / "final-dpo-11.json"
    expected = json.loads(removed.read_text())
    removed.unlink()
    out = _run(folder, "--part", "alignment")
    assert out.count("final-") == 1
    assert kept.read_bytes() == before
    # The same run again gives the same numbers, whatever else has run before it in the process.
    again = json.loads(removed.read_text())
    assert again["exact"] == pytest.approx(expected["exact"], rel=1e-5)
    assert again["fresh"] == pytest.approx(expected["fresh"], rel=1e-5)
