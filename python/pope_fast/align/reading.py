"""Reading a log for training: tokens, rewards and clusters by prompt, and every reason why it cannot be trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast.align.data import LoggedPrompts
from pope_fast.errors import PopeError, SchemaError
from pope_fast.log import FeedbackLog, read_log
from pope_fast.log.arrays import ragged
from pope_fast.score.encoding import Encoder
from pope_fast.score.rows import Tokenized, tokenize_log
from pope_fast.score.tokens import TokenLists, distinct

__all__ = ["read_prompts"]

_ROLES = ("cluster", "group", "count")


def read_prompts(
    log: Any,
    processing_class: Any,
    *,
    needs_tokens: bool = False,
    max_length: int | None = None,
    vocab_size: int | None = None,
) -> LoggedPrompts:
    """Read a feedback log into memory, prompt by prompt.

    Parameters
    ----------
    log : FeedbackLog, LoggedPrompts, or anything that :func:`pope_fast.read_log` takes
        With prompts and completions (text, messages or token ids), ``reward``, log-probs of the behavior policy, and
        optionally ``cluster``, ``group`` and ``count``.
    processing_class : tokenizer
        Of the model to be trained. Stored token ids are used as they are.
    needs_tokens : bool
        Whether the log-probs of single tokens under the behavior policy are needed.
    max_length : int, optional
        Most tokens of a prompt and a response together.
    vocab_size : int, optional
        Token ids must be below it.

    Returns
    -------
    LoggedPrompts
        Prompts in order of first appearance.

    Raises
    ------
    SchemaError
        If a column is missing or a row cannot be trained on; nothing is dropped or cut.
    """
    if isinstance(log, LoggedPrompts):
        return log
    opened = log if isinstance(log, FeedbackLog) else read_log(log)
    _demand_behavior(opened, needs_tokens)
    tokenized = tokenize_log(opened, None if processing_class is None else Encoder(processing_class))
    _refuse(tokenized, max_length, vocab_size)
    columns, keys = _columns(opened, len(tokenized.completions))
    _, first, unit = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty(first.size, np.int64)
    rank[np.argsort(first)] = np.arange(first.size)
    prompt = rank[unit]
    order = np.argsort(prompt, kind="stable")
    first = np.sort(first)
    prompts = tokenized.prompts.take(first)
    _demand_one_text(tokenized, first[prompt])
    names = {"cluster": dict(opened.cluster_labels), "group": dict(opened.group_labels)}
    for name in {"cluster", "group"} & set(columns):
        labels, columns[name] = np.unique(columns[name], return_inverse=True)
        names[name] = {i: names[name].get(int(label), int(label)) for i, label in enumerate(labels)}
    bounds = opened.reward_range()
    return LoggedPrompts(
        prompts=prompts,
        completions=tokenized.completions.take(order),
        offsets=np.concatenate(([0], np.cumsum(np.bincount(prompt)))),
        columns={name: values[order] for name, values in columns.items()},
        behavior_tokens=_behavior_tokens(opened, tokenized.completions, order) if needs_tokens else None,
        reward_range=(bounds.low, bounds.high),
        names=names,
    )


def _demand_behavior(log: FeedbackLog, needs_tokens: bool) -> None:
    """Raise the error about missing log-probs of the behavior policy with the remedy that a trainer has."""
    remedy = "score the log under the model that wrote it: pope score LOG --behavior-model MODEL -o OUT"
    if needs_tokens and "behavior_token_logprobs" not in log.columns:
        raise SchemaError(
            "the loss needs the behavior policy's log-prob of every token",
            column="behavior_token_logprobs",
            remedy=f"{remedy} --tokens",
        )
    if "behavior_logprob" not in log.columns and "behavior_token_logprobs" not in log.columns:
        raise SchemaError(
            "no log-prob of the behavior policy: without it nothing says how much a response must count",
            column="behavior_logprob",
            remedy=remedy,
        )


def _refuse(tokenized: Tokenized, max_length: int | None, vocab_size: int | None) -> None:
    """Raise for the first row that cannot be trained on."""
    if tokenized.errors:
        row = min(tokenized.errors)
        raise SchemaError(
            f"{len(tokenized.errors):,} rows cannot be trained on; the first: {tokenized.errors[row]}",
            column=tokenized.columns.get("completion_ids", tokenized.columns.get("completion")),
            row=row,
            remedy="remove these rows from the log",
        )
    lengths = tokenized.prompts.lengths + tokenized.completions.lengths
    if max_length is not None and lengths.max() > max_length:
        long = np.flatnonzero(lengths > max_length)
        raise SchemaError(
            f"{long.size:,} rows have more than {max_length} tokens; the first has {lengths[long[0]]}",
            column=tokenized.columns.get("completion_ids", tokenized.columns.get("completion")),
            row=int(long[0]),
            remedy="raise max_length if the model's context allows it, or remove these rows: cutting a response would "
            "give it another reward",
        )
    for role, lists in (("prompt", tokenized.prompts), ("completion", tokenized.completions)):
        if vocab_size is not None and lists.values.size and lists.values.max() >= vocab_size:
            at = int(np.argmax(lists.values >= vocab_size))
            raise SchemaError(
                f"token id {lists.values[at]} is not in the model's vocabulary of {vocab_size}",
                column=tokenized.columns.get(f"{role}_ids", role),
                row=int(np.searchsorted(lists.offsets, at, side="right")) - 1,
                remedy="the ids are of another tokenizer: use the model that they are for, or store text",
            )


def _columns(log: FeedbackLog, n_rows: int) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.int64]]:
    """Read reward, log-probs and optional columns in the order of the log, and the key of each row's prompt."""
    columns: dict[str, npt.NDArray[Any]] = {}
    keys = np.empty(n_rows, np.int64)
    roles = [name for name in _ROLES if name in log.columns]
    for batch in log.batches(roles, unit="prompt", policies=(), progress=False):
        rows = batch.row_index if batch.row_index is not None else np.arange(len(batch)) + batch.first_row
        assert batch.unit_key is not None
        keys[rows] = batch.unit_key
        for name in ("behavior_logprob", "reward", *roles):
            values = getattr(batch, name)
            if values is not None:
                integers = values.dtype.kind in "iu"
                target = columns.setdefault(name, np.empty(n_rows, np.int64 if integers else np.float64))
                target[rows] = values
    return columns, keys


