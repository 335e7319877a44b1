"""Same or different as a function says: asked once per pair, in a fixed order; and NLI models as such functions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_logs import partition, text_log

from pope_fast.cluster import cluster, entailment
from pope_fast.errors import PopeError
from tiny_models import TEXTS, tiny_tokenizer

Pairs = list[tuple[str, str]]
LOG = {
    "prompt_id": [1, 1, 1, 1, 2, 2],
    "completion": ["b two", "a one", "b one", "a one", "z", "z"],
}


def same_first_letter(pairs: Pairs) -> list[bool]:
    return [left[0] == right[0] for left, right in pairs]


def test_a_function_decides() -> None:
    result = cluster(LOG, same=same_first_letter)
    assert result.labels.tolist() == [0, 1, 0, 1, 0, 0]
    assert (result.threshold, result.info.chosen) == (0.5, "default")
    assert result.info.features["function"] == "same_first_letter"


def test_each_pair_of_distinct_texts_is_asked_for_once_and_sorted() -> None:
    asked: Pairs = []

    def same(pairs: Pairs) -> np.ndarray:
        asked.extend(pairs)
        assert len(pairs) <= 2
        return np.zeros(len(pairs))

    cluster(LOG, same=same, batch_size=2)
    assert asked == [("a one", "b one"), ("a one", "b two"), ("b one", "b two")]


def test_pairs_that_occur_in_several_prompts_are_asked_for_once_per_call() -> None:
    asked: Pairs = []

    def same(pairs: Pairs) -> list[float]:
        asked.extend(pairs)
        return [1.0] * len(pairs)

    log = {"prompt_id": np.repeat(np.arange(50), 2), "completion": ["no", "yes", "yes", "no"] * 25}
    assert cluster(log, same=same).labels.tolist() == [0] * 100
    # The last prompt comes by itself: only at the end of the log is it known to be whole.
    assert asked == [("no", "yes")] * 2


def test_a_function_may_see_the_prompt() -> None:
    asked: Pairs = []

    def same(pairs: Pairs) -> list[float]:
        asked.extend(pairs)
        return [0.0] * len(pairs)

    cluster({"prompt": ["p?", "p?"], "completion": ["no", "yes"]}, same=same, with_prompt=True)
    assert asked == [("p?\nno", "p?\nyes")]


@pytest.mark.parametrize("method", ["average", "complete", "leader"])
def test_scores_are_cut_at_the_threshold(method: str) -> None:
    scores = {("a", "b"): 0.9, ("a", "c"): 0.4, ("b", "c"): 0.6}
    log = {"prompt_id": [1, 1, 1], "completion": ["a", "b", "c"]}

    def found(threshold: float) -> list[int]:
        same = lambda pairs: [scores[pair] for pair in pairs]  # noqa: E731
        return cluster(log, same=same, method=method, threshold=threshold).labels.tolist()

    assert found(0.95) == [0, 1, 2]
    assert found(0.7) == [0, 0, 1]
    assert found(0.3) == [0, 0, 0]
    # At .45 the average of .4 and .6 is enough, the smaller of them is not; b is within reach of both.
    assert found(0.45) == ([0, 0, 1] if method == "complete" else [0, 0, 0])


def test_repeated_responses_count_as_often_as_they_occur() -> None:
    # c is near a and far from b; with three copies of a the average is near.
    scores = {("a", "b"): 0.9, ("a", "c"): 0.8, ("b", "c"): 0.0}

    def found(completions: list[str]) -> list[int]:
        log = {"prompt_id": [1] * len(completions), "completion": completions}
        return cluster(log, same=lambda pairs: [scores[pair] for pair in pairs]).labels.tolist()

    assert found(["a", "b", "c"]) == [0, 0, 1]
    assert found(["a", "a", "a", "b", "c"]) == [0, 0, 0, 0, 0]


def test_the_partition_does_not_depend_on_the_order_of_rows() -> None:
    table = text_log(prompts=40)
    rng = np.random.default_rng(0)
    known: dict[tuple[str, str], float] = {}

    def same(pairs: Pairs) -> list[float]:
        return [known.setdefault(pair, round(float(rng.random()), 1)) for pair in pairs]

    prompt = np.asarray(table["prompt_id"].to_numpy())
    order = np.random.default_rng(1).permutation(len(table))
    for method in ("average", "complete", "leader"):
        straight = cluster(table, same=same, method=method)
        mixed = cluster(table.take(order), same=same, method=method)
        back = np.empty_like(mixed.labels)
        back[order] = mixed.labels
        assert partition(straight.labels, prompt) == partition(back, prompt)
        assert 40 < straight.n_clusters < len(table)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda pairs: [1.0], r"one score or boolean per pair: 3 were asked for, float64 of shape \(1,\)"),
        (lambda pairs: ["yes"] * len(pairs), "one score or boolean per pair"),
        (lambda pairs: [2.0] * len(pairs), r"the score 2 to the pair 'a one', 'b one'; scores lie in \[-1, 1\]"),
        (lambda pairs: [float("nan")] * len(pairs), "the score nan"),
        (lambda pairs: None, "one score or boolean per pair"),
    ],
)
def test_functions_that_answer_something_else(answer: Any, message: str) -> None:
    with pytest.raises(PopeError, match=message):
        cluster(LOG, same=answer)


@pytest.fixture(scope="module")
def nli() -> tuple[Any, Any]:
    """A random three-way classifier, whose labels are in an order of their own."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "right"
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
        initializer_range=0.6,
        id2label={0: "NEUTRAL", 1: "ENTAILMENT", 2: "CONTRADICTION"},
        label2id={"NEUTRAL": 0, "ENTAILMENT": 1, "CONTRADICTION": 2},
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.BertForSequenceClassification(config)
    return model.eval(), tokenizer


