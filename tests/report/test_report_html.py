"""The page: well-formed, self-contained, escaped, and with everything that the table has."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from pope_fast.evaluate.results import Estimate, Evaluation, Finding, Interval, Verdict
from pope_fast.report.chart import Scale, interval_chart
from pope_fast.report.html import render_fragment, render_page

VOID = {"meta", "br", "line", "circle", "path", "link", "img", "input"}


class Reader(HTMLParser):
    """Collects text and attributes, and fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_is_well_formed_and_needs_nothing_else(evaluation: Evaluation, truth: dict[str, object]) -> None:
    page = render_page(evaluation, truth=truth)
    reader = read(page)
    assert page.startswith("<!doctype html>")
    assert reader.links == []
    assert "script" not in reader.tags
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page


def test_everything_of_the_table_is_on_the_page(evaluation: Evaluation) -> None:
    text = " ".join(read(render_page(evaluation)).text)
    for needle in (
        "near",
        "far",
        "✔ reliable",
        "✘ unreliable",
        "ESS 412 of 500 (82%)",
        "1.234",
        "[1.200, 1.268]",
    ):
        assert needle in text
    for needle in (
        "✘ 0.844",
        "effective sample size 7.3 is below 50",
        "What to do next",
        "worst-case tail",
        "robust",
    ):
        assert needle in text
    for needle in (
        "Gini-Simpson",
        "near - far",
        "novice",
        "tail index",
        "identical text",
        "mean reward 0.630",
    ):
        assert needle in re.sub(r"\s+", " ", text)


def test_the_notebook_form_is_the_fragment(evaluation: Evaluation) -> None:
    fragment = evaluation._repr_html_()
    assert fragment == render_fragment(evaluation)
    assert fragment.startswith('<div class="pope-fast">')
    assert evaluation.to_html() == render_page(evaluation)
    read(fragment)


def test_styles_stay_inside_the_fragment(evaluation: Evaluation) -> None:
    style = re.search(r"<style>(.*?)</style>", render_fragment(evaluation), re.DOTALL)
    assert style is not None
    for selector in re.findall(r"^\s*([^@{}\n]+)\{", style[1], re.MULTILINE):
        assert all(part.strip().startswith(".pope-fast") for part in selector.split(",")), selector


def test_what_users_write_is_escaped(evaluation: Evaluation) -> None:
    evil = "<img src=x onerror=alert(1)>"
    near = evaluation["near"]
    policy = replace(
        near,
        policy=evil,
        groups={evil: near.utility},
        notes=(evil,),
        verdict=Verdict("caution", (Finding("x", "caution", evil),)),
        utility=Estimate(evil, 0.5, None, Interval(0.4, 0.6, 0.95, evil), {evil: None}),
    )
    page = render_page(
        replace(
            evaluation,
            policies={evil: policy},
            differences={},
            warnings=(evil,),
            settings=replace(evaluation.settings, source=evil, versions={evil: evil}),
        )
    )
    reader = read(page)
    assert "img" not in reader.tags
    assert evil in "".join(reader.text)
    assert "moral <b>" in reader.text  # a cluster label of the fixture


def test_truth_is_shown_only_when_known(evaluation: Evaluation, truth: dict[str, object]) -> None:
    with_truth = " ".join(read(render_page(evaluation, truth=truth)).text)
    assert "0.715 inside" in with_truth
    assert "0.245 outside" in with_truth
    without = " ".join(read(render_page(evaluation)).text)
    assert "inside" not in without


def test_an_interval_that_is_not_valid_has_a_reason_and_no_line(caution: Evaluation) -> None:
    page = render_page(caution)
    row = re.search(r"U utility.*?</tr>", page, re.DOTALL)
    assert row is not None
    assert "none: inconsistent log-probs" in row[0]
    assert 'class="span"' not in row[0]
    assert 'class="dot"' in row[0]


def test_a_scale_shows_all_it_is_made_for_and_never_divides_by_zero() -> None:
    scale = Scale.around([Estimate("a", 1.0, None, Interval(0.0, 4.0, 0.95, "delta"))], extra=[-2.0, float("nan")])
    assert scale.low < -2.0
    assert scale.high > 4.0
    for values in ([Estimate("a", 0.0)], [Estimate("a", 5.0)], [Estimate("a", None)], []):
        assert Scale.around(values).high > Scale.around(values).low
    outside = interval_chart(Estimate("a", 1e9), Scale(0.0, 1.0), truth=-1e9, reference=0.5)
    places = [float(x) for x in re.findall(r"([\d.]+)%", outside)]
    assert all(0.0 <= x <= 100.0 for x in places)


def test_each_quantity_is_marked_by_its_own_verdict(evaluation: Evaluation) -> None:
    near = evaluation["near"]
    doubt = Verdict("caution", (Finding("unseen_clusters", "caution", "...", quantities=("diversity",)),))
    judged = replace(near, utility=replace(near.utility, verdict=Verdict("reliable")), verdict=doubt)
    judged = replace(judged, diversity=replace(near.diversity, verdict=doubt))
    page = replace(evaluation, policies={"near": judged}, differences={}).to_html()
    cells = dict(re.findall(r'<td class="quantity">(.*?)</td><td class="num">(.*?)</td>', page))
    assert "doubt" not in cells["U utility"]
    assert 'class="doubt" title="caution"' in cells["D diversity"]
    assert "The log answers for D and V not without doubt; for U it does." in page
