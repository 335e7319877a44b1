"""Why the defaults of POPE's loss are what they are: python benches/alignment/defaults.py --out FOLDER.

Two tables, in FOLDER/defaults-text.md and FOLDER/defaults-menu.md. `text`: two worlds of the experiment, which it does
not report, where a policy can say anything. `menu`: the small worlds of tests/align/feature_world.py, where it can only
choose. FOLDER keeps the models, as that of run.py does. About ten minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WORLDS = (0, 1)
MENU_SEEDS = range(6)
LAMBDA = 0.3

Loss = Callable[[Any], Any]


def pope(form: str = "score", baseline: str = "loo", **changes: Any) -> Loss:
    """POPE with some of its defaults changed; options of the weighting and the diversity go by their own names."""
    from pope_fast.align.losses import WEIGHTINGS, Diversity, Objective, Weighting, pope_loss

    weighting = WEIGHTINGS[changes.pop("named", "default")]
    parts = {
        "weighting": replace(weighting, **{k: changes.pop(k) for k in list(changes) if k in Weighting.__slots__}),
        "diversity": Diversity(**{k: changes.pop(k) for k in list(changes) if k in Diversity.__slots__}),
    }
    objective = Objective(**{"diversity_weight": 0.0, **parts, **changes})
    return lambda batch: pope_loss(batch, objective, form=form, baseline=baseline)  # type: ignore[arg-type]


def text_table(folder: Path) -> list[str]:
    """Variants at lambda 0 on the two worlds: truth on unseen questions."""
    import numpy as np
    from models import load
    from world import FULL, exact_values, questions

    from alignment import align, prepare_base, prepare_world, setup
    from pope_fast.simulate.text_models import menu_logprobs

    variants: dict[str, tuple[float, dict[str, Any]]] = {
        "the defaults": (4e-4, {}),
        "half the step": (2e-4, {}),
        "`clip=5`": (4e-4, {"clip": 5.0}),
        '`truncation="sn_tips"`': (4e-4, {"truncation": "sn_tips"}),
        "`beta=0.02`": (4e-4, {"beta": 0.02}),
        "`beta=0.1`": (4e-4, {"beta": 0.1}),
        '`form="direct"`': (4e-4, {"form": "direct"}),
        '`taper="ppo"`': (4e-4, {"taper": "ppo"}),
        '`taper="logistic"`': (4e-4, {"taper": "logistic"}),
        '`taper="topr"`, not truncated': (4e-4, {"named": "topr"}),
        '`kl="k3"`': (4e-4, {"kl": "k3"}),
    }
    prepare_base(folder, FULL)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in WORLDS:
        prepare_world(folder, FULL, seed)
        shared, test = setup(folder, FULL, seed), questions(FULL)["test"]
        models = {"the logger": load(folder / f"logger{seed}")}
        for name, (rate, changes) in variants.items():
            models[name] = align(shared.logger, shared.train, pope(**changes), rate, FULL, seed)[0]
        for name, model in models.items():
            menu = np.exp(menu_logprobs(model, shared.tokenizer, shared.world, test))
            found.setdefault(name, []).append(exact_values(shared.world, test, menu))
    lines = ["| objective | U | entropy | unclear text |", "|---|---|---|---|"]
    for name, runs in found.items():
        u, h, unclear = (statistics.fmean(run[key] for run in runs) for key in ("utility", "entropy", "unclear"))
        lines.append(f"| {name} | {u:.3f} | {h:.2f} | {unclear:.2f} |")
    return lines


def menu_table() -> list[str]:
    """Variants at lambda .3, and losses at lambda 0, on the small worlds: truth at the end."""
    sys.path.append(str(HERE.parents[1] / "tests" / "align"))
    from feature_world import train

    from pope_fast.align.losses import LOSSES

    def runs(loss: Loss, weight: float, steps: int) -> dict[str, list[float]]:
        done = [train(loss, seed, weight=weight, steps=steps) for seed in MENU_SEEDS]
        return {key: [run[key] for run in done] for key in done[0]}

    variants: dict[str, dict[str, Any]] = {
        "none": {},
        '`form="direct"`': {"form": "direct"},
        '`baseline="mean"`': {"baseline": "mean"},
        '`baseline="none"`': {"baseline": "none"},
        "`beta=0`": {"beta": 0.0},
        "`beta=0.02`": {"beta": 0.02},
        "`beta=0.2`": {"beta": 0.2},
        '`kl="k3"`': {"kl": "k3"},
        'the same, `taper="ppo"`': {"kl": "k3", "taper": "ppo"},
        '`taper="ppo"`': {"taper": "ppo"},
        '`taper="logistic"`': {"taper": "logistic"},
        '`taper="topr"`, not truncated': {"named": "topr"},
        "`clip=5`": {"clip": 5.0},
        '`truncation="sn_tips"`': {"truncation": "sn_tips"},
        'the same, `form="direct"`': {"truncation": "sn_tips", "form": "direct"},
        '`truncation="psis"`': {"truncation": "psis"},
        '`truncation="none"`': {"truncation": "none"},
        "`self_normalize=False`": {"self_normalize": False},
        "`bounded=False`": {"bounded": False},
        '`measure="shannon"`': {"measure": "shannon"},
        '`measure="gini"`': {"measure": "gini"},
        "`order=5`": {"order": 5},
        '`truncation="sn_tips"`, `bounded=False`': {"truncation": "sn_tips", "bounded": False},
        "the same, `beta=0`": {"truncation": "sn_tips", "bounded": False, "beta": 0.0},
        'the same, `kl="k3"`': {"truncation": "sn_tips", "bounded": False, "kl": "k3"},
    }
    names = ("V at the end", "s.e.", "best V", "U", "entropy", "KL from the log", "ESS")
    lines = [f"| one change to the defaults | {' | '.join(names)} |", "|---" * 8 + "|"]
    for name, changes in variants.items():
        found = runs(pope(diversity_weight=LAMBDA, **changes), LAMBDA, 300)
        mean = {key: statistics.fmean(values) for key, values in found.items()}
        error = statistics.stdev(found["value"]) / len(MENU_SEEDS) ** 0.5
        cells = [f"{x:.3f}" for x in (mean["value"], error, mean["best"], mean["utility"], mean["entropy"])]
        lines.append(f"| {name} | {' | '.join(cells)} | {mean['kl']:.2f} | {mean['ess']:.1f} |")

    losses: dict[str, dict[str, Loss]] = {
        "`pope`": {f"{b:g}": pope(beta=b) for b in (0.01, 0.02, 0.05)},
        '`pope`, `kl="k3"`, `taper="logistic"`': {
            f"{b:g}": pope(beta=b, kl="k3", taper="logistic") for b in (0.02, 0.05)
        },
        '`pope`, `kl="k3"`, `form="direct"`': {
            f"{b:g}": pope(beta=b, kl="k3", form="direct") for b in (0.0, 0.02, 0.05)
        },
        '`pope`, `kl="k3"`, `taper="ppo"`': {f"{b:g}": pope(beta=b, kl="k3", taper="ppo") for b in (0.0, 0.02, 0.05)},
        **{
            f"`{name}`": {
                f"{b:g}": (lambda batch, name=name, b=b: LOSSES[name].function(batch, beta=b)) for b in (0.05, 0.1, 0.2)
            }
            for name in ("dpo", "kto", "dro_v")
        },
        **{f"`{name}`": {"": LOSSES[name].function} for name in ("offline_pg", "topr")},
    }
    rows = []
    for name, by_beta in losses.items():
        tried = [runs(loss, 0.0, 500) for loss in by_beta.values()]
        best = max(tried, key=lambda found: statistics.fmean(found["utility"]))
        error = statistics.stdev(best["utility"]) / len(MENU_SEEDS) ** 0.5
        u, kl = statistics.fmean(best["utility"]), statistics.fmean(best["kl"])
        rows.append((u, f"| {name} | {', '.join(by_beta)} | {u:.3f} | {error:.3f} | {kl:.2f} |"))
    rows.sort(reverse=True)
    head = ["| loss | beta of | U | s.e. | KL from the log |", "|---|---|---|---|---|"]
    return [*lines, "", *head, *(row for _, row in rows)]


def main() -> int:
    """Write the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("text", "menu"), action="append", help="only this table; can be repeated")
    parser.add_argument("--out", type=Path, required=True, help="folder for models and tables")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for part in args.part or ("text", "menu"):
        lines = text_table(args.out) if part == "text" else menu_table()
        (args.out / f"defaults-{part}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print("\n".join(lines), flush=True)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())
