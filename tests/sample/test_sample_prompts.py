"""Prompts of a log, each once, as the tokens that scoring would take; and how long its responses may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pope_fast.errors import PopeError, SchemaError
from pope_fast.log import read_log
from pope_fast.sample.prompts import first_draws, open_prompts, read_prompts, usual_limit
from pope_fast.score.encoding import Encoder
from pope_fast.score.rows import tokenize_log
from tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer)


def log(**columns: Any) -> Any:
    return read_log(pa.table(columns))


def ids_of(prompts: Any) -> list[list[int]]:
    return [ids.tolist() for ids in prompts.ids]


def test_each_prompt_comes_once_in_the_log_s_order(encoder: Encoder, tokenizer: Any) -> None:
    texts = ["trees", "a park", "trees", "birds", "a park"]
    read = read_prompts(log(prompt_id=["b", "a", "b", "c", "a"], prompt=texts), encoder)
    assert read.columns.to_pydict() == {"prompt_id": ["b", "a", "c"], "prompt": ["trees", "a park", "birds"]}
    assert ids_of(read) == [list(tokenizer(text)["input_ids"]) for text in ("trees", "a park", "birds")]
    assert read.source == "text"
    without = read_prompts(log(prompt=texts), encoder)
    assert ids_of(without) == ids_of(read)
    assert without.columns.column_names == ["prompt"]


def test_distinct_over_many_batches(encoder: Encoder) -> None:
    n = 150_000
    prompts = np.arange(n) % 7
    read = read_prompts(log(prompt_id=prompts, prompt_ids=[[3, 4 + int(p)] for p in prompts]), None)
    assert read.columns["prompt_id"].to_pylist() == list(range(7))
    assert ids_of(read) == [[3, 4 + p] for p in range(7)]
    assert read.source == "stored"


def test_messages_go_through_the_template(encoder: Encoder, tokenizer: Any) -> None:
    chats = [
        [{"role": "user", "content": "what now?"}],
        [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}],
    ]
    read = read_prompts(log(prompt=chats, prompt_id=[1, 2]), encoder)
    rendered = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    assert ids_of(read) == rendered
    assert read.source == "template"
    assert read.columns["prompt"].to_pylist() == chats
    with pytest.raises(PopeError, match="no chat template"):
        read_prompts(log(prompt=chats), Encoder(tiny_tokenizer(chat=False)))


def test_tokens_are_those_of_scoring(encoder: Encoder) -> None:
    """A response drawn here and scored there has one prompt."""
    table = log(prompt=["trees and", "<s>trees", " a  pond"], completion=["a", "b", "c"])
    scored = tokenize_log(table, encoder)
    assert ids_of(read_prompts(table, encoder)) == [scored.prompts[i].tolist() for i in range(3)]


def test_stored_ids_win_unless_text_is_asked_for(encoder: Encoder, tokenizer: Any) -> None:
    text = "plant trees"
    stored = [*tokenizer(text)["input_ids"], 4]
    table = log(prompt=[text], prompt_ids=[stored])
    assert ids_of(read_prompts(table, encoder)) == [stored]
    assert ids_of(read_prompts(table, encoder, tokens="text")) == [list(tokenizer(text)["input_ids"])]
    with pytest.raises(SchemaError, match="prompt_ids"):
        read_prompts(log(prompt=[text]), encoder, tokens="stored")


def test_ids_of_another_tokenizer_are_refused(encoder: Encoder, tokenizer: Any) -> None:
    texts = ["plant trees", "build a pond"]
    table = log(prompt=texts, prompt_ids=[[i + 1 for i in tokenizer(text)["input_ids"]] for text in texts])
    with pytest.raises(SchemaError, match="another tokenizer"):
        read_prompts(table, encoder)


def test_two_prompts_of_one_id_are_refused(encoder: Encoder) -> None:
    with pytest.raises(SchemaError, match="two different prompts with prompt_id 1") as error:
        read_prompts(log(prompt_id=[1, 2, 1], prompt=["a", "b", "c"]), encoder)
    assert error.value.row == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt_id": [1]}, "no such column"),
        ({"prompt": [""]}, "empty prompt"),
        ({"prompt": ["a", None]}, "missing value"),
        ({"prompt_ids": pa.array([[]], pa.list_(pa.int64()))}, "empty prompt"),
        ({"prompt": pa.array([], pa.string())}, "empty"),
    ],
    ids=["none", "empty", "null", "no ids", "no rows"],
)
def test_what_is_no_prompt_is_refused(encoder: Encoder, columns: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        read_prompts(log(**columns), encoder)


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(PopeError, match="no tokenizer"):
        read_prompts(log(prompt=["a"]), None)


def test_some_prompts_at_random(encoder: Encoder) -> None:
    table = log(prompt_id=np.arange(100), prompt_ids=[[3, 4, i % 50] for i in range(100)])
    first, again, other = (
        read_prompts(table, None, most=20, seed=seed).columns["prompt_id"].to_pylist() for seed in (0, 0, 1)
    )
    assert first == again == sorted(set(first))
    assert len(first) == 20
    assert first != other
    assert len(read_prompts(table, None, most=1000).ids) == 100


@pytest.mark.parametrize(
    "given",
    [
        ["trees", "a park"],
        [[{"role": "user", "content": "trees"}], [{"role": "user", "content": "a park"}]],
        [[5, 6, 7], np.array([8, 9])],
    ],
    ids=["texts", "messages", "ids"],
)
def test_prompts_may_be_a_list(encoder: Encoder, given: Any) -> None:
    read = read_prompts(open_prompts(given), encoder)
    assert read.columns["prompt_id"].to_pylist() == [0, 1]
    assert [ids.dtype for ids in read.ids] == [np.int32, np.int32]
    assert read.source == {str: "text", np.ndarray: "stored"}.get(
        type(given[1]), "stored" if isinstance(given[0][0], int) else "template"
    )


@pytest.mark.parametrize(
    "given", [[], ["a", [1, 2]], [1.5, 2.5], [object()]], ids=["none", "mixed", "numbers", "things"]
)
def test_what_is_no_list_of_prompts_is_refused(encoder: Encoder, given: Any) -> None:
    with pytest.raises(PopeError):
        read_prompts(open_prompts(given), encoder)


def test_equal_prompts_go_on_in_one_stream() -> None:
    a, b = np.array([1, 2], np.int32), np.array([1], np.int32)
    assert first_draws([a, b, a, a, b], 4) == [0, 0, 4, 8, 4]


@pytest.mark.parametrize(
    ("columns", "limit"),
    [
        ({}, 256),
        ({"num_tokens": [3.0, 9.0]}, 18),
        ({"completion_ids": [[1] * 4, [1] * 7]}, 14),
        ({"completion_ids": [[1] * 4, [1] * 7], "finish_reason": ["stop", "stop"]}, 14),
        ({"completion_ids": [[1] * 6, [1] * 7], "finish_reason": ["length", "stop"]}, 6),
        ({"behavior_token_logprobs": [[-1.0] * 5, [-1.0] * 2], "finish_reason": ["max_tokens", None]}, 5),
    ],
    ids=str,
)
def test_the_usual_limit_is_that_of_the_log(columns: Any, limit: int) -> None:
    assert usual_limit(log(prompt=["a", "b"], **columns)) == limit
