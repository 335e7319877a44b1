"""What people get wrong: a log for each mistake, and what is said of it. `docs/mistakes.md` is made from this list."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pope_fast.errors import PopeError, PopeWarning
from pope_fast.evaluate import Finding, evaluate
from pope_fast.log import ValidationReport, validate

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
    """A mistake, in words and as a change of a good log, and the code of the finding or words of the error.

    ``quantities`` are those that the finding concerns, and ``validated`` says that a validation finds it as well.
    """

    title: str
    change: Callable[[Columns], Columns]
    says: str
    is_error: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    quantities: tuple[str, ...] = ()
    validated: bool = False

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
                found = evaluate(_table(self.change(good())), **{"reward_range": (0.0, 1.0), **self.options})
            except PopeError as error:
                return error
        policy = found["new"]
        estimates = [*policy.estimates("groups"), *policy.estimates("welfare"), *policy.estimates("value")]
        findings = [*policy.verdict.findings, *(f for e in estimates if e.verdict for f in e.verdict.findings)]
        named = [finding for finding in findings if finding.code == self.says]
        assert named, (self.says, [finding.code for finding in findings])
        return named[0]

    def validation(self) -> ValidationReport:
        """Validate the wrong log."""
        bounds = self.options.get("reward_range", (0.0, 1.0))
        return validate(_table(self.change(good())), reward_range=bounds)


def _table(columns: Columns) -> pa.Table:
    return pa.table(columns, metadata=columns.pop("metadata", None))


def _set(**columns: Any) -> Callable[[Columns], Columns]:
    return lambda log: log | columns


def _target(change: Callable[[Columns], Any]) -> Callable[[Columns], Columns]:
    return lambda log: log | {"target_logprob/new": change(log)}


def _tokens() -> Any:
    """Give the numbers of tokens of the good log."""
    rng = np.random.default_rng(17)
    rng.normal(size=N * K)
    return rng.integers(30, 300, N * K)


def _averaged(log: Columns) -> Columns:
    tokens = _tokens()
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


def _repeated(log: Columns) -> Columns:
    return {name: np.repeat(values, 2) for name, values in log.items()}


def _two_files(log: Columns) -> Columns:
    return {
        name: np.concatenate([values, values + 10_000 if name == "prompt_id" else values])
        for name, values in log.items()
    }


def _some_repeated(log: Columns) -> Columns:
    rows = np.sort(np.concatenate([np.arange(N * K), np.arange(0, N * K, 40)]))
    return {name: values[rows] for name, values in log.items()}


def _sentinel(value: float, scale: Callable[[], Any]) -> Callable[[Columns], Columns]:
    def change(log: Columns) -> Columns:
        reward = np.asarray(scale(), dtype=float)
        reward[17] = value
        return log | {"reward": reward}

    return change


def _short_answers(log: Columns) -> Columns:
    """Answers of one word out of a dozen, of which each was kept once for each prompt."""
    rng = np.random.default_rng(19)
    words = np.array([f"word {i}" for i in range(12)])
    p = np.exp(-0.4 * np.arange(12))
    p /= p.sum()
    kept = [rng.choice(12, K, replace=False, p=p) for _ in range(N)]
    answers = np.concatenate(kept)
    behavior = np.log(p[answers])
    return log | {
        "completion": words[answers],
        "behavior_logprob": behavior,
        "target_logprob/new": np.minimum(behavior + 0.2 * _Z - 0.02, 0.0),
    }


def _zeros(log: Columns) -> Columns:
    return log | {"behavior_logprob": np.where(np.arange(N * K) % 40 == 0, 0.0, log["behavior_logprob"])}


def _scored_at_one(log: Columns) -> Columns:
    noted = {"behavior_logprob": {"policy": "behavior", "engine": "transformers", "temperature": 1.0}}
    noted["target_logprob/new"] = noted["behavior_logprob"] | {"policy": "new"}
    return log | {"sampling": [{"temperature": 0.7}] * (N * K), "metadata": {b"pope_fast.scores": json.dumps(noted)}}


_Z = np.random.default_rng(18).normal(size=N * K)
_RARE = (np.arange(N * K) % (N * K // 12) == 0).astype(float)

MISTAKES = [
    Mistake("Log-probs are means over tokens, not sums", _averaged, "negative_divergence"),
    Mistake(
        "Log-probs are means over tokens, and the log has the numbers of tokens",
        lambda log: _averaged(log) | {"num_tokens": _tokens()},
        "averaged_log_probs",
        validated=True,
    ),
    Mistake(
        "The log-probs of one policy are means over tokens",
        lambda log: (
            log
            | {name: values for name, values in _averaged(log).items() if name.startswith("target")}
            | {"num_tokens": _tokens()}
        ),
        "averaged_log_probs",
        validated=True,
    ),
    Mistake(
        "A policy's column is a copy of the logger's",
        _target(lambda log: log["behavior_logprob"]),
        "same_column",
        validated=True,
    ),
    Mistake("Every row is there twice", _repeated, "repeated_rows", quantities=("diversity",), validated=True),
    Mistake(
        "Some rows are there twice: retries, or a cache",
        _some_repeated,
        "repeated_rows",
        quantities=("diversity",),
        validated=True,
    ),
    Mistake("A file is there twice, its prompts numbered on", _two_files, "repeated_rows", validated=True),
    Mistake("Of responses that are alike one was kept", _short_answers, "no_repeats", validated=True),
    Mistake(
        "A rating of 99 stands for no rating",
        _sentinel(99, lambda: np.arange(N * K) % 5 + 1),
        "sentinel_reward",
        options={"reward_range": None},
        quantities=("utility",),
        validated=True,
    ),
    Mistake(
        "A reward of -1 among clicks stands for no answer",
        _sentinel(-1, lambda: np.arange(N * K) % 2),
        "sentinel_reward",
        options={"reward_range": None},
        quantities=("utility",),
        validated=True,
    ),
    Mistake("A log-prob of 0 stands for an unknown one", _zeros, "certain_responses", validated=True),
    Mistake(
        "A log-prob of -9999 stands for an unknown one",
        lambda log: log | {"behavior_logprob": np.where(np.arange(N * K) == 21, -9999.0, log["behavior_logprob"])},
        "-9999",
        True,
    ),
    Mistake(
        "Sampled at temperature .7, scored at 1",
        _scored_at_one,
        "other_temperature",
        validated=True,
    ),
    Mistake(
        "lambda does not fit the scale of the reward",
        _set(reward=np.arange(N * K) % 101.0),
        "value_mix",
        options={"reward_range": (0.0, 100.0)},
        quantities=("value",),
    ),
    Mistake(
        "The reward is text",
        _set(reward=np.array(["yes", "no"])[np.arange(N * K) % 2]),
        "'no': 0",
        True,
    ),
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
