"""Rows of a log as token ids: the stored ones where there are any, else those of the text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pope_fast.errors import PopeError, SchemaError
from pope_fast.log import FeedbackLog
from pope_fast.log.arrays import as_numpy, plain, ragged
from pope_fast.log.arrow_types import Array
from pope_fast.log.columns import bare_type, is_list_type, is_text_type
from pope_fast.log.signals import lengths_or_none
from pope_fast.score.encoding import Encoder
from pope_fast.score.tokens import TokenLists

__all__ = ["ENDED", "Tokenized", "tokenize_log"]

#: Values of ``finish_reason`` that say: the model itself ended the response.
ENDED = frozenset({"stop", "eos", "eos_token", "end_turn", "end", "finished", "true"})

#: Values that say: something else ended it, so no end was sampled.
_CUT = frozenset(
    {
        *("length", "max_tokens", "max_length", "max_new_tokens", "stop_sequence", "content_filter", "tool_calls"),
        *("tool_use", "function_call", "abort", "aborted", "cancelled", "timeout", "error", "false"),
    }
)

_BATCH_ROWS = 1 << 13
_COMPARED_ROWS = 64

Tokens = Literal["auto", "stored", "text"]
Eos = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True, eq=False)
class Tokenized:
    """Token ids of every row of a log.

    Attributes
    ----------
    prompts, completions : TokenLists
        One list per row; those of rows with an error do not matter.
    errors : dict of int to str
        Rows that cannot be scored, and why.
    tokens : {"stored", "retokenized"}
        Where the completions' tokens come from.
    prompt_source : {"stored", "template", "text"}
        Where those of the prompts do.
    eos : str
        When the end of a response was counted as a token.
    boundary_mismatches : int
        Rows whose text has a token across the border of prompt and completion when tokenized in one piece.
    uses_template : bool
        Whether the chat template decided about tokens.
    columns : mapping of str to str
        The columns of the log that were read, by role.
    notes : tuple of str
        What a user should know: warnings, not errors.
    """

    prompts: TokenLists
    completions: TokenLists
    errors: dict[int, str]
    tokens: str
    prompt_source: str
    eos: str
    boundary_mismatches: int
    columns: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def uses_template(self) -> bool:
        """Whether the chat template decided about tokens."""
        return self.prompt_source == "template"

    def fingerprint(self) -> str:
        """Return a digest of all token ids and errors: it changes whenever what is to be scored does."""
        digest = hashlib.blake2b(digest_size=16)
        for lists in (self.prompts, self.completions):
            for array in (lists.offsets, lists.values):
                digest.update(array.size.to_bytes(8, "little"))
                digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
        digest.update(json.dumps(sorted(self.errors.items())).encode())
        return digest.hexdigest()

    def excluded(self) -> npt.NDArray[np.bool_]:
        """Return which rows have an error."""
        mask = np.zeros(len(self.completions), np.bool_)
        mask[list(self.errors)] = True
        return mask


def tokenize_log(
    log: FeedbackLog,
    encoder: Encoder | None = None,
    *,
    tokens: Tokens = "auto",
    eos: Eos = "auto",
) -> Tokenized:
    """Read the tokens of every row of a log.

    Parameters
    ----------
    log : FeedbackLog
        With ``completion_ids`` or ``completion``, and ``prompt_ids`` or ``prompt``. A prompt is a text or a list of
        messages, which go through the chat template.
    encoder : Encoder, optional
        Needed where there is text.
    tokens : {"auto", "stored", "text"}
        Stored token ids where the log has them; these or an error; or always those of the text, for a policy with
        another tokenizer than the one that wrote the log.
    eos : {"auto", "always", "never"}
        Whether the end of a response is a token of it. "auto": if ``finish_reason`` says that the model ended it;
        never, without that column. Stored ids are taken as they are: they hold the end if it was sampled.

    Returns
    -------
    Tokenized

    Raises
    ------
    SchemaError
        If columns are missing, or hold what cannot be tokens.
    PopeError
        If text must be tokenized and there is no tokenizer, or messages and no chat template.
    """
    if tokens not in ("auto", "stored", "text"):
        raise PopeError(f"tokens must be 'auto', 'stored' or 'text', not {tokens!r}")
    if eos not in ("auto", "always", "never"):
        raise PopeError(f"eos must be 'auto', 'always' or 'never', not {eos!r}")
    reader = _Reader(log, encoder, tokens, eos)
    for batch in log.reader.read(reader.names, _BATCH_ROWS):
        try:
            reader.feed(batch)
        except SchemaError as error:
            place = None if error.row is None else log.reader.locate(error.row)
            if place is None:
                raise
            message = f"{error.message} ({place})"
            raise SchemaError(message, column=error.column, row=error.row, remedy=error.remedy) from error
    if not reader.rows:
        raise SchemaError("the log is empty", remedy=f"check that {log.source} is the log that you mean")
    return reader.result()


@dataclass
class _Reader:
    """Turns batch after batch into token ids."""

    log: FeedbackLog
    encoder: Encoder | None
    tokens: Tokens
    eos: Eos
    rows: int = 0
    errors: dict[int, str] = field(default_factory=dict)
    mismatches: int = 0
    unknown_reasons: set[str] = field(default_factory=set)
    other_lengths: int = 0
    off_by_one: int = 0
    compared: int = 0
    alike: int = 0
    columns: dict[str, str] = field(init=False)
    chat: bool = field(init=False)

    def __post_init__(self) -> None:
        self.parts: tuple[list[TokenLists], list[TokenLists]] = ([], [])
        self.columns = self._columns()
        self.chat = "prompt" in self.columns and not is_text_type(self._type("prompt"))
        self.stored = "completion_ids" in self.columns
        text = not self.stored or "prompt" in self.columns
        if text and self.encoder is None:
            what = "prompts" if self.stored else "completions"
            raise PopeError(
                f"the {what} of the log are text, and there is no tokenizer for them. Remedy: give one "
                "(processing_class=, --tokenizer), or store prompt_ids and completion_ids in the log."
            )
        counted = self.encoder is not None and not self.stored and self.eos != "never"
        self.end = self.encoder.end_id(chat=self.chat) if counted and self.encoder is not None else None
        known = self.log.columns
        self.reason = known.get("finish_reason") if self.end is not None and self.eos == "auto" else None
        self.lengths = known.get("behavior_token_logprobs")
        # Seen beside the ids, the text tells whether they are of this tokenizer.
        unsure = self.stored and self.encoder is not None and self.tokens == "auto"
        self.text = known.get("completion") if unsure else None
        if self.text is not None and not is_text_type(self.log.schema.field(self.text).type):
            self.text = None

    def _columns(self) -> dict[str, str]:
        known = self.log.columns
        wanted = {} if self.tokens == "text" else {r: known[r] for r in ("prompt_ids", "completion_ids") if r in known}
        if self.tokens == "stored" and "completion_ids" not in wanted:
            raise SchemaError("no such column", column="completion_ids", remedy="score the text: tokens='text'")
        for role in ("prompt", "completion"):
            if f"{role}_ids" in wanted:
                continue
            if role not in known:
                have = ", ".join(self.log.schema.names) or "no columns"
                raise SchemaError(
                    f"no {role} (neither {role!r} nor '{role}_ids'); the log has: {have}",
                    column=role,
                    remedy=f"name the column with columns={{{role!r}: 'YOUR_COLUMN'}} (--column {role}=COLUMN)",
                )
            wanted[role] = known[role]
        return wanted

    def _type(self, role: str) -> Any:
        return bare_type(self.log.schema.field(self.columns[role]).type)

    @property
    def names(self) -> list[str]:
        """The columns to read, each once."""
        extra = [name for name in (self.reason, self.lengths, self.text) if name is not None]
        return list(dict.fromkeys([*self.columns.values(), *extra]))

    def feed(self, batch: pa.RecordBatch) -> None:
        """Take one batch."""
        bad: dict[int, str] = {}
        prompts, completions = self._stored(batch, "prompt", bad), self._stored(batch, "completion", bad)
        if prompts is None or completions is None:
            prompts, completions = self._encoded(batch, prompts, completions, bad)
        if self.stored:
            self._compare_text(batch, completions, bad)
        for row in np.flatnonzero(completions.lengths == 0).tolist():
            bad.setdefault(row, "empty completion: there is no token to score")
        for row in np.flatnonzero(prompts.lengths == 0).tolist():
            bad.setdefault(row, "empty prompt: the first token of the completion has nothing before it")
        self._compare_lengths(batch, completions, bad)
        self.errors.update({self.rows + row: reason for row, reason in bad.items()})
        for part, lists in zip(self.parts, (prompts, completions), strict=True):
            part.append(lists)
        self.rows += batch.num_rows

    def _stored(self, batch: pa.RecordBatch, role: str, bad: dict[int, str]) -> TokenLists | None:
        """Return the stored ids of prompts or completions, None if the log has none."""
        column = self.columns.get(f"{role}_ids")
        if column is None:
            return None
        array = plain(batch.column(column))
        if not is_list_type(array.type):
            raise SchemaError(
                f"wrong type {array.type}: lists of integers are needed", column=column, remedy="cast the column"
            )
        for row in _nulls(array):
            bad.setdefault(row, f"{column} is null")
        offsets, inner = ragged(array)
        inner = plain(inner)

        def fault(token: int, message: str, remedy: str) -> SchemaError:
            row = int(np.searchsorted(offsets, token, side="right")) - 1
            return SchemaError(message, column=column, row=self.rows + row, remedy=remedy)

        if inner.null_count:
            token = int(np.flatnonzero(as_numpy(inner.is_null()))[0])
            raise fault(token, "missing value (null) inside the list", "store one id per token")
        if pa.types.is_null(inner.type):
            return TokenLists(offsets, np.empty(0, np.int32))
        values = as_numpy(inner)
        outside = np.flatnonzero((values < 0) | (values >= 1 << 31))
        if outside.size:
            at = int(outside[0])
            raise fault(at, f"{values[at]} is no token id", "store the ids that the model was given, without padding")
        return TokenLists(offsets, np.ascontiguousarray(values, np.int32))

    def _encoded(
        self, batch: pa.RecordBatch, prompts: TokenLists | None, completions: TokenLists | None, bad: dict[int, str]
    ) -> tuple[TokenLists, TokenLists]:
        """Tokenize what is not stored."""
        assert self.encoder is not None
        texts = self._prompt_texts(batch, bad) if prompts is None else None
        if completions is not None:
            assert texts is not None
            unique = list(dict.fromkeys(texts))
            ids = dict(zip(unique, self.encoder.encode_prompts(unique, rendered=self.chat), strict=True))
            return TokenLists.of([ids[text] for text in texts]), completions
        responses = self._completion_texts(batch, bad)
        if texts is None:
            assert prompts is not None
            encoded = self.encoder.encode_completions(responses)
        else:
            pairs = self.encoder.encode_pairs(texts, responses, rendered=self.chat)
            counted = np.array([row not in bad for row in range(len(texts))])
            self.mismatches += int(np.count_nonzero(pairs.mismatch & counted))
            prompts, encoded = TokenLists.of(pairs.prompts), pairs.completions
        return prompts, TokenLists.of(self._ended(batch, encoded))

    def _prompt_texts(self, batch: pa.RecordBatch, bad: dict[int, str]) -> list[str]:
        column = self.columns["prompt"]
        array = plain(batch.column(column))
        missing = _nulls(array)
        for row in missing:
            bad.setdefault(row, f"{column} is null")
        values = array.to_pylist()
        if not self.chat:
            return [_text(value) for value in values]
        assert self.encoder is not None
        rendered: dict[str, str] = {}
        texts = []
        for row, value in enumerate(values):
            if value is None:
                texts.append("")
                continue
            messages = self._messages(value, column, row)
            key = json.dumps(messages, sort_keys=True, default=str)
            if key not in rendered:
                try:
                    rendered[key] = self.encoder.render(messages)
                except PopeError as error:
                    raise SchemaError(str(error).rstrip("."), column=column, row=self.rows + row) from error
            texts.append(rendered[key])
        return texts

    def _messages(self, value: Any, column: str, row: int) -> list[dict[str, Any]]:
        """Return messages without the fields that the reader filled in because other messages have them."""
        messages = [value] if isinstance(value, Mapping) else value
        if not all(isinstance(message, Mapping) and "role" in message for message in messages):
            raise SchemaError(
                "neither a text nor messages with 'role' and 'content'",
                column=column,
                row=self.rows + row,
                remedy="store a prompt as text, or as a list of {'role': ..., 'content': ...}",
            )
        return [_without_nulls(message) for message in messages]

    def _completion_texts(self, batch: pa.RecordBatch, bad: dict[int, str]) -> list[str]:
        column = self.columns["completion"]
        array = plain(batch.column(column))
        for row in _nulls(array):
            bad.setdefault(row, f"{column} is null")
        values = array.to_pylist()
        if is_text_type(array.type) or pa.types.is_null(array.type):
            return [_text(value) for value in values]
        texts = []
        for row, value in enumerate(values):
            messages = [] if value is None else self._messages(value, column, row)
            content = messages[0].get("content") if len(messages) == 1 else None
            if value is not None and not (isinstance(content, str) and set(messages[0]) <= {"role", "content"}):
                raise SchemaError(
                    "a completion must be one message with a text",
                    column=column,
                    row=self.rows + row,
                    remedy="store what the model wrote: its text, or its tokens in completion_ids",
                )
            texts.append(content or "")
        return texts

    def _ended(self, batch: pa.RecordBatch, completions: list[npt.NDArray[np.int32]]) -> list[npt.NDArray[np.int32]]:
        """Append the end of a response to those that the model ended."""
        if self.end is None or (self.eos == "auto" and self.reason is None):
            return completions
        if self.reason is None:
            ended = [True] * batch.num_rows
        else:
            reasons = [_reason(value) for value in plain(batch.column(self.reason)).to_pylist()]
            self.unknown_reasons.update(set(reasons) - ENDED - _CUT - {""})
            ended = [reason in ENDED for reason in reasons]
        end = np.array([self.end], np.int32)
        return [
            np.concatenate([ids, end]) if is_end and not (ids.size and ids[-1] == self.end) else ids
            for ids, is_end in zip(completions, ended, strict=True)
        ]

    def _compare_text(self, batch: pa.RecordBatch, completions: TokenLists, bad: dict[int, str]) -> None:
        """Look whether stored ids mean the stored text to this tokenizer."""
        if self.text is None or self.encoder is None or self.compared >= _COMPARED_ROWS:
            return
        rows = [row for row in range(min(batch.num_rows, _COMPARED_ROWS - self.compared)) if row not in bad]
        texts = plain(batch.column(self.text)).take(pa.array(rows, pa.int64())).to_pylist()
        for row, value in zip(rows, texts, strict=True):
            text = _text(value).strip()
            if text and completions[row].size:
                try:
                    decoded = self.encoder.decode(completions[row]).strip()
                except (IndexError, OverflowError, TypeError, ValueError):
                    decoded = ""
                self.compared += 1
                # Stop strings and reasoning are cut off texts more often than off tokens.
                self.alike += bool(decoded) and (text in decoded or decoded in text)

    def _compare_lengths(self, batch: pa.RecordBatch, completions: TokenLists, bad: Mapping[int, str]) -> None:
        if self.lengths is None:
            return
        logged = lengths_or_none(batch.column(self.lengths))
        if logged is None:
            return
        good = np.ones(batch.num_rows, np.bool_)
        good[list(bad)] = False
        differs = good & (logged > 0) & (logged != completions.lengths)
        self.other_lengths += int(np.count_nonzero(differs))
        self.off_by_one += int(np.count_nonzero(np.abs(logged - completions.lengths)[differs] == 1))

    def result(self) -> Tokenized:
        """Return all rows, and what is to be said about them."""
        return Tokenized(
            prompts=_concatenated(self.parts[0]),
            completions=_concatenated(self.parts[1]),
            errors=self.errors,
            tokens="stored" if self.stored else "retokenized",
            prompt_source="stored" if "prompt_ids" in self.columns else "template" if self.chat else "text",
            eos=self._eos_rule(),
            boundary_mismatches=self.mismatches,
            columns=dict(self.columns),
            notes=tuple(self._notes()),
        )

    def _eos_rule(self) -> str:
        if self.stored:
            return "as stored"
        if self.eos == "never":
            return "never"
        if self.end is None:
            return "never: the tokenizer has none"
        if self.eos == "always":
            return "always"
        return "by finish_reason" if self.reason is not None else "never: the log has no finish_reason"

    def _notes(self) -> list[str]:
        notes = []
        if self.compared and not self.alike:
            raise SchemaError(
                f"the token ids of {self.compared} rows decode to other texts than those in {self.text!r}: "
                "they are of another tokenizer",
                column=self.columns["completion_ids"],
                row=0,
                remedy="score the text with this policy's own tokenizer: tokens='text' (--retokenize)",
            )
        if self.compared and self.alike < self.compared / 2:
            notes.append(
                f"the token ids of {self.compared - self.alike} of {self.compared} rows decode to other texts than "
                f"those in {self.text!r}: make sure that they are of this policy's tokenizer"
            )
        if not self.stored:
            notes.append(
                "completions were tokenized from their text: these may be other tokens than those that were sampled; "
                f"the end of a response was counted as a token: {self._eos_rule()}"
            )
        if self.mismatches:
            notes.append(
                f"{self.mismatches:,} of {self.rows:,} rows have a token across the border of prompt and completion "
                "when tokenized in one piece; they were tokenized apart, as a sampler would have"
            )
        if self.unknown_reasons:
            listed = ", ".join(sorted(self.unknown_reasons)[:5])
            notes.append(f"finish_reason has values of unknown meaning ({listed}): taken for cut off")
        if self.other_lengths:
            hint = ", all by one token: the end of the response?" if self.off_by_one == self.other_lengths else ""
            notes.append(
                f"{self.other_lengths:,} of {self.rows:,} completions have another number of tokens than of "
                f"{self.lengths!r}{hint}"
            )
        return notes


def _nulls(array: Array) -> list[int]:
    return np.flatnonzero(as_numpy(array.is_null())).tolist() if array.null_count else []


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _reason(value: Any) -> str:
    return "" if value is None else _text(value).strip().lower()


def _without_nulls(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _cleaned(value) for name, value in message.items() if value is not None}


def _cleaned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _without_nulls(value)
    return [_cleaned(item) for item in value] if isinstance(value, list) else value


def _concatenated(parts: Sequence[TokenLists]) -> TokenLists:
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return TokenLists(offsets, np.concatenate([part.values for part in parts]))
