"""The terminal table: what a reader must find in it, at any width."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.console import Console

from pope_fast.evaluate.results import Estimate, Evaluation, Interval
from pope_fast.report.table import render, render_text

WIDTHS = (60, 80, 100, 120, 200)


def lines_with(text: str, *needles: str) -> list[str]:
    return [line for line in text.splitlines() if all(needle in line for needle in needles)]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal(evaluation: Evaluation, truth: dict[str, object], width: int) -> None:
    for text in (render_text(evaluation, width=width), render_text(evaluation, width=width, truth=truth)):
        assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_every_quantity_with_interval_ess_and_verdict(evaluation: Evaluation, width: int) -> None:
    text = render_text(evaluation, width=width)
    assert lines_with(text, "V value", "1.234", "[1.200, 1.268]")
    assert lines_with(text, "U utility", "0.712", "[0.691, 0.733]")
    assert lines_with(text, "D diversity", "1.044", "[1.019, 1.069]")
    assert "✔ reliable" in text
    assert "✘ unreliable" in text
    assert "ESS 412 of 500" in text
    assert lines_with(text, "the log itself", "0.630")


def test_str_is_the_plain_table(evaluation: Evaluation) -> None:
    text = str(evaluation)
    assert text == render_text(evaluation, width=100)
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_unreliable_estimates_are_marked_and_explained(evaluation: Evaluation) -> None:
    text = render_text(evaluation, width=120)
    for quantity, figure in (("V value", "1.311"), ("U utility", "0.844"), ("D diversity", "0.930")):
        assert lines_with(text, quantity, f"✘ {figure}")
    assert not lines_with(text, "✘ 1.234")
    assert lines_with(text, "U utility", "✘ 0.844", "[0.434, 1.254]", "robust")
    assert lines_with(text, "- effective sample size 7.3 is below 50")
    assert lines_with(text, "next: Do not use the point estimates")
    assert lines_with(text, "next: Or log more of the same: at least 3,500 independent units")
    assert "the reward range was observed" not in text  # information is no reason


def test_an_interval_that_is_not_valid_prints_its_reason_and_no_figures(caution: Evaluation) -> None:
    text = render_text(caution, width=120)
    (line,) = lines_with(text, "U utility")
    assert "none: inconsistent log-probs" in line
    assert "[" not in line
    assert lines_with(text, "D diversity", "n/a", "the log has no clusters")
    assert lines_with(text, "! noisy: caution")
    assert "--aa-policy" in text


def test_an_estimate_that_is_not_available_says_why(evaluation: Evaluation) -> None:
    near = replace(evaluation["near"], value=Estimate("V", None, note="every weight is 0"))
    text = render_text(replace(evaluation, policies={"near": near}, differences={}), width=120)
    assert lines_with(text, "V value", "n/a", "not available: every weight is 0")


def test_truth_stands_beside_the_estimate(evaluation: Evaluation, truth: dict[str, object]) -> None:
    text = render_text(evaluation, width=120, truth=truth)
    assert re.search(r"U utility +0\.712 .*0\.715 in$", text, re.MULTILINE)
    assert re.search(r"V value +1\.234 .*1\.240 in$", text, re.MULTILINE)  # .715 + .5 * 1.05
    assert re.search(r"U utility +✘ 0\.844 .*0\.245 OUT$", text, re.MULTILINE)
    assert re.search(r"D diversity +✘ 0\.930 .*0\.900$", text, re.MULTILINE)  # no interval
    assert "truth" not in render_text(evaluation, width=120)


def test_truth_of_an_unknown_policy_is_a_dash(evaluation: Evaluation) -> None:
    text = render_text(evaluation, width=120, truth={"policies": {}})
    assert re.search(r"U utility +0\.712 .* -$", text, re.MULTILINE)


def test_differences_show_by_default_and_only_those_asked_for(evaluation: Evaluation) -> None:
    console = Console(width=120, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(render(evaluation, width=120, compare=[("far", "near")]))
    text = capture.get()
    assert "far - near" in text
    assert lines_with(text, "V", "0.080")
    assert "near - far" not in text.replace("near - far: far is", "")
    assert "near - far" in render_text(evaluation, width=120)


def test_groups_and_welfare_by_policy(evaluation: Evaluation) -> None:
    text = render_text(evaluation, width=100)
    assert lines_with(text, "novice", "0.690 [0.650, 0.730]", "✘ 0.800 [0.200, 1.400]")
    assert lines_with(text, "expert", "not available: no row")
    assert lines_with(text, "welfare: min")


def test_many_groups_are_cut_and_counted(evaluation: Evaluation) -> None:
    near = evaluation["near"]
    groups = {f"group{i:02d}": next(iter(near.groups.values())) for i in range(30)}
    text = render_text(replace(evaluation, policies={"near": replace(near, groups=groups)}, differences={}))
    assert "group11" in text
    assert "group12" not in text
    assert "and 18 more" in text


def test_ascii_only(evaluation: Evaluation, truth: dict[str, object]) -> None:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(render(evaluation, width=100, ascii_only=True, truth=truth))
    capture.get().encode("ascii")


def test_names_with_markup_are_printed_as_they_are(evaluation: Evaluation) -> None:
    odd = replace(evaluation["near"], policy="[bold]x[/]")
    text = render_text(replace(evaluation, policies={"[bold]x[/]": odd}, differences={}))
    assert "[bold]x[/]" in text


def test_decimals_follow_the_width_of_the_interval(evaluation: Evaluation) -> None:
    sharp = Estimate("sn_tips", 0.712345, 1e-5, Interval(0.712325, 0.712365, 0.95, "delta"))
    coarse = Estimate("sn_tips", 71234.5, 900.0, Interval(70000.0, 73000.0, 0.95, "delta"))
    for estimate, shown in ((sharp, "0.712345"), (coarse, "71,23[45] ")):
        near = replace(evaluation["near"], utility=estimate)
        text = render_text(replace(evaluation, policies={"near": near}, differences={}), width=120)
        assert re.search(rf"U utility +{shown}", text)


def test_the_letter_d_is_explained(evaluation: Evaluation, caution: Evaluation) -> None:
    assert lines_with(render_text(evaluation), "D is H_3 in nats")
    assert not lines_with(render_text(caution), "D is")
    detail = evaluation["near"].diversity_detail
    assert detail is not None
    marginal = replace(evaluation["near"], diversity_detail=replace(detail, level="marginal", measure="entropy"))
    text = render_text(replace(evaluation, policies={"near": marginal}, differences={}))
    assert lines_with(text, "D is the entropy in nats of the clusters over the whole log")


def test_the_reason_for_a_missing_difference_is_said_once(evaluation: Evaluation) -> None:
    note = "not to be trusted: far unreliable"
    difference = evaluation.compare("near", "far")
    parts = {
        name: replace(getattr(difference, name), interval=None, note=note) for name in ("utility", "diversity", "value")
    }
    text = render_text(
        replace(evaluation, differences={("near", "far"): replace(difference, note=note, **parts)}), width=120
    )
    assert text.count(note) == 1
    assert lines_with(text, "near - far", "V", "✘ -0.080", f"none: {note}")
