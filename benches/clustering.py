"""Time clustering within prompts against its peers; write results/clustering.{json,md}.

A million responses of 384 dimensions, 8 per prompt, average linkage, one threshold on the cosine. Two sets of data:

apart   the answers of a prompt fall into three groups that are told apart easily;
mixed   the threshold lies in the middle of the similarities within groups, so that few prompts are clear.

pope_fast, the batched torch implementation and the batched NumPy one take turns on all the data; the loops over
scikit-learn and SciPy run on a sample of the prompts and their time is scaled. All must give the same partitions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from measure import alternate, extra_memory, machine, read_once, summary, usable_cores
from run import RESULTS, describe, publish, row

DIMENSIONS = 384
PER_PROMPT = 8
GROUPS = 3
# Noise beside the direction of the group, and the threshold.
DATA = {"apart": (0.6, 0.5), "mixed": (1.5, 0.3)}
# A partition may differ only where a similarity is as near to the threshold as single precision can tell.
NEAR = 1e-5
PACKAGES = ("numpy", "scipy", "scikit-learn", "torch")
Labels = npt.NDArray[np.integer[Any]]


def make(prompts: int, noise: float) -> npt.NDArray[np.float32]:
    """Return embeddings of shape (prompts, 8, 384): one of three directions of the prompt, and noise."""
    rng = np.random.default_rng(2026)
    out = np.empty((prompts, PER_PROMPT, DIMENSIONS), dtype=np.float32)
    for start in range(0, prompts, 4096):
        part = out[start : start + 4096]
        rng.standard_normal(part.shape, dtype=np.float32, out=part)
        part *= np.float32(noise)
        groups = rng.standard_normal((len(part), GROUPS, DIMENSIONS), dtype=np.float32)
        which = rng.integers(GROUPS, size=(len(part), PER_PROMPT))
        part += groups[np.arange(len(part))[:, None], which]
    return out


# ---- Peers: each from embeddings (prompts, responses, dimensions) to labels (prompts, responses)


def ours(
    x: npt.NDArray[np.float32], threshold: float, threads: int, linkage: str = "average", steps: int = 1
) -> Labels:
    """Label by pope_fast; with several steps, at as many thresholds in one run."""
    from pope_fast import _core

    prompts, n, dims = x.shape
    offsets = np.arange(0, prompts * n + 1, n, dtype=np.int64)
    thresholds = np.array([threshold]) if steps == 1 else np.linspace(0.0, 1.0, steps)
    labels = _core.cluster_prompts(offsets, x.reshape(-1, dims), thresholds, linkage, threads=threads)
    return labels[0].reshape(prompts, n)


def by_torch(x: npt.NDArray[np.float32], threshold: float, chunk: int) -> Labels:
    """Join the most similar pair of every prompt at once, step by step; prompts that are done leave the batch.

    Similarities come from the Gram matrix and its diagonal, so that embeddings are read once. A union takes the place
    of its first part, whose row and column become weighted means (the Lance-Williams rule).
    """
    import torch

    embeddings = torch.from_numpy(x)
    prompts, n, _ = embeddings.shape
    gone = float("-inf")
    labels = torch.empty((prompts, n), dtype=torch.int64)
    numbers, batch = torch.arange(n), torch.arange(chunk)
    for start in range(0, prompts, chunk):
        part = embeddings[start : start + chunk]
        s = torch.bmm(part, part.transpose(1, 2))
        inverse = torch.diagonal(s, dim1=1, dim2=2).rsqrt()
        s.mul_(inverse[:, :, None]).mul_(inverse[:, None, :])
        torch.diagonal(s, dim1=1, dim2=2).fill_(gone)
        left = len(part)
        size, label, which = torch.ones((left, n)), numbers.repeat(left, 1), torch.arange(start, start + left)
        for _ in range(n - 1):
            most, at = s.view(left, n * n).max(dim=1)
            go_on = most >= threshold
            still = int(go_on.sum())
            if still < left:
                done = go_on.logical_not()
                labels[which[done]] = label[done]
                s, size, label, which, at = s[go_on], size[go_on], label[go_on], which[go_on], at[go_on]
                left = still
            if left == 0:
                break
            i, each = at // n, batch[:left]
            j = at - i * n
            a, b = size[each, i], size[each, j]
            union = s[each, i] * (a / (a + b))[:, None] + s[each, j] * (b / (a + b))[:, None]
            s[each, i] = union
            s[each, :, i] = union
            s[each, j] = gone
            s[each, :, j] = gone
            size[each, i] = a + b
            label = torch.where(label == j[:, None], i[:, None], label)
        labels[which] = label
    return labels.numpy()


def by_numpy(x: npt.NDArray[np.float32], threshold: float, chunk: int) -> Labels:
    """Do what `by_torch` does, in NumPy."""
    prompts, n, _ = x.shape
    labels = np.empty((prompts, n), dtype=np.int64)
    diagonal = np.arange(n)
    for start in range(0, prompts, chunk):
        part = x[start : start + chunk]
        s = part @ part.transpose(0, 2, 1)
        inverse = 1 / np.sqrt(s[:, diagonal, diagonal])
        s *= inverse[:, :, None]
        s *= inverse[:, None, :]
        s[:, diagonal, diagonal] = -np.inf
        left = len(part)
        size, label = np.ones((left, n), dtype=np.float32), np.tile(diagonal, (left, 1))
        which = np.arange(start, start + left)
        for _ in range(n - 1):
            flat = s.reshape(left, n * n)
            at = flat.argmax(axis=1)
            go_on = flat[np.arange(left), at] >= threshold
            if not go_on.all():
                done = ~go_on
                labels[which[done]] = label[done]
                s, size, label, which, at = s[go_on], size[go_on], label[go_on], which[go_on], at[go_on]
                left = len(s)
            if left == 0:
                break
            i, j = np.divmod(at, n)
            each = np.arange(left)
            a, b = size[each, i], size[each, j]
            union = s[each, i] * (a / (a + b))[:, None] + s[each, j] * (b / (a + b))[:, None]
            s[each, i] = union
            s[each, :, i] = union
            s[each, j] = -np.inf
            s[each, :, j] = -np.inf
            size[each, i] = a + b
            label = np.where(label == j[:, None], i[:, None], label)
        labels[which] = label
    return labels


def by_sklearn(x: npt.NDArray[np.float32], threshold: float) -> Labels:
    """Fit scikit-learn's AgglomerativeClustering to one prompt after the other."""
    from sklearn.cluster import AgglomerativeClustering

    model = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=1 - threshold
    )
    return np.stack([model.fit_predict(prompt) for prompt in x])


