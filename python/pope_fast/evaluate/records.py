"""From the nested dictionaries of the native summary to frozen result records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pope_fast.evaluate.findings import AACalibration, BridgeCheck, Diagnostics, Finding, Verdict
from pope_fast.evaluate.results import (
    DiversitySummary,
    Estimate,
    Interval,
    PolicyValue,
    VarianceParts,
)
from pope_fast.evaluate.tails import with_group_tails
from pope_fast.evaluate.verdict import (
    BRIDGE,
    RARE_REWARD,
    Evidence,
    bridge_findings,
    headline_method,
    judge,
    voids_bounds,
)
from pope_fast.log import RewardRange

__all__ = ["TOO_RARE", "make_estimate", "make_policy_value"]

Labels = Mapping[str, Mapping[int, str | int]]

_BOUNDED = ("robust", "certified", "worst_case_tail")
_WITHOUT_OVERLAP = frozenset({"robust", "certified"})
_VOID = "void: the log-probs are inconsistent"
_UNUSABLE = "no interval is valid: no overlap and inconsistent log-probs"
_CONTRADICTED = "no interval is valid: fresh draws contradict the log-probs"

TOO_RARE = "the reward is too rare for an interval from its standard error"
"""Why there is no interval where only one from a standard error could be made."""


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
    *,
    name: str | None = None,
    unit: str = "reward units",
    headline: Sequence[str] = (),
    void: bool = False,
    note: str | None = None,
) -> Estimate:
    """Turn a named native estimate into an :class:`Estimate`.

    Parameters
    ----------
    record
        ``name``, ``value``, ``standard_error`` and ``intervals``.
    level
        Coverage of the intervals.
    name, unit, note
        For the estimate.
    headline
        Methods in order of preference for the headline interval; the first of any by default, but none where
        "robust" or "certified" is asked for and there is nothing like it.
    void
        Whether intervals that need bounded weights are void.
    """
    intervals = {
        item["method"]: None
        if void and item["method"] in _BOUNDED
        else _interval(item["interval"], level, item["method"])
        for item in record["intervals"]
    }
    wanted = [method for method in headline if method in intervals]
    if not wanted and _WITHOUT_OVERLAP.isdisjoint(headline):
        wanted = list(intervals)[:1]
    interval = intervals[wanted[0]] if wanted else None
    value = _finite(record["value"])
    if value is None:
        note = note or "the estimate is not finite: the weights overflow"
        interval = None
    elif interval is None and note is None:
        note = _VOID if void else "no interval that needs no overlap exists for this quantity"
    return Estimate(
        name=name or record["name"],
        value=value,
        standard_error=_finite(record["standard_error"]) if value is not None else None,
        interval=interval,
        intervals=intervals,
        unit=unit,
        note=note,
    )


def _inverted(summary: Mapping[str, Any]) -> bool:
    """Whether some interval without overlap assumptions has its lower end above its upper end."""
    records = [summary["value"], *summary["utility"]]
    if summary["diversity"] is not None:
        records.append(summary["diversity"])
    ends = (i["interval"] for record in records for i in record["intervals"] if i["method"] in _BOUNDED)
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
) -> PolicyValue:
    """Judge one policy and put its numbers in order."""
    if bridge is not None:
        found = (*bridge_findings(bridge, gates), *found)
    evidence = Evidence(summary, gates, bounds, inverted=_inverted(summary), calibrated=calibration is not None)
    verdict = judge(evidence, found)
    method = headline_method(verdict, gates)
    choice = _Choice(verdict, method, level)
    estimate = choice.of_reward

    by_name = {record["name"]: record for record in summary["utility"]}
    robust = [i for i in by_name["sn_tips"]["intervals"] if i["method"] in ("robust", "certified")]
    utilities = {}
    for name, record in by_name.items():
        # Bounds that assume nothing about overlap hold for the policy's utility, whatever the estimator.
        extra = [] if name == "sn_tips" else robust
        utilities[name] = estimate({**record, "intervals": [*record["intervals"], *extra]})
    chosen = utilities.get(estimator)
    if chosen is None:
        chosen = Estimate(estimator, None, note=_why_missing(estimator))
    detail = _diversity(summary, level, choice.of_clusters, labels["cluster"], asked)
    d = summary["diversity"]
    diversity = None if d is None else choice.of_clusters(d, unit=_unit(d["name"]))
    value = estimate(summary["value"], name="value")
    if estimator != "sn_tips":
        value = _value_of(chosen, diversity, diversity_weight, value, level)
    lost = max(summary["diagnostics"]["truncated_share"], 0.0)
    high = bounds.high if bounds.high > bounds.low else bounds.low + 1.0
    by_group, welfare = with_group_tails(summary["groups"], summary["welfare"], lost, bounds.low, high)
    groups = {_label(group["key"], labels["group"]): estimate(group["utility"]) for group in by_group}
    return PolicyValue(
        policy=summary["policy"],
        value=value,
        utility=chosen,
        diversity=diversity,
        diversity_weight=diversity_weight,
        utility_estimators=utilities,
        diversity_detail=detail,
        variance=_variance(summary["variance"], diversity_weight),
        groups=groups,
        welfare={record["name"]: estimate(record) for record in welfare},
        diagnostics=_diagnostics(summary["diagnostics"], calibration),
        verdict=verdict,
        headline_method=method,
        notes=_notes(summary, groups),
        bridge=bridge,
    )


class _Choice:
    """Which interval is shown first, for quantities of the reward and for those of the clusters alone."""

    def __init__(self, verdict: Verdict, method: str, level: float) -> None:
        codes = {f.code for f in verdict.findings}
        self.level = level
        self.method = method
        self.void = voids_bounds(verdict)
        self.unusable = _CONTRADICTED if BRIDGE in codes else _UNUSABLE
        self.no_overlap = verdict.level == "unreliable"
        self.rare = RARE_REWARD in codes

    def of_reward(self, record: Mapping[str, Any], **more: Any) -> Estimate:
        """Make an estimate that a rare reward makes doubtful: U, V, groups and welfare."""
        made = self._make(record, self.method, **more)
        if not self.rare or self.no_overlap or made.value is None:
            return made
        return replace(made, interval=None, note=TOO_RARE) if self.void or made.interval is None else made

    def of_clusters(self, record: Mapping[str, Any], **more: Any) -> Estimate:
        """Make an estimate of clusters or embeddings, which a rare reward does not touch."""
        usual = "delta" if self.void else "robust" if self.no_overlap else "worst_case_tail"
        return self._make(record, usual, **more)

    def _make(self, record: Mapping[str, Any], method: str, **more: Any) -> Estimate:
        bounds = {"robust": ("robust", "certified"), "certified": ("certified",)}
        preference = bounds.get(method, (method, "delta", "jackknife"))
        made = make_estimate(record, self.level, headline=preference, void=self.void, **more)
        if self.void and self.no_overlap:
            return replace(made, interval=None, intervals=dict.fromkeys(made.intervals), note=self.unusable)
        return made


def _why_missing(estimator: str) -> str:
    if estimator == "baseline_dr":
        return "needs at least two responses for half of the units"
    return "needs the columns baseline and baseline_mean/NAME for every policy"


def _value_of(utility: Estimate, diversity: Estimate | None, weight: float, value: Estimate, level: float) -> Estimate:
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
            interval = interval or bound
    note = "standard error bounded by se(U) + lambda se(D)"
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
