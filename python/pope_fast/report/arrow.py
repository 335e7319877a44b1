"""Evaluations as an Arrow table: one row per policy and metric."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pope_fast.evaluate.results import Estimate, Evaluation, PolicyValue

FIELDS: list[pa.Field[Any]] = [
    pa.field("policy", pa.string(), nullable=False),
    pa.field("metric", pa.string(), nullable=False),
    pa.field("estimator", pa.string(), nullable=False),
    pa.field("headline", pa.bool_(), nullable=False),
    pa.field("value", pa.float64()),
    pa.field("standard_error", pa.float64()),
    pa.field("low", pa.float64()),
    pa.field("high", pa.float64()),
    pa.field("level", pa.float64()),
    pa.field("method", pa.string()),
    pa.field("unit", pa.string(), nullable=False),
    pa.field("verdict", pa.string(), nullable=False),
    pa.field("note", pa.string()),
]

SCHEMA = pa.schema(FIELDS)
"""Columns of :func:`evaluation_to_arrow`; null stands for what is not available."""


def evaluation_to_arrow(evaluation: Evaluation) -> pa.Table:
    """Give one row per policy and metric.

    ``metric`` is ``value``, ``utility``, ``diversity``, ``group/<label>`` or ``welfare/<name>``. The first
    row of a metric has ``headline`` true; other estimators of the same quantity follow with false. ``verdict`` is that
    on the quantity of the row.

    Returns
    -------
    pyarrow.Table
        With the columns of :data:`SCHEMA`.
    """
    rows = [row for policy in evaluation.values() for row in _rows(policy)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _rows(policy: PolicyValue) -> Iterator[dict[str, object]]:
    yield _row(policy, "value", policy.value)
    yield _row(policy, "utility", policy.utility)
    for name, estimate in policy.utility_estimators.items():
        if name != policy.utility.name:
            yield _row(policy, "utility", estimate, headline=False, estimator=name)
    if policy.bridge is not None and policy.bridge.on_policy is not None:
        yield _row(policy, "utility", policy.bridge.on_policy, headline=False)
    if policy.diversity is not None:
        yield _row(policy, "diversity", policy.diversity)
    if policy.diversity_detail is not None:
        for name, estimate in policy.diversity_detail.measures.items():
            if policy.diversity is None or name != policy.diversity.name:
                yield _row(policy, "diversity", estimate, headline=False, estimator=name)
    for label, estimate in policy.groups.items():
        yield _row(policy, f"group/{label}", estimate)
    for name, estimate in policy.welfare.items():
        yield _row(policy, f"welfare/{name}", estimate)


def _row(
    policy: PolicyValue,
    metric: str,
    estimate: Estimate,
    *,
    headline: bool = True,
    estimator: str | None = None,
) -> dict[str, object]:
    interval = estimate.interval
    return {
        "policy": policy.policy,
        "metric": metric,
        "estimator": estimator or estimate.name,
        "headline": headline,
        "value": estimate.value,
        "standard_error": estimate.standard_error,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "level": None if interval is None else interval.level,
        "method": None if interval is None else interval.method,
        "unit": estimate.unit,
        "verdict": _level(policy, metric, estimate),
        "note": estimate.note,
    }


def _level(policy: PolicyValue, metric: str, estimate: Estimate) -> str:
    """Give the verdict on an estimate, or on the quantity that it is another estimate of."""
    first = {"utility": policy.utility, "diversity": policy.diversity}.get(metric)
    judged = (e.verdict for e in (estimate, first) if e is not None and e.verdict is not None)
    return next(judged, policy.verdict).level
