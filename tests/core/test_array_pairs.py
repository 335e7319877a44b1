"""Diversity from embeddings on arrays."""

from __future__ import annotations

import numpy as np
import pytest
from core_logs import embedded, make

import pope_fast as pope
from pope_fast import ope
from pope_fast.errors import PopeError, SchemaError

LOG = embedded(make(50, np.full(70, 5), rich=False), 50)
ARRAYS = (LOG.target, LOG.behavior, LOG.embedding)


@pytest.mark.parametrize("name", ["rao", "vendi"])
@pytest.mark.parametrize("form", ["pairs", "control"])
def test_it_is_the_number_of_the_evaluation(name, form):
    found = getattr(ope, name)(*ARRAYS, prompt_id=LOG.unit, form=form)
    pairs = LOG.but(reward_range=(0.0, 1.0), reward=np.zeros(len(LOG)), cluster=None).summary()["pairs"]
    expected = next(r for r in pairs["measures" if form == "pairs" else "control"] if r["name"] == name)
    assert found.value == expected["value"]
    assert found.standard_error == expected["standard_error"]
    assert set(found.intervals) == {i["method"] for i in expected["intervals"]}
    assert found.unit == {"rao": "cosine distance", "vendi": "effective kinds"}[name]


def test_rows_in_any_order_and_types_of_any_width():
    order = np.random.default_rng(0).permutation(len(LOG))
    mixed = ope.rao(*(x[order] for x in ARRAYS), prompt_id=LOG.unit[order])
    assert mixed == ope.rao(*ARRAYS, prompt_id=LOG.unit)
    halves = LOG.embedding.astype(np.float16)
    assert ope.rao(*ARRAYS[:2], halves, prompt_id=LOG.unit) == ope.rao(
        *ARRAYS[:2], halves.astype(np.float64), prompt_id=LOG.unit
    )
    assert ope.vendi(*ARRAYS[:2], [[1, 0]] * len(LOG), prompt_id=LOG.unit).value == 1.0


def test_level_and_options_reach_the_state():
    narrow, wide = (ope.rao(*ARRAYS, prompt_id=LOG.unit, level=level).intervals["delta"] for level in (0.5, 0.99))
    assert narrow.width < wide.width
    assert ope.rao(*ARRAYS, prompt_id=LOG.unit, tau=0.5).value != ope.rao(*ARRAYS, prompt_id=LOG.unit).value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embedding": LOG.embedding[:, 0]}, "a row of numbers for each response"),
        ({"embedding": LOG.embedding[:, :0]}, "a row of numbers for each response"),
        ({"embedding": LOG.embedding.astype(str)}, "must hold numbers"),
        ({"embedding": LOG.embedding[:-1]}, "349 elements where reward has 350"),
        ({"prompt_id": None}, "pass prompt_id"),
        ({"prompt_id": np.arange(350)}, "needs at least two units with two or more responses"),
        ({"form": "product"}, "form must be"),
    ],
)
def test_refused(change, words):
    arguments = {"embedding": LOG.embedding, "prompt_id": LOG.unit} | change
    with pytest.raises(PopeError, match=words):
        ope.vendi(LOG.target, LOG.behavior, arguments.pop("embedding"), **arguments)


def test_the_row_at_fault_is_the_callers():
    order = np.random.default_rng(0).permutation(len(LOG))
    vectors = LOG.embedding.copy()
    vectors[7] = np.nan
    with pytest.raises(SchemaError) as caught:
        ope.rao(LOG.target[order], LOG.behavior[order], vectors[order], prompt_id=LOG.unit[order])
    assert caught.value.row == int(np.flatnonzero(order == 7)[0])


def test_they_are_in_the_package():
    assert {"rao", "vendi"} <= set(ope.__all__)
    assert pope.ope is ope
