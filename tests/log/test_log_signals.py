"""Warnings: what a log may hold and the estimators would take for something else."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from log_tables import make_table, read_all

from pope_fast.errors import PopeWarning
from pope_fast.log import read_log, validate

N = 120


def said(table: pa.Table, **options: Any) -> list[str]:
    """What reading warns of, after checking that it was issued and that validating says the same."""
    log = read_log(table, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_all(log)
    issued = [str(warning.message) for warning in caught if warning.category is PopeWarning]
    assert issued == log.warnings
    assert sorted(validate(table, **options).warnings) == sorted(log.warnings)
    return log.warnings


def test_nothing_to_say() -> None:
    assert said(make_table(sampling=[{"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}] * N)) == []
    assert said(make_table(completion=[f"text {i}" for i in range(N)])) == []


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"top_p": 0.9}, "top_p 0.9"),
        ({"top_k": 50}, "top_k 50"),
        ({"min_p": 0.05}, "min_p 0.05"),
        ({"top_p": 0.95, "top_k": 20}, "top_p 0.95, top_k 20"),
        ({"temperature": 0.7, "top_p": 1}, "temperature 0.7"),
    ],
)
@pytest.mark.parametrize("layout", ["struct", "json", "flat", "dotted"])
def test_samplers_that_change_the_distribution(sampling: dict[str, float], words: str, layout: str) -> None:
    columns: dict[str, Any] = {
        "struct": {"sampling": [sampling] * N},
        "json": {"sampling": [json.dumps(sampling)] * N},
        "flat": {name: [value] * N for name, value in sampling.items()},
        "dotted": {f"sampling.{name}": [value] * N for name, value in sampling.items()},
    }[layout]
    messages = said(make_table(**columns))
    assert len(messages) == 1
    assert words in messages[0]


def test_one_row_is_enough() -> None:
    rows: list[Any] = [None] * N
    rows[100] = {"top_p": 0.8, "temperature": None}
    assert "top_p 0.8" in said(make_table(sampling=rows))[0]


def test_temperatures_come_as_a_range() -> None:
    rows = [{"temperature": 0.5 + i / N} for i in range(N)]
    assert "temperature 0.5 to 1.49" in said(make_table(sampling=rows))[0]


def test_sampling_of_other_kinds_is_left_alone() -> None:
    assert said(make_table(sampling=["greedy"] * N)) == []
    assert said(make_table(sampling=[{"seed": 3}] * N)) == []


def test_identical_texts_of_one_prompt() -> None:
    texts = [f"text {i}" for i in range(N)]
    texts[4] = texts[3]
    texts[50] = texts[3]  # of another prompt: no repeat
    messages = said(make_table(completion=texts))
    assert len(messages) == 1
    assert messages[0].startswith("1 of 120 rows repeat the text")


def test_identical_messages_and_token_ids() -> None:
    messages = [[{"role": "assistant", "content": f"{i // 2}"}] for i in range(N)]
    repeats = sum(i // 2 == (i - 1) // 2 and i // 3 == (i - 1) // 3 for i in range(1, N))
    assert said(make_table(completion=messages))[0].startswith(f"{repeats} of 120")
    ids = pa.array([[1, i // 2] for i in range(N)])
    assert said(make_table(completion_ids=ids))[0].startswith(f"{repeats} of 120")


def test_counts_say_that_rows_are_aggregated() -> None:
    assert said(make_table(completion=["same"] * N, count=[2] * N)) == []


def test_token_ids_that_do_not_fit_the_log_probs() -> None:
    logprobs = pa.array([[-0.5] * 3] * N, pa.list_(pa.float32()))
    ids = [[i, 1, 2] for i in range(N)]
    ids[9] = [9, 1]
    columns = {"behavior_logprob": None, "behavior_token_logprobs": logprobs, "completion_ids": ids}
    messages = said(make_table(**columns))
    assert len(messages) == 1
    assert "row 9: 3 token log-probs for 2 completion_ids" in messages[0]
    assert said(make_table(**{**columns, "completion_ids": [[i, 1, 2] for i in range(N)]})) == []


def test_repeats_across_batches_are_found_by_validating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pope_fast.log.validation.BATCH_ROWS", 2)
    texts = [f"text {i}" for i in range(N)]
    texts[2] = texts[0]
    assert validate(make_table(completion=texts)).warnings[0].startswith("1 of 120")


def test_warnings_are_said_once_for_a_log() -> None:
    log = read_log(make_table(sampling=[{"top_p": 0.5}] * N))
    with pytest.warns(PopeWarning, match="top_p"):
        read_all(log)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_all(log)
    assert len(log.warnings) == 1


def test_a_warning_made_an_error_ends_the_reading_cleanly() -> None:
    import threading

    log = read_log(make_table(completion=["same"] * N))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PopeWarning, match="repeat"):
            read_all(log)
    assert not [thread for thread in threading.enumerate() if thread.name == "pope-read-ahead"]


def test_preview_looks_at_the_head_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pope_fast.log.feedback_log._PREVIEW_ROWS", 30)
    texts = [f"text {i}" for i in range(N)]
    texts[100] = texts[99]
    log = read_log(make_table(completion=texts))
    assert np.isfinite(read_all(log)["reward"]).all()
    assert log.warnings == []
    assert len(validate(make_table(completion=texts)).warnings) == 1
