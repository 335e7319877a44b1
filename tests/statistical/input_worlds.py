"""Logs of many kinds that are right, and the mistakes that make them wrong: columns in memory, quickly drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pope_fast.log import LogBatch
from pope_fast.log.inspection import Inspection, Sign, Texts
from pope_fast.log.scatter import mixed_keys

Array = NDArray[Any]
Rng = np.random.Generator


@dataclass(frozen=True)
class World:
    """A log in memory; lengths and texts are there only in some."""

    unit: Array
    behavior: Array
    target: Array
    reward: Array
    cluster: Array
    length: Array | None = None
    text: Array | None = None
    text_length: Array | None = None

    def __len__(self) -> int:
        return len(self.unit)

    def take(self, rows: Array) -> World:
        """Give some of the rows, in any order and number."""
        return replace(self, **{name: values[rows] for name, values in vars(self).items() if values is not None})

    def batches(self, edges: list[int]) -> list[LogBatch]:
        """Cut the log into batches."""
        return [
            LogBatch(
                unit_key=self.unit[start:stop],
                behavior_logprob=self.behavior[start:stop],
                target_logprob={"new": self.target[start:stop]},
                reward=self.reward[start:stop],
                cluster=self.cluster[start:stop],
                num_tokens=None if self.length is None else self.length[start:stop].astype(float),
                first_row=start,
            )
            for start, stop in zip([0, *edges], [*edges, len(self)], strict=True)
        ]

    def inspect(self, edges: list[int] | None = None, *, prompts: bool = True) -> tuple[Inspection, Inspection | None]:
        """Look at the log, and at its head with texts if it has some."""
        whole = Inspection(["new"], prompts=prompts)
        for batch in self.batches(edges or []):
            whole.add(batch)
        if self.text is None:
            return whole, None
        head = Inspection(["new"], prompts=prompts)
        for batch in self.batches([]):
            head.add(batch, Texts(self.text, self.text_length))
        return whole, head

    def signs(self, **options: Any) -> list[Sign]:
        """Give what is noticed about the log."""
        whole, head = self.inspect(**options)
        columns = {"behavior_logprob": "behavior_logprob", "target_logprob/new": "new", "reward": "reward"}
        return whole.signs(columns, head=head)

    def codes(self, **options: Any) -> set[str]:
        """Give the codes of what is noticed."""
        return {sign.code for sign in self.signs(**options)}


def _prompts(rng: Rng, n: int, k: int | None = None) -> tuple[Array, int]:
    """Draw how many responses a prompt has, and their prompts: one, few, or unequally many."""
    k = int(rng.choice([1, 2, 4, 8])) if k is None else k
    counts = rng.integers(1, 2 * k, n) if rng.random() < 0.3 else np.full(n, k)
    unit = np.repeat(rng.permutation(10 * n)[:n], counts)
    return unit, int(counts.sum())


def reward(rng: Rng, n: int) -> Array:
    """Draw rewards of one of many kinds."""
    kinds: list[Callable[[], Array]] = [
        lambda: rng.random(n) < rng.choice([0.01, 0.05, 0.3, 0.5, 0.9]),
        lambda: rng.choice(5, n, p=rng.dirichlet(np.full(5, 0.8))) + 1,
        lambda: rng.choice([-1, 0, 1], n, p=[0.05, 0.45, 0.5]),
        lambda: rng.choice([-1, 1], n),
        lambda: rng.choice([0, 0.5, 1], n, p=[0.45, 0.1, 0.45]),
        lambda: rng.integers(0, 11, n),
        lambda: rng.integers(0, 101, n),
        lambda: rng.normal(0, rng.choice([0.1, 1, 10]), n),
        lambda: rng.random(n),
        lambda: rng.beta(0.5, 2, n).round(2),
        lambda: rng.zipf(rng.choice([1.5, 2, 3, 4]), n).astype(float),
        lambda: rng.poisson(rng.choice([0.1, 1, 5]), n),
        lambda: rng.geometric(rng.choice([0.2, 0.5, 0.9]), n) - 1,
        lambda: rng.pareto(rng.choice([1.0, 2.0, 3.0]), n),
        lambda: rng.lognormal(0, rng.choice([0.5, 2.0]), n),
        lambda: np.maximum(rng.normal(0.5, 1, n), 0),
    ]
    return np.asarray(kinds[rng.integers(len(kinds))](), dtype=np.float64)


def language_model(rng: Rng, n: int = 500, *, k: int | None = None, known: int | None = None) -> World:
    """Responses of a language model: long, and never twice the same."""
    unit, rows = _prompts(rng, n, k)
    tokens = np.maximum(rng.lognormal(rng.uniform(2.5, 5.5), rng.uniform(0.3, 0.8), rows), 2).astype(int)
    # Responses that are likely would come twice: that is the world of short answers.
    behavior = -tokens * rng.gamma(20, rng.uniform(0.2, 1.2) / 20, rows) - rng.uniform(10, 12, rows)
    drift = rng.uniform(0.02, 0.15) * np.sqrt(tokens)
    drift *= min(1.0, 1.5 / np.median(drift))
    ratio = drift * rng.normal(size=rows) - drift**2 / 2
    return World(
        unit,
        behavior,
        np.minimum(behavior + ratio, 0),
        reward(rng, rows),
        rng.integers(0, 5, rows),
        **_measured(rng, tokens, rng.permutation(rows), known),
    )


def rounded(rng: Rng, n: int = 500) -> World:
    """The same, in few digits."""
    world = language_model(rng, n)
    how = rng.integers(5)

    def short(values: Array) -> Array:
        if how < 3:
            return np.round(values, how + 1)
        if how == 3:
            return values.astype(np.float16).astype(np.float64)
        # bfloat16: the leading half of a float32
        return (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)

    return replace(world, behavior=short(world.behavior), target=short(world.target))


def _measured(rng: Rng, tokens: Array, texts: Array, known: int | None = None) -> dict[str, Array]:
    """Give nothing, lengths, texts or both."""
    kind = rng.integers(4) if known is None else known
    if kind == 0:
        return {}
    if kind == 1:
        return {"length": tokens}
    characters = (tokens * rng.uniform(3.0, 5.0, len(tokens))).astype(int)
    found = {"text": mixed_keys(texts.astype(np.int64)), "text_length": characters}
    return found if kind == 2 else {**found, "length": tokens}


def _drawn(rng: Rng, probabilities: Array, unit: Array) -> Array:
    """Draw one column for each row from the row of probabilities that belongs to its prompt."""
    edges = np.cumsum(probabilities, axis=1)
    return (
        (rng.random(len(unit))[:, None] > edges[unit] / edges[unit][:, -1:])
        .sum(axis=1)
        .clip(max=probabilities.shape[1] - 1)
    )


def _menu(rng: Rng, n: int, ours: Array, theirs: Array, lengths: Array) -> World:
    """Draw from tables of probabilities, a row for each prompt."""
    keys, _ = _prompts(rng, n)
    _, unit = np.unique(keys, return_inverse=True)
    item = _drawn(rng, ours, unit)
    with np.errstate(divide="ignore"):
        behavior, target = np.log(ours[unit, item]), np.log(theirs[unit, item])
    texts = unit * ours.shape[1] + item
    quality = rng.random(ours.shape)[unit, item]
    given = (reward(rng, len(unit)), quality, (rng.random(len(unit)) < quality).astype(float))
    return World(
        keys,
        behavior,
        target,
        given[rng.integers(3)],
        item % 5,
        **_measured(rng, lengths[unit, item].astype(int), texts),
    )


def _softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def menu(rng: Rng, n: int = 500) -> World:
    """A menu that is the same for all, chosen from uniformly or not."""
    size = int(rng.choice([2, 3, 11, 80]))
    ours = np.full((1, size), 1 / size) if rng.random() < 0.5 else _softmax(rng.normal(size=(1, size)))
    theirs = _softmax(rng.normal(scale=0.7, size=(1, size)))
    lengths = rng.integers(5, 300, (1, size))
    return _menu(rng, n, *(np.repeat(table, n, axis=0) for table in (ours, theirs, lengths)))


def contextual(rng: Rng, n: int = 500) -> World:
    """A menu whose probabilities depend on the prompt; some of its items may have equal scores."""
    size = int(rng.choice([2, 5, 20]))
    features = rng.normal(size=(n, size))
    if rng.random() < 0.5:
        features = np.round(features)
    ours, theirs = _softmax(rng.uniform(0.2, 2) * features), _softmax(rng.uniform(0.2, 2) * features)
    return _menu(rng, n, ours, theirs, rng.integers(5, 300, (n, size)))


def greedy(rng: Rng, n: int = 500) -> World:
    """An epsilon-greedy logger, with many ties, and a policy that never or hardly ever explores."""
    size = int(rng.choice([2, 5, 20]))
    best = rng.integers(0, size, n)
    epsilon, other = rng.choice([0.05, 0.3, 1.0]), rng.choice([0.0, 0.1])
    ours, theirs = np.full((n, size), epsilon / size), np.full((n, size), other / size)
    ours[np.arange(n), best] += 1 - epsilon
    theirs[np.arange(n), best] += 1 - other
    return _menu(rng, n, ours, theirs, rng.integers(5, 300, (n, size)))


def short_answers(rng: Rng, n: int = 500) -> World:
    """A language model that answers in a few words: some answers come again and again."""
    size = 60
    length = rng.integers(1, 9, (n, size))
    ours = _softmax(-length * rng.uniform(0.4, 1.5) + rng.normal(scale=1.0, size=(n, size)))
    theirs = _softmax(np.log(ours) + rng.normal(scale=0.4, size=(n, size)))
    return _menu(rng, n, ours, theirs, length)


def slates(rng: Rng, n: int = 500) -> World:
    """Rankings: several choices in a row, each from a menu, with probabilities like those of a text."""
    unit, rows = _prompts(rng, n)
    slots, size = int(rng.integers(3, 9)), int(rng.choice([10, 50]))
    uniform = rng.random() < 0.5
    scores = np.zeros((1, size)) if uniform else np.round(rng.normal(size=(1, size)), 1)
    ours, theirs = _softmax(scores)[0], _softmax(np.round(rng.normal(scale=0.3, size=(1, size)), 1))[0]
    items = rng.choice(size, (rows, slots), p=ours)
    behavior, target = np.log(ours)[items].sum(axis=1), np.log(theirs)[items].sum(axis=1)
    texts = (items.astype(np.uint64) * np.uint64(size) ** np.arange(slots, dtype=np.uint64)).sum(axis=1)
    return World(
        unit, behavior, target, reward(rng, rows), items[:, 0] % 4, **_measured(rng, np.full(rows, slots), texts)
    )


RIGHT: tuple[Callable[[Rng], World], ...] = (
    language_model,
    rounded,
    menu,
    contextual,
    greedy,
    short_answers,
    slates,
)


def averaged(rng: Rng, which: str, n: int = 500, *, k: int | None = None) -> World:
    """Divide the log-probs of a language model by the number of tokens: of both policies, or of one."""
    world = language_model(rng, n, k=k, known=1)
    tokens = world.length
    assert tokens is not None
    # The constant part of these log-probs is that of no token; a mean has none of it.
    behavior, target = (np.minimum(values + 10, -0.05) for values in (world.behavior, world.target))
    if which in ("both", "behavior"):
        behavior = behavior / tokens
    if which in ("both", "target"):
        target = target / tokens
    wrong = replace(world, behavior=behavior, target=target)
    if rng.random() < 0.5:
        return wrong
    characters = (tokens * rng.uniform(3.0, 5.0, len(tokens))).astype(int)
    return replace(wrong, length=None, text=np.arange(len(tokens), dtype=np.uint64), text_length=characters)


def _copies(world: World, how: str) -> World:
    rows = np.arange(len(world))
    if how == "in place":
        return world.take(np.repeat(rows, 2))
    twice = world.take(np.tile(rows, 3 if how == "three files" else 2))
    if how != "other prompts":
        return twice
    unit = twice.unit.copy()
    unit[len(world) :] += 1_000_003
    return replace(twice, unit=unit)


def _retried(rng: Rng, share: float = 0.02) -> World:
    world = language_model(rng, k=4)
    rows = np.arange(len(world))
    return world.take(np.sort(np.concatenate([rows, rng.choice(rows, int(share * len(rows)), replace=False)])))


def _marked(rng: Rng, rewards: Callable[[int], Array], value: float, times: int) -> World:
    world = language_model(rng)
    values = np.asarray(rewards(len(world)), dtype=np.float64)
    values[rng.choice(len(values), times, replace=False)] = value
    return replace(world, reward=values)


def _without_copies(rng: Rng) -> World:
    """Short answers, of which each is kept once for each prompt."""
    while True:
        world = short_answers(rng)
        if world.text is None:
            continue
        _, first = np.unique(world.text, return_index=True)
        if len(first) < 0.9 * len(world):
            return world.take(np.sort(first))


def _unknown(rng: Rng) -> World:
    world = language_model(rng)
    behavior, target = world.behavior.copy(), world.target.copy()
    (behavior if rng.random() < 0.5 else target)[rng.choice(len(world), len(world) // 50, replace=False)] = 0.0
    return replace(world, behavior=behavior, target=target)


def _same(rng: Rng) -> World:
    world = RIGHT[rng.integers(len(RIGHT))](rng)
    return replace(world, target=world.behavior.copy())


WRONG: dict[str, tuple[str, Callable[[Rng], World]]] = {
    "both policies averaged": ("averaged_log_probs", lambda rng: averaged(rng, "both", k=4)),
    "both policies averaged, single responses": (
        "averaged_log_probs",
        lambda rng: averaged(rng, "both", 4000, k=1),
    ),
    "behavior averaged": ("averaged_log_probs", lambda rng: averaged(rng, "behavior")),
    "target averaged": ("averaged_log_probs", lambda rng: averaged(rng, "target")),
    "a copied column": ("same_column", _same),
    "every row twice": ("repeated_rows", lambda rng: _copies(language_model(rng), "in place")),
    "every row of few digits twice": ("repeated_rows", lambda rng: _copies(rounded(rng), "in place")),
    "a file twice": ("repeated_rows", lambda rng: _copies(language_model(rng), "two files")),
    "a file three times": ("repeated_rows", lambda rng: _copies(language_model(rng), "three files")),
    "a file twice, under other prompts": (
        "repeated_rows",
        lambda rng: _copies(language_model(rng), "other prompts"),
    ),
    "short answers twice": ("repeated_rows", lambda rng: _copies(short_answers(rng), "in place")),
    "one row in fifty twice": ("repeated_rows", _retried),
    "99 among ratings": ("sentinel_reward", lambda rng: _marked(rng, lambda n: rng.integers(1, 6, n), 99, 1)),
    "-1 among clicks": ("sentinel_reward", lambda rng: _marked(rng, lambda n: rng.random(n) < 0.3, -1, 1)),
    "-1 among many ratings": ("sentinel_reward", lambda rng: _marked(rng, lambda n: rng.integers(1, 6, n), -1, 90)),
    "-1 among scores": ("sentinel_reward", lambda rng: _marked(rng, rng.random, -1, 5)),
    "-999 among scores": ("sentinel_reward", lambda rng: _marked(rng, lambda n: rng.normal(size=n), -999, 3)),
    "copies left out": ("no_repeats", _without_copies),
    "0 for unknown": ("certain_responses", _unknown),
}
"""A mistake -> the code of what must be noticed, and how such a log is made."""
