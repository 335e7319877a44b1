"""Time the whole default evaluation: in memory, from Parquet, as a command; write results/evaluate.{json,md}.

memory   `State.update` and the summary with every estimator, interval and diagnostic, beside jobs A + B.
parquet  `pope_fast.evaluate` on a file, beside pyarrow decoding the same columns and throwing them away.
command  `pope evaluate` on a file of a million rows, from the start of the process to its end.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data import Log, load_log, make_log, save
from jobs import ours_ab
from measure import alternate, extra_memory, machine, summary, usable_cores
from run import RESULTS, describe, publish

ROW_GROUP = 1 << 20
COMMAND_ROWS = 1_000_000
COLUMNS = {
    "prompt_id": "prompt_id",
    "behavior_logprob": "behavior",
    "target_logprob": "target",
    "reward": "reward",
    "cluster": "cluster",
}


def write_parquet(log: Log, path: Path) -> None:
    """Write the log as pyarrow does by default: snappy, dictionaries, row groups of 2^20 rows."""
    types = {name: pa.from_numpy_dtype(getattr(log, field).dtype) for name, field in COLUMNS.items()}
    schema = pa.schema(list(types.items()))
    with pq.ParquetWriter(path, schema, compression="snappy") as writer:
        for start in range(0, log.reward.size, ROW_GROUP):
            part = {name: getattr(log, field)[start : start + ROW_GROUP] for name, field in COLUMNS.items()}
            writer.write_table(pa.table(part, schema=schema), row_group_size=ROW_GROUP)


def in_memory(folder: Path, threads: int) -> dict[str, Any]:
    """Compare a full evaluation with one pass of A + B over the same arrays."""
    from pope_fast import _core

    log = load_log(folder)

    def full() -> Any:
        state = _core.State(["target"], (0.0, 1.0), has_cluster=True)
        state.update(log.prompt_id, log.behavior, [log.target], log.reward, cluster=log.cluster, threads=threads)
        return state.snapshot().summary("target")

    calls: dict[str, Callable[[], Any]] = {
        "full evaluation": full,
        "A + B": functools.partial(ours_ab, log, threads, True),
    }
    out: dict[str, Any] = {"rows": log.reward.size}
    for label, call in calls.items():
        _, out[f"{label} extra memory bytes"] = extra_memory(call)
    times = alternate(calls, repeats=7, budget=60.0)
    return out | {label: summary(seconds) for label, seconds in times.items()}


def decode_table(path: Path) -> None:
    """Decode all columns at once."""
    pq.read_table(path, columns=list(COLUMNS))


def decode_batches(path: Path) -> None:
    """Decode batch by batch, keeping none."""
    with pq.ParquetFile(path) as file:
        for _ in file.iter_batches(ROW_GROUP, columns=list(COLUMNS)):
            pass


def decode_groups(path: Path) -> None:
    """Decode row group by row group, keeping none."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            file.read_row_group(group, columns=list(COLUMNS))


def from_parquet(folder: Path, threads: int) -> dict[str, Any]:
    """Compare an evaluation of a file with decoding it in each of the ways that pyarrow has."""
    import pope_fast

    path = folder / "log.parquet"
    pa.set_cpu_count(threads)
    calls: dict[str, Callable[[], Any]] = {
        "evaluate": functools.partial(pope_fast.evaluate, path, threads=threads, progress=False),
        "decode batches": functools.partial(decode_batches, path),
        "decode row groups": functools.partial(decode_groups, path),
    }
    # Decoding the whole table takes and gives back gigabytes, and whoever runs next pays for fresh pages: it runs last.
    table: dict[str, Callable[[], Any]] = {"decode table": functools.partial(decode_table, path)}
    result = {}
    for group in (calls, table):
        for call in group.values():
            call()
        result |= {label: summary(seconds) for label, seconds in alternate(group, repeats=5, budget=60.0).items()}
    return result


def memory_of_evaluate(folder: Path, threads: int) -> dict[str, Any]:
    """Return the most memory that a process evaluating a file has held, libraries included."""
    import psutil

    import pope_fast

    started = psutil.Process().memory_info().rss
    _, grown = extra_memory(lambda: pope_fast.evaluate(folder / "log.parquet", threads=threads, progress=False))
    return {"peak_bytes": started + grown}


def command(folder: Path, repeats: int = 7) -> dict[str, Any]:
    """Return the wall time of `pope evaluate` as a process."""
    log = make_log(COMMAND_ROWS)
    path = folder / "million.parquet"
    write_parquet(log, path)
    pope = Path(sys.executable).with_name("pope")
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        subprocess.run([pope, "evaluate", path], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return {"rows": COMMAND_ROWS} | summary(seconds[1:])


PARTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "memory": in_memory,
    "parquet": from_parquet,
    "parquet memory": memory_of_evaluate,
}


def in_fresh_process(part: str, folder: Path, threads: int) -> dict[str, Any]:
    """Run a part alone, so that no other part's memory is held."""
    done = subprocess.run(
        [sys.executable, __file__, "--part", part, "--folder", str(folder), "--threads", str(threads)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"},
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({part: result}), file=sys.stderr, flush=True)
    return result


def report(found: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    memory, parquet, pope = found["memory"], found["parquet"], found["command"]
    full, pass_ab = memory["full evaluation"]["median_s"], memory["A + B"]["median_s"]
    file = parquet["evaluate"]["median_s"]
    decode = min(value["median_s"] for label, value in parquet.items() if label.startswith("decode"))
    extra = memory["full evaluation extra memory bytes"] / 1e6
    peak = found["parquet memory"]["peak_bytes"] / 1e9
    rows = f"{memory['rows']:.0e} rows"
    table = [
        ("evaluation", "time (s)", "beside", "time (s)", "ratio", "memory"),
        ("---", "---:", "---", "---:", "---:", "---"),
        (
            *(f"{rows} in memory", f"{full:.3g}", "A + B in one pass", f"{pass_ab:.3g}"),
            *(f"{full / pass_ab:.2f}", f"{extra:.0f} MB beyond the columns"),
        ),
        (
            *(
                f"{rows} of snappy Parquet",
                f"{file:.3g}",
                "pyarrow decoding the same columns",
                f"{decode:.3g}",
            ),
            *(f"{file / decode:.2f}", f"{peak:.2f} GB, the whole process"),
        ),
        (f"`pope evaluate`, {pope['rows']:.0e} rows", f"{pope['median_s']:.3g}", "", "", "", ""),
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    return "\n".join([*describe(found["machine"], found["threads"])[:2], *lines, ""])


def main() -> None:
    """Run all parts, or the one that a parent process asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=float, nargs="+", default=[1e8], help="size of the log: the last one")
    parser.add_argument("--threads", type=int, default=min(2, usable_cores()))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for evaluate.json and evaluate.md")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(PARTS[args.part](args.folder, args.threads)))
        return

    found: dict[str, Any] = {"machine": machine(), "threads": args.threads}
    with tempfile.TemporaryDirectory(prefix="pope-bench-") as name:
        folder = Path(name)
        found["command"] = command(folder)
        log = make_log(int(args.rows[-1]))
        save(log, folder)
        write_parquet(log, folder / "log.parquet")
        del log
        for part in PARTS:
            found[part] = in_fresh_process(part, folder, args.threads)
    publish(args.output, "evaluate", found, report(found))


if __name__ == "__main__":
    main()