def probability(nli: tuple[Any, Any], premise: str, hypothesis: str) -> np.ndarray:
    import torch

    model, tokenizer = nli
    with torch.inference_mode():
        logits = model(**tokenizer(premise, hypothesis, return_tensors="pt")).logits[0]
    return np.asarray(logits.softmax(dim=-1))


def test_an_nli_model_scores_both_directions(nli: tuple[Any, Any]) -> None:
    pairs = [(left, right) for i, left in enumerate(TEXTS) for right in TEXTS[i + 1 :]]
    soft = entailment(*nli, batch_size=3)(pairs)
    strict = entailment(*nli, batch_size=4, strict=True)(pairs)
    both = [(probability(nli, a, b), probability(nli, b, a)) for a, b in pairs]
    np.testing.assert_allclose(soft, [min(there[1], back[1]) for there, back in both], atol=1e-5)
    assert strict.tolist() == [there.argmax() == back.argmax() == 1 for there, back in both]
    assert 0 < strict.sum() < len(strict)


def test_responses_are_clustered_by_an_nli_model(nli: tuple[Any, Any]) -> None:
    log = {"prompt_id": [1] * len(TEXTS), "completion": list(TEXTS)}
    result = cluster(log, same=entailment(*nli, strict=True), method="complete", threshold=0.5)
    both = entailment(*nli, strict=True)
    for i, left in enumerate(TEXTS):
        for j, right in enumerate(TEXTS[:i]):
            if result.labels[i] == result.labels[j]:
                assert both([(left, right)]).tolist() == [1.0]
    assert result.info.features["function"] == "entailment"
    assert result.info.features["strict"] is True
    assert {"torch", "transformers"} <= set(result.info.versions)
    assert "BertForSequenceClassification" in str(result)


def test_a_pair_that_is_too_long_is_not_cut(nli: tuple[Any, Any]) -> None:
    with pytest.raises(PopeError, match="128; it is not cut"):
        entailment(*nli)([("the park " * 60, "the pond " * 60)])


def test_an_nli_model_is_loaded_from_a_folder(nli: tuple[Any, Any], tmp_path: Path) -> None:
    nli[0].save_pretrained(tmp_path)
    nli[1].save_pretrained(tmp_path)
    pairs = [(TEXTS[0], TEXTS[1])]
    np.testing.assert_allclose(entailment(tmp_path)(pairs), entailment(*nli)(pairs), atol=1e-6)


def test_models_that_are_no_nli_models(nli: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PopeError, match="needs its tokenizer"):
        entailment(nli[0])
    with pytest.raises(PopeError, match="cannot be loaded"):
        entailment(tmp_path / "nowhere")
    with pytest.raises(PopeError, match="batch_size"):
        entailment(*nli, batch_size=0)
    monkeypatch.setattr(nli[0].config, "id2label", {0: "LABEL_0", 1: "LABEL_1"})
    with pytest.raises(PopeError, match="labels are LABEL_0, LABEL_1; one of them must be 'entailment'"):
        entailment(*nli)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PopeError, match=r"pope_fast\[torch\]"):
        entailment("some-model")
