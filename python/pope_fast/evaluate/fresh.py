"""Fresh draws of a target policy: rows of a log of their own, with log-probs under that policy and under the logger.

In such a log ``behavior_logprob`` is, as in every log, the log-prob under the policy that wrote *its* rows: the target
policy as it was sampled. The policy that wrote the *evaluated* log is just another policy there, and its column is
``target_logprob/logger``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast import _core
from pope_fast.errors import PopeError, SchemaError
from pope_fast.log import FeedbackLog, read_log
from pope_fast.log.arrays import numbers, token_lists
from pope_fast.log.batches import LOGPROB_SLACK, unit_keys
from pope_fast.log.columns import is_list_type, kind_of
from pope_fast.score.metadata import read_provenance

__all__ = ["LOGGER", "FreshDraws", "open_fresh", "prompt_role", "read_fresh"]

LOGGER = "logger"
"""Name of the policy, in a log of fresh draws, that wrote the log which is evaluated."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FreshDraws:
    """The rows of a log of fresh draws; one array entry each.

    Attributes
    ----------
    source
        Where they come from, for people.
    prompt
        Key of the prompt, as in the evaluated log if both have the same column for it.
    log_weight
        Log-prob under the target policy less that under the logger, nats.
    excess
        Log-prob under the sampler less that under the target policy as the evaluated log has it, nats: 0 if that is the
        policy which was sampled. None if the draws have one of them only.
    count
        How many draws the row stands for.
    reward
        Feedback on the draw, if there is any.
    """

    source: str
    prompt: NDArray[np.int64]
    log_weight: Doubles
    excess: Doubles | None
    count: Doubles
    reward: Doubles | None


def open_fresh(fresh: Any, log: FeedbackLog, policies: list[str]) -> dict[str, FeedbackLog]:
    """Open logs of fresh draws, and say which policy each was drawn from.

    Parameters
    ----------
    fresh
        A log of fresh draws (whatever :func:`read_log` takes), or a mapping of policy to such.
    log
        The evaluated log.
    policies
        Its target policies that are evaluated.

    Raises
    ------
    PopeError
        If the policy is not among these, or not clear.
    """
    # A dict may also be a log in memory: then its keys are columns of a log.
    if isinstance(fresh, dict) and not any(kind_of(str(name)) for name in fresh):
        unknown = next((name for name in fresh if name not in policies), None)
        if unknown is not None:
            raise PopeError(f"fresh draws of {unknown!r}, which is no policy of the log; it has: {', '.join(policies)}")
        opened = {name: _open(source) for name, source in fresh.items()}
    else:
        draws = _open(fresh)
        opened = {_whose(draws, policies): draws}
    for name, draws in opened.items():
        if draws.fingerprint() == log.fingerprint():
            raise PopeError(f"the fresh draws of {name!r} are the log itself ({log.source}); 'pope sample' makes them")
    return opened


def _open(source: Any) -> FeedbackLog:
    return source if isinstance(source, FeedbackLog) else read_log(source)


def _whose(draws: FeedbackLog, policies: list[str]) -> str:
    """Find the policy that was drawn from: by name where the draws name one."""
    column = _column(draws, None)
    noted = read_provenance(draws.schema).get(column) if column is not None else None
    if noted is not None and noted.policy in policies:
        return noted.policy
    scored = [name for name in draws.policies if name in policies]
    for candidates in (policies, scored):
        if len(candidates) == 1:
            return candidates[0]
    raise PopeError(
        f"the fresh draws do not say which policy they are of ({', '.join(policies)}); "
        "Remedy: fresh={'NAME': ...} (--fresh NAME=FILE)."
    )


def prompt_role(log: FeedbackLog, draws: FeedbackLog) -> str | None:
    """Name the role that tells the prompts of both logs apart, None if they share none."""
    return next((r for r in ("prompt_id", "prompt", "prompt_ids") if r in log.columns and r in draws.columns), None)


def _column(draws: FeedbackLog, policy: str | None) -> str | None:
    """Return the column with a policy's log-probs, by sequence or by token; that of the sampler for None."""
    stems = ("behavior_logprob", "behavior_token_logprobs")
    if policy is not None:
        stems = (f"target_logprob/{policy}", f"target_token_logprobs/{policy}")
    return next((draws.columns[role] for role in stems if role in draws.columns), None)


