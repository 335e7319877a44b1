"""What an evaluation returns: frozen records of estimates, intervals, diagnostics and verdicts.

A number that is not available is ``None``, never NaN, and the record says why in its ``note`` or ``notes``.
Nothing is computed here: the numbers come from the native state, the pages and tables are made in
:mod:`pope_fast.report`, which is imported only when one is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pope_fast.errors import PopeError
from pope_fast.evaluate.findings import (
    ASKED,
    QUANTITIES,
    VERDICT_LEVELS,
    AACalibration,
    BridgeCheck,
    Diagnostics,
    Finding,
    Verdict,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from pope_fast.log import RewardRange

__all__ = [
    "VERDICT_LEVELS",
    "AACalibration",
    "BridgeCheck",
    "Diagnostics",
    "Difference",
    "DiversitySummary",
    "Estimate",
    "Evaluation",
    "EvaluationSettings",
    "Finding",
    "Interval",
    "PolicyValue",
    "VarianceParts",
    "Verdict",
]


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided confidence interval.

    Attributes
    ----------
    low, high
        The ends, in the units of the estimate they belong to.
    level
        Nominal coverage, in (0, 1).
    method
        ``"delta"``, ``"jackknife"``, ``"worst_case_tail"``, ``"robust"``, ``"certified"``, ``"sandwich"`` or ``"t"``.
    """

    low: float
    high: float
    level: float
    method: str

    @property
    def width(self) -> float:
        """``high - low``."""
        return self.high - self.low

    def contains(self, value: float) -> bool:
        """Whether ``value`` lies in the closed interval."""
        return self.low <= value <= self.high

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low, self.level, self.method)

    def __str__(self) -> str:
        return f"[{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True, slots=True)
class Estimate:
    """One estimated quantity.

    Attributes
    ----------
    name
        The estimator, for instance ``"sn_tips"`` or ``"H_3"``.
    value
        The point estimate in ``unit``; ``None`` if it is not available, and then ``note`` says why.
    standard_error
        Standard error over independent units, in ``unit``; ``None`` if not available.
    interval
        The headline interval; ``None`` if no valid one could be formed, and then ``note`` says why.
    intervals
        All intervals that were asked for, by method; ``None`` for one that could not be formed.
    unit
        ``"reward units"``, ``"nats"``, ``"probability"``, ``"clusters"``, ``"cosine distance"`` or
        ``"effective kinds"``.
    note
        What a reader has to know about this number, in a sentence.
    verdict
        Whether the log can answer for this quantity; ``None`` for a number that was not judged.
    """

    name: str
    value: float | None
    standard_error: float | None = None
    interval: Interval | None = None
    intervals: Mapping[str, Interval | None] = field(default_factory=dict)
    unit: str = "reward units"
    note: str | None = None
    verdict: Verdict | None = None

    @property
    def available(self) -> bool:
        """Whether there is a point estimate."""
        return self.value is not None

    def __neg__(self) -> Estimate:
        return replace(
            self,
            value=None if self.value is None else -self.value,
            interval=None if self.interval is None else -self.interval,
            intervals={k: None if v is None else -v for k, v in self.intervals.items()},
        )

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name}: not available" + (f" ({self.note})" if self.note else "")
        if self.interval is None:
            return f"{self.name} {self.value:.4g} (no interval: {self.note or 'none is valid'})"
        return f"{self.name} {self.value:.4g} {self.interval}"


