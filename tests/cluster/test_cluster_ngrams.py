"""N-grams of many texts at once are those of a slow loop over one."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pope_fast.cluster.ngrams import HASH_BITS, Ngrams, count_ngrams, normalize_texts

TEXTS = [
    "Raise the taxes, raise them!",
    "",
    "?!",
    "a b c",
    "na\u00efve caf\u00e9 \ufb01ne",
    "\U0001f44d",
    "\U0001f44e",
    "x\0y",
    "STRASSE stra\u00dfe",
    "\u6211\u4eec\u5e94\u8be5\u82b1\u94b1",
    "5% of 5",
]


def words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\0", " ")
    return "".join(c if unicodedata.category(c)[0] not in "ZPC" else " " for c in folded).split()


def character_ngrams(text: str) -> dict[str, int]:
    """Twin: four characters within a word and its borders, shorter words whole, pairs of unspaced characters."""
    counts: dict[str, int] = {}
    for word in words(text):
        bordered = f" {word} "
        grams = [bordered[i : i + 4] for i in range(max(1, len(bordered) - 3))]
        grams += [
            word[i : i + 2] for i in range(len(word) - 1) if all("\u3400" <= c <= "\u9fff" for c in word[i : i + 2])
        ]
        for gram in grams:
            counts[gram] = counts.get(gram, 0) + 1
    return counts


def of_text(grams: Ngrams, text: int) -> dict[int, int]:
    mine = grams.text == text
    return dict(zip(grams.gram[mine].tolist(), grams.count[mine].tolist(), strict=True))


def test_each_text_has_as_many_ngrams_as_its_twin() -> None:
    found = count_ngrams(TEXTS)
    for index, text in enumerate(TEXTS):
        expected = character_ngrams(text) or {"": 1}
        assert sorted(of_text(found, index).values()) == sorted(expected.values()), text


def test_equal_ngrams_have_equal_hashes_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    letters = np.array(list("abcde "))
    texts = ["".join(letters[rng.integers(0, 6, 40)]) for _ in range(200)]
    found = count_ngrams(texts)
    names: dict[int, str] = {}
    hashes: dict[str, int] = {}
    for index, text in enumerate(texts):
        expected = character_ngrams(text)
        mine = of_text(found, index)
        assert len(mine) == len(expected)
        # One word alone names its n-gram, which then has to carry that hash everywhere.
        for gram in expected:
            if gram not in hashes and gram.count(" ") == 2:
                (hashes[gram],) = of_text(count_ngrams([gram]), 0)
                names[hashes[gram]] = gram
    assert len(names) == len(hashes) > 20
    for index, text in enumerate(texts):
        present = {names[key] for key in of_text(found, index) if key in names}
        assert present == {gram for gram in character_ngrams(text) if gram in hashes}


def test_words_are_counted() -> None:
    found = count_ngrams(["the cat and the dog", "Dog, CAT!"], "word")
    first, second = of_text(found, 0), of_text(found, 1)
    assert sorted(first.values()) == [1, 1, 1, 2]
    assert len(set(first) & set(second)) == len(second) == 2


@given(st.lists(st.text(max_size=30), min_size=1, max_size=8), st.integers(0, 7))
def test_a_texts_ngrams_do_not_depend_on_the_other_texts(texts: list[str], index: int) -> None:
    index %= len(texts)
    assert of_text(count_ngrams(texts), index) == of_text(count_ngrams([texts[index]]), 0)


@given(st.text(max_size=40))
def test_every_text_has_an_ngram(text: str) -> None:
    found = count_ngrams([text])
    assert len(found.gram) >= 1
    assert int(found.gram.max()) < 1 << HASH_BITS


def test_ngrams_are_sorted_by_hash_and_then_by_text() -> None:
    found = count_ngrams(TEXTS * 3)
    keys = list(zip(found.gram.tolist(), found.text.tolist(), strict=True))
    assert keys == sorted(set(keys))


def test_case_punctuation_and_space_make_no_difference_to_ngrams() -> None:
    found = count_ngrams(["Raise the taxes!", "  raise\tTHE, taxes ", "raise the tax"])
    assert of_text(found, 0) == of_text(found, 1) != of_text(found, 2)


def test_texts_of_symbols_or_marks_alone_are_told_apart() -> None:
    found = count_ngrams(["?", "!", "? ", "", "  ", "\U0001f44d", "\U0001f44e"])
    distinct = [of_text(found, i) for i in range(7)]
    assert distinct[0] == distinct[2]
    assert distinct[3] == distinct[4]
    assert len({tuple(grams) for grams in distinct}) == 5


def test_no_texts() -> None:
    assert len(count_ngrams([]).gram) == 0
    assert normalize_texts([]) == []


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Hello,  WORLD!", "hello world"),
        ("\ufb01ne na\u00efve", "fine na\u00efve"),
        ("?!", "?!"),
        (" ? ", "?"),
        ("", ""),
        ("\U0001f44d ok", "\U0001f44d ok"),
        ("a\0b", "a b"),
        ("Stra\u00dfe", "strasse"),
    ],
)
def test_normalized_texts(text: str, normal: str) -> None:
    assert normalize_texts([text, "other"]) == [normal, "other"]
