"""Compare pope_fast with peers on jobs A, B and D; write results/jobs.json and results/jobs.md.

Each peer runs in a process of its own, in turn with pope_fast on the same arrays, at every size. Run it on an
idle machine: `make bench`, or `python benches/run.py --rows 1e6` for a first look.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from data import make_log, make_tokens, save
from jobs import PEERS, TOLERANCE
from measure import machine, usable_cores

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
TOKEN_RESPONSES = 1_000_000


def worker(job: str, peer: str, folder: Path, threads: int) -> dict[str, Any]:
    """Run one comparison in a fresh process; a peer that runs out of memory is reported, not fatal."""
    environment = os.environ | {
        "POLARS_MAX_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "NUMBA_NUM_THREADS": str(threads),
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "jobs.py"), job, peer, str(folder), str(threads)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode < 0:
        return {"job": job, "peer": peer, "name": peer, "failed": f"killed by signal {-done.returncode}"}
    if not done.stdout.strip():
        return {"job": job, "peer": peer, "name": peer, "failed": f"exit code {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if done.returncode != 0:
        sys.exit(f"{peer} and pope_fast disagree on job {job} by {result['disagreement']:.1e} > {TOLERANCE}")
    return result


def seconds(result: dict[str, Any], label: str) -> float | None:
    """Return the median time of one side of a comparison."""
    found = result.get(label, {}).get("median_s")
    return None if found is None else float(found)


def best_ab(result: dict[str, Any]) -> float | None:
    """Return the peer's time for A and B: in one pass or one after the other, whichever is shorter."""
    fused, a, b = (seconds(result, f"theirs {part}") for part in ("AB", "A", "B"))
    apart = a + b if a is not None and b is not None else None
    return min((time for time in (fused, apart) if time is not None), default=None)


def cell(value: float | None) -> str:
    """Format a time for the table."""
    return "-" if value is None else f"{value:.3g}"


def megabytes(result: dict[str, Any], side: str) -> str:
    """Return by how much a side made the process grow."""
    return f"{result[f'{side} extra memory bytes'] / 1e6:.0f}"


def row(*cells: str) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def ratio(theirs: float | None, ours: float | None) -> str:
    """Return how many times longer the peer took."""
    return "-" if theirs is None or ours is None else f"{theirs / ours:.2g}"


def table_ab(results: list[dict[str, Any]]) -> list[str]:
    """Return the table of jobs A and B at one size."""
    lines = [
        row("", "A (s)", "B (s)", "A + B in one pass (s)", "A + B: times ours", "extra memory (MB)"),
        "|---|---:|---:|---:|---:|---:|",
    ]
    whole = [result for result in results if "failed" not in result]
    mine = min(whole, key=lambda result: seconds(result, "ours AB") or 0.0)
    times = [cell(seconds(mine, f"ours {part}")) for part in ("A", "B", "AB")]
    lines.append(row("**pope_fast**", *times, "1", megabytes(mine, "ours")))
    for result in results:
        if "failed" in result:
            lines.append(row(result["name"], result["failed"], "", "", "", ""))
            continue
        times = [cell(seconds(result, f"theirs {part}")) for part in ("A", "B", "AB")]
        memory = megabytes(result, "theirs")
        lines.append(row(result["name"], *times, ratio(best_ab(result), seconds(result, "ours AB")), memory))
    return lines


def table_d(results: list[dict[str, Any]]) -> list[str]:
    """Return the table of job D."""
    lines = [row("", "D (s)", "times ours", "extra memory (MB)"), "|---|---:|---:|---:|"]
    whole = [result for result in results if "failed" not in result]
    mine = min(whole, key=lambda result: seconds(result, "ours D") or 0.0)
    lines.append(row("**pope_fast**", cell(seconds(mine, "ours D")), "1", megabytes(mine, "ours")))
    for result in results:
        if "failed" in result:
            lines.append(row(result["name"], result["failed"], "", ""))
            continue
        theirs = seconds(result, "theirs D")
        memory = megabytes(result, "theirs")
        lines.append(row(result["name"], cell(theirs), ratio(theirs, seconds(result, "ours D")), memory))
    return lines


def describe(about: dict[str, Any], threads: int) -> list[str]:
    """Return the lines that say where the figures come from."""
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return [
        f"Measured {about['date']} with {threads} threads on {about['cpu']} ({about['cores']} cores, "
        f"{about['memory_gb']} GB), {about['system']}, Python {about['python']}; {versions}.",
        "",
        "Times are medians. A ratio compares a peer with pope_fast in the same process, each in turn on the",
        "same arrays; the row of pope_fast is its fastest process. Extra memory is what the process grew by,",
        f"beyond the columns. All peers gave the same numbers to {TOLERANCE:g}.",
        "",
    ]


def report(found: dict[str, Any]) -> str:
    """Return the whole report as Markdown."""
    lines = describe(found["machine"], found["threads"])
    for size, results in found["AB"].items():
        lines += [f"## A and B, {float(size):.0e} rows", "", *table_ab(results), ""]
    if found["D"]:
        lines += [f"## D, {found['D'][0]['rows'] / 1e6:.0f} million tokens", "", *table_d(found["D"]), ""]
    return "\n".join(lines)


def publish(folder: Path, name: str, found: dict[str, Any], text: str) -> None:
    """Write results as JSON and as Markdown, and show the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=float, nargs="+", default=[1e6, 1e7, 1e8], help="sizes of the log")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="who takes part")
    parser.add_argument("--responses", type=float, default=TOKEN_RESPONSES, help="responses of job D; 0: leave out")
    parser.add_argument("--threads", type=int, default=min(2, usable_cores()))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for jobs.json and jobs.md")
    return parser.parse_args()


def main() -> None:
    """Run the comparisons that the command line asks for."""
    args = arguments()
    peers = [peer for peer in args.peers if importlib.util.find_spec(PEERS[peer][0])]
    for absent in set(args.peers) - set(peers):
        print(f"{absent}: not installed, left out", file=sys.stderr)
    found: dict[str, Any] = {"machine": machine(), "threads": args.threads, "AB": {}, "D": []}

    def compare(job: str, folder: Path) -> list[dict[str, Any]]:
        results = []
        for peer in peers:
            results.append(worker(job, peer, folder, args.threads))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        return results

    for rows in map(int, args.rows):
        with tempfile.TemporaryDirectory(prefix="pope-bench-") as folder:
            save(make_log(rows), Path(folder))
            found["AB"][str(rows)] = compare("AB", Path(folder))
    if args.responses:
        with tempfile.TemporaryDirectory(prefix="pope-bench-") as folder:
            save(make_tokens(int(args.responses)), Path(folder))
            found["D"] = compare("D", Path(folder))

    publish(args.output, "jobs", found, report(found))


if __name__ == "__main__":
    main()
