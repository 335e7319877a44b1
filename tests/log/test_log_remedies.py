"""Remedies exist and help: they name the column that is meant, and never one that would make a wrong log pass."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from log_tables import make_table

from pope_fast.errors import PopeError, SchemaError
from pope_fast.evaluate import evaluate
from pope_fast.log import read_log, validate
from pope_fast.log.columns import kind_of
from pope_fast.log.remedies import likely_column, missing_column, reward_words

N = 120


@pytest.mark.parametrize(
    ("role", "names", "column"),
    [
        ("behavior_logprob", ["old_logprobs"], "old_logprobs"),
        ("behavior_logprob", ["Behaviour-LogProb", "old_logprobs"], "Behaviour-LogProb"),
        ("behavior_logprob", ["behavior_log_prob"], "behavior_log_prob"),
        ("target_logprob", ["new_logprobs", "old_logprobs"], "new_logprobs"),
        ("target_logprob/mine", ["policy_logprob"], "policy_logprob"),
        ("reward", ["rewrd", "notes"], "rewrd"),
        ("reward", ["stars"], "stars"),
        ("prompt_id", ["question_id"], "question_id"),
        ("completion", ["responses"], "responses"),
        ("cluster", ["clusters"], "clusters"),
        ("user", ["users", "item"], "users"),
        ("reward", ["prompt", "completion", "notes"], None),
    ],
)
def test_the_column_that_is_meant(role: str, names: list[str], column: str | None) -> None:
    assert likely_column(role, names) == column


@pytest.mark.parametrize(
    "names",
    [
        ["target_logprob"],
        ["target_logprob/behavior"],
        ["target_token_logprobs/behavior_logprob"],
        ["target_logp", "target_behavior_logprob"],
        ["new_logprob", "eval_logprob"],
    ],
)
def test_a_target_is_never_proposed_as_the_behavior_policy(names: list[str]) -> None:
    remedy = missing_column("behavior_logprob", names).remedy
    assert remedy is not None
    assert all(name not in remedy for name in names)
    assert "YOUR_COLUMN" in remedy


def test_a_mapped_column_is_not_corrected_to_a_target() -> None:
    table = make_table(behavior_logprob=None)
    with pytest.raises(SchemaError) as error:
        read_log(table, columns={"behavior_logprob": "targt_logprob/near"})
    assert "did you mean" not in str(error.value)
    with pytest.raises(SchemaError, match="did you mean 'target_logprob/near'"):
        read_log(table, policies={"near": "targt_logprob/near"})


@pytest.mark.parametrize(
    "asked", [{"unit": "userr"}, {"aa_policy": "again"}], ids=lambda asked: next(iter(asked)) if asked else ""
)
def test_no_role_is_mapped_that_does_not_exist(asked: dict[str, Any]) -> None:
    with pytest.raises(SchemaError) as error:
        evaluate(make_table(user=list(range(N))), **asked)
    for role in re.findall(r"columns=\{'([^']+)'", str(error.value)):
        assert kind_of(role) is not None
    assert "user" in str(error.value.remedy)


def test_every_remedy_for_a_missing_role_can_be_followed() -> None:
    """What the error proposes, passed to the same call, is accepted."""
    table = make_table()
    for role in ("behavior_logprob", "reward", "prompt_id"):
        other = table.rename_columns([f"my_{name}" if name == role else name for name in table.column_names])
        with pytest.raises(SchemaError) as error:
            evaluate(other)
        given = re.search(r"columns=\{'(\w+)': '(\w+)'\}", str(error.value.remedy))
        assert given is not None
        assert evaluate(other, columns={given[1]: given[2]})["near"].utility.value is not None


def test_options_for_a_log_that_is_open_are_refused() -> None:
    log = read_log(make_table())
    for call in (evaluate, validate):
        with pytest.raises(PopeError, match="belong"):
            call(log, columns={"reward": "reward"})


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["yes", "no"], [1, 0]),
        (["No", "YES "], [0, 1]),
        (["thumbs up", "thumbs_down"], [1, 0]),
        (["👍", "👎"], [1, 0]),
        (["good", "bad"], [1, 0]),
        (["win", "lose", "tie"], [1, 0, 0.5]),
        (["chosen", "rejected"], [1, 0]),
        (["great", "poor"], None),
        (["yes", "perhaps"], None),
        ([], None),
    ],
)
def test_words_of_approval(words: list[str], numbers: list[float] | None) -> None:
    assert reward_words(words) == (None if numbers is None else dict(zip(words, numbers, strict=True)))


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_the_line_for_a_reward_of_words_works(type_: pa.DataType) -> None:
    table = make_table(reward=pa.array(["yes", "no", "no"] * (N // 3)).cast(type_))
    with pytest.raises(SchemaError) as error:
        read_log(table)
    assert "'no' (80), 'yes' (40)" in error.value.message
    assert validate(table).faults[0].remedy == error.value.remedy
    frame = pd.DataFrame({"reward": ["yes", "no", "no"] * (N // 3)})
    line = str(error.value.remedy).partition(": ")[2]
    exec(line, {"frame": frame})
    assert frame["reward"].sum() == N // 3


def test_numbers_written_as_text() -> None:
    with pytest.raises(SchemaError, match=r"astype\(float\)"):
        read_log(make_table(reward=["1", "0.5", "-2e-1"] * (N // 3)))


def test_other_words_are_shown_and_left_to_the_reader() -> None:
    words = [f"word {i}\x1b[2J" for i in range(N)]
    with pytest.raises(SchemaError) as error:
        read_log(make_table(reward=words))
    assert "and 114 more" in error.value.message
    assert "\x1b" not in str(error.value)
    assert "NUMBER1" in str(error.value.remedy)


def test_a_reward_of_another_wrong_type_keeps_its_remedy() -> None:
    with pytest.raises(SchemaError, match="cast the column to numbers or booleans"):
        read_log(make_table(reward=[[1.0]] * N))
