"""Every simulated log through the whole product, from the Parquet file to the verdict, against its truth."""

from __future__ import annotations

import json

import pytest

from pope_fast import simulate
from pope_fast.evaluate import evaluate

# The tiny language model has few texts, so repeated ones are to be expected.
pytestmark = pytest.mark.filterwarnings("ignore::pope_fast.errors.PopeWarning")


@pytest.fixture(scope="module", params=list(simulate.KINDS))
def evaluated(request, tmp_path_factory):
    log, truth = simulate.simulate(request.param, prompts=2500, seed=12).write(
        tmp_path_factory.mktemp("logs") / "log.parquet"
    )
    return evaluate(log, reward_range=(0.0, 1.0), progress=False), json.loads(truth.read_text())


def test_near_is_reliable_and_far_is_not(evaluated):
    evaluation, truth = evaluated
    assert set(evaluation) == set(truth["policies"])
    assert evaluation["near"].verdict.level == "reliable"
    assert evaluation["far"].verdict.level == "unreliable"


def test_missing_support_is_noticed(evaluated):
    evaluation, truth = evaluated
    for name, policy in truth["policies"].items():
        if policy.get("unsupported_mass"):
            assert evaluation[name].verdict.level == "unreliable"


def test_estimates_of_the_near_policy(evaluated):
    evaluation, truth = evaluated
    found, known = evaluation["near"], truth["policies"]["near"]
    assert found.utility.value == pytest.approx(known["utility"], abs=4.5 * found.utility.standard_error)
    detail = found.diversity_detail
    name = {"entropy": "entropy_marginal"}.get(detail.measure, detail.measure)
    expected = known["diversity"][name]
    assert found.diversity.value == pytest.approx(expected, abs=4.5 * found.diversity.standard_error)
    fraction = found.diagnostics.ess / found.diagnostics.n_units
    assert fraction == pytest.approx(known["ess_fraction"], rel=0.1)


def test_every_measure_of_the_near_policy_has_a_truth(evaluated):
    evaluation, truth = evaluated
    known = truth["policies"]["near"]["diversity"]
    for name, estimate in evaluation["near"].diversity_detail.measures.items():
        key = name.removesuffix(" (product)")
        expected = known["entropy_marginal" if key.startswith("entropy") else key]
        error = estimate.standard_error or evaluation["near"].diversity.standard_error
        assert estimate.value == pytest.approx(expected, abs=5 * error), name


def test_bounded_intervals_hold_for_all_policies(evaluated):
    evaluation, truth = evaluated
    for name, policy in evaluation.items():
        known = truth["policies"][name]["utility"]
        for method in ("robust", "certified"):
            interval = policy.utility.intervals[method]
            assert interval.low <= known <= interval.high, (name, method)


def test_the_log_itself(evaluated):
    evaluation, truth = evaluated
    behavior = evaluation.behavior
    assert behavior.value == pytest.approx(truth["behavior"]["utility"], abs=4.5 * behavior.standard_error)
