"""Several settings on one log: what utility costs in diversity, and the other way round."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from pope_fast._extras import require
from pope_fast.align import holdout
from pope_fast.align.config import POPEConfig
from pope_fast.align.trainer import POPETrainer
from pope_fast.errors import PopeError
from pope_fast.evaluate import Estimate, Evaluation, PolicyValue

__all__ = ["Frontier", "FrontierPoint", "sweep"]

_START = "before"


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One setting and what came of it.

    Attributes
    ----------
    name : str
        Of the policy in the evaluation.
    diversity_weight, beta : float or None
        lambda and beta of the run; None for the policy before training.
    policy : PolicyValue
        Held-out estimates, with a common lambda.
    efficient : bool
        Whether no other point is estimated to be at least as good in both utility and diversity, and better in one.
        The policy's verdict must not be ``unreliable``.
    output_dir : str or None
        Where the model was saved.
    """

    name: str
    diversity_weight: float | None
    beta: float | None
    policy: PolicyValue
    efficient: bool
    output_dir: str | None


@dataclass(frozen=True, slots=True, repr=False)
class Frontier:
    """The trade-off between utility and diversity: ``str`` is a table, :meth:`plot` a figure.

    Attributes
    ----------
    points : tuple of FrontierPoint
        The policy before training first.
    evaluation : Evaluation
        All of them on the same held-out prompts, with paired differences.
    """

    points: tuple[FrontierPoint, ...]
    evaluation: Evaluation

    def __repr__(self) -> str:
        best = ", ".join(point.name for point in self.points if point.efficient)
        return f"<Frontier of {len(self.points)} policies; efficient: {best}>"

    def __str__(self) -> str:
        header = ("policy", "lambda", "beta", "U utility", "D diversity", "verdict", "efficient")
        rows = [header, *(_row(point) for point in self.points)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Give the points as plain values for JSON."""
        return {
            "points": [
                {
                    "name": point.name,
                    "diversity_weight": point.diversity_weight,
                    "beta": point.beta,
                    **holdout.metrics(point.policy, "robust", prefix="held_out"),
                    "verdict": point.policy.verdict.level,
                    "efficient": point.efficient,
                    "output_dir": point.output_dir,
                }
                for point in self.points
            ],
            "level": self.evaluation.settings.level,
        }

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw utility against diversity with their intervals.

        Parameters
        ----------
        path : path, optional
            Where to save the figure; the format follows from its name.

        Returns
        -------
        matplotlib.figure.Figure
        """
        figure_module = require("matplotlib.figure", "a plot of the frontier")
        figure = figure_module.Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for point in self.points:
            diversity, utility = point.policy.diversity, point.policy.utility
            if diversity is None or diversity.value is None or utility.value is None:
                continue
            color = "#888888" if point.diversity_weight is None else "#1f6f8b" if point.efficient else "#c46a3a"
            bars = {"xerr": _bar(diversity), "yerr": _bar(utility)}
            axes.errorbar(
                [diversity.value],
                [utility.value],
                **bars,
                fmt="o",
                color=color,
                ecolor=color,
                elinewidth=0.8,
                capsize=2,
            )
            axes.annotate(
                point.name, (diversity.value, utility.value), xytext=(5, 5), textcoords="offset points", size=8
            )
        axes.set_xlabel("D, diversity")
        axes.set_ylabel("U, utility (reward units)")
        axes.set_title(f"Held-out estimates with {self.evaluation.settings.level:.0%} intervals", size=10)
        axes.spines[["top", "right"]].set_visible(False)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def sweep(
    model: Any,
    args: POPEConfig,
    train_dataset: Any,
    *,
    diversity_weights: Sequence[float],
    betas: Sequence[float] | None = None,
    **trainer_options: Any,
) -> Frontier:
    """Train once for every pair of lambda and beta, and estimate all results on the same held-out prompts.

    Parameters
    ----------
    model : transformers.PreTrainedModel or str
        Where every run starts; an object is left as it is.
    args : POPEConfig
        Its ``diversity_weight`` is the one with which V is shown; every run has a folder in its ``output_dir``.
    train_dataset
        As for :class:`POPETrainer`; the same prompts are held out in every run.
    diversity_weights : sequence of float
    betas : sequence of float, optional
        By default ``args.beta`` alone.
    **trainer_options
        Further arguments of :class:`POPETrainer`.

    Returns
    -------
    Frontier

    Raises
    ------
    PopeError
        If there is nothing to sweep over, or nothing is held out.
    """
    settings = list(product(diversity_weights, [args.beta] if betas is None else betas))
    if not settings or len(set(settings)) < len(settings):
        raise PopeError("a sweep needs one or more different pairs of diversity_weight and beta")
    if not args.holdout and trainer_options.get("eval_dataset") is None:
        raise PopeError("a sweep compares policies on held-out prompts. Remedy: set holdout above 0")
    logprobs: dict[str, Any] = {}
    folders: dict[str, str] = {}
    held: Any = None
    for weight, beta in settings:
        name = f"lambda={weight:g} beta={beta:g}"
        folder = str(Path(args.output_dir or ".") / name.replace(" ", "_"))
        run = copy.copy(args)
        run.diversity_weight, run.beta, run.output_dir = weight, beta, folder
        start = model if isinstance(model, str) else copy.deepcopy(model)
        trainer = POPETrainer(start, args=run, train_dataset=train_dataset, **trainer_options)
        trainer.train()
        trainer.save_model(folder)
        held = trainer.eval_dataset
        logprobs.setdefault(_START, trainer.initial_logprobs)
        logprobs[name] = trainer.final_logprobs
        folders[name] = folder
    evaluation = holdout.estimate(held, logprobs, args)
    pairs = dict(zip(folders, settings, strict=True))
    points = [
        FrontierPoint(
            name=name,
            diversity_weight=pairs[name][0] if name in pairs else None,
            beta=pairs[name][1] if name in pairs else None,
            policy=policy,
            efficient=False,
            output_dir=folders.get(name),
        )
        for name, policy in evaluation.items()
    ]
    return Frontier(tuple(replace(point, efficient=_efficient(point, points)) for point in points), evaluation)


def _bar(quantity: Estimate) -> list[list[float]] | None:
    """Return what matplotlib draws as error bar; a worst-case interval may lie beside the estimate."""
    interval, value = quantity.interval, quantity.value
    if interval is None or value is None:
        return None
    return [[max(0.0, value - interval.low)], [max(0.0, interval.high - value)]]


def _row(point: FrontierPoint) -> tuple[str, ...]:
    numbers = tuple("" if value is None else f"{value:g}" for value in (point.diversity_weight, point.beta))
    quantities = []
    for quantity in (point.policy.utility, point.policy.diversity):
        value = None if quantity is None else quantity.value
        interval = "" if quantity is None or quantity.interval is None else f" {quantity.interval}"
        quantities.append("n/a" if value is None else f"{value:.4g}{interval}")
    return (point.name, *numbers, *quantities, point.policy.verdict.level, "yes" if point.efficient else "")


def _coordinates(point: FrontierPoint) -> tuple[float, float] | None:
    utility, diversity = point.policy.utility.value, point.policy.diversity
    if utility is None or point.policy.verdict.level == "unreliable":
        return None
    return utility, 0.0 if diversity is None or diversity.value is None else diversity.value


def _efficient(point: FrontierPoint, points: Sequence[FrontierPoint]) -> bool:
    mine = _coordinates(point)
    if mine is None:
        return False
    others = [other for other in map(_coordinates, points) if other is not None and other != mine]
    return not any(other[0] >= mine[0] and other[1] >= mine[1] for other in others)