@dataclass(frozen=True, slots=True)
class DiversitySummary:
    """Everything that was estimated about the diversity of one policy.

    Attributes
    ----------
    level
        ``"prompt"`` (within a prompt, averaged) or ``"marginal"`` (over all prompts together).
    measure
        The headline measure, a key of ``measures``: ``"H_3"`` or ``"entropy"``, ``"rao"`` or what was asked for.
    rule
        Why this level and this measure, in a sentence.
    order
        M of H_M; ``None`` if nothing was estimated from clusters within prompts.
    n_units_used, n_units_left_out
        Units with enough responses, and units without.
    measures
        All measures by name; the product form of one from clusters within prompts under ``"<name> (product)"``, the
        control form of one from embeddings under ``"<name> (control)"``.
    sandwich
        Certified bounds on the Shannon entropy within prompts, in nats.
    cluster_masses
        Cluster -> (mass under the target policy, mass under the behavior policy), the first 100 by mass.
    unseen_mass
        Weighted Good-Turing estimate of the mass of clusters that no logged response belongs to.
    """

    level: Literal["prompt", "marginal"]
    measure: str
    rule: str
    order: int | None
    n_units_used: int
    n_units_left_out: int
    measures: Mapping[str, Estimate]
    sandwich: Interval | None = None
    cluster_masses: Mapping[str | int, tuple[float, float]] = field(default_factory=dict)
    unseen_mass: float | None = None


@dataclass(frozen=True, slots=True)
class VarianceParts:
    """Variance of the value estimate V = U + lambda D, taken apart; all in squared reward units.

    Attributes
    ----------
    utility, diversity, covariance
        ``Var(U)``, ``lambda^2 Var(D)`` and ``2 lambda Cov(U, D)``; they add up to ``total``.
    total
        Variance of the value estimate.
    lower_bound, upper_bound
        ``(sd_U -+ lambda sd_D)^2``: bounds that hold whatever the covariance is.
    """

    utility: float
    diversity: float
    covariance: float
    total: float
    lower_bound: float
    upper_bound: float


@dataclass(frozen=True, slots=True)
class PolicyValue:
    """The answer for one target policy.

    Attributes
    ----------
    policy
        Its name.
    value, utility, diversity
        V, U and D with their headline intervals; D is ``None`` if the log has neither clusters nor embeddings.
    diversity_weight
        lambda in V = U + lambda D, in reward units per unit of D.
    utility_estimators
        U by every estimator that the log allows, by name.
    diversity_detail
        Every diversity measure; ``None`` if there is no D.
    variance
        The variance of V taken apart; ``None`` if it is not available.
    groups, welfare
        Utility per annotator group, and its mean, minimum and Nash welfare; empty without a group column.
    diagnostics, verdict
        How well the log covers this policy, and the worst verdict on the quantities asked for; each estimate has its
        own.
    headline_method
        The kind of interval of U shown first: ``"worst_case_tail"``; ``"robust"`` if the overlap is poor or
        the reward rare, ``"certified"`` if it is very rare, ``"delta"`` if the log-probabilities are inconsistent,
        ``"none"`` if no interval is valid.
    notes
        What else a reader has to know, a sentence each.
    bridge
        The check against fresh draws of the policy; ``None`` if there are none.
    """

    policy: str
    value: Estimate
    utility: Estimate
    diversity: Estimate | None
    diversity_weight: float
    utility_estimators: Mapping[str, Estimate]
    diversity_detail: DiversitySummary | None
    variance: VarianceParts | None
    groups: Mapping[str | int, Estimate]
    welfare: Mapping[str, Estimate]
    diagnostics: Diagnostics
    verdict: Verdict
    headline_method: str
    notes: tuple[str, ...] = ()
    bridge: BridgeCheck | None = None

    def estimates(self, quantity: str) -> tuple[Estimate, ...]:
        """Give the estimates of a quantity ("utility", "diversity", "value", "groups" or "welfare"), if there are any.

        Examples
        --------
        >>> import pope_fast as pope
        >>> near = pope.evaluate(pope.demo_log())["near"]
        >>> [estimate.verdict.level for estimate in near.estimates("diversity")]
        ['reliable']
        """
        if quantity == "groups":
            return tuple(self.groups.values())
        if quantity == "welfare":
            return tuple(self.welfare.values())
        one = {"utility": self.utility, "diversity": self.diversity, "value": self.value}.get(quantity)
        return () if one is None else (one,)

    def verdict_of(self, *quantities: str) -> Verdict:
        """Give the worst verdict on these quantities, with every finding once."""
        return worst_verdict(estimate for quantity in quantities for estimate in self.estimates(quantity))

    def __repr__(self) -> str:
        parts = [f"V={_short(self.value)}", f"U={_short(self.utility)}"]
        if self.diversity is not None:
            parts.append(f"D={_short(self.diversity)}")
        return f"<PolicyValue {self.policy!r} {' '.join(parts)} {self.verdict.level}>"


