"""How much D and V depend on where clusters end: the log is clustered again at thresholds around its own."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pope_fast import _core
from pope_fast._extras import require
from pope_fast.cluster.choice import restore_features
from pope_fast.cluster.metadata import ClusterInfo, read_clusters
from pope_fast.cluster.pairs import Same
from pope_fast.cluster.relabel import relabeled
from pope_fast.cluster.rows import Rows
from pope_fast.cluster.run import LabeledRows, label_rows
from pope_fast.errors import PopeError, PopeWarning
from pope_fast.evaluate.results import Estimate
from pope_fast.evaluate.run import evaluate
from pope_fast.log import FeedbackLog, read_log
from pope_fast.log.arrays import keys
from pope_fast.log.batches import unit_column

if TYPE_CHECKING:
    import matplotlib.axes

__all__ = ["ClusterSensitivity", "PolicySensitivity", "cluster_sensitivity"]

#: Distances from the log's own threshold.
STEPS = (-0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15)
_REPRODUCED = 0.999


@dataclass(frozen=True, slots=True)
class PolicySensitivity:
    """D and V of one policy at each threshold.

    Attributes
    ----------
    policy
        Its name.
    diversity, value
        D and V with their headline intervals, in the order of the thresholds.
    verdict
        The level of its verdict, which clusters hardly change.
    """

    policy: str
    diversity: tuple[Estimate | None, ...]
    value: tuple[Estimate, ...]
    verdict: str


@dataclass(frozen=True, slots=True)
class ClusterSensitivity:
    """How D and V depend on the threshold of the clusters.

    Attributes
    ----------
    thresholds
        Increasing; ``own`` is one of them.
    own
        The threshold at which the log was clustered.
    clusters_per_prompt
        Mean number of clusters of a prompt at each threshold.
    measure
        Name of D, for instance "H_3".
    policies
        Policy -> its D and V.
    notes
        What a reader has to know.
    """

    thresholds: tuple[float, ...]
    own: float
    clusters_per_prompt: tuple[float, ...]
    measure: str
    policies: Mapping[str, PolicySensitivity]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        low, high = self.thresholds[0], self.thresholds[-1]
        return f"<ClusterSensitivity of {', '.join(self.policies)}: thresholds {low:g} to {high:g}, own {self.own:g}>"

    def __str__(self) -> str:
        names = list(self.policies)
        head = ["threshold", "clusters", *(f"{quantity} {name}" for name in names for quantity in "DV")]
        rows = [head]
        for i, threshold in enumerate(self.thresholds):
            cells = [f"{threshold:g}" + (" *" if threshold == self.own else "  "), f"{self.clusters_per_prompt[i]:.2f}"]
            for name in names:
                policy = self.policies[name]
                cells += [_cell(policy.diversity[i]), _cell(policy.value[i])]
            rows.append(cells)
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(
            [
                f"D ({self.measure}) and V by the threshold of the clusters (* the log's own; clusters per prompt)",
                *lines,
                *(f"note: {note}" for note in self.notes),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        from pope_fast.report.json import to_plain

        plain: dict[str, Any] = to_plain(self)
        return plain

    def plot(self, ax: matplotlib.axes.Axes | None = None) -> matplotlib.axes.Axes:
        """Draw D of each policy against the threshold.

        Parameters
        ----------
        ax : matplotlib axes, optional
            Where; a new figure otherwise.

        Raises
        ------
        PopeError
            If matplotlib is missing.
        """
        if ax is None:
            figure = require("matplotlib.figure", "the sensitivity plot").Figure(figsize=(7, 4), layout="tight")
            ax = figure.subplots()
        assert ax is not None
        for index, (name, policy) in enumerate(self.policies.items()):
            ax.plot(self.thresholds, [_ends(d)[1] for d in policy.diversity], marker="o", color=f"C{index}", label=name)
            # Where there is no interval there is no band.
            low, high = [_ends(d)[0] for d in policy.diversity], [_ends(d)[2] for d in policy.diversity]
            ax.fill_between(self.thresholds, low, high, color=f"C{index}", alpha=0.15)
        ax.axvline(self.own, color="0.5", linestyle="--")
        ax.set_xlabel("similarity threshold")
        ax.set_ylabel(f"D ({self.measure})")
        ax.legend(frameon=False)
        return ax


def _ends(estimate: Estimate | None) -> tuple[float, float, float]:
    """Return the low end, the value and the high end for drawing; NaN is not drawn."""
    nothing = float("nan")
    if estimate is None or estimate.value is None:
        return nothing, nothing, nothing
    if estimate.interval is None:
        return nothing, estimate.value, nothing
    return estimate.interval.low, estimate.value, estimate.interval.high


def _cell(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "-"
    if estimate.interval is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.interval.low:.3f}, {estimate.interval.high:.3f}]"


def cluster_sensitivity(
    log: Any,
    policies: Mapping[str, str] | Iterable[str] | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    thresholds: Sequence[float] | None = None,
    embeddings: Any = None,
    model: Any = None,
    same: Same | None = None,
    gates: Mapping[str, float] | None = None,
    threads: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> ClusterSensitivity:
    """Cluster a log again at several thresholds, and evaluate it with each of these clusterings.

    Parameters
    ----------
    log
        A log that :func:`pope_fast.cluster` clustered within prompts, as :func:`pope_fast.evaluate` takes it: its
        metadata say by which features and method. The texts or embeddings must still be there.
    policies, columns
        As in :func:`pope_fast.evaluate`.
    thresholds : sequence of float, optional
        Similarities; by default the log's own threshold and .05, .1 and .15 to both sides.
    embeddings, model, same : optional
        The array, the loaded model or the function that the log was clustered with; metadata cannot hold these.
    gates : mapping of str to float, optional
        Gates of the verdict: ``thresholds`` of :func:`pope_fast.evaluate`.
    threads, progress
        As in :func:`pope_fast.evaluate`.
    **options
        Other options of :func:`pope_fast.evaluate`: ``diversity_weight``, ``level``, ``unit`` ...

    Returns
    -------
    ClusterSensitivity

    Raises
    ------
    PopeError
        If the log does not say how it was clustered, its clusters have no threshold, or D is not measured by clusters.
    SchemaError
        If the texts or embeddings are no longer there.
    """
    if options.get("diversity") in ("rao", "vendi"):
        raise PopeError("D from embeddings does not depend on clusters: there is no sensitivity to their threshold")
    opened = _open(log, policies, columns, options)
    column = opened.columns.get("cluster")
    info = None if column is None else read_clusters(opened.schema).get(column)
    if column is None or info is None:
        raise PopeError(
            "the log does not say how it was clustered, so it cannot be clustered again: cluster it with "
            "'pope cluster' (pope_fast.cluster), which keeps the method and the threshold in the file"
        )
    if info.threshold is None or info.scope != "prompt":
        raise PopeError(f"the clusters of {column!r} ({info.method}) have no threshold that could be moved")
    own = info.threshold
    cuts = _grid(own, thresholds)
    features = restore_features(opened, info, embeddings=embeddings, model=model, same=same)
    unit, role = unit_column(opened.columns, opened.schema.names, "prompt")
    rows = Rows(opened, unit, role)
    features.fit(rows, int(info.features.get("seed", 0)))
    found = label_rows(rows, features, cuts, info.method, threads=threads, progress=progress)
    notes = _compared(rows, opened, column, info, found, cuts)
    with warnings.catch_warnings():
        # What there is to say about the log was said when it was evaluated as it is.
        warnings.simplefilter("ignore", PopeWarning)
        evaluations = [
            evaluate(
                relabeled(opened, labels, replace(info, threshold=cut), column),
                policies,
                **{**options, "cluster_scope": "prompt", "thresholds": gates},
                threads=threads,
                progress=False,
            )
            for cut, labels in zip(cuts, found.labels, strict=True)
        ]
    own_evaluation = evaluations[cuts.index(own)]
    results = {
        name: PolicySensitivity(
            policy=name,
            diversity=tuple(evaluation[name].diversity for evaluation in evaluations),
            value=tuple(evaluation[name].value for evaluation in evaluations),
            verdict=policy.verdict.level,
        )
        for name, policy in own_evaluation.items()
    }
    measures = {policy.diversity.name for policy in own_evaluation.values() if policy.diversity is not None}
    return ClusterSensitivity(
        thresholds=tuple(cuts),
        own=own,
        clusters_per_prompt=tuple(count / found.n_prompts for count in found.n_clusters),
        measure=", ".join(sorted(measures)),
        policies=results,
        notes=(*notes, *_ranking(results, cuts)),
    )


def _open(log: Any, policies: Any, columns: Mapping[str, str] | None, options: Mapping[str, Any]) -> FeedbackLog:
    if isinstance(log, FeedbackLog):
        if columns is not None:
            raise PopeError("columns= belongs to read_log where the log is opened already")
        return log
    if policies is not None and not isinstance(policies, Mapping):
        policies = list(policies)
    unit = options.get("unit") or "prompt"
    return read_log(log, columns=columns, policies=policies, reward_range=options.get("reward_range"), unit=unit)


def _grid(own: float, thresholds: Sequence[float] | None) -> list[float]:
    if thresholds is None:
        chosen = {round(own + step, 6) for step in STEPS} - {round(own, 6)}
        chosen = {cut for cut in chosen if -1.0 < cut < 1.0}
    else:
        chosen = {float(cut) for cut in thresholds}
        for cut in chosen:
            if not -1.0 <= cut <= 1.0:
                raise PopeError(f"thresholds are similarities between -1 and 1, not {cut:g}")
    return sorted(chosen | {own})


def _compared(
    rows: Rows, log: FeedbackLog, column: str, info: ClusterInfo, found: LabeledRows, cuts: list[float]
) -> list[str]:
    """Say so if clustering at the log's own threshold does not give the log's clusters."""
    stored = np.empty(rows.n_rows, dtype=np.int64)
    again = found.labels[cuts.index(info.threshold)]  # type: ignore[arg-type]
    offsets: list[NDArray[np.int64]] = []
    order: list[NDArray[np.int64]] = []
    start = 0
    for block in rows.blocks([column]):
        part = np.asarray(keys(block.columns[column], "cluster", column, 0), dtype=np.int64)
        stored[block.rows] = part
        order.append(block.rows)
        offsets.append(block.offsets[:-1] + start)
        start += len(block)
    where = np.concatenate(order)
    edges = np.append(np.concatenate(offsets), start).astype(np.int64)
    codes = np.unique(stored, return_inverse=True)[1].astype(np.int32)
    index = float(_core.compare_labels(edges, np.stack([codes[where], again[where]]))[1][0])
    if index >= _REPRODUCED:
        return []
    return [
        f"clustering again at the log's own threshold gives other clusters than those in {column!r} "
        f"(adjusted Rand index {index:.3f}): rows were added or dropped since, or a library has changed"
    ]


def _ranking(results: Mapping[str, PolicySensitivity], cuts: Sequence[float]) -> list[str]:
    """Say whether the order of the policies by V depends on the threshold."""
    notes = []
    names = list(results)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            signs = [
                np.sign(x.value - y.value)
                for x, y in zip(results[a].value, results[b].value, strict=True)
                if x.value is not None and y.value is not None
            ]
            if any(left != right for left, right in pairwise(signs)):
                notes.append(f"which of {a} and {b} has the larger V depends on the threshold")
    return notes
