"""Time diversity from embeddings (Rao's entropy, Vendi score of order 2) against NumPy and torch; write results/pairs.

Responses of 384 dimensions, 8 per prompt, with log-probabilities under two policies. All sides return both measures
with their standard errors, normalized by the pairs, and must agree. The peers compute them from batched Gram matrices
in the precision of the embeddings, with the batch that suits them best. pope_fast does so in double precision, inside
its whole pass over the log, which also checks every value and gathers what utility, intervals and diagnostics need.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clustering import DATA, DIMENSIONS, PER_PROMPT, make
from measure import alternate, extra_memory, machine, read_once, summary, usable_cores
from run import RESULTS, describe, publish, row

NOISE = DATA["apart"][0]
CHUNKS = (64, 512, 4096)
# The peers' cosines are rounded to single precision; what is compared are means of them over thousands of prompts.
TOLERANCE = 1e-5
PACKAGES = ("numpy", "torch")
Floats = npt.NDArray[np.floating[Any]]
Numbers = dict[str, float]


class Data:
    """Embeddings of shape (prompts, 8, 384), and log-probabilities and weights of shape (prompts, 8)."""

    def __init__(self, prompts: int) -> None:
        rng = np.random.default_rng(2026)
        self.embedding = make(prompts, NOISE)
        self.behavior = -40.0 + rng.normal(0.0, 5.0, size=(prompts, PER_PROMPT))
        self.target = self.behavior + rng.normal(-0.125, 0.5, size=self.behavior.shape)
        self.prompt = np.repeat(np.arange(prompts, dtype=np.int64), PER_PROMPT)

    def part(self, prompts: int) -> Data:
        """Return the first prompts."""
        part = object.__new__(Data)
        part.embedding, part.behavior = self.embedding[:prompts], self.behavior[:prompts]
        part.target, part.prompt = self.target[:prompts], self.prompt[: prompts * PER_PROMPT]
        return part


def ours(data: Data, threads: int, with_embedding: bool = True) -> Numbers:
    """Run the pass of an evaluation over the log, and read off both measures."""
    from pope_fast import _core

    state = _core.State(["target"], (0.0, 1.0), has_embedding=with_embedding)
    embedding = data.embedding.reshape(-1, DIMENSIONS) if with_embedding else None
    reward = np.zeros(data.behavior.size)
    columns = (data.behavior.reshape(-1), [data.target.reshape(-1)], reward)
    state.update(data.prompt, *columns, embedding=embedding, threads=threads)
    found = state.snapshot().summary("target", tau=np.inf)
    out = {}
    for measure in found["pairs"]["measures"] if with_embedding else ():
        out[measure["name"]] = measure["value"]
        out[f"{measure['name']} standard error"] = measure["standard_error"]
    return out


def moments(weights: Floats, cosines: Floats) -> Floats:
    """Weighted means over the pairs of each prompt of 1, k and k squared; shape (prompts, 3)."""
    n = weights.shape[1]
    upper = np.triu_indices(n, 1)
    products = weights[:, upper[0]] * weights[:, upper[1]]
    k = cosines[:, upper[0], upper[1]]
    found = [products.sum(1), np.einsum("pi,pi->p", products, k), np.einsum("pi,pi,pi->p", products, k, k)]
    return np.stack(found, axis=1) / len(upper[0])


def measures(found: Floats) -> Numbers:
    """Both measures and their standard errors from the moments of all prompts."""
    b, q1, q2 = found.T
    out = {}
    for name, q, value in (("rao", q1, lambda s: 1 - s), ("vendi", q2, lambda s: 1 / s)):
        ratio = q.mean() / b.mean()
        slope = 1.0 if name == "rao" else 1 / ratio**2
        influence = (q - ratio * b) / b.mean() * slope
        out[name] = float(value(ratio))
        out[f"{name} standard error"] = float(influence.std(ddof=1) / len(b) ** 0.5)
    return out


def by_numpy(data: Data, chunk: int) -> Numbers:
    """Gram matrices of a batch of prompts at a time, cosines from their diagonals."""
    parts = []
    for start in range(0, len(data.embedding), chunk):
        part = slice(start, start + chunk)
        x = data.embedding[part]
        gram = x @ x.transpose(0, 2, 1)
        inverse = 1 / np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
        gram *= inverse[:, :, None]
        gram *= inverse[:, None, :]
        parts.append(moments(np.exp(data.target[part] - data.behavior[part]), gram))
    return measures(np.concatenate(parts))


def by_torch(data: Data, chunk: int) -> Numbers:
    """Do what `by_numpy` does, in torch."""
    import torch

    embedding = torch.from_numpy(data.embedding)
    target, behavior = torch.from_numpy(data.target), torch.from_numpy(data.behavior)
    i, j = torch.triu_indices(PER_PROMPT, PER_PROMPT, 1)
    parts = []
    for start in range(0, len(embedding), chunk):
        part = slice(start, start + chunk)
        x = embedding[part]
        gram = torch.bmm(x, x.transpose(1, 2))
        inverse = torch.diagonal(gram, dim1=1, dim2=2).rsqrt()
        gram.mul_(inverse[:, :, None]).mul_(inverse[:, None, :])
        weights = (target[part] - behavior[part]).exp()
        products, k = weights[:, i] * weights[:, j], gram[:, i, j]
        parts.append(torch.stack([products.mean(1), (products * k).mean(1), (products * k * k).mean(1)], dim=1))
    return measures(torch.cat(parts).numpy())


def best_chunk(peer: Callable[[Data, int], Numbers], data: Data) -> int:
    """Return the batch with which a peer is fastest on part of the data."""
    part = data.part(4096)

    def seconds(chunk: int) -> float:
        peer(part, chunk)
        started = time.perf_counter()
        peer(part, chunk)
        return time.perf_counter() - started

    return min(CHUNKS, key=seconds)


def compare(prompts: int, threads: int) -> dict[str, Any]:
    """Check and time all sides."""
    import torch

    torch.set_num_threads(threads)
    data = Data(prompts)
    found: dict[str, Any] = {"rows": prompts * PER_PROMPT, "peers": {}}
    sides: dict[str, Callable[[], Numbers]] = {"pope_fast": partial(ours, data, threads)}
    for name, peer in (("torch, batched", by_torch), ("NumPy, batched", by_numpy)):
        chunk = best_chunk(peer, data)
        found["peers"][name] = {"prompts at a time": chunk}
        sides[name] = partial(peer, data, chunk)
    expected: Numbers = {}
    for name, call in sides.items():
        numbers, memory = extra_memory(call)
        expected = expected or numbers
        worst = max(abs(numbers[key] / value - 1) for key, value in expected.items())
        if worst > TOLERANCE:
            sys.exit(f"{name} and pope_fast disagree by {worst:.1e} > {TOLERANCE}: {numbers} {expected}")
        found["peers"].setdefault(name, {})
        found["peers"][name] |= {"extra memory bytes": memory, "disagreement": worst}
    beside = {
        "pope_fast without the embeddings": partial(ours, data, threads, False),
        "reading the embeddings once": partial(read_once, data.embedding, threads),
    }
    for name, seconds in alternate({**sides, **beside}, repeats=9, budget=60.0).items():
        found["peers"].setdefault(name, {}).update(summary(seconds))
    return found | {"values": expected}


def report(found: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [
        *describe(found["machine"], found["threads"])[:2],
        f"## Rao's entropy and Vendi score, {found['rows']:.0e} responses of {DIMENSIONS} dimensions",
        "",
        row("", "time (s)", "times ours", "extra memory (MB)"),
        "|---|---:|---:|---:|",
    ]
    fastest = found["peers"]["pope_fast"]["median_s"]
    for name, peer in found["peers"].items():
        memory = peer.get("extra memory bytes")
        cells = (f"{peer['median_s']:.3g}", f"{peer['median_s'] / fastest:.2g}")
        label = f"**{name}**" if name == "pope_fast" else name
        lines.append(row(label, *cells, "-" if memory is None else f"{memory / 1e6:.0f}"))
    lines += ["", f"Both measures and both standard errors agree to {TOLERANCE:g}, relative.", ""]
    return "\n".join(lines)


def main() -> None:
    """Compare, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=float, default=1e6, help="number of responses")
    parser.add_argument("--threads", type=int, default=min(2, usable_cores()))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for pairs.json and pairs.md")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    found: dict[str, Any] = {"machine": machine(PACKAGES), "threads": args.threads}
    found |= compare(max(2, int(args.rows) // PER_PROMPT), args.threads)
    publish(args.output, "pairs", found, report(found))


if __name__ == "__main__":
    main()
