"""D from embeddings in an evaluation: which measure, what it says, what it costs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import pope_fast as pope
from pope_fast import simulate
from pope_fast.errors import PopeError, SchemaError
from pope_fast.evaluate import DIVERSITIES, evaluate
from pope_fast.report.html import render_page
from pope_fast.report.table import render_text

LOG = simulate.table(prompts=400, responses=5, seed=3, embedding_width=12)
ALONE = LOG.table.drop_columns(["cluster"])
RANGE: dict[str, Any] = {"reward_range": (0.0, 1.0)}


def test_without_clusters_embeddings_decide():
    policy = evaluate(ALONE)["near"]
    detail = policy.diversity_detail
    assert policy.diversity is not None
    assert detail is not None
    assert (detail.level, detail.measure, detail.order) == ("prompt", "rao", None)
    assert detail.rule == "from embeddings within prompts: the log has no clusters"
    assert (detail.n_units_used, detail.n_units_left_out) == (400, 0)
    assert list(detail.measures) == ["rao", "vendi", "rao (control)", "vendi (control)"]
    assert policy.diversity == detail.measures["rao"]
    assert policy.diversity.unit == "cosine distance"
    assert detail.measures["vendi"].unit == "effective kinds"
    assert policy.value.value == pytest.approx(policy.utility.value + policy.diversity.value)
    assert policy.variance is not None
    assert policy.variance.total == pytest.approx(
        policy.variance.utility + policy.variance.diversity + policy.variance.covariance
    )
    assert detail.sandwich is None
    assert detail.cluster_masses == {}


def test_with_clusters_they_are_not_even_read():
    """Nothing of what an evaluation says changes with a column that it does not need."""
    with_, without = evaluate(LOG.table), evaluate(LOG.table.drop_columns(["embedding"]))
    assert with_.policies == without.policies
    broken = LOG.table.drop_columns(["embedding"]).append_column("embedding", pa.array([[0.0]] * 2000))
    assert evaluate(broken).policies == without.policies


@pytest.mark.parametrize("measure", ["rao", "vendi"])
def test_asked_for_beside_clusters(measure):
    evaluation = evaluate(LOG.table, diversity=measure, diversity_weight=0.1)
    policy, by_rule = evaluation["near"], evaluate(LOG.table)["near"]
    assert policy.diversity is not None
    assert policy.diversity_detail is not None
    assert by_rule.diversity_detail is not None
    assert policy.diversity.name == policy.diversity_detail.measure == measure
    assert policy.diversity_detail.rule == f"asked for as {measure!r}"
    # Every measure from the clusters is there as well, and says the same.
    for name, estimate in by_rule.diversity_detail.measures.items():
        assert policy.diversity_detail.measures[name] == estimate
    assert evaluation.settings.diversity == measure
    truth = LOG.truth["policies"]["near"]["diversity"][measure]
    assert policy.diversity.interval is not None
    assert policy.diversity.interval.contains(truth)


@pytest.mark.parametrize(
    ("asked", "measure", "unit"),
    [
        ("auto", "H_3", "nats"),
        ("h_m", "H_3", "nats"),
        ("gini", "gini_simpson", "probability"),
        ("coverage@3", "coverage@3", "clusters"),
        ("entropy", "entropy", "nats"),
    ],
)
def test_measures_from_clusters(asked, measure, unit):
    evaluation = evaluate(LOG.table, diversity=asked)
    policy, by_rule = evaluation["near"], evaluate(LOG.table)["near"]
    assert policy.diversity is not None
    assert policy.diversity_detail is not None
    assert by_rule.diversity_detail is not None
    assert (policy.diversity.name, policy.diversity.unit) == (measure, unit)
    assert policy.diversity == by_rule.diversity_detail.measures[measure]
    assert policy.diversity_detail.measure == measure
    truth = {"entropy": "entropy_marginal"}.get(measure, measure)
    assert policy.diversity.interval is not None
    assert policy.diversity.interval.contains(LOG.truth["policies"]["near"]["diversity"][truth])
    difference = evaluation.compare("near", "far").diversity
    assert difference is not None
    assert difference.unit == unit


def test_every_choice_works_somewhere():
    for choice in DIVERSITIES:
        assert evaluate(LOG.table, diversity=choice)["near"].diversity is not None


def test_an_unreliable_policy_shows_the_robust_interval():
    evaluation = evaluate(ALONE)
    far = evaluation["far"]
    assert far.verdict.level == "unreliable"
    assert far.diversity is not None
    assert far.diversity.interval is not None
    assert far.diversity.interval.method == "robust"
    assert far.diversity.interval.contains(LOG.truth["policies"]["far"]["diversity"]["rao"])
    assert 0.0 <= far.diversity.interval.low <= far.diversity.interval.high <= 1.0


def test_prompts_with_one_response_are_left_out_and_counted():
    single = ALONE.filter(pa.array(np.arange(2000) % 5 == 0)).slice(0, 100)
    rest = ALONE.slice(500)
    policy = evaluate(pa.concat_tables([single, rest]), **RANGE)["near"]
    assert policy.diversity_detail is not None
    assert (policy.diversity_detail.n_units_used, policy.diversity_detail.n_units_left_out) == (300, 100)
    assert "100 units have fewer than 2 draws and are left out of D" in policy.notes


def test_single_responses_have_no_pairs():
    single = ALONE.filter(pa.array(np.arange(2000) % 5 == 0))
    policy = evaluate(single, **RANGE)["near"]
    assert policy.diversity is None
    assert any("no clusters" in note and "no embeddings" in note for note in policy.notes)
    with pytest.raises(PopeError, match="needs at least two units with two or more responses"):
        evaluate(single, diversity="rao", **RANGE)


def test_rows_in_any_order():
    order = np.random.default_rng(0).permutation(2000)
    with pytest.warns(pope.errors.PopeWarning, match="scattered"):
        mixed = evaluate(ALONE.take(pa.array(order)), diversity="vendi")
    assert mixed.policies == evaluate(ALONE, diversity="vendi").policies


def test_threads_and_layouts_leave_the_bits():
    single = evaluate(ALONE, threads=1).policies
    assert evaluate(ALONE, threads=3).policies == single
    lists = pa.array(ALONE["embedding"].to_pylist(), pa.list_(pa.float64()))
    table = ALONE.set_column(ALONE.schema.get_field_index("embedding"), "embedding", lists)
    assert evaluate(table).policies == single


def test_other_independent_units():
    """Users instead of prompts: pairs are then of one user's responses."""
    table = ALONE.append_column("user", pa.array(np.arange(2000) // 10))
    policy = evaluate(table, unit="user", diversity="rao")["near"]
    assert policy.diversity_detail is not None
    assert policy.diversity_detail.n_units_used == 200
    assert evaluate(ALONE, unit="row")["near"].diversity is None


def test_multiplicities():
    counts = np.random.default_rng(1).integers(1, 4, size=2000)
    aggregated = evaluate(ALONE.append_column("count", pa.array(counts)), **RANGE)["near"].diversity
    repeated = evaluate(ALONE.take(pa.array(np.repeat(np.arange(2000), counts))), **RANGE)["near"].diversity
    assert aggregated is not None
    assert repeated is not None
    assert aggregated.value == pytest.approx(repeated.value, rel=1e-12)


# Reports.


def test_the_table_says_what_d_is():
    text = render_text(evaluate(ALONE), truth=LOG.truth)
    assert "D is Rao's entropy: the expected cosine distance of two answers to a prompt" in text
    assert "OUT" not in text
    assert "D is the Vendi score of order 2" in render_text(evaluate(ALONE, diversity="vendi"))
    assert "Gini-Simpson index" in render_text(evaluate(LOG.table, diversity="gini"))
    assert "coverage@2: the expected number of kinds among 2" in render_text(
        evaluate(LOG.table, diversity="coverage@2")
    )


def test_other_reports():
    evaluation = evaluate(ALONE)
    page = render_page(evaluation)
    assert "Vendi score" in page
    assert json.loads(json.dumps(evaluation.to_json(), allow_nan=False))["config"]["estimator"] == "sn_tips"
    rows = evaluation.to_arrow().filter(pa.compute.field("metric") == "diversity").to_pylist()
    assert {"rao", "vendi", "rao (control)"} <= {row["estimator"] for row in rows}
    assert evaluation.to_dict()["settings"]["diversity"] == "auto"


# What is refused.


@pytest.mark.parametrize("choice", ["shannon", "Rao", "coverage@5", ""])
def test_unknown_measures(choice):
    with pytest.raises(PopeError, match=r"there is no diversity .* there are: auto, h_m"):
        evaluate(LOG.table, diversity=choice)


def test_measures_that_the_log_cannot_give():
    with pytest.raises(SchemaError, match="asked for as diversity 'rao'") as caught:
        evaluate(LOG.table.drop_columns(["embedding"]), diversity="rao")
    assert caught.value.column == "embedding"
    with pytest.raises(PopeError, match="unit='row'"):
        evaluate(LOG.table, diversity="vendi", unit="row")
    for choice in ("h_m", "gini", "entropy", "coverage@2"):
        with pytest.raises(PopeError, match="needs clusters"):
            evaluate(ALONE, diversity=choice)
    with pytest.raises(PopeError, match="same in every prompt"):
        evaluate(LOG.table, diversity="entropy", cluster_scope="prompt")


def test_a_bad_embedding_is_located_in_the_log(tmp_path: Path):
    vectors = np.array(ALONE["embedding"].to_pylist())
    vectors[1234, 5] = np.nan
    at = ALONE.schema.get_field_index("embedding")
    table = ALONE.set_column(at, "minilm", pa.array(vectors.tolist()))
    with pytest.raises(SchemaError, match="element 5 of the embedding is NaN") as caught:
        evaluate(pope.read_log(table, columns={"embedding": "minilm"}))
    assert (caught.value.column, caught.value.row) == ("minilm", 1234)
