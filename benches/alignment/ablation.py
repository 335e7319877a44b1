"""The ablation part: POPE with one thing changed, at one lambda and in the same setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from methods import ABLATED
from world import Size

from alignment import final

METHOD = f"pope {ABLATED:g}"


def ablate(folder: Path, size: Size, seed: int, name: str) -> dict[str, Any]:
    """Run one variant on one world."""
    return final(folder, size, seed, METHOD, name)
