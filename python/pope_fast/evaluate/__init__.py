"""Evaluation of a log: estimates, intervals, diagnostics and verdicts for every target policy."""

from __future__ import annotations

from pope_fast.evaluate.findings import AACalibration, BridgeCheck, Diagnostics, Finding, Verdict
from pope_fast.evaluate.results import (
    Difference,
    DiversitySummary,
    Estimate,
    Evaluation,
    EvaluationSettings,
    Interval,
    PolicyValue,
    VarianceParts,
)
from pope_fast.evaluate.run import DIVERSITIES, ESTIMATORS, evaluate
from pope_fast.evaluate.sensitivity import ClusterSensitivity, PolicySensitivity, cluster_sensitivity
from pope_fast.evaluate.verdict import DEFAULT_THRESHOLDS

__all__ = [
    "DEFAULT_THRESHOLDS",
    "DIVERSITIES",
    "ESTIMATORS",
    "AACalibration",
    "BridgeCheck",
    "ClusterSensitivity",
    "Diagnostics",
    "Difference",
    "DiversitySummary",
    "Estimate",
    "Evaluation",
    "EvaluationSettings",
    "Finding",
    "Interval",
    "PolicySensitivity",
    "PolicyValue",
    "VarianceParts",
    "Verdict",
    "cluster_sensitivity",
    "evaluate",
]
