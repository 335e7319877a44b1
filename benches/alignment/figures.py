"""Figures of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from methods import METHODS

_AROUND = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1.4), (0, -1.4))
BLUE, GRAY, ORANGE, GREEN = "#1f5fa8", "#8a8f98", "#c8651b", "#2e7d4f"


def draw(folder: Path, results: dict[str, Any], report: Path) -> list[str]:
    """Draw what there are results for; return the names of the files."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 130}
    drawn = []
    if results["alignment"]:
        drawn.append(frontier(results["alignment"], report))
    if results["evaluation"]:
        drawn.append(estimates(json.loads((folder / "evaluation.json").read_text()), report))
    if results["ablation"]:
        drawn.append(ablation(results["ablation"], report))
    return drawn


def frontier(found: dict[str, Any], report: Path) -> str:
    """Utility against diversity, all methods; bars are intervals of the difference from the logger, paired by world."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 5.6), sharey=True)
    colors = {"scalar": GRAY, "diverse": ORANGE, "pope": BLUE}
    methods = found["methods"]
    # A policy that has fallen apart is named in the corner: on the axes it would leave no room for the others.
    floor = 0.9 * methods["logger"]["utility"]["mean"]
    lost = [name for name, row in methods.items() if row["utility"]["mean"] < floor]
    for axis, key, label in zip(
        axes, ("entropy", "coverage"), ("entropy of the perspectives, nats", "perspectives in 4 draws"), strict=True
    ):
        path, points = [], []
        for name, row in methods.items():
            if name in lost:
                continue
            kind = METHODS[name].kind if name in METHODS else "logger"
            x, y, color = row[key]["mean"], row["utility"]["mean"], colors.get(kind, "black")
            gain = row.get("gain")
            bars = {} if gain is None else {"xerr": gain[key]["half"], "yerr": gain["utility"]["half"]}
            axis.errorbar(x, y, **bars, fmt="o", ms=5, color=color, lw=0.6, alpha=0.85)
            points.append((x, y, name.replace("pope ", "λ = ") if kind == "pope" else name, color))
            if kind == "pope":
                path.append((x, y))
        if path:
            axis.plot(*zip(*path, strict=True), color=BLUE, lw=1.2)
        axis.margins(0.08)
        label_points(axis, points)
        axis.set_xlabel(label)
    axes[0].set_ylabel("utility: share of upvotes")
    for label, color in (
        ("POPE", BLUE),
        ("scalar feedback", GRAY),
        ("made for diversity", ORANGE),
        ("logger", "black"),
    ):
        axes[0].plot([], [], "o", color=color, label=label)
    axes[0].legend(frameon=False, loc="lower left")
    if lost:
        fallen = ", ".join(f"{name} ({methods[name]['utility']['mean']:.2f})" for name in lost)
        axes[1].text(0.01, 0.01, f"not shown, lower utility: {fallen}", transform=axes[1].transAxes, size=8, color=GRAY)
    figure.suptitle(
        f"Exact values on unseen questions, mean over {found['seeds']} worlds; "
        "bars: 95 % intervals of the difference from the logger"
    )
    figure.tight_layout()
    figure.savefig(report / "frontier.png")
    plt.close(figure)
    return "frontier.png"


def label_points(axis: Any, points: list[tuple[float, float, str, str]]) -> None:
    """Write names beside points, each where it covers no point and no name written before."""
    from matplotlib.transforms import Bbox

    figure = axis.figure
    figure.canvas.draw()
    at = [axis.transData.transform((x, y)) for x, y, _, _ in points]
    taken = [Bbox.from_bounds(px - 5, py - 5, 10, 10) for px, py in at]
    offsets = [(dx * step, dy * step) for step in (7, 14, 22, 32) for dx, dy in _AROUND]
    for x, y, name, color in points:
        best, least = None, float("inf")
        for dx, dy in offsets:
            align = "left" if dx > 0 else "right" if dx < 0 else "center"
            text = axis.annotate(
                name, (x, y), xytext=(dx, dy), textcoords="offset points", color=color, size=8, ha=align, va="center"
            )
            box = text.get_window_extent(figure.canvas.get_renderer())
            covered = sum(box.overlaps(other) for other in taken)
            if covered < least:
                if best is not None:
                    best.remove()
                best, least, found = text, covered, box
            else:
                text.remove()
            if least == 0:
                break
        taken.append(found)


def estimates(data: dict[str, Any], report: Path) -> str:
    """Estimates of U with their headline intervals, by policy, beside the truth."""
    import matplotlib.pyplot as plt

    sizes = sorted({log["prompts"] for log in data["logs"]})
    figure, axes = plt.subplots(1, len(sizes), figsize=(5.5 * len(sizes), 4.6), squeeze=False, sharey=True)
    colors = {"reliable": GREEN, "caution": ORANGE, "unreliable": "#b3261e"}
    for axis, n in zip(axes[0], sizes, strict=True):
        logs = [log for log in data["logs"] if log["prompts"] == n]
        names = list(logs[0]["policies"])
        for i, name in enumerate(names):
            true = data["truth"][name]["utility"]
            axis.plot([i - 0.42, i + 0.42], [true, true], color="black", lw=1.6, zorder=3)
            for at, log in zip(np.linspace(i - 0.38, i + 0.38, len(logs)), logs, strict=True):
                record = log["policies"][name]
                color = colors[record["verdict"]]
                if record["utility"]["interval"]:
                    axis.plot([at, at], record["utility"]["interval"], color=color, lw=0.7, alpha=0.6)
                axis.plot(at, record["utility"]["value"], ".", color=color, ms=2.5)
        axis.set_xticks(range(len(names)), names, rotation=35, ha="right")
        axis.set_title(f"{len(logs)} logs of {n} prompts")
        axis.set_ylim(0, 1)
    axes[0][0].set_ylabel("utility: truth (black), estimates with 95 % intervals")
    for verdict, color in colors.items():
        axes[0][-1].plot([], [], color=color, label=verdict)
    axes[0][-1].legend(frameon=False, loc="upper right")
    figure.tight_layout()
    figure.savefig(report / "estimates.png")
    plt.close(figure)
    return "estimates.png"


def ablation(found: dict[str, Any], report: Path) -> str:
    """What each change does to utility, entropy and value."""
    import matplotlib.pyplot as plt

    keys = {"utility": "utility", "entropy": "entropy, nats", "value": "value V", "unclear": "unclear text"}
    figure, axes = plt.subplots(1, len(keys), figsize=(11, 3.6), sharey=True)
    names = list(found)
    for axis, (key, label) in zip(axes, keys.items(), strict=True):
        for i, name in enumerate(names):
            d = found[name]["difference"][key]
            axis.errorbar(d["mean"], i, xerr=d["half"], fmt="o", color=BLUE, ms=4, lw=1)
        axis.axvline(0, color="black", lw=0.6)
        axis.set_xlabel(f"change in {label}")
        axis.set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(report / "ablation.png")
    plt.close(figure)
    return "ablation.png"
