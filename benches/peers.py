"""NumPy, pandas and torch: jobs A, B and D as one would write them to be fast, each in its own idiom.

Every class turns the columns into its native form once, outside the measured time.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from data import CLIP, CLUSTERS, TOKEN_CLIP, Log, Tokens
from totals import a_from_sums, b_from_sums

BLOCK_ROWS = 1 << 16
Jobs = dict[str, Callable[[], dict[str, float]]]


def sums(prompt_id: Any, target: Any, behavior: Any, reward: Any, cluster: Any, jobs: str) -> tuple[float, ...]:
    """Return the sums of job A, of job B, or of both, over some whole prompts.

    The entropy of a prompt is -sum q log q = log W - sum m log m / W, m the masses of clusters, W their sum.
    """
    w = np.subtract(target, behavior, dtype=np.float64)
    np.exp(w, out=w)
    starts = np.concatenate(([0], np.flatnonzero(prompt_id[1:] != prompt_id[:-1]) + 1))
    a = np.add.reduceat(w, starts)
    out: tuple[float, ...] = ()
    if "A" in jobs:
        wr = w * reward
        n = np.add.reduceat(wr, starts)
        clipped = np.minimum(w, CLIP, out=wr)
        clipped *= reward
        out += (starts.size, a.sum(), n.sum(), clipped.sum(), np.dot(w, w), w.max())
        out += (np.dot(a, a), np.dot(a, n), np.dot(n, n))
    if "B" in jobs:
        bins = np.zeros(w.size, np.int64)
        bins[starts[1:]] = CLUSTERS
        np.cumsum(bins, out=bins)
        bins += cluster
        mass = np.bincount(bins, weights=w, minlength=CLUSTERS * starts.size)
        logs = np.log(mass, out=np.zeros_like(mass), where=mass > 0.0)
        logs *= mass
        h = np.log(a) - logs.reshape(-1, CLUSTERS).sum(axis=1) / a
        out += (starts.size, h.sum(), np.dot(h, h))
    return out


def combine(rows: int, jobs: str, parts: list[tuple[float, ...]]) -> dict[str, float]:
    """Add up the sums of blocks and turn them into the numbers of the jobs."""
    table = np.array(parts)
    total = [float(value) for value in table.sum(axis=0)]
    numbers: dict[str, float] = {}
    if "A" in jobs:
        prompts, sw, swr, sc, sw2, _, saa, san, snn = total[:9]
        numbers |= a_from_sums(rows, prompts, sw, swr, sc, sw2, float(table[:, 5].max()), saa, san, snn)
    if "B" in jobs:
        numbers |= b_from_sums(*total[-3:])
    return numbers


class NumPy:
    """Whole arrays: what most people write."""

    name = "NumPy"

    def __init__(self, threads: int) -> None:
        """NumPy's ufuncs use one thread."""

    def log(self, log: Log) -> Jobs:
        """Return the functions that do jobs A, B and both."""

        def run(jobs: str) -> dict[str, float]:
            columns = (log.prompt_id, log.target, log.behavior, log.reward, log.cluster)
            return combine(log.reward.size, jobs, [sums(*columns, jobs)])

        return {jobs: functools.partial(run, jobs) for jobs in ("A", "B", "AB")}

    def tokens(self, tokens: Tokens) -> Callable[[], tuple[Any, Any, Any]]:
        """Return the function that does job D."""

        def d() -> tuple[Any, Any, Any]:
            return sums_d(tokens.offsets, tokens.target, tokens.behavior)

        return d


def sums_d(offsets: Any, target: Any, behavior: Any) -> tuple[Any, Any, Any]:
    """Return the sums of job D for some whole responses, none of them empty."""
    diff = np.subtract(target, behavior, dtype=np.float64)
    plain = np.add.reduceat(diff, offsets[:-1])
    np.clip(diff, -TOKEN_CLIP, TOKEN_CLIP, out=diff)
    return plain, plain / np.diff(offsets), np.add.reduceat(diff, offsets[:-1])


