"""Clusters of responses: perspectives within a prompt, themes over a log."""

from __future__ import annotations

from pope_fast.cluster.metadata import CLUSTERS_KEY, ClusterInfo, read_clusters
from pope_fast.cluster.pairs import entailment
from pope_fast.cluster.quality import Agreement, adjusted_rand_index, agreement, v_measure
from pope_fast.cluster.results import Clustering
from pope_fast.cluster.run import METHODS, cluster
from pope_fast.cluster.stability import StabilityCurve

__all__ = [
    "CLUSTERS_KEY",
    "METHODS",
    "Agreement",
    "ClusterInfo",
    "Clustering",
    "StabilityCurve",
    "adjusted_rand_index",
    "agreement",
    "cluster",
    "entailment",
    "read_clusters",
    "v_measure",
]
