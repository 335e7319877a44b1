"""Themes: clusters over the whole log, by scikit-learn; labels mean the same in every prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pope_fast._extras import require
from pope_fast.cluster.features import SameText, TfidfFeatures, VectorFeatures, number_within
from pope_fast.cluster.ngrams import HASH_BITS, count_ngrams
from pope_fast.cluster.rows import BLOCK_ROWS, Block, Rows
from pope_fast.errors import PopeError, SchemaError
from pope_fast.log.progress import Meter

__all__ = ["ThemeMethod", "equal_texts", "themes"]

ThemeMethod = Literal["kmeans", "hdbscan"]

#: Rows that the clusters are fitted on; the others are assigned to what was found.
FIT_ROWS = {"kmeans": 100_000, "hdbscan": 20_000}
_PASS_ROWS = 8192
_CELL_BITS = 16
_COMPONENTS = 100
_PURPOSE = "clustering over the whole log"

Matrix = NDArray[np.float32]


def themes(
    rows: Rows,
    features: VectorFeatures,
    method: ThemeMethod,
    *,
    n_clusters: int,
    min_cluster_size: int,
    seed: int,
    meter: Meter,
) -> NDArray[np.int32]:
    """Cluster all responses of a log.

    Parameters
    ----------
    rows : Rows
        The log, every row a unit.
    features : VectorFeatures
        Fitted.
    method : {"kmeans", "hdbscan"}
        scikit-learn's MiniBatchKMeans, or its HDBSCAN.
    n_clusters, min_cluster_size : int
        Of the one, and of the other.
    seed : int
        Of the sample and of scikit-learn.
    meter : Meter
        Counts rows.

    Returns
    -------
    ndarray of int32, shape (rows,)
        Numbered by first appearance; -1 for responses that HDBSCAN counts as noise.

    Notes
    -----
    Vectors are scaled to length 1, so Euclidean distance orders pairs as the cosine does. TF-IDF vectors are first
    reduced to 100 dimensions (truncated SVD). The fit sees about 100,000 rows at most (k-means), or 20,000 (HDBSCAN),
    chosen by a hash of their content and sorted by it: the order of the log makes no difference. Other rows go to the
    nearest center, or take the label of the nearest row of the sample.
    """
    space: _Space = _Reduced(features, seed) if isinstance(features, TfidfFeatures) else _Given(features)
    sample = rows.sample_rows(features.columns, FIT_ROWS[method], seed, features.identity)
    if len(sample) == 0:
        raise PopeError("no response was sampled: the log repeats very few texts; choose another seed")
    space.fit(sample)
    points = _unit(space.transform(sample), sample, features)
    assign = _kmeans(points, n_clusters, seed) if method == "kmeans" else _hdbscan(points, min_cluster_size)
    labels = np.empty(rows.n_rows, dtype=np.int64)
    for block in rows.blocks(features.columns, _PASS_ROWS):
        labels[block.rows] = assign(_unit(space.transform(block), block, features))
        meter.advance(len(block))
    return _by_appearance(labels)


def equal_texts(rows: Rows, features: SameText, meter: Meter) -> NDArray[np.int32]:
    """Give all responses of equal text one label in the whole log, numbered by first appearance."""
    keys = np.empty(rows.n_rows, dtype=np.uint64)
    for block in rows.blocks(features.columns, _PASS_ROWS):
        keys[block.rows] = features.keys(block)
        meter.advance(len(block))
    return number_within(keys, np.zeros(len(keys), dtype=np.int64))


class _Space(Protocol):
    """Where the points to be clustered lie."""

    def fit(self, sample: Block) -> None: ...

    def transform(self, block: Block) -> Matrix: ...


class _Given:
    """Embeddings are points as they are."""

    def __init__(self, features: VectorFeatures) -> None:
        self._features = features

    def fit(self, sample: Block) -> None:
        pass

    def transform(self, block: Block) -> Matrix:
        matrix: Matrix = np.empty((len(block), 0), dtype=np.float32)
        for part in self._features.vectors(block):
            matrix = part.vectors
        return matrix


class _Reduced:
    """TF-IDF over the log, hashed to 2**16 coordinates and reduced by a truncated singular value decomposition."""

    def __init__(self, features: TfidfFeatures, seed: int) -> None:
        self._features = features
        self._seed = seed
        self._svd: Any = None
        self._cells = np.empty(0, dtype=np.int64)

    def _sparse(self, block: Block) -> Any:
        """Return TF-IDF vectors of length 1 as a sparse matrix."""
        library = require("scipy.sparse", _PURPOSE)
        texts = self._features.texts.responses(block)
        return library.vstack(
            [self._vectors(texts[start : start + BLOCK_ROWS], library) for start in range(0, len(texts), BLOCK_ROWS)],
            format="csr",
        )

    def _vectors(self, texts: list[str], library: Any) -> Any:
        idf = self._features.idf
        grams = count_ngrams(texts, idf.kind)
        weight = (1.0 + np.log(grams.count)) * idf(grams.gram)
        length = np.sqrt(np.bincount(grams.text, weight**2, minlength=len(texts)))
        cell = (grams.gram >> np.uint64(HASH_BITS - _CELL_BITS)).astype(np.int64)
        value = (weight / length[grams.text]).astype(np.float32)
        return library.csr_matrix((value, (grams.text, cell)), shape=(len(texts), 1 << _CELL_BITS))

    def fit(self, sample: Block) -> None:
        sparse = self._sparse(sample)
        # A coordinate that one text has, or none, says nothing about which texts are alike.
        self._cells = np.flatnonzero(np.bincount(sparse.indices, minlength=sparse.shape[1]) > 1)
        if self._cells.size == 0:
            raise PopeError("the responses have nothing in common: there are no themes to be found")
        components = min(_COMPONENTS, len(sample), len(self._cells))
        decomposition = require("sklearn.decomposition", _PURPOSE)
        self._svd = decomposition.TruncatedSVD(components, random_state=self._seed).fit(sparse[:, self._cells])

    def transform(self, block: Block) -> Matrix:
        return np.asarray(self._svd.transform(self._sparse(block)[:, self._cells]), dtype=np.float32)


def _unit(matrix: Matrix, block: Block, features: VectorFeatures) -> Matrix:
    """Scale vectors to length 1; a zero vector stays one."""
    wrong = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if wrong.size:
        row = int(block.rows[wrong[0]])
        raise SchemaError("NaN or infinity in an embedding", column=features.source, row=row, remedy="embed it again")
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.where(length > 0, length, 1.0), dtype=np.float32)


def _kmeans(points: Matrix, n_clusters: int, seed: int) -> Callable[[Matrix], NDArray[np.int64]]:
    distinct = len(np.unique(points, axis=0))
    if distinct < n_clusters:
        raise PopeError(f"{n_clusters} themes were asked for, but there are only {distinct} different responses")
    library = require("sklearn.cluster", _PURPOSE)
    model = library.MiniBatchKMeans(n_clusters, random_state=seed, n_init=3, batch_size=4096).fit(points)
    return lambda matrix: np.asarray(model.predict(matrix), dtype=np.int64)


def _hdbscan(points: Matrix, min_cluster_size: int) -> Callable[[Matrix], NDArray[np.int64]]:
    if len(points) < min_cluster_size:
        raise PopeError(f"a theme shall have {min_cluster_size} responses, but there are only {len(points)}")
    library = require("sklearn.cluster", _PURPOSE)
    model = library.HDBSCAN(min_cluster_size=min_cluster_size, copy=True).fit(points)
    labels = np.asarray(model.labels_, dtype=np.int64)

    def nearest(matrix: Matrix) -> NDArray[np.int64]:
        # For vectors of length 1 the nearest is the one with the greatest dot product; a row of the sample is its own.
        found = np.empty(len(matrix), dtype=np.int64)
        for start in range(0, len(matrix), 1024):
            found[start : start + 1024] = np.argmax(matrix[start : start + 1024] @ points.T, axis=1)
        return np.asarray(labels[found])

    return nearest


def _by_appearance(labels: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return labels numbered from 0 in the order in which they first occur; negative ones stay."""
    numbered = labels.astype(np.int32)
    inside = labels >= 0
    numbered[inside] = number_within(labels[inside].astype(np.uint64), np.zeros(int(inside.sum()), dtype=np.int64))
    return numbered
