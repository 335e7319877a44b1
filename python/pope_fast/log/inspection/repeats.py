"""Rows that are there twice, and draws without a repetition where their own probabilities demand some.

Given one of two independent responses to a prompt, the other one is alike with the probability of that one. So in K
draws the expected number of pairs that are alike is that of ``(K - 1) / 2 * sum_k exp(logprob_k)``, whatever the
policy: far more is copies, none at all is a log without copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pope_fast.log.inspection.sample import Rows, bits
from pope_fast.log.inspection.signs import NO_REPEATS, REPEATED, Severity, Sign
from pope_fast.log.scatter import mixed_keys

__all__ = ["Likeness", "no_repeat_signs", "prompt_likeness", "repeat_signs"]

Marks = NDArray[np.uint64]

_LONG = -16.0  # nats: a response this unlikely does not come twice by chance
_FEWEST_REPEATS = 5
_FEWEST_PAIRS = 30.0  # expected pairs alike, below which their absence says nothing
_ABSENT = 0.02  # share of the expected pairs that may be there all the same
_WHOLE_UNITS = 20  # prompts in which every row must be repeated
_WHOLE_MARKS = 50
_LIKELY = 0.5  # mean probability of a response above which all rows of a prompt may be alike by chance
_GRAVE = 0.005  # share of repeated rows above which D is not to be used
_ONE = 1.05  # probabilities may add to this by rounding
_OTHER_PROMPTS = 100.0  # how much more often rows of one prompt must be alike than rows of two
_SHARED = 0.1  # share of marks that may be those of several prompts


@dataclass(frozen=True, slots=True)
class Likeness:
    """How many pairs of responses to a prompt are alike, and how many ought to be.

    Attributes
    ----------
    pairs : float
        Pairs of rows of one prompt.
    expected : float
        Pairs that ought to be alike, by the log-probs.
    impossible : float
        Share of the prompts whose responses, each counted once, have probabilities that add to more than 1.
    equal : float
        Pairs of which the log-probs are equal bit for bit.
    alike : float
        Pairs that may be alike (log-probs that nearly agree), or that are if texts were compared.
    by_text : bool
        Whether texts were compared.
    """

    pairs: float
    expected: float
    impossible: float
    equal: float
    alike: float
    by_text: bool

    @property
    def absent(self) -> bool:
        """Whether there ought to be pairs alike, and there are none, or hardly any."""
        return self.expected >= _FEWEST_PAIRS and self.alike <= _ABSENT * self.expected


def joined(parts: Sequence[NDArray[Any]]) -> Marks:
    """Return one mark per row, equal where all of its parts are equal bit for bit."""
    mark: Marks | None = None
    for part in parts:
        raw = bits(part) if part.dtype.kind == "f" else part.astype(np.int64, copy=False).view(np.uint64)
        mark = mixed_keys((raw if mark is None else raw ^ mark).view(np.int64))
    assert mark is not None
    return mark


def _choose_two(counts: NDArray[np.int64]) -> float:
    return float((counts * (counts - 1) // 2).sum())


def prompt_likeness(rows: Rows) -> Likeness | None:
    """Count the pairs of a sample of whole prompts that are alike; ``None`` without prompts of several rows."""
    if not rows or "unit" not in rows:
        return None
    order = np.lexsort((rows["behavior"], rows["unit"]))
    unit, behavior = rows["unit"][order], rows["behavior"][order]
    _, inverse, size = np.unique(unit, return_inverse=True, return_counts=True)
    pairs = _choose_two(size)
    other = (np.diff(unit) != 0) | (np.diff(behavior) != 0)
    equal = _choose_two(_runs(other))
    once = np.concatenate([[True], other])
    mass = np.bincount(inverse[once], np.exp(behavior[once]), size.size)
    impossible = float((mass > _ONE).sum() / max((size > 1).sum(), 1))
    if not pairs:
        return None
    expected = float((np.exp(behavior) * (size[inverse] - 1)).sum() / 2)
    if "text" in rows:
        _, counts = np.unique(joined([unit, rows["text"][order].view(np.int64)]), return_counts=True)
    else:
        # One response may have two log-probs that differ by rounding: what is near counts as alike.
        near = 0.01 + 0.002 * np.abs(behavior[1:])
        counts = _runs((np.diff(unit) != 0) | (np.diff(behavior) > near))
    return Likeness(pairs, expected, impossible, equal, _choose_two(counts), "text" in rows)


def _runs(breaks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the lengths of the runs of rows between breaks."""
    return np.diff(np.concatenate([[0], np.flatnonzero(breaks) + 1, [len(breaks) + 1]]))


