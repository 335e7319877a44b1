"""The prompts of a log, each once, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast.errors import PopeError, SchemaError
from pope_fast.log import FeedbackLog, read_log
from pope_fast.log.arrays import as_numpy, keys, plain
from pope_fast.log.batches import unit_keys
from pope_fast.log.columns import is_text_type
from pope_fast.log.remedies import missing_column
from pope_fast.log.signals import lengths_or_none
from pope_fast.score.encoding import Encoder
from pope_fast.score.rows import tokenize_log

__all__ = ["Prompts", "first_draws", "open_prompts", "read_prompts", "usual_limit"]

_ROLES = ("prompt_id", "prompt", "prompt_ids")
_BATCH_ROWS = 1 << 16
_COMPARED = 64
_CUT = frozenset({"length", "max_tokens", "max_length", "max_new_tokens"})
_DEFAULT_LIMIT = 256


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """Distinct prompts, in the order in which a log has them.

    Attributes
    ----------
    columns : pyarrow.Table
        ``prompt_id`` and ``prompt``, as far as the log has them.
    ids : list of int32 arrays
        Token ids of each.
    source : {"stored", "template", "text"}
        Where the token ids come from.
    """

    columns: pa.Table
    ids: list[NDArray[np.int32]]
    source: str


def open_prompts(given: Any, columns: Any = None) -> FeedbackLog:
    """Open a log, or make one of a list of prompts.

    Parameters
    ----------
    given : log or list
        Whatever :func:`read_log` takes except a list, which holds prompts: texts, lists of messages, or token ids.
    columns : mapping of str to str, optional
        Role -> column, for a log.
    """
    if isinstance(given, FeedbackLog):
        return given
    if not isinstance(given, (list, tuple)):
        return read_log(given, columns=columns)
    if not given:
        raise PopeError("an empty list of prompts")
    tokens = all(_is_ids(prompt) for prompt in given)
    if not tokens and any(_is_ids(prompt) for prompt in given):
        raise PopeError("a list of prompts must hold texts, lists of messages, or lists of token ids: all of one kind")
    values = [np.asarray(prompt, np.int64) for prompt in given] if tokens else list(given)
    try:
        array: Any = pa.array(values)
    except (pa.ArrowException, TypeError) as error:
        raise PopeError(f"prompts must be texts, lists of messages, or lists of token ids: {error}") from error
    return read_log({"prompt_id": np.arange(len(given)), "prompt_ids" if tokens else "prompt": array})


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, (list, tuple, np.ndarray)) and all(isinstance(i, (int, np.integer)) for i in prompt)


def read_prompts(
    log: FeedbackLog, encoder: Encoder | None, *, tokens: str = "auto", most: int | None = None, seed: int = 0
) -> Prompts:
    """Read the distinct prompts of a log.

    Parameters
    ----------
    log : FeedbackLog
        Prompts are told apart by ``prompt_id``, else by what they say.
    encoder : Encoder, optional
        Needed where prompts are text.
    tokens : {"auto", "stored", "text"}
        Stored token ids where the log has them; these or an error; or always those of the text.
    most : int, optional
        Of more prompts than these, that many are chosen at random, by ``seed``.

    Raises
    ------
    SchemaError
        If there are no prompts, two have one ``prompt_id``, or one has no token.
    PopeError
        If text must be tokenized and there is no tokenizer, or messages and no chat template.
    """
    if log.faults:
        raise log.faults[0].to_error()
    if most is not None and most < 1:
        raise PopeError(f"prompts must be at least 1, not {most}")
    stored = "prompt_ids" in log.columns and tokens != "text"
    content = "prompt_ids" if stored else "prompt"
    if content not in log.columns or (tokens == "stored" and not stored):
        raise missing_column("prompt_ids" if tokens == "stored" else "prompt", log.schema.names)
    table = _distinct(log, content)
    if most is not None and most < table.num_rows:
        chosen = np.random.default_rng(seed).choice(table.num_rows, most, replace=False)
        table = table.take(np.sort(chosen))
    if stored and encoder is not None and "prompt" in table.column_names:
        _compare(table, encoder)
    # Prompts are tokenized by what tokenizes them for scoring, which reads logs: the two must never differ.
    sole = pa.table({content: table[content], "completion_ids": [[0]] * table.num_rows})
    tokenized = tokenize_log(read_log(sole), encoder)
    for row, reason in sorted(tokenized.errors.items()):
        where = f" (prompt_id {table['prompt_id'][row].as_py()!r})" if "prompt_id" in table.column_names else ""
        raise SchemaError(f"{reason.partition(':')[0]}{where}", column=log.columns[content], remedy="leave it out")
    kept = [name for name in ("prompt_id", "prompt") if name in table.column_names]
    ids = [tokenized.prompts[row] for row in range(table.num_rows)]
    return Prompts(table.select(kept), ids, tokenized.prompt_source)


def _distinct(log: FeedbackLog, content: str) -> pa.Table:
    """Return the first row of each prompt, with the columns of prompts under the names of their roles."""
    roles = [role for role in _ROLES if role in log.columns]
    names = [log.columns[role] for role in roles]
    key = roles[0] if roles[0] == "prompt_id" else content
    seen: dict[int, int] = {}
    parts: list[pa.RecordBatch] = []
    row = 0
    for batch in log.record_batches(list(dict.fromkeys(names)), _BATCH_ROWS):
        unit = unit_keys(batch, log.columns[key], key, row)
        assert unit is not None
        said = np.asarray(keys(batch.column(log.columns[content]), content, log.columns[content], row), np.int64)
        _, first, place = np.unique(unit, return_index=True, return_inverse=True)
        known = np.array(
            [seen.get(k, int(said[i])) for k, i in zip(unit[first].tolist(), first, strict=True)], np.int64
        )
        other = np.flatnonzero(known[place] != said)
        if other.size:
            at = int(other[0])
            name = log.columns[key]
            raise SchemaError(
                f"two different prompts with {name} {batch.column(name)[at].as_py()!r}",
                column=log.columns[content],
                row=row + at,
                remedy="give every prompt an id of its own",
            )
        new = np.sort([i for i in first.tolist() if int(unit[i]) not in seen]).astype(np.int64)
        seen.update(zip(unit[new].tolist(), said[new].tolist(), strict=True))
        columns = [batch.column(name) for name in names]
        parts.append(pa.RecordBatch.from_arrays(columns, names=roles).take(new))
        row += batch.num_rows
    if not seen:
        raise SchemaError("the log is empty", remedy=f"check that {log.source} is the log that you mean")
    return pa.Table.from_batches(parts).combine_chunks()


def _compare(table: pa.Table, encoder: Encoder) -> None:
    """Refuse stored token ids that mean something else to this tokenizer than the text beside them."""
    some = table.slice(0, _COMPARED)
    compared = alike = 0
    for ids, prompt in zip(some["prompt_ids"].to_pylist(), some["prompt"].to_pylist(), strict=True):
        last = prompt[-1].get("content") if isinstance(prompt, list) and prompt else prompt
        text = last.strip() if isinstance(last, str) else ""
        if not text or not ids:
            continue
        try:
            decoded = encoder.decode(ids)
        except (IndexError, OverflowError, TypeError, ValueError):
            decoded = ""
        compared += 1
        alike += text in decoded
    if compared and not alike:
        raise SchemaError(
            f"the token ids of {compared} prompts decode to other texts than those in 'prompt': they are of another "
            "tokenizer",
            column="prompt_ids",
            remedy="tokenize the text with this policy's own: tokens='text' (--retokenize)",
        )


def usual_limit(log: FeedbackLog) -> int:
    """Return a limit of tokens under which fresh draws are as long as the log's responses can be.

    The longest response that its limit ended; without any such, twice the longest response; 256 if the log says
    nothing of lengths.
    """
    lengths = next((r for r in ("num_tokens", "completion_ids", "behavior_token_logprobs") if r in log.columns), None)
    if lengths is None:
        return _DEFAULT_LIMIT
    column, reason = log.columns[lengths], log.columns.get("finish_reason")
    longest = longest_cut = 0
    for batch in log.record_batches(list(dict.fromkeys(name for name in (column, reason) if name is not None))):
        array = plain(batch.column(column))
        sizes = as_numpy(array.cast(pa.float64())) if lengths == "num_tokens" else lengths_or_none(array)
        if sizes is None or not len(sizes):
            continue
        longest = max(longest, int(np.nanmax(sizes)))
        if reason is not None and is_text_type(batch.column(reason).type):
            cut = np.array([value in _CUT for value in plain(batch.column(reason)).to_pylist()])
            longest_cut = max(longest_cut, int(np.max(np.where(cut, sizes, 0), initial=0)))
    return longest_cut or 2 * longest or _DEFAULT_LIMIT


def first_draws(ids: Sequence[NDArray[np.int32]], draws: int) -> list[int]:
    """Return the number of the first draw of each prompt: prompts of equal tokens go on where the one before ended."""
    next_draw: dict[bytes, int] = {}
    first = []
    for prompt in ids:
        key = prompt.tobytes()
        first.append(next_draw.get(key, 0))
        next_draw[key] = first[-1] + draws
    return first
