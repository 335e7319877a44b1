from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from log_tables import make_table, read_all

from pope_fast.errors import SchemaError
from pope_fast.log import read_log
from pope_fast.log.columns import preferred_type, resolve

F, N, S, T = pa.float64(), pa.int64(), pa.string(), pa.list_(pa.float32())


def found(fields: dict[str, pa.DataType], *args: Any) -> tuple[dict[str, str], tuple[str, ...], list[str]]:
    resolution = resolve(pa.schema(list(fields.items())), *args)
    return dict(resolution.columns), resolution.policies, [fault.message for fault in resolution.faults]


def test_own_names_are_roles_and_unknown_columns_pass() -> None:
    roles, policies, faults = found(
        {"prompt_id": N, "reward": F, "behavior_logprob": F, "target_logprob/x": F, "shoe_size": F}
    )
    assert roles == {name: name for name in ("prompt_id", "reward", "behavior_logprob", "target_logprob/x")}
    assert policies == ("x",)
    assert faults == []


@pytest.mark.parametrize("alias", ["label", "score", "rating", "upvotes"])
def test_one_alias_is_the_reward(alias: str) -> None:
    roles, _, faults = found({alias: F})
    assert roles == {"reward": alias}
    assert faults == []


def test_the_reward_itself_wins_over_aliases() -> None:
    assert found({"label": F, "reward": F})[0] == {"reward": "reward"}


def test_two_aliases_are_ambiguous_until_mapped() -> None:
    fields = {"label": F, "score": F}
    _, _, faults = found(fields)
    assert faults == ["several columns could be the reward: 'label', 'score'"]
    roles, _, faults = found(fields, {"reward": "score"})
    assert roles == {"reward": "score"}
    assert faults == []


def test_plain_target_is_the_policy_target() -> None:
    roles, policies, _ = found({"target_logprob": F})
    assert policies == ("target",)
    assert roles == {"target_logprob/target": "target_logprob"}
    roles, policies, _ = found({"target_token_logprobs": T, "baseline_mean": F})
    assert policies == ("target",)
    assert roles["baseline_mean/target"] == "baseline_mean"


def test_policy_names_may_hold_slashes_and_dots() -> None:
    assert found({"target_logprob/org/model-4.1": F})[1] == ("org/model-4.1",)


def test_a_column_map_wins_over_own_names() -> None:
    roles, _, faults = found({"reward": F, "stars": F, "cluster": N}, {"reward": "stars"})
    assert roles["reward"] == "stars"
    assert faults == []


def test_naming_token_lists_by_hand_turns_the_sequence_column_off() -> None:
    fields = {"behavior_logprob": F, "mine": T}
    assert found(fields, {"behavior_token_logprobs": "mine"})[0] == {"behavior_token_logprobs": "mine"}
    assert found(fields, {"behavior_logprob": "mine"})[0] == {"behavior_token_logprobs": "mine"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rewrd": "reward"}, "unknown role 'rewrd'"),
        ({"reward": "rewards"}, "no such column in the log (the column map takes it for 'reward')"),
        (
            {"target_logprob": "reward", "target_logprob/target": "reward"},
            "two policies of one name: 'target'",
        ),
    ],
)
def test_mistakes_in_the_column_map(columns: dict[str, str], message: str) -> None:
    with pytest.raises(SchemaError) as error:
        read_log(make_table(), columns=columns)
    assert error.value.message == message
    assert error.value.remedy


def test_policies_as_a_map_are_the_only_ones() -> None:
    fields = {"target_logprob/old": F, "a": F, "b": T}
    roles, policies, faults = found(fields, None, {"new": "a", "tokens": "b"})
    assert policies == ("new", "tokens")
    assert roles == {"target_logprob/new": "a", "target_token_logprobs/tokens": "b"}
    assert faults == []


def test_policies_as_names_select() -> None:
    fields = {"target_logprob/a": F, "target_logprob/b": F, "baseline_mean/a": F}
    roles, policies, _ = found(fields, None, ["b"])
    assert policies == ("b",)
    assert roles == {"target_logprob/b": "target_logprob/b"}
    assert found(fields, None, "a")[1] == ("a",)


def test_a_renamed_policy_replaces_the_one_in_the_log() -> None:
    roles, policies, _ = found({"target_logprob/a": F, "a2": F, "baseline_mean/a": F}, None, {"a": "a2"})
    assert policies == ("a",)
    assert roles == {"target_logprob/a": "a2", "baseline_mean/a": "baseline_mean/a"}


@pytest.mark.parametrize(
    "policies",
    [
        [("a", "target_logprob/near"), ("a", "target_logprob/far")],
        ["near", "near"],
        [("near", "target_logprob/near"), "near"],
    ],
)
def test_two_policies_of_one_name_are_refused(policies: Any) -> None:
    with pytest.raises(SchemaError, match="two policies of one name"):
        read_log(make_table(), policies=policies)


def test_two_columns_of_one_policy_are_refused() -> None:
    table = make_table()
    doubled = pa.Table.from_arrays(
        [*table.columns, table.column("target_logprob/near")],
        names=[*table.column_names, "target_logprob/near"],
    )
    with pytest.raises(SchemaError, match="two policies of one name"):
        read_log(doubled)
    both = make_table(**{"target_logprob": [0.0] * 120, "target_logprob/target": [0.0] * 120})
    with pytest.raises(SchemaError, match="both 'target'"):
        read_log(both)


