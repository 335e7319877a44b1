"""The verdict: can this log answer for this policy, and if not, why not and what to do.

The gates are those of theory, section 5. They look at the unclipped weights only: a diagnostic that is taken after
truncation says that truncation works, not that the log covers the policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pope_fast.errors import PopeError
from pope_fast.evaluate.findings import BridgeCheck, Finding, Verdict
from pope_fast.evaluate.spans import diversity_span, reward_span
from pope_fast.log import RewardRange

if TYPE_CHECKING:
    from pope_fast.evaluate.results import Estimate

__all__ = [
    "BRIDGE",
    "DEFAULT_THRESHOLDS",
    "FINDERS",
    "INCONSISTENT",
    "RARE_REWARD",
    "Evidence",
    "bridge_findings",
    "judge",
    "merge_thresholds",
    "small_group",
    "voids_bounds",
]

DEFAULT_THRESHOLDS: Mapping[str, float] = {
    "k_hat": 0.7,  # unreliable above: the mean of the weights converges too slowly
    "k_hat_caution": 0.5,  # caution above: their variance is infinite
    "k_hat_p_value": 0.001,  # caution only, whatever k-hat is, below: no such tail ends where the weights do
    "ess": 50.0,  # unreliable below, in units
    "kl_margin": 1.0,  # unreliable if KL > log(n) - this
    "unreached_mass": 0.1,  # unreliable if the mean weight is significantly below 1 - this
    "missing_mass": 0.1,  # caution above: share of the policy beyond weights of sqrt(n)
    "max_weight_share": 0.1,  # caution above: one unit decides
    "reward_ess": 50.0,  # caution below: the reward, or its absence, rests on that many units
    "reward_ess_few": 5.0,  # below: so few that only the certified interval is shown
    "interval_share": 0.5,  # unreliable above: the interval's share of what the quantity can range over
    "value_mix": 20.0,  # caution above: how many times farther U or lambda D can range than the other
    "unseen_mass": 0.1,  # caution above: weight in clusters that occur once
    "e_value": 20.0,  # inconsistent log-probs above: 1 / .05
    "mean_log_weight_z": 3.0,  # inconsistent log-probs above, in standard errors
    "length_drift": 1.5,  # caution above: ratio of mean lengths, either way
    "bridge": 0.01,  # contradicted by fresh draws below: p-value of the bridge check
    "bridge_difference": 0.05,  # unreliable above: its difference, significantly
}
"""Gates of the verdict. Override any of them with ``thresholds=``."""

INCONSISTENT = "inconsistent_log_probs"
"""Code of the finding that makes bounded intervals void."""

BRIDGE = "bridge"
"""Code of the finding that fresh draws contradict the log-probs; it voids bounded intervals too."""

RARE_REWARD = "rare_reward"
"""Code of the finding that makes intervals from a standard error too narrow."""

# Differences that two correct computations of one log-prob make: in the mean of a share, and in nats.
_ROUNDING = 1e-3
_ROUNDING_NATS = 0.02


def merge_thresholds(given: Mapping[str, float] | None) -> dict[str, float]:
    """Lay the caller's gates over the defaults.

    Raises
    ------
    PopeError
        If a name is unknown or a value is not a finite number.
    """
    merged = dict(DEFAULT_THRESHOLDS)
    for name, value in (given or {}).items():
        if name not in merged:
            raise PopeError(f"there is no threshold {name!r}; there are: {', '.join(merged)}")
        if not math.isfinite(value):
            raise PopeError(f"threshold {name!r} must be a finite number, not {value}")
        merged[name] = float(value)
    return merged


@dataclass(frozen=True)
class Evidence:
    """What the findings about a policy are made from.

    Attributes
    ----------
    summary
        What ``Snapshot.summary`` returned.
    gates
        Thresholds by name.
    bounds
        Range of the reward.
    inverted
        Whether an interval came out with its lower end above its upper one.
    calibrated
        Whether an A/A column has calibrated the weights.
    diversity_weight
        lambda.
    """

    summary: Mapping[str, Any]
    gates: Mapping[str, float]
    bounds: RewardRange
    inverted: bool = False
    calibrated: bool = False
    diversity_weight: float = 0.0

    @property
    def diagnostics(self) -> Mapping[str, Any]:
        """Diagnostics of the summary."""
        found: Mapping[str, Any] = self.summary["diagnostics"]
        return found


def judge(evidence: Evidence, found: Sequence[Finding] = ()) -> Verdict:
    """Judge one policy by what every function of :data:`FINDERS` finds, and by what was found elsewhere."""
    return Verdict.of([*(finding for find in FINDERS for finding in find(evidence)), *found])


def voids_bounds(verdict: Verdict) -> bool:
    """Tell whether intervals from bounds are void: the log-probs do not fit each other, or fresh draws."""
    return any(f.code in (INCONSISTENT, BRIDGE) for f in verdict.findings)


def _overlap(evidence: Evidence) -> list[Finding]:
    d, gates = evidence.diagnostics, evidence.gates
    found = []
    n = d["n_units"]
    k_hat, ess, kl, mean = d["k_hat"], d["ess"], d["kl_target_behavior"], d["mean_weight"]
    chance = math.exp(d["k_hat_log_p"]) if d["k_hat_log_p"] is not None else 1.0
    if k_hat is not None and k_hat > gates["k_hat"] and chance < gates["k_hat_p_value"]:
        message = (
            f"some weights are much larger than the others (k-hat {k_hat:.2f}), but not as in a heavy tail, whose "
            f"largest would be larger still (p {chance:.0e}): they are a mixture. Look where the large ones come from"
        )
        found.append(Finding("heavy_tail", "caution", message, k_hat, gates["k_hat"]))
    elif k_hat is not None and k_hat > gates["k_hat"]:
        message = (
            f"the weights' tail is too heavy (k-hat {k_hat:.2f} > {gates['k_hat']:g}): "
            "a few responses not in the log could change the answer"
        )
        found.append(Finding("heavy_tail", "unreliable", message, k_hat, gates["k_hat"]))
    elif k_hat is not None and k_hat > gates["k_hat_caution"]:
        message = f"the weights' variance may be infinite (k-hat {k_hat:.2f} > {gates['k_hat_caution']:g})"
        found.append(Finding("heavy_tail", "caution", message, k_hat, gates["k_hat_caution"]))
    if ess < gates["ess"]:
        message = f"{n:,} units are worth only {_count(ess)} under this policy (ESS < {gates['ess']:g})"
        if n < gates["ess"]:
            message = f"{n:,} units are too few for any policy: ESS {_count(ess)}, of {gates['ess']:g} at least"
        found.append(Finding("low_ess", "unreliable", message, ess, gates["ess"]))
    limit = math.log(n) - gates["kl_margin"]
    relative_error = math.sqrt(max(1 / ess - 1 / n, 0.0))
    # By chance the mean weight can fall below 1, and with it the estimate below a divergence that is nearly 0.
    if -0.5 < kl < -3 * relative_error and ess > n / 2:
        message = (
            f"the KL estimate is below 0 ({kl:.2g} nats) though nearly all units count (ESS {_count(ess)} of {n:,}): "
            "these are not the weights of two policies"
        )
        found.append(Finding("negative_divergence", "unreliable", message, kl, -3 * relative_error))
    elif kl < -3 * relative_error:
        message = f"the KL estimate is negative ({kl:.2f} nats): the log does not overlap with this policy"
        found.append(Finding("no_overlap", "unreliable", message, kl, -3 * relative_error))
    elif kl > limit:
        message = (
            f"the policy is {kl:.1f} nats away from the logger; {n:,} units reach {limit:.1f}. "
            f"{_about(kl + gates['kl_margin'])} would be needed"
        )
        found.append(Finding("far_policy", "unreliable", message, kl, limit))
    standard_error = mean * relative_error
    if mean + 3 * standard_error < 1 - gates["unreached_mass"]:
        message = (
            f"the mean weight is {mean:.3g} where 1 is expected: at least {1 - mean - 3 * standard_error:.0%} of what "
            "this policy would answer is not in the log at all"
        )
        found.append(Finding("unreached_mass", "unreliable", message, 1 - mean, gates["unreached_mass"]))
    return found


def _consistency(evidence: Evidence) -> list[Finding]:
    d, gates = evidence.diagnostics, evidence.gates
    reasons = []
    log_e, mean_log, error = d["log_e_value"], d["mean_log_weight"], d["mean_log_weight_standard_error"]
    if log_e > math.log(gates["e_value"]):
        reasons.append(
            f"the mean weight {d['mean_weight']:.3g} is above 1 (e-value {_power(log_e)}: right log-probs give that at "
            f"most once in {f'{math.exp(log_e):,.0f}' if log_e < math.log(1e9) else 'a billion'} logs)"
        )
    if mean_log is not None and mean_log > gates["mean_log_weight_z"] * error > 0:
        z = mean_log / error
        reasons.append(
            f"the mean log-weight {mean_log:+.3g} is {z:.1f} standard errors above 0 (right log-probs give that about "
            f"once in {_once_in(z)} logs)"
        )
    if evidence.inverted:
        reasons.append("an interval came out with its lower end above its upper end")
    if not reasons:
        return []
    remedy = (
        "even after the A/A calibration; look for another template, tokenizer or temperature"
        if evidence.calibrated
        else "score both policies with one engine, precision and batch plan, or calibrate with aa_policy="
    )
    message = f"unlikely log-probs: {'; '.join(reasons)}: {remedy}"
    return [Finding(INCONSISTENT, "caution", message, math.exp(min(log_e, 700.0)), gates["e_value"])]


def bridge_findings(check: BridgeCheck, gates: Mapping[str, float]) -> list[Finding]:
    """Judge a bridge check.

    Fresh draws that contradict the log-probs are a caution, and void intervals from bounds. If the difference is
    significantly larger than its gate, the policy is unreliable: at least that share of its probability is misplaced.
    """
    reasons = []
    size = abs(check.difference)
    # Two tests share one error probability.
    differs = check.p_value < gates["bridge"] / 2 and size > _ROUNDING
    if differs:
        offset = "" if check.offset is None else f", as if all log-weights were {check.offset:+.2g} nats off"
        reasons.append(
            f"the mean of w/(1+w) is {check.logged:.3f} in the log, that of 1/(1+w) {check.fresh:.3f} in fresh draws; "
            f"they should be equal (p {check.p_value:.1g}{offset})"
        )
    if check.tilt_p_value < gates["bridge"] / 2 and abs(check.tilt) > _ROUNDING:
        how, its, other = ("more", "lower", "higher") if check.tilt < 0 else ("less", "higher", "lower")
        reasons.append(
            f"fresh draws are {how} probable than the log's weights say (p {check.tilt_p_value:.1g}), as at a {its} "
            f"temperature of the policy, or a {other} one of the logger"
        )
    divergence, excess = check.fresh_log_weight, check.sampler_excess
    if _beyond(divergence, -1.0, gates):
        reasons.append(
            f"the mean log-weight of the fresh draws {divergence.value:+.3g} is below 0, which draws of the policy "
            "cannot have: swapped columns, or draws of another policy"
        )
    if excess is not None and (_beyond(excess, 1.0, gates) or _beyond(excess, -1.0, gates)):
        reasons.append(
            f"the fresh draws' log-prob under their sampler is {excess.value:+.3g} nats from that under this policy"
        )
    if not reasons:
        return []
    message = f"fresh draws contradict the log-probs: {'; '.join(reasons)}"
    certain = min(abs(check.interval.low), abs(check.interval.high))
    if differs and check.interval.low * check.interval.high > 0 and certain > gates["bridge_difference"]:
        message += f": at least {certain:.0%} of this policy's probability is in the wrong place"
        return [Finding(BRIDGE, "unreliable", message, size, gates["bridge_difference"])]
    p_value = 2 * min(check.p_value, check.tilt_p_value)
    if p_value < gates["bridge"]:
        return [Finding(BRIDGE, "caution", message, p_value, gates["bridge"])]
    return [Finding(BRIDGE, "caution", message)]


def small_group(label: str | int, units: float, gates: Mapping[str, float]) -> list[Finding]:
    """Find that a group has too few units for an error of its own; it concerns that group, and welfare over groups."""
    if units >= gates["ess"]:
        return []
    message = f"group {str(label)!r} has {units:,.0f} units (< {gates['ess']:g}): the error of its utility is a guess"
    return [Finding("small_group", "caution", message, float(units), gates["ess"], ("groups",))]


def _beyond(mean: Estimate, sign: float, gates: Mapping[str, float]) -> bool:
    """Tell whether a mean in nats is significantly above 0, or below if the sign is negative."""
    if mean.value is None or mean.standard_error is None:
        return False
    return sign * mean.value > max(gates["mean_log_weight_z"] * mean.standard_error, _ROUNDING_NATS)


def _power(log_value: float) -> str:
    return f"{math.exp(log_value):.3g}" if log_value < 700 else f"1e{log_value / math.log(10):.0f}"


def _about(log_number: float) -> str:
    """Give a large number by its logarithm; beyond a trillion the power of ten says enough."""
    if log_number < math.log(1e12):
        number = math.exp(log_number)
        digits = 10 ** max(0, math.floor(math.log10(number)) - 1)
        return f"About {round(number / digits) * digits:,}"
    return f"More than 1e{math.floor(log_number / math.log(10))}"


def _once_in(z: float) -> str:
    """Say how rarely a normal variable is that many standard errors above its mean."""
    tail = 0.5 * math.erfc(z / math.sqrt(2.0))
    return f"{1.0 / tail:,.0f}" if tail > 1e-9 else "a billion"


def _reach(evidence: Evidence) -> list[Finding]:
    d, gates = evidence.diagnostics, evidence.gates
    found = []
    if d["missing_mass"] > gates["missing_mass"]:
        message = (
            f"{d['missing_mass']:.0%} of the policy lies beyond what {d['n_units']:,} units can weigh: "
            "the tail of the interval is a worst case over that share"
        )
        found.append(Finding("missing_mass", "caution", message, d["missing_mass"], gates["missing_mass"]))
    if d["max_weight_share"] > gates["max_weight_share"]:
        message = f"one unit carries {d['max_weight_share']:.0%} of all weight"
        found.append(Finding("dominant_unit", "caution", message, d["max_weight_share"], gates["max_weight_share"]))
    return found


def _unseen_clusters(evidence: Evidence) -> list[Finding]:
    if evidence.summary["diversity_level"] != "marginal":
        return []
    unseen, gate = evidence.summary["marginal"]["unseen_mass"], evidence.gates["unseen_mass"]
    if unseen <= gate:
        return []
    message = f"{unseen:.0%} of the weight is in clusters that occur once: D is too low"
    return [Finding("unseen_clusters", "caution", message, unseen, gate, ("diversity",))]


def _length_drift(evidence: Evidence) -> list[Finding]:
    d, gate = evidence.diagnostics, evidence.gates["length_drift"]
    target, logged = d["length_target"], d["length_behavior"]
    if target is None or not logged or target <= 0:
        return []
    ratio = max(target / logged, logged / target)
    if ratio <= gate:
        return []
    message = f"responses of {target:.0f} tokens on average against {logged:.0f} in the log"
    return [Finding("length_drift", "caution", message, ratio, gate)]


def _weights(evidence: Evidence) -> list[Finding]:
    d = evidence.diagnostics
    found = []
    if d["truncation_raised"]:
        message = f"weights are truncated at {d['truncation']:.3g}, the lowest level that the kept tail allows"
        found.append(Finding("truncation_raised", "info", message, d["truncation"], None))
    if d["zero_weight_draws"]:
        message = f"{d['zero_weight_draws']:,} logged responses are impossible under this policy"
        found.append(Finding("zero_weights", "info", message, float(d["zero_weight_draws"]), None))
    return found


def _rare_reward(evidence: Evidence) -> list[Finding]:
    d, gates = evidence.diagnostics, evidence.gates
    if evidence.bounds.low == evidence.bounds.high:
        return []
    # None stands for a reward that never leaves one end of its range: no unit shows the other side.
    size = d["reward_ess"] or 0.0
    # Where all units together are worth little, that is said already; rare is what is much rarer than that.
    rarer = size < gates["reward_ess_few"] and size < d["ess"] / 4
    if size >= gates["reward_ess"] or (d["ess"] < gates["ess"] and not rarer):
        return []
    if size > 0:
        message = (
            f"{_rare_side(evidence)} rests on {_count(size)} effective units (< {gates['reward_ess']:g}): "
            "an interval from its standard error would be too narrow"
        )
    else:
        message = (
            "every reward that carries weight is at one end of its range: how rare the other end is, no standard error "
            "can say"
        )
    return [Finding(RARE_REWARD, "caution", message, size, gates["reward_ess"], ("utility",))]


def _rare_side(evidence: Evidence) -> str:
    """Name the side of the reward that is rare."""
    bounds = evidence.bounds
    mean = next((e["value"] for e in evidence.summary["utility"] if e["name"] == "sn_tips"), None)
    if mean is None or not math.isfinite(mean):
        return "the reward, or its absence,"
    if mean > (bounds.low + bounds.high) / 2:
        return f"the reward's absence (the reward is {mean:.3g} on average, of at most {bounds.high:g})"
    return f"the reward ({mean:.3g} on average, in a range from {bounds.low:g} to {bounds.high:g})"


def _reward_range(evidence: Evidence) -> list[Finding]:
    bounds = evidence.bounds
    if bounds.low == bounds.high:
        message = f"all rewards equal {bounds.low:g}: no policy can be told from another by utility"
        return [Finding("constant_reward", "caution", message, quantities=("utility",))]
    if bounds.origin != "observed":
        return []
    message = (
        f"the reward range [{bounds.low:g}, {bounds.high:g}] was observed, not declared: "
        "bounded intervals hold if no reward can lie outside (reward_range=)"
    )
    return [Finding("observed_reward_range", "info", message, quantities=("utility",))]


def _value_mix(evidence: Evidence) -> list[Finding]:
    gate, weight = evidence.gates["value_mix"], evidence.diversity_weight
    of_u, of_d = reward_span(evidence.bounds), diversity_span(evidence.summary)
    if of_u is None or of_d is None or weight <= 0:
        return []
    ratio = weight * of_d / of_u
    if 1 / gate <= ratio <= gate:
        return []
    little, much, share = ("D", "U", ratio) if ratio < 1 else ("U", "D", 1 / ratio)
    message = (
        f"V = U + {weight:g} D adds U, which can range over {of_u:g}, and {weight:g} times D, which can range over "
        f"{of_d:.3g}: {little} moves V by at most {share:.1g} of what {much} does, so that V is all but {much} alone"
    )
    return [Finding("value_mix", "caution", message, ratio, gate, ("value",))]


FINDERS: tuple[Callable[[Evidence], list[Finding]], ...] = (
    _overlap,
    _consistency,
    _reach,
    _unseen_clusters,
    _length_drift,
    _weights,
    _rare_reward,
    _reward_range,
    _value_mix,
)
"""What looks for findings. To add one, write a function of the evidence and list it here; its code belongs into
``STEPS`` of ``report/words.py`` and into ``docs/howto-verdict.md``."""


def _count(size: float) -> str:
    return f"{size:.0f}" if size >= 10 else f"{size:.1f}"
