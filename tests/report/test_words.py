"""Rounding, labels, and what to do next."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

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
    [(None, "n/a"), (0.0, "0%"), (0.82, "82%"), (0.0146, "1.5%"), (0.0001, "< 0.1%"), (1.0, "100%")],
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
    verdict = Verdict(level, findings)  # type: ignore[arg-type]
    return words.next_steps(replace(evaluation["near"], verdict=verdict))


def test_every_step_is_said_once_and_information_asks_for_none(evaluation: Evaluation) -> None:
    steps = with_findings(
        evaluation,
        "unreliable",
        Finding("no_overlap", "unreliable", "..."),
        Finding("negative_kl", "unreliable", "..."),
        Finding("missing_mass", "info", "..."),
    )
    assert steps == (
        "Do not use the point estimates of this policy; read its intervals only.",
        words.MORE_DATA,
    )
    assert with_findings(evaluation, "reliable", Finding("missing_mass", "info", "...")) == ()


def test_an_unknown_finding_still_leaves_a_reader_with_a_step(evaluation: Evaluation) -> None:
    assert with_findings(evaluation, "caution", Finding("new", "caution", "...")) == (
        "Read the intervals rather than the point estimates.",
    )


@pytest.mark.parametrize(
    ("ess", "said"),
    [(25.0, "at least 1,000 independent"), (7.3, "at least 3,500 independent"), (1e-5, "Collect responses")],
)
def test_how_much_more_data_would_do(evaluation: Evaluation, ess: float, said: str) -> None:
    # 500 units with ESS 25 reach 50 with 1,000 units at the least.
    steps = with_findings(evaluation, "unreliable", Finding("low_ess", "unreliable", "...", ess, 50.0))
    assert said in steps[1]
