"""Warnings on log-probs that were made differently: what the schema's metadata says, and what comes of it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pope_fast.errors import PopeWarning
from pope_fast.evaluate import Evaluation, evaluate
from pope_fast.report.table import render_text
from pope_fast.score import Provenance, with_provenance

MADE = Provenance(
    "behavior",
    "transformers",
    model="old",
    model_fingerprint="1",
    tokenizer_fingerprint="t",
    template_hash="h",
    dtype="float32",
    attention="sdpa",
    temperature=1.0,
    versions={"torch": "2.15", "transformers": "5.23", "pope_fast": "0.1"},
    tokens="stored",
    prompts="template",
    eos="by finish_reason",
)


def table(**made: Provenance) -> pa.Table:
    rng = np.random.default_rng(0)
    n = 800
    log_weight = 0.3 * rng.normal(size=n) - 0.045
    log = pa.table(
        {
            "prompt_id": np.repeat(np.arange(n // 4), 4),
            "behavior_logprob": np.full(n, -20.0),
            "target_logprob/new": -20.0 + log_weight,
            "reward": rng.random(n),
        }
    )
    columns = {"target": "target_logprob/new", "behavior": "behavior_logprob"}
    return log.cast(with_provenance(log.schema, {columns[name]: value for name, value in made.items()}))


def quietly(log: Any, **options: Any) -> Evaluation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PopeWarning)
        return evaluate(log, reward_range=(0.0, 1.0), **options)


def found(evaluation: Evaluation) -> dict[str, Any]:
    return {finding.code: finding for finding in evaluation["new"].verdict.findings}


@pytest.mark.parametrize(
    "same",
    [
        {},
        {"model": "new", "model_fingerprint": "2"},
        {"temperature": 0.7, "adapter": "tuned"},
        {"versions": {**MADE.versions, "pope_fast": "0.2"}},
        {"template_hash": None, "prompts": "stored"},
        {"eos": "as stored"},
        {"policy": "new", "rows": 800, "errors": 3, "boundary_mismatches": 2},
    ],
    ids=str,
)
def test_policies_may_differ_but_not_their_scoring(same: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PopeWarning)
        evaluation = evaluate(table(target=replace(MADE, **same), behavior=MADE), reward_range=(0.0, 1.0))
    assert found(evaluation) == {}
    assert evaluation.warnings == ()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"tokenizer_fingerprint": "u"}, "another tokenizer"),
        ({"template_hash": "g"}, "another chat template"),
        ({"tokens": "retokenized"}, "this policy's are those of the text"),
        ({"eos": "never"}, "the end of a response counted never and by finish_reason"),
    ],
    ids=str,
)
def test_other_tokens_are_a_caution(other: dict[str, Any], said: str) -> None:
    evaluation = quietly(table(target=replace(MADE, **other), behavior=MADE))
    finding = found(evaluation)["different_tokens"]
    assert finding.severity == evaluation["new"].verdict.level == "caution"
    assert said in finding.message
    text = " ".join(render_text(evaluation).split())
    assert said in text
    assert "next: Score both policies on the same tokens" in text


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"dtype": "bfloat16"}, "dtype bfloat16 and float32"),
        ({"attention": "eager"}, "attention eager and sdpa"),
        ({"engine": "server"}, "engine server and transformers"),
        ({"versions": {"torch": "2.4", "transformers": "5.23"}}, "torch 2.4 and 2.15"),
    ],
    ids=str,
)
def test_other_numerics_are_noted(other: dict[str, Any], said: str) -> None:
    log = table(target=replace(MADE, **other), behavior=MADE)
    with pytest.warns(PopeWarning, match=said):
        evaluation = evaluate(log, reward_range=(0.0, 1.0))
    assert found(evaluation)["different_scorers"].severity == "info"
    assert evaluation["new"].verdict.level == "reliable"
    assert said in " ".join(render_text(evaluation).split())
    (warning,) = evaluation.warnings
    assert warning.startswith("new: ")


def test_log_probs_of_unknown_origin_beside_scored_ones_are_noted() -> None:
    one = quietly(table(target=MADE))
    assert "nothing is noted of how the behavior ones were" in found(one)["different_scorers"].message
    assert "transformers 5.23 float32" in found(one)["different_scorers"].message
    other = quietly(table(behavior=MADE))
    assert "nothing is noted of how the target ones were" in found(other)["different_scorers"].message
    assert found(quietly(table())) == {}
    copied = Provenance("new", "column", model="x")
    assert found(quietly(table(target=copied))) == {}


def test_policies_of_one_fault_share_a_note() -> None:
    log = table(target=replace(MADE, dtype="bfloat16"), behavior=MADE)
    second = log.append_column("target_logprob/second", log["target_logprob/new"])
    noted = with_provenance(second.schema, {"target_logprob/second": replace(MADE, dtype="bfloat16")})
    assert len([w for w in quietly(second.cast(noted)).warnings if w.startswith("new, second: ")]) == 1


def test_files_and_folders_and_renamed_columns(tmp_path: Path) -> None:
    log = table(target=replace(MADE, template_hash="g"), behavior=MADE)
    pq.write_table(log, tmp_path / "one.parquet")
    assert "different_tokens" in found(quietly(tmp_path / "one.parquet"))
    folder = tmp_path / "folder" / "part=1"
    folder.mkdir(parents=True)
    for i in range(2):
        pq.write_table(log.slice(400 * i, 400), folder / f"{i}.parquet")
    assert "different_tokens" in found(quietly(tmp_path / "folder"))
    mapped = quietly(tmp_path / "one.parquet", policies={"mine": "target_logprob/new"})
    assert [finding.code for finding in mapped["mine"].verdict.findings] == ["different_tokens"]


def test_files_that_were_scored_differently(tmp_path: Path) -> None:
    log = table(target=MADE, behavior=MADE)
    other = table(target=replace(MADE, model_fingerprint="2"), behavior=MADE)
    unknown = log.replace_schema_metadata(None)
    for name, parts, wrong in (
        ("same", (log, log.cast(with_provenance(log.schema, {"behavior_logprob": replace(MADE, rows=9)}))), []),
        ("model", (log, log, other), ["the log-probs of this policy were not made alike", "1 of 3"]),
        ("unknown", (log, unknown, unknown), ["this policy", "the behavior policy", "2 of 3"]),
    ):
        (tmp_path / name).mkdir()
        size = log.num_rows // len(parts) // 4 * 4
        for i, part in enumerate(parts):
            pq.write_table(part.slice(size * i, size), tmp_path / name / f"{i}.parquet")
        findings = quietly(tmp_path / name)["new"].verdict.findings
        messages = " ".join(finding.message for finding in findings if finding.code == "mixed_origins")
        assert bool(messages) == bool(wrong)
        assert all(words in messages for words in wrong)


def test_what_score_writes_is_read(tmp_path: Path) -> None:
    """Two policies of one tokenizer scored in one go give no warning; in half precision one of them is noted."""
    from pope_fast.score import HFPolicy, score
    from tiny_models import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    models = {name: tiny_model(vocab_size=len(tokenizer), seed=seed) for seed, name in enumerate(("old", "new"))}
    log = {
        "prompt": ["trees", "a park", "birds"],
        "completion": ["yes", "no", "maybe"],
        "finish_reason": ["stop"] * 3,
        "reward": [0.0, 1.0, 1.0],
    }
    old = HFPolicy("old", models["old"], processing_class=tokenizer)
    scored = score(log, [HFPolicy("new", models["new"], processing_class=tokenizer)], behavior=old)
    assert not {"different_tokens", "different_scorers"} & set(found(quietly(scored)))
    half = HFPolicy("new", models["new"].bfloat16(), processing_class=tokenizer)
    assert "dtype bfloat16 and float32" in found(quietly(score(log, [half], behavior=old)))["different_scorers"].message
