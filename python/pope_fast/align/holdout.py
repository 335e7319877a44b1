"""What the log says about the policy in training: its value on prompts that training does not see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pope_fast.align.data import LoggedPrompts
from pope_fast.evaluate import Evaluation, PolicyValue, evaluate

if TYPE_CHECKING:
    from pope_fast.align.config import POPEConfig

__all__ = ["estimate", "lower_bound", "metrics", "reasons_to_stop", "to_table"]

_LEVELS = {"reliable": 0.0, "caution": 1.0, "unreliable": 2.0}


def to_table(data: LoggedPrompts, logprobs: Mapping[str, npt.NDArray[np.float64]]) -> pa.Table:
    """Return prompts as a log, with the log-probs of some policies.

    Parameters
    ----------
    data : LoggedPrompts
    logprobs : mapping of name to array of shape (n,)
        Sequence log-probs of each policy, in nats.
    """
    columns: dict[str, Any] = {"prompt_id": pa.array(data.prompt_of_row)}
    for name in ("behavior_logprob", "reward", "count"):
        if name in data.columns:
            columns[name] = pa.array(data.columns[name])
    for name in ("cluster", "group"):
        if name in data.columns:
            labels = data.names.get(name, {})
            columns[name] = pa.array([str(labels.get(int(value), value)) for value in data.columns[name]])
    columns.update((f"target_logprob/{name}", pa.array(values)) for name, values in logprobs.items())
    return pa.table(columns)


def estimate(
    data: LoggedPrompts,
    logprobs: Mapping[str, npt.NDArray[np.float64]],
    args: POPEConfig,
    *,
    level: float | None = None,
) -> Evaluation:
    """Evaluate policies on held-out prompts, with the diversity weight of the training.

    Parameters
    ----------
    data, logprobs
        As in :func:`to_table`.
    args : POPEConfig
    level : float, optional
        Coverage of the intervals; that of ``args`` by default.
    """
    return evaluate(
        to_table(data, logprobs),
        diversity_weight=args.diversity_weight if "cluster" in data.columns else 0.0,
        diversity_order=min(max(args.diversity_order, 1), 3),
        reward_range=data.reward_range,
        level=args.level if level is None else level,
        progress=False,
    )


def reasons_to_stop(policy: PolicyValue) -> tuple[str, ...]:
    """Return why the log no longer supports a policy; empty where it does.

    These are the reasons of an ``unreliable`` verdict. Three of them do not count while the effective sample size is
    more than half of the held-out prompts, for they then speak of how few these are: that sample size itself, the width
    of an interval, and k-hat, which a few hundred responses cannot tell from a mixture of weights.
    """
    near = (policy.diagnostics.ess_fraction or 0.0) > 0.5
    of_few = ("low_ess", "heavy_tail", "wide_interval")
    return tuple(
        finding.message
        for finding in policy.verdict.findings
        if finding.severity == "unreliable" and not (near and finding.code in of_few)
    )


def lower_bound(policy: PolicyValue, method: str) -> float:
    """Return the lower end of the interval of V by ``method``, -inf where there is none."""
    interval = policy.value.intervals.get(method)
    return -math.inf if interval is None else interval.low


def metrics(policy: PolicyValue, method: str, prefix: str = "eval") -> dict[str, float]:
    """Return the numbers of a policy under the names by which a trainer logs them.

    Parameters
    ----------
    policy : PolicyValue
    method : {"robust", "certified"}
        Which lower bound of V is ``value_lower``.
    prefix : str

    Returns
    -------
    dict of str to float
        ``eval_utility``, ``eval_diversity`` and ``eval_value``, each with ``_low`` and ``_high`` where there is an
        interval; ``eval_value_lower``; ``eval_ess``, ``eval_k_hat``, ``eval_kl``; ``eval_verdict``: 0 reliable, 1
        caution, 2 unreliable.
    """
    numbers: dict[str, float | None] = {"value_lower": lower_bound(policy, method)}
    for name in ("utility", "diversity", "value"):
        quantity = getattr(policy, name)
        if quantity is None:
            continue
        numbers[name] = quantity.value
        if quantity.interval is not None:
            numbers[f"{name}_low"], numbers[f"{name}_high"] = quantity.interval.low, quantity.interval.high
    found = policy.diagnostics
    numbers.update(ess=found.ess, k_hat=found.k_hat, kl=found.kl_target_behavior)
    numbers["verdict"] = _LEVELS[policy.verdict.level]
    return {f"{prefix}_{name}": float(value) for name, value in numbers.items() if value is not None}
