"""Clusters of the responses to one prompt: agglomerative and greedy leaders, by similarity."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from pope_fast.reference._types import FloatArray, IntArray

Linkage = Literal["average", "complete"]


def cosine_similarity(embeddings: npt.ArrayLike) -> FloatArray:
    """Cosines between all rows; with a zero vector 1 to another zero vector and ``-inf`` to anything else."""
    x = np.asarray(embeddings, dtype=np.float64)
    length = np.array([math.hypot(*row) for row in x])
    zero = length == 0
    unit = x / np.where(zero, 1.0, length)[:, None]
    similarity = np.clip(unit @ unit.T, -1.0, 1.0)
    for i, j in itertools.product(range(len(x)), repeat=2):
        if zero[i] != zero[j]:
            similarity[i, j] = -np.inf
        elif np.array_equal(x[i], x[j]):
            similarity[i, j] = 1.0
    return similarity


def content_order(embeddings: npt.ArrayLike) -> list[int]:
    """Rows sorted by their numbers, compared from the first to the last: what breaks a tie."""
    x = np.asarray(embeddings).tolist()
    return sorted(range(len(x)), key=lambda i: x[i])


def numbered(clusters: list[list[int]], n_rows: int) -> IntArray:
    """Labels from 0 in the order in which clusters appear among the rows."""
    labels = np.empty(n_rows, dtype=np.int32)
    for label, members in enumerate(sorted(clusters, key=min)):
        labels[members] = label
    return labels


def agglomerate(
    similarity: npt.ArrayLike, threshold: float, linkage: Linkage, order: list[int] | None = None
) -> tuple[IntArray, list[float]]:
    """Join the two most similar clusters, again and again, while their similarity is at least ``threshold``.

    Parameters
    ----------
    similarity : array_like, shape (n, n)
        Symmetric; the similarity of clusters is the mean (average) or the minimum (complete) over pairs of members.
    threshold : float
        Least similarity at which clusters are joined.
    linkage : {"average", "complete"}
        How the similarity of clusters comes from that of members.
    order : list of int, optional
        Rows in the order that breaks ties (default: as given): of equally similar pairs of clusters, the one whose
        members come first is joined.

    Returns
    -------
    labels : ndarray of int32, shape (n,)
        Labels from 0, by first appearance.
    heights : list of float
        Similarity of each merge.
    """
    s = np.asarray(similarity, dtype=np.float64)
    clusters = [[row] for row in (order if order is not None else range(len(s)))]
    heights = []
    while len(clusters) > 1:
        best, first, second = -math.inf, -1, -1
        for i, j in itertools.combinations(range(len(clusters)), 2):
            pairs = s[np.ix_(clusters[i], clusters[j])]
            score = float(pairs.mean() if linkage == "average" else pairs.min())
            if score > best:
                best, first, second = score, i, j
        if best == -math.inf or best < threshold:
            break
        heights.append(best)
        clusters[first] += clusters.pop(second)
    return numbered(clusters, len(s)), heights


def greedy_leaders(similarity: npt.ArrayLike, threshold: float, order: list[int] | None = None) -> IntArray:
    """Rows with many neighbors lead, by decreasing number; every other row follows the most similar leader.

    Parameters
    ----------
    similarity : array_like, shape (n, n)
        Symmetric, 1 between equal rows.
    threshold : float
        Rows at least this similar are neighbors. A row with a leader among its neighbors does not lead.
    order : list of int, optional
        Rows in the order that breaks ties (default: as given).

    Returns
    -------
    ndarray of int32, shape (n,)
        Labels from 0, by first appearance.
    """
    s = np.asarray(similarity, dtype=np.float64)
    near = s >= threshold
    visit = sorted(order if order is not None else range(len(s)), key=lambda row: -int(near[row].sum()))
    leaders: list[int] = []
    for row in visit:
        if not any(near[row, leader] for leader in leaders):
            leaders.append(row)
    members: dict[int, list[int]] = {leader: [] for leader in leaders}
    for row in range(len(s)):
        members[max(leaders, key=lambda leader: s[row, leader])].append(row)
    return numbered(list(members.values()), len(s))


def cluster_prompt(embeddings: npt.ArrayLike, threshold: float, linkage: str) -> IntArray:
    """Labels of the responses to one prompt, by the cosines of their embeddings."""
    similarity, order = cosine_similarity(embeddings), content_order(embeddings)
    if linkage == "leader":
        return greedy_leaders(similarity, threshold, order)
    return agglomerate(similarity, threshold, "average" if linkage == "average" else "complete", order)[0]


def adjusted_rand(offsets: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Compare two labelings by the adjusted Rand index, pairs of rows of one prompt counted over all prompts.

    ``(sum I - sum E) / (sum M - sum E)``, with sums over prompts of the pairs together in both labelings, of their
    expected number if labels were dealt out at random within the prompt, and of the mean number of pairs together
    in one labeling (Hubert & Arabie 1985); 1 where that is 0 / 0.
    """
    bounds, a, b = np.asarray(offsets), np.asarray(first), np.asarray(second)
    index = expected = largest = 0.0
    for start, end in itertools.pairwise(bounds.tolist()):
        pairs = list(itertools.combinations(range(start, end), 2))
        in_a, in_b = [a[i] == a[j] for i, j in pairs], [b[i] == b[j] for i, j in pairs]
        index += sum(x and y for x, y in zip(in_a, in_b, strict=True))
        expected += sum(in_a) * sum(in_b) / max(len(pairs), 1)
        largest += (sum(in_a) + sum(in_b)) / 2
    return 1.0 if largest == expected else (index - expected) / (largest - expected)
