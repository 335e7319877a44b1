"""Write the demo log that ships with the package, and its truth: python scripts/make_demo_log.py.

3000 prompts with 8 responses each, judged with thumbs up or down by three groups of annotators who like
different perspectives.  The policy "near" stays close to the logged one and can be evaluated; "far" cannot,
and the verdict must say so.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pope_fast import simulate

PERSPECTIVES = ("practical", "personal", "scientific", "historical", "ethical", "humorous")
GROUPS = ("students", "parents", "retirees")
DEMO = Path(__file__).resolve().parent.parent / "python" / "pope_fast" / "data" / "demo.parquet"


def demo_log() -> simulate.SimulatedLog:
    """Simulate the log; single precision for the log-probabilities, as inference servers give them."""
    log = simulate.table(
        prompts=3000,
        responses=8,
        seed=2026,
        groups=GROUPS,
        cluster_names=PERSPECTIVES,
        n_clusters=len(PERSPECTIVES),
        world_seed=2026,
    )
    fields = [
        pa.field(field.name, pa.float32() if pa.types.is_float64(field.type) else field.type)
        for field in log.table.schema
    ]
    return simulate.SimulatedLog(log.table.cast(pa.schema(fields)), log.truth)


def main() -> None:
    DEMO.parent.mkdir(exist_ok=True)
    log, truth = demo_log().write(DEMO, compression="zstd")
    print(f"{log.name}: {log.stat().st_size:,} bytes; {truth.name}: {truth.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
