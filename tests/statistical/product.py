"""What the product itself says about arrays: a thin reader of the compiled state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast import _core
from pope_fast.evaluate.records import make_policy_value
from pope_fast.evaluate.results import PolicyValue
from pope_fast.evaluate.verdict import merge_thresholds
from pope_fast.log import RewardRange

# Log-probabilities are at most 0; what both policies share cancels in the ratio.
COMMON = -60.0


@dataclass(frozen=True)
class Reading:
    """Estimators of utility (value, standard error), intervals of utility, and everything else, by name."""

    estimates: dict[str, tuple[float, float]]
    intervals: dict[str, tuple[float, float]]
    diagnostics: dict[str, Any]
    summary: dict[str, Any]


def ends(named: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """The intervals of one named estimate, by method."""
    return {i["method"]: (i["interval"]["low"], i["interval"]["high"]) for i in named["intervals"]}


def read(
    logw: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    unit: npt.ArrayLike | None = None,
    cluster: npt.ArrayLike | None = None,
    level: float = 0.95,
    **options: Any,
) -> Reading:
    """Evaluate one policy; every row is a unit of its own unless ``unit`` says otherwise."""
    target = np.asarray(logw, dtype=np.float64) + COMMON
    key = np.arange(len(target)) if unit is None else np.asarray(unit, dtype=np.int64)
    state = _core.State(["p"], (0.0, 1.0), has_cluster=cluster is not None)
    labels = None if cluster is None else np.asarray(cluster, dtype=np.int64)
    behavior = np.full(len(target), COMMON)
    state.update(key, behavior, [target], np.asarray(reward, dtype=np.float64), cluster=labels, threads=1)
    summary = state.snapshot().summary("p", level=level, **options)
    named = {estimate["name"]: estimate for estimate in summary["utility"]}
    intervals = ends(named["sn_tips"]) | {"snips delta": ends(named["snips"])["delta"]}
    return Reading(
        {name: (e["value"], e["standard_error"]) for name, e in named.items()},
        intervals,
        summary["diagnostics"],
        summary,
    )


def k_hat(reading: Reading) -> float:
    """Tail index, infinite if there is no tail to fit."""
    value = reading.diagnostics["k_hat"]
    return math.inf if value is None else float(value)


def shown(reading: Reading, *, level: float = 0.95, thresholds: Mapping[str, float] | None = None) -> PolicyValue:
    """What ``pope_fast.evaluate`` makes of a reading: verdict, and the interval that it puts first."""
    return make_policy_value(
        reading.summary,
        estimator="sn_tips",
        level=level,
        diversity_weight=1.0,
        gates=merge_thresholds(thresholds),
        labels={"cluster": {}, "group": {}},
        calibration=None,
        bounds=RewardRange(0.0, 1.0, "declared"),
    )