def by_scipy(x: npt.NDArray[np.float32], threshold: float) -> Labels:
    """Build and cut SciPy's tree of one prompt after the other."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    return np.stack([fcluster(linkage(pdist(p, "cosine"), "average"), 1 - threshold, "distance") for p in x])


# ---- Comparison


def canonical(labels: Labels) -> Labels:
    """Return labels as the position of the first response of the cluster: equal for equal partitions."""
    return (labels[:, :, None] == labels[:, None, :]).argmax(axis=2)


def check(name: str, x: npt.NDArray[np.float32], labels: Labels, threshold: float, threads: int) -> int:
    """Stop unless partitions are ours wherever ours does not hang on rounding; return how many prompts were checked."""
    low, high = (canonical(ours(x, threshold + shift, threads)) for shift in (-NEAR, NEAR))
    clear = (low == high).all(axis=1)
    wrong = (canonical(labels) != low).any(axis=1) & clear
    if wrong.any():
        sys.exit(f"{name} and pope_fast give different partitions of {wrong.sum()} of {clear.sum()} prompts")
    return int(clear.sum())


def best_chunk(peer: Callable[..., Labels], x: npt.NDArray[np.float32], threshold: float) -> int:
    """Return the batch size at which a peer is fastest on this machine."""
    sample = x[: 1 << 16]
    calls = {str(chunk): partial(peer, sample, threshold, chunk) for chunk in (1024, 4096, 16384, 65536)}
    for call in calls.values():
        call()
    times = alternate(calls, repeats=3, budget=20.0)
    return int(min(times, key=lambda chunk: min(times[chunk])))


def compare(kind: str, prompts: int, sample: int, threads: int) -> dict[str, Any]:
    """Time all on one set of data."""
    import torch

    torch.set_num_threads(threads)
    noise, threshold = DATA[kind]
    x = make(prompts, noise)
    out: dict[str, Any] = {"rows": prompts * PER_PROMPT, "threshold": threshold, "sample prompts": sample, "peers": {}}
    peers = out["peers"]
    out["clusters per prompt"] = float((ours(x, threshold, threads).max(axis=1) + 1).mean())
    batched: dict[str, Callable[[], Labels]] = {"pope_fast": partial(ours, x, threshold, threads)}
    for name, peer in (("torch, batched", by_torch), ("NumPy, batched", by_numpy)):
        chunk = best_chunk(peer, x, threshold)
        batched[name] = partial(peer, x, threshold, chunk)
        peers[name] = {"prompts at a time": chunk}
    for name, call in batched.items():
        labels, memory = extra_memory(call)
        peers.setdefault(name, {})["extra memory bytes"] = memory
        peers[name]["prompts checked"] = check(name, x, np.asarray(labels), threshold, threads)
    for name, seconds in alternate(batched, repeats=9, budget=60.0).items():
        peers[name] |= summary(seconds)

    part = x[:sample]
    loops = {
        "scikit-learn, a loop": partial(by_sklearn, part, threshold),
        "SciPy, a loop": partial(by_scipy, part, threshold),
    }
    for name, call in loops.items():
        peers[name] = {"prompts checked": check(name, part, call(), threshold, threads)}
    for name, seconds in alternate(loops, repeats=3, budget=60.0).items():
        peers[name] |= summary([time * prompts / sample for time in seconds]) | {"scaled": True}

    own = {
        "complete linkage": partial(ours, x, threshold, threads, "complete"),
        "leaders": partial(ours, x, threshold, threads, "leader"),
        "average linkage, 20 thresholds": partial(ours, x, threshold, threads, steps=20),
        "reading the embeddings once": partial(read_once, x, threads),
    }
    out["beside"] = {name: summary(seconds) for name, seconds in alternate(own, repeats=5, budget=30.0).items()}
    return out


def in_fresh_process(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one set of data alone, so that the other's memory is not held."""
    options = ["--rows", str(args.rows), "--sample", str(args.sample), "--threads", str(args.threads)]
    done = subprocess.run(
        [sys.executable, __file__, "--part", kind, *options],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(args.threads), "PYTHONWARNINGS": "ignore"},
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({kind: result}), file=sys.stderr, flush=True)
    return result


