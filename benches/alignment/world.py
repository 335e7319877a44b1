"""The worlds of the experiment, its sizes (which decide about the time), and exact values of policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pope_fast.simulate.exact import diversity_truth
from pope_fast.simulate.text_world import TextWorld

QUESTIONS = 240
PERSPECTIVES = 6
PHRASINGS = 12
DRAWS = 4
"""m of coverage@m: how many different perspectives a reader of so many answers sees."""

FIRST_SEED = 10
"""First of the worlds that are reported. Those before it were looked at while the experiment was made."""

TUNING_SEED = 100
"""World on which every method chooses among its configurations; none of the worlds that are reported."""


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes
    ----------
    base_steps, logger_steps : int
        Steps of pre-training, and of fine-tuning a logger; 64 texts each.
    train, heldout, test : int
        Questions that are trained on, that choices are made on, and that no method has seen.
    responses, heldout_responses : int
        Logged responses to a question of the first two kinds.
    steps, batch : int
        Steps of alignment, and questions in each.
    seeds : int
        Worlds: each has its own tastes, logger, log and order of training.
    configurations : int
        Settings that every method may choose from.
    methods : tuple of str
        Methods to be compared; all of them if empty.
    logs : int
        Logs of each size in the evaluation part.
    log_prompts : tuple of int
        Their sizes, in prompts of 8 responses.
    fresh : int
        Fresh responses to each test question, to check the exact values.
    skill_examples : int
        Examples of each unrelated skill, and held-out texts.
    """

    base_steps: int
    logger_steps: int
    train: int
    heldout: int
    test: int
    responses: int
    heldout_responses: int
    steps: int
    batch: int
    seeds: int
    configurations: int
    methods: tuple[str, ...]
    logs: int
    log_prompts: tuple[int, ...]
    fresh: int
    skill_examples: int


FULL = Size(
    base_steps=600,
    logger_steps=60,
    train=128,
    heldout=64,
    test=48,
    responses=8,
    heldout_responses=16,
    steps=60,
    batch=12,
    seeds=6,
    configurations=4,
    methods=(),
    logs=50,
    log_prompts=(60, 600),
    fresh=16,
    skill_examples=400,
)

QUICK = Size(
    base_steps=20,
    logger_steps=4,
    train=12,
    heldout=8,
    test=3,
    responses=8,
    heldout_responses=8,
    steps=3,
    batch=4,
    seeds=2,
    configurations=1,
    methods=("rwr", "dpo", "pope 0", "pope 0.1"),
    logs=3,
    log_prompts=(60,),
    fresh=4,
    skill_examples=20,
)


def make_world(seed: int) -> TextWorld:
    """Return the world of a seed: its own tastes and its own split of the same questions."""
    return TextWorld(seed=seed, n_prompts=QUESTIONS, n_perspectives=PERSPECTIVES, n_phrasings=PHRASINGS)


def questions(size: Size) -> dict[str, range]:
    """Questions by what they are used for."""
    return {
        "train": range(size.train),
        "heldout": range(size.train, size.train + size.heldout),
        "test": range(QUESTIONS - size.test, QUESTIONS),
    }


def majority(world: TextWorld) -> np.ndarray:
    """Answers of a majority-skewed mixture: what the largest groups like; more often plain or curt than polite."""
    shares = world.majority_policy(1.0).sum(axis=2)
    return world.policy(shares, np.repeat([1.0, 2.0, 1.5], 4))


def exact_values(world: TextWorld, prompts: Sequence[int], menu: np.ndarray) -> dict[str, float]:
    """Exact values of a policy on some questions.

    Parameters
    ----------
    world : TextWorld
        The world.
    prompts : sequence of int
        The questions.
    menu : ndarray, shape (len(prompts), n_perspectives * n_phrasings)
        Probability of each response on the menu; what is missing from 1 is unclear text.

    Returns
    -------
    dict
        ``utility``; ``worst`` and ``nash`` over groups (Nash weighted by their shares); ``entropy`` in nats,
        ``coverage`` (perspectives in 4 draws) and ``perspectives`` (exp of the entropy) within questions, of the
        perspectives alone; ``H_3`` with unclear text as a cluster of its own, as in the log; ``unclear``, its mass.
    """
    upvote = world.upvote[list(prompts)].reshape(len(menu), -1, len(world.groups))
    rest = np.maximum(1.0 - menu.sum(axis=1), 0.0)
    groups = np.einsum("xy,xyg->g", menu, upvote) / len(menu) + rest.mean() * world.unclear_upvote
    q = menu.reshape(len(menu), world.n_perspectives, -1).sum(axis=2)
    entropy = float(-np.sum(q * np.log(np.maximum(q, 1e-300)), axis=1).mean())
    return {
        "utility": float(groups @ world.population),
        "worst": float(groups.min()),
        "nash": float(np.exp(np.log(groups) @ world.population)),
        "entropy": entropy,
        "perspectives": float(np.exp(entropy)),
        "coverage": float((1.0 - (1.0 - q) ** DRAWS).sum(axis=1).mean()),
        "H_3": diversity_truth(np.column_stack([q, rest]))["H_3"],
        "unclear": float(rest.mean()),
    }


def divergence(menu: np.ndarray, other: np.ndarray) -> float:
    """KL divergence in nats of one policy's answers from another's; unclear texts count as one answer."""
    p = np.column_stack([menu, np.maximum(1.0 - menu.sum(axis=1), 1e-12)])
    q = np.column_stack([other, np.maximum(1.0 - other.sum(axis=1), 1e-12)])
    return float(np.sum(p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300))), axis=1).mean())
