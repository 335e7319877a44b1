"""Clustering a log: what comes out, what it does not depend on, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_logs import partition, text_log

from pope_fast.cluster import CLUSTERS_KEY, ClusterInfo, Clustering, cluster, read_clusters
from pope_fast.cluster import rows as rows_module
from pope_fast.errors import PopeError, SchemaError
from pope_fast.evaluate import evaluate
from pope_fast.log import read_log

SMALL = {
    "prompt_id": [1, 1, 1, 2, 2, 3],
    "completion": ["Raise the taxes.", "Raise TAXES!", "Plant trees.", "Yes.", "yes", ""],
}


def labels(log: Any, **options: Any) -> list[int]:
    return cluster(log, **options).labels.tolist()


def prompts(table: pa.Table) -> np.ndarray:
    return np.asarray(table["prompt_id"].to_numpy())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"features": "exact"}, [0, 1, 2, 0, 1, 0]),
        ({"features": "normalized"}, [0, 1, 2, 0, 0, 0]),
        ({"threshold": 0.3}, [0, 0, 1, 0, 0, 0]),
        ({"threshold": 0.3, "method": "complete"}, [0, 0, 1, 0, 0, 0]),
        ({"threshold": 0.3, "method": "leader"}, [0, 0, 1, 0, 0, 0]),
        ({"threshold": 0.3, "features": "tfidf-word"}, [0, 0, 1, 0, 0, 0]),
        ({"threshold": 1.0}, [0, 1, 2, 0, 0, 0]),
        ({"threshold": -1.0}, [0, 0, 0, 0, 0, 0]),
        ({"features": "exact", "scope": "log"}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_labels_of_a_small_log(options: dict[str, Any], expected: list[int]) -> None:
    assert labels(SMALL, **options) == expected


def test_equal_text_in_other_prompts_is_one_theme() -> None:
    log = {"prompt_id": [1, 1, 2, 2], "completion": ["no", "yes", "yes!", "no"]}
    assert labels(log, features="normalized", scope="log") == [0, 1, 1, 0]
    assert labels(log, features="normalized") == [0, 1, 0, 1]


@pytest.mark.parametrize("method", ["average", "complete", "leader"])
@pytest.mark.parametrize("features", ["tfidf", "tfidf-word", "normalized"])
def test_the_partition_does_not_depend_on_the_order_of_rows(method: str, features: str) -> None:
    table = text_log(prompts=60)
    order = np.random.default_rng(3).permutation(len(table))
    options: dict[str, Any] = {"features": features}
    if features != "normalized":
        options |= {"method": method, "threshold": 0.2}
    straight, mixed = cluster(table, **options), cluster(table.take(order), **options)
    back = np.empty(len(table), dtype=np.int32)
    back[order] = mixed.labels
    assert partition(straight.labels, prompts(table)) == partition(back, prompts(table))
    assert mixed.n_clusters == straight.n_clusters
    assert any("scattered" in note for note in mixed.notes)
    assert not straight.notes


def test_labels_are_numbered_by_first_appearance() -> None:
    table = text_log(prompts=60)
    order = np.random.default_rng(3).permutation(len(table))
    for log in (table, table.take(order)):
        found, key = cluster(log, threshold=0.2).labels, prompts(log)
        for prompt in np.unique(key):
            mine = found[key == prompt]
            first = mine[np.sort(np.unique(mine, return_index=True)[1])]
            assert first.tolist() == list(range(len(first)))


def test_a_threshold_may_be_any_number() -> None:
    assert cluster(SMALL, threshold=np.float32(0.25)).info.threshold == 0.25  # type: ignore[arg-type]
    assert cluster(SMALL, threshold=1).info.chosen == "given"


def test_labels_do_not_depend_on_threads_or_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    table = text_log(prompts=60)
    expected = cluster(table, threads=1)
    assert np.array_equal(cluster(table, threads=3).labels, expected.labels)
    monkeypatch.setattr(rows_module, "_READ_ROWS", 21)
    assert np.array_equal(cluster(table, threads=2).labels, expected.labels)
    assert cluster(table, threads=2).threshold == expected.threshold


def test_scattered_rows_larger_than_memory(tmp_path: Path) -> None:
    table = text_log(prompts=60)
    mixed = table.take(np.random.default_rng(3).permutation(len(table)))
    found = cluster(mixed, threshold=0.2, memory_limit=10_000, temp_dir=tmp_path)
    assert np.array_equal(found.labels, cluster(mixed, threshold=0.2).labels)
    assert list(tmp_path.iterdir()) == []


def test_the_output_is_the_log_with_clusters(tmp_path: Path) -> None:
    table = text_log(prompts=60).append_column("extra", [[[i] for i in range(480)]])
    path = tmp_path / "out.parquet"
    result = cluster(table, path)
    assert result.output == path
    written = pq.read_table(path)
    assert written.column_names == [*table.column_names, "cluster"]
    assert written.drop_columns(["cluster"]).replace_schema_metadata(None).equals(table)
    assert written["cluster"].type == pa.int32()
    assert np.array_equal(written["cluster"].to_numpy(), result.labels)
    assert result.table().equals(written)
    assert [item.name for item in tmp_path.iterdir()] == ["out.parquet"]


def test_the_same_log_gives_the_same_file(tmp_path: Path) -> None:
    table = text_log(prompts=60)
    paths = [tmp_path / name for name in ("a.parquet", "b.parquet")]
    for path, threads in zip(paths, (1, 2), strict=True):
        cluster(table, path, threads=threads)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_log_can_be_written_over_itself(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(text_log(prompts=60), path)
    first = cluster(path, path)
    assert np.array_equal(pq.read_table(path)["cluster"].to_numpy(), first.labels)
    second = cluster(path, path, overwrite=True, features="exact")
    written = pq.read_table(path)
    assert written.column_names.count("cluster") == 1
    assert np.array_equal(written["cluster"].to_numpy(), second.labels)


def test_a_cluster_column_is_not_replaced_unasked(tmp_path: Path) -> None:
    table = text_log(prompts=60).append_column("cluster", pa.array(["old"] * 480))
    with pytest.raises(SchemaError, match=r"column 'cluster': .* already\. Remedy: .*--overwrite"):
        cluster(table, tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())
    other = cluster(table, into="found", threshold=0.2)
    assert other.table().column_names[-2:] == ["cluster", "found"]
    replaced = cluster(table, overwrite=True, threshold=0.2).table()
    assert replaced.column_names == table.column_names
    assert replaced["cluster"].type == pa.int32()


def test_the_metadata_say_how_it_was_done(tmp_path: Path) -> None:
    table = text_log(prompts=60).replace_schema_metadata({b"mine": b"stays"})
    result = cluster(table, tmp_path / "out.parquet", method="complete", seed=3)
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert schema.metadata[b"mine"] == b"stays"
    info = read_clusters(schema)["cluster"]
    assert info == result.info
    assert (info.scope, info.method, info.threshold) == ("prompt", "complete", result.threshold)
    assert info.chosen in ("stability", "default")
    assert info.features["kind"] == "tfidf"
    assert info.features["completion"] == "completion"
    assert info.features["seed"] == 3
    assert info.n_clusters == result.n_clusters == len(partition(result.labels, prompts(table)))
    assert {"pope_fast", "numpy", "pyarrow"} <= set(info.versions)
    second = cluster(tmp_path / "out.parquet", features="exact", into="texts")
    assert set(read_clusters(second.log.schema)) == {"cluster", "texts"}


@pytest.mark.parametrize(
    "stored", [b"", b"no json", b"[]", b'{"cluster": 3}', b'{"cluster": {"scope": "log"}}', b"null"]
)
def test_metadata_of_others_are_no_fault(stored: bytes) -> None:
    schema = pa.schema([("cluster", pa.int32())], metadata={CLUSTERS_KEY: stored})
    assert read_clusters(schema) == {}


def test_metadata_of_later_versions_are_read_as_far_as_they_are_known() -> None:
    entry = {"scope": "log", "method": "kmeans", "invented": 1}
    stored = json.dumps({"cluster": entry, "gone": entry}).encode()
    schema = pa.schema([("cluster", pa.int32())], metadata={CLUSTERS_KEY: stored})
    assert read_clusters(schema) == {"cluster": ClusterInfo("log", "kmeans")}


@pytest.mark.filterwarnings("ignore::pope_fast.errors.PopeWarning")
def test_the_result_can_be_evaluated_at_once() -> None:
    result = cluster(text_log())
    direct = evaluate(result.log, cluster_scope="prompt")
    through_file = evaluate(result.table(), cluster_scope="prompt")
    assert direct["even"].diversity is not None
    assert direct["even"].diversity == through_file["even"].diversity


def test_the_result_describes_itself() -> None:
    result = cluster(text_log())
    text = str(result)
    assert "clusters" in text
    assert "per prompt of 8.00 responses" in text
    assert result.stability is not None
    assert result.stability.reason in text
    json.dumps(result.to_dict(), allow_nan=False)
    assert "960 rows" in repr(result)
    loose = Clustering(result.labels, result.info, "cluster", 960, 120, result.n_clusters)
    with pytest.raises(PopeError, match="separated from its log"):
        loose.table()


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["Raise taxes.", "raise taxes", "no"]).dictionary_encode(),
        pa.array([b"Raise taxes.", b"raise taxes", b"no"]),
        pa.array(["Raise taxes.", "raise taxes", "no"], pa.large_string()),
        pa.array(["Raise taxes.", "raise taxes", "no"], pa.string_view()),
        pa.array([[{"role": "assistant", "content": text}] for text in ("Raise taxes.", "raise taxes", "no")]),
        pa.array(
            [
                [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
                for text in ("Raise taxes.", "raise taxes", "no")
            ]
        ),
    ],
    ids=["dictionary", "bytes", "large", "view", "messages", "parts"],
)
@pytest.mark.parametrize("features", ["normalized", "tfidf"])
def test_text_comes_in_many_types(column: pa.Array, features: str) -> None:
    log = pa.table({"prompt_id": [1, 1, 1], "completion": column})
    assert labels(log, features=features, **({"threshold": 0.2} if features == "tfidf" else {})) == [0, 0, 1]


def test_json_lines_and_csv_are_read(tmp_path: Path) -> None:
    rows = [{"prompt": "tax?", "answer": text} for text in ("Yes.", "yes", "No")]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "log.csv").write_text("prompt,answer\n" + "\n".join(f"{r['prompt']},{r['answer']}" for r in rows))
    for name in ("log.jsonl", "log.csv"):
        found = cluster(
            tmp_path / name, tmp_path / "out.parquet", features="normalized", columns={"completion": "answer"}
        )
        assert found.labels.tolist() == [0, 0, 1]
        assert read_log(tmp_path / "out.parquet").has("cluster")


def test_the_prompts_text_may_be_the_key() -> None:
    log = {"prompt": ["a?", "b?", "a?"], "completion": ["x", "x", "x"]}
    assert labels(log, threshold=0.5) == [0, 0, 0]
    assert cluster(log, threshold=0.5).n_prompts == 2


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ({"prompt_id": [1, 1], "completion": ["a", None]}, r"column 'completion', row 1: missing text"),
        ({"prompt_id": [1, None], "completion": ["a", "b"]}, r"column 'prompt_id', row 1: missing value"),
        ({"prompt_id": [1, 1]}, r"column 'completion': no such column"),
        ({"prompt_id": [1, 1], "completion_ids": [[1], [2]]}, r"token ids \('completion_ids'\) have to be decoded"),
        ({"prompt_id": [1, 1], "completion": [1, 2]}, r"column 'completion': wrong type int64"),
        ({"prompt_id": [1, 1], "completion": [[1], [2]]}, r"decode token ids"),
        ({"prompt_id": [1, 1], "completion": [b"a", b"\xff"]}, r"column 'completion', row 1: bytes that are no UTF-8"),
        ({"completion": ["a", "b"]}, r"no prompt"),
        ({"prompt_id": [1.5, 2.0], "completion": ["a", "b"]}, r"column 'prompt_id': wrong type double"),
    ],
)
def test_a_log_that_cannot_be_clustered(log: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        cluster(log, threshold=0.5)


def test_an_error_names_the_file_and_its_row(tmp_path: Path) -> None:
    for name, texts in (("a", ["x", "y"]), ("b", ["x", None])):
        pq.write_table(pa.table({"prompt_id": [name, name], "completion": texts}), tmp_path / f"{name}.parquet")
    with pytest.raises(SchemaError, match=r"column 'completion', row 3: missing text \(null\) \(row 1 of b\.parquet\)"):
        cluster(tmp_path, features="exact")


def test_faults_of_columns_that_are_not_read_do_not_matter() -> None:
    log = {**SMALL, "reward": [[1.0]] * 6, "behavior_logprob": ["?"] * 6}
    assert labels(log, features="exact") == [0, 1, 2, 0, 1, 0]
    with pytest.raises(SchemaError, match="unknown role"):
        cluster(log, features="exact", columns={"completions": "completion"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "words"}, "scope must be"),
        ({"features": "bert"}, "features must be one of"),
        ({"features": "tfidf", "same": lambda pairs: pairs}, "features and same: say in one way"),
        ({"method": "kmeans"}, "the methods with scope='prompt' are"),
        ({"method": "average", "scope": "log"}, "the methods with scope='log' are"),
        ({"method": "average", "features": "exact"}, "no method to choose"),
        ({"features": "exact", "threshold": 0.5}, "there is none"),
        ({"scope": "log", "threshold": 0.5}, "there is none"),
        ({"threshold": 1.5}, "between -1 and 1"),
        ({"threshold": float("nan")}, "between -1 and 1"),
        ({"threshold": "high"}, "between -1 and 1"),
        ({"threshold": True}, "between -1 and 1"),
        ({"same": lambda pairs: pairs, "threshold": "auto"}, "give a threshold"),
        ({"same": lambda pairs: pairs, "scope": "log"}, "does not work with scope='log'"),
        ({"same": "nli"}, "same must be a function"),
        ({"with_prompt": True}, "with_prompt is for"),
        ({"same": lambda pairs: pairs, "with_prompt": True}, "asked for by with_prompt"),
        ({"same": lambda pairs: pairs, "batch_size": 0}, "batch_size must be"),
        ({"into": "completion", "overwrite": True}, "is what is clustered"),
        ({"into": "prompt_id", "overwrite": True}, "is what is clustered"),
        ({"threads": 0}, "threads must be"),
        ({"seed": -1}, "seed must be"),
        ({"n_clusters": 1, "scope": "log"}, "n_clusters must be"),
        ({"min_cluster_size": 1, "scope": "log"}, "min_cluster_size must be"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PopeError, match=message):
        cluster(SMALL, **options)


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PopeError, match="cannot write"):
        cluster(SMALL, tmp_path / "nowhere" / "out.parquet", features="exact")