@dataclass(frozen=True, slots=True)
class Difference:
    """Policy ``a`` minus policy ``b`` on the same logged units, so that what they share cancels.

    Attributes
    ----------
    a, b
        The policies' names.
    utility, diversity, value
        Differences in U, D and V; D is ``None`` if the policies have none.
    note
        What a reader has to know, for instance that one of the two is unreliable.
    """

    a: str
    b: str
    utility: Estimate
    diversity: Estimate | None
    value: Estimate
    note: str | None = None

    def estimates(self) -> tuple[Estimate, ...]:
        """Give the differences there are: U, D and V."""
        return tuple(e for e in (self.utility, self.diversity, self.value) if e is not None)

    def __neg__(self) -> Difference:
        return Difference(
            a=self.b,
            b=self.a,
            utility=-self.utility,
            diversity=None if self.diversity is None else -self.diversity,
            value=-self.value,
            note=self.note,
        )

    def __str__(self) -> str:
        return f"{self.a} - {self.b}: {self.value}"


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What an evaluation was asked for; enough to repeat it.

    Attributes
    ----------
    diversity_weight
        lambda in V = U + lambda D.
    level
        Nominal coverage of every interval.
    unit
        What is independent: ``"prompt"``, ``"row"`` or the name of a column.
    reward_range
        The bounds of the reward, and whether they were declared, follow from a boolean or were observed.
    cluster_scope
        ``"log"`` if a cluster means the same in every prompt, ``"prompt"`` if not.
    estimator
        The estimator of U that is shown first.
    thresholds
        The gates of the verdict, by name.
    source
        The log, in words.
    versions
        Versions of what computed this, by name.
    diversity
        The measure that was asked for as D; ``"auto"`` for the rule.
    quantities
        The quantities that the verdicts of the policies are about.
    """

    diversity_weight: float
    level: float
    unit: str
    reward_range: RewardRange
    cluster_scope: str
    estimator: str
    thresholds: Mapping[str, float]
    source: str
    versions: Mapping[str, str]
    diversity: str = "auto"
    quantities: tuple[str, ...] = ASKED


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation(Mapping[str, PolicyValue]):
    """The answer for every target policy of a log: a mapping of policy name to :class:`PolicyValue`.

    ``str(evaluation)`` is a table for the terminal, and a notebook shows a page.

    Attributes
    ----------
    policies
        The answers by policy, in the order of the log.
    settings
        What was asked for.
    behavior
        Mean reward of the log itself, which is the utility of the behavior policy.
    differences
        Paired differences by ``(a, b)``; :meth:`compare` also finds the reverse of a pair.
    warnings
        What was noticed while the log was read.
    """

    policies: Mapping[str, PolicyValue]
    settings: EvaluationSettings
    behavior: Estimate
    differences: Mapping[tuple[str, str], Difference] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __getitem__(self, policy: str) -> PolicyValue:
        return self.policies[policy]

    def __iter__(self) -> Iterator[str]:
        return iter(self.policies)

    def __len__(self) -> int:
        return len(self.policies)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of any policy, with every policy's findings under its name.

        Differences count if they were asked for.
        """
        verdicts = [(name, policy.verdict) for name, policy in self.items()]
        if "differences" in self.settings.quantities:
            verdicts += self._verdicts_of("differences")
        return _together(verdicts)

    def verdict_of(self, quantity: str) -> Verdict:
        """Give the worst verdict on one quantity, over all policies.

        Parameters
        ----------
        quantity
            "utility", "diversity", "value", "groups", "welfare" or "differences".

        Raises
        ------
        PopeError
            If there is no such quantity, or none in this evaluation.
        """
        if quantity not in QUANTITIES:
            raise PopeError(f"there is no quantity {quantity!r}; there are: {', '.join(QUANTITIES)}")
        verdicts = self._verdicts_of(quantity)
        if not verdicts:
            missing = {
                "diversity": "the log has no clusters and no embeddings",
                "differences": "it has one policy",
            }.get(quantity, "the log has no groups")
            raise PopeError(f"this evaluation has no {quantity}: {missing}")
        return _together(verdicts)

    def _verdicts_of(self, quantity: str) -> list[tuple[str, Verdict]]:
        if quantity == "differences":
            return [(f"{d.a} - {d.b}", worst_verdict(d.estimates())) for d in self.differences.values()]
        return [(name, policy.verdict_of(quantity)) for name, policy in self.items() if policy.estimates(quantity)]

    def compare(self, a: str, b: str) -> Difference:
        """Paired difference ``a - b`` of two target policies on the same logged units.

        Parameters
        ----------
        a, b
            Names of two different policies of this evaluation.

        Returns
        -------
        Difference
            Its sign is that of ``a - b``.

        Raises
        ------
        PopeError
            If a name is unknown, or both are the same.
        """
        for name in (a, b):
            if name not in self.policies:
                known = ", ".join(self.policies)
                raise PopeError(f"no policy {name!r} in this evaluation; it has: {known}")
        if a == b:
            raise PopeError(f"cannot compare policy {a!r} with itself")
        if (a, b) in self.differences:
            return self.differences[a, b]
        if (b, a) in self.differences:
            return -self.differences[b, a]
        raise PopeError(f"the difference of {a!r} and {b!r} was not computed in this evaluation")

    def __repr__(self) -> str:
        inside = ", ".join(f"{n}: V={_short(p.value)} {p.verdict.level}" for n, p in self.items())
        return f"<Evaluation of {len(self)} {'policy' if len(self) == 1 else 'policies'}: {inside}>"

    def __str__(self) -> str:
        from pope_fast.report.table import render_text

        return render_text(self)

    def _repr_html_(self) -> str:
        from pope_fast.report.html import render_fragment

        return render_fragment(self)

    def to_dict(self) -> dict[str, Any]:
        """Give everything here as plain dicts, lists, strings and finite numbers, ready for JSON."""
        from pope_fast.report.json import evaluation_to_dict

        return evaluation_to_dict(self)

    def to_json(self) -> dict[str, Any]:
        """Give the evaluation in the shape of lm-evaluation-harness results.

        Returns
        -------
        dict
            ``results``, ``configs``, ``versions``, ``n-samples``, ``config``, ``date`` and ``pope_version``;
            no NaN or infinity in it, so ``json.dumps(..., allow_nan=False)`` accepts it.
        """
        from pope_fast.report.json import harness_results

        return harness_results(self)

    def to_arrow(self) -> pa.Table:
        """Give a table with one row per policy and metric.

        Returns
        -------
        pyarrow.Table
            Columns ``policy``, ``metric``, ``estimator``, ``headline``, ``value``, ``standard_error``,
            ``low``, ``high``, ``level``, ``method``, ``unit``, ``verdict`` and ``note``; null for what is
            not available.
        """
        from pope_fast.report.arrow import evaluation_to_arrow

        return evaluation_to_arrow(self)

    def to_html(self) -> str:
        """Give a self-contained HTML page."""
        from pope_fast.report.html import render_page

        return render_page(self)


def _together(verdicts: Iterable[tuple[str, Verdict]]) -> Verdict:
    """Join verdicts; findings stand under the name of what they were found of."""
    named = list(verdicts)
    findings = (
        replace(finding, message=f"{name}: {finding.message}")
        for name, verdict in named
        for finding in verdict.findings
    )
    level = max((verdict.level for _, verdict in named), key=VERDICT_LEVELS.index, default=VERDICT_LEVELS[0])
    return Verdict(level, Verdict.of(findings).findings)


def worst_verdict(estimates: Iterable[Estimate]) -> Verdict:
    """Give the worst verdict on some estimates, with every finding once."""
    found = (finding for e in estimates if e.verdict is not None for finding in e.verdict.findings)
    return Verdict.of(dict.fromkeys(found))


def _short(estimate: Estimate) -> str:
    return "n/a" if estimate.value is None else f"{estimate.value:.4g}"
