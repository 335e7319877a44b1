"""The text world: its menu, its parser, its exact truth, its logs."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest

import pope_fast as pope
from pope_fast.errors import PopeError
from pope_fast.simulate.text_world import UNCLEAR, TextWorld


@pytest.fixture(scope="module")
def world():
    return TextWorld(seed=3, n_prompts=20, n_perspectives=5, n_phrasings=12)


def test_sizes_and_names(world):
    assert len(world.prompts) == len(set(world.prompts)) == 20
    assert world.upvote.shape == (20, 5, 12, 4)
    assert world.cluster_names == (*world.perspectives, UNCLEAR)
    assert world.population.sum() == pytest.approx(1.0)
    assert all(prompt.endswith(f"{topic}?") for prompt, topic in zip(world.prompts, world.topics, strict=True))


@pytest.mark.parametrize("n_phrasings", [1, 4, 12, 36])
def test_every_text_of_the_largest_world_is_parsed_back(n_phrasings):
    world = TextWorld(n_prompts=240, n_perspectives=8, n_phrasings=n_phrasings)
    for x in range(0, 240, 17):
        menu = world.responses(x)
        assert len(set(menu)) == len(menu) == 8 * n_phrasings
        for i, text in enumerate(menu):
            assert world.parse_response(x, text) == divmod(i, n_phrasings)
            assert world.parse(world.prompts[x], text) == i // n_phrasings


def test_parsing_forgives_case_and_white_space_only(world):
    text = world.response(0, 2, 5)
    assert world.parse(0, f"  {text.upper()}\n") == 2
    assert world.parse(0, text.replace(",", " ,").replace(".", "  .")) == 2
    assert world.parse(0, text.rstrip(".")) is None
    assert world.parse(0, text + " indeed") is None
    assert world.parse(0, "") is None


def test_a_text_about_another_topic_is_unclear():
    world = TextWorld(n_prompts=240)
    here, there = 0, next(x for x in range(240) if world.topics[x] != world.topics[0])
    named = [text for text in world.responses(here) if world.topics[here] in text]
    assert named
    assert all(world.parse(there, text) is None for text in named)
    assert world.upvote_probability(there, named[0]) == pytest.approx(world.unclear_upvote)


def test_wordings_share_words_within_some_pairs_and_none_within_others():
    world = TextWorld(n_prompts=1, n_perspectives=8, n_phrasings=4)
    small = {"the", "it", "for", "in", "and", "a", "to", world.topics[0]}
    words = [
        [set(world.response(0, c, f).strip(".").split(", ")[1].split()) - small for f in range(4)] for c in range(8)
    ]
    shared = [bool(a & b) for wordings in words for a, b in itertools.combinations(wordings, 2)]
    assert 0.1 < np.mean(shared) < 0.9


def test_everybody_likes_quality_and_groups_disagree_about_perspectives(world):
    quality = np.array([phrasing.quality for phrasing in world.phrasings])
    order = quality.argsort()
    assert np.all(np.diff(world.upvote[:, :, order], axis=2) >= -1e-12)
    favorites = world.upvote.mean(axis=(0, 2)).argmax(axis=0)
    assert len(set(favorites.tolist())) >= 3


def test_policies_sum_to_one(world):
    for policy in (world.policy(), world.policy([1, 2, 3, 0, 0], np.arange(12)), world.majority_policy(3.0)):
        assert policy.shape == (20, 5, 12)
        assert policy.sum(axis=(1, 2)) == pytest.approx(np.ones(20))
    liked = (world.upvote @ world.population).mean(axis=2)
    assert np.array_equal(world.majority_policy(3.0).sum(axis=2).argmax(axis=1), liked.argmax(axis=1))


def test_truth_by_loops(world):
    rng = np.random.default_rng(0)
    policy = rng.random((20, 5, 12))
    # A tenth of the mass of every question is on no text of the menu.
    policy *= 0.9 / policy.sum(axis=(1, 2), keepdims=True)
    behavior = world.policy()
    truth = world.truth(policy, behavior, responses=4)
    groups, gini, kl = np.zeros(4), 0.0, 0.0
    for x in range(20):
        groups += 0.1 * world.unclear_upvote
        gini += 1 - 0.1**2
        kl += 0.1 * np.inf
        for c in range(5):
            gini -= policy[x, c].sum() ** 2
            for f in range(12):
                groups += policy[x, c, f] * world.upvote[x, c, f]
    assert list(truth["groups"].values()) == pytest.approx((groups / 20).tolist())
    assert truth["utility"] == pytest.approx(float(groups @ world.population) / 20)
    assert truth["diversity"]["gini_simpson"] == pytest.approx(gini / 20)
    assert truth["unclear"] == pytest.approx(0.1)
    assert truth["kl_target_behavior"] == kl == np.inf
    assert truth == world.truth(policy.reshape(20, 60), behavior, responses=4)


def test_divergence_of_policies_on_the_menu(world):
    p, q = world.majority_policy(1.0), world.policy()
    truth = world.truth(p, q)
    assert truth["kl_target_behavior"] == pytest.approx(float((p * np.log(p / q)).sum() / 20))
    assert truth["chi_square"] == pytest.approx(float((p**2 / q).sum() / 20 - 1))
    assert world.truth(q)["kl_target_behavior"] == pytest.approx(0.0, abs=1e-12)


def test_serving_the_majority_costs_diversity_and_the_worst_off(world):
    plural, majority = (world.truth(p) for p in (world.policy(), world.majority_policy(4.0)))
    assert majority["utility"] > plural["utility"] + 0.05
    assert majority["diversity"]["entropy_within_prompts"] < 0.5 * plural["diversity"]["entropy_within_prompts"]
    assert max(majority["groups"].values()) - min(majority["groups"].values()) > 0.2


def test_a_log_has_the_columns_and_the_means_of_its_world(world):
    behavior, target = world.policy([5, 4, 3, 2, 1]), world.majority_policy(1.0)
    log = world.log(behavior, {"majority": target}, prompts=1500, responses=8, seed=2)
    table = log.table
    assert table.num_rows == 12_000
    rows = table.slice(0, 400).to_pylist()
    for row in rows:
        cluster = world.perspectives[world.parse(row["prompt"], row["completion"])]
        assert cluster == row["cluster"]
        found = world.parse_response(row["prompt"], row["completion"])
        x = world.prompts.index(row["prompt"])
        assert row["phrasing"] == found[1]
        assert row["behavior_logprob"] == pytest.approx(np.log(behavior[(x, *found)]))
        assert row["target_logprob/majority"] == pytest.approx(np.log(target[(x, *found)]))
    reward = table["reward"].to_numpy(zero_copy_only=False)
    assert reward.mean() == pytest.approx(log.truth["behavior"]["utility"], abs=4 * 0.5 / 1500**0.5)
    shares = np.array([table["group"].to_pylist().count(name) for name in world.groups]) / 12_000
    assert shares == pytest.approx(world.population, abs=0.02)


def test_evaluating_a_log_finds_the_truth(world):
    log = world.log(world.policy([5, 4, 3, 2, 1]), {"majority": world.majority_policy(1.0)}, prompts=1500, seed=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pope.PopeWarning)
        found = pope.evaluate(log.table, diversity_weight=0.1)["majority"]
    truth = log.truth["policies"]["majority"]
    assert found.utility.interval.contains(truth["utility"])
    assert found.diversity.name == "H_3"
    assert found.diversity.interval.contains(truth["diversity"]["H_3"])
    assert found.verdict.level != "unreliable"


def test_the_same_seed_gives_the_same_log_and_another_does_not(world):
    logs = [world.log(world.policy(), prompts=20, seed=seed).table for seed in (1, 1, 2)]
    assert logs[0].equals(logs[1])
    assert not logs[0].equals(logs[2])
    assert TextWorld(seed=1).prompts == TextWorld(seed=1).prompts != TextWorld(seed=2).prompts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_prompts": 241}, "n_prompts must be at most 240"),
        ({"n_prompts": 0}, "n_prompts must be at least 1"),
        ({"n_perspectives": 9}, "n_perspectives must be at most 8"),
        ({"n_perspectives": 1}, "n_perspectives must be at least 2"),
        ({"n_phrasings": 37}, "n_phrasings must be at most 36"),
        ({"groups": {"a": 0.0}}, "positive shares"),
        ({"groups": {}}, "positive shares"),
        ({"unclear_upvote": 1.5}, "must be a probability"),
    ],
)
def test_bad_worlds_are_refused(options, message):
    with pytest.raises(PopeError, match=message):
        TextWorld(**options)


def test_bad_arguments_are_refused(world):
    with pytest.raises(PopeError, match="no question"):
        world.parse("what?", "anything")
    with pytest.raises(PopeError, match="none with index 20"):
        world.parse(20, "anything")
    with pytest.raises(PopeError, match="weights of 5 perspectives"):
        world.policy([1, 2])
    with pytest.raises(PopeError, match="weights of 12 phrasings"):
        world.policy(None, [1, 2])
    with pytest.raises(PopeError, match="nor all 0"):
        world.policy(np.zeros(5))
    with pytest.raises(PopeError, match="shape"):
        world.truth(np.ones((20, 3)))
    with pytest.raises(PopeError, match="sum to more than 1"):
        world.truth(world.policy() * 1.1)
    with pytest.raises(PopeError, match="outside of the menu"):
        world.log(world.policy(), {"half": world.policy() / 2})
