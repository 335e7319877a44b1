"""Which threshold: the coarsest at which two halves of the features, that share nothing, find the same clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pope_fast import _core
from pope_fast._extras import require
from pope_fast.cluster.features import Linkage, VectorFeatures, number_within
from pope_fast.cluster.rows import Block, Rows

if TYPE_CHECKING:
    from pathlib import Path

    import matplotlib.axes

__all__ = ["GRID", "StabilityCurve", "stability_curve"]

#: Thresholds that are tried.
GRID: NDArray[np.float64] = np.round(np.arange(0.02, 0.99, 0.02), 2)

#: Prompts that are looked at; those with fewer distinct responses than three have nothing to choose.
MOST_PROMPTS = 500
FEWEST_PROMPTS = 10
_FEWEST_RESPONSES = 3
_SPLITS = 4

# A stable structure has at least this stability, and one as coarse as possible at least this share of the best.
LEAST_STABLE = 0.5
NEARLY_BEST = 0.8
# With hardly any pair together, or hardly any apart, there is nothing that the halves could disagree on.
_TOGETHER = (0.01, 0.97)


@dataclass(frozen=True, slots=True)
class StabilityCurve:
    """How stable clusters within prompts are, by threshold.

    Attributes
    ----------
    thresholds : tuple of float
        Similarities from which responses belong together.
    stability : tuple of float
        ``agreement * persistence``.
    agreement : tuple of float
        Adjusted Rand index between clusters from two disjoint random halves of the features, pairs pooled over prompts;
        mean over four splits.
    persistence : tuple of float
        Adjusted Rand index with the clusters at the neighboring thresholds, the smaller of the two.
    together : tuple of float
        Share of the pairs within prompts that are in one cluster.
    clusters : tuple of float
        Mean number of clusters of a prompt.
    threshold : float
        The chosen one.
    reason : str
        Why this one, in a sentence.
    found : bool
        Whether a stable threshold was found; if not, ``threshold`` is the default of the features.
    n_prompts : int
        Prompts that were looked at; their distinct responses only.
    """

    thresholds: tuple[float, ...]
    stability: tuple[float, ...]
    agreement: tuple[float, ...]
    persistence: tuple[float, ...]
    together: tuple[float, ...]
    clusters: tuple[float, ...]
    threshold: float
    reason: str
    found: bool
    n_prompts: int

    def __repr__(self) -> str:
        return f"StabilityCurve(threshold={self.threshold:g}, found={self.found}, n_prompts={self.n_prompts})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def plot(self, ax: matplotlib.axes.Axes | None = None) -> matplotlib.axes.Axes:
        """Draw the curve, the number of clusters, and the chosen threshold.

        Parameters
        ----------
        ax : matplotlib axes, optional
            Where; a new figure otherwise.

        Returns
        -------
        matplotlib axes

        Raises
        ------
        PopeError
            If matplotlib is missing.
        """
        if ax is None:
            # Not pyplot, which would look for a screen and keep the figure.
            ax = require("matplotlib.figure", "the stability plot").Figure(figsize=(7, 4), layout="tight").subplots()
        assert ax is not None
        ax.plot(self.thresholds, self.stability, color="C0", label="stability")
        ax.plot(self.thresholds, self.agreement, color="C0", alpha=0.35, linestyle=":", label="agreement of halves")
        ax.axvline(self.threshold, color="C3", linestyle="--", label=f"threshold {self.threshold:g}")
        ax.set_xlabel("similarity threshold")
        ax.set_ylabel("adjusted Rand index")
        ax.set_ylim(-0.05, 1.05)
        count = ax.twinx()
        count.plot(self.thresholds, self.clusters, color="C2", alpha=0.6)
        count.set_ylabel("clusters per prompt", color="C2")
        ax.legend(loc="lower center", frameon=False)
        return ax

    def save_plot(self, path: str | Path) -> None:
        """Write the plot to a file; its name tells the format (PNG, SVG, PDF)."""
        self.plot().figure.savefig(str(path))


def stability_curve(
    rows: Rows,
    features: VectorFeatures,
    linkage: Linkage,
    *,
    seed: int = 0,
    threads: int | None = None,
) -> StabilityCurve:
    """Try thresholds on a sample of prompts, and choose one.

    Parameters
    ----------
    rows : Rows
        The log by prompt.
    features : VectorFeatures
        Fitted.
    linkage : {"average", "complete", "leader"}
        The method.
    seed : int
        Of the sample and of the halves.
    threads : int, optional
        Of the kernel.

    Returns
    -------
    StabilityCurve

    Notes
    -----
    Each split gives every feature (n-gram, coordinate of an embedding) to one of two halves, which are clustered apart.
    What both find is in the responses; what one finds alone is an accident of a few features. Repeated responses are
    left out, as they would agree at any threshold. The chosen threshold is the smallest local maximum of the stability
    that reaches 80 % of its greatest value: where coarse and fine clusters are both stable (perspectives, and wordings of
    a perspective), the coarse ones are meant. If the greatest value is below .5, or there are fewer than ten
    prompts with three distinct responses, the features' default is used, and ``reason`` says so.
    """
    assert features.default_threshold is not None
    block = _sample(rows, features, seed)
    if len(block.keys) < FEWEST_PROMPTS:
        reason = (
            f"only {len(block.keys)} prompts with three distinct responses or more were found, too few to choose from: "
            "the default of these features is used"
        )
        return StabilityCurve((), (), (), (), (), (), features.default_threshold, reason, False, len(block.keys))
    whole = features.labels(block, GRID, linkage, threads)
    clusters, neighbors = _core.compare_labels(block.offsets, whole, threads)
    persistence = np.minimum(np.append(neighbors, 1.0), np.insert(neighbors, 0, 1.0))
    agreement, together = np.zeros(len(GRID)), np.zeros(len(GRID))
    for split in range(_SPLITS):
        halves = [features.labels(block, GRID, linkage, threads, (seed + split, side)) for side in (0, 1)]
        agreement += _row_by_row(block.offsets, *halves, threads) / _SPLITS
        together += sum(_together(block.offsets, half) for half in halves) / (2 * _SPLITS)
    stability = np.clip(agreement, 0.0, None) * np.clip(persistence, 0.0, None)
    index = choose(stability, together)
    best = float(np.max(_within(stability, together)))
    if index is None:
        threshold = features.default_threshold
        reason = f"no threshold gives stable clusters (at best {best:.2f}): the default of these features is used"
    else:
        threshold = float(GRID[index])
        reason = f"the coarsest clusters that are stable ({stability[index]:.2f}; at best {best:.2f})"
    return StabilityCurve(
        thresholds=tuple(GRID.tolist()),
        stability=tuple(stability.tolist()),
        agreement=tuple(agreement.tolist()),
        persistence=tuple(persistence.tolist()),
        together=tuple(_together(block.offsets, whole).tolist()),
        clusters=tuple((clusters / len(block.keys)).tolist()),
        threshold=threshold,
        reason=reason,
        found=index is not None,
        n_prompts=len(block.keys),
    )


def _within(stability: NDArray[np.float64], together: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = _TOGETHER
    return np.where((together > low) & (together < high), stability, 0.0)


def choose(
    stability: Sequence[float] | NDArray[np.float64], together: Sequence[float] | NDArray[np.float64]
) -> int | None:
    """Return the index of the coarsest stable threshold, None if there is none.

    Parameters
    ----------
    stability : shape (t,)
        By increasing threshold.
    together : shape (t,)
        Share of pairs in one cluster; where it is below 1 % or above 97 %, a threshold is not eligible.
    """
    curve = _within(np.asarray(stability), np.asarray(together))
    best = float(curve.max(initial=0.0))
    if best < LEAST_STABLE:
        return None
    before, after = np.insert(curve[:-1], 0, -1.0), np.append(curve[1:], -1.0)
    peaks = np.flatnonzero((curve >= before) & (curve > after) & (curve >= NEARLY_BEST * best))
    return int(peaks[0])


def _sample(rows: Rows, features: VectorFeatures, seed: int) -> Block:
    """Return up to 500 prompts with three distinct responses or more, each response once."""
    mean = rows.n_rows / max(rows.n_units, 1)
    block = rows.sample(features.columns, int(4 * MOST_PROMPTS * mean) + 1, seed)
    if len(block) == 0:
        return block
    block = _distinct(block, features)
    enough = np.flatnonzero(block.sizes >= _FEWEST_RESPONSES)
    if len(enough) > MOST_PROMPTS:
        # Keys are sorted, and say nothing about the prompts beyond a hash of theirs: every so-manyth is as good as any.
        enough = enough[np.linspace(0, len(enough) - 1, MOST_PROMPTS).astype(np.int64)]
    return block.take(enough)


def _distinct(block: Block, features: VectorFeatures) -> Block:
    prompt = np.repeat(np.arange(len(block.keys)), block.sizes)
    number = number_within(features.identity(block), prompt)
    first = np.unique(prompt * (int(number.max()) + 1) + number, return_index=True)[1]
    first.sort()
    offsets = np.searchsorted(prompt[first], np.arange(len(block.keys) + 1)).astype(np.int64)
    columns = {name: array.take(first) for name, array in block.columns.items()}
    return Block(block.rows[first], offsets, block.keys, columns)


def _row_by_row(
    offsets: NDArray[np.int64], left: NDArray[np.int32], right: NDArray[np.int32], threads: int | None
) -> NDArray[np.float64]:
    """Return the adjusted Rand index between row t of one array of labels and row t of the other."""
    woven = np.empty((2 * len(left), left.shape[1]), dtype=np.int32)
    woven[0::2], woven[1::2] = left, right
    return _core.compare_labels(offsets, woven, threads)[1][0::2]


def _together(offsets: NDArray[np.int64], labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the share of pairs within prompts that are in one cluster, for each row of labels."""
    sizes = np.diff(offsets)
    prompt = np.repeat(np.arange(len(sizes)), sizes)
    stride = int(labels.max(initial=0)) + 1
    pairs = float(np.sum(sizes * (sizes - 1)))
    shares = []
    for row in labels:
        counts = np.unique(prompt * stride + row, return_counts=True)[1]
        shares.append(float(np.sum(counts * (counts - 1))) / max(pairs, 1.0))
    return np.array(shares)
