"""The page of an evaluation: self-contained HTML for a browser or a notebook, light and dark, no scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from pope_fast.evaluate.results import (
    Difference,
    DiversitySummary,
    Estimate,
    Evaluation,
    Interval,
    PolicyValue,
)
from pope_fast.report import words
from pope_fast.report.chart import Scale, interval_chart

METHOD_HEAD = '<th class="method">method</th>'

MAX_CLUSTERS = 12
"""Clusters drawn per policy; JSON has the first hundred."""


def render_page(evaluation: Evaluation, *, truth: Mapping[str, Any] | None = None, title: str = "pope_fast") -> str:
    """Give a whole page, with nothing to load from elsewhere.

    Parameters
    ----------
    truth
        Content of a truth file (see :func:`pope_fast.report.json.load_truth`); adds the truth everywhere.
    title
        Title of the page.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        "<style>:root{color-scheme:light dark}body{margin:0;background:#fff}"
        "@media(prefers-color-scheme:dark){body{background:#14181e}}</style>\n"
        f"</head>\n<body>\n{render_fragment(evaluation, truth=truth)}\n</body>\n</html>\n"
    )


def render_fragment(evaluation: Evaluation, *, truth: Mapping[str, Any] | None = None) -> str:
    """Give the page's content with its styles, to stand inside another page or a notebook cell."""
    style = files("pope_fast.report").joinpath("style.css").read_text(encoding="utf-8")
    scales = {
        key: Scale.around(
            [estimate for policy in evaluation.values() if (estimate := _headline(policy, key)) is not None],
            extra=[known for p in evaluation.values() if (known := words.truth_of(truth, p).get(key)) is not None]
            + ([evaluation.behavior.value] if key == "utility" and evaluation.behavior.value is not None else []),
        )
        for key in ("value", "utility", "diversity")
    }
    facts = "".join(f"<li>{escape(phrase)}</li>" for phrase in words.subtitle(evaluation))
    legend = words.diversity_legend(evaluation)
    parts = [
        f"<style>\n{style}</style>",
        "<h1>Off-policy evaluation</h1>",
        f'<ul class="facts">{facts}</ul>',
        *(_policy(policy, evaluation, scales, truth) for policy in evaluation.values()),
        _behavior(evaluation.behavior),
        f'<p class="soft">{escape(legend)}</p>' if legend is not None else "",
        _differences(evaluation),
        "".join(
            f'<p class="soft">Note: {escape(note)}</p>'
            for note in (*words.shared_notes(evaluation), *evaluation.warnings)
        ),
        _footer(evaluation),
    ]
    return '<div class="pope-fast">\n' + "\n".join(part for part in parts if part) + "\n</div>"


def _headline(policy: PolicyValue, key: str) -> Estimate | None:
    return {"value": policy.value, "utility": policy.utility, "diversity": policy.diversity}[key]


def _policy(
    policy: PolicyValue, evaluation: Evaluation, scales: Mapping[str, Scale], truth: Mapping[str, Any] | None
) -> str:
    level = policy.verdict.level
    known = words.truth_of(truth, policy)
    names = {"value": "V value", "utility": "U utility", "diversity": "D diversity"}
    rows = []
    for key, name in names.items():
        estimate = _headline(policy, key)
        if estimate is None:
            rows.append(
                '<tr><td>D diversity</td><td class="num soft">n/a</td>'
                '<td class="why" colspan="3">not available: the log has no clusters</td>'
                + ("<td></td>" if truth is not None else "")
                + "</tr>"
            )
            continue
        own = words.level_of(estimate, policy)
        reference = evaluation.behavior.value if key == "utility" else None
        chart = interval_chart(estimate, scales[key], reference=reference, truth=known.get(key))
        cells = [
            f'<td class="quantity">{escape(name.strip())}</td>',
            f'<td class="num">{_point(estimate, own)}</td>',
            f'<td style="width:38%">{chart}</td>',
            _interval_cells(estimate, own),
        ]
        if truth is not None:
            cells.append(_truth_cell(known.get(key), estimate))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    percent = f"{100 * evaluation.settings.level:g}%"
    header = f'<th></th><th class="num">estimate</th><th></th><th>{percent} interval</th>{METHOD_HEAD}'
    header += '<th class="num">truth</th>' if truth is not None else ""
    return (
        f'<section class="policy is-{level}">'
        f'<div class="head"><span class="name">{escape(policy.policy)}</span>'
        f'<span class="badge">{words.MARKS[level]} {level}</span>'
        f'<span class="ess">{_ess(policy)}</span></div>'
        f'<table class="main"><thead><tr>{header}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f"{_verdict(policy, words.shared_notes(evaluation))}{_groups(policy)}{_details(policy)}</section>"
    )


