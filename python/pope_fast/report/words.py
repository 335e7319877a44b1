"""The words and figures that the table and the page share: labels, rounding, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pope_fast.evaluate.findings import VerdictLevel
from pope_fast.evaluate.results import (
    VERDICT_LEVELS,
    Diagnostics,
    Estimate,
    Evaluation,
    Finding,
    Interval,
    PolicyValue,
)
from pope_fast.log.inspection import REMEDIES

MARKS: Mapping[str, str] = {"reliable": "✔", "caution": "!", "unreliable": "✘"}
ASCII_MARKS: Mapping[str, str] = {"reliable": "+", "caution": "!", "unreliable": "x"}

METHODS: Mapping[str, str] = {
    "worst_case_tail": "worst-case tail",
    "robust": "robust",
    "certified": "certified",
    "delta": "delta",
    "jackknife": "jackknife",
    "bonferroni": "Bonferroni",
    "sandwich": "sandwich",
}

WITHOUT_OVERLAP = frozenset({"robust", "certified", "sandwich"})
"""Methods whose intervals hold where the log does not cover the policy."""

ESTIMATORS: Mapping[str, str] = {
    "ips": "IPS",
    "snips": "SNIPS",
    "tips": "TIPS (truncated)",
    "sn_tips": "SN-TIPS",
    "cv": "control variate",
    "baseline_dr": "leave-one-out baseline",
    "psis": "PSIS",
    "dm": "direct method",
    "dr": "doubly robust",
    "sndr": "self-normalized DR",
}

MEASURES: Mapping[str, str] = {
    "entropy": "entropy of clusters",
    "entropy_plug_in": "entropy, plug-in",
    "entropy_mm": "entropy, Miller-Madow",
    "gini_simpson": "Gini-Simpson",
    "rao": "Rao's entropy",
    "vendi": "Vendi score",
}


def label(name: str) -> str:
    """Give the name of an estimator, a measure or a method as a reader knows it."""
    for names in (ESTIMATORS, MEASURES, METHODS):
        if name in names:
            return names[name]
    return name


def figure(x: float | None, decimals: int | None = None) -> str:
    """Round a figure for reading: four significant digits, or the given number of decimals."""
    if x is None:
        return "n/a"
    if not math.isfinite(x):
        return str(x).replace("inf", "∞")
    size = abs(x)
    if size != 0 and (size >= 1e6 or size < 1e-4):
        return f"{x:.3g}"
    if decimals is None:
        decimals = 3 if size == 0 else min(6, max(0, 3 - math.floor(math.log10(size))))
    return f"{x:,.{decimals}f}"


def count(x: float | None) -> str:
    """Round a count, or an effective one: whole from 100 up, one decimal below."""
    if x is None:
        return "n/a"
    if abs(x) >= 1e12:
        return f"{x:.2g}"
    return f"{x:,.0f}" if abs(x) >= 100 or float(x).is_integer() else f"{x:.1f}"


def percent(x: float | None) -> str:
    """Give a share in percent."""
    if x is None:
        return "n/a"
    share = 100 * x
    if share == 0:
        return "0%"
    if abs(share) < 0.1:
        return "< 0.1%"
    return f"{share:.0f}%" if abs(share) >= 10 else f"{share:.1f}%"


def decimals_for(estimate: Estimate) -> int | None:
    """Choose decimals that keep two digits of the interval's width, or of the standard error."""
    scale = estimate.standard_error
    if estimate.interval is not None:
        scale = estimate.interval.width
    if scale is None or not math.isfinite(scale) or scale <= 0:
        return None if estimate.value is None or abs(estimate.value) >= 1000 else 3
    decimals = 1 - math.floor(math.log10(scale))
    least = 3 if abs(estimate.value or 0.0) < 100 else 0
    return min(6, max(least, decimals))


def point(estimate: Estimate) -> str:
    """Give the point estimate, rounded to what its interval supports."""
    return figure(estimate.value, decimals_for(estimate))


def standard_error(estimate: Estimate) -> str:
    """Give the standard error with two significant digits."""
    return "n/a" if estimate.standard_error is None else f"{estimate.standard_error:.2g}"


def span(interval: Interval, decimals: int | None = None) -> str:
    """Give an interval as ``[low, high]``."""
    return f"[{figure(interval.low, decimals)}, {figure(interval.high, decimals)}]"


def interval_or_reason(estimate: Estimate, level: str) -> str:
    """Give the headline interval, or why there is none; which may be shown, the evaluation has decided."""
    if estimate.interval is not None:
        return span(estimate.interval, decimals_for(estimate))
    if not estimate.available:
        return f"not available: {estimate.note or 'it could not be computed'}"
    usual = "no interval holds without overlap" if level == "unreliable" else "no valid interval could be formed"
    return f"none: {estimate.note or usual}"


