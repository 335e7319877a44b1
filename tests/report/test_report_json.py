"""JSON: plain, complete, without NaN, and in the shape of lm-evaluation-harness results."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pope_fast.errors import PopeError
from pope_fast.evaluate.results import Estimate, Evaluation
from pope_fast.report.json import dumps, load_truth, to_plain


def test_to_dict_is_plain_and_complete(evaluation: Evaluation) -> None:
    content = evaluation.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    near = content["policies"]["near"]
    assert near["utility"]["intervals"]["worst_case_tail"]["low"] == pytest.approx(0.6913)
    assert near["diversity_detail"]["cluster_masses"]["humor"] == [0.26, 0.18]
    assert near["diagnostics"]["ess"] == 412.3
    assert content["policies"]["far"]["verdict"]["findings"][0]["code"] == "low_ess"
    assert content["settings"]["reward_range"] == {"low": 0.0, "high": 1.0, "origin": "declared"}
    assert content["differences"][0]["a"] == "near"
    assert content["verdict"] == "unreliable"


def test_harness_shape(evaluation: Evaluation) -> None:
    content = evaluation.to_json()
    near = content["results"]["near"]
    assert near["alias"] == "near"
    assert near["utility,sn_tips"] == 0.7123
    assert near["utility_stderr,sn_tips"] == pytest.approx(0.021 / 1.96)
    assert near["utility_low,sn_tips"] == pytest.approx(0.6913)
    assert near["utility,snips"] == 0.7124
    assert near["diversity,H_3"] == 1.0436
    assert near["diversity,coverage@2"] == 1.61
    assert near["value,sn_tips"] == 1.2341
    assert near["group/expert,sn_tips"] == 0.73
    assert near["verdict"] == "reliable"
    assert near["utility,dr"] is None
    assert near["utility_stderr,dr"] == "N/A"
    assert "utility_low,dr" not in near
    assert content["n-samples"]["far"] == {"original": 4000, "effective": 7.3}
    assert content["versions"] == {"pope_fast": "0.1.0"}
    assert content["pope_version"] == "0.1.0"
    assert content["config"]["diversity_weight"] == 0.5
    assert content["configs"]["near"]["estimator"] == "sn_tips"
    assert content["pope"] == evaluation.to_dict()


def test_every_result_can_stand_in_the_harness_table(evaluation: Evaluation) -> None:
    # The harness prints a cell for each metric whose name does not end in _stderr and formats that of its
    # _stderr sibling with four decimals unless it is "N/A"; a list or a null there would break its table.
    for results in evaluation.to_json()["results"].values():
        for name, value in results.items():
            metric, _, estimator = name.partition(",")
            assert isinstance(value, str | float | type(None))
            error = results.get(f"{metric}_stderr,{estimator}")
            assert error is None or error == "N/A" or math.isfinite(error)


def test_no_nan_or_infinity_reaches_the_text(evaluation: Evaluation) -> None:
    broken = replace(evaluation["near"], utility=Estimate("sn_tips", math.nan, math.inf))
    text = dumps(replace(evaluation, policies={"near": broken}, differences={}).to_json())
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text)["results"]["near"]["utility,sn_tips"] is None


def test_numpy_scalars_and_unknown_objects_become_plain() -> None:
    content = to_plain({1: np.float32(0.5), "b": np.int64(7), "c": (np.bool_(True), np.float64("nan")), "d": Path("x")})
    assert content == {"1": 0.5, "b": 7, "c": [True, None], "d": "x"}


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"policies": []}', '{"policies": '])
def test_a_truth_file_that_is_none_is_a_user_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "truth.json"
    path.write_text(content)
    with pytest.raises(PopeError, match="truth file"):
        load_truth(path)


def test_a_missing_truth_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(PopeError, match="No such file"):
        load_truth(tmp_path / "no.json")
