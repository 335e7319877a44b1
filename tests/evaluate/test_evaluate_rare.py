"""Which interval is shown where the reward is rare, and that no shown interval forgets the truncated tail."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pope_fast.evaluate import Evaluation, evaluate
from pope_fast.evaluate.tails import difference_tail, with_group_tails

N = 600


def log(reward: Any, **spread: float) -> pa.Table:
    """A log of one response per prompt; each policy has log-normal weights of the given spread."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=N)
    targets = {f"target_logprob/{name}": s * z - s * s / 2 - 40.0 for name, s in (spread or {"p": 0.3}).items()}
    columns = {
        "prompt_id": np.arange(N),
        "behavior_logprob": np.full(N, -40.0),
        **targets,
        "cluster": rng.integers(0, 3, N),
        "group": rng.integers(0, 2, N),
    }
    return pa.table({**columns, "reward": pa.array(reward)})


def successes(count: int) -> np.ndarray:
    reward = np.zeros(N)
    reward[:: N // count][:count] = 1.0
    return reward


def codes(found: Evaluation, policy: str = "p") -> set[str]:
    return {f.code for f in found[policy].verdict.findings}


@pytest.mark.parametrize(
    ("reward", "method"),
    [
        (successes(200), "worst_case_tail"),
        (successes(20), "robust"),
        (1.0 - successes(20), "robust"),
        (successes(2), "certified"),
        (np.zeros(N), "certified"),
        (np.ones(N), "certified"),
    ],
)
def test_the_method_follows_the_rarer_outcome(reward, method):
    found = evaluate(log(reward), reward_range=(0.0, 1.0))
    policy = found["p"]
    assert ("rare_reward" in codes(found)) == (method != "worst_case_tail")
    assert policy.headline_method == method
    assert policy.utility.interval.method == policy.value.interval.method == method
    assert policy.utility_estimators["snips"].interval.method == ("delta" if method == "worst_case_tail" else method)
    # A rare reward says nothing about the clusters.
    assert policy.diversity.interval.method == "worst_case_tail"
    for estimate in (*policy.groups.values(), *policy.welfare.values()):
        assert (estimate.interval is None) == (method != "worst_case_tail")
        assert estimate.interval is not None or "too rare" in estimate.note


def test_rewards_that_are_all_at_one_end_leave_room_for_the_other():
    """Nothing in 600: the other outcome may still have a probability of half a per cent and more (3 / 600)."""
    none = evaluate(log(np.zeros(N)), reward_range=(0.0, 1.0))["p"]
    assert none.diagnostics.reward_ess is None
    assert none.utility.interval.low == 0.0
    assert none.utility.interval.high > 3 / N
    assert none.verdict.level == "caution"


def test_a_constant_reward_without_bounds_has_no_rare_side():
    found = evaluate(log(np.full(N, 0.5)))
    assert codes(found) == {"constant_reward"}


def test_gates_move_the_method():
    reward = successes(20)
    lenient = evaluate(log(reward), reward_range=(0.0, 1.0), thresholds={"reward_ess": 5.0})
    assert "rare_reward" not in codes(lenient)
    assert lenient["p"].headline_method == "worst_case_tail"
    strict = evaluate(log(reward), reward_range=(0.0, 1.0), thresholds={"reward_ess_few": 40.0})
    assert strict["p"].headline_method == "certified"


def test_few_units_are_not_called_a_rare_reward_too():
    table = log(successes(200)).slice(0, 40)
    assert codes(evaluate(table, reward_range=(0.0, 1.0))) == {"low_ess"}
    assert codes(evaluate(table.slice(1, 2), reward_range=(0.0, 1.0))) >= {"low_ess"}
    none = evaluate(log(np.zeros(N)).slice(0, 40), reward_range=(0.0, 1.0))["p"]
    assert none.verdict.level == "unreliable"
    assert none.utility.interval.method == "certified"
    assert none.diversity.interval.method == "robust"


def test_inconsistent_log_probs_and_a_rare_reward_leave_no_interval_of_u():
    shifted = log(successes(20))
    column = pa.array(shifted["target_logprob/p"].to_numpy() + 1.0)
    at = shifted.column_names.index("target_logprob/p")
    policy = evaluate(shifted.set_column(at, "target_logprob/p", column), reward_range=(0.0, 1.0))["p"]
    assert {"rare_reward", "inconsistent_log_probs"} <= {f.code for f in policy.verdict.findings}
    assert policy.utility.interval is None
    assert "too rare" in policy.utility.note
    assert policy.diversity.interval.method == "delta" or policy.diversity.interval.method == "jackknife"


def test_a_difference_with_a_rare_reward_has_the_bounds_of_both():
    found = evaluate(log(successes(20), p=0.3, q=0.1), reward_range=(0.0, 1.0))
    difference = found.compare("p", "q")
    assert difference.utility.interval.method == difference.value.interval.method == "robust"
    assert difference.diversity.interval.method == "worst_case_tail"
    strict = evaluate(log(successes(20), p=0.3, q=0.1), reward_range=(0.0, 1.0), level=0.975)
    p, q = (strict[name].utility.intervals["robust"] for name in "pq")
    assert difference.utility.interval.low == pytest.approx(p.low - q.high)
    assert difference.utility.interval.high == pytest.approx(p.high - q.low)
    reverse = found.compare("q", "p").utility.interval
    assert (reverse.low, reverse.high) == (-difference.utility.interval.high, -difference.utility.interval.low)


def test_a_difference_is_widened_by_both_tails():
    # 1.1 nats away (s = 1.5): some weights are cut, and the verdict is not unreliable.
    found = evaluate(log(successes(200), p=1.5, q=0.1), reward_range=(0.0, 1.0), thresholds={"reward_ess": 1.0})
    assert found["p"].verdict.level != "unreliable"
    for part, own in (("utility", "utility"), ("diversity", "diversity"), ("value", "value")):
        estimate = getattr(found.compare("p", "q"), part)
        p, q = (getattr(found[name], own).intervals for name in "pq")
        plain = "delta" if "delta" in p else "jackknife"
        assert estimate.interval.method == "worst_case_tail"
        narrow = estimate.intervals["jackknife"]
        below = p[plain].low - p["worst_case_tail"].low
        # The interval with the tail is kept within the range of the measure, and can end below the one without.
        above = max(q["worst_case_tail"].high - q[plain].high, 0.0)
        assert below > 0.0
        assert narrow.low - estimate.interval.low == pytest.approx(below + above, abs=1e-12)


def test_difference_tail_by_hand():
    a = {"delta": {"low": 0.4, "high": 0.6}, "worst_case_tail": {"low": 0.3, "high": 0.65}}
    b = {"jackknife": {"low": 0.1, "high": 0.2}, "worst_case_tail": {"low": 0.08, "high": 0.5}}
    found = difference_tail({"low": -0.1, "high": 0.1}, a, b)
    assert found == pytest.approx({"low": -0.1 - 0.1 - 0.3, "high": 0.1 + 0.05 + 0.02})
    assert difference_tail({"low": 0.0, "high": 0.0}, a, {"delta": a["delta"]}) is None


def test_group_tails_by_hand():
    def record(name: str, value: float, half: float) -> dict[str, Any]:
        ends = {"low": value - half, "high": value + half}
        return {"name": name, "value": value, "intervals": [{"method": "jackknife", "interval": ends}]}

    # Rewards in [1, 3]; values .25 and .64 of the range, a fifth of the weight truncated.
    groups = [{"key": key, "utility": record("u", 1.0 + 2.0 * v, 0.1)} for key, v in ((4, 0.25), (7, 0.64))]
    welfare = [
        record("mean", 1.89, 0.1),
        record("nash", 1.0 + 2.0 * 0.4, 0.1),
        {**record("min", 1.5, 0), "intervals": []},
    ]
    by_group, by_welfare = with_group_tails(groups, welfare, 0.2, 1.0, 3.0)
    assert [group["key"] for group in by_group] == [4, 7]
    ends = by_group[0]["utility"]["intervals"][1]["interval"]
    # (v - h)(1 - m) and (v + h)(1 - m) + m on the unit scale: .2 * .8, .3 * .8 + .2.
    assert ends == pytest.approx({"low": 1.0 + 2 * 0.16, "high": 1.0 + 2 * 0.44})
    assert by_welfare[0]["intervals"][1]["interval"]["high"] == pytest.approx(1.0 + 2 * (0.495 * 0.8 + 0.2))
    # All that was truncated may have earned everything: .4 and .712, whose geometric mean is the least upper end.
    nash = by_welfare[1]["intervals"][1]["interval"]
    assert nash["high"] == pytest.approx(1.0 + 2 * (math.sqrt(0.4 * 0.712) + 0.05 * 0.8))
    assert nash["low"] == pytest.approx(1.0 + 2 * 0.35 * 0.8)
    assert by_welfare[2]["intervals"] == []
