"""The log that ships with the package."""

from __future__ import annotations

from pathlib import Path

__all__ = ["demo_log"]


def demo_log() -> Path:
    """Return the path of the shipped demonstration log (Parquet, with ``demo.truth.json`` beside it).

    It is simulated: 8 responses to each prompt, their perspectives as clusters, groups of annotators with different
    tastes, and two target policies: one that the log can judge and one that it cannot.

    Examples
    --------
    >>> import pope_fast as pope
    >>> pope.demo_log().name
    'demo.parquet'
    """
    return Path(__file__).with_name("demo.parquet")
