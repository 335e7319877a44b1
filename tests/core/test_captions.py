"""A real log, crowd ratings of captions collected by two policies at once: what one says of the other is known."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pope_fast.evaluate import evaluate

CAPTIONS = Path(__file__).parents[2].parent / "shared" / "data" / "captions"


@cache
def captions() -> tuple[pa.Table, dict[str, Any]]:
    path = CAPTIONS / "captions.parquet"
    if not path.is_file():
        pytest.skip("the captions log is not beside this checkout (../shared/data/captions)")
    import pyarrow.parquet as pq

    columns = ["prompt_id", "reward", "count", "behavior_logprob", "target_logprob/lilucb"]
    truth = json.loads((CAPTIONS / "truth.json").read_text())
    return pq.read_table(path, columns=columns), truth


@pytest.mark.parametrize("contest", [str(c) for c in range(510, 518)])
def test_captions_by_contest(contest):
    """What the adaptive arm earned on the same captions lies in every interval from the uniform arm's ratings.

    The truth has an error of its own: its ratings are a sample like the log's, so the interval of the difference is
    that of both.
    """
    log, truth = captions()
    expected = truth[contest]
    mask = pc.equal(log["prompt_id"], contest)
    answer = evaluate(log.filter(mask), unit="row", reward_range=(0.0, 1.0))
    lilucb = answer["lilucb"]
    assert lilucb.diagnostics.n_units == expected["ratings_roundrobin"]
    assert answer.behavior.value == pytest.approx(expected["value_roundrobin"], rel=1e-6)
    spread = math.sqrt(lilucb.utility.standard_error**2 + 0.25 / expected["ratings_lilucb"])
    for name in ("ips", "snips", "tips", "sn_tips", "cv", "psis"):
        estimate = lilucb.utility_estimators[name]
        assert abs(estimate.value - expected["value_lilucb"]) < 4 * spread, name
    # Nearer to the truth than to what the log itself earned, where the two differ by more than both errors.
    gap = expected["value_lilucb"] - expected["value_roundrobin"]
    if gap > 4 * spread:
        assert abs(lilucb.utility.value - expected["value_lilucb"]) < gap / 2
    for method in ("robust", "certified"):
        interval = lilucb.utility.intervals[method]
        if interval is not None:
            assert interval.low - 2 * spread <= expected["value_lilucb"] <= interval.high + 2 * spread, method


def test_captions_overall():
    """All contests: the truth is the mean over the ratings that were logged, contest by contest."""
    log, truth = captions()
    found = evaluate(log, unit="row", reward_range=(0.0, 1.0))
    n = np.array([truth[c]["ratings_roundrobin"] for c in truth])
    values = np.array([truth[c]["value_lilucb"] for c in truth])
    logged = np.array([truth[c]["value_roundrobin"] for c in truth])
    assert found["lilucb"].diagnostics.n_units == n.sum()
    assert found.behavior.value == pytest.approx(np.sum(n * logged) / n.sum(), rel=1e-6)
    expected = np.sum(n * values) / n.sum()
    error = math.hypot(found["lilucb"].utility.standard_error, 0.5 / math.sqrt(n.sum()))
    assert abs(found["lilucb"].utility.value - expected) < 4 * error
    assert expected - found.behavior.value > 10 * error
    assert found["lilucb"].diversity is None
