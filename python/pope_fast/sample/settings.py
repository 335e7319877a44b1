"""How a policy is sampled: temperature, truncation and length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pope_fast.errors import PopeError

__all__ = ["Sampling"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """A sampler's parameters; together with a model they are a policy.

    Attributes
    ----------
    temperature : float
        Divides the logits.
    top_k : int
        Only the k most probable tokens; 0 for all.
    top_p : float
        Of these, only the most probable ones that together reach this probability; 1 for all.
    min_p : float
        Of these, only those with at least this share of the most probable token's probability; 0 for all.
    max_new_tokens : int
        Most tokens of a response.

    Notes
    -----
    Truncation follows in this order, each step on what the one before has left, renormalized: the order of
    ``transformers``' ``generate``. Other engines may have another one, and with it another distribution.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise PopeError(
                f"temperature must be above 0, not {self.temperature:g}: a policy without chance (greedy decoding) has "
                "one response per prompt, and no log says how good the others are"
            )
        if self.top_k < 0:
            raise PopeError(f"top_k must be at least 1, or 0 for all tokens, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise PopeError(f"top_p must be above 0 and at most 1, not {self.top_p:g}")
        if not 0 <= self.min_p < 1:
            raise PopeError(f"min_p must be at least 0 and below 1, not {self.min_p:g}")
        if self.max_new_tokens < 1:
            raise PopeError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")

    @property
    def truncates(self) -> bool:
        """Whether some tokens are never drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def to_dict(self) -> dict[str, Any]:
        """Give the parameters for the log's ``sampling`` column."""
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "max_new_tokens": self.max_new_tokens,
        }
