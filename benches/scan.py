"""Numba: scans over the rows written by hand, as an expert with an afternoon would: threads, no temporaries.

Chunks begin where a prompt begins, so no prompt is split; each thread keeps its sums in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from data import CLIP, CLUSTERS, TOKEN_CLIP, Log, Tokens
from totals import a_from_sums, b_from_sums

CHUNKS_PER_THREAD = 16


@numba.njit(cache=True)
def edges(prompt_id, chunks):
    """Return chunk edges that lie between prompts."""
    n = prompt_id.size
    out = np.empty(chunks + 1, np.int64)
    out[0] = 0
    for i in range(1, chunks):
        at = max(n * i // chunks, out[i - 1])
        while 0 < at < n and prompt_id[at] == prompt_id[at - 1]:
            at += 1
        out[i] = at
    out[chunks] = n
    return out


@numba.njit(parallel=True, error_model="numpy", cache=True)
def scan_a(prompt_id, target, behavior, reward, clip, edge):
    """Return per chunk: sum w, w r, min(w, clip) r, w^2, max w, prompts, sum A^2, A N, N^2."""
    chunks = edge.size - 1
    out = np.zeros((chunks, 16))
    for chunk in numba.prange(chunks):
        sw = swr = sc = sw2 = saa = san = snn = largest = 0.0
        prompts = 0
        row, stop = edge[chunk], edge[chunk + 1]
        while row < stop:
            key = prompt_id[row]
            a = n = 0.0
            while row < stop and prompt_id[row] == key:
                w = np.exp(np.float64(target[row]) - np.float64(behavior[row]))
                r = np.float64(reward[row])
                a += w
                n += w * r
                sc += min(w, clip) * r
                sw2 += w * w
                largest = max(largest, w)
                row += 1
            prompts += 1
            sw += a
            swr += n
            saa += a * a
            san += a * n
            snn += n * n
        line = out[chunk]
        line[0], line[1], line[2], line[3], line[4] = sw, swr, sc, sw2, largest
        line[5], line[6], line[7], line[8] = prompts, saa, san, snn
    return out


@numba.njit(parallel=True, error_model="numpy", cache=True)
def scan_b(prompt_id, target, behavior, cluster, clusters, edge):
    """Return per chunk: prompts, sum H, sum H^2."""
    chunks = edge.size - 1
    out = np.zeros((chunks, 8))
    for chunk in numba.prange(chunks):
        mass = np.zeros(clusters)
        sh = shh = 0.0
        prompts = 0
        row, stop = edge[chunk], edge[chunk + 1]
        while row < stop:
            key = prompt_id[row]
            mass[:] = 0.0
            total = 0.0
            while row < stop and prompt_id[row] == key:
                w = np.exp(np.float64(target[row]) - np.float64(behavior[row]))
                mass[cluster[row]] += w
                total += w
                row += 1
            s = 0.0
            for c in range(clusters):
                if mass[c] > 0.0:
                    s += mass[c] * np.log(mass[c])
            h = np.log(total) - s / total
            sh += h
            shh += h * h
            prompts += 1
        out[chunk, 0], out[chunk, 1], out[chunk, 2] = prompts, sh, shh
    return out


@numba.njit(parallel=True, error_model="numpy", cache=True)
def scan_ab(prompt_id, target, behavior, reward, cluster, clusters, clip, edge):
    """A and B in one pass, which is more than most people would write by hand."""
    chunks = edge.size - 1
    out = np.zeros((chunks, 16))
    for chunk in numba.prange(chunks):
        mass = np.zeros(clusters)
        sw = swr = sc = sw2 = saa = san = snn = largest = sh = shh = 0.0
        prompts = 0
        row, stop = edge[chunk], edge[chunk + 1]
        while row < stop:
            key = prompt_id[row]
            mass[:] = 0.0
            a = n = 0.0
            while row < stop and prompt_id[row] == key:
                w = np.exp(np.float64(target[row]) - np.float64(behavior[row]))
                r = np.float64(reward[row])
                mass[cluster[row]] += w
                a += w
                n += w * r
                sc += min(w, clip) * r
                sw2 += w * w
                largest = max(largest, w)
                row += 1
            s = 0.0
            for c in range(clusters):
                if mass[c] > 0.0:
                    s += mass[c] * np.log(mass[c])
            h = np.log(a) - s / a
            sh += h
            shh += h * h
            prompts += 1
            sw += a
            swr += n
            saa += a * a
            san += a * n
            snn += n * n
        line = out[chunk]
        line[0], line[1], line[2], line[3], line[4] = sw, swr, sc, sw2, largest
        line[5], line[6], line[7], line[8], line[9], line[10] = prompts, saa, san, snn, sh, shh
    return out


@numba.njit(parallel=True, error_model="numpy", cache=True)
def scan_d(offsets, target, behavior, clip, log_ratio, mean, clipped):
    """Sum the log-ratios of every response: plain, per token, and clipped token by token."""
    for i in numba.prange(offsets.size - 1):
        plain = cut = 0.0
        for k in range(offsets[i], offsets[i + 1]):
            d = np.float64(target[k]) - np.float64(behavior[k])
            plain += d
            cut += min(max(d, -clip), clip)
        log_ratio[i] = plain
        mean[i] = plain / (offsets[i + 1] - offsets[i])
        clipped[i] = cut


def numbers_a(totals: Any, rows: int) -> dict[str, float]:
    """Turn the totals of job A into its numbers."""
    sw, swr, sc, sw2 = (float(totals[:, i].sum()) for i in range(4))
    prompts, saa, san, snn = (float(totals[:, i].sum()) for i in range(5, 9))
    return a_from_sums(rows, prompts, sw, swr, sc, sw2, float(totals[:, 4].max()), saa, san, snn)


class Numba:
    """Scans compiled by numba; leave to reorder the sums (`fastmath`) makes job D slower, not faster."""

    name = "numba, hand-written scan"

    def __init__(self, threads: int) -> None:
        """Set the number of threads."""
        numba.set_num_threads(threads)
        self.chunks = threads * CHUNKS_PER_THREAD

    def log(self, log: Log) -> dict[str, Any]:
        """Return the functions that do jobs A, B and both."""
        prompt, target, behavior, reward, cluster = (
            *(log.prompt_id, log.target, log.behavior),
            *(log.reward, log.cluster),
        )

        def a() -> dict[str, float]:
            totals = scan_a(prompt, target, behavior, reward, CLIP, edges(prompt, self.chunks))
            return numbers_a(totals, reward.size)

        def b() -> dict[str, float]:
            totals = scan_b(prompt, target, behavior, cluster, CLUSTERS, edges(prompt, self.chunks))
            return b_from_sums(*(float(totals[:, i].sum()) for i in range(3)))

        def ab() -> dict[str, float]:
            edge = edges(prompt, self.chunks)
            totals = scan_ab(prompt, target, behavior, reward, cluster, CLUSTERS, CLIP, edge)
            prompts, sh, shh = (float(totals[:, i].sum()) for i in (5, 9, 10))
            return numbers_a(totals, reward.size) | b_from_sums(prompts, sh, shh)

        return {"A": a, "B": b, "AB": ab}

    def tokens(self, tokens: Tokens) -> Callable[[], tuple[Any, Any, Any]]:
        """Return the function that does job D."""

        def d() -> tuple[Any, Any, Any]:
            out = [np.empty(tokens.offsets.size - 1) for _ in range(3)]
            scan_d(tokens.offsets, tokens.target, tokens.behavior, TOKEN_CLIP, *out)
            return out[0], out[1], out[2]

        return d
