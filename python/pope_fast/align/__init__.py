"""Align a policy on the pluralistic value that a log supports: losses, and the trainer that uses them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pope_fast.align import losses
    from pope_fast.align.config import POPEConfig
    from pope_fast.align.data import LoggedPrompts
    from pope_fast.align.reading import read_prompts
    from pope_fast.align.sweeping import Frontier, FrontierPoint, sweep
    from pope_fast.align.trainer import POPETrainer

# Imported when first used: the losses alone need torch, the trainer transformers and accelerate as well.
_WHERE = {
    "Frontier": "sweeping",
    "FrontierPoint": "sweeping",
    "LoggedPrompts": "data",
    "POPEConfig": "config",
    "POPETrainer": "trainer",
    "read_prompts": "reading",
    "sweep": "sweeping",
}

__all__ = ["Frontier", "FrontierPoint", "LoggedPrompts", "POPEConfig", "POPETrainer", "losses", "read_prompts", "sweep"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"pope_fast.align.{_WHERE[name]}"), name)
    if name == "losses":
        return import_module("pope_fast.align.losses")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
