"""The range of the rewards: declared, implied by the type, or observed."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from log_tables import make_table, spoiled

from pope_fast.errors import PopeError, SchemaError
from pope_fast.log import RewardRange, read_log


def test_declared() -> None:
    log = read_log(make_table(), reward_range=(-1, 5))
    assert log.reward_range() == RewardRange(-1.0, 5.0, "declared")
    assert log.declared_range == log.reward_range()


@pytest.mark.parametrize("bad", [(1, 0), (0, 0), (0, np.inf), (np.nan, 1), ("a", 1), (1,), 3])
def test_declared_badly(bad: Any) -> None:
    with pytest.raises(PopeError, match="reward_range"):
        read_log(make_table(), reward_range=bad)


def test_boolean() -> None:
    log = read_log(make_table(reward=[True] * 120))
    assert log.reward_range() == RewardRange(0.0, 1.0, "boolean")


@pytest.mark.parametrize("type_", [pa.float64(), pa.float32(), pa.int8(), pa.decimal128(6, 2)])
@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("kind", ["table", "parquet"])
def test_observed(tmp_path: Path, type_: pa.DataType, statistics: bool, kind: str) -> None:
    rewards = pa.array([Decimal(value) for value in (-2, 3, *[0] * 118)]).cast(type_)
    table = make_table(reward=rewards)
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=50, write_statistics=statistics)
    log = read_log(table if kind == "table" else tmp_path / "log.parquet")
    assert log.reward_range() == RewardRange(-2.0, 3.0, "observed")


def test_the_range_is_that_of_the_values_whatever_the_footer_says(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    rewards = pa.array([0.125, 0.625] * 60)
    options: Any = {"use_dictionary": False, "compression": "NONE", "column_encoding": {"reward": "BYTE_STREAM_SPLIT"}}
    pq.write_table(make_table(reward=rewards), path, **options)
    data = path.read_bytes()
    lied = data.replace(np.float64(0.625).tobytes(), np.float64(0.75).tobytes())  # the values lie byte by byte
    assert lied != data
    path.write_bytes(lied)
    assert pq.ParquetFile(path).metadata.row_group(0).column(4).statistics.max == 0.75
    assert read_log(path).reward_range() == RewardRange(0.125, 0.625, "observed")


def test_zero_has_no_sign() -> None:
    assert str(read_log(make_table(reward=[-0.0] * 120)).reward_range().low) == "0.0"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["table", "parquet"])
def test_rewards_without_a_range(tmp_path: Path, value: float, kind: str) -> None:
    table = spoiled("reward", 70, value)
    path = tmp_path / "log.parquet"
    pq.write_table(table, path, row_group_size=50, write_statistics=bool(np.isinf(value)))
    with pytest.raises(SchemaError) as error:
        read_log(table if kind == "table" else path).reward_range()
    assert (error.value.column, error.value.row) == ("reward", 70)
    assert str(value) in error.value.message


def test_null_and_absent_rewards() -> None:
    with pytest.raises(SchemaError, match="null"):
        read_log(spoiled("reward", 70, None)).reward_range()
    with pytest.raises(SchemaError, match="no reward"):
        read_log(make_table(reward=None)).reward_range()
    with pytest.raises(SchemaError, match="empty"):
        read_log(make_table().slice(0, 0)).reward_range()


def test_the_range_is_of_the_mapped_column() -> None:
    table = make_table(stars=np.linspace(1, 5, 120))
    assert read_log(table, columns={"reward": "stars"}).reward_range() == RewardRange(1.0, 5.0, "observed")