def _ess(policy: PolicyValue) -> str:
    return escape(f"{words.ess_line(policy.diagnostics)} ({words.percent(policy.diagnostics.ess_fraction)})")


def _point(estimate: Estimate, level: str) -> str:
    if not estimate.available:
        return '<span class="soft">n/a</span>'
    text = escape(words.point(estimate))
    if level == "reliable":
        return text
    return f'<span class="doubt" title="{level}">{words.MARKS[level]} {text}</span>'


def _interval_cells(estimate: Estimate, level: str) -> str:
    interval = estimate.interval
    text = escape(words.interval_or_reason(estimate, level))
    if interval is None:
        return f'<td class="why">{text}</td><td class="method"></td>'
    ends, method = text, escape(words.label(interval.method))
    return f'<td class="interval">{ends}</td><td class="soft method">{method}</td>'


def _truth_cell(known: float | None, estimate: Estimate) -> str:
    if known is None:
        return '<td class="num soft">-</td>'
    text = escape(words.figure(known, words.decimals_for(estimate)))
    interval = estimate.interval
    if interval is None:
        return f'<td class="num known">{text}</td>'
    inside = interval.contains(known)
    return f'<td class="num known {"in" if inside else "out"}">{text} {"inside" if inside else "outside"}</td>'


def _verdict(policy: PolicyValue, shared: Sequence[str]) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in words.reasons(policy))
    steps = "".join(f"<li>{escape(step)}</li>" for step in words.next_steps(policy))
    said = (*words.bridge_lines(policy), *(note for note in policy.notes if note not in shared))
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in said)
    return (
        f'<div class="verdict"><p><strong>{escape(words.verdict_sentence(policy))}</strong></p>'
        + (f"<ul>{reasons}</ul>" if reasons else "")
        + (f'<p class="next"><strong>What to do next</strong></p><ul>{steps}</ul>' if steps else "")
        + f"{notes}</div>"
    )


