"""Provenance survives in the schema, next to what others keep there."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pope_fast.errors import PopeError
from pope_fast.score.metadata import KEY, Provenance, provenance_json, read_provenance, with_provenance

MADE = Provenance(
    policy="new",
    engine="transformers",
    model="models/new",
    model_fingerprint="f00",
    tokenizer_fingerprint="ba4",
    template_hash="7e3",
    adapter="adapters/x",
    dtype="bfloat16",
    attention="sdpa",
    temperature=0.7,
    versions={"torch": "2.0"},
    tokens="retokenized",
    prompts="template",
    eos="by finish_reason",
    boundary_mismatches=3,
    rows=10,
    errors=1,
)
SCHEMA = pa.schema([("target_logprob/new", pa.float64()), ("reward", pa.float64())], metadata={"mine": "kept"})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    schema = with_provenance(SCHEMA, {"target_logprob/new": MADE})
    pq.write_table(schema.empty_table(), tmp_path / "log.parquet")
    read = pq.read_schema(tmp_path / "log.parquet")
    assert read_provenance(read) == {"target_logprob/new": MADE}
    assert read.metadata[b"mine"] == b"kept"


def test_columns_are_added_replaced_and_forgotten() -> None:
    schema = with_provenance(SCHEMA, {"target_logprob/new": MADE})
    schema = with_provenance(schema, {"reward": Provenance("r", "column")})
    assert set(read_provenance(schema)) == {"target_logprob/new", "reward"}
    schema = with_provenance(schema, {"reward": Provenance("again", "server")})
    assert read_provenance(schema)["reward"].policy == "again"
    assert set(read_provenance(schema.remove(1))) == {"target_logprob/new"}


def test_no_entry_is_no_provenance() -> None:
    assert read_provenance(SCHEMA) == {}
    assert read_provenance(pa.schema([])) == {}


def test_fields_of_other_versions_do_not_matter() -> None:
    record = {"policy": "p", "engine": "server", "invented": 1}
    schema = SCHEMA.with_metadata({KEY: json.dumps({"reward": record}).encode()})
    assert read_provenance(schema) == {"reward": Provenance("p", "server")}


@pytest.mark.parametrize("entry", [b"{", b"[]", b'{"reward": 3}'])
def test_a_damaged_entry_is_an_error(entry: bytes) -> None:
    with pytest.raises(PopeError, match=KEY.decode()):
        read_provenance(SCHEMA.with_metadata({KEY: entry}))


def test_the_bytes_do_not_depend_on_order() -> None:
    other = Provenance("b", "column")
    assert provenance_json({"b": other, "a": MADE}) == provenance_json({"a": MADE, "b": other})
