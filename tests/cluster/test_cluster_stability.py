"""The stability curve picks a threshold near the best one where there is structure, and says so where there is none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from cluster_logs import text_log

from pope_fast.cluster import StabilityCurve, agreement, cluster
from pope_fast.cluster.stability import FEWEST_PROMPTS, GRID, choose
from pope_fast.errors import PopeError


def curve_of(result_of: object) -> StabilityCurve:
    curve = getattr(result_of, "stability", None)
    assert isinstance(curve, StabilityCurve)
    return curve


@pytest.mark.parametrize(
    ("clusters", "responses", "noise", "shared"),
    [(2, 8, 0.6, 1.0), (4, 8, 0.5, 0.0), (4, 8, 0.5, 1.5), (3, 8, 1.0, 1.0), (8, 32, 0.7, 0.7), (6, 16, 1.5, 1.0)],
)
def test_the_number_of_clusters_in_embeddings_is_found(
    clusters: int, responses: int, noise: float, shared: float
) -> None:
    rng = np.random.default_rng(clusters)
    width, prompts = (384 if noise > 1 else 64), 60
    truth = rng.integers(0, clusters, (prompts, responses))
    centers = rng.normal(size=(prompts, clusters, width)) + shared * rng.normal(size=(prompts, 1, width))
    points = np.take_along_axis(centers, truth[:, :, None], axis=1) + noise * rng.normal(
        size=(prompts, responses, width)
    )
    prompt = np.repeat(np.arange(prompts), responses)
    log = {"prompt_id": prompt}
    points = points.reshape(-1, width)
    result = cluster(log, embeddings=points)
    curve = curve_of(result)
    assert curve.found
    chosen = agreement(result.labels, truth.ravel(), prompt).pooled_ari
    best = max(
        agreement(cluster(log, embeddings=points, threshold=cut).labels, truth.ravel(), prompt).pooled_ari
        for cut in GRID[4::5].tolist()
    )
    assert chosen > 0.93
    assert chosen > best - 0.03


@pytest.mark.parametrize("responses", [8, 16])
@pytest.mark.parametrize("method", ["average", "complete"])
def test_perspectives_rather_than_wordings_are_found_in_texts(responses: int, method: str) -> None:
    # Both are stable, and the wordings more so: the curve has two peaks, and the coarser one is meant.
    table = text_log(responses=responses, phrasings=12 if responses == 8 else 36, seed=2)
    result = cluster(table, method=method)
    curve = curve_of(result)
    assert curve.found
    assert curve.threshold < 0.35 < curve.thresholds[int(np.argmax(curve.stability))] < 0.85
    prompt, truth = table["prompt_id"].to_numpy(), table["perspective"].to_numpy()
    chosen = agreement(result.labels, truth, prompt).pooled_ari
    wordings = agreement(cluster(table, method=method, threshold=0.6).labels, truth, prompt).pooled_ari
    best = max(
        agreement(cluster(table, method=method, threshold=cut).labels, truth, prompt).pooled_ari
        for cut in (0.1, 0.14, 0.18, 0.22, 0.26)
    )
    assert chosen > best - 0.05
    assert chosen > wordings + 0.05


def test_noise_has_no_stable_threshold() -> None:
    points = np.random.default_rng(0).normal(size=(800, 64))
    result = cluster({"prompt_id": np.repeat(np.arange(100), 8)}, embeddings=points)
    curve = curve_of(result)
    assert not curve.found
    assert (result.threshold, result.info.chosen) == (0.7, "default")
    assert "no threshold gives stable clusters" in curve.reason


def test_repeated_responses_do_not_make_a_threshold_stable() -> None:
    points = np.random.default_rng(0).normal(size=(400, 64))
    doubled = np.repeat(points, 2, axis=0)
    result = cluster({"prompt_id": np.repeat(np.arange(100), 8)}, embeddings=doubled)
    assert not curve_of(result).found


@pytest.mark.parametrize(("prompts", "found"), [(FEWEST_PROMPTS - 1, False), (60, True)])
def test_too_few_prompts_are_said(prompts: int, found: bool) -> None:
    result = cluster(text_log(prompts=prompts))
    curve = curve_of(result)
    assert curve.found is found
    if not found:
        assert curve.reason.startswith("only 9 prompts with three distinct responses")
        assert curve.thresholds == ()
        assert result.threshold == 0.2


def test_the_choice_does_not_depend_on_the_order_of_the_log() -> None:
    table = text_log()
    order = np.random.default_rng(4).permutation(len(table))
    assert curve_of(cluster(table)) == curve_of(cluster(table.take(order)))
    assert curve_of(cluster(table)).stability != curve_of(cluster(table, seed=1)).stability


def test_a_curve_describes_itself() -> None:
    curve = curve_of(cluster(text_log()))
    assert curve.thresholds == tuple(GRID.tolist())
    for name in ("stability", "agreement", "persistence", "together", "clusters"):
        assert len(getattr(curve, name)) == len(GRID), name
    assert np.all(np.diff(curve.clusters) >= 0)
    assert np.all(np.diff(curve.together) <= 0)
    assert curve.clusters[0] >= 1.0
    content = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert content["threshold"] == curve.threshold
    assert content["stability"] == list(curve.stability)
    assert f"threshold={curve.threshold:g}" in repr(curve)


def test_a_curve_is_drawn(tmp_path: Path) -> None:
    curve = curve_of(cluster(text_log()))
    ax = curve.plot()
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert lines["stability"].get_ydata().tolist() == list(curve.stability)
    assert lines[f"threshold {curve.threshold:g}"].get_xdata() == [curve.threshold, curve.threshold]
    assert curve.plot(ax) is ax
    for name, head in (("plot.png", b"\x89PNG"), ("plot.svg", b"<?xml"), ("plot.pdf", b"%PDF")):
        curve.save_plot(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(head)


def test_drawing_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = curve_of(cluster(text_log()))
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PopeError, match=r"pope_fast\[plot\]"):
        curve.plot()


@pytest.mark.parametrize(
    ("stability", "together", "expected"),
    [
        ([0.1, 0.8, 0.3, 0.9, 0.2], 0.5, 1),  # the coarser of two good peaks
        ([0.1, 0.6, 0.3, 0.9, 0.2], 0.5, 3),  # the first one is not nearly as good
        ([0.1, 0.7, 0.7, 0.3, 0.2], 0.5, 2),  # the end of a plateau
        ([0.9, 0.8, 0.3, 0.2, 0.1], 0.5, 0),
        ([0.1, 0.2, 0.3, 0.4, 0.9], 0.5, 4),
        ([0.1, 0.4, 0.2, 0.3, 0.1], 0.5, None),  # nothing stable
        ([0.9, 0.9, 0.9, 0.9, 0.9], 0.0, None),  # nothing together
        ([0.9, 0.9, 0.9, 0.9, 0.9], 1.0, None),  # nothing apart
    ],
)
def test_the_rule(stability: list[float], together: float, expected: int | None) -> None:
    assert choose(stability, [together] * 5) == expected


def test_the_rule_looks_only_where_something_can_disagree() -> None:
    assert choose([0.99, 0.8, 0.3, 0.6, 0.99], [0.99, 0.6, 0.3, 0.1, 0.001]) == 1
