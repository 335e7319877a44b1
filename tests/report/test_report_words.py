"""Rounding, labels, and what to do next."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import replace

import pytest

from pope_fast.evaluate import records, verdict
from pope_fast.evaluate.results import Estimate, Evaluation, Finding, Interval, Verdict
from pope_fast.report import words


@pytest.mark.parametrize(
    ("x", "shown"),
    [
        (None, "n/a"),
        (0.0, "0.000"),
        (0.5, "0.5000"),
        (-12.3456, "-12.35"),
        (1234.56, "1,235"),
        (1.5e7, "1.5e+07"),
        (2e-5, "2e-05"),
        (math.inf, "∞"),
        (-math.inf, "-∞"),
        (math.nan, "nan"),
    ],
)
def test_figures(x: float | None, shown: str) -> None:
    assert words.figure(x) == shown


@pytest.mark.parametrize(
    ("x", "shown"),
    [
        (None, "n/a"),
        (0.0, "0%"),
        (0.82, "82%"),
        (0.0146, "1.5%"),
        (0.0001, "< 0.1%"),
        (1.0, "100%"),
        (-0.0, "0%"),
        (-0.003, "-0.3%"),
    ],
)
def test_percent(x: float | None, shown: str) -> None:
    assert words.percent(x) == shown


def test_counts() -> None:
    assert [words.count(x) for x in (None, 412.3, 7.3, 7.0, 12345.6)] == ["n/a", "412", "7.3", "7", "12,346"]


def test_an_infinite_or_empty_interval_does_not_break_rounding() -> None:
    for interval in (Interval(-math.inf, math.inf, 0.95, "x"), Interval(0.5, 0.5, 0.95, "x")):
        assert words.point(Estimate("a", 0.5, None, interval)) == "0.500"


def test_unknown_names_are_shown_as_they_are() -> None:
    assert words.label("sn_tips") == "SN-TIPS"
    assert words.label("coverage@2 (product)") == "coverage@2 (product)"


def with_findings(evaluation: Evaluation, level: str, *findings: Finding) -> tuple[str, ...]:
    judged = Verdict(level, findings)  # type: ignore[arg-type]
    return words.next_steps(replace(evaluation["near"], verdict=judged))


def test_every_step_is_said_once_and_information_asks_for_none(evaluation: Evaluation) -> None:
    steps = with_findings(
        evaluation,
        "unreliable",
        Finding("no_overlap", "unreliable", "..."),
        Finding("far_policy", "unreliable", "..."),
        Finding("missing_mass", "info", "..."),
    )
    assert steps == (
        "Do not use the point estimates of this policy; read its intervals only.",
        words.NEARER,
    )
    assert with_findings(evaluation, "reliable", Finding("missing_mass", "info", "...")) == ()


def test_an_unknown_finding_still_leaves_a_reader_with_a_step(evaluation: Evaluation) -> None:
    assert with_findings(evaluation, "caution", Finding("new", "caution", "...")) == (
        "Read the intervals rather than the point estimates.",
    )


@pytest.mark.parametrize(
    ("ess", "said"),
    [(25.0, "at least 1,000 independent"), (7.3, "at least 3,500 independent"), (0.4, None), (0.0, None)],
)
def test_how_much_more_data_would_do(evaluation: Evaluation, ess: float, said: str | None) -> None:
    # 500 units with ESS 25 reach 50 with 1,000 units at the least.
    steps = with_findings(evaluation, "unreliable", Finding("low_ess", "unreliable", "...", ess, 50.0))
    assert steps[1] == words.NEARER
    assert [said in step for step in steps[2:]] == ([True] if said else [])


def test_few_units_with_good_overlap_ask_for_more_prompts(
    evaluation: Evaluation,
) -> None:
    near = evaluation["near"]
    few = replace(near.diagnostics, n_units=8, ess=8.0)
    judged = Verdict("unreliable", (Finding("low_ess", "unreliable", "...", 8.0, 50.0),))
    steps = words.next_steps(replace(near, diagnostics=few, verdict=judged))
    assert len(steps) == 2
    assert steps[1].startswith("Log more prompts: at least 50 independent units.")


def test_the_formula_of_the_value(evaluation: Evaluation, caution: Evaluation) -> None:
    assert "V = U + 0.5 D" in words.subtitle(evaluation)
    plain = replace(evaluation, settings=replace(evaluation.settings, diversity_weight=1.0))
    assert "V = U + D" in words.subtitle(plain)
    assert "V = U (no clusters)" in words.subtitle(caution)


def test_every_code_that_moves_a_verdict_has_a_step() -> None:
    source = inspect.getsource(verdict) + inspect.getsource(records)
    codes = set(re.findall(r"Finding\(\s*\"(\w+)\", \"(?:caution|unreliable)\"", source)) | {
        verdict.INCONSISTENT,
        verdict.RARE_REWARD,
    }
    assert len(codes) >= 8
    assert codes <= set(words.STEPS)


def test_a_report_shows_the_interval_that_the_evaluation_chose_and_no_other() -> None:
    delta = Estimate("snips", 0.5, 0.01, None, {"delta": Interval(0.4, 0.6, 0.95, "delta")})
    robust = Estimate("sn_tips", 0.5, 0.01, Interval(0.1, 0.9, 0.95, "robust"))
    assert words.interval_or_reason(delta, "reliable") == "none: no valid interval could be formed"
    assert words.interval_or_reason(delta, "unreliable") == "none: no interval holds without overlap"
    assert words.interval_or_reason(robust, "unreliable") == "[0.100, 0.900]"


def test_notes_of_all_policies_are_said_once(evaluation: Evaluation) -> None:
    far = evaluation["far"]
    near = replace(evaluation["near"], notes=(*far.notes, "only here"))
    assert words.shared_notes(replace(evaluation, policies={"near": near, "far": far})) == far.notes
    assert words.shared_notes(replace(evaluation, policies={"far": far})) == ()