def level_of(estimate: Estimate, policy: PolicyValue) -> VerdictLevel:
    """Give the level of the verdict on an estimate, or of its policy if it was not judged on its own."""
    return policy.verdict.level if estimate.verdict is None else estimate.verdict.level


def level_of_difference(estimate: Estimate, a: PolicyValue, b: PolicyValue) -> VerdictLevel:
    """Give the level of the verdict on a difference, or the worse one of its policies."""
    if estimate.verdict is not None:
        return estimate.verdict.level
    return max(a.verdict.level, b.verdict.level, key=VERDICT_LEVELS.index)


def ess_line(diagnostics: Diagnostics) -> str:
    """Say how many of the log's units speak for the policy: ``ESS 412 of 500``."""
    if diagnostics.ess is None:
        return "ESS n/a"
    return f"ESS {count(diagnostics.ess)} of {diagnostics.n_units:,}"


def verdict_sentence(policy: PolicyValue) -> str:
    """Say in a sentence or two what the verdict means for a reader of the figures."""
    level = policy.verdict.level
    if level == "reliable":
        return "The log covers this policy; estimates and intervals can be used."
    so, rest = _letters(policy, level), [x for x in VERDICT_LEVELS if x != level]
    others = [text for other in rest if (text := _answers(_letters(policy, other), other))]
    if level == "caution":
        if not others or not so:
            return "The log answers for this policy, but not without doubt."
        return f"The log answers for {_listed(so)} not without doubt; {'; '.join(others)}."
    what = f"{_listed(so)} of this policy" if others and so else "this policy"
    says = f"This log is too small to answer for {what}" if _too_small(policy) else f"This log cannot answer for {what}"
    methods = {e.interval.method for e in _main(policy, level).values() if e.interval is not None}
    shown = ""
    if methods and methods <= WITHOUT_OVERLAP:
        kinds = _listed(sorted(label(method) for method in methods))
        shown = f" The intervals shown are the {kinds} ones, which need no overlap of the policies."
    return "; ".join([says, *others]) + "." + shown


def _answers(letters: Sequence[str], level: VerdictLevel) -> str:
    if not letters:
        return ""
    return f"for {_listed(letters)} it does" + (", but not without doubt" if level == "caution" else "")


def _main(policy: PolicyValue, level: VerdictLevel | None = None) -> dict[str, Estimate]:
    """Give U, D and V by letter: all there are, or those whose verdict has a level."""
    named = {"U": policy.utility, "D": policy.diversity, "V": policy.value}
    there = {letter: estimate for letter, estimate in named.items() if estimate is not None}
    return {x: e for x, e in there.items() if level is None or level_of(e, policy) == level}


def _letters(policy: PolicyValue, level: VerdictLevel) -> list[str]:
    return list(_main(policy, level))


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _too_small(policy: PolicyValue) -> bool:
    """Whether only the log's size is at fault: most of its units speak for the policy."""
    grave = {finding.code for finding in policy.verdict.findings if finding.severity == "unreliable"}
    return bool(grave) and grave <= {"low_ess", "wide_interval"} and (policy.diagnostics.ess_fraction or 0.0) >= 0.5


def reasons(policy: PolicyValue) -> tuple[str, ...]:
    """Give the findings behind a policy's verdict, a line each; those of groups alone at the end.

    Intervals that are too wide to be answers are named in one line.
    """
    grave = [finding for finding in policy.verdict.findings if finding.severity != "info"]
    wide = [finding for finding in grave if finding.code == "wide_interval"]
    lines = [finding.message for finding in grave if len(wide) < 2 or finding.code != "wide_interval"]
    if len(wide) > 1:
        letters = {"utility": "U", "diversity": "D", "value": "V"}
        names = dict.fromkeys(letters.get(name, name) for finding in wide for name in finding.quantities)
        gate = wide[0].threshold or 0.0
        lines.append(f"the intervals of {_listed(list(names))} cover more than {gate:.0%} of what can be: no answer")
    return (*lines, *group_lines(policy))


def group_lines(policy: PolicyValue) -> tuple[str, ...]:
    """Say what was found of groups and welfare alone, and is no part of the policy's verdict: a line a code."""
    said = set(policy.verdict.findings)
    by_code: dict[str, list[str]] = {}
    for estimate in (*policy.groups.values(), *policy.welfare.values()):
        for finding in () if estimate.verdict is None else estimate.verdict.findings:
            if finding not in said and finding.severity != "info":
                said.add(finding)
                by_code.setdefault(finding.code, []).append(finding.message)
    more = {code: f" (and {len(found) - 1} more like it)" if len(found) > 1 else "" for code, found in by_code.items()}
    return tuple(f"{found[0]}{more[code]}" for code, found in by_code.items())


