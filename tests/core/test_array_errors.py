"""What the array functions refuse, in the terms of their caller."""

from __future__ import annotations

import numpy as np
import pytest

from pope_fast import ope
from pope_fast.errors import PopeError, SchemaError


def arrays(n: int = 20) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return -3.0 - rng.uniform(size=n), np.full(n, -3.5), rng.uniform(size=n)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_ope_names_the_bad_row(at):
    given = [x.copy() for x in arrays()]
    given[at][13] = np.nan
    with pytest.raises(SchemaError) as caught:
        ope.sn_tips(*given)
    assert caught.value.row == 13
    assert caught.value.column.split("/")[0] in ("target_logprob", "behavior_logprob", "reward")
    assert caught.value.remedy


def test_ope_sorts_units_but_names_rows_as_given():
    """Rows of a prompt may be apart; the row at fault is the caller's row."""
    target, behavior, reward = arrays()
    reward[13] = 7.0
    prompt = np.arange(20) % 4
    with pytest.raises(SchemaError) as caught:
        ope.snips(target, behavior, reward, prompt_id=prompt, reward_range=(0.0, 1.0))
    assert (caught.value.column, caught.value.row) == ("reward", 13)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t, b, r: ope.ips(t[:5], b, r), "target_logprob"),
        (lambda t, b, r: ope.ips(t, b[:5], r), "behavior_logprob"),
        (lambda t, b, r: ope.ips(t, b, r, prompt_id=np.arange(5)), "prompt_id|unit_key"),
        (lambda t, b, r: ope.ips(t.reshape(4, 5), b, r), "one-dimensional"),
        (lambda t, b, r: ope.ips(t.astype(str), b, r), "numbers"),
        (lambda t, b, r: ope.ips([], [], []), "no rows"),
        (lambda t, b, r: ope.ips(t, b, r, prompt_id=r), "integers or strings"),
        (lambda t, b, r: ope.ips(t, b, r, prompt_id=np.arange(20), cluster=r), "integers or strings"),
        (lambda t, b, r: ope.ips(t, b, r, count=np.full(20, 0.5)), "count"),
        (lambda t, b, r: ope.ips(t, b, r, reward_range=(0.9, 0.1)), "reward_range"),
        (lambda t, b, r: ope.ips(t, b, r, level=1.5), "level"),
        (lambda t, b, r: ope.ips(t, b, r, temperature=2.0), "temperature"),
        (lambda t, b, r: ope.ips(t, b, r, cluster_scope="everywhere", cluster=np.arange(20)), "cluster_scope"),
        (lambda t, b, r: ope.tips(t, b, r, tau=0.0), "tau"),
        (lambda t, b, r: ope.summary(t, b, r, baseline=r), "baseline_mean"),
        (lambda t, b, r: ope.baseline_dr(t, b, r, prompt_id=np.arange(20)), "baseline_dr"),
        (lambda t, b, r: ope.coverage(t, b, np.arange(20), draws=5, prompt_id=np.arange(20) // 5), "draws"),
        (lambda t, b, r: ope.coverage(t, b, np.arange(20), draws=4, prompt_id=np.arange(20) // 2), "responses"),
        (lambda t, b, r: ope.gini_simpson(t, b, np.arange(20), prompt_id=np.arange(20)), "responses"),
        (lambda t, b, r: ope.gini_simpson(t, b, np.arange(20), prompt_id=np.arange(20) // 4, form="x"), "form"),
        (
            lambda t, b, r: ope.entropy_within_prompts(t, b, np.arange(20), prompt_id=np.arange(20) // 4, order=4),
            "order",
        ),
        (lambda t, b, r: ope.ips(t[:1], b[:1], r[:1]), "at least 2"),
        (lambda t, b, r: ope.ips(np.full(20, -np.inf), b, r), "probability 0"),
    ],
)
def test_ope_refuses(call, words):
    with pytest.raises(PopeError, match=words):
        call(*arrays())


def test_ope_refuses_offsets_that_do_not_fit():
    for offsets in ([], [0, 5], [2, 1], [-1, 2]):
        with pytest.raises(SchemaError, match="offsets"):
            ope.sequence_logprob(np.array([-1.0, -2.0, -3.0]), np.array(offsets, dtype=np.int64))


def test_ope_refuses_nan_tokens():
    with pytest.raises(SchemaError) as caught:
        ope.sequence_logprob([-1.0, np.nan, -3.0], [0, 1, 3])
    assert caught.value.row == 1
