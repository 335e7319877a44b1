"""D and V by threshold: the log is clustered again as its metadata say, and evaluated each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_logs import text_log

from pope_fast.cluster import cluster
from pope_fast.errors import PopeError, SchemaError
from pope_fast.evaluate import evaluate
from pope_fast.evaluate.sensitivity import ClusterSensitivity, cluster_sensitivity
from pope_fast.log import read_log

pytestmark = pytest.mark.filterwarnings("ignore::pope_fast.errors.PopeWarning")


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sensitivity") / "log.parquet"
    cluster(text_log(), path, threshold=0.2)
    return path


@pytest.fixture(scope="module")
def result(clustered: Path) -> ClusterSensitivity:
    return cluster_sensitivity(clustered, diversity_weight=0.5)


def test_each_threshold_is_clustered_and_evaluated(clustered: Path, result: ClusterSensitivity) -> None:
    assert result.thresholds == pytest.approx((0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35))
    assert result.own == 0.2
    assert set(result.policies) == {"majority", "even"}
    for index, cut in enumerate(result.thresholds):
        found = cluster(text_log(), threshold=cut)
        expected = evaluate(found.log, cluster_scope="prompt", diversity_weight=0.5)
        assert result.clusters_per_prompt[index] == found.n_clusters / 120
        for name, policy in result.policies.items():
            assert policy.diversity[index] == expected[name].diversity
            assert policy.value[index] == expected[name].value
    stored = evaluate(clustered, cluster_scope="prompt", diversity_weight=0.5)
    assert result.policies["even"].diversity[3] == stored["even"].diversity
    assert result.measure == "H_3"


def test_finer_clusters_are_more_diverse(result: ClusterSensitivity) -> None:
    assert np.all(np.diff(result.clusters_per_prompt) > 0)
    for policy in result.policies.values():
        values = [
            estimate.value for estimate in policy.diversity if estimate is not None and estimate.value is not None
        ]
        assert np.all(np.diff(values) > 0)
        assert values[-1] > values[0] + 0.1


def test_the_result_says_what_it_is(result: ClusterSensitivity) -> None:
    lines = str(result).splitlines()
    assert lines[0].startswith("D (H_3) and V by the threshold")
    assert lines[1].split() == ["threshold", "clusters", "D", "majority", "V", "majority", "D", "even", "V", "even"]
    assert [line.split()[0] for line in lines[2:9]] == ["0.05", "0.1", "0.15", "0.2", "0.25", "0.3", "0.35"]
    assert [" * " in line for line in lines[2:9]] == [False, False, False, True, False, False, False]
    assert not result.notes or lines[9].startswith("note: which of majority and even has the larger V")
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["thresholds"] == list(result.thresholds)
    assert len(plain["policies"]["even"]["diversity"]) == 7
    assert "own 0.2" in repr(result)


def test_the_result_is_drawn(result: ClusterSensitivity) -> None:
    ax = result.plot()
    lines = {line.get_label(): line for line in ax.get_lines()}
    drawn = lines["even"].get_ydata().tolist()
    assert drawn == [estimate.value for estimate in result.policies["even"].diversity if estimate is not None]
    assert result.plot(ax) is ax


def test_a_changed_ranking_is_said() -> None:
    """One policy spreads over two wordings of one view, the other over two views in one wording each."""
    drawn = np.random.default_rng(0).integers(0, 3, 4000)
    log = pa.table(
        {
            "prompt_id": np.repeat(np.arange(500), 8),
            "vector": np.array([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]])[drawn].tolist(),
            "reward": np.random.default_rng(1).random(4000) < 0.5,
            "behavior_logprob": np.full(4000, -5.0),
            "target_logprob/words": np.log([1.45, 1.45, 0.1])[drawn] - 5.0,
            "target_logprob/views": np.log([2.3, 0.1, 0.6])[drawn] - 5.0,
        }
    )
    found = cluster(log, embeddings="vector", threshold=0.9)
    sensitivity = cluster_sensitivity(found.log, thresholds=[0.3])
    assert sensitivity.thresholds == (0.3, 0.9)
    words, views = (sensitivity.policies[name].diversity for name in ("words", "views"))
    assert words[0].value < views[0].value  # type: ignore[union-attr, operator]
    assert words[1].value > views[1].value  # type: ignore[union-attr, operator]
    assert sensitivity.notes == ("which of words and views has the larger V depends on the threshold",)


@pytest.mark.parametrize("features", ["tfidf-word", "tfidf"])
@pytest.mark.parametrize("method", ["complete", "leader"])
def test_the_logs_own_features_and_method_are_used(features: Any, method: Any) -> None:
    found = cluster(text_log(), features=features, method=method, threshold=0.25, seed=5)
    sensitivity = cluster_sensitivity(found.log, thresholds=[])
    assert sensitivity.thresholds == (0.25,)
    assert sensitivity.clusters_per_prompt == (found.n_clusters / 120,)
    assert not any("other clusters" in note for note in sensitivity.notes)


def test_embeddings_and_functions_are_passed_again() -> None:
    table = text_log()
    points = np.random.default_rng(0).normal(size=(len(table), 8))
    from_array = cluster(table, embeddings=points, threshold=0.5)
    with pytest.raises(PopeError, match="by embeddings=, which its metadata cannot hold"):
        cluster_sensitivity(from_array.log)
    again = cluster_sensitivity(from_array.log, embeddings=points, thresholds=[])
    assert again.clusters_per_prompt == (from_array.n_clusters / 120,)

    def same(pairs: list[tuple[str, str]]) -> list[float]:
        return [0.6 if left[:8] == right[:8] else 0.1 for left, right in pairs]

    judged = cluster(table, same=same)
    assert cluster_sensitivity(judged.log, same=same, thresholds=[0.7]).clusters_per_prompt[0] < 8
    with pytest.raises(PopeError, match="same= is not what this log was clustered by"):
        cluster_sensitivity(from_array.log, embeddings=points, same=same)
    with pytest.raises(PopeError, match="by same=, which"):
        cluster_sensitivity(judged.log)

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(points.ravel()), 8)
    from_column = cluster(table.append_column("vector", vectors), embeddings="vector", threshold=0.5)
    assert cluster_sensitivity(from_column.log, thresholds=[]).clusters_per_prompt == again.clusters_per_prompt
    encoded = cluster(table, model=lambda texts: np.array([[len(text), 1.0] for text in texts]), threshold=0.999)
    with pytest.raises(PopeError, match="by model=, which"):
        cluster_sensitivity(encoded.log)


def test_scattered_rows_and_string_clusters_of_policies_asked_for(tmp_path: Path) -> None:
    table = text_log()
    mixed = table.take(np.random.default_rng(0).permutation(len(table)))
    path = tmp_path / "log.parquet"
    cluster(mixed, path, threshold=0.2)
    straight = cluster_sensitivity(cluster(table, threshold=0.2).log, ["even"], thresholds=[0.3])
    found = cluster_sensitivity(path, ["even"], thresholds=[0.3])
    assert list(found.policies) == ["even"]
    assert found.policies == straight.policies
    assert not any("other clusters" in note for note in found.notes)


def test_a_log_that_changed_since_is_noticed(clustered: Path, tmp_path: Path) -> None:
    table = pq.read_table(clustered)
    index = table.column_names.index("completion")
    rotated = pa.chunked_array([table["completion"].take(np.roll(np.arange(len(table)), 3))])
    pq.write_table(table.set_column(index, "completion", rotated), tmp_path / "log.parquet")
    found = cluster_sensitivity(tmp_path / "log.parquet", thresholds=[])
    assert any("gives other clusters than those in 'cluster'" in note for note in found.notes)
    pq.write_table(table.drop_columns(["completion"]), tmp_path / "log.parquet")
    with pytest.raises(SchemaError, match="column 'completion': no such column"):
        cluster_sensitivity(tmp_path / "log.parquet")


def test_logs_whose_clusters_have_no_threshold(clustered: Path) -> None:
    table = pq.read_table(clustered)
    with pytest.raises(PopeError, match="does not say how it was clustered"):
        cluster_sensitivity(table.replace_schema_metadata(None))
    with pytest.raises(PopeError, match="does not say how it was clustered"):
        cluster_sensitivity(table.drop_columns(["cluster"]))
    for options in ({"features": "exact"}, {"scope": "log"}):
        found = cluster(text_log(), **options)  # type: ignore[arg-type]
        with pytest.raises(PopeError, match="have no threshold that could be moved"):
            cluster_sensitivity(found.log)
    with pytest.raises(PopeError, match="does not depend on clusters"):
        cluster_sensitivity(clustered, diversity="rao")
    with pytest.raises(PopeError, match="thresholds are similarities"):
        cluster_sensitivity(clustered, thresholds=[2.0])


def test_another_column_may_play_the_cluster() -> None:
    found = cluster(text_log(), threshold=0.2, into="views")
    log = read_log(found.table(), columns={"cluster": "views"})
    assert cluster_sensitivity(log, thresholds=[]).own == 0.2
