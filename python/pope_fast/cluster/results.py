"""What :func:`pope_fast.cluster` returns: the labels, how they came about, and the log that has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast.cluster.metadata import ClusterInfo
from pope_fast.cluster.relabel import relabeled
from pope_fast.cluster.stability import StabilityCurve
from pope_fast.errors import PopeError

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from pope_fast.log import FeedbackLog

__all__ = ["Clustering"]

_BATCH_ROWS = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """Clusters of the responses of a log.

    Attributes
    ----------
    labels : ndarray of int32, shape (rows,)
        In the order of the log. Scope "prompt": numbered from 0 within each prompt, by first appearance. Scope "log":
        numbered from 0 over the whole log; -1 for responses that belong to no theme (HDBSCAN).
    info : ClusterInfo
        Scope, method, threshold, features; as in the metadata of the written log.
    column : str
        Name of the cluster column.
    n_rows, n_prompts : int
        Size of the log; prompts are not counted with scope "log".
    n_clusters : int
        Clusters over all prompts together, or themes.
    stability : StabilityCurve or None
        How the threshold was chosen, if it was.
    notes : tuple of str
        What a user should know.
    output : Path or None
        Where the log was written.
    """

    labels: NDArray[np.int32]
    info: ClusterInfo
    column: str
    n_rows: int
    n_prompts: int | None
    n_clusters: int
    stability: StabilityCurve | None = None
    notes: tuple[str, ...] = ()
    output: Path | None = None
    _log: FeedbackLog | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Clustering({self.n_rows:,} rows, {self.n_clusters:,} clusters, scope={self.info.scope!r})"

    def __str__(self) -> str:
        rows = [("responses", f"{self.n_rows:,}")]
        if self.info.scope == "prompt" and self.n_prompts:
            rows.append(("prompts", f"{self.n_prompts:,}"))
            mean = f"{self.n_clusters / self.n_prompts:.2f} per prompt"
            rows.append(("clusters", f"{self.n_clusters:,}, {mean} of {self.n_rows / self.n_prompts:.2f} responses"))
        else:
            rows.append(("themes", f"{self.n_clusters:,}"))
            outside = int(np.count_nonzero(self.labels < 0))
            if outside:
                rows.append(("in no theme", f"{outside:,} responses (label -1)"))
        rows.append(("features", _words(self.info.features)))
        rows.append(("method", self.info.method))
        if self.info.threshold is not None:
            rows.append(("threshold", f"{self.info.threshold:g} ({self.info.chosen})"))
        if self.stability is not None:
            rows.append(("stability", self.stability.reason))
        if self.output is not None:
            rows.append(("written to", str(self.output)))
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    @property
    def threshold(self) -> float | None:
        """Similarity from which responses belong together; None for methods without one."""
        return self.info.threshold

    @property
    def log(self) -> FeedbackLog:
        """The log with these clusters, for :func:`pope_fast.evaluate`; read from where it came from."""
        if self._log is None:
            raise PopeError("this clustering has been separated from its log")
        return relabeled(self._log, self.labels, self.info, self.column)

    def table(self) -> pa.Table:
        """Return the log with its clusters as an Arrow table, in memory."""
        log = self.log
        batches = log.record_batches(log.schema.names, _BATCH_ROWS)
        return pa.Table.from_batches(list(batches)).cast(log.schema)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the log with its clusters as Parquet.

        Parameters
        ----------
        path : path
            May be the log's own.

        Raises
        ------
        PopeError
            If it cannot be written.
        """
        from pope_fast.log.writing import write_log

        log = self.log
        return write_log(path, log.record_batches(log.schema.names, _BATCH_ROWS), schema=log.schema)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the labels as plain values for JSON."""
        return {
            "column": self.column,
            "n_rows": self.n_rows,
            "n_prompts": self.n_prompts,
            "n_clusters": self.n_clusters,
            "info": self.info.to_dict(),
            "stability": None if self.stability is None else self.stability.to_dict(),
            "notes": list(self.notes),
            "output": None if self.output is None else str(self.output),
        }


def _words(features: Mapping[str, Any]) -> str:
    words = {
        "tfidf": "TF-IDF of character n-grams",
        "tfidf-word": "TF-IDF of words",
        "exact": "exact text",
        "normalized": "normalized text",
        "array": "an array of embeddings",
    }
    kind = str(features.get("kind", ""))
    if kind == "column":
        return f"embeddings in column {features.get('column')!r}"
    if kind == "model":
        return f"embeddings by {features.get('model')}"
    if kind == "same":
        return f"pairs judged by {features.get('model') or features.get('function')}"
    return words.get(kind, kind)
