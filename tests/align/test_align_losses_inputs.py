"""The batch: what it refuses, and how it adds up, splits and joins."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pope_fast.align.losses import LossInputs, offline_pg_loss
from pope_fast.errors import PopeError, SchemaError


def columns(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "logprob": torch.tensor([-1.0, -2.0, -3.0, -4.0]),
        "behavior_logprob": torch.tensor([-2.0, -2.0, -2.0, -2.0]),
        "reward": torch.tensor([1.0, 0.0, 1.0, 0.5]),
        "prompt": torch.tensor([0, 0, 0, 1]),
    }
    return {**base, **changes}


@pytest.mark.parametrize(
    ("changes", "column", "row", "message"),
    [
        ({"prompt": torch.tensor([0, 1, 0, 1])}, "prompt", 2, "never decrease"),
        ({"prompt": torch.tensor([0, 0, 2, 2])}, "prompt", 2, "leave no index out"),
        ({"prompt": torch.tensor([1, 1, 1, 1])}, "prompt", 0, "start at 0"),
        ({"prompt": torch.tensor([0.0, 0, 0, 1])}, "prompt", None, "int64"),
        ({"reward": torch.tensor([1.0, 0.0])}, "reward", None, "shape"),
        ({"reward": torch.tensor([1.0, float("nan"), 0, 0])}, "reward", 1, "finite"),
        ({"logprob": torch.tensor([-1.0, 0.5, -1, -1])}, "logprob", 1, "at most 0, got 0.5"),
        ({"behavior_logprob": torch.tensor([-1.0, -1, -1, -float("inf")])}, "behavior_logprob", 3, "finite"),
        ({"count": torch.tensor([1.0, 2.0, 0.0, 1.0])}, "count", 2, "whole number"),
        ({"count": torch.tensor([1.0, 2.5, 1.0, 1.0])}, "count", 1, "whole number"),
        ({"cluster": torch.tensor([0, -2, 1, 1])}, "cluster", 1, "at least -1"),
        ({"group": torch.tensor([0, -1, 1, 1])}, "group", 1, "at least 0"),
        ({"quantile": torch.tensor([0.0, 1.2, 1.0, 0.5])}, "quantile", 1, "in \\[0, 1\\]"),
        ({"token_logprobs": torch.zeros(4, 2)}, "token_logprobs", None, "needs mask"),
        ({"token_logprobs": torch.zeros(4, 2), "mask": torch.ones(4, 3)}, "token_logprobs", None, "shape"),
    ],
)
def test_faults_name_column_and_row(changes: dict[str, Any], column: str, row: int | None, message: str) -> None:
    with pytest.raises(SchemaError, match=message) as caught:
        LossInputs(**columns(**changes))
    assert (caught.value.column, caught.value.row) == (column, row)


def test_an_empty_batch_is_none() -> None:
    empty = {name: tensor[:0] for name, tensor in columns().items()}
    with pytest.raises(SchemaError, match="at least one row"):
        LossInputs(**empty)


def test_masked_tokens_may_hold_anything() -> None:
    tokens = torch.tensor([[-1.0, -2.0], [-3.0, float("nan")], [-1.0, 7.0], [-1.0, -1.0]])
    mask = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1]])
    rest = {name: tensor for name, tensor in columns().items() if name != "logprob"}
    batch = LossInputs.from_tokens(tokens, mask, behavior_token_logprobs=torch.zeros(4, 2), **rest)
    assert batch.logprob.tolist() == [-3.0, -3.0, -1.0, -2.0]
    assert batch.lengths.tolist() == [2, 1, 1, 2]
    assert batch.token_log_ratio.tolist() == [[-1, -2], [-3, 0], [-1, 0], [-1, -1]]


def test_sums_and_means_are_of_draws() -> None:
    batch = LossInputs(**columns(count=torch.tensor([1.0, 2.0, 1.0, 3.0])))
    values = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert batch.n_prompts == 2
    assert batch.prompt_draws().tolist() == [4, 3]
    assert batch.prompt_sum(values).tolist() == [8, 12]
    assert batch.prompt_mean(values).tolist() == [2, 4]
    assert float(batch.mean(values)) == 3.0
    assert batch.sum_of_others(values).tolist() == [7, 6, 5, 8]
    assert LossInputs(**columns()).ref_log_ratio.tolist() == [1, 0, -1, -2]
    assert LossInputs(**columns(ref_logprob=torch.full((4,), -4.0))).ref_log_ratio.tolist() == [3, 2, 1, 0]


def test_parts_and_their_concatenation() -> None:
    whole = LossInputs(**columns(cluster=torch.tensor([0, 1, -1, 2]), mask=torch.ones(4, 2, dtype=torch.bool)))
    first, second = whole.prompts(0, 1), whole.prompts(1, 2)
    assert (len(first), len(second), second.prompt.tolist()) == (3, 1, [0])
    again = LossInputs.concatenate([first, second])
    for name in ("logprob", "reward", "prompt", "cluster", "mask"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    assert again.group is None
    short = LossInputs(**columns(mask=torch.ones(4, 1)))
    longer = LossInputs(**columns(mask=torch.ones(4, 3)))
    assert LossInputs.concatenate([short, longer]).lengths.tolist() == [1] * 4 + [3] * 4
    with pytest.raises(SchemaError, match="some parts"):
        LossInputs.concatenate([whole, LossInputs(**columns(mask=torch.ones(4, 2)))])


def test_moving_and_detaching() -> None:
    batch = LossInputs(**columns(logprob=torch.tensor([-1.0, -2, -3, -4], requires_grad=True)))
    assert batch.logprob.requires_grad
    assert not batch.detach().logprob.requires_grad
    assert batch.to("cpu").reward.device.type == "cpu"


def test_single_precision_in_double_precision_out() -> None:
    batch = LossInputs(**columns(logprob=torch.tensor([-1.0, -2, -3, -4], requires_grad=True)))
    loss, _ = offline_pg_loss(batch)
    loss.backward()
    assert loss.dtype == torch.float64
    assert batch.logprob.grad is not None
    assert batch.logprob.grad.dtype == torch.float32


def test_what_is_not_there_is_asked_for() -> None:
    batch = LossInputs(**columns())
    with pytest.raises(SchemaError, match="level='sequence'"):
        _ = batch.token_log_ratio
    with pytest.raises(PopeError, match="num_tokens"):
        _ = batch.lengths
