"""From the nested dictionaries of the native summary to frozen result records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pope_fast.evaluate.choice import BOUNDED, Choice, choose
from pope_fast.evaluate.findings import (
    ASKED,
    QUANTITIES,
    AACalibration,
    BridgeCheck,
    Diagnostics,
    Finding,
    Verdict,
    quantity_verdict,
)
from pope_fast.evaluate.results import (
    DiversitySummary,
    Estimate,
    Interval,
    PolicyValue,
    VarianceParts,
)
from pope_fast.evaluate.spans import diversity_span, reward_span, wide_interval
from pope_fast.evaluate.tails import with_group_tails
from pope_fast.evaluate.verdict import Evidence, bridge_findings, judge, small_group
from pope_fast.log import RewardRange

__all__ = ["make_estimate", "make_policy_value"]

Labels = Mapping[str, Mapping[int, str | int]]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _interval(ends: Mapping[str, float], level: float, method: str) -> Interval | None:
    """Return an interval, or None for one that is inverted or infinite."""
    low, high = ends["low"], ends["high"]
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        return None
    return Interval(low, high, level, method)


def make_estimate(
    record: Mapping[str, Any],
    level: float,
    choice: Choice | None = None,
    *,
    name: str | None = None,
    unit: str = "reward units",
    note: str | None = None,
    verdict: Verdict | None = None,
) -> Estimate:
    """Turn a named native estimate into an :class:`Estimate`.

    Parameters
    ----------
    record
        ``name``, ``value``, ``standard_error`` and ``intervals``.
    level
        Coverage of the intervals.
    choice
        Which of its intervals may be shown; by default the first there is.
    name, unit, note, verdict
        For the estimate.
    """
    if choice is None:
        choice = Choice(tuple(item["method"] for item in record["intervals"]), "no interval could be formed")
    intervals = {
        item["method"]: None
        if choice.voids_all or (choice.voids_bounds and item["method"] in BOUNDED)
        else _interval(item["interval"], level, item["method"])
        for item in record["intervals"]
    }
    interval = next((intervals[method] for method in choice.methods if method in intervals), None)
    value = _finite(record["value"])
    if value is None:
        note = note or "the estimate is not finite: the weights overflow"
        interval = None
    elif interval is None:
        note = note or choice.reason
    return Estimate(
        name=name or record["name"],
        value=value,
        standard_error=_finite(record["standard_error"]) if value is not None else None,
        interval=interval,
        intervals=intervals,
        unit=unit,
        note=note,
        verdict=verdict,
    )


def _inverted(summary: Mapping[str, Any]) -> bool:
    """Whether some interval without overlap assumptions has its lower end above its upper end."""
    records = [summary["value"], *summary["utility"]]
    if summary["diversity"] is not None:
        records.append(summary["diversity"])
    ends = (i["interval"] for record in records for i in record["intervals"] if i["method"] in BOUNDED)
    return any(i["low"] > i["high"] for i in ends)


def make_policy_value(
    summary: Mapping[str, Any],
    *,
    estimator: str,
    level: float,
    diversity_weight: float,
    gates: Mapping[str, float],
    labels: Labels,
    calibration: AACalibration | None,
    bounds: RewardRange,
    asked: str = "auto",
    bridge: BridgeCheck | None = None,
    found: Sequence[Finding] = (),
    quantities: Sequence[str] = ASKED,
) -> PolicyValue:
    """Judge one policy and put its numbers in order; ``quantities`` are those that its own verdict is about."""
    if bridge is not None:
        found = (*bridge_findings(bridge, gates), *found)
    evidence = Evidence(
        summary,
        gates,
        bounds,
        inverted=_inverted(summary),
        calibrated=calibration is not None,
        diversity_weight=diversity_weight,
    )
    verdict = judge(evidence, found)
    judged = _Judged(verdict.findings, gates, level)

    by_name = {record["name"]: record for record in summary["utility"]}
    robust = [i for i in by_name["sn_tips"]["intervals"] if i["method"] in ("robust", "certified")]
    utilities = {}
    for name, record in by_name.items():
        # Bounds that assume nothing about overlap hold for the policy's utility, whatever the estimator.
        extra = [] if name == "sn_tips" else robust
        utilities[name] = judged.estimate("utility", {**record, "intervals": [*record["intervals"], *extra]})
    chosen = utilities.get(estimator)
    if chosen is None:
        chosen = Estimate(estimator, None, note=_why_missing(estimator), verdict=judged.verdict("utility"))
    detail = _diversity(summary, level, partial(judged.estimate, "diversity"), labels["cluster"], asked)
    d = summary["diversity"]
    diversity = None if d is None else judged.estimate("diversity", d, unit=_unit(d["name"]))
    value = judged.estimate("value", summary["value"], name="value")
    if estimator != "sn_tips":
        value = _value_of(chosen, diversity, diversity_weight, value, level, judged.choice("value"))
    lost = max(summary["diagnostics"]["truncated_share"], 0.0)
    high = bounds.high if bounds.high > bounds.low else bounds.low + 1.0
    by_group, by_welfare = with_group_tails(summary["groups"], summary["welfare"], lost, bounds.low, high)
    span, of_d = reward_span(bounds), diversity_span(summary)
    groups, small = {}, []
    for record in by_group:
        label = _label(record["key"], labels["group"])
        own = small_group(label, record["units"], gates)
        made = judged.estimate("groups", record["utility"])
        groups[label] = judged.width(f"group {str(label)!r}", "groups", made, span, own)
        small += own
    welfare = {
        record["name"]: judged.width(
            f"the {record['name']} welfare", "welfare", judged.estimate("welfare", record), span, small
        )
        for record in by_welfare
    }
    chosen = judged.width("U", "utility", chosen, span)
    value_span = span
    if diversity is not None:
        diversity = judged.width("D", "diversity", diversity, of_d)
        value_span = None if span is None or of_d is None else span + diversity_weight * of_d
    value = judged.width("V", "value", value, value_span)
    policy = PolicyValue(
        policy=summary["policy"],
        value=value,
        utility=chosen,
        diversity=diversity,
        diversity_weight=diversity_weight,
        utility_estimators={**utilities, **({estimator: chosen} if estimator in utilities else {})},
        diversity_detail=detail,
        variance=_variance(summary["variance"], diversity_weight),
        groups=groups,
        welfare=welfare,
        diagnostics=_diagnostics(summary["diagnostics"], calibration),
        verdict=verdict,
        headline_method=judged.choice("utility").method or "none",
        notes=_notes(summary, groups),
        bridge=bridge,
    )
    return replace(policy, verdict=policy.verdict_of(*quantities))


class _Judged:
    """Verdict and shown interval of every quantity of a policy."""

    def __init__(self, findings: Sequence[Finding], gates: Mapping[str, float], level: float) -> None:
        self.gates = gates
        self.level = level
        self._verdicts = {quantity: quantity_verdict(quantity, findings) for quantity in QUANTITIES}
        self._choices = {quantity: choose(verdict, gates) for quantity, verdict in self._verdicts.items()}

    def verdict(self, quantity: str) -> Verdict:
        """Give the verdict on a quantity, before its interval is looked at."""
        return self._verdicts[quantity]

    def choice(self, quantity: str) -> Choice:
        """Tell which of its intervals may be shown."""
        return self._choices[quantity]

    def estimate(self, quantity: str, record: Mapping[str, Any], **more: Any) -> Estimate:
        """Make an estimate of a quantity from its native record."""
        return make_estimate(record, self.level, self.choice(quantity), verdict=self.verdict(quantity), **more)

    def width(
        self, what: str, quantity: str, estimate: Estimate, span: float | None, own: Sequence[Finding] = ()
    ) -> Estimate:
        """Lower the verdict on an estimate by its own findings, and if its interval is too wide to be an answer."""
        own = [*own, *wide_interval(what, quantity, estimate, span, self.gates)]
        if not own:
            return replace(estimate, verdict=estimate.verdict or self.verdict(quantity))
        return replace(estimate, verdict=Verdict.of([*self.verdict(quantity).findings, *own]))


def _why_missing(estimator: str) -> str:
    if estimator == "baseline_dr":
        return "needs at least two responses for half of the units"
    return "needs the columns baseline and baseline_mean/NAME for every policy"


def _value_of(
    utility: Estimate, diversity: Estimate | None, weight: float, value: Estimate, level: float, choice: Choice
) -> Estimate:
    """V with another estimator of U: the error is bounded without their covariance (theory 3, L1)."""
    if utility.value is None or diversity is None or diversity.value is None:
        return Estimate("value", utility.value, utility.standard_error, utility.interval, utility.intervals)
    total = utility.value + weight * diversity.value
    intervals = {k: v for k, v in value.intervals.items() if k in ("robust", "certified")}
    error = None
    interval = value.interval if value.interval in intervals.values() else None
    if utility.standard_error is not None and diversity.standard_error is not None:
        error = utility.standard_error + weight * diversity.standard_error
        parts = (utility.intervals.get("delta"), next(iter(diversity.intervals.values()), None))
        if parts[0] is not None and parts[1] is not None:
            half = parts[0].width / 2 + weight * parts[1].width / 2
            bound = Interval(total - half, total + half, level, "delta")
            intervals = {"delta": bound, **intervals}
            interval = interval or (bound if "delta" in choice.methods else None)
    note = "standard error bounded by se(U) + lambda se(D)" if interval is not None else choice.reason
    return Estimate("value", total, error, interval, intervals, note=note)


def _label(key: int, labels: Mapping[int, str | int]) -> str | int:
    return labels.get(key, key)


def _diversity(
    summary: Mapping[str, Any], level: float, estimate: Any, labels: Mapping[int, str | int], asked: str
) -> DiversitySummary | None:
    where = summary["diversity_level"]
    prompt, pairs, marginal = summary["prompt"], summary["pairs"], summary["marginal"]
    if where is None:
        return None
    headline = summary["diversity"]["name"]
    measures: dict[str, Estimate] = {}
    if prompt is not None:
        for record in prompt["control"]:
            measures[record["name"]] = estimate(record, unit=_unit(record["name"]))
        for record in prompt["product"]:
            name = f"{record['name']} (product)"
            measures[name] = estimate(record, name=name, unit=_unit(record["name"]))
    if pairs is not None:
        for record in pairs["measures"]:
            measures[record["name"]] = estimate(record, unit=_unit(record["name"]))
        for record in pairs["control"]:
            name = f"{record['name']} (control)"
            measures[name] = estimate(record, name=name, unit=_unit(record["name"]))
    masses = {}
    if marginal is not None:
        measures["entropy"] = estimate(marginal["entropy"], unit="nats")
        for name, key in (("entropy_plug_in", "plug_in"), ("entropy_mm", "miller_madow")):
            note = "check value: its error is that of the jackknife"
            measures[name] = Estimate(name, _finite(marginal[key]), unit="nats", note=note)
        masses = {_label(c["key"], labels): (c["target"], c["behavior"]) for c in marginal["clusters"]}
    sandwich = None
    if prompt is not None and prompt["sandwich"] is not None:
        sandwich = _interval(prompt["sandwich"], level, "sandwich")
    used, left_out = summary["diagnostics"]["n_units"], 0
    source = pairs if headline in _FROM_EMBEDDINGS else prompt if where == "prompt" else None
    if source is not None:
        used, left_out = source["units_used"], source["units_left_out"]
    return DiversitySummary(
        level=where,
        measure=headline,
        rule=_rule(summary, asked),
        order=prompt["order"] if prompt is not None else None,
        n_units_used=used,
        n_units_left_out=left_out,
        measures=measures,
        sandwich=sandwich,
        cluster_masses=masses,
        unseen_mass=None if marginal is None else _finite(marginal["unseen_mass"]),
    )


def _rule(summary: Mapping[str, Any], asked: str) -> str:
    """Say why this level and this measure."""
    prompt, headline = summary["prompt"], summary["diversity"]["name"]
    order = ""
    if prompt is not None:
        order = f"M = {prompt['order']} is the largest order for which at least 90 % of them have M + 1"
    if asked != "auto":
        return f"asked for as {asked!r}" + (f"; {order}" if asked == "h_m" and order else "")
    if headline in _FROM_EMBEDDINGS:
        return "from embeddings within prompts: the log has no clusters"
    if summary["diversity_level"] == "prompt":
        return f"within prompts: enough units have two or more draws; {order}"
    return "over the whole log: fewer than half of the units have two draws"


_FROM_EMBEDDINGS = ("rao", "vendi")
_UNITS = {"gini_simpson": "probability", "rao": "cosine distance", "vendi": "effective kinds"}


def _unit(measure: str) -> str:
    return "clusters" if measure.startswith("coverage") else _UNITS.get(measure, "nats")


def _variance(record: Mapping[str, Any] | None, weight: float) -> VarianceParts | None:
    if record is None:
        return None
    return VarianceParts(
        utility=record["utility"],
        diversity=weight * weight * record["diversity"],
        covariance=2 * weight * record["covariance"],
        total=record["total"],
        lower_bound=record["lower_bound"],
        upper_bound=record["upper_bound"],
    )


def _diagnostics(d: Mapping[str, Any], calibration: AACalibration | None) -> Diagnostics:
    log_e = d["log_e_value"]
    return Diagnostics(
        n_units=d["n_units"],
        n_rows=d["n_rows"],
        ess=_finite(d["ess"]),
        ess_fraction=_finite(d["ess"] / d["n_units"]),
        ess_ceiling=_finite(d["ess_ceiling"]),
        reward_ess=_finite(d["reward_ess"]),
        max_weight_share=_finite(d["max_weight_share"]),
        mean_weight=_finite(d["mean_weight"]),
        k_hat=_finite(d["k_hat"]),
        k_hat_p_value=None if d["k_hat_log_p"] is None else math.exp(d["k_hat_log_p"]),
        missing_mass=_finite(d["missing_mass"]),
        truncation=_finite(d["truncation"]),
        e_value=math.exp(log_e) if log_e < 700 else None,
        kl_target_behavior=_finite(d["kl_target_behavior"]),
        kl_behavior_target=_finite(d["kl_behavior_target"]),
        mean_log_weight=_finite(d["mean_log_weight"]),
        mean_log_weight_standard_error=_finite(d["mean_log_weight_standard_error"]),
        zero_weight_rows=d["zero_weight_draws"],
        length_target=_finite(d["length_target"]),
        length_behavior=_finite(d["length_behavior"]),
        aa=calibration,
    )


def _notes(summary: Mapping[str, Any], groups: Mapping[str | int, Estimate]) -> tuple[str, ...]:
    notes = []
    if summary["diversity_level"] is None:
        notes.append("no clusters in the log, and no embeddings of several responses to a prompt: V is U alone")
    headline = None if summary["diversity"] is None else summary["diversity"]["name"]
    if headline in _FROM_EMBEDDINGS:
        left_out, draws = summary["pairs"]["units_left_out"], 2
    elif summary["diversity_level"] == "prompt":
        left_out, draws = summary["prompt"]["units_left_out"], summary["prompt"]["order"] + 1
    else:
        left_out, draws = 0, 0
    if left_out:
        notes.append(f"{left_out:,} units have fewer than {draws} draws and are left out of D")
    if groups:
        notes.append("groups and welfare: SN-TIPS per group with a grouped jackknife; every group counts the same")
    return tuple(notes)
