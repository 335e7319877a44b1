"""From settings to the keyword arguments of a loss, checked against the log before anything is trained."""

from __future__ import annotations

import inspect
import json
from typing import Any

import numpy as np

from pope_fast.align.config import POPEConfig
from pope_fast.align.data import LoggedPrompts
from pope_fast.align.losses import LOSSES, Diversity, Objective, RunningMarginal, Weighting
from pope_fast.errors import PopeError, SchemaError

__all__ = ["demand", "loss_options", "running_marginal"]


def demand(args: POPEConfig) -> frozenset[str]:
    """Return what the loss needs beside rewards and log-probs: "cluster", "tokens", "responses" ..."""
    needs = set(LOSSES[args.loss_type].needs)
    if args.loss_type == "pope":
        if args.diversity_weight > 0:
            needs.add("cluster")
        if args.weight_level == "token" or args.rejection in ("token", "k3"):
            needs.add("tokens")
        if args.welfare != "mean":
            needs.add("group")
    return frozenset(needs)


def loss_options(args: POPEConfig, data: LoggedPrompts) -> dict[str, Any]:
    """Return the keyword arguments of the loss.

    Parameters
    ----------
    args : POPEConfig
    data : LoggedPrompts
        The prompts to train on.

    Raises
    ------
    SchemaError
        If the log lacks a column that the loss needs.
    PopeError
        If log and settings do not go together.
    """
    needs = demand(args)
    _demand_columns(args, data, needs)
    extra = _extra(args)
    if args.loss_type != "pope":
        accepted = inspect.signature(LOSSES[args.loss_type].function).parameters
        options = {name: getattr(args, name) for name in ("beta", "diversity_weight") if name in accepted}
        unknown = sorted(set(extra) - set(accepted))
        if unknown:
            known = ", ".join(name for name in accepted if name != "batch")
            raise PopeError(f"loss {args.loss_type!r} has no option {unknown[0]!r}; it has: {known}")
        return {**options, **extra}
    _demand_responses(args, data)
    direct = {name: extra.pop(name) for name in ("reference",) if name in extra}
    groups = int(data.columns["group"].max()) + 1 if "group" in data.columns else 0
    try:
        objective = Objective(
            **{
                "diversity_weight": args.diversity_weight,
                "beta": args.beta,
                "kl": args.kl,
                "weighting": Weighting(
                    level=args.weight_level,  # type: ignore[arg-type]  # checked by Weighting itself
                    truncation=args.truncation,  # type: ignore[arg-type]
                    clip=args.clip,
                    rejection=args.rejection,  # type: ignore[arg-type]
                    taper=args.taper,  # type: ignore[arg-type]
                ),
                "diversity": Diversity(
                    measure=args.diversity_measure,  # type: ignore[arg-type]  # checked by Diversity itself
                    order=args.diversity_order,
                    level=args.diversity_level,  # type: ignore[arg-type]
                    n_clusters=_clusters(data),
                ),
                "welfare": args.welfare,
                "reward_range": data.reward_range,
                # Declares how many groups there are: a batch need not show them all.
                "group_shares": _group_shares(data, groups) if args.welfare != "mean" else None,
                **extra,
            }
        )
    except TypeError as error:
        raise PopeError(f"loss_options do not fit loss 'pope': {error}") from error
    return {"objective": objective, "form": args.form, "baseline": args.baseline, **direct}


def running_marginal(args: POPEConfig, options: dict[str, Any]) -> RunningMarginal | None:
    """Return the memory of cluster masses that training at the marginal level needs, or None."""
    objective = options.get("objective")
    if not isinstance(objective, Objective) or objective.diversity_weight == 0 or "reference" in options:
        return None
    clusters = objective.diversity.n_clusters
    if objective.diversity.level != "marginal" or args.marginal_memory == 0 or clusters is None:
        return None
    return RunningMarginal(clusters, decay=args.marginal_memory, smoothing=objective.diversity.smoothing)


def _extra(args: POPEConfig) -> dict[str, Any]:
    given = args.loss_options
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise PopeError(f"loss_options is no JSON object: {error}") from error
    if given is not None and not isinstance(given, dict):
        raise PopeError(f"loss_options must be a mapping of names to values, not {type(given).__name__}")
    return dict(given or {})


def _demand_columns(args: POPEConfig, data: LoggedPrompts, needs: frozenset[str]) -> None:
    if "cluster" in needs and "cluster" not in data.columns:
        raise SchemaError(
            f"loss {args.loss_type!r} needs the cluster of each response to see diversity",
            column="cluster",
            remedy="cluster the responses with pope cluster LOG -o OUT, or train on utility alone: diversity_weight=0",
        )
    if "group" in needs and "group" not in data.columns:
        raise SchemaError(
            f"welfare {args.welfare!r} needs to know whose feedback each reward is",
            column="group",
            remedy="add a group column, or use welfare='mean'",
        )
    if "responses" in needs and (data.responses < 2).all():
        raise PopeError(
            f"loss {args.loss_type!r} compares responses to one prompt, but every prompt has a single one. "
            "Remedy: log several responses per prompt, or use another loss_type."
        )


def _demand_responses(args: POPEConfig, data: LoggedPrompts) -> None:
    """Raise where diversity within prompts is asked for and the log cannot show it."""
    if args.diversity_weight == 0 or args.diversity_level != "prompt":
        return
    draws = data.responses
    if "count" in data.columns:
        draws = np.add.reduceat(data.columns["count"], data.offsets[:-1])
    most = int(draws.max())
    if most < 2:
        raise PopeError(
            "diversity within prompts needs two or more responses to a prompt; every prompt of the log has one. "
            "Remedy: diversity_level='marginal', which is about all prompts together, or log more responses."
        )
    needed = {"h_m": args.diversity_order + 1, "gini": 2, "coverage": args.diversity_order, "shannon": 2}
    least = needed[args.diversity_measure]
    if args.max_responses is not None:
        most = min(most, args.max_responses)
    if most < least:
        raise PopeError(
            f"diversity {args.diversity_measure!r} of order {args.diversity_order} needs {least} responses to a "
            f"prompt; there are at most {most}. "
            f"Remedy: diversity_order={max(1, args.diversity_order - (least - most))}."
        )


def _clusters(data: LoggedPrompts) -> int | None:
    return int(data.columns["cluster"].max()) + 1 if "cluster" in data.columns else None


def _group_shares(data: LoggedPrompts, groups: int) -> tuple[float, ...]:
    return tuple((np.bincount(data.columns["group"], minlength=groups) / data.n_rows).tolist())
