"""What is refused: with the column, the row within the call and a remedy."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from core_logs import Log, make

from pope_fast import _core
from pope_fast.errors import OverlapError, PopeError, SchemaError

N, K = 60, 5
ROWS = N * K
# In the first prompt, inside, and in the last one, which may go on in the next call.
PLACES = (0, 2, 7, 151, ROWS - K, ROWS - 1)


@pytest.fixture
def log() -> Log:
    return make(0, np.full(N, K)).but(count=np.ones(ROWS), reward_range=(-1.0, 3.0))


def spoiled(log: Log, column: str, row: int, value: float) -> Log:
    values = np.array(getattr(log, column))
    values[row] = value
    return log.but(**{column: values})


BAD_VALUES = [
    ("behavior", np.nan, "behavior_logprob", "NaN"),
    ("behavior", np.inf, "behavior_logprob", "above 0"),
    ("behavior", -np.inf, "behavior_logprob", "-inf"),
    ("behavior", 0.01, "behavior_logprob", "above 0"),
    ("behavior", -1.1e6, "behavior_logprob", "mask"),
    ("target", np.nan, "target_logprob/p", "NaN"),
    ("target", np.inf, "target_logprob/p", "above 0"),
    ("target", 0.5, "target_logprob/p", "above 0"),
    ("target", -1e9, "target_logprob/p", "mask"),
    ("reward", np.nan, "reward", "NaN"),
    ("reward", np.inf, "reward", "inf"),
    ("reward", -np.inf, "reward", "-inf"),
    ("reward", 3.0001, "reward", "outside"),
    ("reward", -1.5, "reward", "outside"),
    ("count", 0.0, "count", "whole"),
    ("count", 1.5, "count", "whole"),
    ("count", -2.0, "count", "whole"),
    ("count", np.nan, "count", "whole"),
    ("count", np.inf, "count", "whole"),
    ("tokens", -1.0, "num_tokens", "token count"),
    ("tokens", np.nan, "num_tokens", "token count"),
    ("baseline", np.nan, "baseline", "prediction"),
    ("baseline", 1e9, "baseline", "prediction"),
    ("baseline_mean", np.inf, "baseline_mean", "prediction"),
]


@pytest.mark.parametrize("row", PLACES)
@pytest.mark.parametrize(("field", "value", "column", "words"), BAD_VALUES)
def test_bad_value(log, field, value, column, words, row):
    """Refused at once, wherever it stands in the call."""
    with pytest.raises(SchemaError) as caught:
        spoiled(log, field, row, value).feed(log.state())
    error = caught.value
    assert error.column == column
    assert error.row == row
    assert words in str(error)
    assert error.remedy
    assert f"row {row}" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("row", PLACES)
@pytest.mark.parametrize(
    ("field", "value", "column"), [(f, v, c) for f, v, c, _ in BAD_VALUES if f in ("target", "reward")]
)
def test_bad_value_where_rows_are_units(log, field, value, column, row):
    log = log.but(unit=None)
    with pytest.raises(SchemaError) as caught:
        spoiled(log, field, row, value).feed(log.state())
    assert (caught.value.column, caught.value.row) == (column, row)


def test_bad_value_in_a_later_call(log):
    """The row is counted from the start of the call, not of the log."""
    state = log.state()
    log.rows(np.arange(0, 103)).feed(state)
    rest = spoiled(log.rows(np.arange(103, ROWS)), "reward", 1, np.nan)
    with pytest.raises(SchemaError) as caught:
        rest.feed(state, first_row=103)
    assert caught.value.row == 1


def test_bad_value_in_single_precision(log):
    reward = log.reward.astype(np.float32)
    reward[33] = np.nan
    with pytest.raises(SchemaError) as caught:
        log.but(reward=reward).feed(log.state())
    assert (caught.value.column, caught.value.row) == ("reward", 33)


def test_the_second_policy_is_named():
    log = make(0, np.full(N, K), rich=False)
    target = log.target.copy()
    target[100] = np.nan
    state = log.state(policies=["good", "bad one"])
    with pytest.raises(SchemaError) as caught:
        state.update(log.unit, log.behavior, [log.target, target], log.reward, cluster=log.cluster)
    assert (caught.value.column, caught.value.row) == ("target_logprob/bad one", 100)


def test_many_threads_name_a_bad_row():
    n = 400_000
    reward = np.zeros(n)
    reward[300_001] = np.nan
    state = _core.State(["p"], (0.0, 1.0))
    zeros = np.zeros(n)
    with pytest.raises(SchemaError) as caught:
        state.update(np.repeat(np.arange(n // 4), 4), zeros, [zeros], reward, threads=4)
    assert caught.value.row == 300_001


def test_allowed_values(log):
    """Impossible under the target is weight 0; the edges of the reward range and a rounding above 0 are no faults."""
    target, reward, behavior = log.target.copy(), log.reward.copy(), log.behavior.copy()
    target[7], reward[8], reward[9], behavior[10], target[11] = -np.inf, -1.0, 3.0, 5e-5, 5e-5
    log.but(target=target, reward=reward, behavior=behavior).summary()


def test_failed_state_is_not_used_again(log):
    """What a failed call has counted is not known, so nothing may be read from it."""
    state = log.state()
    with pytest.raises(SchemaError):
        spoiled(log, "reward", 151, np.nan).feed(state)
    whole = log.feed(log.state())
    for use in (
        lambda: log.feed(state),
        state.snapshot,
        state.to_bytes,
        lambda: whole.merge(state),
        lambda: state.merge(whole),
    ):
        with pytest.raises(PopeError, match="failed"):
            use()
    assert whole.snapshot().summary("p")["diagnostics"]["n_rows"] == ROWS


@pytest.mark.parametrize(
    ("field", "column"),
    [
        ("unit", "unit_key"),
        ("behavior", "behavior_logprob"),
        ("target", "target_logprob"),
        ("cluster", "cluster"),
        ("group", "group"),
        ("count", "count"),
        ("tokens", "num_tokens"),
        ("baseline", "baseline"),
        ("baseline_mean", "baseline_mean"),
    ],
)
def test_lengths(log, field, column):
    state = log.state()
    with pytest.raises(SchemaError, match=column.split("_")[0]) as caught:
        log.but(**{field: getattr(log, field)[:-1]}).feed(state)
    assert str(ROWS - 1) in str(caught.value)
    assert str(ROWS) in str(caught.value)
    # Nothing was counted, so the state is as good as before.
    log.feed(state)
    assert state.n_rows == ROWS


@pytest.mark.parametrize("field", ["unit", "behavior", "target", "reward", "cluster", "group", "count", "tokens"])
def test_strided_arrays(log, field):
    with pytest.raises(SchemaError, match="contiguous"):
        log.but(**{field: np.repeat(getattr(log, field), 2)[::2]}).feed(log.state())


@pytest.mark.parametrize(
    ("field", "dtype"),
    [
        ("unit", np.float64),
        ("unit", np.uint64),
        ("behavior", np.int64),
        ("target", np.float16),
        ("reward", np.bool_),
        ("cluster", np.float64),
        ("group", np.uint8),
        ("count", np.int64),
        ("tokens", np.float32),
    ],
)
def test_dtypes(log, field, dtype):
    """The border takes what it reads without a copy and nothing else."""
    with pytest.raises((TypeError, SchemaError)):
        log.but(**{field: getattr(log, field).astype(dtype)}).feed(log.state())


def test_two_dimensional(log):
    with pytest.raises((TypeError, SchemaError)):
        log.but(reward=log.reward.reshape(N, K)).feed(log.state())


@pytest.mark.parametrize("field", ["unit", "cluster", "group", "tokens", "baseline"])
def test_announced_columns_must_come(log, field):
    with pytest.raises(PopeError, match="missing"):
        log.but(**{field: None}).feed(log.state())


def test_unannounced_columns_are_refused(log):
    state = _core.State(["p"], log.reward_range)
    with pytest.raises(PopeError, match="not announced"):
        state.update(log.unit, log.behavior, [log.target], log.reward, cluster=log.cluster)


def test_one_target_column_per_policy(log):
    state = _core.State(["p", "q"], log.reward_range)
    with pytest.raises(PopeError, match="1 target columns for 2 policies"):
        state.update(log.unit, log.behavior, [log.target], log.reward)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (([], (0.0, 1.0)), {}, "at least one"),
        ((["a", "b", "a"], (0.0, 1.0)), {}, "two policies are named 'a'"),
        ((["a"], (1.0, 1.0)), {}, "low < high"),
        ((["a"], (2.0, 1.0)), {}, "low < high"),
        ((["a"], (0.0, np.inf)), {}, "finite"),
        ((["a"], (np.nan, 1.0)), {}, "finite"),
        ((["a"], (-1e308, 1e308)), {}, "finite"),
        ((["a"], (0.0, 1.0)), {"tail_capacity": 0}, "tail_capacity"),
        ((["a"], (0.0, 1.0)), {"tail_capacity": 1 << 30}, "tail_capacity"),
        ((["a"], (0.0, 1.0)), {"cluster_scope": "Log"}, "cluster_scope"),
        ((["a"], (0.0, 1.0)), {"cluster_scope": ""}, "cluster_scope"),
    ],
)
def test_configurations(arguments, options, words):
    with pytest.raises(PopeError, match=words):
        _core.State(*arguments, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"level": 0.0},
        {"level": 1.0},
        {"level": 95},
        {"level": float("nan")},
        {"diversity_weight": -1.0},
        {"diversity_weight": float("inf")},
        {"diversity_order": 0},
        {"diversity_order": 4},
        {"tau": 0.0},
        {"tau": -1.0},
        {"tau": float("nan")},
        {"kappa": 0.0},
        {"kappa": float("inf")},
        {"temperature": 1.0},
    ],
)
def test_options(log, options):
    snapshot = log.feed(log.state()).snapshot()
    with pytest.raises(PopeError, match=next(iter(options))):
        snapshot.summary("p", **options)
    with pytest.raises(PopeError, match=next(iter(options))):
        snapshot.differences(["p"], **options)


def test_levels_of_the_behavior(log):
    snapshot = log.feed(log.state()).snapshot()
    for level in (0.0, 1.0, 2.0, -0.5):
        with pytest.raises(PopeError, match="level"):
            snapshot.behavior(level=level)


def test_unknown_policy(log):
    snapshot = log.feed(log.state()).snapshot()
    with pytest.raises(PopeError, match="no policy 'x'"):
        snapshot.summary("x")
    with pytest.raises(PopeError, match="no policy 'x'"):
        snapshot.differences(["p", "x"])


def test_too_little_to_say_anything(log):
    empty = log.state()
    with pytest.raises(PopeError, match="at least 2"):
        empty.snapshot().summary("p")
    one = log.rows(np.arange(K)).feed(log.state())
    with pytest.raises(PopeError, match="at least 2"):
        one.snapshot().summary("p")


def test_a_policy_that_never_answers_like_this(log):
    with pytest.raises(OverlapError, match="probability 0 under policy 'p'"):
        log.but(target=np.full(ROWS, -np.inf)).summary()


def test_counts_for_all_rows_or_none(log):
    state = log.state()
    log.rows(np.arange(100)).feed(state)
    with pytest.raises(PopeError, match="count"):
        log.rows(np.arange(100, ROWS)).but(count=None).feed(state)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads(log, threads):
    with pytest.raises((PopeError, OverflowError)):
        log.feed(log.state(), threads=threads)


def test_negative_first_row(log):
    with pytest.raises((PopeError, OverflowError)):
        log.but(unit=None).feed(log.but(unit=None).state(), first_row=-1)
