"""Scoring a log: log-probs of its responses under other models, exact, resumable, with their provenance."""

from __future__ import annotations

from pope_fast.score.metadata import Provenance, read_provenance, with_provenance
from pope_fast.score.policies import ColumnPolicy, HFPolicy, ServerPolicy
from pope_fast.score.run import score

__all__ = [
    "ColumnPolicy",
    "HFPolicy",
    "Provenance",
    "ServerPolicy",
    "read_provenance",
    "score",
    "with_provenance",
]
