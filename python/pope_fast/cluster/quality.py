"""How well clusters agree with known ones: adjusted Rand index and V-measure, within prompts or over all rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast.errors import PopeError

__all__ = ["Agreement", "adjusted_rand_index", "agreement", "v_measure"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two clusterings of the same rows.

    Attributes
    ----------
    ari, v_measure
        Adjusted Rand index and V-measure of each prompt, averaged over prompts with two rows or more.
    pooled_ari
        Adjusted Rand index over the pairs of rows that share a prompt, all prompts together: large prompts count for
        more, and a prompt in which there is nothing to find counts for nothing.
    n_prompts
        Prompts with two rows or more.
    """

    ari: float
    v_measure: float
    pooled_ari: float
    n_prompts: int

    def __str__(self) -> str:
        return f"ARI {self.ari:.3f} (pooled {self.pooled_ari:.3f}), V-measure {self.v_measure:.3f}"


def _codes(labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    array: npt.NDArray[Any] = np.asarray(labels)
    if array.ndim != 1:
        raise PopeError(f"labels must have one dimension, not {array.ndim}")
    return np.unique(array, return_inverse=True)[1].astype(np.int64)


def _table(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the contingency table of two clusterings."""
    x, y = _codes(a), _codes(b)
    if len(x) != len(y):
        raise PopeError(f"two clusterings of the same rows are needed, not of {len(x)} and {len(y)}")
    table = np.zeros((int(x.max(initial=-1)) + 1, int(y.max(initial=-1)) + 1))
    np.add.at(table, (x, y), 1.0)
    return table


def _pairs(counts: npt.NDArray[np.float64]) -> float:
    return float(np.sum(counts * (counts - 1.0))) / 2.0


def _rand_parts(table: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the numerator and the denominator of the adjusted Rand index."""
    n = float(table.sum())
    total = n * (n - 1.0) / 2.0
    if total == 0:
        return 0.0, 0.0
    rows, columns = _pairs(table.sum(axis=1)), _pairs(table.sum(axis=0))
    expected = rows * columns / total
    return _pairs(table) - expected, (rows + columns) / 2.0 - expected


def adjusted_rand_index(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return the adjusted Rand index of two clusterings (Hubert & Arabie 1985).

    Parameters
    ----------
    a, b : array_like, shape (n,)
        Labels; only which are equal matters.

    Returns
    -------
    float
        1 if the clusterings are the same, 0 on average for random ones; 1 where both are trivial in the same way.

    Examples
    --------
    >>> adjusted_rand_index([0, 0, 1, 1], ["b", "b", "a", "a"])
    1.0
    """
    part, whole = _rand_parts(_table(a, b))
    return 1.0 if whole == 0 else part / whole


def v_measure(truth: npt.ArrayLike, found: npt.ArrayLike) -> float:
    """Return the V-measure: the harmonic mean of homogeneity and completeness (Rosenberg & Hirschberg 2007).

    Parameters
    ----------
    truth, found : array_like, shape (n,)
        Labels; the measure is symmetric.

    Returns
    -------
    float
        Between 0 and 1.
    """
    table = _table(truth, found)
    n = float(table.sum())
    if n == 0:
        return 1.0

    def entropy(counts: npt.NDArray[np.float64]) -> float:
        p = counts[counts > 0] / n
        return float(-np.sum(p * np.log(p)))

    joint = entropy(table.ravel())
    of_truth, of_found = entropy(table.sum(axis=1)), entropy(table.sum(axis=0))
    information = of_truth + of_found - joint
    # Rounding leaves a trace of information between clusterings that have none in common.
    information = max(information, 0.0)
    homogeneity = 1.0 if of_truth == 0 else information / of_truth
    completeness = 1.0 if of_found == 0 else information / of_found
    return 0.0 if homogeneity + completeness == 0 else 2 * homogeneity * completeness / (homogeneity + completeness)


def agreement(found: npt.ArrayLike, truth: npt.ArrayLike, prompt: npt.ArrayLike | None = None) -> Agreement:
    """Compare clusters with known ones, prompt by prompt.

    Parameters
    ----------
    found, truth : array_like, shape (n,)
        Labels.
    prompt : array_like, shape (n,), optional
        Which prompt each row belongs to; rows may be scattered. Without it all rows are compared as one prompt.

    Returns
    -------
    Agreement

    Raises
    ------
    PopeError
        If the lengths differ, or no prompt has two rows.
    """
    x, y = _codes(found), _codes(truth)
    unit = np.zeros(len(x), dtype=np.int64) if prompt is None else _codes(prompt)
    if not len(x) == len(y) == len(unit):
        raise PopeError(f"found, truth and prompt must be of one length, not {len(x)}, {len(y)} and {len(unit)}")
    order = np.argsort(unit, kind="stable")
    edges = np.concatenate([[0], np.cumsum(np.bincount(unit))])
    indices, measures = [], []
    part = whole = 0.0
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if stop - start < 2:
            continue
        rows = order[start:stop]
        above, below = _rand_parts(_table(x[rows], y[rows]))
        part, whole = part + above, whole + below
        indices.append(1.0 if below == 0 else above / below)
        measures.append(v_measure(y[rows], x[rows]))
    if not indices:
        raise PopeError("no prompt has two responses: there are no pairs to agree on")
    return Agreement(
        ari=float(np.mean(indices)),
        v_measure=float(np.mean(measures)),
        pooled_ari=1.0 if whole == 0 else part / whole,
        n_prompts=len(indices),
    )
