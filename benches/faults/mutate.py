"""Change bytes of good inputs and see what the readers do: every file is read or refused, none ends the process.

    python benches/faults/mutate.py --mutations 20000 --targets parquet
    make fuzz SECONDS=600

Each target writes good inputs, mutates them (bits, bytes, runs, splices, lengths, truncations; in Parquet files the
footer more often than the pages) and reads them in a child process. The child notes the number of each mutation before
it tries it, so that a death costs one mutation: it is counted, and a new child goes on behind it. Mutations depend on
target, seed and number alone. Exit code 1 if anything died, hung or raised what is no PopeError.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CORPUS = Path(__file__).with_name("corpus")
#: Address space of a child: a forged length must not take the machine down with it.
MEMORY = 64 << 30
#: Seconds for one mutation; reading a good input takes a hundredth of one.
PATIENCE = 60.0
ROWS = 240


class Target(NamedTuple):
    """Good inputs, what reads them, and where mutations go."""

    seeds: Callable[[], list[bytes]]
    use: Callable[[Path], object]
    suffix: str


def table(**extra: Any) -> Any:
    """Return a log with every kind of column."""
    import pyarrow as pa

    rng = np.random.default_rng(7)
    behavior = -rng.gamma(4.0, 1.0, ROWS)
    columns = {
        "prompt_id": np.arange(ROWS) // 4,
        "reward": rng.integers(0, 5, ROWS) / 4,
        "behavior_logprob": behavior,
        "target_logprob/x": behavior - rng.random(ROWS),
        "cluster": rng.integers(0, 4, ROWS),
        "group": [f"g{i % 3}" for i in range(ROWS)],
        "completion": [f"text {i}" for i in range(ROWS)],
        **extra,
    }
    return pa.table(columns)


def _lists(values: Any, widths: Any) -> list[list[float]]:
    ends = np.cumsum(widths)
    return [part.tolist() for part in np.split(values[: ends[-1]], ends[:-1])]


def token_table() -> Any:
    """Return a log with token log-probs and ids."""
    rng = np.random.default_rng(8)
    widths = rng.integers(1, 9, ROWS)
    tokens = -rng.random(int(widths.sum()))
    ids = _lists(np.arange(widths.sum()), widths)
    lists = _lists(tokens, widths)
    dropped = ["behavior_logprob", "target_logprob/x"]
    columns = {"behavior_token_logprobs": lists, "target_token_logprobs/x": lists, "completion_ids": ids}
    return table(**columns).drop_columns(dropped)


def vector_table() -> Any:
    """Return a log with embeddings."""
    vectors = np.random.default_rng(9).normal(size=(ROWS, 4))
    return table(embedding=vectors.tolist()).drop_columns(["cluster"])


def _parquet(data: Any, **options: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(data, sink, **options)
    return sink.getvalue().to_pybytes()


def parquet_seeds() -> list[bytes]:
    """Return logs in several encodings, and what the corpus has."""
    kept = [path.read_bytes() for path in sorted(CORPUS.glob("*.parquet"))]
    return [
        _parquet(table()),
        _parquet(table(), row_group_size=70, compression="zstd", data_page_version="2.0"),
        _parquet(table(), compression="NONE", use_dictionary=False, write_page_index=True, write_page_checksum=True),
        _parquet(token_table(), row_group_size=100),
        *kept,
    ]


def lines(data: Any) -> bytes:
    """Return a table as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in data.to_pylist()).encode()


def comma(data: Any) -> bytes:
    """Return a table as CSV."""
    import pyarrow as pa
    from pyarrow import csv

    sink = pa.BufferOutputStream()
    csv.write_csv(data, sink)
    return sink.getvalue().to_pybytes()


