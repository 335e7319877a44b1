"""The worlds of the experiment, and how large everything is: all numbers that decide about the time are here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pope_fast.simulate.text_world import TextWorld

QUESTIONS = 240
PERSPECTIVES = 6
PHRASINGS = 12
TUNING_WORLD = 100


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    base_steps: int
    logger_steps: int
    train_prompts: int
    heldout_prompts: int
    test_prompts: int
    responses: int
    heldout_responses: int
    steps: int
    prompts_per_step: int
    seeds: int
    configurations: int
    logs: int
    log_prompts: tuple[int, ...]
    skill_examples: int


FULL = Size(
    base_steps=600,
    logger_steps=80,
    train_prompts=144,
    heldout_prompts=48,
    test_prompts=48,
    responses=8,
    heldout_responses=16,
    steps=40,
    prompts_per_step=16,
    seeds=5,
    configurations=4,
    logs=50,
    log_prompts=(60, 600),
    skill_examples=500,
)


def make_world(seed: int) -> TextWorld:
    """Return the world of a seed: its own tastes and its own split of the same questions."""
    return TextWorld(seed=seed, n_prompts=QUESTIONS, n_perspectives=PERSPECTIVES, n_phrasings=PHRASINGS)


def split(size: Size) -> dict[str, range]:
    """Questions that the log is trained on, that choices are made on, and that nobody has seen."""
    first, second = size.train_prompts, size.train_prompts + size.heldout_prompts
    return {
        "train": range(first),
        "heldout": range(first, second),
        "test": range(QUESTIONS - size.test_prompts, QUESTIONS),
    }


def majority(world: TextWorld, sharpness: float = 1.0) -> np.ndarray:
    """Answers of a majority-skewed mixture: what the largest groups like, more often curt than polite."""
    style = np.repeat([1.0, 2.0, 1.5], 4)
    shares = world.majority_policy(sharpness).sum(axis=2)
    return world.policy(shares, style)
