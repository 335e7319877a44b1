"""Evaluations made by hand: a policy that the log covers, one with doubts, one that it cannot answer for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pope_fast.evaluate.results import (
    Diagnostics,
    Difference,
    DiversitySummary,
    Estimate,
    Evaluation,
    EvaluationSettings,
    Finding,
    Interval,
    PolicyValue,
    VarianceParts,
    Verdict,
)
from pope_fast.log import RewardRange

SETTINGS = EvaluationSettings(
    diversity_weight=0.5,
    level=0.95,
    unit="prompt",
    reward_range=RewardRange(0.0, 1.0, "declared"),
    cluster_scope="log",
    estimator="sn_tips",
    thresholds={"ess": 50.0, "k_hat": 0.7},
    source="demo.parquet",
    versions={"pope_fast": "0.1.0"},
)


def estimate(name: str, value: float, half: float, method: str, unit: str = "reward units") -> Estimate:
    interval = Interval(value - half, value + half, 0.95, method)
    return Estimate(name, value, half / 1.96, interval, {method: interval}, unit)


def diagnostics(**changes: object) -> Diagnostics:
    usual = Diagnostics(
        n_units=500,
        n_rows=4000,
        ess=412.3,
        ess_fraction=0.8246,
        ess_ceiling=430.0,
        reward_ess=198.4,
        max_weight_share=0.006,
        mean_weight=1.003,
        k_hat=0.21,
        missing_mass=0.001,
        truncation=22.4,
        e_value=0.7,
        kl_target_behavior=0.15,
        kl_behavior_target=0.14,
        mean_log_weight=-0.14,
        mean_log_weight_standard_error=0.01,
        zero_weight_rows=0,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def diversity(value: float, half: float) -> DiversitySummary:
    return DiversitySummary(
        level="prompt",
        measure="H_3",
        rule="500 of 500 prompts have at least 4 responses, so diversity is measured within prompts",
        order=3,
        n_units_used=500,
        n_units_left_out=0,
        measures={
            "H_3": estimate("H_3", value, half, "jackknife", "nats"),
            "gini_simpson": estimate("gini_simpson", 0.61, 0.02, "jackknife", "probability"),
            "coverage@2": estimate("coverage@2", 1.61, 0.02, "jackknife", "clusters"),
        },
        sandwich=Interval(0.8, 1.9, 0.95, "sandwich"),
        cluster_masses={"practical": (0.41, 0.52), "moral <b>": (0.33, 0.3), "humor": (0.26, 0.18)},
        unseen_mass=0.002,
    )


def near() -> PolicyValue:
    utility = estimate("sn_tips", 0.7123, 0.021, "worst_case_tail")
    return PolicyValue(
        policy="near",
        value=estimate("V", 1.2341, 0.034, "jackknife"),
        utility=utility,
        diversity=estimate("H_3", 1.0436, 0.025, "jackknife", "nats"),
        diversity_weight=0.5,
        utility_estimators={
            "sn_tips": utility,
            "ips": estimate("ips", 0.715, 0.03, "delta"),
            "snips": estimate("snips", 0.7124, 0.02, "delta"),
            "dr": Estimate("dr", None, note="the log has no baseline column"),
        },
        diversity_detail=diversity(1.0436, 0.025),
        variance=VarianceParts(1.1e-4, 4e-5, 2e-5, 1.7e-4, 1e-5, 2.8e-4),
        groups={
            "novice": estimate("sn_tips", 0.69, 0.04, "delta"),
            "expert": estimate("sn_tips", 0.73, 0.04, "delta"),
        },
        welfare={
            "mean": estimate("mean", 0.71, 0.02, "delta"),
            "min": estimate("min", 0.69, 0.04, "delta"),
            "nash": estimate("nash", -0.34, 0.03, "delta"),
        },
        diagnostics=diagnostics(),
        verdict=Verdict("reliable"),
        headline_method="worst_case_tail",
    )


def far() -> PolicyValue:
    utility = estimate("sn_tips", 0.844, 0.41, "robust")
    return PolicyValue(
        policy="far",
        value=estimate("V", 1.311, 0.9, "robust"),
        utility=utility,
        diversity=Estimate("H_3", 0.93, 0.4, None, {}, "nats", "the jackknife variance rests on too few groups"),
        diversity_weight=0.5,
        utility_estimators={"sn_tips": utility},
        diversity_detail=diversity(0.93, 0.4),
        variance=None,
        groups={
            "novice": estimate("sn_tips", 0.8, 0.6, "robust"),
            "expert": Estimate("sn_tips", None, note="no row"),
        },
        welfare={"mean": estimate("mean", 0.8, 0.6, "robust")},
        diagnostics=diagnostics(
            ess=7.3,
            ess_fraction=0.0146,
            k_hat=0.93,
            mean_weight=0.0043,
            missing_mass=0.93,
            kl_target_behavior=7.1,
        ),
        verdict=Verdict(
            "unreliable",
            (
                Finding("low_ess", "unreliable", "effective sample size 7.3 is below 50", 7.3, 50.0),
                Finding(
                    "heavy_tail",
                    "unreliable",
                    "k-hat .93 is above .7: the weights have no finite mean",
                    0.93,
                    0.7,
                ),
                Finding("missing_mass", "caution", "93% of the policy's probability was never logged", 0.93, 0.1),
                Finding("observed_range", "info", "the reward range was observed, not declared"),
            ),
        ),
        headline_method="robust",
        notes=("12 prompts with fewer than 4 responses were left out of D",),
    )


def doubtful() -> PolicyValue:
    return replace(
        near(),
        policy="noisy",
        diversity=None,
        diversity_detail=None,
        utility=Estimate(
            "sn_tips", 0.65, 0.01, None, {"robust": None}, note="inconsistent log-probs: it came out inverted"
        ),
        verdict=Verdict(
            "caution",
            (
                Finding(
                    "inconsistent_log_probs",
                    "caution",
                    "mean log-weight is +.02 (SE .004), above 0",
                    0.02,
                    0.0,
                ),
            ),
        ),
    )


def difference() -> Difference:
    return Difference(
        a="near",
        b="far",
        utility=estimate("sn_tips", -0.13, 0.4, "delta"),
        diversity=estimate("H_3", 0.11, 0.4, "jackknife", "nats"),
        value=estimate("V", -0.08, 0.7, "jackknife"),
        note="far is unreliable, and so is this difference",
    )


@pytest.fixture
def evaluation() -> Evaluation:
    return Evaluation(
        policies={"near": near(), "far": far()},
        settings=SETTINGS,
        behavior=estimate("mean_reward", 0.63, 0.02, "delta"),
        differences={("near", "far"): difference()},
        warnings=("17 responses with identical text were counted as separate draws",),
    )


@pytest.fixture
def caution() -> Evaluation:
    return Evaluation(
        policies={"noisy": doubtful()},
        settings=SETTINGS,
        behavior=estimate("mean_reward", 0.63, 0.02, "delta"),
    )


@pytest.fixture
def truth() -> dict[str, object]:
    return {
        "policies": {
            "near": {"utility": 0.715, "diversity": {"H_3": 1.05, "gini_simpson": 0.6}},
            "far": {"utility": 0.245, "diversity": {"H_3": 0.9}},
        }
    }
