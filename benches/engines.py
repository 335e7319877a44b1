"""polars and DuckDB: jobs A, B and D as queries.

Cluster masses come from one masked sum per cluster in a single group-by, which both engines do faster than a
group-by of (prompt, cluster) followed by one of prompts; the clusters must be few and known for it, as here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from data import CLIP, CLUSTERS, TOKEN_CLIP, Log, Tokens
from totals import a_from_sums, b_from_sums

Jobs = dict[str, Callable[[], dict[str, float]]]
B_SUMS = ("prompts", "sh", "shh")
A_SUMS = ("rows", "prompts", "sw", "swr", "sc", "sw2", "largest", "saa", "san", "snn")


def arrow_log(log: Log) -> pa.Table:
    """Return the columns as an Arrow table, without a copy."""
    return pa.table(
        {
            "prompt_id": log.prompt_id,
            "target": log.target,
            "behavior": log.behavior,
            "reward": log.reward,
            "cluster": log.cluster,
        }
    )


def row_numbers(tokens: Tokens) -> Any:
    """Return for every token the number of its response."""
    return np.repeat(np.arange(tokens.offsets.size - 1, dtype=np.int32), np.diff(tokens.offsets))


class Polars:
    """Lazy queries on the streaming engine; the pool has the threads of POLARS_MAX_THREADS."""

    name = "polars streaming"

    def __init__(self, threads: int) -> None:
        """Use the pool that polars started."""

    def log(self, log: Log) -> Jobs:
        """Return the functions that do jobs A and B."""
        import polars as pl

        frame = pl.from_arrow(arrow_log(log))
        assert isinstance(frame, pl.DataFrame)
        w, r, a, n, h = map(pl.col, ("w", "r", "a", "n", "h"))
        rows = frame.lazy().select(
            "prompt_id",
            "cluster",
            w=(pl.col("target").cast(pl.Float64) - pl.col("behavior").cast(pl.Float64)).exp(),
            r=pl.col("reward").cast(pl.Float64),
        )
        masses = [f"mass_{c}" for c in range(CLUSTERS)]
        of_a = {
            "rows": pl.len(),
            "n": (w * r).sum(),
            "sc": (w.clip(upper_bound=CLIP) * r).sum(),
            "sw2": (w * w).sum(),
            "largest": w.max(),
        }
        of_b = {name: (w * (pl.col("cluster") == c)).sum() for c, name in enumerate(masses)}
        totals_a = {
            "rows": pl.col("rows").sum(),
            "prompts": pl.len(),
            "sw": a.sum(),
            "swr": n.sum(),
            "sc": pl.col("sc").sum(),
            "sw2": pl.col("sw2").sum(),
            "largest": pl.col("largest").max(),
            "saa": (a * a).sum(),
            "san": (a * n).sum(),
            "snn": (n * n).sum(),
        }
        totals_b = {"prompts": pl.len(), "sh": h.sum(), "shh": (h * h).sum()}
        mlogm = [pl.when(pl.col(m) > 0.0).then(pl.col(m) * pl.col(m).log()).otherwise(0.0) for m in masses]
        entropy = a.log() - pl.sum_horizontal(mlogm) / a

        groups = rows.group_by("prompt_id")
        query_a = groups.agg(a=w.sum(), **of_a).select(**totals_a)
        query_b = groups.agg(a=w.sum(), **of_b).with_columns(h=entropy).select(**totals_b)
        query_ab = groups.agg(a=w.sum(), **of_a, **of_b).with_columns(h=entropy).select(**(totals_a | totals_b))

        def run(query: pl.LazyFrame) -> dict[str, float]:
            row = query.collect(engine="streaming").row(0, named=True)
            numbers: dict[str, float] = {}
            if "sw" in row:
                numbers |= a_from_sums(*(float(row[name]) for name in A_SUMS))
            if "sh" in row:
                numbers |= b_from_sums(*(float(row[name]) for name in B_SUMS))
            return numbers

        return {"A": lambda: run(query_a), "B": lambda: run(query_b), "AB": lambda: run(query_ab)}

    def tokens(self, tokens: Tokens) -> Callable[[], tuple[Any, Any, Any]]:
        """Return the function that does job D, given the row number of each token, known to be sorted."""
        import polars as pl

        frame = pl.DataFrame(
            {"row": row_numbers(tokens), "target": tokens.target, "behavior": tokens.behavior}
        ).with_columns(pl.col("row").set_sorted())
        d = pl.col("d")
        query = (
            frame.lazy()
            .select("row", d=pl.col("target").cast(pl.Float64) - pl.col("behavior").cast(pl.Float64))
            .group_by("row", maintain_order=True)
            .agg(plain=d.sum(), mean=d.mean(), clipped=d.clip(-TOKEN_CLIP, TOKEN_CLIP).sum())
        )

        def run() -> tuple[Any, Any, Any]:
            out = query.collect(engine="streaming")
            return out["plain"].to_numpy(), out["mean"].to_numpy(), out["clipped"].to_numpy()

        return run


class DuckDB:
    """SQL over DuckDB's own tables in memory."""

    name = "DuckDB"

    def __init__(self, threads: int) -> None:
        """Open a database in memory."""
        import duckdb

        self.connection = duckdb.connect(config={"threads": threads})

    def _load(self, table: pa.Table) -> None:
        self.connection.register("arrow", table)
        self.connection.execute("CREATE OR REPLACE TABLE log AS SELECT * FROM arrow")
        self.connection.unregister("arrow")

    def log(self, log: Log) -> Jobs:
        """Return the functions that do jobs A and B."""
        self._load(arrow_log(log))
        masses = [f"mass_{c}" for c in range(CLUSTERS)]
        masked = [f"sum(CASE WHEN cluster = {c} THEN w ELSE 0 END) AS {m}" for c, m in enumerate(masses)]
        mlogm = " + ".join(f"CASE WHEN {m} > 0 THEN {m} * ln({m}) ELSE 0 END" for m in masses)
        of_a = [
            "count(*) AS k",
            "sum(w * r) AS n",
            f"sum(least(w, {CLIP}) * r) AS sc",
            "sum(w * w) AS w2",
            "max(w) AS top",
        ]
        totals_a = "sum(k), count(*), sum(a), sum(n), sum(sc), sum(w2), max(top), sum(a * a), sum(a * n), sum(n * n)"
        totals_b = "count(*), sum(h), sum(h * h)"

        def query(per_prompt: list[str], entropy: str, totals: str) -> str:
            return f"""
                WITH weighted AS (
                    SELECT prompt_id, cluster, reward::DOUBLE AS r,
                           exp(target::DOUBLE - behavior::DOUBLE) AS w
                    FROM log
                ), prompts AS (
                    SELECT prompt_id, {", ".join(["sum(w) AS a", *per_prompt])}
                    FROM weighted GROUP BY prompt_id
                ), entropies AS (SELECT *{entropy} FROM prompts)
                SELECT {totals} FROM entropies
            """

        entropy = f", ln(a) - ({mlogm}) / a AS h"
        query_a = query(of_a, "", totals_a)
        query_b = query(masked, entropy, totals_b)
        query_ab = query([*of_a, *masked], entropy, f"{totals_a}, {totals_b}")

        def run(query: str) -> list[float]:
            (row,) = self.connection.execute(query).fetchall()
            return [float(value) for value in row]

        def ab() -> dict[str, float]:
            row = run(query_ab)
            return a_from_sums(*row[: len(A_SUMS)]) | b_from_sums(*row[len(A_SUMS) :])

        return {"A": lambda: a_from_sums(*run(query_a)), "B": lambda: b_from_sums(*run(query_b)), "AB": ab}

    def tokens(self, tokens: Tokens) -> Callable[[], tuple[Any, Any, Any]]:
        """Return the function that does job D; the row number of each token is given to it."""
        columns = {"row": row_numbers(tokens), "target": tokens.target, "behavior": tokens.behavior}
        self._load(pa.table(columns))
        query = f"""
            WITH diffs AS (SELECT row, target::DOUBLE - behavior::DOUBLE AS d FROM log)
            SELECT row, sum(d) AS plain, avg(d) AS mean,
                   sum(greatest(least(d, {TOKEN_CLIP}), -{TOKEN_CLIP})) AS clipped
            FROM diffs GROUP BY row
        """

        def run() -> tuple[Any, Any, Any]:
            out = self.connection.execute(query).fetchnumpy()
            order = np.argsort(out["row"])
            return out["plain"][order], out["mean"][order], out["clipped"][order]

        return run
