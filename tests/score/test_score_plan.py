from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pope_fast.errors import PopeError, SchemaError
from pope_fast.score import plan as plans
from pope_fast.score import tokens
from pope_fast.score.plan import Plan, TokenLists, make_plan

RAGGED = st.lists(st.integers(0, 3), min_size=1, max_size=4)


def many(seed: int = 0, n_prompts: int = 40, most: int = 9) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return prompts with up to ``most`` completions each, lengths as skewed as real ones."""
    rng = np.random.default_rng(seed)
    prompts, completions = [], []
    for _ in range(n_prompts):
        prompt = rng.integers(0, 1000, int(rng.lognormal(3, 1)) + 1)
        for _ in range(rng.integers(1, most + 1)):
            prompts.append(prompt)
            completions.append(rng.integers(0, 1000, int(rng.lognormal(3, 1)) + 1))
    return prompts, completions


def padded(plan: Plan) -> tuple[int, int]:
    """Return padded and real tokens of all calls."""
    prompt, length = plan.prompt_lengths, plan.completion_lengths
    total = real = 0
    for batch in plan:
        if not batch.shared:
            sizes = (prompt + length)[batch.pairs]
            total, real = total + int(sizes.max()) * sizes.size, real + int(sizes.sum())
            continue
        own = plan.prompts.lengths[np.unique(plan.pair_prompt[batch.pairs])]
        total, real = total + int(own.max()) * own.size, real + int(own.sum())
        for chunk in batch.chunks:
            sizes = length[batch.pairs[chunk]]
            total, real = total + int(sizes.max()) * sizes.size, real + int(sizes.sum())
    return total, real


@given(st.lists(st.tuples(RAGGED, RAGGED), max_size=40), st.integers(1, 40), st.sampled_from(["auto", True, False]))
@settings(max_examples=150, deadline=None)
def test_every_row_finds_its_pair_and_every_pair_is_scored_once(
    table: list[tuple[list[int], list[int]]], budget: int, share: Any
) -> None:
    plan = make_plan([p for p, _ in table], [c for _, c in table], token_budget=budget, share_prompt=share)
    for (prompt, completion), pair in zip(table, plan.inverse.tolist(), strict=True):
        assert plan.prompts[int(plan.pair_prompt[pair])].tolist() == prompt
        assert plan.completions[int(plan.pair_completion[pair])].tolist() == completion
    assert plan.n_pairs == len({(tuple(p), tuple(c)) for p, c in table})
    batches = list(plan)
    scored = np.concatenate([batch.pairs for batch in batches]) if batches else np.empty(0, np.int64)
    assert sorted(scored.tolist()) == list(range(plan.n_pairs))
    for batch in batches:
        parts = [list(range(batch.pairs.size))[chunk] for chunk in batch.chunks]
        assert [pair for part in parts for pair in part] == list(range(batch.pairs.size))
        assert all(parts)


@pytest.mark.parametrize("share", ["auto", True, False])
@pytest.mark.parametrize("budget", [64, 512, 4096])
def test_a_call_exceeds_the_budget_only_for_a_single_pair_or_prompt(share: Any, budget: int) -> None:
    plan = make_plan(*many(), token_budget=budget, share_prompt=share)
    for batch in plan:
        prompt, length = plan.prompt_lengths[batch.pairs], plan.completion_lengths[batch.pairs]
        if batch.shared:
            own = np.unique(plan.pair_prompt[batch.pairs])
            assert own.size == 1 or own.size * prompt.max() <= budget
            assert all(
                length[chunk].size == 1 or length[chunk].max() * length[chunk].size <= budget for chunk in batch.chunks
            )
        else:
            assert batch.pairs.size == 1 or batch.pairs.size * (prompt + length).max() <= budget


def test_sorting_leaves_little_padding() -> None:
    prompts, completions = many(n_prompts=2000)
    for share, most in (("auto", 1.15), (False, 1.03)):
        total, real = padded(make_plan(prompts, completions, token_budget=4096, share_prompt=share))
        assert total < most * real


def test_prompts_are_shared_where_that_saves_tokens() -> None:
    long, short, once = [1] * 100, [2] * 2, [3] * 100
    prompts = [long] * 4 + [short] * 2 + [once]
    completions = [[i] * 10 for i in range(7)]
    plan = make_plan(prompts, completions)
    shared = {int(pair) for batch in plan if batch.shared for pair in batch.pairs}
    assert shared == {0, 1, 2, 3}  # two tokens of 24 are no saving, and a single completion saves nothing
    assert all(batch.shared for batch in make_plan(prompts, completions, share_prompt=True))
    assert not any(batch.shared for batch in make_plan(prompts, completions, share_prompt=False))
    generous = make_plan(prompts, completions, min_saving=0.05)
    assert {int(pair) for batch in generous if batch.shared for pair in batch.pairs} == {0, 1, 2, 3, 4, 5}


def test_identical_completions_of_a_prompt_do_not_count_as_sharing() -> None:
    plan = make_plan([[1] * 50] * 5, [[7, 8]] * 5)
    assert plan.n_pairs == 1
    assert not plan[0].shared


def test_a_prompt_with_very_many_completions_is_spread_over_batches() -> None:
    plan = make_plan([[1] * 30] * 1000, [[i % 50, i // 50] * 5 for i in range(1000)], token_budget=100)
    assert len(plan) >= 10_000 // 800
    assert max(int(plan.completion_lengths[batch.pairs].sum()) for batch in plan) <= 800


def test_equal_hashes_do_not_merge_different_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    table = [([1, 2], [3]), ([1, 2], [4]), ([2, 1], [3]), ([1, 2], [3]), ([1], [3]), ([1, 2, 0], [4]), ([1], [3])]
    honest = make_plan(*zip(*table, strict=True))
    monkeypatch.setattr(tokens, "_hashes", lambda _lists, rows: np.zeros(rows.size, np.uint64))
    collided = make_plan(*zip(*table, strict=True))
    assert collided.inverse.tolist() == honest.inverse.tolist() == [0, 1, 2, 0, 3, 4, 3]
    assert collided.fingerprint == honest.fingerprint


def test_rows_are_compared_and_copied_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, completions = many()
    whole = make_plan(prompts * 2, completions * 2)
    monkeypatch.setattr(tokens, "_BLOCK_TOKENS", 37)
    assert make_plan(prompts * 2, completions * 2).fingerprint == whole.fingerprint
    assert whole.n_rows == 2 * len(prompts) >= 2 * whole.n_pairs


def test_excluded_rows_are_neither_read_nor_scored() -> None:
    prompts, completions = [[1, 2], [], [-5], [1, 2]], [[3], [4], [5], []]
    plan = make_plan(prompts, completions, excluded=[False, True, True, True])
    assert plan.inverse.tolist() == [0, -1, -1, -1]
    assert plan.n_pairs == 1
    assert plan.largest_id == 3
    nothing = make_plan(prompts, completions, excluded=np.ones(4, bool))
    assert len(nothing) == nothing.n_pairs == nothing.most_tokens == nothing.batch_tokens.size == 0
    assert list(nothing) == []
    assert len(make_plan([], [])) == 0


def test_the_fingerprint_is_of_rows_and_options() -> None:
    prompts, completions = many()
    plan = make_plan(prompts, completions)
    flat = make_plan(TokenLists.of(prompts), [list(map(int, completion)) for completion in completions])
    assert flat.fingerprint == plan.fingerprint
    assert [batch.pairs.tolist() for batch in flat] == [batch.pairs.tolist() for batch in plan]
    changed = [completion.copy() for completion in completions]
    changed[7][0] += 1
    moved = [prompts[1], prompts[0], *prompts[2:]], [completions[1], completions[0], *completions[2:]]
    excluded = np.arange(len(prompts)) == 3
    others = [
        make_plan(prompts, changed),
        make_plan(*moved),
        make_plan(prompts, completions, excluded=excluded),
        make_plan(prompts, completions, token_budget=4095),
        make_plan(prompts, completions, share_prompt=False),
        make_plan(prompts, completions, min_saving=0.2),
        make_plan(prompts[:-1], completions[:-1]),
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


def test_a_saved_plan_is_the_same_plan(tmp_path: Path) -> None:
    plan = make_plan(*many())
    plan.save(tmp_path / "plan")
    loaded = Plan.load(tmp_path / "plan")
    assert loaded.fingerprint == plan.fingerprint
    assert loaded.options == plan.options
    for one, other in zip(plan, loaded, strict=True):
        assert (one.shared, one.chunks) == (other.shared, other.chunks)
        np.testing.assert_array_equal(one.pairs, other.pairs)
    np.testing.assert_array_equal(loaded.completions.values, plan.completions.values)
    np.testing.assert_array_equal(loaded.inverse, plan.inverse)
    np.testing.assert_array_equal(loaded.batch_tokens, plan.batch_tokens)
    assert plan.batch_tokens.sum() == (plan.prompt_lengths + plan.completion_lengths).sum()


def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("no plan")
    with pytest.raises(PopeError, match="no scoring plan"):
        Plan.load(tmp_path / "text")
    with pytest.raises(PopeError, match="no scoring plan"):
        Plan.load(tmp_path / "missing")
    make_plan([[1]], [[2]]).save(tmp_path / "plan")
    monkeypatch.setattr(plans, "_VERSION", 99)
    with pytest.raises(PopeError, match="version"):
        Plan.load(tmp_path / "plan")


@pytest.mark.parametrize(
    ("prompts", "completions", "column", "row"),
    [
        ([[1], []], [[1], [2]], "prompt_ids", 1),
        ([[1], [2]], [[], [2]], "completion_ids", 0),
        ([[1], [2], [3, -1]], [[1], [2], [3]], "prompt_ids", 2),
    ],
)
def test_rows_that_no_model_can_score_are_named(prompts: Any, completions: Any, column: str, row: int) -> None:
    with pytest.raises(SchemaError) as caught:
        make_plan(prompts, completions)
    assert (caught.value.column, caught.value.row) == (column, row)


@pytest.mark.parametrize(
    ("prompts", "completions", "options", "words"),
    [
        ([[1]], [[1], [2]], {}, "1 prompts but 2 completions"),
        ([[1.5]], [[1]], {}, "integers"),
        ([[2**40]], [[1]], {}, "32 bits"),
        ([[1]], [[1]], {"token_budget": 0}, "token_budget"),
        ([[1]], [[1]], {"share_prompt": "yes"}, "share_prompt"),
        ([[1]], [[1]], {"min_saving": 2.0}, "min_saving"),
        ([[1]], [[1]], {"excluded": [0]}, "excluded"),
    ],
)
def test_bad_arguments_are_errors(prompts: Any, completions: Any, options: Any, words: str) -> None:
    with pytest.raises(PopeError, match=words):
        make_plan(prompts, completions, **options)


def test_batches_are_reached_by_number() -> None:
    plan = make_plan(*many(), token_budget=200)
    assert [batch.index for batch in plan] == list(range(len(plan)))
    with pytest.raises(IndexError):
        plan[len(plan)]


def test_plans_need_no_torch() -> None:
    code = (
        "import sys; from pope_fast.score.plan import make_plan; make_plan([[1]], [[2]]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_lists_may_be_empty_or_of_any_integer_type() -> None:
    lists = TokenLists.of([[], np.array([1, 2], np.uint8), (3,), []])
    assert (len(lists), lists.lengths.tolist(), lists.values.dtype) == (4, [0, 2, 1, 0], np.int32)
    assert [item.tolist() for item in map(lists.take(np.array([2, 0, 1])).__getitem__, range(3))] == [[3], [], [1, 2]]
    assert TokenLists.of(lists) is lists
    assert replace(lists, values=lists.values + 1).values.tolist() == [2, 3, 4]