def _zstd(data: bytes) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def read_everything(path: Path) -> None:
    """Read a log in every way that there is: validated, as it is, evaluated."""
    from pope_fast.errors import PopeError
    from pope_fast.evaluate import evaluate
    from pope_fast.log import read_log, validate

    validate(path)
    with suppress(PopeError):
        read_log(path).to_arrow()
    evaluate(read_log(path), progress=False, threads=1)


def read_truth(path: Path) -> None:
    """Read a truth file."""
    from pope_fast.report.json import load_truth

    load_truth(path)


def truth_seed() -> list[bytes]:
    """Return truth files."""
    from pope_fast.data import demo_log

    return [demo_log().with_name("demo.truth.json").read_bytes()]


def read_state(path: Path) -> None:
    """Read a state, and what it sums up."""
    from pope_fast import _core

    state = _core.State.from_bytes(path.read_bytes())
    state.to_bytes()


def state_seed() -> list[bytes]:
    """Return the state of a small log."""
    from pope_fast import _core

    log = table()
    state = _core.State(["x"], (0.0, 1.0), has_cluster=True)
    state.update(
        np.asarray(log["prompt_id"], np.int64),
        np.asarray(log["behavior_logprob"]),
        [np.asarray(log["target_logprob/x"])],
        np.asarray(log["reward"]),
        cluster=np.asarray(log["cluster"], np.int64),
    )
    return [state.to_bytes()]


TARGETS: dict[str, Target] = {
    "parquet": Target(parquet_seeds, read_everything, ".parquet"),
    "tokens": Target(lambda: [_parquet(token_table(), row_group_size=90)], read_everything, ".parquet"),
    "embeddings": Target(lambda: [_parquet(vector_table()), lines(vector_table())], read_everything, ""),
    "jsonl": Target(lambda: [lines(table()), lines(token_table())], read_everything, ".jsonl"),
    "csv": Target(lambda: [comma(table())], read_everything, ".csv"),
    "gzip": Target(lambda: [gzip.compress(lines(table()))], read_everything, ".jsonl.gz"),
    "zstd": Target(lambda: [_zstd(lines(table()))], read_everything, ".jsonl.zst"),
    "truth": Target(truth_seed, read_truth, ".json"),
    "state": Target(state_seed, read_state, ".bin"),
}

