"""Why the defaults are what they are: on a finite log, what is unbiased runs off it (the table of docs/losses.md)."""

from __future__ import annotations

import pytest
from feature_world import train

from pope_fast.align.losses import Diversity, Objective, pope_loss
from pope_fast.align.losses.weights import SN_TIPS

LAMBDA = 0.3
pytestmark = pytest.mark.slow


def mean(objective: Objective, seeds: int = 3, form: str = "score") -> dict[str, float]:
    runs = [train(lambda b: pope_loss(b, objective, form=form), seed, weight=LAMBDA) for seed in range(seeds)]  # type: ignore[arg-type]
    return {name: sum(run[name] for run in runs) / seeds for name in runs[0]}


def test_the_defaults_stay_with_the_log_where_wider_weights_run_off_it() -> None:
    default = mean(Objective(diversity_weight=LAMBDA))
    unbounded = Diversity(bounded=False)
    wide = mean(Objective(diversity_weight=LAMBDA, weighting=SN_TIPS, diversity=unbounded, kl="k3"))
    # Both pass a good policy on their way; one of them leaves it again.
    assert wide["best"] > default["best"] - 0.05
    assert default["value"] > default["best"] - 0.03
    assert wide["value"] < wide["best"] - 0.1
    assert default["value"] > wide["value"] + 0.1
    assert default["ess"] > 2 * wide["ess"]