def test_two_columns_of_one_role_are_refused() -> None:
    table = make_table()
    names = [*table.column_names, "reward"]
    doubled = pa.Table.from_arrays([*table.columns, table.column("reward")], names=names)
    with pytest.raises(SchemaError, match="duplicate column"):
        read_log(doubled)


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        (["nearr"], "no policy 'nearr' in the log"),
        ({"x": "nowhere"}, "no such column in the log"),
        ({"": "target_logprob/near"}, "a policy without a name"),
    ],
)
def test_mistakes_in_the_policies(policies: Any, message: str) -> None:
    with pytest.raises(SchemaError) as error:
        read_log(make_table(), policies=policies)
    assert message in error.value.message


@pytest.mark.parametrize(
    ("role", "type_", "good"),
    [
        ("prompt_id", F, False),
        ("prompt_id", pa.dictionary(pa.int32(), S), True),
        ("prompt_id", pa.string_view(), True),
        ("prompt_id", pa.binary(16), True),
        ("cluster", F, False),
        ("cluster", pa.uint8(), True),
        ("cluster", pa.list_(N), False),
        ("reward", S, False),
        ("reward", pa.bool_(), True),
        ("reward", pa.decimal128(5, 2), True),
        ("behavior_logprob", S, False),
        ("behavior_logprob", N, True),
        ("behavior_logprob", pa.bool_(), False),
        ("behavior_token_logprobs", F, False),
        ("behavior_token_logprobs", pa.list_(S), False),
        ("behavior_token_logprobs", pa.list_(pa.float16(), 4), True),
        ("prompt_ids", pa.large_list(pa.int32()), True),
        ("prompt_ids", T, False),
        ("prompt", pa.list_(pa.struct({"role": S, "content": S})), True),
        ("prompt", F, True),
        ("annotator", F, True),
        ("count", pa.int16(), True),
        ("target_logprob/x", pa.timestamp("s"), False),
    ],
)
def test_types(role: str, type_: pa.DataType, good: bool) -> None:
    _, _, faults = found({role: type_})
    assert (faults == []) is good
    if not good:
        assert "wrong type" in faults[0]


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ("behavior_logprob", "never assumed to be 1"),
        ("reward", "no reward"),
        ("prompt_id", "no prompt"),
    ],
)
def test_a_missing_column_is_reported_when_it_is_needed(dropped: str, message: str) -> None:
    log = read_log(make_table(**{dropped: None}))
    with pytest.raises(SchemaError, match=message):
        log.batches()


def test_no_target_policy() -> None:
    log = read_log(make_table(**{"target_logprob/near": None, "target_logprob/far": None}))
    with pytest.raises(SchemaError, match="no target policy"):
        log.batches()


def test_the_likeliest_column_is_proposed() -> None:
    table = make_table().rename_columns({"behavior_logprob": "behaviour_logprob"})
    with pytest.raises(SchemaError) as error:
        read_log(table).batches()
    assert "{'behavior_logprob': 'behaviour_logprob'}" in str(error.value)


def test_only_wanted_roles_come_and_absent_ones_are_refused() -> None:
    log = read_log(make_table())
    assert "cluster" not in read_all(log, roles=["group"])
    assert "group" in read_all(log, roles=["group"])
    assert {"cluster", "group"} <= set(read_all(log))
    with pytest.raises(SchemaError, match="no such column"):
        log.batches(["baseline"])
    assert log.has("cluster")
    assert log.has("target_logprob/near")
    assert not log.has("baseline")
    assert not log.has("target_logprob/other")


def test_some_policies_only() -> None:
    log = read_log(make_table())
    arrays = read_all(log, policies=["far"])
    assert "target_logprob/far" in arrays
    assert "target_logprob/near" not in arrays
    with pytest.raises(SchemaError):
        log.batches(policies=["other"])


def test_map_is_a_frozen_mapping() -> None:
    columns = read_log(make_table(), columns={"group": "cluster"}).columns
    assert columns["group"] == "cluster"
    assert columns.role_of("reward") == "reward"
    assert columns.role_of("nothing") is None
    with pytest.raises(TypeError):
        columns.roles["group"] = "other"  # type: ignore[index]


def test_preferred_types_of_text_formats() -> None:
    assert preferred_type("reward", N) == F
    assert preferred_type("reward", pa.bool_()) == pa.bool_()
    assert preferred_type("reward", pa.null()) == F
    assert preferred_type("prompt_id", N) == N
    assert preferred_type("cluster", pa.null()) == S
    assert preferred_type("behavior_token_logprobs", pa.list_(N)) == pa.list_(F)
    assert preferred_type("target_token_logprobs/x", pa.null()) == pa.list_(F)
    assert preferred_type("prompt_ids", pa.list_(pa.null())) == pa.list_(N)
    assert preferred_type("sampling", pa.struct({"top_p": N})) == pa.struct({"top_p": F})
    assert preferred_type(None, N) == N