def _estimate_table(estimates: Iterable[tuple[str, Estimate]], head: str, level: str) -> str:
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="num">{_point(estimate, _own(estimate, level))}</td>'
        f'<td class="num">{words.standard_error(estimate)}</td>{_interval_cells(estimate, _own(estimate, level))}</tr>'
        for name, estimate in estimates
    )
    if not rows:
        return ""
    return (
        f'<table><thead><tr><th>{escape(head)}</th><th class="num">estimate</th><th class="num">SE</th>'
        f"<th>interval</th>{METHOD_HEAD}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _own(estimate: Estimate, level: str) -> str:
    return level if estimate.verdict is None else estimate.verdict.level


def _groups(policy: PolicyValue) -> str:
    estimates = [(str(name), estimate) for name, estimate in policy.groups.items()]
    estimates += [(f"welfare: {name}", estimate) for name, estimate in policy.welfare.items()]
    table = _estimate_table(estimates, "group", policy.verdict.level)
    return f"<details open><summary>Utility by group</summary>{table}</details>" if table else ""


def _details(policy: PolicyValue) -> str:
    utility = [(words.label(name), estimate) for name, estimate in policy.utility_estimators.items()]
    intervals = [
        (words.label(method), _span_or_not(interval, policy)) for method, interval in policy.utility.intervals.items()
    ]
    blocks = [
        "<h3>Utility by every estimator</h3>" + _estimate_table(utility, "estimator", policy.verdict.level)
        if utility
        else "",
        "<h3>Every interval of U</h3>" + _facts_table(intervals) if intervals else "",
        _diversity(
            policy.diversity_detail,
            policy.verdict.level if policy.diversity is None else words.level_of(policy.diversity, policy),
        ),
        "<h3>Diagnostics</h3>" + _facts_table(_diagnostics(policy)),
        _variance(policy),
    ]
    return f"<details><summary>Estimators, diversity and diagnostics</summary>{''.join(blocks)}</details>"


def _span_or_not(interval: Interval | None, policy: PolicyValue) -> str:
    needs_overlap = interval is not None and interval.method not in words.WITHOUT_OVERLAP
    # If the interval shown first needs no overlap, or there is none, those that need it do not hold.
    first = policy.utility.interval
    doubtful = first is None or first.method in words.WITHOUT_OVERLAP
    if interval is None or (needs_overlap and doubtful):
        return "does not hold here"
    return words.span(interval)


def _facts_table(facts: Sequence[tuple[str, str]]) -> str:
    half = (len(facts) + 1) // 2
    tables = (
        "".join(f'<tr><td class="soft">{escape(k)}</td><td class="num">{escape(v)}</td></tr>' for k, v in part)
        for part in (facts[:half], facts[half:])
        if part
    )
    return '<div class="columns">' + "".join(f"<table><tbody>{rows}</tbody></table>" for rows in tables) + "</div>"


def _diagnostics(policy: PolicyValue) -> list[tuple[str, str]]:
    d = policy.diagnostics
    facts = [
        ("independent units", f"{d.n_units:,}"),
        ("rows", f"{d.n_rows:,}"),
        ("effective sample size", words.count(d.ess)),
        ("... at best, by the divergence", words.count(d.ess_ceiling)),
        ("... of the reward, or of its absence", words.count(d.reward_ess)),
        ("largest share of one unit", words.percent(d.max_weight_share)),
        ("mean weight (1 if covered)", words.figure(d.mean_weight)),
        ("tail index k-hat (below .7)", words.figure(d.k_hat)),
        ("missing mass", words.percent(d.missing_mass)),
        ("weights truncated at", words.figure(d.truncation)),
        ("e-value of mean weight > 1", words.figure(d.e_value)),
        ("KL(target, behavior), nats", words.figure(d.kl_target_behavior)),
        ("KL(behavior, target), nats", words.figure(d.kl_behavior_target)),
        ("mean log-weight, nats", words.figure(d.mean_log_weight)),
        ("rows of weight 0", f"{d.zero_weight_rows:,}"),
    ]
    if d.length_target is not None:
        facts += [
            ("tokens per response, target", words.figure(d.length_target)),
            ("tokens per response, behavior", words.figure(d.length_behavior)),
        ]
    if d.aa is not None:
        facts += [
            ("A/A: kappa", words.figure(d.aa.kappa)),
            ("A/A: sd of log-prob noise, nats", words.figure(d.aa.sd_log_noise)),
            ("A/A: rows that agree exactly", words.percent(d.aa.share_exact)),
        ]
    if policy.bridge is not None:
        b = policy.bridge
        facts += [
            ("bridge check: mean w/(1+w), log", words.figure(b.logged)),
            ("... mean 1/(1+w), fresh draws", words.figure(b.fresh)),
            ("... p-value of their difference", words.figure(b.p_value)),
            ("... p-value of its tilt to likely ones", words.figure(b.tilt_p_value)),
            ("... fresh draws", f"{b.n_fresh:,}"),
            ("... mean log-weight of these, nats", words.figure(b.fresh_log_weight.value)),
        ]
        if b.sampler_excess is not None:
            facts.append(("... sampler less scorer, nats", words.figure(b.sampler_excess.value)))
    return facts


def _diversity(detail: DiversitySummary | None, level: str) -> str:
    if detail is None:
        return ""
    table = _estimate_table(((words.label(name), e) for name, e in detail.measures.items()), "measure", level)
    sandwich = ""
    if detail.sandwich is not None:
        sandwich = f"<p>Shannon entropy within prompts lies in {escape(words.span(detail.sandwich))} nats.</p>"
    unseen = f"<p>Unseen mass: {words.percent(detail.unseen_mass)}.</p>" if detail.unseen_mass is not None else ""
    rule = escape(detail.rule.rstrip("."))
    return f'<h3>Diversity</h3><p class="soft">{rule}.</p>' + table + sandwich + unseen + _clusters(detail)


def _clusters(detail: DiversitySummary) -> str:
    shown = list(detail.cluster_masses.items())[:MAX_CLUSTERS]
    if not shown:
        return ""
    largest = max(max(pair) for _, pair in shown) or 1.0
    rows = "".join(
        f'<tr><td>{escape(str(name))}</td><td style="width:55%">'
        + "".join(f'<div class="mass" style="width:{100 * mass / largest:.1f}%"></div>' for mass in pair)
        + f'</td><td class="num">{words.percent(pair[0])}</td>'
        f'<td class="num soft">{words.percent(pair[1])}</td></tr>'
        for name, pair in shown
    )
    more = len(detail.cluster_masses) - len(shown)
    return (
        '<table><thead><tr><th>cluster</th><th></th><th class="num">target</th>'
        f'<th class="num">behavior</th></tr></thead><tbody>{rows}</tbody></table>'
        + (f'<p class="soft">and {more} more clusters</p>' if more > 0 else "")
    )


def _variance(policy: PolicyValue) -> str:
    parts = policy.variance
    if parts is None:
        return ""
    return "<h3>Variance of V</h3>" + _facts_table(
        [
            ("Var(U)", f"{parts.utility:.3g}"),
            ("λ² Var(D)", f"{parts.diversity:.3g}"),
            ("2 λ Cov(U, D)", f"{parts.covariance:.3g}"),
            ("total", f"{parts.total:.3g}"),
            ("at least, whatever the covariance", f"{parts.lower_bound:.3g}"),
            ("at most, whatever the covariance", f"{parts.upper_bound:.3g}"),
        ]
    )


def _behavior(behavior: Estimate) -> str:
    return (
        f"<p>The log itself: mean reward <strong>{escape(words.point(behavior))}</strong> "
        f"{escape(words.interval_or_reason(behavior, 'reliable'))} (dashed line in the charts of U).</p>"
    )


def _differences(evaluation: Evaluation) -> str:
    rows = "".join(_difference_rows(difference, evaluation) for difference in evaluation.differences.values())
    if not rows:
        return ""
    return (
        "<h2>Paired differences on the same units</h2><table><thead><tr><th>a - b</th><th></th>"
        '<th class="num">difference</th><th>interval</th>' + METHOD_HEAD + "</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _difference_rows(difference: Difference, evaluation: Evaluation) -> str:
    a, b = evaluation[difference.a], evaluation[difference.b]
    estimates = [("V", difference.value), ("U", difference.utility)]
    if difference.diversity is not None:
        estimates.append(("D", difference.diversity))
    name = f"{difference.a} - {difference.b}"
    rows = ""
    for i, (letter, estimate) in enumerate(estimates):
        level = words.level_of_difference(estimate, a, b)
        rows += (
            f'<tr class="is-{level}"><td>{escape(name) if i == 0 else ""}</td><td>{letter}</td>'
            f'<td class="num">{_point(estimate, level)}</td>{_interval_cells(estimate, level)}</tr>'
        )
    note = f'<tr><td></td><td class="why" colspan="4">{escape(difference.note)}</td></tr>' if difference.note else ""
    return rows + note


def _footer(evaluation: Evaluation) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in evaluation.settings.versions.items())
    return f"<footer>{escape(versions)}</footer>" if versions else ""
