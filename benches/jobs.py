"""One peer against pope_fast in one process: `python jobs.py JOB PEER FOLDER THREADS` prints a JSON line.

JOB is AB (a log in FOLDER) or D (ragged tokens in FOLDER). Both sides run on the same arrays in turn, so that
no change of the machine favors one of them. The numbers of both must agree; if they do not, there is nothing
to compare and the exit code is 1.

A   IPS, SNIPS, clipped IPS, ESS, largest weight, standard error of SNIPS clustered by prompt.
B   cluster masses within each prompt, their entropy, its mean and variance over prompts.
AB  both, in one pass where the peer can.
D   for each response the sum, the mean and the clipped sum of its token log-ratios.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data import CLIP, TOKEN_CLIP, Log, Tokens, load_log, load_tokens, make_log, make_tokens
from measure import alternate, extra_memory, summary

# Name on the command line: package it needs, module, class.
PEERS = {
    "numba": ("numba", "scan", "Numba"),
    "polars": ("polars", "engines", "Polars"),
    "duckdb": ("duckdb", "engines", "DuckDB"),
    "numpy": ("numpy", "peers", "NumPy"),
    "numpy-blocks": ("numpy", "peers", "BlockedNumPy"),
    "torch": ("torch", "peers", "Torch"),
    "pandas": ("pandas", "peers", "Pandas"),
    "read": ("numpy", "peers", "ReadOnce"),
}
# Sums in double precision depend on the order of summation; 1e8 terms lose no more than this.
TOLERANCE = 1e-9


def ours_ab(log: Log, threads: int, with_clusters: bool) -> dict[str, float]:
    """Run the kernel of pope_fast on a log."""
    from pope_fast import _core

    cluster = log.cluster if with_clusters else None
    found = _core.prompt_scan(log.prompt_id, log.target, log.behavior, log.reward, cluster, CLIP, threads=threads)
    return {name: value for name, value in found.items() if value is not None}


def ours_d(tokens: Tokens, threads: int) -> tuple[Any, Any, Any]:
    """Run the kernel of pope_fast on token log-probs."""
    from pope_fast import _core

    return _core.token_sums(tokens.offsets, tokens.target, tokens.behavior, TOKEN_CLIP, threads=threads)


def disagreement(ours: Any, theirs: Any) -> float:
    """Return the largest relative difference between two results, over the numbers that `theirs` has."""
    if isinstance(theirs, dict):
        pairs = [(ours[name], value) for name, value in theirs.items()]
    else:
        pairs = list(zip(ours, theirs, strict=True)) if theirs is not None else []
    worst = 0.0
    for mine, other in pairs:
        scale = np.maximum(np.abs(np.asarray(other, dtype=np.float64)), 1.0)
        worst = max(worst, float(np.max(np.abs(mine - other) / scale)))
    return worst


def functions(job: str, data: Any, implementation: Any, threads: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return what each side runs, by part of the job."""
    if job == "D":
        return {
            "ours": {"D": functools.partial(ours_d, data, threads)},
            "theirs": {"D": implementation.tokens(data)},
        }
    return {
        "ours": {
            "A": functools.partial(ours_ab, data, threads, False),
            "AB": functools.partial(ours_ab, data, threads, True),
        },
        "theirs": implementation.log(data),
    }


def measure(job: str, peer: str, folder: Path, threads: int) -> dict[str, Any]:
    """Run a peer and pope_fast in turn and return times, memory and the largest disagreement."""
    _, module, name = PEERS[peer]
    implementation = getattr(importlib.import_module(module), name)(threads)
    # A little data first: compilers, thread pools and lazy imports are not the memory of a job.
    small = make_tokens(100) if job == "D" else make_log(8_000)
    for parts in functions(job, small, implementation, threads).values():
        for call in parts.values():
            call()

    data = load_tokens(folder) if job == "D" else load_log(folder)
    rows = data.target.size
    out: dict[str, Any] = {"job": job, "peer": peer, "name": implementation.name, "rows": rows}
    sides = functions(job, data, implementation, threads)
    found: dict[str, dict[str, Any]] = {}
    for side, parts in sides.items():
        # All parts together: what an allocator keeps after the first must not hide what the second needs.
        found[side], out[f"{side} extra memory bytes"] = extra_memory(
            lambda parts=parts: {part: call() for part, call in parts.items()}
        )
    reference = found["ours"]["D" if job == "D" else "AB"]
    out["disagreement"] = max(disagreement(reference, result) for result in found["theirs"].values())
    del found, reference
    calls = {f"{side} {part}": call for side, parts in sides.items() for part, call in parts.items()}
    return out | {label: summary(seconds) for label, seconds in alternate(calls).items()}


def main() -> int:
    """Measure what the command line names."""
    job, peer, folder, threads = sys.argv[1:5]
    os.environ["POLARS_MAX_THREADS"] = threads
    # Should memory run out, let it be this process that ends, and not another one of this machine.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    result = measure(job, peer, Path(folder), int(threads))
    print(json.dumps(result))
    return int(result["disagreement"] > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
