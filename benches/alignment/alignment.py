"""The alignment part: one run of a method on the log of a world, and the choice among its settings."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import capabilities
import numpy as np
import pyarrow as pa
import torch
from methods import METHODS, Loss, Method, Setting, make_loss
from models import Log, load, load_tokenizer, loss_inputs, make_base, make_log, sample, store
from models import fine_tuned as fine_tune
from world import Size, divergence, exact_values, majority, make_world, questions

import pope_fast as pope
from pope_fast.simulate.text_models import menu_logprobs
from pope_fast.simulate.text_world import TextWorld

SCORED_AT_ONCE = 8
"""Questions per forward pass where no gradient is needed."""


@dataclass(frozen=True)
class Setup:
    """What all runs on a world share."""

    world: TextWorld
    tokenizer: Any
    logger: Any
    train: Log
    heldout: Log


def prepare_base(folder: Path, size: Size) -> None:
    """Train and save the base model."""
    if not (folder / "base").exists():
        store(folder / "base", *make_base(size.base_steps))


def prepare_world(folder: Path, size: Size, seed: int) -> None:
    """Fine-tune and save the logger of a world; measure it."""
    if (folder / f"logger{seed}.json").exists():
        return
    tokenizer, base, world = load_tokenizer(folder / "base"), load(folder / "base"), make_world(seed)
    if not (folder / f"logger{seed}").exists():
        store(folder / f"logger{seed}", fine_tune(base, tokenizer, world, majority(world), size.logger_steps, seed))
    logger = load(folder / f"logger{seed}")
    menu = np.exp(menu_logprobs(logger, tokenizer, world, questions(size)["test"]))
    record = {
        "exact": exact_values(world, questions(size)["test"], menu),
        "capabilities": capabilities.measure(logger, tokenizer, world, size.skill_examples),
        "menu": menu.tolist(),
    }
    write(folder / f"logger{seed}.json", record)


def setup(folder: Path, size: Size, seed: int) -> Setup:
    """Load a world's logger and let it write the logs; the same draws in every process."""
    world, tokenizer, logger = make_world(seed), load_tokenizer(folder / "base"), load(folder / f"logger{seed}")
    logs = []
    for part, k in (("train", size.responses), ("heldout", size.heldout_responses)):
        drawn = sample(logger, tokenizer, world, questions(size)[part], k, seed=seed)
        logs.append(make_log(tokenizer, world, drawn, k, seed))
    return Setup(world, tokenizer, logger, *logs)


def align(logger: Any, log: Log, loss: Loss, rate: float, size: Size, seed: int) -> tuple[Any, dict[str, float]]:
    """Align a copy of the logger; return it with the metrics of the last quarter of the steps, averaged."""
    model = copy.deepcopy(logger).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    rng = np.random.default_rng([seed, 41])
    queue: list[int] = []
    late: list[dict[str, float]] = []
    for step in range(size.steps):
        while len(queue) < size.batch:
            queue += rng.permutation(len(log)).tolist()
        chosen, queue = queue[: size.batch], queue[size.batch :]
        decay = 0.55 + 0.45 * math.cos(math.pi * step / size.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / 4, decay)
        value, metrics = loss(loss_inputs(model, log, chosen))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step >= size.steps * 3 // 4:
            late.append(metrics)
    kept = ("ess_fraction", "largest_share", "mean_weight", "truncated_share", "kl")
    return model.eval(), {name: float(np.mean([m[name] for m in late if name in m])) for name in kept}


@torch.no_grad()
def scored(model: Any, log: Log, world: TextWorld) -> pa.Table:
    """Return a log with the log-probabilities of a model, as pope.evaluate takes it."""
    parts = [
        loss_inputs(model, log, range(i, min(i + SCORED_AT_ONCE, len(log)))) for i in range(0, len(log), SCORED_AT_ONCE)
    ]
    k = len(log.reward) // len(log)
    names = world.cluster_names
    return pa.table(
        {
            "prompt_id": np.repeat(np.arange(len(log)), k),
            "reward": log.reward.numpy(),
            "behavior_logprob": torch.cat([p.behavior_logprob for p in parts]).numpy(),
            "target_logprob/aligned": torch.cat([p.logprob for p in parts]).numpy(),
            "cluster": [names[c] for c in log.cluster.tolist()],
            "group": [world.groups[g] for g in log.group.tolist()],
        }
    )


