"""From a log to an :class:`Evaluation`: one pass over the rows, then everything is read off the merged state."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import combinations
from typing import Any, Literal

import numpy as np

from pope_fast import _core
from pope_fast.cluster.metadata import read_clusters
from pope_fast.errors import PopeError, PopeWarning, SchemaError
from pope_fast.evaluate.bridge import bridge_checks
from pope_fast.evaluate.differences import Side, make_difference
from pope_fast.evaluate.findings import ASKED, QUANTITIES, AACalibration, Finding
from pope_fast.evaluate.fresh import LOGGER
from pope_fast.evaluate.inputs import input_findings
from pope_fast.evaluate.provenance import provenance_findings
from pope_fast.evaluate.records import make_policy_value
from pope_fast.evaluate.results import Difference, Estimate, Evaluation, EvaluationSettings, Interval, PolicyValue
from pope_fast.evaluate.verdict import merge_thresholds
from pope_fast.log import FeedbackLog, LogBatch, RewardRange, read_log
from pope_fast.log.inspection import Inspection
from pope_fast.log.remedies import missing_column

__all__ = ["DIVERSITIES", "ESTIMATORS", "evaluate"]

ESTIMATORS = ("sn_tips", "snips", "tips", "ips", "cv", "psis", "baseline_dr", "dm", "dr", "sndr")
"""Names of the estimators of U."""

DIVERSITIES = ("auto", "h_m", "gini_simpson", "coverage@2", "coverage@3", "coverage@4", "entropy", "rao", "vendi")
"""What the headline diversity can be: by rule; from clusters within prompts (H_M, Gini-Simpson, coverage); the entropy
of the clusters over the whole log; from embeddings (Rao's entropy, the Vendi score of order 2)."""

_FROM_EMBEDDINGS = ("rao", "vendi")

# Every pair of more policies than this is a table nobody reads; the first ones are compared with each other.
_MOST_COMPARED = 12


def evaluate(
    log: Any,
    policies: Mapping[str, str] | Iterable[str] | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    diversity: str = "auto",
    diversity_weight: float = 1.0,
    estimator: str = "sn_tips",
    level: float = 0.95,
    unit: str | None = None,
    reward_range: tuple[float, float] | None = None,
    cluster_scope: Literal["log", "prompt"] | None = None,
    diversity_order: int = 3,
    thresholds: Mapping[str, float] | None = None,
    quantities: Iterable[str] = ASKED,
    aa_policy: str | None = None,
    fresh: Any = None,
    fresh_logger: str = LOGGER,
    threads: int | None = None,
    progress: bool | None = None,
) -> Evaluation:
    """Estimate utility U, diversity D and value ``V = U + lambda D`` of every target policy of a log.

    Parameters
    ----------
    log
        A :class:`FeedbackLog`, or anything :func:`read_log` takes: a path, a glob, an Arrow table, a data frame.
    policies : mapping of name to column, or names, optional
        The target policies; all of the log by default.
    columns : mapping of str to str, optional
        Role -> column, as in :func:`read_log`; not for a log that is open already.
    diversity : str
        The measure that is D, one of :data:`DIVERSITIES` ("gini" is short for "gini_simpson"); by default as below.
        The others that the columns read allow are in ``diversity_detail``.
    diversity_weight : float
        lambda, in reward units per unit of diversity.
    estimator : str
        Estimator of U that is shown first; the others are there as well. Intervals without assumptions on overlap
        come with any of them.
    level : float
        Coverage of every interval.
    unit : str, optional
        What is independent: "prompt" (default), "row", or a column. Every unit counts the same.
    reward_range : (low, high), optional
        Bounds of the reward. Without them the observed ones are used, and the result says so.
    cluster_scope : {"log", "prompt"}, optional
        Whether a cluster label means the same in every prompt. By default what :func:`pope_fast.cluster` wrote into
        the log's metadata, else "log".
    diversity_order : int
        Largest order M of the headline H_M (1 to 3).
    thresholds : mapping of str to float, optional
        Gates of the verdict: see :data:`pope_fast.evaluate.DEFAULT_THRESHOLDS`.
    quantities : iterable of str
        What the verdict of a policy is about, and so of the evaluation: any of "utility", "diversity", "value",
        "groups", "welfare" and "differences". Everything is estimated and has its own verdict all the same.
    aa_policy : str, optional
        Column with the behavior policy's log-probs scored a second time, to calibrate noisy log-probs.
    fresh : log, or mapping of policy to log, optional
        Fresh draws of a target policy, as :func:`pope_fast.sample` makes them, with their log-probs under the policy
        that wrote the log: ``target_logprob/logger``. They are held against the log's log-probs (finding ``bridge``).
    fresh_logger : str
        Another name for that policy in the fresh draws, or the column.
    threads : int, optional
        Threads; by default ``POPE_NUM_THREADS`` or all the container has. Results do not depend on it.
    progress : bool, optional
        Whether to show progress; None shows it on a terminal, after two seconds.

    Returns
    -------
    Evaluation
        A mapping of policy name to :class:`PolicyValue`.

    Raises
    ------
    SchemaError
        If a column, a row or a value of the log is not what it has to be.
    PopeError
        If an option is out of its range.

    Notes
    -----
    The headline diversity is ``H_M`` within prompts if at least half of the units have two or more draws, with the
    largest M <= ``diversity_order`` for which at least 90 % of these have M + 1; otherwise the entropy of the clusters
    over the whole log. Without a column of clusters it is Rao's entropy of the embeddings, if there are any; embeddings
    are read only then, or if "rao" or "vendi" is asked for.

    The headline interval is ``worst_case_tail``; where the verdict on a quantity is ``unreliable`` it is ``robust``,
    which assumes nothing about overlap. An interval that is wider than half of what its quantity can range over makes
    the verdict ``unreliable`` too. Where the reward is rare (finding ``rare_reward``), that of U and V is ``robust``
    too, or ``certified`` if hardly any unit shows its rare side.

    Examples
    --------
    >>> import pope_fast as pope
    >>> evaluation = pope.evaluate(pope.demo_log(), diversity_weight=0.5)
    >>> evaluation["near"].utility.interval.contains(evaluation["near"].utility.value)
    True
    """
    if estimator not in ESTIMATORS:
        raise PopeError(f"there is no estimator {estimator!r}; there are: {', '.join(ESTIMATORS)}")
    if cluster_scope not in ("log", "prompt", None):
        raise PopeError(f"cluster_scope must be 'log' or 'prompt', not {cluster_scope!r}")
    diversity = {"gini": "gini_simpson"}.get(diversity, diversity)
    if diversity not in DIVERSITIES:
        raise PopeError(f"there is no diversity {diversity!r}; there are: {', '.join(DIVERSITIES)}")
    if not 1 <= diversity_order < 1 << 31:
        raise PopeError(f"diversity_order must be a small positive integer, not {diversity_order}")
    gates = merge_thresholds(thresholds)
    asked_for = _asked_for(quantities)
    options = {
        "level": level,
        "diversity": diversity,
        "diversity_weight": diversity_weight,
        "diversity_order": diversity_order,
    }
    opened = _open(log, policies, columns, reward_range, unit)
    unit = opened.unit if unit is None else unit
    names = _names(opened, policies)
    scope, scope_warnings = _scope(opened, cluster_scope)
    bounds = _range(opened, reward_range)
    job = _Job(opened, names, _usable(bounds), unit, diversity, scope, aa_policy, threads)
    state, aa, inspection = job.read(progress)
    snapshot = state.snapshot()
    labels = {"cluster": opened.cluster_labels, "group": opened.group_labels}
    calibration = aa.result() if aa is not None else None
    bridges = (
        {}
        if fresh is None
        else bridge_checks(opened, fresh, names, logger=fresh_logger, unit=unit, level=level, progress=progress)
    )
    origins = provenance_findings(opened.reader.file_schemas(), opened.columns, names)
    noticed = input_findings(opened, inspection, names, bounds)
    found = {name: [*origins[name], *noticed[name]] for name in names}
    options["kappa"] = 1.0 if calibration is None else calibration.kappa
    summaries = {name: snapshot.summary(name, **options) for name in names}
    results = {
        name: make_policy_value(
            summaries[name],
            estimator=estimator,
            level=level,
            diversity_weight=diversity_weight,
            gates=gates,
            labels=labels,
            calibration=calibration,
            bounds=bounds,
            asked=diversity,
            bridge=bridges.get(name),
            found=found[name],
            quantities=asked_for,
        )
        for name in names
    }
    settings = EvaluationSettings(
        diversity_weight=diversity_weight,
        level=level,
        unit=unit,
        reward_range=bounds,
        cluster_scope=scope,
        estimator=estimator,
        thresholds=gates,
        source=opened.source,
        versions=_versions(),
        diversity=diversity,
        quantities=asked_for,
    )
    return Evaluation(
        policies=results,
        settings=settings,
        behavior=_behavior(snapshot.behavior(level=level), level),
        differences=_differences(snapshot, results, summaries, options, gates, bounds),
        warnings=(*opened.warnings, *scope_warnings, *_warn_of(found)),
    )


def _asked_for(quantities: Iterable[str]) -> tuple[str, ...]:
    asked = (quantities,) if isinstance(quantities, str) else tuple(dict.fromkeys(quantities))
    for name in asked:
        if name not in QUANTITIES:
            raise PopeError(f"there is no quantity {name!r}; there are: {', '.join(QUANTITIES)}")
    if not asked:
        raise PopeError(f"name at least one quantity: {', '.join(QUANTITIES)}")
    return asked


def _warn_of(found: Mapping[str, list[Finding]]) -> list[str]:
    """Issue and return what is noted of the log but changes no verdict, and so stands nowhere else."""
    said: dict[str, list[str]] = {}
    for name, findings in found.items():
        for finding in findings:
            if finding.severity == "info":
                said.setdefault(finding.message, []).append(name)
    messages = [f"{', '.join(names)}: {message}" for message, names in said.items()]
    for message in messages:
        warnings.warn(message, PopeWarning, stacklevel=3)
    return messages


def _open(
    log: Any,
    policies: Any,
    columns: Mapping[str, str] | None,
    reward_range: tuple[float, float] | None,
    unit: str | None,
) -> FeedbackLog:
    if isinstance(log, FeedbackLog):
        if columns is not None:
            raise PopeError("columns= belongs to read_log where the log is opened already")
        return log
    if policies is not None and not isinstance(policies, Mapping):
        policies = list(policies)
    return read_log(log, columns=columns, policies=policies, reward_range=reward_range, unit=unit or "prompt")


def _scope(log: FeedbackLog, asked: Literal["log", "prompt"] | None) -> tuple[Literal["log", "prompt"], list[str]]:
    """Return whether a label means the same in every prompt, as asked for or as the log says, and what to warn of."""
    column = log.columns.get("cluster")
    info = None if column is None else read_clusters(log.schema).get(column)
    if asked is None:
        return ("log" if info is None else info.scope), []
    if asked == "prompt" or info is None or info.scope == "log":
        return asked, []
    message = (
        f"column {column!r} was clustered within each prompt: its labels mean something else in every prompt, and are "
        "compared across prompts all the same, because cluster_scope is 'log'"
    )
    warnings.warn(message, PopeWarning, stacklevel=3)
    return asked, [message]


def _names(log: FeedbackLog, policies: Mapping[str, str] | Iterable[str] | None) -> list[str]:
    if policies is None:
        names = list(log.policies)
    elif isinstance(policies, str):
        names = [policies]
    else:
        names = list(policies)
    for name in names:
        if name not in log.policies:
            known = ", ".join(log.policies) or "none"
            raise PopeError(f"the log has no target policy {name!r}; it has: {known}")
    if len(set(names)) < len(names):
        raise PopeError("a policy is named twice")
    if not names:
        raise missing_column("target_logprob", log.schema.names)
    return names


def _range(log: FeedbackLog, declared: tuple[float, float] | None) -> RewardRange:
    if declared is None:
        return log.reward_range()
    low, high = map(float, declared)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise PopeError(f"reward_range must be finite with low < high, not [{low}, {high}]")
    return RewardRange(low, high, "declared")


def _usable(bounds: RewardRange) -> tuple[float, float]:
    """Bounds with some room between them: equal observed rewards still need a scale."""
    return (bounds.low, bounds.high if bounds.high > bounds.low else bounds.low + 1.0)


@dataclass
class _AA:
    """Noise of the log-probs from the behavior policy scored twice, over rows."""

    state: _core.State
    column: str
    exact: int = 0
    rows: int = 0

    def add(self, batch: LogBatch, threads: int | None) -> None:
        again = batch.aa_logprob
        assert again is not None
        count = _double(batch.count)
        self.state.update(
            None,
            batch.behavior_logprob,
            [again],
            batch.reward,
            count=count,
            first_row=batch.first_row,
            threads=threads,
        )
        self.exact += int(np.count_nonzero(again == batch.behavior_logprob))
        self.rows += len(batch)

    def result(self) -> AACalibration:
        d = self.state.snapshot().summary("again")["diagnostics"]
        error = d["mean_log_weight_standard_error"]
        if error is None:
            raise SchemaError(
                "scored again, the behavior policy gives -inf to a response that it wrote",
                column=self.column,
                remedy="score it with the distribution that was sampled from",
            )
        spread = error * float(d["n_draws"]) ** 0.5
        return AACalibration(kappa=d["mean_weight"], sd_log_noise=spread, share_exact=self.exact / self.rows)


_States = tuple[_core.State, _AA | None, Inspection]


@dataclass
class _Job:
    """One pass over a log into a state."""

    log: FeedbackLog
    policies: list[str]
    bounds: tuple[float, float]
    unit: str
    diversity: str
    cluster_scope: str
    aa_policy: str | None
    threads: int | None
    roles: list[str] = field(init=False)

    def __post_init__(self) -> None:
        optional = ("cluster", "group", "count", "num_tokens")
        self.roles = [role for role in optional if self.log.has(role)]
        means = (f"baseline_mean/{name}" for name in self.policies)
        if self.log.has("baseline") and all(self.log.has(mean) for mean in means):
            self.roles.append("baseline")
        if self._wants_embeddings():
            self.roles.append("embedding")

    def _wants_embeddings(self) -> bool:
        """Whether D is to come from embeddings, which make rows a hundred times as large."""
        if self.diversity == "auto":
            return self.log.has("embedding") and not self.log.has("cluster") and self.unit != "row"
        if self.diversity not in _FROM_EMBEDDINGS:
            return False
        asked = f"asked for as diversity {self.diversity!r}"
        if self.unit == "row":
            raise PopeError(f"{asked}: the responses of a unit are compared, and with unit='row' it has only one")
        if not self.log.has("embedding"):
            raise missing_column("embedding", self.log.schema.names, why=asked)
        return True

    def read(self, progress: bool | None) -> _States:
        return self.log.fold(
            self.start,
            self.step,
            self.roles,
            unit=self.unit,
            policies=self.policies,
            aa_policy=self.aa_policy,
            progress=progress,
        )

    def start(self) -> _States:
        state = _core.State(
            self.policies,
            self.bounds,
            row_units=self.unit == "row",
            has_cluster="cluster" in self.roles,
            has_group="group" in self.roles,
            has_tokens="num_tokens" in self.roles,
            has_baseline="baseline" in self.roles,
            has_embedding="embedding" in self.roles,
            cluster_scope=self.cluster_scope,
        )
        inspection = Inspection(self.policies, prompts=self.unit == "prompt")
        if self.aa_policy is None:
            return state, None, inspection
        aa = _AA(_core.State(["again"], self.bounds, row_units=True), self.aa_policy)
        return state, aa, inspection

    def step(self, states: _States, batch: LogBatch) -> None:
        state, aa, inspection = states
        means = batch.baseline_mean
        state.update(
            batch.unit_key,
            batch.behavior_logprob,
            [batch.target_logprob[name] for name in self.policies],
            batch.reward,
            cluster=batch.cluster,
            group=batch.group,
            count=_double(batch.count),
            num_tokens=_double(batch.num_tokens),
            baseline=_double(batch.baseline) if "baseline" in self.roles else None,
            baseline_means=[_required(means[name]) for name in self.policies]
            if means is not None and "baseline" in self.roles
            else None,
            embedding=None if batch.embedding is None else np.ascontiguousarray(batch.embedding),
            first_row=batch.first_row,
            threads=self.threads,
        )
        if aa is not None:
            aa.add(batch, self.threads)
        inspection.add(batch, checked=True)


def _double(values: Any) -> Any:
    return None if values is None else np.ascontiguousarray(values, dtype=np.float64)


def _required(values: Any) -> Any:
    return np.ascontiguousarray(values, dtype=np.float64)


def _behavior(summary: Mapping[str, Any], level: float) -> Estimate:
    ends = summary["interval"]
    interval = Interval(ends["low"], ends["high"], level, "delta")
    return Estimate(
        name="mean",
        value=summary["value"],
        standard_error=summary["standard_error"],
        interval=interval,
        intervals={"delta": interval},
    )


def _differences(
    snapshot: _core.Snapshot,
    results: Mapping[str, PolicyValue],
    summaries: Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Any],
    gates: Mapping[str, float],
    bounds: RewardRange,
) -> dict[tuple[str, str], Difference]:
    compared = list(results)[:_MOST_COMPARED]
    if len(compared) < 2:
        return {}
    level = options["level"]
    strict = cache(lambda name: snapshot.summary(name, **{**options, "level": (1.0 + level) / 2.0}))
    sides = {name: Side(results[name], summaries[name], partial(strict, name)) for name in compared}
    records = snapshot.differences(compared, **{key: value for key, value in options.items() if key != "kappa"})
    return {
        (a, b): make_difference(record, level, sides[a], sides[b], gates=gates, bounds=bounds)
        for (a, b), record in zip(combinations(compared, 2), records, strict=True)
    }


def _versions() -> dict[str, str]:
    import pyarrow

    return {
        "pope_fast": _core.build_info()["version"],
        "numpy": np.__version__,
        "pyarrow": pyarrow.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
