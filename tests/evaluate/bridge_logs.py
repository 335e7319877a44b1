"""Logs and fresh draws with exact log-weights, for the tests of the bridge check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pope_fast.evaluate.bridge import bridge_checks
from pope_fast.evaluate.findings import BridgeCheck
from pope_fast.log import read_log

# Log-probs are at most 0, and a log-normal weight has no bound.
BASE = -2000.0


def lognormal(
    rng: np.random.Generator,
    prompts: int = 300,
    k: int = 4,
    fresh_prompts: int = 200,
    fresh_k: int = 2,
    s: float = 1.0,
    offset: float = 0.0,
    shared: bool = True,
) -> tuple[pa.Table, pa.Table]:
    """World E2, with a spread of log-weights that differs between prompts: a log, and fresh draws of its policy "p".

    Under the logger log w = s z - s^2 / 2 with z standard normal; under the policy z is shifted by s. ``offset`` is
    added to every log-prob of the policy.
    """
    spread = s * np.exp(0.5 * rng.normal(size=prompts))
    if shared:
        which = np.sort(rng.choice(prompts, fresh_prompts, replace=False))
        fresh_spread = spread[which]
    else:
        which = np.arange(prompts, prompts + fresh_prompts)
        fresh_spread = s * np.exp(0.5 * rng.normal(size=fresh_prompts))

    def log_weights(spread: np.ndarray, k: int, shift: float) -> np.ndarray:
        z = rng.normal(size=(spread.size, k)) + shift * spread[:, None]
        return np.asarray(spread[:, None] * z - spread[:, None] ** 2 / 2).ravel()

    logged, drawn = log_weights(spread, k, 0.0), log_weights(fresh_spread, fresh_k, 1.0)
    log = pa.table(
        {
            "prompt_id": np.repeat(np.arange(prompts), k),
            "behavior_logprob": np.full(logged.size, BASE),
            "target_logprob/p": BASE + logged + offset,
            "reward": rng.random(logged.size),
        }
    )
    fresh = pa.table(
        {
            "prompt_id": np.repeat(which, fresh_k),
            "behavior_logprob": BASE + drawn + offset,
            "target_logprob/logger": np.full(drawn.size, BASE),
        }
    )
    return log, fresh


def check(log: Any, fresh: Any, policies: tuple[str, ...] = ("p",), **options: Any) -> BridgeCheck:
    given = {"logger": "logger", "unit": "prompt", "level": 0.95, "progress": False, **options}
    return bridge_checks(read_log(log), fresh, list(policies), **given)["p"]
