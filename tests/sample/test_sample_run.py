"""``sample``: the log that it makes, what it says of its origin, and what it refuses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pope_fast.errors import PopeError, PopeWarning, SchemaError
from pope_fast.log import read_log
from pope_fast.sample import sample
from pope_fast.score import HFPolicy, read_provenance, score
from tiny_models import tiny_model, tiny_tokenizer

LOG = pa.table(
    {
        "prompt_id": ["a", "a", "b", "c"],
        "prompt": ["plant trees", "plant trees", "build", "hello world"],
        "completion": ["yes", "no", "maybe", "yes"],
        "completion_ids": [[9, 9, 2], [8] * 6, [7], [9, 2]],
        "finish_reason": ["stop", "length", "stop", "stop"],
        "reward": [1.0, 0.0, 0.5, 0.5],
    }
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return tiny_model(vocab_size=len(tokenizer))


def rows(log: Any) -> pa.Table:
    return pa.Table.from_batches(list(log.record_batches(log.schema.names)))


def test_the_draws_are_a_log(model: Any, tokenizer: Any) -> None:
    table = rows(sample(model, LOG, 3, processing_class=tokenizer, seed=5))
    assert table["prompt_id"].to_pylist() == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert table["prompt"].to_pylist()[::3] == ["plant trees", "build", "hello world"]
    assert table["draw"].to_pylist() == [0, 1, 2] * 3
    assert not {"prompt_ids", "reward", "untruncated_logprob", "behavior_token_logprobs"} & set(table.column_names)
    for row in table.to_pylist():
        ids = row["completion_ids"]
        assert 1 <= len(ids) <= 6  # the log's own limit
        assert (ids[-1] == 2) == (row["finish_reason"] == "stop")
        assert row["completion"] == tokenizer.decode([i for i in ids if i != 2], skip_special_tokens=True)
        assert row["sampling"] == {
            **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
            **{"max_new_tokens": 6, "seed": 5},
        }
        prompt = tokenizer(row["prompt"])["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
        exact = torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids)[:, None]).sum().item()
        assert row["behavior_logprob"] == pytest.approx(exact, abs=1e-4)


def test_draws_of_a_prompt_depend_on_nothing_else(model: Any, tokenizer: Any) -> None:
    def drawn(log: Any, k: int, **options: Any) -> dict[tuple[str, int], list[int]]:
        table = rows(sample(model, log, k, processing_class=tokenizer, max_new_tokens=8, **options))
        keys = zip(table["prompt"].to_pylist(), table["draw"].to_pylist(), strict=True)
        return dict(zip(keys, table["completion_ids"].to_pylist(), strict=True))

    everything = drawn(LOG, 4)
    few = drawn(LOG.slice(2), 2, token_budget=1)
    assert few.items() <= everything.items()
    assert drawn(["hello world"], 4).items() <= everything.items()
    assert not drawn(LOG, 4, seed=1).items() & everything.items()


def test_equal_prompts_under_two_ids_get_draws_of_their_own(model: Any, tokenizer: Any) -> None:
    log = {"prompt_id": [1, 2], "prompt": ["hello", "hello"]}
    ids = rows(sample(model, log, 3, processing_class=tokenizer, max_new_tokens=8))["completion_ids"].to_pylist()
    assert len({tuple(draw) for draw in ids}) == 6


def test_a_truncated_sampler_has_both_log_probs(model: Any, tokenizer: Any) -> None:
    options = {"processing_class": tokenizer, "max_new_tokens": 5, "top_p": 0.7, "temperature": 0.8}
    fresh = sample(model, LOG, 8, token_logprobs=True, **options)
    table = rows(fresh)
    mine, whole = (table[name].to_numpy() for name in ("behavior_logprob", "untruncated_logprob"))
    assert (mine > whole).all()
    sums = [sum(values) for values in table["behavior_token_logprobs"].to_pylist()]
    np.testing.assert_allclose(mine, sums, rtol=1e-12)
    scored = rows(score(table, [HFPolicy("new", model, processing_class=tokenizer, temperature=0.8)]))
    np.testing.assert_allclose(scored["target_logprob/new"].to_numpy(), whole, atol=1e-4)


def test_score_under_other_policies(model: Any, tokenizer: Any) -> None:
    other = tiny_model(vocab_size=len(tokenizer), seed=1)
    under = [HFPolicy(name, m, processing_class=tokenizer) for name, m in (("logger", other), ("new", model))]
    fresh = sample(model, LOG, 4, processing_class=tokenizer, name="new", score_under=under)
    table = rows(fresh)
    np.testing.assert_allclose(table["target_logprob/new"].to_numpy(), table["behavior_logprob"].to_numpy(), atol=1e-4)
    assert fresh.policies == ("logger", "new")
    # The mean log-weight of draws of a policy is a divergence.
    assert (table["behavior_logprob"].to_numpy() - table["target_logprob/logger"].to_numpy()).mean() > 1
    assert set(read_provenance(fresh.schema)) == {"behavior_logprob", "target_logprob/logger", "target_logprob/new"}


def test_where_the_draws_come_from(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "fresh.parquet"
    policy = HFPolicy("new", model, processing_class=tokenizer, temperature=0.9)
    fresh = sample(policy, [[{"role": "user", "content": "hello"}]], 2, path, max_new_tokens=3)
    made = read_provenance(pq.read_schema(path))["behavior_logprob"]
    assert made == read_provenance(fresh.schema)["behavior_logprob"]
    assert (made.policy, made.engine, made.temperature, made.tokens) == ("new", "transformers", 0.9, "sampled")
    assert (made.dtype, made.prompts, made.rows) == ("float32", "template", 2)
    scored = read_provenance(score(fresh, [policy]).schema)["target_logprob/new"]
    assert (scored.model_fingerprint, scored.template_hash) == (made.model_fingerprint, made.template_hash)
    assert fresh.source == str(path)
    assert rows(read_log(path))["sampling"][0]["temperature"].as_py() == 0.9


def test_a_file_is_not_replaced_unless_told_to(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "fresh.parquet"
    options = {"processing_class": tokenizer, "max_new_tokens": 2}
    sample(model, LOG, 1, path, **options)
    with pytest.raises(PopeError, match="exists"):
        sample(model, LOG, 2, path, **options)
    sample(model, LOG, 2, path, overwrite=True, **options)
    assert pq.read_metadata(path).num_rows == 6
    assert [file.name for file in tmp_path.iterdir()] == ["fresh.parquet"]
    with pytest.raises(PopeError, match="Parquet"):
        sample(model, LOG, 1, tmp_path / "fresh.csv", **options)


def test_an_adapter_is_part_of_the_policy(tokenizer: Any, tmp_path: Path) -> None:
    import peft

    def base() -> Any:
        return tiny_model(vocab_size=len(tokenizer))

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapted = peft.get_peft_model(base(), config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    base().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    expected = rows(sample(adapted, LOG, 2, processing_class=tokenizer))
    table = rows(sample(tmp_path / "model", LOG, 2, adapter=tmp_path / "adapter", device="cpu"))
    assert table["completion_ids"].equals(expected["completion_ids"])
    np.testing.assert_allclose(table["behavior_logprob"].to_numpy(), expected["behavior_logprob"].to_numpy(), atol=1e-5)
    plain = rows(sample(tmp_path / "model", LOG, 2, device="cpu"))
    assert not plain["completion_ids"].equals(expected["completion_ids"])


def test_prompts_that_do_not_fit_are_named(tokenizer: Any) -> None:
    short = tiny_model(vocab_size=len(tokenizer), context=16)
    options = {"processing_class": tokenizer}
    with pytest.raises(SchemaError, match="do not fit into the model's context of 16"):
        sample(short, ["hello world yes no maybe"], 1, max_new_tokens=12, **options)
    with pytest.raises(SchemaError, match="outside of the model's vocabulary"):
        sample(short, [[3, 4, 5000]], 1, max_new_tokens=2, **options)


def test_other_settings_of_the_model_are_said(model: Any, tokenizer: Any) -> None:
    import copy

    deployed = copy.deepcopy(model)
    deployed.generation_config.temperature = 0.6
    deployed.generation_config.top_p = 0.9
    options = {"processing_class": tokenizer, "max_new_tokens": 2}
    with pytest.warns(PopeWarning, match=r"settings say temperature 0.6, top_p 0.9; .* with temperature 1, top_p 1"):
        fresh = sample(deployed, ["hello"], 1, **options)
    assert any("temperature 0.6" in note for note in fresh.warnings)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PopeWarning)
        sample(deployed, ["hello"], 1, temperature=0.6, top_p=0.9, **options)
        sample(model, ["hello"], 1, **options)


def test_stop_tokens_are_those_of_model_and_tokenizer(model: Any, tokenizer: Any) -> None:
    import copy

    several = copy.deepcopy(model)
    several.generation_config.eos_token_id = [50, 51]
    options = {"processing_class": tokenizer, "max_new_tokens": 12}
    ends = {
        row["completion_ids"][-1]
        for row in rows(sample(several, LOG, 60, **options)).to_pylist()
        if row["finish_reason"] == "stop"
    }
    assert ends == {2, 50, 51}
    fixed = rows(sample(several, LOG, 20, stop_ids=[], **options))
    assert set(fixed["finish_reason"].to_pylist()) == {"length"}


def test_without_a_tokenizer_there_are_ids_only(model: Any) -> None:
    table = rows(sample(model, [[3, 4], [5]], 2, max_new_tokens=3))
    assert "completion" not in table.column_names
    assert table["prompt_ids"].to_pylist() == [[3, 4], [3, 4], [5], [5]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be"),
        ({"most_prompts": 0}, "prompts must be"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"dtype": "float8"}, "dtype"),
    ],
    ids=str,
)
def test_options_out_of_range(model: Any, options: Any, message: str) -> None:
    with pytest.raises(PopeError, match=message):
        sample(model, [[3, 4]], **{"k": 1, **options})


def test_a_policy_brings_its_own_options(model: Any, tokenizer: Any) -> None:
    with pytest.raises(PopeError, match="its own processing_class"):
        sample(HFPolicy("new", model), ["hello"], processing_class=tokenizer)
    with pytest.raises(PopeError, match="cannot sample from int"):
        sample(3, ["hello"])
