"""Remedies that exist and help: which column is meant, and how to turn words into rewards."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import pyarrow as pa

from pope_fast.errors import SchemaError
from pope_fast.log.arrays import plain
from pope_fast.log.columns import (
    POLICY_ROLE_KINDS,
    REWARD_ALIASES,
    Fault,
    bare_type,
    implied_role,
    is_text_type,
    kind_of,
    split_role,
)
from pope_fast.log.sources import Source

__all__ = ["likely_column", "missing_column", "with_text_rewards"]

#: Names under which logs elsewhere have what a role needs.
_SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "behavior_logprob": (
            "behaviour_logprob",
            "behavior_logp",
            "logging_logprob",
            "logger_logprob",
            "old_logprob",
            "ref_logprob",
            "sampling_logprob",
            "propensity_logprob",
            "logprob",
            "logp",
        ),
        "reward": ("rewards", "stars", "upvote", "vote", "feedback", "thumbs", "click", "clicked", "like", "liked"),
        "prompt_id": ("question_id", "query_id", "context_id", "instruction", "question", "query"),
        "completion": ("response", "answer", "output", "generation"),
        "cluster": ("cluster_id", "perspective", "topic"),
        "group": ("group_id", "annotator_group", "segment"),
        "num_tokens": ("n_tokens", "token_count", "length"),
    }
)
_TARGET_NAMES = ("target_logprob", "target_logp", "new_logprob", "policy_logprob", "eval_logprob")
_NEAR = 0.75
#: Names that say that a column is of a policy to be evaluated; it is not that of the one that wrote the log.
_OF_A_TARGET = ("target", "new_", "eval")

_GOOD = frozenset(
    {"yes", "y", "true", "t", "good", "up", "thumbs_up", "thumbsup", "👍", "like", "liked", "win", "won", "accept"}
    | {"accepted", "chosen", "positive", "pass", "passed", "correct", "right", "helpful", "upvote"}
)
_BAD = frozenset(
    {"no", "n", "false", "f", "bad", "down", "thumbs_down", "thumbsdown", "👎", "dislike", "disliked", "lose", "loss"}
    | {"lost", "reject", "rejected", "negative", "fail", "failed", "incorrect", "wrong", "unhelpful", "downvote"}
)
_BETWEEN = ("neutral", "tie", "draw", "mixed", "ok", "maybe")
_HEAD_ROWS = 1 << 16
_LISTED_VALUES = 6


def missing_column(role: str, names: Sequence[str], *, why: str = "") -> SchemaError:
    """Return the error for a role that no column plays, or a column that is not there, with the likeliest remedy.

    Parameters
    ----------
    role : str
        A role, or a column that was asked for by name.
    names : sequence of str
        The columns of the log.
    why : str
        What it is needed for.
    """
    message = _what_is_missing(role)
    if why:
        message = f"{message}, {why}"
    return SchemaError(
        f"{message}; the log has: {', '.join(names) or 'no columns'}", column=role, remedy=_remedy(role, names)
    )


def _what_is_missing(role: str) -> str:
    if role == "behavior_logprob":
        return (
            "no log-prob of the behavior policy (neither 'behavior_logprob' nor 'behavior_token_logprobs'); "
            "a missing propensity is never assumed to be 1"
        )
    if role == "target_logprob":
        return "no target policy (neither 'target_logprob/NAME' nor 'target_token_logprobs/NAME')"
    if role == "prompt_id":
        return "no prompt (neither 'prompt_id' nor 'prompt' nor 'prompt_ids')"
    if role == "reward":
        return f"no reward (neither 'reward' nor one of {', '.join(map(repr, REWARD_ALIASES))})"
    return "no such column"


def _remedy(role: str, names: Sequence[str]) -> str:
    close = likely_column(role, names)
    if kind_of(role) is None:
        # Not a role but a column by its name: no map can name it.
        return f"did you mean {close!r}?" if close else f"name one of the log's columns: {_listed(names)}"
    stem, policy = split_role(role)
    if stem == "target_logprob":
        name = "NAME" if role == "target_logprob" else policy
        column = close or "YOUR_COLUMN"
        told = f"policies={{{name!r}: {column!r}}} (--policy {name}={'COLUMN' if close is None else close})"
        meant = f"did you mean {close!r}? " if close else ""
        return f"{meant}name the columns with {told}, or add one: pope score"
    given = f"{{{role!r}: {close or 'YOUR_COLUMN'!r}}}"
    option = "--column ROLE=COLUMN" if close is None else f"--column {role}={close}"
    meant = f"did you mean {close!r}? " if close else ""
    remedy = f"{meant}name the column with columns={given} ({option})"
    if role == "prompt_id":
        remedy += ", or evaluate with unit='row'"
    elif role == "behavior_logprob":
        remedy += ", or add it: pope score LOG --behavior-model MODEL"
    return remedy


def likely_column(role: str, names: Iterable[str]) -> str | None:
    """Return the column whose name is nearest to a role, or to what others call it; ``None`` if none is near.

    A column that plays a role by its own name is never proposed for another one: above all not the log-probs of a
    target policy for those of the behavior policy, which would make every weight 1.
    """
    free = [name for name in names if implied_role(name) is None]
    stem = split_role(role)[0]
    if stem in ("behavior_logprob", "behavior_token_logprobs"):
        free = [name for name in free if not name.lower().startswith(_OF_A_TARGET)]
    known = _TARGET_NAMES if stem in POLICY_ROLE_KINDS else (role, *_SYNONYMS.get(role, ()))
    if stem == "target_logprob":
        free = [name for name in free if name.lower().startswith(_OF_A_TARGET) or "policy" in name.lower()]
    ranked = sorted(free, key=lambda name: -_likeness(name, known))
    return ranked[0] if ranked and _likeness(ranked[0], known) >= _NEAR else None


def _likeness(name: str, known: Iterable[str]) -> float:
    plain_name = _normal(name)
    return max(difflib.SequenceMatcher(None, plain_name, _normal(other)).ratio() for other in known)


def _normal(name: str) -> str:
    return (
        name.lower().replace("-", "_").replace(" ", "_").replace("log_prob", "logprob").replace("behaviour", "behavior")
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "it has none"


def with_text_rewards(faults: Sequence[Fault], source: Source, column: str | None) -> tuple[Fault, ...]:
    """Add to the fault of a reward that is text which values it has, and the line that makes numbers of them.

    Parameters
    ----------
    faults : sequence of Fault
        Those of the schema.
    source : Source
        The log's rows, of which the first are read.
    column : str or None
        The reward.
    """
    names = source.schema.names
    if column is None or names.count(column) != 1 or not is_text_type(source.schema.field(column).type):
        return tuple(faults)
    values = _first_values(source, column)
    return tuple(
        _about_words(fault, column, values) if fault.column == column and values else fault for fault in faults
    )


def _first_values(source: Source, column: str) -> list[tuple[str, int]]:
    """Return the values of the first rows with their counts, the most frequent first."""
    reader = source.read([column], _HEAD_ROWS)
    try:
        batch = next(reader, None)
    except SchemaError:
        return []  # what cannot be read is a fault of its own
    finally:
        getattr(reader, "close", lambda: None)()
    if batch is None:
        return []
    array = plain(batch.column(column))
    if pa.types.is_binary(bare_type(array.type)) or pa.types.is_large_binary(bare_type(array.type)):
        texts = [value.decode("utf-8", "replace") for value in array.drop_null().to_pylist()]
    else:
        texts = array.drop_null().to_pylist()
    return Counter(texts).most_common()


def _about_words(fault: Fault, column: str, values: Sequence[tuple[str, int]]) -> Fault:
    shown = ", ".join(f"{_short(value)} ({count:,})" for value, count in values[:_LISTED_VALUES])
    more = f" and {len(values) - _LISTED_VALUES:,} more" if len(values) > _LISTED_VALUES else ""
    message = f"{fault.message}; it holds {shown}{more}"
    words = [value for value, _ in values]
    if all(_is_number(word) for word in words):
        remedy = f"these are numbers written as text: frame[{column!r}] = frame[{column!r}].astype(float)"
    else:
        known = reward_words(words)
        unknown = {word: f"NUMBER{i}" for i, word in enumerate(words[:_LISTED_VALUES], start=1)}
        mapping = unknown if known is None else {word: f"{number:g}" for word, number in known.items()}
        pairs = ", ".join(f"{_short(word)}: {number}" for word, number in mapping.items())
        dots = ", ..." if len(words) > len(mapping) else ""
        remedy = f"give every value a number: frame[{column!r}] = frame[{column!r}].map({{{pairs}{dots}}})"
    return replace(fault, message=message, remedy=remedy)


def reward_words(words: Sequence[str]) -> dict[str, float | int] | None:
    """Return the numbers that words of approval and disapproval stand for, ``None`` if one of them is unknown.

    Examples
    --------
    >>> reward_words(["No", "yes"])
    {'No': 0, 'yes': 1}
    """
    numbers: dict[str, float | int] = {}
    for word in words:
        known = word.strip().lower().replace(" ", "_").replace("-", "_")
        if known in _GOOD:
            numbers[word] = 1
        elif known in _BAD:
            numbers[word] = 0
        elif known in _BETWEEN:
            numbers[word] = 0.5
        else:
            return None
    return numbers or None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(value: str) -> str:
    """Quote a value, control characters escaped, and no more of it than is needed to know it again."""
    return repr(value if len(value) <= 30 else value[:27] + "...")