def no_repeat_signs(likeness: Likeness | None, column: str | None) -> list[Sign]:
    """Find that no two responses to a prompt are alike though their probabilities demand it."""
    if likeness is None or not likeness.absent:
        return []
    what = "have the same text" if likeness.by_text else "have log-probs that agree"
    found = "none" if not likeness.alike else f"{likeness.alike:,.0f}"
    message = (
        f"of {likeness.pairs:,.0f} pairs of responses to one prompt about {likeness.expected:,.0f} should be alike by "
        f"their log-probs, but {found} {what}: copies were left out, the responses were not drawn one by one (a beam, "
        "the best of several), or these are not the log-probs of whole responses"
    )
    severity: Severity = "caution" if likeness.by_text else "info"
    share = likeness.alike / likeness.expected
    return [Sign(NO_REPEATS, severity, message, column, share=share)]


@dataclass(frozen=True, slots=True)
class _Found:
    """Repeated rows in a sample."""

    times: int | None
    repeats: int
    first: int
    original: int


def repeat_signs(
    by_prompt: Rows, by_value: Rows, n_rows: int, targets: Sequence[str], column: str | None, *, head: bool = False
) -> list[Sign]:
    """Find rows that are copies of others.

    Parameters
    ----------
    by_prompt, by_value : dict of str to ndarray
        Samples of whole prompts, and of all rows with certain log-probs.
    n_rows : int
        Rows that they are a sample of.
    targets : sequence of str
        Their columns of target log-probs.
    column : str or None
        The behavior policy's, for the sign.
    head : bool
        Whether these are only the first rows of the log.
    """
    if by_prompt:
        found = _whole_prompts(by_prompt, targets) or _within_prompts(by_prompt, targets)
        if found is not None:
            return [_sign(found, len(by_prompt["row"]), n_rows, column, head=head, within=True)]
    if by_value and not head:
        found = _whole_log(by_value, targets)
        if found is not None:
            return [_sign(found, len(by_value["row"]), n_rows, column, head=head, within=False)]
    return []


def _sign(found: _Found, sampled: int, n_rows: int, column: str | None, *, head: bool, within: bool) -> Sign:
    share = found.repeats / sampled
    exact = sampled == n_rows
    count = found.repeats if exact else round(share * n_rows)
    where = "the first " if head else ""
    where = f"{count:,} of {where}{n_rows:,} rows" if exact else f"about {count:,} of {where}{n_rows:,} rows"
    repeat = "repeats" if count == 1 else "repeat"
    often = {2: "twice"}.get(found.times or 0, f"{found.times} times")
    times = "" if found.times is None else f"every row is there {often}: "
    pair = f"row {found.first:,} repeats row {found.original:,}"
    if within:
        message = (
            f"{times}{where} {repeat} another row of their prompt, log-probs bit for bit ({pair}), far more than "
            "chance allows. D takes copies for draws that agree"
        )
        severity: Severity = "unreliable" if found.times is not None or share >= _GRAVE else "caution"
        return Sign(REPEATED, severity, message, column, found.first, count, share, quantities=("diversity",))
    message = (
        f"{times}{where} {repeat} a row of another unit, log-probs and reward bit for bit ({pair}). The log is "
        f"{found.times} times smaller than it seems, and its errors are larger"
    )
    return Sign(REPEATED, "unreliable", message, column, found.first, count, share)


def _identity(rows: Rows, targets: Sequence[str]) -> list[NDArray[Any]]:
    parts = [rows["behavior"], *(rows[name] for name in targets)]
    return [*parts, rows["text"].view(np.int64)] if "text" in rows else parts


