"""The records: mapping behavior, comparison, verdict, immutability."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError

import pytest

from pope_fast.errors import PopeError
from pope_fast.evaluate.results import Estimate, Evaluation, Finding, Interval, Verdict


def test_evaluation_is_a_mapping_of_policies(evaluation: Evaluation) -> None:
    assert list(evaluation) == ["near", "far"]
    assert len(evaluation) == 2
    assert evaluation["near"].policy == "near"
    assert "other" not in evaluation
    with pytest.raises(KeyError):
        evaluation["other"]


def test_compare_finds_either_direction_with_the_sign_of_a_minus_b(evaluation: Evaluation) -> None:
    forward = evaluation.compare("near", "far")
    backward = evaluation.compare("far", "near")
    assert (backward.a, backward.b) == ("far", "near")
    assert forward.value.value is not None
    assert backward.value.value == -forward.value.value
    assert forward.utility.interval is not None
    assert backward.utility.interval is not None
    assert backward.utility.interval.low == -forward.utility.interval.high
    assert backward.utility.interval.high == -forward.utility.interval.low
    assert backward.utility.standard_error == forward.utility.standard_error
    assert -backward == forward


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [("near", "nope", "no policy 'nope'.*near, far"), ("far", "far", "with itself")],
)
def test_compare_refuses_names_it_cannot_answer_for(evaluation: Evaluation, a: str, b: str, words: str) -> None:
    with pytest.raises(PopeError, match=words):
        evaluation.compare(a, b)


def test_compare_says_when_a_difference_was_not_computed(evaluation: Evaluation) -> None:
    without = Evaluation(evaluation.policies, evaluation.settings, evaluation.behavior)
    with pytest.raises(PopeError, match="was not computed"):
        without.compare("near", "far")


def test_verdict_of_an_evaluation_is_its_worst_with_names(evaluation: Evaluation, caution: Evaluation) -> None:
    assert evaluation.verdict.level == "unreliable"
    assert evaluation.verdict.reasons[0].startswith("far: effective sample size")
    assert caution.verdict.level == "caution"


def test_verdict_levels_are_ordered_and_reasons_leave_information_out() -> None:
    verdict = Verdict("caution", (Finding("a", "info", "just so"), Finding("b", "caution", "mind this")))
    assert verdict.reasons == ("mind this",)
    assert verdict.at_least("reliable")
    assert verdict.at_least("caution")
    assert not verdict.at_least("unreliable")
    assert str(verdict) == "caution: mind this"


def test_records_are_frozen_and_survive_pickle_and_copy(evaluation: Evaluation) -> None:
    with pytest.raises(FrozenInstanceError):
        evaluation.policies = {}  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        evaluation["near"].value.value = 3.0  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(evaluation)) == evaluation
    assert copy.deepcopy(evaluation) == evaluation


def test_interval_contains_its_ends() -> None:
    interval = Interval(-1.0, 2.0, 0.95, "delta")
    assert interval.contains(-1.0)
    assert interval.contains(2.0)
    assert not interval.contains(2.0001)
    assert interval.width == 3.0
    assert -interval == Interval(-2.0, 1.0, 0.95, "delta")


def test_short_forms(evaluation: Evaluation) -> None:
    assert repr(evaluation) == "<Evaluation of 2 policies: near: V=1.234 reliable, far: V=1.311 unreliable>"
    assert repr(evaluation["near"]) == "<PolicyValue 'near' V=1.234 U=0.7123 D=1.044 reliable>"
    assert str(Estimate("dr", None, note="no baseline")) == "dr: not available (no baseline)"
    assert str(Estimate("ips", 0.5, note="inverted")) == "ips 0.5 (no interval: inverted)"
    assert str(evaluation["near"].utility) == "sn_tips 0.7123 [0.6913, 0.7333]"