class BlockedNumPy:
    """Blocks that fit the cache, on a pool of threads: NumPy at its best, and twice the code."""

    name = "NumPy, cache blocks on threads"

    def __init__(self, threads: int) -> None:
        """Start the pool; NumPy releases the GIL inside its loops."""
        self.pool = ThreadPoolExecutor(threads)

    def log(self, log: Log) -> Jobs:
        """Return the functions that do jobs A and B."""
        rows = log.reward.size

        def edges() -> list[int]:
            found = [0]
            for at in range(BLOCK_ROWS, rows, BLOCK_ROWS):
                edge = at
                while edge < rows and log.prompt_id[edge] == log.prompt_id[edge - 1]:
                    edge += 1
                if edge > found[-1]:
                    found.append(edge)
            return found if found[-1] == rows else [*found, rows]

        def run(jobs: str) -> dict[str, float]:
            columns = (log.prompt_id, log.target, log.behavior, log.reward, log.cluster)
            blocks = ([column[low:high] for column in columns] for low, high in itertools.pairwise(edges()))
            return combine(rows, jobs, list(self.pool.map(lambda block: sums(*block, jobs), blocks)))

        return {jobs: functools.partial(run, jobs) for jobs in ("A", "B", "AB")}

    def tokens(self, tokens: Tokens) -> Callable[[], tuple[Any, Any, Any]]:
        """Return the function that does job D."""
        offsets = tokens.offsets

        def block(edge: tuple[int, int]) -> tuple[Any, Any, Any]:
            own = offsets[edge[0] : edge[1] + 1]
            part = slice(int(own[0]), int(own[-1]))
            return sums_d(own - own[0], tokens.target[part], tokens.behavior[part])

        def d() -> tuple[Any, Any, Any]:
            marks = np.searchsorted(offsets, np.arange(0, offsets[-1], BLOCK_ROWS))
            cut = np.unique(np.append(marks, offsets.size - 1)).tolist()
            parts = list(self.pool.map(block, itertools.pairwise(cut)))
            plain, mean, clipped = (np.concatenate(column) for column in zip(*parts, strict=True))
            return plain, mean, clipped

        return d


class Pandas:
    """Group-by in pandas."""

    name = "pandas"

    def __init__(self, threads: int) -> None:
        """Use one thread, as pandas does."""

    def log(self, log: Log) -> Jobs:
        """Return the functions that do jobs A and B."""
        import pandas as pd

        frame = pd.DataFrame(
            {
                "prompt_id": log.prompt_id,
                "target": log.target,
                "behavior": log.behavior,
                "reward": log.reward,
                "cluster": log.cluster,
            },
            copy=False,
        )

        def a() -> dict[str, float]:
            w = np.exp(frame["target"].astype("float64") - frame["behavior"])
            columns = pd.DataFrame({"a": w, "n": w * frame["reward"]})
            groups = columns.groupby(frame["prompt_id"], sort=False).sum()
            a, n = groups["a"].to_numpy(), groups["n"].to_numpy()
            clipped = (w.clip(upper=CLIP) * frame["reward"]).sum()
            totals = (len(groups), a.sum(), n.sum(), clipped, np.dot(w, w), w.max(), a @ a, a @ n, n @ n)
            return combine(len(frame), "A", [totals])

        def b() -> dict[str, float]:
            w = np.exp(frame["target"].astype("float64") - frame["behavior"])
            mass = w.groupby([frame["prompt_id"], frame["cluster"]], sort=False).sum()
            parts = pd.DataFrame({"m": mass, "mlogm": mass * np.log(mass)})
            groups = parts.groupby(level="prompt_id", sort=False).sum()
            h = np.log(groups["m"]) - groups["mlogm"] / groups["m"]
            return b_from_sums(len(h), float(h.sum()), float((h * h).sum()))

        return {"A": a, "B": b}

    def tokens(self, tokens: Tokens) -> Callable[[], tuple[Any, Any, Any]]:
        """Return the function that does job D; the row number of each token is given to it."""
        import pandas as pd

        row = np.repeat(np.arange(tokens.offsets.size - 1, dtype=np.int32), np.diff(tokens.offsets))
        frame = pd.DataFrame({"target": tokens.target, "behavior": tokens.behavior}, copy=False)

        def d() -> tuple[Any, Any, Any]:
            diff = frame["target"].astype("float64") - frame["behavior"]
            columns = pd.DataFrame({"plain": diff, "clipped": diff.clip(-TOKEN_CLIP, TOKEN_CLIP)})
            groups = columns.groupby(row, sort=False)
            sums = groups.sum()
            plain = sums["plain"].to_numpy()
            return plain, plain / groups.size().to_numpy(), sums["clipped"].to_numpy()

        return d


