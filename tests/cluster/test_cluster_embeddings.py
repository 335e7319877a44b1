"""Clustering by vectors that somebody else made: a column, an array, a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cluster_logs import partition, text_log

from pope_fast.cluster import adjusted_rand_index, cluster
from pope_fast.errors import PopeError, SchemaError

PROMPTS, RESPONSES, WIDTH = 80, 8, 32
LETTERS = "abcdefghijklmnopqrstuvwxyz "


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Well separated clusters around a direction that all responses to a prompt share."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (PROMPTS, RESPONSES))
    centers = rng.normal(size=(PROMPTS, 3, WIDTH)) + 1.5 * rng.normal(size=(PROMPTS, 1, WIDTH))
    points = np.take_along_axis(centers, truth[:, :, None], axis=1) + 0.4 * rng.normal(size=(PROMPTS, RESPONSES, WIDTH))
    return points.reshape(-1, WIDTH), truth.ravel()


def log(**columns: Any) -> pa.Table:
    return pa.table({"prompt_id": np.repeat(np.arange(PROMPTS), RESPONSES), **columns})


def fixed(points: np.ndarray, type_: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(points.ravel()).cast(type_), points.shape[1])


def by_prompt(labels: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(PROMPTS), RESPONSES) * 100 + labels


@pytest.mark.parametrize("method", ["average", "complete", "leader"])
def test_separated_clusters_are_found_without_a_threshold(vectors: tuple[np.ndarray, np.ndarray], method: str) -> None:
    points, truth = vectors
    result = cluster(log(), embeddings=points, method=method)
    assert result.info.chosen == "stability"
    assert adjusted_rand_index(by_prompt(result.labels), by_prompt(truth)) > 0.99


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "list", "large_list", "integers"])
def test_a_column_and_an_array_give_the_same(vectors: tuple[np.ndarray, np.ndarray], kind: str) -> None:
    points = np.round(vectors[0] * 8)
    column = {
        "float32": fixed(points, pa.float32()),
        "float64": fixed(points, pa.float64()),
        "float16": fixed(points, pa.float16()),
        "list": pa.array(points.tolist(), pa.list_(pa.float32())),
        "large_list": pa.array(points.tolist(), pa.large_list(pa.float64())),
        "integers": pa.array(points.astype(int).tolist(), pa.list_(pa.int16())),
    }[kind]
    expected = cluster(log(), embeddings=points, threshold=0.8)
    found = cluster(log(vector=column), embeddings="vector", threshold=0.8)
    assert np.array_equal(found.labels, expected.labels)
    assert len(set(expected.labels.tolist())) > 1
    assert found.info.features == {"kind": "column", "column": "vector", "seed": 0}


def test_scattered_rows_keep_their_vectors(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    points = vectors[0]
    order = np.random.default_rng(1).permutation(len(points))
    expected = cluster(log(), embeddings=points, threshold=0.8)
    prompt = np.repeat(np.arange(PROMPTS), RESPONSES)
    found = cluster(log().take(order), embeddings=points[order], threshold=0.8)
    back = np.empty_like(found.labels)
    back[order] = found.labels
    assert partition(back, prompt) == partition(expected.labels, prompt)


def test_the_length_of_a_vector_makes_no_difference(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    points = vectors[0]
    scaled = points * np.exp(np.random.default_rng(2).normal(size=(len(points), 1)))
    expected = cluster(log(), embeddings=points, threshold=0.8)
    assert np.array_equal(cluster(log(), embeddings=scaled, threshold=0.8).labels, expected.labels)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1.0, 2.0], None, [3.0, 4.0]]), r"column 'vector', row 1: missing embedding"),
        (pa.array([[1.0, 2.0], [1.0], [3.0, 4.0]]), r"column 'vector', row 1: an embedding of 1 numbers"),
        (pa.array([[1.0, 2.0], [1.0, None], [3.0, 4.0]]), r"row 1: missing value \(null\) inside"),
        (pa.array([[1.0, 2.0], [1.0, 1.0], [float("nan"), 4.0]]), r"column 'vector', row 2: "),
        (pa.array([1.0, 2.0, 3.0]), r"column 'vector': wrong type double"),
        (pa.array(["a", "b", "c"]), r"column 'vector': wrong type string"),
    ],
)
def test_columns_that_are_no_embeddings(column: pa.Array, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        cluster({"prompt_id": [1, 1, 1], "vector": column}, embeddings="vector", threshold=0.5)


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(SchemaError, match="column 'vectors': no such column"):
        cluster({"prompt_id": [1], "vector": [[1.0]]}, embeddings="vectors")


@pytest.mark.parametrize("array", [np.ones(4), np.ones((4, 0)), np.array([["a"]] * 4), np.ones((2, 2, 2))])
def test_arrays_that_are_no_embeddings(array: np.ndarray) -> None:
    with pytest.raises(PopeError, match="embeddings must be numbers of shape"):
        cluster({"prompt_id": [1, 1, 2, 2]}, embeddings=array)


def test_an_array_of_another_length() -> None:
    with pytest.raises(PopeError, match="embeddings= has 3 rows, and the log has 2"):
        cluster({"prompt_id": [1, 1]}, embeddings=np.ones((3, 2)))


class Encoder:
    """As a sentence-transformers model: a vector for each text, here its counts of letters."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.options: dict[str, Any] = {}

    def encode(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        self.asked.extend(texts)
        self.options = options
        return np.array(
            [[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz "] for text in texts], dtype=float
        )


def test_a_model_embeds_each_text_once() -> None:
    table = text_log(prompts=60)
    model = Encoder()
    result = cluster(table, model=model, threshold=0.97, batch_size=16)
    assert len(model.asked) == len(set(table["completion"].to_pylist())) == len(set(model.asked))
    assert model.options == {"show_progress_bar": False, "convert_to_numpy": True, "batch_size": 16}
    assert np.array_equal(cluster(table, model=Encoder().encode, threshold=0.97).labels, result.labels)
    assert result.info.features["kind"] == "model"
    assert result.info.features["model"] == "Encoder"


def test_choosing_the_threshold_embeds_nothing_twice() -> None:
    model = Encoder()
    cluster(text_log(prompts=60), model=model)
    assert len(model.asked) == len(set(model.asked))


def test_a_model_may_see_the_prompt() -> None:
    model = Encoder()
    log = {"prompt": ["one?", "two?"], "completion": ["yes", "yes"]}
    cluster(log, model=model, with_prompt=True, threshold=0.5)
    assert model.asked == ["one?\nyes", "two?\nyes"]


def test_a_model_that_is_none() -> None:
    with pytest.raises(PopeError, match="model must be a name, a model with encode, or a function, not int"):
        cluster({"prompt_id": [1, 1], "completion": ["a", "b"]}, model=3)


def test_a_model_that_returns_something_else() -> None:
    with pytest.raises(PopeError, match=r"shape \(3,\) for 2 texts"):
        cluster({"prompt_id": [1, 1], "completion": ["a", "b"]}, model=lambda texts: np.ones(3), threshold=0.5)


def test_a_named_model_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(PopeError, match=r"pip install 'pope_fast\[embeddings\]'"):
        cluster({"prompt_id": [1, 1], "completion": ["a", "b"]}, model="some-model", threshold=0.5)


def test_a_named_model_is_loaded_once_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    library = ModuleType("sentence_transformers")
    library.__version__ = "9.9"  # type: ignore[attr-defined]

    def load(name: str) -> Encoder:
        if name == "missing":
            raise OSError("no such model")
        loaded.append(name)
        return Encoder()

    library.SentenceTransformer = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    result = cluster(text_log(prompts=60), model="some-model")
    assert loaded == ["some-model"]
    assert result.info.features["model"] == "some-model"
    assert result.info.features["loadable"] is True
    assert result.info.versions["sentence-transformers"] == "9.9"
    with pytest.raises(PopeError, match="'missing' cannot be loaded: no such model"):
        cluster(text_log(prompts=60), model="missing")