_PIECES = (
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b";", b":", b"\n", b"\r", b"\x00", b"\xff", b"\xef\xbb\xbf", b"NaN"),
    *(b"\\ud800", b"1e999", b"-1", b"9" * 30, b"9" * 5000, b"[" * 3000, b"null", b"true", b"\xf0\x9f\x98\x80"),
    *(struct.pack("<i", value) for value in (0, -1, 1 << 30, -(1 << 31))),
)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a copy with one to eight changes."""
    out = bytearray(data)
    # The footer of a Parquet file is small, and decides about everything.
    footer = int.from_bytes(data[-8:-4], "little") + 8 if data[-4:] == b"PAR1" else 0
    for _ in range(int(rng.integers(1, 9)) if rng.random() < 0.5 else 1):
        if not out:
            break
        low = max(0, len(out) - footer) if footer and rng.random() < 0.7 else 0
        at = int(rng.integers(low, len(out)))
        match int(rng.integers(0, 7)):
            case 0:
                out[at] ^= 1 << int(rng.integers(0, 8))
            case 1 | 2:
                out[at] = int(rng.integers(0, 256))
            case 3:
                out[at : at + int(rng.integers(1, 16))] = rng.bytes(int(rng.integers(0, 16)))
            case 4:
                piece = _PIECES[int(rng.integers(0, len(_PIECES)))]
                out[at : at + (len(piece) if rng.random() < 0.5 else 0)] = piece
            case 5:
                start = int(rng.integers(0, len(out)))
                out[at:at] = out[start : start + int(rng.integers(1, 64))]
            case _:
                if rng.random() < 0.2:
                    del out[at:]
                else:
                    del out[at : at + int(rng.integers(1, 32))]
    return bytes(out)


def mutation(target: str, seeds: list[bytes], seed: int, number: int) -> bytes:
    """Return one mutated input: the same for the same target, seed and number."""
    rng = np.random.default_rng([seed, number, *target.encode()])
    return mutated(seeds[number % len(seeds)], rng)


def child(target: str, seed: int, first: int, stop: int, folder: Path, deadline: float) -> None:
    """Try mutations ``first`` to ``stop``, noting each before it is tried and its outcome after."""
    from pope_fast.errors import PopeError

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    chosen = TARGETS[target]
    seeds = chosen.seeds()
    with (folder / "log").open("a", buffering=1) as log:
        for number in range(first, stop):
            if time.time() > deadline:
                return
            suffix = chosen.suffix or (".parquet" if number % len(seeds) == 0 else ".jsonl")
            path = folder / f"input{suffix}"
            path.write_bytes(mutation(target, seeds, seed, number))
            log.write(f"{number} start\n")
            try:
                chosen.use(path)
                outcome = "read"
            except PopeError:
                outcome = "refused"
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                name = f"{type(error).__name__} at {Path(place.filename).name}:{place.name}"
                outcome = f"defect {name}"
            log.write(f"{number} {outcome}\n")


def _finished(log: Path) -> Iterator[tuple[int, str]]:
    for line in log.read_text().splitlines() if log.exists() else ():
        number, _, outcome = line.partition(" ")
        yield int(number), outcome


def run(target: str, mutations: int, seconds: float, seed: int) -> dict[str, Any]:
    """Try a target's mutations in children; return how they came out."""
    start = time.time()
    deadline = start + seconds
    outcomes: Counter[str] = Counter()
    cases: dict[str, int] = {}
    first = 0
    while first < mutations and time.time() < deadline:
        with tempfile.TemporaryDirectory(prefix="pope-mutate-") as name:
            folder = Path(name)
            arguments = ["--child", target, str(seed), str(first), str(mutations), name, str(deadline)]
            process = subprocess.Popen([sys.executable, __file__, *arguments], stderr=subprocess.DEVNULL)
            hung = _watch(process, folder / "log")
            done = list(_finished(folder / "log"))
        ended = {number: outcome for number, outcome in done if outcome != "start"}
        outcomes.update(outcome for outcome in ended.values())
        for number, outcome in ended.items():
            if outcome.startswith("defect"):
                cases.setdefault(outcome, number)
        last = max((number for number, _ in done), default=None)
        if last is None:
            raise SystemExit(f"{target}: the child did not start (exit code {process.returncode})")
        if last not in ended:
            outcome = "hung" if hung else f"died {process.returncode}"
            outcomes[outcome] += 1
            cases.setdefault(outcome, last)
        first = last + 1
    return {
        "mutations": sum(outcomes.values()),
        "seconds": round(time.time() - start, 1),
        "outcomes": dict(sorted(outcomes.items())),
        "cases": cases,
    }


def _watch(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait for a child; kill it, and return True, if it does not get on."""
    size, since = -1, time.time()
    while process.poll() is None:
        time.sleep(0.05)
        now = log.stat().st_size if log.exists() else 0
        if now != size:
            size, since = now, time.time()
        elif time.time() - since > PATIENCE:
            process.kill()
            process.wait()
            return True
    return False


def main() -> int:
    """Run the targets and report."""
    if sys.argv[1:2] == ["--child"]:
        target, seed, first, stop, folder, deadline = sys.argv[2:]
        child(target, int(seed), int(first), int(stop), Path(folder), float(deadline))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--mutations", type=int, default=10**9, help="of each target")
    parser.add_argument("--seconds", type=float, default=10**9, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    results = {name: run(name, options.mutations, options.seconds, options.seed) for name in options.targets}
    import pyarrow as pa

    content = {"seed": options.seed, "pyarrow": pa.__version__, "targets": results}
    text = json.dumps(content, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    bad = sum(len(result["cases"]) for result in results.values())
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