def _demand_one_text(tokenized: Tokenized, first: npt.NDArray[np.int64]) -> None:
    """Raise if rows of one prompt id have different prompts: their responses answer different questions."""
    _, label = distinct(tokenized.prompts, np.arange(first.size))
    differs = np.flatnonzero(label != label[first])
    if differs.size:
        row = int(differs[0])
        raise SchemaError(
            f"the prompt differs from that of row {first[row]}, which has the same prompt id",
            column=tokenized.columns.get("prompt_ids", tokenized.columns.get("prompt")),
            row=row,
            remedy="give different prompts different prompt ids",
        )


def _behavior_tokens(
    log: FeedbackLog, completions: TokenLists, order: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Read the log-probs of tokens, flat, in the order of training."""
    column = log.columns["behavior_token_logprobs"]
    lengths, values = [], []
    for batch in log.reader.read([column], 1 << 14):
        offsets, inner = ragged(batch.column(column))
        lengths.append(np.diff(offsets))
        values.append(np.asarray(inner, dtype=np.float32))
    counts, flat = np.concatenate(lengths), np.concatenate(values)
    differs = np.flatnonzero(counts != completions.lengths)
    if differs.size:
        row = int(differs[0])
        raise SchemaError(
            f"{counts[row]} log-probs for a completion of {completions.lengths[row]} tokens",
            column=column,
            row=row,
            remedy="store completion_ids as they were sampled, or use a loss at the level of sequences",
        )
    starts = np.concatenate(([0], np.cumsum(counts)))
    return np.concatenate([flat[starts[row] : starts[row + 1]] for row in order])


def demand_signal(data: LoggedPrompts) -> None:
    """Raise if there is nothing to learn from.

    Raises
    ------
    PopeError
        If all rewards are equal.
    """
    rewards = data.columns["reward"]
    if rewards.size and rewards.min() == rewards.max():
        raise PopeError(
            f"all {rewards.size:,} rewards are {rewards[0]:g}: nothing in the log tells good responses from bad ones. "
            "Remedy: check which column is the reward (columns={'reward': ...}, --column reward=COLUMN)."
        )
