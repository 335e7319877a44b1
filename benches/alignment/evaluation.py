"""The evaluation part: eight policies estimated from the logger's logs, against what they are really worth.

The logs are drawn from the logger's exact distribution: it has been scored on the whole menu of every question, and a
text that is not on the menu (about one in a hundred) counts as one more answer, with all of that mass. So the truth of
every policy is exact, and a log costs nothing. One log of sampled texts is evaluated as well.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from methods import ABLATED, METHODS, make_loss
from models import fine_tuned, load, loss_inputs, make_log, sample
from world import DRAWS, FIRST_SEED, Size, divergence, exact_values, questions

import pope_fast as pope
from alignment import align, chosen_setting, setup
from pope_fast.simulate.text_models import Example, encode, menu_logprobs
from pope_fast.simulate.text_world import TextWorld

SEED = FIRST_SEED
RESPONSES = 8
USABLE = 0.05
"""An estimate of U is usable if it is no further than this from the truth."""

Policies = dict[str, tuple[Any, float]]


def make_policies(folder: Path, size: Size) -> tuple[TextWorld, Any, Policies]:
    """Make the logger and the eight target policies: a model and a temperature each."""
    shared = setup(folder, size, SEED)
    world, tokenizer, logger = shared.world, shared.tokenizer, shared.logger
    base = load(folder / "base")
    liked = world.upvote.mean(axis=(0, 2)) @ world.population
    polite = world.policy(None, np.repeat([6.0, 1.0, 1.0], 4))
    favorite, unloved = np.eye(world.n_perspectives)[liked.argmax()], (liked.argsort() < 2).astype(float)
    single = world.policy(favorite, np.eye(world.n_phrasings)[8])
    curt = world.policy(unloved, np.repeat([0.0, 0.0, 1.0], 4))
    steps = size.logger_steps
    policies: Policies = {
        "logger": (logger, 1.0),
        "cooler": (logger, 0.8),
        "hotter": (logger, 1.3),
        "base": (base, 1.0),
        "polite": (fine_tuned(base, tokenizer, world, polite, steps // 2, 1), 1.0),
    }
    for name in ("pope 0", f"pope {ABLATED:g}"):
        _, setting = chosen_setting(folder, METHODS[name], size.configurations)
        loss = make_loss(METHODS[name], setting, tuple(world.population))
        policies[name] = (align(logger, shared.train, loss, setting.rate, size, SEED)[0], 1.0)
    policies["collapsed"] = (fine_tuned(logger, tokenizer, world, single, steps, 2), 1.0)
    policies["far"] = (fine_tuned(base, tokenizer, world, curt, steps, 3), 1.0)
    return world, tokenizer, policies


@dataclass(frozen=True)
class Actions:
    """Answers of all policies to the questions of the logs.

    Attributes
    ----------
    logprob : mapping of name to ndarray, shape (n_questions, n_menu + 1)
        Log-probability of every answer on the menu, and of unclear text.
    upvote : ndarray, shape (n_questions, n_menu + 1, n_groups)
        Probability of an upvote.
    cluster, length : ndarray
        Cluster of each answer, shape (n_menu + 1,); its tokens, shape (n_questions, n_menu + 1).
    """

    world: TextWorld
    logprob: dict[str, np.ndarray]
    upvote: np.ndarray
    cluster: np.ndarray
    length: np.ndarray


def make_actions(size: Size, world: TextWorld, tokenizer: Any, policies: Policies) -> tuple[Actions, dict[str, Any]]:
    """Score the menu under all policies; return also the truth."""
    chosen = [*questions(size)["heldout"], *questions(size)["test"]]
    logprob, truth, menus = {}, {}, {}
    for name, (model, temperature) in policies.items():
        menu = np.exp(menu_logprobs(model, tokenizer, world, chosen, temperature=temperature))
        menus[name] = menu
        rest = np.maximum(1.0 - menu.sum(axis=1, keepdims=True), 1e-9)
        logprob[name] = np.log(np.concatenate([np.maximum(menu, 1e-300), rest], axis=1))
        logprob[name] -= np.log(np.exp(logprob[name]).sum(axis=1, keepdims=True))
        values = exact_values(world, chosen, menu)
        values["value"] = values["utility"] + ABLATED * values["H_3"]
        truth[name] = values | {"kl": divergence(menu, menus["logger"])}
    upvote = world.upvote[chosen].reshape(len(chosen), -1, len(world.groups))
    upvote = np.concatenate([upvote, np.full_like(upvote[:, :1], world.unclear_upvote)], axis=1)
    cluster = np.append(np.repeat(np.arange(world.n_perspectives), world.n_phrasings), world.n_perspectives)
    length = np.array(
        [[len(c) for _, c in encode(tokenizer, [Example("", t) for t in world.responses(x)])] for x in chosen]
    )
    length = np.concatenate([length, length.mean(axis=1, keepdims=True).round().astype(int)], axis=1)
    return Actions(world, logprob, upvote, cluster, length), truth


def draw_log(actions: Actions, prompts: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw a log: question, answer, group and reward of each row."""
    logger = np.exp(actions.logprob["logger"])
    question = np.repeat(rng.integers(0, len(logger), size=prompts), RESPONSES)
    ladder = np.cumsum(logger, axis=1) + np.arange(len(logger))[:, None]
    ladder[:, -1] = np.arange(1, len(logger) + 1)
    answer = np.searchsorted(ladder.ravel(), question + rng.random(len(question)), side="right")
    answer -= question * logger.shape[1]
    group = actions.world.draw_groups(rng, len(question))
    reward = rng.random(len(question)) < actions.upvote[question, answer, group]
    return {"question": question, "answer": answer, "group": group, "reward": reward.astype(np.float64)}


