"""Time the scoring of a log beside the other ways to do it; write results/scoring.{json,md}.

Each way scores the same completions of 64 tokens with the same model, dtype and threads, in a process of its own, with
the batch that suits it best; all must give the same sums. See scorers.py for the ways.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from measure import PACKAGES, machine, usable_cores
from run import RESULTS, publish
from scorers import COMPLETION

HERE = Path(__file__).resolve().parent
PROMPTS = (64, 256, 1024)
RESPONSES = (1, 8, 32)
PEERS = {"naive": ("naive",), "lm-eval": ("lm-eval",), "trl": ("trl fused", "trl selective")}

# Nats by which sums over 64 tokens may differ: relative for 16-bit models, whose own products are rounded.
TOLERANCE = {"float32": 1e-3}


def worker(args: argparse.Namespace, way: str, prompt: int, responses: int, rows: int, *more: str) -> dict[str, Any]:
    """Run one way in a fresh process."""
    numbers = {"--prompt": prompt, "--responses": responses, "--rows": rows, "--threads": args.threads}
    options = [str(item) for pair in numbers.items() for item in pair]
    options += ["--device", args.device, "--dtype", args.dtype, "--size", args.size, *more]
    done = subprocess.run(
        [sys.executable, str(HERE / "scorers.py"), way, *options],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(args.threads), "PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"},
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    shown = {name: value for name, value in result.items() if name != "sums"}
    print(json.dumps({"way": way, "prompt": prompt, "responses": responses} | shown), file=sys.stderr, flush=True)
    return result


def best_batches(args: argparse.Namespace, prompt: int) -> dict[str, tuple[str, int]]:
    """Return for each peer its fastest function and batch, tried on a part of the log."""
    rows = max(8, args.rows // 4 * min(256, prompt) // prompt)
    chosen = {}
    for peer, ways in PEERS.items():
        tried = {way: worker(args, way, prompt, 8, rows) for way in ways}
        way = min(tried, key=lambda name: tried[name]["median_s"])
        chosen[peer] = (way, tried[way]["tokens"])
    return chosen


def measure(args: argparse.Namespace, prompt: int, responses: int, batches: dict[str, tuple[str, int]]) -> Any:
    """Measure every way on one log, and compare the sums."""
    rows = max(responses, args.rows * min(256, prompt) // prompt)
    rows -= rows % responses
    results = {}
    sums: dict[str, Any] = {}
    for name, (way, tokens) in (batches | {"ours": ("ours", 0)}).items():
        found = worker(args, way, prompt, responses, rows, "--tokens", str(tokens), "--repeats", str(args.repeats))
        sums[name] = np.array(found.pop("sums"))
        speed = rows * COMPLETION / found["median_s"]
        results[name] = found | {"way": way, "batch_tokens": tokens, "tokens_per_s": speed}
    differences = {name: float(np.abs(value - sums["naive"]).max()) for name, value in sums.items()}
    if args.dtype in TOLERANCE and max(differences.values()) > TOLERANCE[args.dtype]:
        raise SystemExit(f"the sums differ at {prompt} tokens and {responses} responses: {differences}")
    return {"prompt": prompt, "responses": responses, "rows": rows, "ways": results, "differences": differences}


def table(found: list[dict[str, Any]]) -> list[str]:
    """Return the rows of the report."""
    names = {"naive": "naive", "lm-eval": "lm-eval", "trl": "TRL", "ours": "pope_fast"}
    head = ["prompt", "responses", *(f"{name} (tok/s)" for name in names.values()), "x lm-eval", "x best other"]
    head += [f"{name} (MB)" for name in names.values()]
    lines = [head, ["---:"] * len(head)]
    for case in found:
        speeds = {name: case["ways"][name]["tokens_per_s"] for name in names}
        best = max(speed for name, speed in speeds.items() if name != "ours")
        lines.append(
            [
                *(str(case["prompt"]), str(case["responses"])),
                *(f"{speed:,.0f}" for speed in speeds.values()),
                *(f"{speeds['ours'] / speeds['lm-eval']:.1f}", f"{speeds['ours'] / best:.1f}"),
                *(f"{case['ways'][name]['peak_bytes'] / 1e6:,.0f}" for name in names),
            ]
        )
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def report(found: dict[str, Any]) -> str:
    """Return the whole report as Markdown."""
    about, options = found["machine"], found["options"]
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    agreed = max(max(case["differences"].values()) for case in found["cases"])
    used = sorted({case["ways"]["trl"]["way"] for case in found["cases"]})
    place = about.get("gpu") or f"{options['threads']} threads"
    return "\n".join(
        [
            f"Measured {about['date']} with {place} on {about['cpu']} ({about['cores']} cores, "
            f"{about['memory_gb']} GB), {about['system']}, Python {about['python']}; {versions}.",
            "",
            f"Completion tokens scored per second: completions of {COMPLETION} tokens, a Llama ({options['size']})",
            f"with a vocabulary of 32,000 in {options['dtype']}, on the {options['device']}. Median of "
            f"{options['repeats']} runs, each way in a process of its own",
            "with the batch that suits it best, of 1,024, 4,096 and 16,384 tokens; ours chooses its own.",
            f"TRL is the faster of its two ways ({' and '.join(used)}).",
            "Memory is the peak of the process, libraries and model included. "
            f"All sums over a completion agree to {agreed:.0e} nats.",
            "",
            *table(found["cases"]),
            "",
        ]
    )


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=list(PROMPTS))
    parser.add_argument("--responses", type=int, nargs="+", default=list(RESPONSES))
    parser.add_argument("--rows", type=int, default=64, help="completions; a quarter at 1024 tokens and so on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, usable_cores()))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--size", choices=["tiny", "1b"], default="tiny")
    parser.add_argument("--quick", action="store_true", help="one small case, nothing written")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for scoring.json and scoring.md")
    return parser.parse_args()


def main() -> None:
    """Measure all cases and write the results."""
    args = arguments()
    if args.quick:
        args.prompts, args.responses, args.rows, args.repeats = [256], [8], 16, 1
    about = machine()
    about["packages"] |= versions("transformers", "trl", "lm-eval")
    if args.device == "cuda":
        import torch

        about["gpu"] = torch.cuda.get_device_name()
    shown = ("threads", "device", "dtype", "size", "repeats")
    found: dict[str, Any] = {"machine": about, "options": {name: getattr(args, name) for name in shown}, "cases": []}
    batches = {prompt: best_batches(args, prompt) for prompt in args.prompts}
    for prompt, responses in itertools.product(args.prompts, args.responses):
        found["cases"].append(measure(args, prompt, responses, batches[prompt]))
    if args.quick:
        sys.stdout.write(report(found))
    else:
        publish(args.output, "scoring" if args.device == "cpu" else f"scoring_{args.device}", found, report(found))


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of packages that only this benchmark compares."""
    from importlib.metadata import version

    return {package: version(package) for package in packages if package not in PACKAGES}


if __name__ == "__main__":
    main()
