"""Where a column of log-probs comes from, kept in the schema of the log: model, tokenizer, precision, versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa

from pope_fast.errors import PopeError
from pope_fast.log.signals import SCORES_KEY

__all__ = ["KEY", "Provenance", "provenance_json", "read_provenance", "with_provenance"]

#: Key of the schema metadata, also of Parquet files.
KEY = SCORES_KEY


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a column of log-probs was made; what is not known is None.

    Attributes
    ----------
    policy : str
        Name of the policy; "behavior" for the one that wrote the log.
    engine : str
        "transformers", "server" or "column" (copied from another column).
    model : str or None
        Path, hub id or URL, as it was given.
    model_fingerprint, tokenizer_fingerprint : str or None
        Digests of configuration and weights, and of the tokenizer.
    template_hash : str or None
        Digest of the chat template that prompts went through; None if they did not go through one.
    adapter : str or None
        Adapter on the model.
    dtype, attention : str or None
        Number format of the model, and its attention implementation.
    temperature : float or None
    versions : mapping of str to str
        Libraries.
    tokens : str or None
        "stored": the log's token ids were scored. "retokenized": the completion's text was tokenized, which may give
        other tokens than those that were sampled.
    prompts : str or None
        "stored", "template" or "text": where the prompt's tokens come from.
    eos : str or None
        When the end of a response was counted as a token: see :func:`pope_fast.score.rows.tokenize_log`.
    boundary_mismatches : int
        Rows whose text, tokenized in one piece, has a token across the border of prompt and completion.
    rows, errors : int or None
        Rows of the log, and those without a log-prob.
    """

    policy: str
    engine: str
    model: str | None = None
    model_fingerprint: str | None = None
    tokenizer_fingerprint: str | None = None
    template_hash: str | None = None
    adapter: str | None = None
    dtype: str | None = None
    attention: str | None = None
    temperature: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    tokens: str | None = None
    prompts: str | None = None
    eos: str | None = None
    boundary_mismatches: int = 0
    rows: int | None = None
    errors: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {**asdict(self), "versions": dict(self.versions)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Provenance:
        """Build one from plain values; fields that this version does not know are left out."""
        known = {item.name for item in fields(cls)}
        values = {"policy": "", "engine": "", **{name: value for name, value in record.items() if name in known}}
        return cls(**values)


def read_provenance(schema: pa.Schema) -> dict[str, Provenance]:
    """Return what a log's schema says of its columns of log-probs.

    Parameters
    ----------
    schema : pyarrow.Schema
        ``log.schema`` of a :class:`pope_fast.FeedbackLog`, or of a file.

    Returns
    -------
    dict of str to Provenance
        By column; empty if nothing was noted. Columns that are no longer there are left out.

    Raises
    ------
    PopeError
        If the entry is damaged.
    """
    text = (schema.metadata or {}).get(KEY)
    if text is None:
        return {}
    try:
        records = json.loads(text)
        return {
            str(column): Provenance.from_dict(record) for column, record in records.items() if column in schema.names
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise PopeError(
            f"the log's entry {KEY.decode()!r} on where its log-probs come from is damaged: {error}"
        ) from error


def provenance_json(provenance: Mapping[str, Provenance]) -> bytes:
    """Return the value of the metadata entry for some columns."""
    records = {column: provenance[column].to_dict() for column in sorted(provenance)}
    return json.dumps(records, sort_keys=True).encode()


def with_provenance(schema: pa.Schema, provenance: Mapping[str, Provenance]) -> pa.Schema:
    """Return the schema with an entry for some columns; those of other columns are kept.

    Examples
    --------
    >>> import pyarrow as pa
    >>> schema = pa.schema([("target_logprob/new", pa.float64())])
    >>> schema = with_provenance(schema, {"target_logprob/new": Provenance("new", "server", model="m")})
    >>> read_provenance(schema)["target_logprob/new"].model
    'm'
    """
    merged = {**read_provenance(schema), **provenance}
    return schema.with_metadata({**(schema.metadata or {}), KEY: provenance_json(merged)})
