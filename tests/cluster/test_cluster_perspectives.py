"""Quality against known clusters: perspectives of the text world, in wordings that share words or do not.

Half of a perspective's wordings share a word or two with another one of it, the rest share none: without a model the
adjusted Rand index cannot come near 1.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_logs import text_log

from pope_fast.cluster import Agreement, agreement, cluster
from pope_fast.evaluate import evaluate
from pope_fast.simulate.text_world import TextWorld


def quality(table: Any, **options: Any) -> Agreement:
    found = cluster(table, **options).labels
    return agreement(found, table["perspective"].to_numpy(), table["prompt_id"].to_numpy())


@pytest.mark.parametrize("responses", [8, 32])
def test_ngrams_see_more_of_perspectives_than_equal_texts_do(responses: int) -> None:
    table = text_log(prompts=960 // responses, responses=responses, phrasings=36)
    found = {
        name: quality(table, **options)
        for name, options in {
            "average": {},
            "complete": {"method": "complete"},
            "leader": {"method": "leader", "threshold": 0.2},
            "words": {"features": "tfidf-word", "threshold": 0.2},
            "normalized": {"features": "normalized"},
            "exact": {"features": "exact"},
        }.items()
    }
    assert found["average"].pooled_ari > 0.42
    assert found["average"].v_measure > (0.8 if responses == 8 else 0.7)
    assert found["complete"].pooled_ari > 0.42
    assert found["leader"].pooled_ari > 0.38
    assert found["words"].pooled_ari > 0.36
    assert found["exact"].pooled_ari < 0.1
    assert found["exact"].pooled_ari <= found["normalized"].pooled_ari < found["words"].pooled_ari
    assert found["words"].pooled_ari < found["average"].pooled_ari


def test_average_linkage_is_no_worse_than_leader_at_the_same_threshold() -> None:
    tables = [text_log(phrasings=36, seed=seed) for seed in (1, 2, 3)]
    average, leader = (
        [quality(table, method=method, threshold=0.2).pooled_ari for table in tables]
        for method in ("average", "leader")
    )
    assert sum(average) >= sum(leader) - 0.01 * len(tables)


def test_the_prompt_helps_to_tell_topic_from_perspective() -> None:
    table = text_log(phrasings=36)
    without = table.drop_columns(["prompt"])
    assert quality(table, threshold=0.2).pooled_ari > quality(without, threshold=0.2).pooled_ari + 0.03


def test_one_wording_of_each_perspective_is_found_perfectly() -> None:
    # Openings and endings differ, the words in between do not: phrasings 0, 4, 8 ... of a perspective.
    world = TextWorld(seed=3, n_prompts=64, n_perspectives=6, n_phrasings=36)
    phrasings = [1.0 if index % 4 == 0 else 0.0 for index in range(36)]
    table = world.log(world.policy(phrasings=phrasings), prompts=120, responses=8, seed=1).table
    table = table.rename_columns(["perspective" if name == "cluster" else name for name in table.column_names])
    assert quality(table).ari > 0.97
    assert quality(table, threshold=0.2).ari > 0.9


def test_a_model_of_meaning_finds_what_ngrams_cannot() -> None:
    # A stand-in for one: it knows which perspective every wording belongs to.
    world = TextWorld(seed=1, n_prompts=64, n_perspectives=6, n_phrasings=12)

    def same(pairs: list[tuple[str, str]]) -> list[bool]:
        return [meaning(left) == meaning(right) for left, right in pairs]

    def meaning(text: str) -> int | None:
        prompt, response = text.split("\n")
        return world.parse(prompt, response)

    table = text_log()
    assert quality(table, same=same, with_prompt=True).ari == 1.0
    assert quality(table).ari < 0.6


def test_a_prompt_with_one_perspective_in_one_wording_is_one_cluster() -> None:
    openings = ["", "in my view, ", "obviously, "]
    endings = [".", ", because it works well elsewhere."]
    responses = [f"{opening}spend more public money on parks{ending}" for opening in openings for ending in endings]
    table = text_log()
    log = {
        "prompt": [*table["prompt"].to_pylist(), *["what about parks?"] * 6],
        "completion": [*table["completion"].to_pylist(), *responses],
    }
    assert cluster(log, threshold=0.2).labels[-6:].tolist() == [0] * 6


DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "howto-cluster.md"
DOCUMENTED: dict[str, dict[str, Any]] = {
    "n-grams, `average`": {},
    "n-grams, `complete`": {"method": "complete"},
    "n-grams, `leader`": {"method": "leader"},
    "words, `average`": {"features": "tfidf-word"},
    "equal text": {"features": "exact"},
}


@pytest.mark.slow
def test_the_figures_in_the_document_are_what_comes_out() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    block = re.search(r"<!-- cluster-quality -->\n(.*?)<!-- /cluster-quality -->", text, re.DOTALL)
    assert block is not None
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block[1].splitlines()[2:]]
    figures = {row[0]: [float(cell) for cell in row[1:]] for row in cells}
    assert set(figures) == {"true perspectives", *DOCUMENTED}
    for column, (responses, prompts) in enumerate([(8, 200), (32, 50)]):
        tables = [text_log(prompts=prompts, responses=responses, phrasings=36, seed=seed) for seed in (1, 2, 3)]
        pairs = [zip(t["prompt_id"].to_pylist(), t["perspective"].to_pylist(), strict=True) for t in tables]
        true = np.mean([len(set(pair)) for pair in pairs]) / prompts
        assert figures["true perspectives"][3 * column :][:3] == pytest.approx([1, 1, true], abs=0.1)
        for name, options in DOCUMENTED.items():
            found = [cluster(table, **options) for table in tables]
            held = [
                agreement(result.labels, table["perspective"].to_numpy(), table["prompt_id"].to_numpy())
                for result, table in zip(found, tables, strict=True)
            ]
            ari, v, clusters = figures[name][3 * column :][:3]
            assert np.mean([item.pooled_ari for item in held]) == pytest.approx(ari, abs=0.01), name
            assert np.mean([item.v_measure for item in held]) == pytest.approx(v, abs=0.01), name
            assert np.mean([result.n_clusters / prompts for result in found]) == pytest.approx(clusters, abs=0.1), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pope_fast.errors.PopeWarning")
def test_the_documented_diversity_is_what_comes_out() -> None:
    table = text_log(prompts=200, responses=8, phrasings=36, seed=1)
    true = table.rename_columns(["cluster" if name == "perspective" else name for name in table.column_names])
    logs = [true, cluster(table).log, cluster(table, features="exact").log]
    found = [evaluate(log, ["majority"], cluster_scope="prompt")["majority"].diversity for log in logs]
    text = DOCUMENT.read_text(encoding="utf-8").replace("\n", " ")
    told = re.search(r"is ([\d.]+) with the true\s+perspectives, ([\d.]+) with n-grams, and ([\d.]+) if", text)
    assert told is not None
    for figure, estimate in zip(told.groups(), found, strict=True):
        assert estimate is not None
        assert estimate.value == pytest.approx(float(figure), abs=0.006)
