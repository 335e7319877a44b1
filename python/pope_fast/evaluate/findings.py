"""What the diagnostics measured, what they found, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pope_fast.evaluate.results import Estimate, Interval

Severity = Literal["info", "caution", "unreliable"]
VerdictLevel = Literal["reliable", "caution", "unreliable"]

VERDICT_LEVELS: tuple[VerdictLevel, ...] = ("reliable", "caution", "unreliable")
"""The verdicts, from best to worst."""

QUANTITIES = ("utility", "diversity", "value", "groups", "welfare", "differences")
"""What a finding can concern, and what can have a verdict of its own."""

ASKED = ("utility", "diversity", "value")
"""The quantities that a policy's verdict is about, unless others are asked for."""

# What is made of what: a finding about U is one about V, groups and welfare too.
_MADE_OF: dict[str, frozenset[str]] = {
    "utility": frozenset({"utility", "value", "groups", "welfare"}),
    "diversity": frozenset({"diversity", "value"}),
    "value": frozenset({"value"}),
    "groups": frozenset({"groups", "welfare"}),
    "welfare": frozenset({"welfare"}),
    "differences": frozenset({"differences"}),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the diagnostics found.

    Attributes
    ----------
    code
        Stable short name for programs, for instance ``"low_ess"``.
    severity
        ``"info"`` (good to know), ``"caution"`` or ``"unreliable"``.
    message
        The finding in words, with its figures.
    value, threshold
        What was measured and the gate it was held against; ``None`` where there is no single figure.
    quantities
        What it concerns, of :data:`QUANTITIES`; empty for the whole policy. What concerns U concerns V, groups and
        welfare too, what concerns D concerns V, and what concerns U, D or V of a policy concerns that difference.
    """

    code: str
    severity: Severity
    message: str
    value: float | None = None
    threshold: float | None = None
    quantities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = set(self.quantities).difference(QUANTITIES)
        if unknown:
            raise ValueError(f"a finding cannot concern {sorted(unknown)}; there are {QUANTITIES}")

    def concerns(self, quantity: str) -> bool:
        """Whether it bears on a quantity, one of :data:`QUANTITIES`."""
        return not self.quantities or any(quantity in _MADE_OF[mine] for mine in self.quantities)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the log can answer the question, and why not.

    Attributes
    ----------
    level
        ``"reliable"``, ``"caution"`` or ``"unreliable"``.
    findings
        Everything that was found, the grave ones first.
    """

    level: VerdictLevel
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Verdict:
        """Judge by the worst finding; they are put in order, the grave ones first."""
        gravity = ("unreliable", "caution", "info")
        ordered = tuple(sorted(findings, key=lambda finding: gravity.index(finding.severity)))
        worst = ordered[0].severity if ordered else "info"
        return cls("reliable" if worst == "info" else worst, ordered)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Messages of the findings that are more than information."""
        return tuple(f.message for f in self.findings if f.severity != "info")

    def at_least(self, level: VerdictLevel) -> bool:
        """Whether this verdict is as bad as ``level`` or worse."""
        return VERDICT_LEVELS.index(self.level) >= VERDICT_LEVELS.index(level)

    def __str__(self) -> str:
        return self.level + (": " + "; ".join(self.reasons) if self.reasons else "")


def quantity_verdict(quantity: str, findings: Iterable[Finding], own: Iterable[Finding] = ()) -> Verdict:
    """Judge one quantity of a policy.

    Parameters
    ----------
    quantity
        One of :data:`QUANTITIES`.
    findings
        What was found of the policy; those that concern the quantity count.
    own
        What was found of this quantity alone, for instance of one group.
    """
    return Verdict.of([*(finding for finding in findings if finding.concerns(quantity)), *own])


@dataclass(frozen=True, slots=True)
class AACalibration:
    """What scoring the behavior policy a second time says about the noise of the log-probabilities.

    Attributes
    ----------
    kappa
        Mean of ``exp(noise)``: weights are too large by this factor on average.
    sd_log_noise
        Standard deviation of the noise of a sequence log-probability, in nats.
    share_exact
        Share of rows whose two scores agree exactly.
    """

    kappa: float
    sd_log_noise: float
    share_exact: float


@dataclass(frozen=True, slots=True)
class BridgeCheck:
    """Whether the log and fresh draws of a policy agree: ``E0[w / (1 + w)] = E_pi[1 / (1 + w)]``.

    Attributes
    ----------
    logged, fresh
        The two sides, each between 0 and 1.
    difference, standard_error, interval
        ``logged - fresh``, its standard error over prompts, and its interval. Its size is a lower bound on the share of
        the policy's probability that the log-probs put in the wrong place (total variation distance).
    p_value
        Of the two-sided t-test that the difference is 0.
    tilt, tilt_p_value
        The same difference with responses weighed by how probable they are under both policies, by a number from -1 to
        1: another temperature or truncation shows here. And its p-value.
    paired
        Whether prompts were paired, which takes out what differs between prompts; else it is a two-sample test.
    n_units_logged, n_units_fresh, n_unmatched, n_fresh
        Units compared on either side, prompts with fresh draws that the log does not have (left out if ``paired``), and
        fresh draws compared.
    offset
        By how many nats all log-weights together would have to be too large to explain the difference, to first order.
    detectable_offset
        An error of all log-weights that this check finds four times in five (with the default gate), in nats.
    fresh_log_weight
        Mean log-weight of the fresh draws in nats: a divergence, so never below 0 in expectation.
    sampler_excess
        Mean log-prob of the fresh draws under their sampler less that under the policy as it was scored: 0 if these
        are one, else a divergence. ``None`` if the draws have one of them only.
    on_policy
        Mean reward of the fresh draws: the utility itself, on their prompts. ``None`` without rewards.
    source
        Where the fresh draws come from.
    """

    logged: float
    fresh: float
    difference: float
    standard_error: float
    interval: Interval
    p_value: float
    tilt: float
    tilt_p_value: float
    paired: bool
    n_units_logged: int
    n_units_fresh: int
    n_unmatched: int
    n_fresh: int
    offset: float | None
    detectable_offset: float | None
    fresh_log_weight: Estimate
    sampler_excess: Estimate | None
    on_policy: Estimate | None
    source: str


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """How well the logged data cover the target policy.

    Attributes
    ----------
    n_units, n_rows
        Independent units (prompts, unless asked otherwise) and rows.
    ess, ess_fraction
        Effective sample size in units, and as a share of ``n_units``.
    ess_ceiling
        ``n_units * exp(-KL)``: what the overlap of the two policies allows at best.
    reward_ess
        Effective number of units that the reward rests on, or its absence, whichever is smaller: that of the
        truncated ``w r`` and ``w (1 - r)``, with r rescaled to [0, 1]. ``None`` if every reward is at the same end.
    max_weight_share
        Share of all weight that the largest unit carries.
    mean_weight
        Mean importance weight; 1 in expectation if the target policy is covered.
    k_hat
        Tail index of the weights (generalized Pareto); above .7 a mean cannot be trusted.
    k_hat_p_value
        Chance that a tail as fitted has no larger weight than the largest in the log. Very small: the weights are a
        mixture that the fit takes for a tail.
    missing_mass
        Share of the target policy's probability that was truncated or not found in the log.
    truncation
        The level at which weights were truncated.
    e_value
        Evidence against "the mean weight is at most 1"; large values mean inconsistent log-probabilities.
    kl_target_behavior, kl_behavior_target
        Estimated divergences in nats, both ways.
    mean_log_weight, mean_log_weight_standard_error
        Mean log-weight over rows in nats (never above 0 in expectation), and its standard error over units.
    zero_weight_rows
        Rows that the target policy would never produce.
    length_target, length_behavior
        Mean response length in tokens under either policy; ``None`` without token columns.
    aa
        Calibration of the noise, if the behavior policy was scored twice.
    """

    n_units: int
    n_rows: int
    ess: float | None
    ess_fraction: float | None
    ess_ceiling: float | None
    reward_ess: float | None
    max_weight_share: float | None
    mean_weight: float | None
    k_hat: float | None
    missing_mass: float | None
    truncation: float | None
    e_value: float | None
    kl_target_behavior: float | None
    kl_behavior_target: float | None
    mean_log_weight: float | None
    mean_log_weight_standard_error: float | None
    zero_weight_rows: int
    length_target: float | None = None
    length_behavior: float | None = None
    k_hat_p_value: float | None = None
    aa: AACalibration | None = None
