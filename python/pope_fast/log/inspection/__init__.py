"""Inputs that look right and are not: what a whole log gives away about how it was made."""

from __future__ import annotations

from pope_fast.log.inspection.head import inspect_head
from pope_fast.log.inspection.inspection import HEAD_ROWS, Inspection, Texts
from pope_fast.log.inspection.sampling import temperature_signs
from pope_fast.log.inspection.signs import REMEDIES, SEVERITIES, Sign

__all__ = ["HEAD_ROWS", "REMEDIES", "SEVERITIES", "Inspection", "Sign", "Texts", "inspect_head", "temperature_signs"]