def report(found: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = describe(found["machine"], found["threads"])[:2]
    for kind, result in found["data"].items():
        lines += [
            f"## {kind}: {result['rows']:.0e} responses, {result['clusters per prompt']:.1f} clusters per prompt",
            "",
            row("average linkage", "time (s)", "times ours", "extra memory (MB)"),
            "|---|---:|---:|---:|",
        ]
        fastest = result["peers"]["pope_fast"]["median_s"]
        for name, peer in result["peers"].items():
            memory = peer.get("extra memory bytes")
            label = f"**{name}**" if name == "pope_fast" else name + (" (scaled)" if peer.get("scaled") else "")
            cells = (f"{peer['median_s']:.3g}", f"{peer['median_s'] / fastest:.3g}")
            lines.append(row(label, *cells, "-" if memory is None else f"{memory / 1e6:.0f}"))
        lines += ["", row("pope_fast, other jobs", "time (s)"), "|---|---:|"]
        lines += [row(name, f"{value['median_s']:.3g}") for name, value in result["beside"].items()]
        lines += [
            "",
            f"Loops ran on {result['sample prompts']} prompts; their times are scaled to all. Partitions were compared "
            "prompt by prompt and are the same,",
            f"but for prompts in which a similarity lies within {NEAR:g} of the threshold, which were left out.",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    """Run both sets of data, or the one that a parent process asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=float, default=1e6, help="number of responses")
    parser.add_argument("--sample", type=int, default=2000, help="prompts for the loops over scikit-learn and SciPy")
    parser.add_argument("--threads", type=int, default=min(2, usable_cores()))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for clustering.json and clustering.md")
    parser.add_argument("--part", choices=DATA, help=argparse.SUPPRESS)
    args = parser.parse_args()
    prompts = max(1, int(args.rows) // PER_PROMPT)
    if args.part:
        print(json.dumps(compare(args.part, prompts, min(args.sample, prompts), args.threads)))
        return
    found: dict[str, Any] = {"machine": machine(PACKAGES), "threads": args.threads, "data": {}}
    for kind in DATA:
        found["data"][kind] = in_fresh_process(kind, args)
    publish(args.output, "clustering", found, report(found))


if __name__ == "__main__":
    main()
