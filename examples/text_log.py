"""From raw text to an answer, and whether it is right: log, score, cluster, evaluate, sample.

A tiny language model is trained here, in a minute, to answer questions to a city; it is the logger. Its answers are
upvoted by a population that does not agree with itself. What would two other checkpoints have earned, and how many
kinds of answer would they have given? pope_fast says so from the log's text alone; fresh answers of both say whether it
is true.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pyarrow as pa

import pope_fast as pope
from pope_fast.cluster import agreement
from pope_fast.score import HFPolicy
from pope_fast.simulate.text_models import make_model, make_tokenizer, mixture, train, world_examples
from pope_fast.simulate.text_world import TextWorld

PROMPTS, RESPONSES, FRESH = 200, 8, 40
LONGEST = 32  # tokens


def with_feedback(world: TextWorld, drawn: pa.Table, seed: int) -> pa.Table:
    """What people think of responses: one upvote or none for each, by whoever came along."""
    rng = np.random.default_rng(seed)
    group = rng.choice(len(world.groups), size=drawn.num_rows, p=world.population)
    liked = [
        world.upvote_probability(prompt, text)[g]
        for prompt, text, g in zip(drawn["prompt"].to_pylist(), drawn["completion"].to_pylist(), group, strict=True)
    ]
    upvotes = pa.array((rng.random(drawn.num_rows) < liked).astype(float))
    return drawn.append_column("reward", upvotes).append_column("group", pa.array(np.array(world.groups)[group]))


def true_clusters(world: TextWorld, drawn: pa.Table) -> list[int]:
    """The perspective of each response; what expresses none is one of its own."""
    pairs = zip(drawn["prompt"].to_pylist(), drawn["completion"].to_pylist(), strict=True)
    found = [world.parse(prompt, text) for prompt, text in pairs]
    return [world.n_perspectives if perspective is None else perspective for perspective in found]


def train_models(world: TextWorld) -> tuple[Any, dict[str, Any], Any]:
    """The logger, two checkpoints that were fine-tuned from it, and their tokenizer."""
    usual = world.policy([6, 4, 2, 1])
    examples = mixture(world, 6000, policy=usual)
    tokenizer = make_tokenizer(examples)
    logger = make_model(tokenizer, hidden=96, layers=2)
    train(logger, tokenizer, examples, steps=350, batch_size=48)
    tastes = {"plural": world.policy([1, 1, 1, 1]), "majority": world.majority_policy(4.0)}
    others = {name: copy.deepcopy(logger) for name in tastes}
    for name, taste in tastes.items():
        answers = world_examples(world, taste, 1500, seed=1)
        train(others[name], tokenizer, answers, steps=12, learning_rate=5e-4, completions_only=True)
    return logger, others, tokenizer


def main() -> list[tuple[str, pope.PolicyValue, pope.PolicyValue]]:
    """Make the log, evaluate it, and compare with the truth: name, estimate and truth of each checkpoint."""
    world = TextWorld(n_prompts=PROMPTS, n_perspectives=4, n_phrasings=8)
    logger, others, tokenizer = train_models(world)

    def answers(model: Any, k: int, seed: int) -> pa.Table:
        questions = list(world.prompts)
        drawn = pope.sample(model, questions, k, processing_class=tokenizer, max_new_tokens=LONGEST, seed=seed)
        return drawn.to_arrow()

    # What a team has: prompts, responses, log-probs of the model that wrote them, and feedback.
    log = with_feedback(world, answers(logger, RESPONSES, seed=1), seed=2)

    # What it adds: the other models' log-probs, and clusters that are found from the text.
    policies = [HFPolicy(name, model, processing_class=tokenizer) for name, model in others.items()]
    scored = pope.score(log, policies)
    clustered = pope.cluster(scored)
    evaluation = pope.evaluate(clustered.log, reward_range=(0, 1), diversity_weight=0.1)
    print(evaluation)

    # The clusters that were found are finer than the perspectives: words tell wordings apart as well. With the
    # perspectives as the world knows them, D can be held against its truth too.
    perspectives = pa.array(true_clusters(world, log))
    agreed = agreement(clustered.labels, perspectives, clustered.log.to_arrow()["prompt_id"])
    print(f"\nfound clusters against the perspectives: {agreed}")
    known = pope.evaluate(scored.to_arrow().append_column("cluster", perspectives), reward_range=(0, 1))

    print("\nestimates with known perspectives, and the truth from fresh answers:\n")
    print(f"{'policy':10}  {'U estimated':28}  {'U true':>7}  {'D estimated':28}  {'D true':>7}")
    compared = []
    for name, model in others.items():
        rated = with_feedback(world, answers(model, FRESH, seed=3), seed=4)
        # A fresh draw is its own target: every weight is 1, and D is that of the perspectives as they are known.
        own = pa.table(
            {
                "prompt_id": rated["prompt_id"],
                "reward": rated["reward"],
                "behavior_logprob": rated["behavior_logprob"],
                "target_logprob": rated["behavior_logprob"],
                "cluster": true_clusters(world, rated),
            }
        )
        truth = pope.evaluate(own, reward_range=(0, 1))["target"]
        utility, diversity = known[name].utility, known[name].diversity
        assert diversity is not None
        assert truth.diversity is not None
        print(
            f"{name:10}  {utility!s:28}  {truth.utility.value:7.3f}  {diversity!s:28}  {truth.diversity.value:7.3f}"
            f"   {known[name].verdict.level}"
        )
        compared.append((name, known[name], truth))
    return compared


if __name__ == "__main__":
    # Answers repeat where a model is sure; each is a draw of its own, which the reader of a log cannot know.
    warnings.simplefilter("ignore", pope.PopeWarning)
    main()
