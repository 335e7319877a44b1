"""Arrays in, everything that the native state says of them out: what all the other functions read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast import _core
from pope_fast.errors import PopeError, SchemaError
from pope_fast.evaluate.records import make_estimate
from pope_fast.evaluate.results import Estimate

_POLICY = "target"


def summary(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    prompt_id: npt.ArrayLike | None = None,
    cluster: npt.ArrayLike | None = None,
    group: npt.ArrayLike | None = None,
    count: npt.ArrayLike | None = None,
    num_tokens: npt.ArrayLike | None = None,
    baseline: npt.ArrayLike | None = None,
    baseline_mean: npt.ArrayLike | None = None,
    embedding: npt.ArrayLike | None = None,
    reward_range: tuple[float, float] | None = None,
    cluster_scope: str = "log",
    threads: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return everything that the native state says about one policy, as nested dictionaries.

    Parameters
    ----------
    target_logprob, behavior_logprob : array_like of float, shape (n,)
        Log-probability of each response under the target policy and under the logger, in nats.
    reward : array_like of float, shape (n,)
        In reward units.
    prompt_id : array_like, shape (n,), optional
        The independent unit of each row, integers or strings, in any order; without it every row is a unit.
    cluster, group : array_like, shape (n,), optional
        Integers or strings.
    count : array_like of int, shape (n,), optional
        How many draws a row stands for.
    num_tokens, baseline, baseline_mean : array_like of float, shape (n,), optional
        Length of the response; a reward model's prediction, and its mean under the target policy given the prompt.
    embedding : array_like of float, shape (n, width), optional
        A vector for each response, of any length but 0; needs ``prompt_id``.
    reward_range : (low, high), optional
        Bounds of the reward; the observed ones by default.
    cluster_scope : {"log", "prompt"}
        Whether a cluster label means the same in every prompt.
    threads : int, optional
        Threads; the result does not depend on it.
    **options
        ``level``, ``diversity`` (as in :func:`pope_fast.evaluate`), ``diversity_weight``, ``diversity_order``, ``tau``
        (truncation level of the weights; by default sqrt(n) times their mean), ``kappa`` (calibration of noisy
        log-probs), ``repeated_share``, ``order_share``.

    Raises
    ------
    SchemaError
        If an array has the wrong shape or a value that it cannot have.
    """
    columns: dict[str, Any] = {
        "target_logprob": floats("target_logprob", target_logprob),
        "behavior_logprob": floats("behavior_logprob", behavior_logprob),
        "reward": floats("reward", reward),
        "unit_key": _keys("prompt_id", prompt_id),
        "cluster": _keys("cluster", cluster),
        "group": _keys("group", group),
        "count": _optional("count", count),
        "num_tokens": _optional("num_tokens", num_tokens),
        "baseline": _optional("baseline", baseline),
        "baseline_mean": _optional("baseline_mean", baseline_mean),
        "embedding": _vectors("embedding", embedding),
    }
    n = len(columns["reward"])
    for name, values in columns.items():
        if values is not None and len(values) != n:
            raise SchemaError(f"{len(values)} elements where reward has {n}", column=name)
    if n == 0:
        raise SchemaError("there are no rows", column="reward")
    if (columns["baseline"] is None) != (columns["baseline_mean"] is None):
        raise PopeError("baseline and baseline_mean go together: DR needs the prediction and its policy mean")
    if embedding is not None and prompt_id is None:
        raise PopeError("embeddings are compared within prompts: pass prompt_id")
    order = _unit_order(columns["unit_key"])
    if order is not None:
        columns = {name: None if values is None else values[order] for name, values in columns.items()}
    state = _core.State(
        [_POLICY],
        _bounds(columns["reward"], reward_range),
        row_units=columns["unit_key"] is None,
        has_cluster=columns["cluster"] is not None,
        has_group=columns["group"] is not None,
        has_tokens=columns["num_tokens"] is not None,
        has_baseline=columns["baseline"] is not None,
        has_embedding=columns["embedding"] is not None,
        cluster_scope=cluster_scope,
    )
    means = columns.pop("baseline_mean")
    target = columns.pop("target_logprob")
    try:
        state.update(
            columns.pop("unit_key"),
            columns.pop("behavior_logprob"),
            [target],
            columns.pop("reward"),
            baseline_means=None if means is None else [means],
            threads=threads,
            **columns,
        )
    except SchemaError as error:
        row = error.row if error.row is None or order is None else int(order[error.row])
        raise SchemaError(error.message, column=error.column, row=row, remedy=error.remedy) from None
    return state.snapshot().summary(_POLICY, **options)


def floats(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return a column of numbers as it is, checked for its shape and type."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise SchemaError(f"must be one-dimensional, not of shape {array.shape}", column=name)
    if array.dtype == np.float32:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "fiub":
        raise SchemaError(f"must hold numbers, not {array.dtype}", column=name)
    return np.ascontiguousarray(array, dtype=np.float64)


def _optional(name: str, values: npt.ArrayLike | None) -> npt.NDArray[np.float64] | None:
    return None if values is None else floats(name, values).astype(np.float64, copy=False)


def _vectors(name: str, values: npt.ArrayLike | None) -> npt.NDArray[Any] | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[1] == 0:
        raise SchemaError(f"must have a row of numbers for each response, not the shape {array.shape}", column=name)
    if array.dtype.kind not in "fiu":
        raise SchemaError(f"must hold numbers, not {array.dtype}", column=name)
    single = array.dtype in (np.float16, np.float32)
    return np.ascontiguousarray(array, dtype=np.float32 if single else np.float64)


def _keys(name: str, values: npt.ArrayLike | None) -> npt.NDArray[np.int64] | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim != 1:
        raise SchemaError(f"must be one-dimensional, not of shape {array.shape}", column=name)
    if array.dtype.kind in "iub":
        return np.ascontiguousarray(array, dtype=np.int64)
    if array.dtype.kind in "UOS":
        # The labels themselves do not come back from here: their rank in the sorted labels is key enough.
        return np.unique(array, return_inverse=True)[1].astype(np.int64)
    raise SchemaError(f"must hold integers or strings, not {array.dtype}", column=name)


def _unit_order(unit: npt.NDArray[np.int64] | None) -> npt.NDArray[np.intp] | None:
    """Return the order that brings the rows of a unit together, or None if they already are."""
    if unit is None or _core.UnitScan().feed(unit) < 0:
        return None
    return np.argsort(unit, kind="stable")


def _bounds(reward: npt.NDArray[Any], declared: tuple[float, float] | None) -> tuple[float, float]:
    if declared is not None:
        return declared
    low, high = float(np.min(reward)), float(np.max(reward))
    if not (np.isfinite(low) and np.isfinite(high)):
        row = int(np.flatnonzero(~np.isfinite(reward))[0])
        raise SchemaError(
            f"reward is {reward[row]}", column="reward", row=row, remedy="drop the row or log a finite reward"
        )
    return (low, high) if low < high else (low, low + 1.0)


def named(records: Sequence[Mapping[str, Any]], name: str, level: float, **more: Any) -> Estimate:
    """Return the record of a name as an estimate."""
    for record in records:
        if record["name"] == name:
            return make_estimate(record, level, **more)
    raise PopeError(f"{name} is not available for these arrays")
