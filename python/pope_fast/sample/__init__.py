"""Fresh draws of a policy for the prompts of a log, with their exact log-probs."""

from __future__ import annotations

from pope_fast.sample.run import sample
from pope_fast.sample.settings import Sampling

__all__ = ["Sampling", "sample"]
