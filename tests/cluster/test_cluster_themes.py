"""Themes: clusters over the whole log by scikit-learn, independent of the order of rows."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from cluster_logs import text_log

from pope_fast.cluster import adjusted_rand_index, cluster
from pope_fast.cluster import themes as themes_module
from pope_fast.errors import PopeError, SchemaError


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 600)
    return rng.normal(size=(4, 16))[truth] * 4 + 0.3 * rng.normal(size=(600, 16)), truth


def log(rows: int) -> dict[str, Any]:
    return {"prompt_id": np.arange(rows) // 4}


@pytest.mark.parametrize("options", [{"n_clusters": 4}, {"method": "hdbscan"}])
def test_blobs_are_found(blobs: tuple[np.ndarray, np.ndarray], options: dict[str, Any]) -> None:
    points, truth = blobs
    result = cluster(log(600), embeddings=points, scope="log", **options)
    assert adjusted_rand_index(result.labels, truth) > 0.97
    assert result.info.scope == "log"
    assert result.threshold is None
    assert result.n_prompts is None
    assert result.n_clusters == 4
    assert "scikit-learn" in result.info.versions
    first = result.labels[np.sort(np.unique(result.labels, return_index=True)[1])]
    assert first[first >= 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("options", [{"n_clusters": 12}, {"method": "hdbscan"}])
def test_themes_do_not_depend_on_the_order_of_rows(options: dict[str, Any]) -> None:
    table = text_log()
    order = np.random.default_rng(0).permutation(len(table))
    straight = cluster(table, scope="log", **options)
    mixed = cluster(table.take(order), scope="log", **options)
    assert adjusted_rand_index(straight.labels[order], mixed.labels) == 1.0
    assert np.array_equal(straight.labels[order] < 0, mixed.labels < 0)
    assert np.array_equal(cluster(table, scope="log", **options).labels, straight.labels)


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_rows_beyond_the_sample_go_to_what_is_near(
    blobs: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    points, truth = blobs
    monkeypatch.setitem(themes_module.FIT_ROWS, method, 200)
    monkeypatch.setattr(themes_module, "_PASS_ROWS", 64)
    result = cluster(log(600), embeddings=points, scope="log", method=method, n_clusters=4)
    assert adjusted_rand_index(result.labels, truth) > 0.97


def test_perspectives_that_mean_the_same_everywhere_are_themes() -> None:
    table = text_log(prompts=240)
    found = cluster(table, scope="log", n_clusters=24)
    assert adjusted_rand_index(found.labels, table["perspective"].to_numpy()) > 0.15
    assert found.n_clusters == 24
    assert "themes" in str(found)


def test_noise_has_no_theme() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(1, 8)) + 0.02 * rng.normal(size=(100, 8)) for _ in range(3)])
    points = np.concatenate([points, rng.normal(size=(30, 8))])
    result = cluster(log(330), embeddings=points, scope="log", method="hdbscan", min_cluster_size=20)
    assert result.n_clusters == 3
    assert (result.labels[:300] >= 0).mean() > 0.8
    assert (result.labels[300:] < 0).mean() > 0.8
    assert "in no theme" in str(result)


def test_themes_need_no_prompts() -> None:
    found = cluster({"completion": ["a tax", "a tax!", "trees", "trees."] * 5}, scope="log", n_clusters=2)
    assert found.labels.tolist() == [0, 0, 1, 1] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 3}, "3 themes were asked for, but there are only 2 different"),
        ({"method": "hdbscan", "min_cluster_size": 50}, "a theme shall have 50 responses, but there are only 20"),
    ],
)
def test_too_few_responses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PopeError, match=message):
        cluster({"completion": ["tax", "tree"] * 10}, scope="log", **options)


def test_responses_without_anything_in_common() -> None:
    with pytest.raises(PopeError, match="nothing in common"):
        cluster({"completion": ["aaaa", "bbbb", "cccc"]}, scope="log", n_clusters=2)


def test_a_vector_that_is_none() -> None:
    points = np.ones((8, 3))
    points[5, 1] = np.inf
    with pytest.raises(SchemaError, match=r"column 'embeddings=', row 5: NaN or infinity"):
        cluster(log(8), embeddings=points, scope="log", n_clusters=2)


def test_themes_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PopeError, match=r"pope_fast\[themes\]"):
        cluster(log(20), embeddings=np.random.default_rng(0).normal(size=(20, 3)), scope="log", n_clusters=2)
