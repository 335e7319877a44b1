"""What a report says fits what it shows: rendered findings over a grid of situations."""

from __future__ import annotations

import itertools
import re
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from pope_fast.evaluate import Evaluation, evaluate
from pope_fast.report import words
from pope_fast.report.table import render_text

SIZES = (12, 60, 400)
WEIGHTS = ("equal", "near", "far", "beyond", "shifted", "averaged")
RATES = (0.0, 0.01, 0.5, 0.99, 1.0)
GRID = list(itertools.product(SIZES, WEIGHTS, RATES))


def log_weights(kind: str, rows: int, rng: np.random.Generator) -> np.ndarray:
    z = rng.normal(size=rows)
    spread = {"equal": 0.0, "near": 0.3, "far": 3.0, "beyond": 30.0, "shifted": 0.3, "averaged": 0.005}[kind]
    drift = {"shifted": 0.8, "averaged": -0.004}.get(kind, 0.0)
    return spread * z - spread**2 / 2 + drift


@cache
def situation(size: int, kind: str, rate: float) -> Evaluation:
    rng = np.random.default_rng([size, WEIGHTS.index(kind), int(100 * rate)])
    rows = 4 * size
    target = log_weights(kind, rows, rng) - 2000.0
    columns = {
        "prompt_id": np.repeat(np.arange(size), 4),
        "behavior_logprob": np.full(rows, -2000.0),
        "target_logprob/p": target,
        "target_logprob/q": np.roll(target, 1),
        "reward": (rng.random(rows) < rate).astype(float),
        "cluster": rng.integers(0, 3, rows),
        "group": np.arange(rows) % 3,
    }
    return evaluate(pa.table(columns), reward_range=(0.0, 1.0))


@pytest.mark.parametrize(("size", "kind", "rate"), GRID)
def test_what_is_said_fits_what_is_shown(size: int, kind: str, rate: float) -> None:
    found = situation(size, kind, rate)
    text = " ".join(render_text(found, width=400).split())
    assert not re.search(r"\d{16}", text.replace(",", "")), "a number nobody can read"
    assert "nan" not in text
    assert "-0.00 " not in text
    for policy in found.values():
        main = [e for e in (policy.utility, policy.diversity, policy.value) if e is not None]
        steps = " ".join(words.next_steps(policy))
        if all(e.interval is None for e in main):
            assert "read its interval" not in steps
            assert "Read the interval" not in steps
        if policy.utility.interval is None:
            assert "intervals of U and V as wide" not in steps
        codes = {f.code for f in policy.verdict.findings}
        sentence = words.verdict_sentence(policy)
        if "low_ess" in codes and kind in ("equal", "near"):
            assert "too small" in sentence
            assert "cannot answer" not in sentence
        if "rare_reward" in codes and policy.diagnostics.reward_ess is not None:
            message = next(f.message for f in policy.verdict.findings if f.code == "rare_reward")
            assert ("absence" in message) == (policy.utility.value > 0.5)
        if "no_overlap" in codes:
            assert policy.diagnostics.kl_target_behavior < -0.5 or policy.diagnostics.ess_fraction < 0.5
        assert "impossible" not in " ".join(policy.verdict.reasons)
        # No verdict on an evaluated quantity is better than what its own findings allow.
        for estimate in (*main, *policy.groups.values(), *policy.welfare.values()):
            grave = {f.severity for f in estimate.verdict.findings}
            assert (estimate.verdict.level == "unreliable") == ("unreliable" in grave)


def test_the_grid_meets_every_kind_of_verdict() -> None:
    policies = [policy for case in GRID for policy in situation(*case).values()]
    assert {policy.verdict.level for policy in policies} == {"reliable", "caution", "unreliable"}
    codes = {finding.code for policy in policies for finding in policy.verdict.findings}
    assert codes >= {
        "far_policy",
        "heavy_tail",
        "inconsistent_log_probs",
        "low_ess",
        "negative_divergence",
        "no_overlap",
        "rare_reward",
        "wide_interval",
    }
    assert any(policy.utility.interval is None for policy in policies)


def test_the_quantities_that_can_be_answered_are_named() -> None:
    found = situation(400, "near", 0.01)
    policy = found["p"]
    assert policy.diversity.verdict.level == "reliable"
    assert words.verdict_sentence(policy) == "The log answers for U and V not without doubt; for D it does."
    line = next(line for line in render_text(found).splitlines() if "D diversity" in line)
    assert "!" not in line


def test_findings_of_groups_alone_stand_once(evaluation: Evaluation) -> None:
    found = situation(60, "near", 0.5)["p"]
    wide = [e for e in found.groups.values() if any(f.code == "wide_interval" for f in e.verdict.findings)]
    lines = [line for line in words.reasons(found) if "group '" in line]
    assert len(lines) == min(1, len(wide))
    assert words.group_lines(evaluation["near"]) == ()
