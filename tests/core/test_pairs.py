"""Diversity from embeddings: the headline by choice, against the twins, in closed form, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from core_logs import Log, embedded, logs, make, one_hot, ragged
from test_against_reference import SECTIONS, disagreements, section
from twin import Twin

from pope_fast import _core
from pope_fast.errors import OverlapError, PopeError, SchemaError, StateError
from pope_fast.reference import pairs as pr

LOGS = logs()


def record(records: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(r for r in records if r["name"] == name)


CHOICES = {
    "embeddings": ["auto", "h_m", "gini_simpson", "coverage@2", "coverage@4", "entropy", "rao", "vendi"],
    "embeddings, impossible": ["auto", "rao", "vendi"],
    "embeddings, heavy tail": ["rao", "vendi"],
    "embeddings, counts": ["vendi"],
    "embeddings, a prompt's clusters": ["auto", "h_m", "vendi"],
    "few repeated": ["auto", "entropy"],
}
CASES = [(name, choice) for name, choices in CHOICES.items() for choice in choices]


@pytest.mark.parametrize(("name", "choice"), CASES)
def test_headline_by_choice(name, choice):
    found = LOGS[name].summary(diversity=choice, diversity_weight=0.7)
    expected = Twin(LOGS[name], diversity=choice, diversity_weight=0.7).summary()
    assert found["diversity_level"] == expected["diversity_level"]
    for part in SECTIONS:
        assert disagreements(section(found, part), section(expected, part), name) == [], part


OPTIONS: dict[str, dict[str, Any]] = {
    "level": {"level": 0.8},
    "kappa": {"kappa": 1.28},
    "kappa below 1": {"kappa": 0.8},
    "tau": {"tau": 1.5},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("choice", ["rao", "vendi"])
def test_options(choice, option):
    log = LOGS["embeddings, heavy tail"]
    found = log.summary(diversity=choice, **OPTIONS[option])
    expected = Twin(log, diversity=choice, **OPTIONS[option]).summary()
    for part in ("value", "diversity", "pairs", "variance"):
        assert disagreements(section(found, part), section(expected, part), option) == [], part


def test_the_rule():
    """Clusters come first; embeddings stand in where they say nothing."""
    headline = {name: log.summary()["diversity"] for name, log in LOGS.items() if log.embedding is not None}
    names = {name: None if d is None else d["name"] for name, d in headline.items()}
    assert names["embeddings"] == "H_3"
    assert names["one-hot"] == "H_2"
    assert names["embeddings alone"] == names["embeddings, counts"] == "rao"
    assert names["embeddings, one response"] == "entropy"
    assert LOGS["embeddings, one response"].summary()["pairs"] is None
    alone = LOGS["embeddings, one response"].but(cluster=None).summary()
    assert alone["diversity"] is None
    assert alone["diversity_level"] is None


@pytest.mark.parametrize("counts", [1, 5])
def test_one_hot_vectors_are_clusters(counts):
    """Rao is Gini-Simpson and the Vendi score is the inverse Simpson index, whatever the weights."""
    log = one_hot(make(1, ragged(1, 120, 8), largest_count=counts))
    summary = log.summary(diversity_order=1)
    gini = record(summary["prompt"]["control"], "gini_simpson")
    rao, vendi = (record(summary["pairs"]["control"], name) for name in ("rao", "vendi"))
    assert rao["value"] == pytest.approx(gini["value"], rel=1e-13)
    assert vendi["value"] == pytest.approx(1.0 / (1.0 - gini["value"]), rel=1e-13)
    assert rao["standard_error"] == pytest.approx(jackknife_error(log), rel=1e-9)
    # The bounds rest on the same variables: 1 - k is 1 for two clusters, else 0.
    lows = [
        {i["method"]: i["interval"]["low"] for i in r["intervals"]}
        for r in (gini, record(summary["pairs"]["measures"], "rao"))
    ]
    for method in ("robust", "certified"):
        assert lows[0][method] == pytest.approx(lows[1][method], rel=1e-9), method


def jackknife_error(log: Log) -> float:
    twin = Twin(log)
    moments = twin.pair_cut
    assert moments is not None
    found = twin.jackknife_on(moments.used, twin.pair_statistic("rao", 1))
    assert found is not None
    return found.standard_error


def test_one_hot_vectors_with_the_logger_itself():
    """With weights of 1 all forms are one number."""
    log = one_hot(make(2, np.full(90, 5)))
    log = log.but(target=log.behavior)
    summary = log.summary(diversity_order=1)
    gini = record(summary["prompt"]["control"], "gini_simpson")["value"]
    for form in ("measures", "control"):
        assert record(summary["pairs"][form], "rao")["value"] == pytest.approx(gini, rel=1e-13)
        assert record(summary["pairs"][form], "vendi")["value"] == pytest.approx(1.0 / (1.0 - gini), rel=1e-13)


def test_all_alike_and_opposite():
    log = make(3, np.full(60, 4), rich=False)
    alike = log.but(embedding=np.full((240, 7), 0.3, dtype=np.float32), cluster=None)
    values = [r["value"] for r in alike.summary()["pairs"]["measures"]]
    assert values == [0.0, 1.0]
    # Half of the responses point one way and half the other: k^2 is 1, so the score sees one kind; Rao is capped at 1.
    opposite = log.but(embedding=np.tile([[1.0], [-1.0], [1.0], [-1.0]], (60, 1)), cluster=None, target=log.behavior)
    rao, vendi = (r["value"] for r in opposite.summary()["pairs"]["measures"])
    assert rao == 1.0  # 4 / 3 from pairs of different draws, which no distribution can have
    assert vendi == 1.0


@pytest.mark.parametrize("size", [1e-40, 1e-3, 1e5, 1e30])
def test_length_does_not_matter(size):
    """Embeddings count by direction; powers of two leave the bits."""
    log = LOGS["embeddings alone"].but(embedding=LOGS["embeddings alone"].embedding.astype(np.float32))
    power = np.float64(2.0 ** round(np.log2(size)))
    longer = log.but(embedding=log.embedding.astype(np.float64) * power)
    assert repr(longer.summary()) == repr(log.summary())
    values = [
        [r["value"] for r in x.summary()["pairs"]["measures"]] for x in (log, log.but(embedding=log.embedding * 3))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_aggregated_rows_are_repeated_rows():
    log = LOGS["embeddings, counts"]
    assert log.count is not None
    spread = log.rows(np.repeat(np.arange(len(log)), log.count.astype(int))).but(count=None)
    a, b = (section(x.summary(), "pairs") for x in (log, spread))
    assert disagreements(a, b) == []


def test_normalizing_by_pairs_is_sharper_where_all_responses_are_alike():
    """Embeddings of answers to one question share much; with that the control form varies, the shown one does not."""
    log = make(4, np.full(200, 8), rich=False)
    rng = np.random.default_rng(4)
    log = log.but(embedding=1.0 + 0.3 * rng.normal(size=(1600, 16)), cluster=None)
    pairs = log.summary()["pairs"]
    shown, control = (record(pairs[form], "rao")["standard_error"] for form in ("measures", "control"))
    assert shown < 0.2 * control


def test_differences():
    log = LOGS["embeddings alone"]
    state = log.state(policies=["a", "b"])
    other = log.behavior + 0.5 * log.logw
    state.update(
        log.unit,
        log.behavior,
        [log.target, other],
        log.reward,
        group=log.group,
        num_tokens=log.tokens,
        baseline=log.baseline,
        baseline_means=[log.baseline_mean] * 2,
        embedding=log.embedding,
    )
    snapshot = state.snapshot()
    twins = [Twin(x, diversity="vendi", diversity_weight=0.5) for x in (log, log.but(target=other))]
    us, ds = [t.u_statistic() for t in twins], [t.d_statistic() for t in twins]
    (found,) = snapshot.differences(["a", "b"], diversity="vendi", diversity_weight=0.5)
    every = np.ones(twins[0].n, dtype=np.bool_)
    assert found["diversity"]["value"] == pytest.approx(ds[0](every) - ds[1](every), rel=1e-9)
    expected = twins[0].jackknife(lambda kept: ds[0](kept) - ds[1](kept))
    assert expected is not None
    assert found["diversity"]["standard_error"] == pytest.approx(expected.standard_error, rel=1e-8)
    expected = twins[0].jackknife(lambda kept: us[0](kept) - us[1](kept) + 0.5 * (ds[0](kept) - ds[1](kept)))
    assert expected is not None
    assert found["value"]["standard_error"] == pytest.approx(expected.standard_error, rel=1e-8)


def test_one_large_unit_among_small_ones():
    """Beyond 1,024 rows pairs are formed within random blocks: nearly the number of all pairs, in bounded memory."""
    sizes = np.array([3, 1500, 4, 2, 5, 3])
    log = embedded(make(5, sizes, rich=False), 5).but(cluster=None)
    summary, all_pairs = log.summary(), pr.pair_moments(log.logw, log.embedding, log.unit)
    for name, twin in (("rao", pr.rao), ("vendi", pr.vendi)):
        assert record(summary["pairs"]["measures"], name)["value"] == pytest.approx(twin(all_pairs).value, rel=0.02)


# What is refused.


def fed(log: Log, **changes: Any) -> dict[str, Any]:
    return log.but(**changes).summary()


def broken(log: Log, row: int, value: Any) -> Any:
    vectors = log.embedding.copy()
    vectors[row] = value
    return vectors


@pytest.mark.parametrize("row", [0, 3, 400, -1])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.nan, "element 0 of the embedding is NaN"),
        (-np.inf, "element 0 of the embedding is -inf"),
        (0.0, "the embedding is zero, and so has no direction"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_embeddings_without_a_direction(dtype, row, value, problem):
    log = LOGS["embeddings"]
    log = log.but(embedding=broken(log, row, value).astype(dtype))
    with pytest.raises(SchemaError) as caught:
        log.summary()
    assert caught.value.message == problem
    assert caught.value.column == "embedding"
    assert caught.value.row == row % len(log)
    assert caught.value.remedy


def test_columns_that_do_not_fit():
    log = LOGS["embeddings"]
    assert log.embedding is not None
    with pytest.raises(SchemaError, match="columns must be equally long"):
        fed(log, embedding=log.embedding[:-1])
    with pytest.raises(SchemaError, match="vectors without elements"):
        fed(log, embedding=log.embedding[:, :0])
    with pytest.raises(SchemaError, match="not contiguous"):
        fed(log, embedding=log.embedding[:, ::2])
    with pytest.raises(TypeError):
        fed(log, embedding=log.embedding[:, 0])
    with pytest.raises(PopeError, match="'embedding' is missing"):
        log.but(embedding=None).feed(log.state())
    with pytest.raises(PopeError, match="'embedding' was not announced"):
        log.feed(log.but(embedding=None).state())
    with pytest.raises(PopeError, match="row units"):
        log.but(unit=None).state()


def test_widths_that_differ():
    log = LOGS["embeddings"]
    assert log.embedding is not None
    state = log.feed(log.state())
    with pytest.raises(SchemaError, match="3 elements per row where earlier rows have 6"):
        log.but(embedding=np.ascontiguousarray(log.embedding[:, :3])).feed(state)
    here, there = (
        log.but(embedding=np.ascontiguousarray(log.embedding[:, :width])).feed(log.state()) for width in (6, 4)
    )
    with pytest.raises(StateError, match="embeddings of 6 and of 4 elements"):
        here.merge(there)
    # A state that has seen no row has no width yet.
    empty = log.state()
    empty.merge(log.feed(log.state()))
    assert repr(empty.snapshot().summary("p")) == repr(log.summary())


REFUSED = {
    "rao": ("uniform K=8", "needs embeddings"),
    "vendi": ("embeddings, one response", "needs at least two units with two or more responses"),
    "gini": ("embeddings alone", "needs clusters"),
    "h_m": ("one response", "needs at least two units with two or more responses"),
    "coverage@4": ("K=2", "needs 4 responses for nearly all units that have two"),
    "entropy": ("clusters of a prompt", "needs clusters that mean the same in every prompt"),
}


@pytest.mark.parametrize("choice", REFUSED)
def test_choices_that_a_log_cannot_serve(choice):
    name, why = REFUSED[choice]
    with pytest.raises(PopeError, match=why):
        LOGS[name].summary(diversity=choice)


@pytest.mark.parametrize("choice", ["", "shannon", "coverage@1", "coverage@5", "coverage@x", "RAO"])
def test_choices_that_do_not_exist(choice):
    with pytest.raises(PopeError, match="there is no diversity"):
        LOGS["embeddings"].summary(diversity=choice)


def test_no_pair_that_the_policy_could_give():
    """One possible response to each prompt: nothing can be said, and by rule nothing is."""
    log = LOGS["embeddings alone"]
    first = np.concatenate([[True], log.unit[1:] != log.unit[:-1]])
    log = log.but(target=np.where(first, log.target, -np.inf))
    assert log.summary()["pairs"] is None
    assert log.summary()["diversity"] is None
    with pytest.raises(OverlapError, match="no unit has two responses that the policy could give"):
        log.summary(diversity="rao")


def test_nothing_is_counted_after_an_error():
    log = LOGS["embeddings"]
    state = log.state()
    with pytest.raises(SchemaError):
        log.but(embedding=broken(log, 500, np.nan)).feed(state)
    with pytest.raises(PopeError, match="earlier update failed"):
        state.snapshot()


def test_state_says_what_it_needs():
    with pytest.raises(TypeError):
        _core.State(["p"], (0.0, 1.0), has_embeddings=True)  # type: ignore[call-arg]