def read_fresh(draws: FeedbackLog, policy: str, *, logger: str, role: str | None) -> FreshDraws:
    """Read the fresh draws of a policy.

    Parameters
    ----------
    draws
        The log of fresh draws.
    policy
        The policy of the evaluated log that they are of.
    logger
        Policy or column of ``draws`` with the log-probs under the policy that wrote the evaluated log.
    role
        Role of the column that tells prompts apart; None if the two logs share none.

    Raises
    ------
    SchemaError
        If a column is missing, or a value is not what it has to be.
    """
    if draws.faults:
        raise draws.faults[0].to_error()
    sampler, target = _column(draws, None), _column(draws, policy)
    other = _column(draws, logger) or (logger if logger in draws.schema.names else None)
    if other is None:
        raise SchemaError(
            f"the fresh draws of {policy!r} ({draws.source}) have no log-prob under the policy that wrote the log; "
            f"they have: {', '.join(draws.schema.names)}",
            column=f"target_logprob/{logger}",
            remedy=f"score them under it: pope score {draws.source} --model LOGGER --name {logger} -o SCORED; or name "
            "the column with fresh_logger= (--fresh-logger)",
        )
    if target is None:
        sampler, target = None, None if sampler == other else sampler
    elif sampler in (target, other):
        sampler = None
    if target is None or target == other:
        raise SchemaError(
            f"the fresh draws of {policy!r} ({draws.source}) have no log-prob under that policy itself, neither as "
            "their behavior policy nor as a target policy",
            column=f"target_logprob/{policy}",
            remedy="score them under it, or draw them with 'pope sample', which notes it",
        )
    parts = list(_batches(draws, policy, target, other, sampler, role))
    if not parts:
        raise SchemaError(f"no fresh draws in {draws.source}", remedy="draw some with 'pope sample'")
    joined: list[Any] = [None if part[0] is None else np.concatenate(part) for part in zip(*parts, strict=True)]
    return FreshDraws(draws.source, *joined)


def _batches(
    draws: FeedbackLog, policy: str, target: str, other: str, sampler: str | None, role: str | None
) -> Iterator[tuple[Any, ...]]:
    """Yield prompt, log-weight, excess, count and reward of some rows at a time."""
    own = role or next((r for r in ("prompt_id", "prompt", "prompt_ids") if r in draws.columns), None)
    prompt, count, reward = (None if r is None else draws.columns.get(r) for r in (own, "count", "reward"))
    wanted = [name for name in (target, other, sampler, prompt, count, reward) if name is not None]
    row = 0
    for batch in draws.record_batches(list(dict.fromkeys(wanted))):
        of_target = _logprobs(batch, target, f"target_logprob/{policy}", row)
        of_logger = _logprobs(batch, other, f"target_logprob/{LOGGER}", row)
        neither = np.flatnonzero(np.isneginf(of_target) & np.isneginf(of_logger))
        if neither.size:
            raise SchemaError(
                "-inf under both policies", column=target, row=row + int(neither[0]), remedy="drop the row"
            )
        excess = None
        if sampler is not None:
            of_sampler = _logprobs(batch, sampler, "behavior_logprob", row)
            impossible = np.flatnonzero(np.isneginf(of_sampler))
            if impossible.size:
                raise SchemaError(
                    "a draw that its own sampler cannot make (log-prob -inf)",
                    column=sampler,
                    row=row + int(impossible[0]),
                    remedy="write the log-prob under the distribution that was sampled from",
                )
            excess = of_sampler - of_target
        keys = unit_keys(batch, prompt, own or "row", row)
        rows = np.arange(row, row + batch.num_rows) if keys is None else keys
        counts = (
            np.ones(batch.num_rows) if count is None else _double(numbers(batch.column(count), "count", count, row))
        )
        rewards = None if reward is None else _double(numbers(batch.column(reward), "reward", reward, row))
        yield rows, of_target - of_logger, excess, counts, rewards
        row += batch.num_rows


def _logprobs(batch: pa.RecordBatch, column: str, role: str, row: int) -> Doubles:
    array = batch.column(column)
    if is_list_type(array.type):
        lists = token_lists(array, role, column, row)
        values = _core.sum_tokens(lists.offsets, lists.values)
    else:
        values = _double(numbers(array, role, column, row))
    wrong = np.flatnonzero(~(values <= LOGPROB_SLACK))
    if wrong.size:
        value = float(values[wrong[0]])
        what = "NaN log-prob" if np.isnan(value) else f"log-prob {value:g} > 0"
        remedy = "log-probs are natural logarithms of probabilities: at most 0"
        raise SchemaError(what, column=column, row=row + int(wrong[0]), remedy=remedy)
    return values


def _double(values: NDArray[Any]) -> Doubles:
    return np.ascontiguousarray(values, dtype=np.float64)