def off_policy(model: Any, log: Log, world: TextWorld, weight: float) -> dict[str, Any]:
    """Estimate a model's value from the held-out log; ``lower`` is the robust lower bound that choices are made by."""
    evaluation = pope.evaluate(scored(model, log, world), diversity_weight=weight, reward_range=(0.0, 1.0))
    found = evaluation["aligned"]
    chosen = found.value if weight > 0 else found.utility
    robust = chosen.intervals.get("robust")
    return {
        "value": chosen.value,
        "lower": None if robust is None else robust.low,
        "utility": found.utility.value,
        "verdict": found.verdict.level,
        "ess": found.diagnostics.ess,
    }


def tune(folder: Path, size: Size, seed: int, name: str, index: int) -> dict[str, Any]:
    """Try one setting of a method on the tuning world."""
    method = METHODS[name]
    setting, shared = method.settings[index], setup(folder, size, seed)
    loss = make_loss(method, setting, tuple(shared.world.population))
    started = time.process_time()
    model, _ = align(shared.logger, shared.train, loss, setting.rate, size, seed)
    seconds = time.process_time() - started
    estimate = off_policy(model, shared.heldout, shared.world, method.diversity_weight)
    return {"method": name, "setting": setting.label, "index": index, "estimate": estimate, "cpu_seconds": seconds}


def chosen_setting(folder: Path, method: Method, configurations: int) -> tuple[int, Setting]:
    """Return the setting with the best lower bound on the tuning world."""
    source = method.tuned_as or method.name
    tried = [json.loads((folder / f"tune-{source}-{i}.json").read_text()) for i in range(configurations)]

    def lower(record: dict[str, Any]) -> float:
        bound = record["estimate"]["lower"]
        return -math.inf if bound is None else bound

    best = max(tried, key=lower)["index"]
    return best, method.settings[best]


def final(folder: Path, size: Size, seed: int, name: str, ablation: str | None = None) -> dict[str, Any]:
    """Align with the chosen setting on a world, and measure the result."""
    method = METHODS[name]
    index, setting = chosen_setting(folder, method, size.configurations)
    shared = setup(folder, size, seed)
    world, tokenizer, test = shared.world, shared.tokenizer, questions(size)["test"]
    loss = make_loss(method, setting, tuple(world.population), ablation)
    started = time.process_time()
    model, metrics = align(shared.logger, shared.train, loss, setting.rate, size, seed)
    seconds = time.process_time() - started
    menu = np.exp(menu_logprobs(model, tokenizer, world, test))
    logger = json.loads((folder / f"logger{seed}.json").read_text())
    can = capabilities.measure(model, tokenizer, world, size.skill_examples)
    return {
        "method": name,
        "ablation": ablation,
        "seed": seed,
        "setting": setting.label,
        "index": index,
        "exact": exact_values(world, test, menu),
        "fresh": fresh_values(model, tokenizer, world, test, size.fresh, seed),
        "kl_from_logger": divergence(menu, np.array(logger["menu"])),
        "capabilities": can,
        "changes": capabilities.changes(logger["capabilities"], can),
        "heldout": off_policy(model, shared.heldout, world, method.diversity_weight),
        "training": metrics,
        "cpu_seconds": seconds,
    }


def fresh_values(
    model: Any, tokenizer: Any, world: TextWorld, prompts: Sequence[int], k: int, seed: int
) -> dict[str, float]:
    """Values from fresh samples: a check of the exact ones that knows nothing of the menu."""
    drawn = sample(model, tokenizer, world, prompts, k, seed + 1_000)
    groups = drawn.upvote.mean(axis=0)
    liked = (drawn.upvote @ world.population).reshape(len(prompts), k)
    # The questions are the same as those of the exact value: only the draws within them are random.
    error = float((liked.var(axis=1, ddof=1).mean() / (k * len(prompts))) ** 0.5)
    clusters = drawn.cluster.reshape(len(prompts), k)
    counts = np.stack([(clusters == c).sum(axis=1) for c in range(world.n_perspectives)], axis=1)
    # Unbiased for the chance that 4 draws miss a perspective: all 4 from the k - count others.
    missed = np.ones(counts.shape)
    for j in range(4):
        missed *= np.maximum(k - counts - j, 0) / (k - j)
    return {
        "utility": float(groups @ world.population),
        "standard_error": error,
        "coverage": float((1.0 - missed).sum(axis=1).mean()),
        "unclear": float((drawn.cluster < 0).mean()),
    }


def write(path: Path, record: Any) -> None:
    """Write JSON, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.rename(path)
