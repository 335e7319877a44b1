"""Diversity from embeddings on worlds whose truth is known: unbiased, with intervals that cover, at 95 %.

Claims: Rao's entropy and the Vendi score are unbiased to within a fraction of their standard error, which is that of
their spread; the worst-case tail covers; normalizing by the pairs is far sharper than the control form where weights
vary; the bounded intervals cover where part of the policy is not in the log at all, and the others do not.
Tolerance: three Monte Carlo standard errors of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from worlds import standard_error

from pope_fast import _core
from pope_fast.simulate.finite_world import FiniteWorld
from pope_fast.simulate.table_world import table_world

pytestmark = pytest.mark.slow

TILTS = {"near": 0.6, "off": 1.2}
N, K, TIMES = 500, 4, 300


@dataclass
class Found:
    """Errors, standard errors and hits of one measure of one policy over many logs."""

    truth: float
    error: list[float] = field(default_factory=list)
    standard_error: list[float] = field(default_factory=list)
    control: list[float] = field(default_factory=list)
    hits: dict[str, list[bool]] = field(default_factory=dict)
    width: dict[str, list[float]] = field(default_factory=dict)

    def add(self, record: dict[str, Any], control: dict[str, Any]) -> None:
        self.error.append(record["value"] - self.truth)
        self.control.append(control["value"] - self.truth)
        self.standard_error.append(record["standard_error"])
        for item in record["intervals"]:
            low, high = item["interval"]["low"], item["interval"]["high"]
            self.hits.setdefault(item["method"], []).append(low <= self.truth <= high)
            self.width.setdefault(item["method"], []).append(high - low)


def world() -> FiniteWorld:
    return table_world(prompt_types=40, menu=24, embedding_width=8, tilts=TILTS)


def replicates(world: FiniteWorld, seed: int, n: int, k: int, times: int) -> dict[tuple[str, str], Found]:
    truth = world.truth(k)["policies"]
    found = {(p, m): Found(truth[p]["diversity"][m]) for p in world.targets for m in ("rao", "vendi")}
    rng = np.random.default_rng(seed)
    assert world.embedding is not None
    for _ in range(times):
        draws = world.draw(rng, n, k)
        state = _core.State(list(world.targets), (0.0, 1.0), has_embedding=True)
        state.update(
            draws.prompt_id,
            world.log_probability(world.behavior, draws),
            [world.log_probability(p, draws) for p in world.targets.values()],
            rng.uniform(size=n * k),
            embedding=np.ascontiguousarray(world.embedding[draws.prompt_type, draws.response]),
            threads=1,
        )
        snapshot = state.snapshot()
        for policy in world.targets:
            pairs = snapshot.summary(policy)["pairs"]
            for record, control in zip(pairs["measures"], pairs["control"], strict=True):
                found[policy, record["name"]].add(record, control)
    return found


@cache
def covered() -> dict[tuple[str, str], Found]:
    return replicates(world(), 201, N, K, TIMES)


CASES = [(policy, measure) for policy in TILTS for measure in ("rao", "vendi")]


@pytest.mark.parametrize(("policy", "measure"), CASES)
def test_unbiased(policy, measure):
    error = np.array(covered()[policy, measure].error)
    spread = error.std(ddof=1)
    # A ratio of means has a bias of order 1 / n; the Vendi score is a reciprocal on top of it.
    assert abs(error.mean()) < 4 * spread / np.sqrt(TIMES) + 0.1 * spread


@pytest.mark.parametrize(("policy", "measure"), CASES)
def test_standard_error_is_that_of_the_spread(policy, measure):
    found = covered()[policy, measure]
    assert np.mean(found.standard_error) == pytest.approx(np.std(found.error, ddof=1), rel=0.15)


@pytest.mark.parametrize(("policy", "measure"), CASES)
def test_intervals_cover(policy, measure):
    hits = covered()[policy, measure].hits
    for method, least in (("delta", 0.93), ("jackknife", 0.93), ("worst_case_tail", 0.945), ("robust", 0.95)):
        assert np.mean(hits[method]) >= least - 3 * standard_error(least, TIMES), method
    assert np.mean(hits["certified"]) == 1.0


def test_the_tail_of_the_worst_case_is_paid_for_only_where_weight_is_truncated():
    near, off = (covered()[policy, "rao"].width for policy in TILTS)
    assert np.mean(near["worst_case_tail"]) < 1.1 * np.mean(near["delta"])
    assert np.mean(off["worst_case_tail"]) > 1.2 * np.mean(off["delta"])


@pytest.mark.parametrize("measure", ["rao", "vendi"])
def test_normalizing_by_pairs_is_sharper(measure):
    found = covered()["off", measure]
    assert np.std(found.error) < 0.8 * np.std(found.control)


def test_plug_in_of_single_prompts_is_hopeless():
    """What one would compute without theory, the self-normalized V-statistic of each prompt, is far too low."""
    table = world()
    truth = table.truth(K)["policies"]["near"]["diversity"]["rao"]
    draws = table.draw(np.random.default_rng(3), 2000, K)
    assert table.embedding is not None
    v = table.embedding[draws.prompt_type, draws.response].astype(float)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    logw = table.log_probability(table.targets["near"], draws) - table.log_probability(table.behavior, draws)
    w = np.exp(logw).reshape(2000, K, 1)
    mean = np.sum(w * v.reshape(2000, K, -1), axis=1) / w.sum(axis=1)
    assert np.mean(1.0 - np.sum(mean**2, axis=1)) < 0.8 * truth


def test_bounded_intervals_cover_what_is_not_in_the_log():
    """The logger never takes half of the perspectives: intervals that rest on overlap miss, the bounded ones do not."""
    full = world()
    behavior = full.behavior.copy()
    behavior[full.cluster >= full.n_clusters // 2] = 0.0
    behavior /= behavior.sum(axis=1, keepdims=True)
    lame = replace(full, behavior=behavior, targets={"near": full.targets["near"]})
    # The truth is that of the whole policy; its divergences are infinite and of no interest here.
    with np.errstate(divide="ignore", invalid="ignore"):
        found = replicates(lame, 203, N, K, 60)
    for measure in ("rao", "vendi"):
        hits = found["near", measure].hits
        assert np.mean(hits["robust"]) == np.mean(hits["certified"]) == 1.0
        assert np.mean(hits["delta"]) < 0.1
