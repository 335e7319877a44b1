"""From a log to the same log with clusters: open, choose features and threshold, label block by block, write."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pope_fast import _core
from pope_fast._extras import require
from pope_fast._threads import default_threads
from pope_fast.cluster.choice import choose_features
from pope_fast.cluster.features import Features, Linkage, SameText, VectorFeatures
from pope_fast.cluster.metadata import ClusterInfo
from pope_fast.cluster.pairs import Same
from pope_fast.cluster.results import Clustering
from pope_fast.cluster.rows import Block, Rows
from pope_fast.cluster.stability import StabilityCurve, stability_curve
from pope_fast.errors import PopeError, SchemaError
from pope_fast.log.batches import unit_column
from pope_fast.log.feedback_log import FeedbackLog
from pope_fast.log.opening import open_log
from pope_fast.log.progress import Meter
from pope_fast.log.writing import parquet_name

__all__ = ["METHODS", "LabeledRows", "cluster", "label_rows"]

T = TypeVar("T")
R = TypeVar("R")

METHODS = {"prompt": ("average", "complete", "leader"), "log": ("kmeans", "hdbscan")}
"""Scope -> its methods; the first is the default."""


def cluster(
    log: Any,
    output: str | os.PathLike[str] | None = None,
    *,
    features: Literal["tfidf", "tfidf-word", "exact", "normalized"] | None = None,
    embeddings: Any = None,
    model: Any = None,
    same: Same | None = None,
    scope: Literal["prompt", "log"] = "prompt",
    method: Literal["average", "complete", "leader", "kmeans", "hdbscan"] | None = None,
    threshold: float | Literal["auto"] | None = None,
    n_clusters: int = 20,
    min_cluster_size: int = 10,
    with_prompt: bool = False,
    batch_size: int | None = None,
    into: str = "cluster",
    overwrite: bool = False,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    threads: int | None = None,
    memory_limit: int = 1 << 30,
    temp_dir: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Clustering:
    """Cluster the responses of a log: into perspectives within each prompt, or into themes over the whole log.

    Parameters
    ----------
    log
        A :class:`FeedbackLog`, or anything :func:`read_log` takes. Log-probs and rewards are not needed.
    output : path, optional
        Parquet file for the log with its clusters; all columns pass through, the order of rows stays. It may be the
        log's own path.
    features : {"tfidf", "tfidf-word", "exact", "normalized"}, optional
        What is compared, without any model: character n-grams (the default) or words weighted by TF-IDF; or only
        whether texts are equal, letter by letter or up to case, punctuation and white space.
    embeddings : str or array_like of shape (rows, width), optional
        Instead: embeddings that are there, a column of the log (lists of one length) or an array in the log's order.
    model : str, path, object with ``encode``, or callable, optional
        Instead: a sentence-transformers model (extra ``embeddings``), or a function from texts to vectors.
    same : callable, optional
        Instead: a function that takes a list of pairs of texts and returns a score in [-1, 1] or a boolean for each,
        for instance :func:`pope_fast.cluster.entailment`. It is asked once per pair of distinct texts of a
        prompt, the alphabetically smaller text first.
    scope : {"prompt", "log"}
        Clusters within each prompt, or over the whole log.
    method : str, optional
        Within prompts: "average" (default) or "complete" linkage, or "leader". Over the log: "kmeans" (default) or
        "hdbscan" (extra ``themes``).
    threshold : float or "auto", optional
        Within prompts: the similarity (cosine, or the score of ``same``) from which responses belong together.
        "auto", the default with vectors, chooses it by a stability curve; with ``same`` the default is .5.
    n_clusters : int
        Themes of "kmeans".
    min_cluster_size : int
        Responses of the smallest theme of "hdbscan".
    with_prompt : bool
        With ``model`` or ``same``: whether texts are the prompt and the response rather than the response alone.
    batch_size : int, optional
        With ``model`` or ``same``: most texts, or pairs, per call.
    into : str
        Name of the cluster column.
    overwrite : bool
        Whether a column of that name may be replaced.
    columns : mapping of str to str, optional
        Role -> column, as in :func:`read_log`: "completion", "prompt", "prompt_id".
    seed : int
        Of the samples that frequencies, threshold and themes are learned from.
    threads : int, optional
        Threads; by default ``POPE_NUM_THREADS`` or all the container has. Results do not depend on it.
    memory_limit : int
        Bytes for gathering rows of prompts that are scattered over the log.
    temp_dir : path, optional
        Where temporary files go.
    progress : bool, optional
        Whether to show progress; None shows it on a terminal, after two seconds.

    Returns
    -------
    Clustering
        With the labels; ``.log`` can be evaluated at once.

    Raises
    ------
    SchemaError
        If a column is missing or not what it has to be, a text is null, or there is a cluster column already.
    PopeError
        If an option is out of its range, options contradict each other, an extra is missing, or the output cannot be
        written.

    Notes
    -----
    The result does not depend on the order of rows (but for the numbers of the labels, which follow it), on threads, or
    on how the log is cut into batches. Responses with the same text are always in one cluster.

    Examples
    --------
    >>> import pope_fast as pope
    >>> log = {
    ...     "prompt_id": [1, 1, 1, 2, 2],
    ...     "completion": ["Raise the taxes.", "Raise taxes!", "Plant trees.", "Yes.", "yes"],
    ... }
    >>> pope.cluster(log, features="normalized").labels.tolist()
    [0, 1, 2, 0, 0]
    >>> pope.cluster(log, threshold=0.3).labels.tolist()
    [0, 0, 1, 0, 0]
    """
    if output is not None:
        parquet_name(output)
    if scope not in METHODS:
        raise PopeError(f"scope must be 'prompt' or 'log', not {scope!r}")
    opened = log if isinstance(log, FeedbackLog) else _open(log, columns, memory_limit, temp_dir, progress)
    if into in opened.schema.names and not overwrite:
        raise SchemaError(
            "the log has a column of this name already",
            column=into,
            remedy="replace it with overwrite=True (--overwrite), or name another with into= (--into)",
        )
    chosen = choose_features(
        opened,
        features=features,
        embeddings=embeddings,
        model=model,
        same=same,
        with_prompt=with_prompt,
        batch_size=batch_size,
    )
    _raise_faults(opened, chosen, columns)
    how = _method(chosen, scope, method)
    _check(chosen, scope, threshold, n_clusters, min_cluster_size, threads, seed)
    unit, role = unit_column(opened.columns, opened.schema.names, "prompt") if scope == "prompt" else (None, "row")
    if into in (*chosen.columns, unit):
        raise PopeError(f"column {into!r} is what is clustered; name another one for the clusters with into= (--into)")
    curve: StabilityCurve | None = None
    notes: list[str] = []
    cut: float | None
    prompts: int | None
    with _in_files(opened):
        rows = Rows(opened, unit, role, memory_limit=memory_limit, temp_dir=None if temp_dir is None else str(temp_dir))
        _check_length(chosen, rows.n_rows)
        chosen.fit(rows, seed)
        if scope == "log":
            labels = _themes(rows, chosen, how, n_clusters, min_cluster_size, seed, progress)
            cut, origin, prompts, clusters = None, "", None, int(labels.max(initial=-1)) + 1
        else:
            cut, origin, curve = _threshold(rows, chosen, how, threshold, seed, threads)
            found = label_rows(rows, chosen, [0.0 if cut is None else cut], how, threads=threads, progress=progress)
            labels, prompts, clusters = found.labels[0], found.n_prompts, found.n_clusters[0]
    if rows.scattered:
        notes.append(f"the rows of a prompt (column {unit!r}) are scattered; a log sorted by it is clustered faster")
    info = ClusterInfo(
        scope=scope,
        method=how,
        threshold=cut,
        chosen=origin,
        features={**chosen.describe(), "seed": seed},
        n_clusters=clusters,
        versions=_versions(chosen, how),
    )
    result = Clustering(labels, info, into, rows.n_rows, prompts, clusters, curve, tuple(notes), None, opened)
    return result if output is None else replace(result, output=result.write(output))


def _open(
    log: Any,
    columns: Mapping[str, str] | None,
    memory_limit: int,
    temp_dir: str | os.PathLike[str] | None,
    progress: bool | None,
) -> FeedbackLog:
    # Not read_log: what is wrong with a column that clustering does not read is none of its business.
    return open_log(log, columns=columns, memory_limit=memory_limit, temp_dir=temp_dir, progress=progress)


@contextmanager
def _in_files(log: FeedbackLog) -> Iterator[None]:
    """Add the file, and the row or line in it, to an error that knows its row in the log."""
    try:
        yield
    except SchemaError as error:
        place = None if error.row is None else log.reader.locate(error.row)
        if place is None:
            raise
        message = f"{error.message} ({place})"
        raise SchemaError(message, column=error.column, row=error.row, remedy=error.remedy) from error


def _raise_faults(log: FeedbackLog, features: Features, columns: Mapping[str, str] | None) -> None:
    """Raise what is wrong with a column that is read, or that the caller named."""
    unit = [log.columns[role] for role in ("prompt_id", "prompt", "prompt_ids") if role in log.columns][:1]
    concerned = {*features.columns, *unit, *(columns or {}).values()}
    for fault in log.faults:
        if fault.column in concerned:
            raise fault.to_error()


def _method(features: Features, scope: str, method: str | None) -> str:
    if isinstance(features, SameText):
        if method is not None:
            raise PopeError(
                f"responses of equal text belong together: there is no method to choose (method={method!r})"
            )
        return "equal"
    if scope == "log" and not isinstance(features, VectorFeatures):
        raise PopeError("same= compares the responses to one prompt with each other; it does not work with scope='log'")
    if method is None:
        return METHODS[scope][0]
    if method not in METHODS[scope]:
        raise PopeError(f"the methods with scope={scope!r} are {', '.join(METHODS[scope])}; not {method!r}")
    return method


def _check(
    features: Features,
    scope: str,
    threshold: float | str | None,
    n_clusters: int,
    min_cluster_size: int,
    threads: int | None,
    seed: int,
) -> None:
    if threads is not None and threads < 1:
        raise PopeError(f"threads must be at least 1, not {threads}")
    if seed < 0:
        raise PopeError(f"seed must be at least 0, not {seed}")
    if n_clusters < 2:
        raise PopeError(f"n_clusters must be at least 2, not {n_clusters}")
    if min_cluster_size < 2:
        raise PopeError(f"min_cluster_size must be at least 2, not {min_cluster_size}")
    if threshold is None:
        return
    if scope == "log" or features.default_threshold is None:
        raise PopeError("a threshold is for similarities within prompts; with these options there is none")
    if threshold == "auto":
        if not isinstance(features, VectorFeatures):
            raise PopeError(
                "a stability curve needs features that can be halved, which same= has not: give a threshold"
            )
    elif isinstance(threshold, (str, bool)) or not -1.0 <= threshold <= 1.0:
        raise PopeError(f"threshold must be 'auto' or a similarity between -1 and 1, not {threshold!r}")


def _check_length(features: Features, n_rows: int) -> None:
    expected = getattr(features, "n_rows", n_rows)
    if expected != n_rows:
        raise PopeError(f"embeddings= has {expected:,} rows, and the log has {n_rows:,}")


def _threshold(
    rows: Rows, features: Features, method: str, threshold: float | str | None, seed: int, threads: int | None
) -> tuple[float | None, str, StabilityCurve | None]:
    """Return the threshold, where it comes from, and the curve if it was chosen by one."""
    if features.default_threshold is None:
        return None, "", None
    if threshold is not None and threshold != "auto":
        return float(threshold), "given", None
    if not isinstance(features, VectorFeatures):
        return features.default_threshold, "default", None
    curve = stability_curve(rows, features, _linkage(method), seed=seed, threads=threads)
    return curve.threshold, "stability" if curve.found else "default", curve


def _linkage(method: str) -> Linkage:
    # With equal texts the method makes no difference.
    return method if method in ("average", "complete", "leader") else "average"  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class LabeledRows:
    """Labels of all rows at several thresholds.

    Attributes
    ----------
    labels : ndarray of int32, shape (thresholds, rows)
        In the order of the log.
    n_prompts : int
        Number of prompts.
    n_clusters : tuple of int
        Clusters over all prompts, by threshold.
    """

    labels: NDArray[np.int32]
    n_prompts: int
    n_clusters: tuple[int, ...]


def label_rows(
    rows: Rows,
    features: Features,
    thresholds: Sequence[float],
    method: str,
    *,
    threads: int | None = None,
    progress: bool | None = None,
) -> LabeledRows:
    """Cluster every prompt of a log at several thresholds, in one pass.

    Parameters
    ----------
    rows : Rows
        The log by prompt.
    features : Features
        Fitted.
    thresholds : sequence of float
        Similarities.
    method : {"average", "complete", "leader", "equal"}
        How.
    threads, progress
        As in :func:`cluster`.

    Returns
    -------
    LabeledRows
    """
    cuts = np.array(thresholds, dtype=np.float64)
    labels = np.zeros((len(cuts), rows.n_rows), dtype=np.int32)
    clusters = np.zeros(len(cuts), dtype=np.int64)
    prompts = 0
    workers = (default_threads() if threads is None else threads) if features.threaded else 1
    inner = 1 if workers > 1 else threads
    meter = Meter(rows.n_rows, progress, "clustering")

    def work(block: Block) -> tuple[Block, NDArray[np.int32]]:
        return block, features.labels(block, cuts, _linkage(method), inner)

    try:
        for block, found in _in_threads(work, rows.blocks(features.columns), workers):
            labels[:, block.rows] = found
            clusters += np.maximum.reduceat(found, block.offsets[:-1], axis=1).sum(axis=1) + len(block.keys)
            prompts += len(block.keys)
            meter.advance(len(block))
    finally:
        meter.stop()
    return LabeledRows(labels, prompts, tuple(clusters.tolist()))


def _in_threads(work: Callable[[T], R], items: Iterator[T], workers: int) -> Iterator[R]:
    """Map over items on some threads, in order, holding no more of them than the threads need."""
    if workers == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="pope-cluster") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _themes(
    rows: Rows,
    features: Features,
    method: str,
    n_clusters: int,
    min_cluster_size: int,
    seed: int,
    progress: bool | None,
) -> NDArray[np.int32]:
    from pope_fast.cluster.themes import equal_texts, themes

    meter = Meter(rows.n_rows, progress, "clustering")
    try:
        if isinstance(features, SameText):
            return equal_texts(rows, features, meter)
        assert isinstance(features, VectorFeatures)
        return themes(
            rows,
            features,
            "kmeans" if method == "kmeans" else "hdbscan",
            n_clusters=n_clusters,
            min_cluster_size=min_cluster_size,
            seed=seed,
            meter=meter,
        )
    finally:
        meter.stop()


def _versions(features: Features, method: str) -> dict[str, str]:
    import pyarrow as pa

    versions = {
        "pope_fast": _core.build_info()["version"],
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        **features.versions(),
    }
    if method in METHODS["log"]:
        versions["scikit-learn"] = str(require("sklearn", "clustering over the whole log").__version__)
    return versions