_LEGENDS: Mapping[str, str] = {
    "gini_simpson": "D is the Gini-Simpson index: the chance that two answers to a prompt are of different kinds.",
    "rao": "D is Rao's entropy: the expected cosine distance of two answers to a prompt; 0 if all are alike.",
    "vendi": "D is the Vendi score of order 2: the effective number of kinds of answer a prompt gets; 1 if alike.",
}


def diversity_legend(evaluation: Evaluation) -> str | None:
    """Say what the letter D stands for in this evaluation, or None without it."""
    detail = next((p.diversity_detail for p in evaluation.values() if p.diversity_detail is not None), None)
    if detail is None:
        return None
    if detail.measure in _LEGENDS:
        return _LEGENDS[detail.measure]
    if detail.measure.startswith("coverage@"):
        draws = detail.measure.removeprefix("coverage@")
        return f"D is {detail.measure}: the expected number of kinds among {draws} answers to a prompt."
    if detail.level == "prompt":
        return f"D is {detail.measure} in nats: how many kinds of answer a prompt gets; 0 if always one."
    return "D is the entropy in nats of the clusters over the whole log; 0 if all answers are of one kind."


def subtitle(evaluation: Evaluation) -> tuple[str, ...]:
    """Say in a few phrases what was evaluated and how."""
    settings = evaluation.settings
    first = next(iter(evaluation.values()), None)
    size = []
    if first is not None:
        d = first.diagnostics
        units = {"prompt": "prompts", "row": "independent draws"}.get(settings.unit, f"units of {settings.unit!r}")
        size = [f"{d.n_rows:,} rows", f"{d.n_units:,} {units}"]
    bounds = settings.reward_range
    return (
        settings.source,
        *size,
        f"reward in [{bounds.low:g}, {bounds.high:g}] ({bounds.origin})",
        _value_formula(evaluation),
        f"{100 * settings.level:g}% intervals",
    )


def _value_formula(evaluation: Evaluation) -> str:
    weight = evaluation.settings.diversity_weight
    if all(policy.diversity is None for policy in evaluation.values()):
        return "V = U (no clusters)"
    return "V = U + D" if weight == 1 else f"V = U + {weight:g} D"


def bridge_lines(policy: PolicyValue) -> tuple[str, ...]:
    """Say how the check against fresh draws came out, and what the draws earned."""
    check = policy.bridge
    if check is None:
        return ()
    failed = any(finding.code == "bridge" for finding in policy.verdict.findings)
    decimals = max(2, min(6, 1 - math.floor(math.log10(check.interval.width)))) if check.interval.width > 0 else 3
    text = (
        f"bridge check {'failed' if failed else 'passed'}: {check.n_fresh:,} fresh draws on {check.n_units_fresh:,} "
        f"prompts{'' if check.paired else ' (not those of the log)'}, difference {figure(check.difference, decimals)} "
        f"{span(check.interval, decimals)}, p {min(1.0, 2 * min(check.p_value, check.tilt_p_value)):.2g}"
    )
    if check.detectable_offset is not None and not failed:
        text += f"; all log-weights off by {check.detectable_offset:.2g} nats would most likely have been noticed"
    lines = [text]
    if check.n_unmatched:
        lines.append(
            f"{check.n_unmatched:,} prompts of the fresh draws are not in the log, and were left out of the check"
        )
    if check.on_policy is not None:
        earned = check.on_policy
        lines.append(f"the fresh draws themselves earned {point(earned)} {interval_or_reason(earned, 'reliable')}")
    return tuple(lines)


MORE_PROMPTS = (
    "Log more prompts (not those alone where the rarer outcome happens: that would bias the answer); with so few no "
    "interval of U and V holds."
)

NEARER = "Log rewards for responses of a policy nearer to this one, or of this one itself."

STEPS: Mapping[str, str] = {
    "heavy_tail": NEARER,
    "no_overlap": NEARER,
    "far_policy": NEARER,
    "unreached_mass": NEARER,
    "low_ess": NEARER,
    "inconsistent_log_probs": (
        "Score the behavior policy a second time, with the engine that scored this one, and pass that column "
        "as --aa-policy (in Python aa_policy=)."
    ),
    "bridge": (
        "Compare chat template, tokenizer, temperature, truncation and end-of-sequence token of the sampler with those "
        "of the scorer; score log and fresh draws with one engine."
    ),
    "negative_divergence": (
        "Check that every log-prob is the sum over all tokens of its response, not their mean, under the distribution "
        "that was sampled from, and that no logged response was left out."
    ),
    "different_tokens": "Score both policies on the same tokens: stored ones, or those of one tokenizer and template.",
    "mixed_origins": "Score all files of the log in one run.",
    "dominant_unit": "Look at the heaviest unit of the log: one wrong log-probability decides there.",
    "missing_mass": "Read the interval as wide as it is: what the log never shows, no estimator can know.",
    "small_group": "Log more ratings of the small groups, or merge groups.",
    "wide_interval": "Log more prompts, or rewards for a policy nearer to this one, to narrow the interval.",
    "length_drift": "Compare response lengths: length alone can change sequence weights a great deal.",
    "unseen_clusters": "Label more responses, or use coarser clusters.",
    "rare_reward": (
        "Read the intervals of U and V as wide as they are, and log more prompts to narrow them "
        "(not those alone where the rarer outcome happens: that would bias the answer)."
    ),
    **REMEDIES,
    "value_mix": "Choose lambda (--diversity-weight) in units of reward per unit of D: how much reward D is worth.",
    "constant_reward": "Choose a reward that varies, or look at the diversity alone.",
}
"""What to do about a finding, by its code."""


