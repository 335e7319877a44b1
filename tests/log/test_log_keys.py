"""Keys of units, clusters and groups: integers as they are, anything else by the hash of its bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from log_tables import make_table, read_all

from pope_fast.log import read_log
from pope_fast.log.arrays import keys, text_hashes

TEXTS = ["", "a", "Grüße", "日本語 \n", "a" * 1000, "b"]


def hashes(texts: list[str]) -> np.ndarray:
    return np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in texts], dtype=np.uint64).view(np.int64)


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.uint32(), pa.large_string()),
    ],
)
def test_strings_hash_alike_in_every_layout(type_: pa.DataType) -> None:
    values: list[Any] = [text.encode() for text in TEXTS] if "binary" in str(type_) else TEXTS
    coded = pa.types.is_dictionary(type_)
    array = pa.array(values, type_.value_type if coded else type_)
    if coded:
        array = array.dictionary_encode().cast(type_)
    labels: dict[int, str | int] = {}
    np.testing.assert_array_equal(keys(array, "group", "g", 0), hashes(TEXTS))
    np.testing.assert_array_equal(keys(array, "group", "g", 0, labels), hashes(TEXTS))
    assert labels == dict(zip(hashes(TEXTS).tolist(), TEXTS, strict=True))
    np.testing.assert_array_equal(keys(array.slice(2, 3), "group", "g", 0), hashes(TEXTS[2:5]))


def test_other_encodings() -> None:
    runs = pa.RunEndEncodedArray.from_arrays([2, 5], pa.array(["a", "b"]))
    np.testing.assert_array_equal(keys(runs, "group", "g", 0), hashes(list("aabbb")))
    uuids = pa.array([bytes(range(16)), bytes(16)], pa.binary(16))
    expected = [xxhash.xxh3_64_intdigest(bytes(range(16))), xxhash.xxh3_64_intdigest(bytes(16))]
    np.testing.assert_array_equal(keys(uuids, "prompt_id", "p", 0).view(np.uint64), np.array(expected, "u8"))


@given(st.lists(st.text(max_size=8), max_size=30))
def test_the_hash_is_xxh3_of_the_utf8_bytes(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    np.testing.assert_array_equal(text_hashes(pa.array(texts, pa.string())).view(np.int64), hashes(texts))


@pytest.mark.parametrize("type_", [pa.int8(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()])
def test_integers_stay_as_they_are(type_: pa.DataType) -> None:
    array = pa.array([0, 5, 127], type_)
    wide = keys(array, "prompt_id", "p", 0)
    assert wide.dtype == np.int64
    assert wide.tolist() == [0, 5, 127]
    narrow = keys(array, "cluster", "c", 0, wide=False)
    assert narrow.dtype == (np.int32 if type_ == pa.int32() else np.int64)
    assert narrow.tolist() == [0, 5, 127]
    coded = array.dictionary_encode()
    assert keys(coded, "cluster", "c", 0, wide=False).tolist() == [0, 5, 127]


def test_the_largest_unsigned_integer_keeps_its_bits() -> None:
    assert keys(pa.array([2**64 - 1], pa.uint64()), "prompt_id", "p", 0).tolist() == [-1]


def test_booleans_are_keys_with_labels() -> None:
    labels: dict[int, str | int] = {}
    assert keys(pa.array([True, False]), "group", "g", 0, labels).tolist() == [1, 0]
    assert labels == {0: "false", 1: "true"}


def test_a_null_that_no_row_points_at_is_no_null() -> None:
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 2, 0]), pa.array(["a", None, "b"]))
    np.testing.assert_array_equal(keys(coded, "group", "g", 0), hashes(["a", "b", "a"]))


def test_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pope_fast.log.arrays.MAX_LABELS", 3)
    labels: dict[int, str | int] = {}
    keys(pa.array(list("abcdef")), "group", "g", 0, labels)
    assert list(labels.values()) == ["a", "b", "c"]


MESSAGES = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
    [{"role": "user", "content": "hi"}],
    [],
    [{"role": "user", "content": None}],
]


def test_messages_hash_by_role_and_content() -> None:
    marks = text_hashes(pa.array(MESSAGES))
    assert marks[0] == marks[2]
    assert len(set(marks.tolist())) == 4


def test_messages_do_not_depend_on_layout_order_or_absent_fields() -> None:
    struct = pa.struct([("content", pa.large_string()), ("name", pa.string()), ("role", pa.string())])
    marks = text_hashes(pa.array(MESSAGES))
    np.testing.assert_array_equal(text_hashes(pa.array(MESSAGES, pa.large_list(struct))), marks)
    np.testing.assert_array_equal(text_hashes(pa.array(MESSAGES, pa.list_(struct)).slice(1)), marks[1:])
    named = [[{"role": "user", "content": "hi", "name": "bob"}]]
    assert text_hashes(pa.array(named, pa.list_(struct)))[0] != marks[0]


def test_messages_of_parts() -> None:
    parts = [
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "look"}, {"type": "image", "image": "1.png"}],
            }
        ],
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "look"}, {"type": "image", "image": "2.png"}],
            }
        ],
        [{"role": "user", "content": [{"type": "text", "text": "look"}]}],
    ]
    assert len(set(text_hashes(pa.array([*parts, parts[0]])).tolist())) == 3


@pytest.mark.parametrize("ending", [("x", ""), ("", "x")])
def test_text_does_not_slip_from_one_message_to_the_next(ending: tuple[str, str]) -> None:
    def messages(first: str, second: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "a" + first}, {"role": "user", "content": second + "b"}]

    marks = text_hashes(pa.array([messages("", ""), messages(*ending)]))
    assert marks[0] != marks[1]


@pytest.mark.parametrize(
    "prompts",
    [
        {"prompt": ["one"] * 3 + ["two"] * 3 + ["three"] * 3},
        {"prompt": [MESSAGES[0]] * 3 + [MESSAGES[1]] * 3 + [MESSAGES[3]] * 3},
        {"prompt_ids": [[1, 2]] * 3 + [[1]] * 3 + [[]] * 3},
    ],
)
def test_prompts_are_told_apart_by_text_messages_or_tokens(prompts: dict[str, list[Any]]) -> None:
    arrays = read_all(read_log(make_table(prompts=3, prompt_id=None, **prompts)))
    unit = arrays["unit_key"]
    assert (unit.reshape(3, 3) == unit[::3, None]).all()
    assert len(set(unit.tolist())) == 3


def test_an_id_wins_over_text_and_text_over_tokens() -> None:
    both = make_table(prompt=["same"] * 120)
    np.testing.assert_array_equal(read_all(read_log(both))["unit_key"], both.column("prompt_id").to_numpy())
    texts = [f"prompt {i // 3}" for i in range(120)]
    log = read_log(make_table(prompt_id=None, prompt=texts, prompt_ids=[[1]] * 120))
    np.testing.assert_array_equal(read_all(log)["unit_key"], hashes(texts))


@pytest.mark.parametrize("type_", [pa.int16(), pa.int32(), pa.int64(), pa.uint32()])
def test_token_ids_hash_alike_in_every_width(type_: pa.DataType) -> None:
    ids = [[1, 2, 3], [], [40000 % 2**15]]
    expected = [xxhash.xxh3_64_intdigest(np.array(row, dtype="<i8").tobytes()) for row in ids]
    for array in (pa.array(ids, pa.list_(type_)), pa.array(ids, pa.large_list(type_))):
        np.testing.assert_array_equal(
            keys(array, "prompt_id", "prompt_ids", 0).view(np.uint64), np.array(expected, dtype=np.uint64)
        )
