"""What a cluster column is, kept in the metadata of the log's schema, so that evaluation knows what it may compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import pyarrow as pa

__all__ = ["CLUSTERS_KEY", "ClusterInfo", "read_clusters", "with_clusters"]

CLUSTERS_KEY = b"pope_fast.clusters"
"""Key of the schema's metadata; its value is JSON: column -> :class:`ClusterInfo`."""


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """How a cluster column was made.

    Attributes
    ----------
    scope : {"prompt", "log"}
        Whether a label means something within its prompt only, or the same in the whole log.
    method : str
        "average", "complete", "leader", "equal" (same text, same cluster), "kmeans" or "hdbscan".
    threshold : float or None
        Similarity from which responses belong together; None for methods without one.
    chosen : str
        Where the threshold comes from: "given", "stability", "default", or "" without one.
    features : mapping
        What was compared: ``kind``, and what it takes to compute it again.
    n_clusters : int
        Over all prompts together ("prompt"), or in the log ("log").
    versions : mapping of str to str
        Of the libraries that took part.
    """

    scope: Literal["prompt", "log"]
    method: str
    threshold: float | None = None
    chosen: str = ""
    features: Mapping[str, Any] = field(default_factory=dict)
    n_clusters: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def read_clusters(schema: pa.Schema) -> dict[str, ClusterInfo]:
    """Return what the metadata says of a log's cluster columns; empty if it says nothing that can be read.

    Parameters
    ----------
    schema : pyarrow.Schema
        The log's.

    Returns
    -------
    dict of column to ClusterInfo
        Columns that are no longer there are left out.
    """
    try:
        stored = json.loads((schema.metadata or {}).get(CLUSTERS_KEY, b"{}"))
        known = {item.name for item in fields(ClusterInfo)}
        return {
            column: ClusterInfo(**{name: value for name, value in entry.items() if name in known})
            for column, entry in stored.items()
            if column in schema.names
        }
    except (ValueError, TypeError, AttributeError):
        # Another program's use of the key, or a later version's: the column is a cluster column like any other.
        return {}


def with_clusters(schema: pa.Schema, column: str, info: ClusterInfo) -> pa.Schema:
    """Return a schema that says how a cluster column was made; what it says of other columns stays."""
    entries = {name: entry.to_dict() for name, entry in read_clusters(schema).items()}
    entries[column] = info.to_dict()
    text = json.dumps(entries, sort_keys=True, allow_nan=False).encode()
    return schema.with_metadata({**(schema.metadata or {}), CLUSTERS_KEY: text})
