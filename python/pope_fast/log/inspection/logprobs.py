"""Columns of log-probs that are copies of each other, and rows that one policy finds certain and another impossible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pope_fast.log.inspection.signs import CERTAIN, SAME_COLUMN, Severity, Sign

__all__ = ["SameColumns", "certain_signs"]

Floats = NDArray[np.floating[Any]]

_CERTAIN = -1e-9  # nats: a probability of 1
_LONG = -16.0  # nats: a response that does not come twice by chance
_MOST_CERTAIN = 0.2  # share of certain rows: with more, the policy is deterministic and these are no exceptions


class SameColumns:
    """Whether the log-probs of a policy are those of the behavior policy, in every row and bit for bit.

    Attributes
    ----------
    n_rows : int
        Rows compared.
    same : set of str
        Policies without a row that differs.
    """

    def __init__(self, policies: tuple[str, ...]) -> None:
        self.n_rows = 0
        self.same = set(policies)

    def add(self, behavior: Floats, targets: Mapping[str, Floats]) -> None:
        """Look at a batch; a policy that once differed costs nothing any more."""
        self.n_rows += len(behavior)
        for policy in tuple(self.same):
            target = targets[policy]
            # The first rows tell nearly always.
            if not (np.array_equal(behavior[:64], target[:64]) and np.array_equal(behavior, target)):
                self.same.discard(policy)

    def merge(self, other: SameColumns) -> None:
        """Take in what was seen of other rows of the log."""
        self.n_rows += other.n_rows
        self.same &= other.same

    def signs(self, columns: Mapping[str, str], behavior: str | None) -> list[Sign]:
        """Say which policies are copies; ``columns`` has the column of each policy."""
        found = []
        for policy in sorted(self.same if self.n_rows else ()):
            column = columns.get(policy)
            if column is not None and column == behavior:
                what = f"the log-probs of this policy are those of the behavior policy: both are column {column!r}"
            else:
                what = (
                    f"the log-probs of this policy equal those of the behavior policy in all {self.n_rows:,} rows, "
                    "bit for bit"
                )
            message = f"{what}. Every weight is 1, and U is the mean reward of the log"
            found.append(Sign(SAME_COLUMN, "caution", message, column, 0, self.n_rows, 1.0, (policy,)))
        return found


def certain_signs(
    behavior: NDArray[np.float64],
    targets: Mapping[str, NDArray[np.float64]],
    rows: NDArray[np.int64],
    n_rows: int,
    columns: Mapping[str, str],
    behavior_column: str | None,
) -> list[Sign]:
    """Find rows where a log-prob of 0 stands for something else: the other policy finds the response impossible.

    Parameters
    ----------
    behavior, targets, rows
        Log-probs of a sample of rows, and their places in the log.
    n_rows
        Rows of the log.
    columns, behavior_column
        Names for the signs.
    """
    signs = []
    for policy, target in targets.items():
        pairs = (
            (behavior, target, behavior_column, "the behavior policy", "this one"),
            (target, behavior, columns.get(policy), "this policy", "the behavior policy"),
        )
        for ours, theirs, column, whose, other in pairs:
            if np.median(ours) > _LONG:
                continue
            found = np.flatnonzero((ours >= _CERTAIN) & (theirs < _LONG))
            share = found.size / len(ours)
            if not 0 < share <= _MOST_CERTAIN:
                continue
            exact = len(ours) == n_rows
            count = found.size if exact else round(share * n_rows)
            row = int(rows[found].min())
            number = f"{count:,}" if exact else f"about {count:,}"
            message = (
                f"{number} of {n_rows:,} rows have a log-prob of 0 under {whose}, so that no other response was "
                f"possible, and one below {_LONG:g} under {other}; row {row:,} is the first seen: does 0 stand for "
                "'unknown'?"
            )
            severity: Severity = "unreliable" if share >= 0.01 else "caution"
            signs.append(Sign(CERTAIN, severity, message, column, row, count, share, (policy,)))
    return signs
