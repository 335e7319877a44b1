"""Wall time, extra memory, and the machine they were measured on."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import re
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

PACKAGES = ("numpy", "pyarrow", "numba", "polars", "duckdb", "pandas", "torch")


def alternate(
    calls: Mapping[str, Callable[[], object]], *, repeats: int = 9, budget: float = 20.0
) -> dict[str, list[float]]:
    """Time several functions in turn: a disturbance of the machine hits all of them, so ratios survive it.

    Every function has run once before. A function stops being called after `repeats` turns, or when its
    turns have taken `budget` seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            if seconds[name] and sum(seconds[name]) > budget:
                continue
            gc.collect()
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def summary(seconds: list[float]) -> dict[str, float | int]:
    """Return the median, the minimum and the number of repeats."""
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "repeats": len(seconds)}


def _resident(name: str) -> int | None:
    """Return a memory counter of this process in bytes (`VmRSS`, or `VmHWM`: its maximum)."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def extra_memory(call: Callable[[], object]) -> tuple[object, int]:
    """Run a function; return its result and by how many bytes the process grew meanwhile, at most.

    Linux keeps the maximum itself and lets a process reset it; elsewhere a thread samples every millisecond.
    """
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
    except OSError:
        before = None
    if before is not None:
        result = call()
        return result, max(0, (_resident("VmHWM") or 0) - before)

    process = psutil.Process()
    start = peak = process.memory_info().rss
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        result = call()
    finally:
        done.set()
        thread.join()
    return result, peak - start


def read_once(x: npt.NDArray[Any], threads: int) -> float:
    """Read an array once, each thread its part: what no pass over it can be faster than."""
    parts = np.array_split(x.reshape(-1), threads)
    with ThreadPoolExecutor(threads) as pool:
        return float(max(pool.map(np.max, parts)))


def cpu_model() -> str:
    """Return the processor's name as the system gives it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return the number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Describe what the figures depend on; nothing that identifies a host."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
    }
