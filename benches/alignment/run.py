"""Run the experiment: python benches/alignment/run.py --full --out FOLDER (or --quick for a look at the pipeline).

Every run leaves a JSON file in FOLDER; what is there is not run again, so a run that was stopped goes on, and parts can
be run one after the other (--part). `--part tables` writes the tables and figures from what is there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = ("models", "tuning", "alignment", "ablation", "evaluation", "tables")

Task = tuple[str, str, tuple[Any, ...]]
"""Name of the JSON file, kind of task, its arguments."""


def start_worker() -> None:
    """One thread for each process: there are as many processes as cores."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def perform(folder: Path, quick: bool, task: Task) -> tuple[str, float]:
    """Run one task in a worker and write its JSON file."""
    from ablation import ablate
    from evaluation import evaluate
    from world import FULL, QUICK

    from alignment import final, prepare_base, prepare_world, tune, write

    name, kind, arguments = task
    size = QUICK if quick else FULL
    started = time.process_time()
    if kind == "base":
        prepare_base(folder, size)
    elif kind == "world":
        prepare_world(folder, size, *arguments)
    else:
        function = {"tune": tune, "final": final, "ablate": ablate, "evaluate": evaluate}[kind]
        write(folder / f"{name}.json", function(folder, size, *arguments))
    return name, time.process_time() - started


def stages(quick: bool, parts: Iterable[str]) -> list[tuple[str, list[Task]]]:
    """All tasks, in stages that build on each other."""
    from methods import ABLATIONS, METHODS
    from world import FIRST_SEED, FULL, QUICK, TUNING_SEED

    size = QUICK if quick else FULL
    names = size.methods or tuple(METHODS)
    seeds = range(FIRST_SEED, FIRST_SEED + size.seeds)
    tuned = [name for name in names if METHODS[name].tuned_as is None]
    tried = [(name, i) for name in tuned for i in range(size.configurations)]
    ablations = list(ABLATIONS)[:2] if quick else list(ABLATIONS)
    all_stages: dict[str, list[list[Task]]] = {
        "models": [
            [("base", "base", ())],
            [(f"logger{seed}", "world", (seed,)) for seed in (TUNING_SEED, *seeds)],
        ],
        "tuning": [[(f"tune-{name}-{i}", "tune", (TUNING_SEED, name, i)) for name, i in tried]],
        # The longest task goes first, so that no core waits for it at the end.
        "evaluation": [[("evaluation", "evaluate", ())]],
        "alignment": [[(f"final-{name}-{seed}", "final", (seed, name)) for seed in seeds for name in names]],
        "ablation": [[(f"ablation-{name}-{seed}", "ablate", (seed, name)) for seed in seeds for name in ablations]],
    }
    chosen = [(part, tasks) for part in all_stages if part in parts for tasks in all_stages[part]]
    # What comes after the tuning is independent of each other: one stage.
    late = [task for part, tasks in chosen if part in ("evaluation", "alignment", "ablation") for task in tasks]
    early = [(part, tasks) for part, tasks in chosen if part in ("models", "tuning")]
    return [*early, *([("alignment, ablation, evaluation", late)] if late else [])]


def run(folder: Path, quick: bool, parts: Iterable[str], workers: int) -> None:
    """Run what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker) as pool:
        for title, tasks in stages(quick, parts):
            missing = [task for task in tasks if not (folder / _file(task)).exists()]
            started, cpu = time.perf_counter(), 0.0
            futures = [pool.submit(perform, folder, quick, task) for task in missing]
            for i, future in enumerate(as_completed(futures), start=1):
                name, seconds = future.result()
                cpu += seconds
                print(f"{title} {i}/{len(missing)} {name} {seconds:.1f} s", flush=True)
            log_time(folder, title, len(missing), time.perf_counter() - started, cpu)


def _file(task: Task) -> str:
    return "base/config.json" if task[1] == "base" else f"{task[0]}.json"


def log_time(folder: Path, title: str, tasks: int, wall: float, cpu: float) -> None:
    """Add up what a stage took, over all the times that the script was started."""
    path = folder / "times.json"
    times = json.loads(path.read_text()) if path.exists() else {}
    entry = times.setdefault(title, {"tasks": 0, "wall_seconds": 0.0, "cpu_seconds": 0.0})
    entry["tasks"] += tasks
    entry["wall_seconds"] += wall if tasks else 0.0
    entry["cpu_seconds"] += cpu
    path.write_text(json.dumps(times, indent=1) + "\n")


def main() -> int:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--full", action="store_true", help="the experiment: under 40 minutes on two idle cores")
    size.add_argument(
        "--quick", action="store_true", help="every part in the smallest size: under a minute, no results"
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; can be repeated")
    parser.add_argument("--out", type=Path, required=True, help="folder for models, runs, tables and figures")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parts = args.part or PARTS
    run(args.out, args.quick, parts, args.workers)
    if "tables" in parts:
        from tables import write_tables
        from world import FULL, QUICK

        report = write_tables(args.out, asdict(QUICK if args.quick else FULL))
        print(f"wrote {report}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())
