"""TF-IDF vectors of a block give the cosines of a slow loop over dictionaries."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from cluster_logs import text_log
from test_cluster_ngrams import character_ngrams

from pope_fast.cluster import tfidf
from pope_fast.cluster.tfidf import MAX_WIDTH, Idf, PromptVectors, prompt_vectors


def cosines(texts: list[str], prompt: str, idf_of: dict[str, float]) -> np.ndarray:
    """Twin of the weighting in the docstring."""
    counts = [character_ngrams(text) for text in texts]
    inside = Counter(gram for grams in counts for gram in grams)
    asked = character_ngrams(prompt)
    rows = []
    for grams in counts:
        row = {}
        for gram, tf in grams.items():
            common = math.log((1 + len(texts)) / (1 + inside[gram])) + 0.3
            row[gram] = (1 + math.log(tf)) * idf_of[gram] * common * (0.35 if gram in asked else 1.0)
        rows.append(row)
    dots = np.array([[sum(a[g] * b.get(g, 0.0) for g in a) for b in rows] for a in rows])
    length = np.sqrt(np.diag(dots))
    return dots / np.outer(length, length)


def by_prompt(parts: list[PromptVectors]) -> dict[int, np.ndarray]:
    found = {}
    for part in parts:
        for index, prompt in enumerate(part.prompts.tolist()):
            found[prompt] = part.vectors[part.offsets[index] : part.offsets[index + 1]]
    return found


@pytest.fixture(scope="module")
def log() -> tuple[list[str], list[str], np.ndarray]:
    table = text_log(prompts=40)
    offsets = np.arange(0, len(table) + 1, 8)
    return table["completion"].to_pylist(), table["prompt"].to_pylist()[::8], offsets


@pytest.fixture(scope="module")
def idf(log: tuple[list[str], list[str], np.ndarray]) -> Idf:
    fitted = Idf()
    fitted.add(log[0])
    return fitted


def test_cosines_are_those_of_the_whole_vocabulary(log: tuple[list[str], list[str], np.ndarray], idf: Idf) -> None:
    texts, prompts, offsets = log
    frequency = Counter(gram for text in texts for gram in character_ngrams(text))
    idf_of = {gram: math.log((1 + len(texts)) / (1 + df)) + 1 for gram, df in frequency.items()}
    found = by_prompt(list(prompt_vectors(texts, offsets, idf, prompts)))
    assert sorted(found) == list(range(40))
    for prompt, vectors in found.items():
        expected = cosines(texts[8 * prompt : 8 * prompt + 8], prompts[prompt], idf_of)
        # Document frequencies share cells of a table: here and there one is too large by one or two.
        np.testing.assert_allclose(vectors @ vectors.T, expected, atol=2e-3)
        np.testing.assert_allclose(np.diag(vectors @ vectors.T), 1.0, atol=1e-6)


def test_a_prompts_vectors_do_not_depend_on_its_block(log: tuple[list[str], list[str], np.ndarray], idf: Idf) -> None:
    texts, prompts, offsets = log
    whole = by_prompt(list(prompt_vectors(texts, offsets, idf, prompts)))
    for prompt in (0, 17, 39):
        alone = by_prompt(list(prompt_vectors(texts[8 * prompt : 8 * prompt + 8], offsets[:2], idf, [prompts[prompt]])))
        assert np.array_equal(alone[0], whole[prompt])


def test_document_frequencies_do_not_depend_on_batches(log: tuple[list[str], list[str], np.ndarray], idf: Idf) -> None:
    other = Idf()
    for start in range(0, len(log[0]), 37):
        other.add(log[0][::-1][start : start + 37])
    grams = np.arange(0, 1 << 40, 1 << 25, dtype=np.uint64)
    assert np.array_equal(other(grams), idf(grams))
    assert other.n_texts == idf.n_texts == len(log[0])


def test_words_of_the_prompt_weigh_less(idf: Idf) -> None:
    texts, offsets = ["parking should be free", "parking is evil", "tax it"], np.array([0, 3])
    plain, aware = (
        by_prompt(list(prompt_vectors(texts, offsets, idf, prompts)))[0] for prompts in (None, ["what of parking?"])
    )
    assert (aware @ aware.T)[0, 1] < 0.5 * (plain @ plain.T)[0, 1]


def test_what_two_responses_share_with_none_is_not_similar(idf: Idf) -> None:
    vectors = by_prompt(list(prompt_vectors(["aaaa bbbb", "cccc dddd", "", ""], np.array([0, 4]), idf)))[0]
    np.testing.assert_allclose(vectors @ vectors.T, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], atol=1e-6)


def test_the_halves_of_the_features_are_disjoint_and_complete(
    log: tuple[list[str], list[str], np.ndarray], idf: Idf
) -> None:
    texts, prompts, offsets = log
    halves = [tfidf._half(tfidf._entries(texts, np.diff(offsets), idf, prompts), 3, side) for side in (0, 1)]
    whole = tfidf._entries(texts, np.diff(offsets), idf, prompts)
    kept = [half.weight > 0 for half in halves]
    assert not np.any(kept[0] & kept[1])
    assert np.all(kept[0] | kept[1] == (whole.weight > 0))
    assert 0.4 < kept[0].mean() < 0.6
    other = tfidf._half(whole, 4, 0)
    assert 0.3 < np.mean((other.weight > 0) == kept[0]) < 0.7


def test_prompts_with_many_ngrams_are_hashed(idf: Idf) -> None:
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 7)) for _ in range(4000)]
    # Two families, each with its own half of the words.
    texts = [" ".join(rng.permutation(words[2000 * (i % 2) : 2000 * (i % 2) + 2000])[:1500]) for i in range(6)]
    (part,) = prompt_vectors([*texts, "tiny"], np.array([0, 7]), idf)
    assert part.vectors.shape[1] == MAX_WIDTH
    near = part.vectors @ part.vectors.T
    np.testing.assert_allclose(np.diag(near), 1.0, atol=0.1)
    assert near[0, 2] > 0.5 > 0.2 > abs(near[0, 1])


def test_prompts_of_all_sizes_come_out_once(idf: Idf) -> None:
    table = text_log(prompts=40)
    texts = table["completion"].to_pylist()
    offsets = np.array([0, 1, 3, 100, 101, 320])
    parts = list(prompt_vectors(texts, offsets, idf))
    assert sorted(np.concatenate([part.rows for part in parts]).tolist()) == list(range(320))
    assert {len(vectors) for vectors in by_prompt(parts).values()} == {1, 2, 97, 219}
