"""The truth files against independent computations: loops, numerical integration, brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from pope_fast import simulate
from pope_fast.errors import PopeError
from pope_fast.simulate import cluster_world, exact, lognormal_world, table_world, tiny_lm_world


def test_table_truth_by_loops():
    world = table_world.table_world(prompt_types=5, menu=7, n_clusters=3, groups=("a", "b"))
    truth = world.truth(responses=4)["policies"]["near"]
    p, q = world.targets["near"], world.behavior
    utility = {"a": 0.0, "b": 0.0}
    kl = chi = entropy = gini = coverage3 = 0.0
    marginal = np.zeros(3)
    for x in range(5):
        shares = [sum(p[x, y] for y in range(7) if world.cluster[x, y] == c) for c in range(3)]
        marginal += np.array(shares) / 5
        entropy -= sum(s * math.log(s) for s in shares if s > 0) / 5
        gini += (1 - sum(s * s for s in shares)) / 5
        # A cluster is seen in three draws unless all three miss it.
        coverage3 += sum(1 - (1 - s) ** 3 for s in shares) / 5
        for y in range(7):
            kl += p[x, y] * math.log(p[x, y] / q[x, y]) / 5
            chi += p[x, y] ** 2 / q[x, y] / 5
            for g, name in enumerate(utility):
                utility[name] += p[x, y] * world.reward[x, y, g] / 5
    assert truth["groups"] == pytest.approx(utility, rel=1e-12)
    assert truth["utility"] == pytest.approx(sum(utility.values()) / 2, rel=1e-12)
    assert truth["welfare"]["min"] == min(truth["groups"].values())
    assert truth["welfare"]["nash"] == pytest.approx(math.sqrt(utility["a"] * utility["b"]))
    assert truth["kl_target_behavior"] == pytest.approx(kl, rel=1e-12)
    assert truth["ess_fraction"] == pytest.approx(1 / (1 + (chi - 1) / 4), rel=1e-12)
    diversity = truth["diversity"]
    assert diversity["entropy_within_prompts"] == pytest.approx(entropy, rel=1e-12)
    assert diversity["entropy_marginal"] == pytest.approx(-np.sum(marginal * np.log(marginal)), rel=1e-12)
    assert diversity["gini_simpson"] == pytest.approx(gini, rel=1e-12)
    assert diversity["coverage@3"] == pytest.approx(coverage3, rel=1e-12)
    assert diversity["H_1"] < diversity["H_2"] < diversity["H_3"] < diversity["entropy_within_prompts"]


def test_probabilities_sum_to_one():
    worlds = [table_world.table_world(), tiny_lm_world.tiny_lm_world()[0], cluster_world.cluster_world()]
    for world in worlds:
        for p in (world.behavior, *world.targets.values()):
            np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
@pytest.mark.parametrize(("intercept", "slope"), [(-0.5, 0.6), (-3.0, 2.0)])
def test_lognormal_utility_by_integration(shift, intercept, slope):
    value, _ = integrate.quad(
        lambda z: stats.norm.pdf(z, shift) / (1 + np.exp(-intercept - slope * z)), -12, 15, epsabs=1e-13
    )
    assert lognormal_world.lognormal_utility(shift, intercept, slope) == pytest.approx(value, abs=1e-12)


def test_lognormal_truth():
    truth = simulate.lognormal(prompts=2, divergences={"p": 2.0}).truth["policies"]["p"]
    assert truth["kl_target_behavior"] == pytest.approx(2.0)
    assert truth["chi_square"] == pytest.approx(math.exp(4.0) - 1)
    edges = [-np.inf, *lognormal_world.CLUSTER_EDGES, np.inf]
    q = np.diff(stats.norm.cdf(edges, 2.0))
    assert truth["diversity"]["entropy_marginal"] == pytest.approx(stats.entropy(q), rel=1e-10)


def test_tiny_lm_sequences_are_products_of_conditional_tokens():
    world, sequences, tokens = tiny_lm_world.tiny_lm_world(prompt_types=2)
    assert len(sequences) == 81
    np.testing.assert_allclose(np.exp(tokens["near"].sum(axis=2)), world.targets["near"], rtol=1e-12)
    # For a fixed prefix the probabilities of the next token sum to one, and depend on the prefix only.
    step = np.exp(tokens["behavior"][1, :, 2])
    for prefix in range(9):
        rows = np.flatnonzero(sequences[:, 0] * 3 + sequences[:, 1] == prefix)
        by_token = [np.unique(step[rows[sequences[rows, 2] == t]]) for t in range(3)]
        assert [len(values) for values in by_token] == [1, 1, 1]
        assert sum(float(values[0]) for values in by_token) == pytest.approx(1.0)


def test_mean_length_normalized_weight_is_not_one():
    """w^(1/T) belongs to another policy: its mean is well below 1, by Jensen."""
    world, _, tokens = tiny_lm_world.tiny_lm_world()
    ratio = (tokens["far"] - tokens["behavior"]).sum(axis=2)
    assert np.mean(np.sum(world.behavior * np.exp(ratio), axis=1)) == pytest.approx(1.0)
    assert np.mean(np.sum(world.behavior * np.exp(ratio / 4), axis=1)) < 0.8


def test_cluster_world_variances_by_integration():
    """IPS and MIPS on E4: E[w^2 r^2] = E[w_c^2 r^2] exp(s^2)."""
    log = simulate.clusters(prompts=2, prompt_types=3, n_clusters=4)
    world = cluster_world.cluster_world(prompt_types=3, n_clusters=4)
    policy, truth = cluster_world.POLICIES["near"], log.truth["policies"]["near"]
    wc = world.targets["near"] / world.behavior
    second = float(np.mean(np.sum(world.behavior * wc**2 * world.reward[:, :, 0], axis=1)))
    v2, _ = integrate.quad(
        lambda z: stats.norm.pdf(z) * np.exp(2 * (policy.within * z - policy.within**2 / 2)), -15, 15
    )
    assert truth["mips_variance"] == pytest.approx(second - truth["utility"] ** 2, rel=1e-10)
    assert truth["ips_variance"] == pytest.approx(second * v2 - truth["utility"] ** 2, rel=1e-8)
    assert truth["mips_variance"] < truth["ips_variance"]


def test_no_support_truth():
    truth = simulate.no_support(prompts=2, off_reward=0.1).truth["policies"]["gap"]
    supported = lognormal_world.lognormal_utility(math.sqrt(0.5), -0.5, 0.6)
    assert truth["utility"] == pytest.approx(0.8 * supported + 0.02, rel=1e-12)
    assert truth["mean_weight"] == 0.8
    assert math.isinf(truth["kl_target_behavior"])
    assert truth["kl_behavior_target"] == pytest.approx(0.25 - math.log(0.8))


def test_normal_bins():
    np.testing.assert_allclose(exact.normal_bins([0.0], 0.0), [0.5, 0.5])
    assert exact.normal_expectation(lambda z: z**2, mean=2.0) == pytest.approx(5.0)


def test_entropy_of_no_diversity():
    truth = exact.diversity_truth([[1.0, 0.0]])
    assert truth["coverage@4"] == 1.0
    assert truth["H_3"] == truth["entropy_within_prompts"] == 0.0


def test_truth_of_embeddings_by_loops():
    world = table_world.table_world(prompt_types=3, menu=5, n_clusters=2, embedding_width=4)
    assert world.embedding is not None
    rao = square = 0.0
    for p, vectors in zip(world.targets["near"], world.embedding.astype(float), strict=True):
        for a, u in zip(p, vectors, strict=True):
            for b, v in zip(p, vectors, strict=True):
                cosine = u @ v / math.sqrt((u @ u) * (v @ v))
                rao += a * b * (1 - cosine) / 3
                square += a * b * cosine**2 / 3
    diversity = world.truth(responses=2)["policies"]["near"]["diversity"]
    assert diversity["rao"] == pytest.approx(rao, rel=1e-12)
    assert diversity["vendi"] == pytest.approx(1 / square, rel=1e-12)


def test_embeddings_leave_the_rest_of_the_world():
    with_, without = (simulate.table(prompts=20, seed=4, embedding_width=width) for width in (7, 0))
    assert with_.table.drop_columns(["embedding"]).equals(without.table)
    assert str(with_.table.schema.field("embedding").type) == "fixed_size_list<item: float>[7]"
    assert "rao" not in without.truth["policies"]["near"]["diversity"]
    with pytest.raises(PopeError, match="embedding_width"):
        simulate.table(embedding_width=-1)
