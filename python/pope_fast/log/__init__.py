"""Feedback logs: reading, checking and turning them into arrays; the only place where input is coerced."""

from __future__ import annotations

from pope_fast.log.batches import LogBatch
from pope_fast.log.columns import ColumnMap, Fault
from pope_fast.log.feedback_log import FeedbackLog, ScatteredRowsError
from pope_fast.log.opening import read_log
from pope_fast.log.ranges import RewardRange
from pope_fast.log.validation import validate
from pope_fast.log.validation_report import ValidationReport

__all__ = [
    "ColumnMap",
    "Fault",
    "FeedbackLog",
    "LogBatch",
    "RewardRange",
    "ScatteredRowsError",
    "ValidationReport",
    "read_log",
    "validate",
]
