"""Small logs in memory, from log-weights, for the tests of the evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

import pope_fast as pope
from pope_fast.evaluate import evaluate

N, K = 400, 4


def table(logw: np.ndarray | dict[str, np.ndarray], *, k: int = K, seed: int = 0, **columns: Any) -> pa.Table:
    """A log of ``len / k`` prompts from log-weights; rewards, clusters and the rest unless given."""
    policies = logw if isinstance(logw, dict) else {"p": logw}
    n = len(next(iter(policies.values())))
    rng = np.random.default_rng(seed)
    behavior = np.full(n, -90.0)
    given: dict[str, Any] = {
        "prompt_id": np.repeat(np.arange(n // k), k),
        "behavior_logprob": behavior,
        **{f"target_logprob/{name}": behavior + w for name, w in policies.items()},
        "reward": rng.uniform(size=n),
        "cluster": rng.integers(0, 4, size=n),
    }
    return pa.table({key: value for key, value in (given | columns).items() if value is not None})


def lognormal(s: float, n: int = N * K, seed: int = 1, k: int = K) -> np.ndarray:
    """Log-weights of mean weight 1; one normal per prompt spreads the prompts' weights in full."""
    z = np.random.default_rng(seed).normal(size=n)
    return s * z - s * s / 2


def exact(logw: np.ndarray) -> np.ndarray:
    """The same with a mean weight of exactly 1, whatever the sample."""
    return np.asarray(logw - np.log(np.mean(np.exp(logw))))


def run(log: pa.Table, **options: Any) -> pope.Evaluation:
    options.setdefault("reward_range", (0.0, 1.0))
    return evaluate(log, **options)


def codes(evaluation: pope.Evaluation, policy: str = "p") -> dict[str, str]:
    return {finding.code: finding.severity for finding in evaluation[policy].verdict.findings}