def next_steps(policy: PolicyValue) -> tuple[str, ...]:
    """Say what a reader can do about the findings of a policy, the most pressing first, each once."""
    steps = [*_doubtful_points(policy)]
    intervals = any(estimate.interval is not None for estimate in _main(policy).values())
    for finding in policy.verdict.findings:
        if finding.severity == "info" or finding.code not in STEPS:
            continue
        if finding.code == "missing_mass" and (policy.verdict.level == "unreliable" or not intervals):
            continue  # said already by the first step, or of no interval
        if finding.code == "low_ess":
            steps.extend(_more_units(finding, policy.diagnostics))
        elif finding.code == "wide_interval" and not _too_small(policy) and NEARER in steps:
            continue  # what brings the policy into reach narrows its intervals
        elif finding.code == "rare_reward" and policy.utility.interval is None:
            steps.append(MORE_PROMPTS)
        else:
            steps.append(STEPS[finding.code])
    if policy.verdict.level == "caution" and not steps:
        steps.append(
            "Read the intervals rather than the point estimates."
            if intervals
            else "Take the point estimates for hints: no interval holds beside them."
        )
    return tuple(dict.fromkeys(steps))


def _doubtful_points(policy: PolicyValue) -> Iterator[str]:
    """Say which point estimates are not to be used, and whether there is an interval to read instead."""
    if policy.verdict.level != "unreliable":
        return
    everything = _main(policy)
    bad = _main(policy, "unreliable") or everything
    with_interval = [letter for letter, estimate in bad.items() if estimate.interval is not None]
    without = [letter for letter in bad if letter not in with_interval]
    for letters, instead in (
        (with_interval, "read {} only"),
        (without, "no interval holds beside {}"),
    ):
        if not letters:
            continue
        if len(letters) == len(everything):
            points, theirs = "the point estimates of this policy", ("its intervals", "them")
        elif len(letters) == 1:
            points, theirs = f"the point estimate of {letters[0]}", ("its interval", "it")
        else:
            points, theirs = f"the point estimates of {_listed(letters)}", ("their intervals", "them")
        yield f"Do not use {points}; {instead.format(theirs[letters is without])}."


def _more_units(finding: Finding, diagnostics: Diagnostics) -> Iterator[str]:
    ess, gate = finding.value, finding.threshold
    few = ess is not None and ess >= diagnostics.n_units / 2
    if not few:
        yield STEPS[finding.code]
    if ess is None or gate is None or not 0 < ess < gate or gate > 100 * ess:
        return
    # ESS grows at most in proportion to the log, so this is the least that could do, and is called that.
    needed = diagnostics.n_units * gate / ess
    digits = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    least = f"at least {math.ceil(needed / digits) * digits:,} independent units"
    if few:
        yield f"Log more prompts: {least}. If rows are draws of their own, as ratings are, use --unit row."
    else:
        yield f"Or log more of the same: {least}."


def shared_notes(evaluation: Evaluation) -> tuple[str, ...]:
    """Give the notes that every policy has, for them to be said once."""
    policies = list(evaluation.values())
    if len(policies) < 2:
        return ()
    return tuple(note for note in policies[0].notes if all(note in policy.notes for policy in policies))


def truth_of(truth: Mapping[str, Any] | None, policy: PolicyValue) -> dict[str, float]:
    """Give the true value, utility and diversity of a policy, as far as a truth file has them.

    The diversity is the measure that the evaluation put in its headline.
    """
    known = (truth or {}).get("policies", {}).get(policy.policy, {})
    found: dict[str, float] = {}
    if isinstance(known.get("utility"), (int, float)):
        found["utility"] = float(known["utility"])
    detail = policy.diversity_detail
    if detail is not None:
        name = {"entropy": "entropy_marginal"}.get(detail.measure, detail.measure)
        diversity = known.get("diversity", {}).get(name)
        if isinstance(diversity, (int, float)):
            found["diversity"] = float(diversity)
    if "utility" in found and (detail is None or "diversity" in found):
        found["value"] = found["utility"] + policy.diversity_weight * found.get("diversity", 0.0)
    return found
