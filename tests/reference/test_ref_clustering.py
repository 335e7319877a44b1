"""The twin of the clustering kernels against what can be seen by eye."""

from __future__ import annotations

import numpy as np
import pytest

from pope_fast.reference import clustering

DEGREES = np.radians([0.0, 20.0, 50.0, 90.0])
FAN = np.stack([np.cos(DEGREES), np.sin(DEGREES)], axis=1)


@pytest.mark.parametrize(
    ("linkage", "threshold", "expected"),
    [
        ("average", 0.95, [0, 1, 2, 3]),
        ("average", 0.76, [0, 0, 1, 1]),
        ("average", 0.46, [0, 0, 0, 0]),
        ("complete", 0.46, [0, 0, 1, 1]),
        ("complete", -0.1, [0, 0, 0, 0]),
        ("leader", 0.76, [0, 0, 1, 1]),
        ("leader", 0.6, [0, 0, 0, 0]),
        ("leader", 0.7, [0, 0, 1, 1]),
    ],
)
def test_a_fan_of_directions(linkage, threshold, expected):
    assert clustering.cluster_prompt(FAN, threshold, linkage).tolist() == expected


def test_heights_are_means_and_minima():
    similarity = clustering.cosine_similarity(FAN)
    cosine = {degrees: np.cos(np.radians(degrees)) for degrees in (20, 30, 40, 50, 70, 90)}
    _, heights = clustering.agglomerate(similarity, -1.0, "average")
    assert heights == pytest.approx([cosine[20], cosine[40], (cosine[50] + cosine[90] + cosine[30] + cosine[70]) / 4])
    _, heights = clustering.agglomerate(similarity, -1.0, "complete")
    assert heights == pytest.approx([cosine[20], cosine[40], cosine[90]], abs=1e-12)


def test_zero_vectors_stay_apart():
    x = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.1], [0.0, 0.0]])
    for linkage in ("average", "complete", "leader"):
        assert clustering.cluster_prompt(x, -1.0, linkage).tolist() == [0, 1, 0, 1]


def test_adjusted_rand():
    assert clustering.adjusted_rand([0, 5], [0, 0, 1, 1, 2], [7, 7, 1, 3, 3]) == pytest.approx(0.6 / 1.6)
    assert clustering.adjusted_rand([0, 3], [0, 1, 2], [5, 4, 3]) == 1.0