class Torch:
    """Tensors on the CPU."""

    name = "torch CPU"

    def __init__(self, threads: int) -> None:
        """Set the number of threads."""
        import torch

        torch.set_num_threads(threads)

    def log(self, log: Log) -> Jobs:
        """Return the functions that do jobs A and B."""
        import torch

        prompt, target, behavior, reward, cluster = map(
            torch.from_numpy, (log.prompt_id, log.target, log.behavior, log.reward, log.cluster)
        )

        @torch.inference_mode()
        def run(jobs: str) -> dict[str, float]:
            w = torch.exp_(target.double() - behavior)
            _, index = torch.unique_consecutive(prompt, return_inverse=True)
            prompts = int(index[-1]) + 1
            a = torch.zeros(prompts, dtype=torch.float64).index_add_(0, index, w)
            out: tuple[float, ...] = ()
            if "A" in jobs:
                n = torch.zeros(prompts, dtype=torch.float64).index_add_(0, index, w * reward)
                clipped = torch.dot(torch.clamp(w, max=CLIP), reward.double())
                parts = (w.sum(), n.sum(), clipped, torch.dot(w, w), w.max(), a.dot(a), a.dot(n), n.dot(n))
                out += (prompts, *map(float, parts))
            if "B" in jobs:
                mass = torch.zeros(prompts * CLUSTERS, dtype=torch.float64)
                mass.index_add_(0, index.mul_(CLUSTERS).add_(cluster), w)
                mass = mass.view(prompts, CLUSTERS)
                h = torch.log(a) - torch.xlogy(mass, mass).sum(1) / a
                out += (prompts, float(h.sum()), float(h.dot(h)))
            return combine(w.numel(), jobs, [out])

        return {jobs: functools.partial(run, jobs) for jobs in ("A", "B", "AB")}

    def tokens(self, tokens: Tokens) -> Callable[[], tuple[Any, Any, Any]]:
        """Return the function that does job D."""
        import torch

        offsets, target, behavior = map(torch.from_numpy, (tokens.offsets, tokens.target, tokens.behavior))

        @torch.inference_mode()
        def d() -> tuple[Any, Any, Any]:
            lengths = torch.diff(offsets)
            sums = functools.partial(torch.segment_reduce, reduce="sum", lengths=lengths, unsafe=True)
            diff = target.double() - behavior
            plain = sums(diff)
            clipped = sums(diff.clamp_(-TOKEN_CLIP, TOKEN_CLIP))
            return plain.numpy(), (plain / lengths).numpy(), clipped.numpy()

        return d


class ReadOnce:
    """No job at all: the time that memory needs to deliver the columns to as many threads."""

    name = "reading the columns once"

    def __init__(self, threads: int) -> None:
        """Start the pool."""
        self.pool = ThreadPoolExecutor(threads)

    def read(self, columns: list[Any]) -> None:
        """Reduce every column with an operation that takes no time beside the load."""
        words = [c[: c.nbytes // 8 * 8 // c.itemsize].view(np.int64) for c in columns]
        blocks = [word[at : at + BLOCK_ROWS] for word in words for at in range(0, word.size, BLOCK_ROWS)]
        for _ in self.pool.map(np.bitwise_xor.reduce, blocks):
            pass

    def log(self, log: Log) -> Jobs:
        """Return the function that reads a log."""
        columns = [log.prompt_id, log.target, log.behavior, log.reward, log.cluster]

        def read() -> dict[str, float]:
            self.read(columns)
            return {}

        return {"AB": read}

    def tokens(self, tokens: Tokens) -> Callable[[], None]:
        """Return the function that reads the tokens."""
        return lambda: self.read([tokens.target, tokens.behavior])
