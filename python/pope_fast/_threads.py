"""How many threads the kernels use: argument > ``POPE_NUM_THREADS`` > the container's quota."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from pope_fast.errors import PopeError

__all__ = ["default_threads"]


def default_threads() -> int:
    """Return the number of threads for kernels that were not given one.

    1 inside a torch ``DataLoader`` worker, where the other workers already use the machine.

    Raises
    ------
    PopeError
        If ``POPE_NUM_THREADS`` is not a positive whole number.
    """
    asked = os.environ.get("POPE_NUM_THREADS")
    if asked is not None:
        if not asked.isdecimal() or int(asked) < 1:
            raise PopeError(f"POPE_NUM_THREADS must be a positive whole number, not {asked!r}")
        return int(asked)
    torch_data = sys.modules.get("torch.utils.data")
    if torch_data is not None and torch_data.get_worker_info() is not None:
        return 1
    return _available()


def _available() -> int:
    """CPUs this process may use: its affinity mask, cut by the control group's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cpus = min(cpus, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # not Linux, or no quota
    return cpus
