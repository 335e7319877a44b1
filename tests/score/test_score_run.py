"""From a log and policies to the log with their log-probs: values, rows, columns, metadata, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from score_worlds import naive, naive_sums, token_log

import pope_fast
from pope_fast.errors import PopeError, PopeWarning, SchemaError
from pope_fast.score import ColumnPolicy, HFPolicy, ServerPolicy, jobs, read_provenance, score
from tiny_models import tiny_model, tiny_tokenizer

CHAT = [{"role": "user", "content": "what should we do?"}]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return token_log()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with a tokenizer, and two adapters of the first."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 0), ("two", 1)):
        tiny_model("llama", seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    for name, rank in (("x", 2), ("y", 3)):
        config = LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(tiny_model("llama"), config).save_pretrained(folder / name)
    return folder


def column(log: pope_fast.FeedbackLog, name: str) -> list[Any]:
    values: list[Any] = []
    for batch in log.record_batches([name]):
        values += batch.column(0).to_pylist()
    return values


def test_log_probs_of_stored_ids_in_the_order_of_the_rows(model: Any, table: pa.Table) -> None:
    log = score(table, {"new": model}, token_logprobs=True)
    np.testing.assert_allclose(column(log, "target_logprob/new"), naive_sums(model, table), atol=1e-4)
    tokens = column(log, "target_token_logprobs/new")
    assert [len(row) for row in tokens] == [len(row) for row in table["completion_ids"].to_pylist()]
    expected = naive(model, table["prompt_ids"][4].as_py(), table["completion_ids"][4].as_py())
    np.testing.assert_allclose(tokens[4], expected, atol=1e-4)
    # Sums are of float32 tokens in float64: the same to the last bit as those that evaluation would take.
    assert column(log, "target_logprob/new") == pytest.approx([sum(row) for row in tokens], rel=1e-14)
    assert log.schema.field("target_token_logprobs/new").type == pa.list_(pa.float32())
    assert log.schema.field("target_logprob/new").type == pa.float64()
    assert log.policies == ("new",)
    assert log.warnings == []


def test_every_column_of_the_log_is_kept(model: Any, tmp_path: Path) -> None:
    table = token_log(prompts=3)
    rows = table.num_rows
    table = (
        table.append_column("group", pa.array(["a", "b", None] * (rows // 3)).dictionary_encode())
        .append_column("sampling", pa.array([{"temperature": 1.0, "top_p": None}] * rows))
        .append_column("prompt", pa.array([CHAT] * rows))
        .replace_schema_metadata({"mine": "kept", "huggingface": "features of other columns"})
    )
    path = tmp_path / "log.parquet"
    pq.write_table(table, path, row_group_size=4)
    output = tmp_path / "scored.parquet"
    returned = score(path, {"new": model}, output)
    written = pq.read_table(output)
    assert written.select(table.column_names).to_pylist() == table.to_pylist()
    assert written.column_names == [*table.column_names, "target_logprob/new"]
    assert written.schema.metadata[b"mine"] == b"kept"
    assert b"huggingface" not in written.schema.metadata
    assert column(returned, "target_logprob/new") == written["target_logprob/new"].to_pylist()
    in_memory = score(path, {"new": model})
    assert column(in_memory, "target_logprob/new") == written["target_logprob/new"].to_pylist()
    assert [item.name for item in tmp_path.iterdir() if item.name not in ("log.parquet", "scored.parquet")] == []


def test_the_file_has_the_encodings_that_decode_fast(model: Any, table: pa.Table, tmp_path: Path) -> None:
    score(table, {"new": model}, tmp_path / "scored.parquet", token_logprobs=True)
    group = pq.ParquetFile(tmp_path / "scored.parquet").metadata.row_group(0)
    leaves = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in ("target_logprob/new", "target_token_logprobs/new.list.element", "reward"):
        assert "BYTE_STREAM_SPLIT" in leaves[name].encodings
        assert leaves[name].compression == "ZSTD"
        assert not leaves[name].has_dictionary_page


def test_the_result_can_be_evaluated(model: Any) -> None:
    table = token_log(prompts=40)
    log = score(table.drop(["behavior_logprob"]), {"same": model, "other": tiny_model("llama", seed=3)}, behavior=model)
    evaluation = pope_fast.evaluate(log, reward_range=(0, 1))
    mean = float(np.mean(table["reward"].to_numpy()))
    assert evaluation["same"].utility.value == pytest.approx(mean, abs=1e-3)
    assert "other" in evaluation


def test_jsonl_with_fields_that_come_late(model: Any, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    rows = [{"prompt": CHAT, "completion": "plant trees", "reward": 1, "behavior_logprob": -9} for _ in range(4)]
    rows[3] = {**rows[3], "prompt": [{**CHAT[0], "name": "ann"}], "reward": 0.5}
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    output = tmp_path / "scored.parquet"
    with pytest.warns(PopeWarning, match="tokenized from their text"):
        log = score(path, HFPolicy("new", model, tokenizer), output)
    values = column(log, "target_logprob/new")
    assert len(set(values)) == 1
    written = pq.read_table(output).to_pylist()
    assert written[3]["prompt"][0]["name"] == "ann"
    assert written[3]["reward"] == 0.5


def test_text_is_scored_as_the_template_and_the_end_make_it(model: Any) -> None:
    tokenizer = tiny_tokenizer()
    table = {"prompt": [CHAT, CHAT], "completion": ["plant trees"] * 2, "finish_reason": ["stop", "length"]}
    with pytest.warns(PopeWarning):
        log = score(table, HFPolicy("new", model, tokenizer))
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True)["input_ids"]
    text = tokenizer("plant trees", add_special_tokens=False)["input_ids"]
    expected = [naive(model, prompt, [*text, 2]).sum(), naive(model, prompt, text).sum()]
    np.testing.assert_allclose(column(log, "target_logprob/new"), expected, atol=1e-4)
    made = read_provenance(log.schema)["target_logprob/new"]
    assert (made.tokens, made.prompts, made.eos) == ("retokenized", "template", "by finish_reason")
    assert made.template_hash is not None


def test_provenance_says_how_a_column_was_made(saved: Path, table: pa.Table, model: Any) -> None:
    log = score(table, [HFPolicy("a", saved / "one", temperature=0.5), HFPolicy("b", saved / "two", dtype="bfloat16")])
    a, b = (read_provenance(log.schema)[f"target_logprob/{name}"] for name in "ab")
    assert (a.engine, a.policy, a.model) == ("transformers", "a", str(saved / "one"))
    assert (a.dtype, a.temperature, a.attention, b.dtype) == ("float32", 0.5, "sdpa", "bfloat16")
    assert (a.tokens, a.prompts, a.eos, a.boundary_mismatches) == ("stored", "stored", "as stored", 0)
    assert (a.rows, a.errors) == (table.num_rows, 0)
    assert {"torch", "transformers", "pope_fast"} <= set(a.versions)
    assert a.tokenizer_fingerprint == b.tokenizer_fingerprint is not None
    assert a.template_hash is None
    assert a.model_fingerprint != b.model_fingerprint
    again = score(table, {"c": model}).schema
    assert read_provenance(again)["target_logprob/c"].model_fingerprint == a.model_fingerprint


def test_adapters_of_one_model_are_scored_in_one_load(
    saved: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers
    from peft import PeftModel

    loads: list[str] = []
    load = transformers.AutoModelForCausalLM.from_pretrained

    def counted(source: str, **options: Any) -> Any:
        loads.append(Path(source).name)
        return load(source, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", counted)
    plans: list[Any] = []
    make = jobs.make_plan
    monkeypatch.setattr(jobs, "make_plan", lambda *a, **k: (plans.append(k), make(*a, **k))[1])
    base = str(saved / "one")
    log = score(
        table,
        [
            HFPolicy("x", base, adapter=saved / "x"),
            HFPolicy("two", saved / "two"),
            HFPolicy("base", base),
            HFPolicy("y", base, adapter=saved / "y"),
        ],
    )
    assert loads == ["one", "two"]
    assert len(plans) == 1
    model = load(base)
    np.testing.assert_allclose(column(log, "target_logprob/base"), naive_sums(model, table), atol=1e-4)
    for name in "xy":
        adapted = PeftModel.from_pretrained(load(base), saved / name)
        np.testing.assert_allclose(column(log, f"target_logprob/{name}"), naive_sums(adapted, table), atol=1e-4)
    made = read_provenance(log.schema)
    assert made["target_logprob/x"].adapter == str(saved / "x")
    assert len({made[f"target_logprob/{name}"].model_fingerprint for name in ("x", "y", "base", "two")}) == 4
    assert list(log.policies) == ["x", "two", "base", "y"]


def test_a_loaded_model_is_left_as_it_was(saved: Path, table: pa.Table) -> None:
    loaded = tiny_model("llama")
    loaded.train()
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    score(table, [HFPolicy("x", loaded, adapter=saved / "x"), HFPolicy("base", loaded)])
    assert loaded.training
    assert list(before) == list(loaded.state_dict())
    assert all((before[name] == value).all() for name, value in loaded.state_dict().items())


def test_adapters_of_a_loaded_peft_model_are_named(saved: Path, table: pa.Table) -> None:
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(tiny_model("llama"), saved / "x", adapter_name="x")
    loaded.load_adapter(str(saved / "y"), adapter_name="y")
    loaded.eval()
    log = score(table, [HFPolicy("one", loaded, adapter="y"), HFPolicy("two", loaded)])
    assert loaded.active_adapter == "x"
    np.testing.assert_allclose(column(log, "target_logprob/two"), naive_sums(loaded, table), atol=1e-4)
    loaded.set_adapter("y")
    np.testing.assert_allclose(column(log, "target_logprob/one"), naive_sums(loaded, table), atol=1e-4)
    made = read_provenance(log.schema)
    assert made["target_logprob/one"].model_fingerprint != made["target_logprob/two"].model_fingerprint
    with pytest.raises(PopeError, match=r"no adapter 'z'.*x, y"):
        score(table, HFPolicy("new", loaded, adapter="z"))


def test_an_adapter_with_virtual_tokens_is_refused(saved: Path, table: pa.Table, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path)
    with pytest.raises(PopeError, match="virtual tokens"):
        score(table, HFPolicy("new", saved / "one", adapter=tmp_path))


def test_temperature_divides_the_logits(model: Any, table: pa.Table) -> None:
    log = score(table, [HFPolicy("cold", model, temperature=0.6), HFPolicy("one", model)])
    np.testing.assert_allclose(column(log, "target_logprob/cold"), naive_sums(model, table, 0.6), atol=2e-4)
    np.testing.assert_allclose(column(log, "target_logprob/one"), naive_sums(model, table), atol=1e-4)


def test_the_behavior_policy_is_scored_if_the_log_lacks_it(model: Any, table: pa.Table) -> None:
    lacking = table.drop(["behavior_logprob"])
    log = score(lacking, behavior=model, aa=True, token_logprobs=True)
    expected = naive_sums(model, table)
    for name in ("behavior_logprob", "behavior_logprob_again"):
        np.testing.assert_allclose(column(log, name), expected, atol=1e-4)
        assert read_provenance(log.schema)[name].policy.startswith("behavior")
    assert "behavior_token_logprobs" in log.schema.names
    assert log.policies == ()
    with pytest.raises(PopeError, match="aa=True"):
        score(table, behavior=model)
    again = score(table, {"new": model}, behavior=model, aa=True)
    assert column(again, "behavior_logprob") == table["behavior_logprob"].to_pylist()
    np.testing.assert_allclose(column(again, "behavior_logprob_again"), expected, atol=1e-4)
    evaluation = pope_fast.evaluate(
        score(token_log(40).drop(["behavior_logprob"]), {"new": model}, behavior=model, aa=True),
        aa_policy="behavior_logprob_again",
        reward_range=(0, 1),
    )
    calibration = evaluation["new"].diagnostics.aa
    assert calibration is None or calibration.sd_log_noise < 1e-3


def test_rows_beyond_the_context_have_a_reason_and_no_log_prob(table: pa.Table, tmp_path: Path) -> None:
    short = tiny_model("llama", context=12)
    output = tmp_path / "scored.parquet"
    with pytest.warns(PopeWarning, match="no log-prob"):
        log = score(table, {"new": short}, output, token_logprobs=True)
    totals = sum(np.array([len(ids) for ids in table[name].to_pylist()]) for name in ("prompt_ids", "completion_ids"))
    values, errors = column(log, "target_logprob/new"), column(log, "score_error/new")
    assert [value is None for value in values] == (totals > 12).tolist() == [error is not None for error in errors]
    assert [tokens is None for tokens in column(log, "target_token_logprobs/new")] == (totals > 12).tolist()
    row = int(np.flatnonzero(totals > 12)[0])
    assert errors[row] == f"{totals[row]} tokens of prompt and completion; the context of the model has 12"
    good = totals <= 12
    np.testing.assert_allclose(np.array(values, float)[good], naive_sums(short, table)[good], atol=1e-4)
    made = read_provenance(log.schema)["target_logprob/new"]
    assert made.errors == int((totals > 12).sum())
    assert log.warnings == [warning for warning in log.warnings if f"row {row}:" in warning]
    with pytest.raises(SchemaError, match="null") as caught:
        pope_fast.evaluate(output, reward_range=(0, 1))
    assert (caught.value.column, caught.value.row) == ("target_logprob/new", row)


def test_empty_completions_are_error_rows(model: Any) -> None:
    with pytest.warns(PopeWarning, match="empty completion"):
        log = score({"prompt_ids": [[3], [4]], "completion_ids": [[], [5]]}, {"new": model})
    assert column(log, "target_logprob/new")[0] is None
    assert column(log, "score_error/new") == ["empty completion: there is no token to score", None]


def test_a_log_of_error_rows_alone(model: Any) -> None:
    ids = pa.array([[], []], pa.list_(pa.int32()))
    with pytest.warns(PopeWarning, match="2 of 2 rows"):
        log = score({"prompt_ids": [[3], [4]], "completion_ids": ids}, {"new": model}, token_logprobs=True)
    assert column(log, "target_logprob/new") == [None, None]


def test_a_model_that_gives_nan_gives_error_rows(table: pa.Table) -> None:
    import torch

    broken = tiny_model("llama")
    with torch.no_grad():
        broken.lm_head.weight[5] = float("nan")
    with pytest.warns(PopeWarning, match="NaN"):
        log = score(table, {"new": broken})
    assert column(log, "target_logprob/new") == [None] * table.num_rows


@pytest.mark.parametrize("role", ["prompt", "completion"])
def test_ids_outside_of_the_vocabulary_name_column_and_row(model: Any, role: str) -> None:
    columns = {"prompt_ids": [[3], [4]], "completion_ids": [[5], [6]], "reward": [0.0, 1.0]}
    columns[f"{role}_ids"] = [[5], [96, 97]]
    with pytest.raises(SchemaError, match=r"token id 97.*'new'.*97 tokens") as caught:
        score(columns, {"new": model})
    assert (caught.value.column, caught.value.row) == (f"{role}_ids", 1)
    assert "--retokenize" in (caught.value.remedy or "")


def test_a_tokenizer_that_is_not_the_models(model: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["park!"])
    tokenizer.add_tokens(["pond!"])
    with pytest.raises(PopeError, match="tokenizer of the model"):
        score({"prompt": ["park! "], "completion": ["pond!"]}, HFPolicy("new", model, tokenizer))


def test_a_policy_with_another_tokenizer_scores_the_text(model: Any) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(["the city", "costs"], add_special_tokens=False)["input_ids"]
    log = {"prompt": ["the city"], "prompt_ids": [[1]], "completion": ["costs"], "completion_ids": [[9999]]}
    with pytest.warns(PopeWarning, match="tokenized from their text"):
        made = score(log, HFPolicy("new", model, tokenizer, tokens="text"))
    joint = tokenizer("the citycosts", add_special_tokens=False)["input_ids"]
    assert joint[: len(ids[0])] == ids[0]
    np.testing.assert_allclose(column(made, "target_logprob/new"), [naive(model, ids[0], joint[len(ids[0]) :]).sum()])


def test_columns_can_be_policies(model: Any, table: pa.Table) -> None:
    rows = table.num_rows
    table = table.append_column("old", pa.array([-2] * (rows - 1) + [None]))
    lists = pa.array([[-1.0, -0.5]] * (rows - 2) + [None, []], pa.large_list(pa.float64()))
    table = table.append_column("lists", lists)
    log = score(
        table, [ColumnPolicy("a", "old"), ColumnPolicy("b", "lists"), HFPolicy("c", model)], token_logprobs=True
    )
    assert column(log, "target_logprob/a") == [-2.0] * (rows - 1) + [None]
    assert column(log, "target_logprob/b") == [-1.5] * (rows - 2) + [None, None]
    assert column(log, "target_token_logprobs/b")[0] == [-1.0, -0.5]
    assert "target_token_logprobs/a" not in log.schema.names
    made = read_provenance(log.schema)
    assert (made["target_logprob/a"].engine, made["target_logprob/a"].model) == ("column", "old")
    renamed = score(log, [ColumnPolicy("d", "target_logprob/c")])
    kept = read_provenance(renamed.schema)["target_logprob/d"]
    assert (kept.engine, kept.policy) == ("transformers", "d")
    assert column(renamed, "target_logprob/d") == column(log, "target_logprob/c")
    with pytest.raises(SchemaError, match="no such column"):
        score(table, [ColumnPolicy("e", "older")])
    with pytest.raises(SchemaError, match="NaN or null") as caught:
        score({"lists": [[-1.0], [-1.0, None]]}, [ColumnPolicy("e", "lists")])
    assert (caught.value.column, caught.value.row) == ("lists", 1)
    with pytest.raises(SchemaError, match="numbers"):
        score({"text": ["a"]}, [ColumnPolicy("e", "text")])


def test_log_probs_that_were_there_stay(model: Any, table: pa.Table) -> None:
    first = score(table, {"a": model})
    second = score(first, {"b": model})
    assert second.policies == ("a", "b")
    assert set(read_provenance(second.schema)) == {"target_logprob/a", "target_logprob/b"}
    with pytest.raises(SchemaError, match="already") as caught:
        score(first, {"a": model})
    assert caught.value.column == "target_logprob/a"


def test_roles_and_range_of_the_log_hold_for_the_result(model: Any) -> None:
    table = token_log(20).rename_columns(["who", "prompt_ids", "y", "stars", "behavior_logprob"])
    columns = {"completion_ids": "y", "reward": "stars", "prompt_id": "who"}
    opened = pope_fast.read_log(table, columns=columns, reward_range=(0, 2))
    log = score(opened, {"new": model})
    assert log.columns["reward"] == "stars"
    assert log.declared_range is not None
    assert log.declared_range.high == 2
    assert pope_fast.evaluate(log)["new"].utility.value > 0
    assert score(table, {"new": model}, columns=columns).columns["reward"] == "stars"
    with pytest.raises(PopeError, match="read_log"):
        score(opened, {"new": model}, columns=columns)


@pytest.mark.parametrize(
    ("policies", "options", "message"),
    [
        (None, {}, "no policy"),
        ([], {}, "no policy"),
        ("model", {}, "must be named"),
        (["model"], {}, "is no policy"),
        ({"a": 3}, {}, "cannot score with int"),
        ([ColumnPolicy("a", "reward"), ColumnPolicy("a", "reward")], {}, "two policies of one name"),
        ([ColumnPolicy("a", "reward")], {"aa": True}, "behavior="),
        ([ColumnPolicy("a", "reward")], {"output": "scored.csv"}, r"\.parquet"),
        ([ColumnPolicy("a", "reward")], {"output": "."}, "is a folder"),
    ],
)
def test_what_makes_no_sense_is_refused(table: pa.Table, policies: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PopeError, match=message):
        score(table, policies, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HFPolicy(" ", "m"), "name"),
        (lambda: HFPolicy("a\n", "m"), "name"),
        (lambda: HFPolicy("a", "m", temperature=0.0), "temperature"),
        (lambda: HFPolicy("a", "m", temperature=float("nan")), "temperature"),
        (lambda: HFPolicy("a", "m", dtype="int8"), "dtype"),
        (lambda: ServerPolicy("a", "localhost:8000"), "http"),
    ],
)
def test_policies_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(PopeError, match=message):
        make()


def test_what_cannot_be_loaded(table: pa.Table, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(PopeError, match="cannot be loaded"):
        score(table, {"new": str(tmp_path / "nothing")})
    with pytest.raises(PopeError, match="no tokenizer can be loaded"):
        score(table, HFPolicy("new", saved / "one", processing_class=str(tmp_path)))
    with pytest.raises(PopeError, match="adapter"):
        score(table, HFPolicy("new", saved / "one", adapter=tmp_path))


def test_the_log_itself_is_not_overwritten(model: Any, table: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(table, path)
    before = path.read_bytes()
    with pytest.raises(PopeError, match="the log itself"):
        score(path, {"new": model}, path, overwrite=True)
    assert path.read_bytes() == before


def test_a_log_that_grows_meanwhile(
    model: Any, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(table, path)
    collect = jobs.Work.columns

    def grown(self: Any, tasks: Any) -> Any:
        made = collect(self, tasks)
        pq.write_table(pa.concat_tables([table, table]), path)
        return made

    monkeypatch.setattr(jobs.Work, "columns", grown)
    with pytest.raises((PopeError, SchemaError)):
        score(path, {"new": model}, tmp_path / "scored.parquet")
    assert not (tmp_path / "scored.parquet").exists()


def test_progress_counts_tokens(model: Any, table: pa.Table, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr("pope_fast.log.progress.PATIENCE", 0.0)
    monkeypatch.setattr("pope_fast.log.progress._REFRESH", 0.0)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    score(table, {"new": model}, token_budget=24, progress=True)
    shown = capfd.readouterr().err
    assert "tokens/s" in shown
    assert "new" in shown
    score(table, {"new": model}, progress=False)
    assert "tokens/s" not in capfd.readouterr().err
