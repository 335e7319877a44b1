"""Adjusted Rand index and V-measure are scikit-learn's; averaged and pooled over prompts as documented."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, v_measure_score

from pope_fast import _core
from pope_fast.cluster import adjusted_rand_index, agreement, v_measure
from pope_fast.errors import PopeError

pairs_of_labels = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20)


@given(pairs_of_labels)
def test_measures_are_those_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    a, b = (list(column) for column in zip(*rows, strict=True))
    assert adjusted_rand_index(a, b) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)
    assert v_measure(a, b) == pytest.approx(v_measure_score(a, b), abs=1e-9)
    assert adjusted_rand_index(a, b) == adjusted_rand_index(b, a)
    assert v_measure(a, a) == 1.0 == adjusted_rand_index(a, a)


def test_labels_may_be_anything() -> None:
    assert adjusted_rand_index(["x", "x", "y"], [7, 7, -1]) == 1.0
    assert v_measure(np.array([1.5, 2.5]), ["a", "a"]) == 0.0


@pytest.fixture(scope="module")
def clusterings() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 30, 300)
    truth = rng.integers(0, 4, 300)
    return np.where(rng.random(300) < 0.7, truth, rng.integers(0, 4, 300)), truth, prompt


def test_agreement_is_the_mean_over_prompts(clusterings: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    found, truth, prompt = clusterings
    inside = [prompt == p for p in np.unique(prompt) if (prompt == p).sum() > 1]
    result = agreement(found, truth, prompt)
    assert result.n_prompts == len(inside)
    assert result.ari == pytest.approx(np.mean([adjusted_rand_score(truth[m], found[m]) for m in inside]))
    assert result.v_measure == pytest.approx(np.mean([v_measure_score(truth[m], found[m]) for m in inside]))
    shuffled = np.random.default_rng(1).permutation(len(found))
    again = agreement(found[shuffled], truth[shuffled], prompt[shuffled])
    assert again.ari == pytest.approx(result.ari)
    assert f"{result.ari:.3f}" in str(result)


def test_pooled_agreement_is_the_kernels(clusterings: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    found, truth, prompt = clusterings
    order = np.argsort(prompt, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(prompt))])
    labels = np.stack([found[order], truth[order]]).astype(np.int32)
    expected = _core.compare_labels(offsets, labels)[1][0]
    assert agreement(found, truth, prompt).pooled_ari == pytest.approx(expected, abs=1e-12)


def test_without_prompts_all_rows_are_compared() -> None:
    a, b = [0, 0, 1, 1, 2], [0, 0, 1, 2, 2]
    result = agreement(a, b)
    assert result.ari == result.pooled_ari == pytest.approx(adjusted_rand_score(a, b))


def test_what_cannot_be_compared() -> None:
    with pytest.raises(PopeError, match="not of 2 and 3"):
        adjusted_rand_index([0, 1], [0, 1, 2])
    with pytest.raises(PopeError, match="of one length, not 2, 2 and 1"):
        agreement([0, 1], [0, 1], [0])
    with pytest.raises(PopeError, match="no prompt has two responses"):
        agreement([0, 1], [0, 1], [0, 1])
    with pytest.raises(PopeError, match="one dimension"):
        v_measure([[0, 1]], [0, 1])
