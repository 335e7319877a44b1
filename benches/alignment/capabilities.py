"""What a model can still do: held-out texts of the pre-training mixture, copying, adding."""

from __future__ import annotations

from typing import Any

from pope_fast.simulate.text_models import accuracy, adding, copying, mixture, perplexity, sentences
from pope_fast.simulate.text_world import TextWorld

HELD_OUT_SEED = 9_000

LIMIT = 0.02
"""Relative change that is tolerated."""


def measure(model: Any, tokenizer: Any, world: TextWorld, examples: int) -> dict[str, float]:
    """Measure the capabilities of a model.

    Returns
    -------
    dict
        ``other_perplexity``: per token of held-out texts of the mixture that are not answers to questions (these are
        what alignment changes on purpose). ``mixture_perplexity``: of the whole mixture, answers included.
        ``copying``, ``adding``: accuracies.
    """
    seed = HELD_OUT_SEED
    third = max(1, examples // 3)
    other = [*copying(third, seed), *adding(third, seed), *sentences(third, seed)]
    return {
        "other_perplexity": perplexity(model, tokenizer, other),
        "mixture_perplexity": perplexity(model, tokenizer, mixture(world, examples, seed)),
        "copying": accuracy(model, tokenizer, copying(examples, seed + 1)),
        "adding": accuracy(model, tokenizer, adding(examples, seed + 1)),
    }


def changes(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Relative change of each capability; positive is better (a lower perplexity, a higher accuracy)."""
    return {
        name: (before[name] - after[name] if "perplexity" in name else after[name] - before[name]) / before[name]
        for name in before
        if before[name] > 0
    }