def to_table(actions: Actions, log: dict[str, np.ndarray]) -> pa.Table:
    """Return the log in the schema that pope.evaluate reads."""
    at = (log["question"], log["answer"])
    names = actions.world.cluster_names
    columns = {
        "prompt_id": np.arange(len(at[0])) // RESPONSES,
        "reward": log["reward"],
        "behavior_logprob": actions.logprob["logger"][at],
        "cluster": [names[c] for c in actions.cluster[log["answer"]]],
    }
    for name, table in actions.logprob.items():
        if name != "logger":
            columns[f"target_logprob/{name}"] = table[at]
    return pa.table(columns)


def normal(values: np.ndarray, center: float) -> list[float]:
    """Normal interval with the rows taken for independent."""
    error = float(values.std(ddof=1) / len(values) ** 0.5)
    return [center - 1.96 * error, center + 1.96 * error]


def others(actions: Actions, log: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    """Return what others would say about U: row by row, by length-normalized weights, by naive means."""
    at = (log["question"], log["answer"])
    ratio, r = actions.logprob[name][at] - actions.logprob["logger"][at], log["reward"]
    w = np.exp(ratio)
    snips = float((w * r).sum() / w.sum())
    geometric = np.exp(ratio / actions.length[at])
    likelier = ratio > 0
    return {
        "ips (obp)": {"value": float((w * r).mean()), "interval": normal(w * r, float((w * r).mean()))},
        "snips (obp)": {"value": snips, "interval": normal(w * (r - snips) / w.mean(), snips)},
        "length-normalized": {"value": float((geometric * r).sum() / geometric.sum())},
        "mean of the likelier": {"value": float(r[likelier].mean()) if likelier.any() else float(r.mean())},
        "mean reward": {"value": float(r.mean())},
    }


def judge(table: pa.Table) -> dict[str, Any]:
    """Evaluate a log with this library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pope.PopeWarning)
        evaluation = pope.evaluate(table, diversity_weight=ABLATED, reward_range=(0.0, 1.0))
    records = {}
    for name, found in evaluation.policies.items():
        quantities = {"utility": found.utility, "diversity": found.diversity, "value": found.value}
        records[name] = {
            "verdict": found.verdict.level,
            "snips": found.utility_estimators["snips"].value,
            "ips": found.utility_estimators["ips"].value,
            "methods": {
                method: [interval.low, interval.high]
                for method, interval in found.utility.intervals.items()
                if interval is not None
            },
            **{
                key: {
                    "value": estimate.value,
                    "interval": None if estimate.interval is None else [estimate.interval.low, estimate.interval.high],
                }
                for key, estimate in quantities.items()
                if estimate is not None
            },
            "measure": found.diversity.name if found.diversity else None,
        }
    return records


def evaluate(folder: Path, size: Size) -> dict[str, Any]:
    """Run the whole part; return every estimate of every log, and the truth."""
    torch.manual_seed(0)
    world, tokenizer, policies = make_policies(folder, size)
    actions, truth = make_actions(size, world, tokenizer, policies)
    logs = []
    for prompts in size.log_prompts:
        for index in range(size.logs):
            rng = np.random.default_rng([SEED, 51, prompts, index])
            log = draw_log(actions, prompts, rng)
            records = judge(to_table(actions, log))
            for name, record in records.items():
                record["others"] = others(actions, log, name)
            logs.append({"prompts": prompts, "index": index, "policies": records})
    return {"truth": truth, "logs": logs, "sampled": sampled(size, world, tokenizer, policies), "usable": USABLE}


@torch.no_grad()
def sampled(size: Size, world: TextWorld, tokenizer: Any, policies: Policies) -> dict[str, Any]:
    """Evaluate one log of sampled texts, and compare with fresh samples of every policy."""
    chosen = [*questions(size)["heldout"], *questions(size)["test"]]
    drawn = sample(policies["logger"][0], tokenizer, world, chosen, RESPONSES, seed=77)
    log = make_log(tokenizer, world, drawn, RESPONSES, 77)
    columns: dict[str, Any] = {
        "prompt_id": np.repeat(np.arange(len(log)), RESPONSES),
        "reward": log.reward.numpy(),
        "cluster": [world.cluster_names[c] for c in log.cluster.tolist()],
    }
    fresh = {}
    for name, (model, temperature) in policies.items():
        if temperature != 1.0:
            continue
        parts = [loss_inputs(model, log, range(i, min(i + 8, len(log)))) for i in range(0, len(log), 8)]
        role = "behavior_logprob" if name == "logger" else f"target_logprob/{name}"
        columns[role] = torch.cat([p.behavior_logprob if name == "logger" else p.logprob for p in parts]).numpy()
        again = sample(model, tokenizer, world, chosen, max(DRAWS, size.fresh), seed=78)
        fresh[name] = float((again.upvote @ world.population).mean())
    return {"fresh_utility": fresh, "policies": judge(pa.table(columns))}
