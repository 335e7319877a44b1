"""What people get wrong: a log for each mistake, and what is said of it. `docs/mistakes.md` is made from this list."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pope_fast.errors import PopeError, PopeWarning
from pope_fast.evaluate import Finding, evaluate

N, K = 400, 4
Columns = dict[str, Any]


def good() -> Columns:
    """A log that is right: 400 prompts with four responses, and a policy near the logger."""
    rng = np.random.default_rng(17)
    z = rng.normal(size=N * K)
    tokens = rng.integers(30, 300, N * K)
    behavior = -tokens * rng.uniform(0.5, 1.0, N * K)
    return {
        "prompt_id": np.repeat(np.arange(N), K),
        "behavior_logprob": behavior,
        "target_logprob/new": behavior + 0.3 * z - 0.045,
        "reward": (rng.random(N * K) < 0.5).astype(float),
        "cluster": rng.integers(0, 4, N * K),
    }


@dataclass(frozen=True)
class Mistake:
    """A mistake, in words and as a change of a good log, and the code of the finding or words of the error."""

    title: str
    change: Callable[[Columns], Columns]
    says: str
    is_error: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def result(self) -> Finding | PopeError:
        """Evaluate the wrong log; return the finding expected, or the error.

        Raises
        ------
        AssertionError
            If neither came.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PopeWarning)
            try:
                found = evaluate(pa.table(self.change(good())), **{"reward_range": (0.0, 1.0), **self.options})
            except PopeError as error:
                return error
        policy = found["new"]
        estimates = [*policy.estimates("groups"), *policy.estimates("welfare"), *policy.estimates("value")]
        findings = [*policy.verdict.findings, *(f for e in estimates if e.verdict for f in e.verdict.findings)]
        named = [finding for finding in findings if finding.code == self.says]
        assert named, (self.says, [finding.code for finding in findings])
        return named[0]


def _set(**columns: Any) -> Callable[[Columns], Columns]:
    return lambda log: log | columns


def _target(change: Callable[[Columns], Any]) -> Callable[[Columns], Columns]:
    return lambda log: log | {"target_logprob/new": change(log)}


def _averaged(log: Columns) -> Columns:
    tokens = -log["behavior_logprob"] / 0.75
    behavior = log["behavior_logprob"]
    return log | {"behavior_logprob": behavior / tokens, "target_logprob/new": (behavior + _Z - 0.5) / tokens}


def _few_prompts(log: Columns) -> Columns:
    return {name: values[: 12 * K] for name, values in log.items()}


def _one_heavy_row(log: Columns) -> Columns:
    target = log["target_logprob/new"].copy()
    target[7] += 6.5
    return log | {"target_logprob/new": target}


def _own_label_each(log: Columns) -> Columns:
    single = {name: values[::K] for name, values in log.items()}
    return single | {"cluster": np.arange(N)}


def _gap(log: Columns) -> Columns:
    reward = log["reward"].copy()
    reward[21] = np.nan
    return log | {"reward": reward}


def _without(name: str) -> Callable[[Columns], Columns]:
    return lambda log: {column: values for column, values in log.items() if column != name}


_Z = np.random.default_rng(18).normal(size=N * K)
_RARE = (np.arange(N * K) % (N * K // 12) == 0).astype(float)

MISTAKES = [
    Mistake("Log-probs are means over tokens, not sums", _averaged, "negative_divergence"),
    Mistake(
        "The two policies were scored with other templates or temperatures: an offset",
        _target(lambda log: log["target_logprob/new"] + 0.5),
        "inconsistent_log_probs",
    ),
    Mistake("Probabilities stand where log-probs should", _target(lambda _: np.full(N * K, 0.25)), "above 0", True),
    Mistake(
        "The policy is far from the one that wrote the log",
        _target(lambda log: log["behavior_logprob"] + 4 * _Z - 8),
        "low_ess",
    ),
    Mistake(
        "The policy says what the logger never says",
        _target(lambda log: log["target_logprob/new"] - 0.7),
        "unreached_mass",
    ),
    Mistake("A dozen prompts", _few_prompts, "low_ess"),
    Mistake("Fewer than one response in a hundred is rewarded", _set(reward=_RARE), "rare_reward"),
    Mistake("Fewer than one response in a hundred is *not* rewarded", _set(reward=1.0 - _RARE), "rare_reward"),
    Mistake(
        "The reward is the same everywhere",
        _set(reward=np.full(N * K, 0.7)),
        "constant_reward",
        options={"reward_range": None},
    ),
    Mistake("One log-prob is wrong by some nats", _one_heavy_row, "dominant_unit"),
    Mistake("Every response is a cluster of its own", _own_label_each, "unseen_clusters"),
    Mistake(
        "A group of annotators has ten prompts", _set(group=(np.arange(N * K) < 10 * K).astype(int)), "small_group"
    ),
    Mistake("The policy that wrote the log has no log-probs", _without("behavior_logprob"), "behavior_logprob", True),
    Mistake("A reward is missing", _gap, "reward", True),
    Mistake("The reward leaves its declared range", _set(reward=np.arange(N * K) % 5 + 1.0), "reward", True),
]
