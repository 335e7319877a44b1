"""A log with another cluster column: the same rows, read from the same place, with labels put in as they pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast.cluster.metadata import ClusterInfo, with_clusters
from pope_fast.log.arrow_types import Array
from pope_fast.log.columns import ColumnMap, Resolution
from pope_fast.log.feedback_log import FeedbackLog
from pope_fast.log.sources import Source, digest

__all__ = ["RelabeledSource", "relabeled"]


class RelabeledSource(Source):
    """The rows of a log with a column of labels, new or in the place of the one of that name."""

    def __init__(self, log: FeedbackLog, column: str, labels: NDArray[np.int32], info: ClusterInfo) -> None:
        self._reader = log.reader
        self._column = column
        self._labels = labels
        self.description = log.source
        field = pa.field(column, pa.int32(), nullable=False)
        place = log.schema.get_field_index(column)
        schema = log.schema.append(field) if place < 0 else log.schema.set(place, field)
        self.schema = with_clusters(schema, column, info)

    @property
    def num_rows(self) -> int | None:
        """Number of rows."""
        return len(self._labels)

    def read(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, with the columns asked for."""
        others = [name for name in columns if name != self._column]
        if not others and self._column in columns:
            for start in range(0, len(self._labels), batch_rows):
                yield self._batch({}, columns, start, min(batch_rows, len(self._labels) - start))
            return
        start = 0
        for batch in self._reader.read(others, batch_rows):
            yield self._batch({name: batch.column(name) for name in others}, columns, start, batch.num_rows)
            start += batch.num_rows

    def _batch(self, arrays: dict[str, Array], columns: Sequence[str], start: int, rows: int) -> pa.RecordBatch:
        arrays[self._column] = pa.array(self._labels[start : start + rows])
        schema = pa.schema([self.schema.field(name).with_type(arrays[name].type) for name in columns])
        return pa.RecordBatch.from_arrays([arrays[name] for name in columns], schema=schema)

    def fingerprint(self) -> str:
        """Return a digest that changes when the rows or the labels do."""
        import hashlib

        labels = hashlib.blake2b(np.ascontiguousarray(self._labels).tobytes(), digest_size=16).hexdigest()
        return digest([self._reader.fingerprint(), self._column, labels])

    def locate(self, row: int) -> str | None:
        """Say where a row lies."""
        return self._reader.locate(row)


def relabeled(log: FeedbackLog, labels: NDArray[np.int32], info: ClusterInfo, column: str = "cluster") -> FeedbackLog:
    """Return a log like another one, with other clusters.

    Parameters
    ----------
    log : FeedbackLog
        The log.
    labels : ndarray of int32, shape (rows,)
        In the log's own order.
    info : ClusterInfo
        How they were made.
    column : str
        Their column, which plays the role "cluster" in the new log.
    """
    resolution = Resolution(ColumnMap({**log.columns, "cluster": column}), log.policies, log.faults)
    source = RelabeledSource(log, column, labels, info)
    return FeedbackLog(source, resolution, declared_range=log.declared_range, unit=log.unit)