def _everything(rows: Rows, targets: Sequence[str]) -> list[NDArray[Any]]:
    parts = [*_identity(rows, targets), rows["reward"]]
    return [*parts, rows["cluster"]] if "cluster" in rows else parts


def _whole_prompts(rows: Rows, targets: Sequence[str]) -> _Found | None:
    """Find that every row of every prompt is there as often as a number divides."""
    bare = joined(_everything(rows, targets))
    mark = joined([rows["unit"], bare.view(np.int64)])
    _, counts = np.unique(mark, return_counts=True)
    times = int(np.gcd.reduce(counts))
    if times < 2 or np.unique(rows["unit"]).size < _WHOLE_UNITS or np.exp(rows["behavior"]).mean() > _LIKELY:
        return None
    # Where rows of different prompts are as alike as those of one, likeness says nothing.
    _, everywhere = np.unique(bare, return_counts=True)
    n = len(bare)
    if (_choose_two(everywhere) - _choose_two(counts)) / max(n * (n - 1) / 2, 1) > _LIKELY:
        return None
    return _located(mark, rows["row"], times)


def _whole_log(rows: Rows, targets: Sequence[str]) -> _Found | None:
    """Find that every row of the log is there as often as a number divides, whatever its prompt."""
    mark = joined(_everything(rows, targets))
    _, counts = np.unique(mark, return_counts=True)
    times = int(np.gcd.reduce(counts))
    if times < 2 or counts.size < _WHOLE_MARKS or np.exp(rows["behavior"]).mean() > _LIKELY:
        return None
    # A menu has few log-probs, all of which come many times.
    if np.unique(rows["behavior"]).size < counts.size / 2:
        return None
    return _located(mark, rows["row"], times)


def _within_prompts(rows: Rows, targets: Sequence[str]) -> _Found | None:
    """Find single rows that are copies: by their text, or because they are too unlikely to come twice."""
    by_text = "text" in rows
    if not by_text:
        long = rows["behavior"] < _LONG
        rows = {name: values[long] for name, values in rows.items()}
        if len(rows["row"]) < 2:
            return None
    bare = joined(_identity(rows, targets))
    mark = joined([rows["unit"], bare.view(np.int64)])
    units, inverse, size = np.unique(rows["unit"], return_inverse=True, return_counts=True)
    _, where, counts = np.unique(mark, return_index=True, return_counts=True)
    repeats, alike, pairs = int((counts - 1).sum()), _choose_two(counts), _choose_two(size)
    expected = np.bincount(inverse, np.exp(rows["behavior"]), units.size) * (size - 1) / 2
    if repeats < _FEWEST_REPEATS:
        return None
    if by_text:
        excess = np.bincount(inverse[where], counts * (counts - 1) / 2, units.size) - expected
        significant = excess.sum() > 6.0 * np.sqrt((excess**2).sum())
        if not significant or alike <= 1.5 * expected.sum() + 10:
            return None
        return _located(mark, rows["row"], None)
    if alike <= 3 + 10 * expected.sum():
        return None
    # Log-probs of few digits, and those of menus, agree between prompts as well.
    _, everywhere = np.unique(bare, return_counts=True)
    _, first_of = np.unique(mark, return_index=True)
    _, in_units = np.unique(bare[first_of], return_counts=True)
    n = len(bare)
    other_pairs = max(n * (n - 1) / 2 - pairs, 1.0)
    across = (_choose_two(everywhere) - alike + 3) / other_pairs
    if (in_units > 1).mean() > _SHARED or alike / pairs < _OTHER_PROMPTS * across:
        return None
    return _located(mark, rows["row"], None)


def _located(mark: Marks, row: NDArray[np.int64], times: int | None) -> _Found:
    """Count the rows that repeat an earlier one, and find the first of them and what it repeats."""
    order = np.lexsort((row, mark))
    again = np.flatnonzero(mark[order][1:] == mark[order][:-1]) + 1
    rows = row[order]
    place = again[np.argmin(rows[again])]
    start = place - 1
    return _Found(times, int(again.size), int(rows[place]), int(rows[start]))
