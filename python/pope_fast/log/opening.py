"""Opening a log: from whatever the user has to a :class:`FeedbackLog`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from pope_fast.errors import PopeError
from pope_fast.log.columns import PolicySpec, resolve
from pope_fast.log.feedback_log import FeedbackLog
from pope_fast.log.ranges import declared_range
from pope_fast.log.remedies import with_text_rewards
from pope_fast.log.sources import open_source

__all__ = ["open_log", "read_log"]


def read_log(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    policies: PolicySpec | None = None,
    format: Literal["parquet", "jsonl", "csv"] | None = None,
    filesystem: Any = None,
    reward_range: tuple[float, float] | None = None,
    unit: str = "prompt",
    memory_limit: int = 1 << 30,
    temp_dir: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> FeedbackLog:
    """Open a feedback log; rows are read when they are asked for.

    Parameters
    ----------
    source : path, URI, glob, folder, list of paths, or object
        Parquet, JSON lines (``.gz``, ``.zst``) or CSV files; hive partitions become columns.  Or anything
        with ``__arrow_c_stream__`` (pyarrow, polars, pandas, DuckDB ...), a Hugging Face data set, a dict of
        arrays, or a list of records.
    columns : mapping of str to str, optional
        Role -> column, where the column does not carry the role's name: ``{"reward": "stars"}``.
    policies : mapping of str to str, or sequence, optional
        The target policies: name -> column, pairs of these, or the names of those in the log to keep.
        Without it, every ``target_logprob/NAME`` and ``target_token_logprobs/NAME``.
    format : {"parquet", "jsonl", "csv"}, optional
        For files whose names do not tell.
    filesystem : pyarrow.fs.FileSystem or fsspec file system, optional
        Where the paths lie.
    reward_range : (float, float), optional
        The smallest and the largest possible reward; without it, the observed ones.
    unit : str
        What is independent: "prompt", "row", or a column.
    memory_limit : int
        Bytes for gathering rows of a unit that are scattered over the log.
    temp_dir : path, optional
        Where temporary files go; the system's place by default.
    progress : bool, optional
        Whether to show progress; None shows it on a terminal, after two seconds.

    Returns
    -------
    FeedbackLog

    Raises
    ------
    PopeError
        If the source cannot be read.
    SchemaError
        If the columns do not make up a log (a missing column is reported when it is needed).

    Examples
    --------
    >>> import pope_fast
    >>> log = pope_fast.read_log({
    ...     "prompt_id": [1, 1, 2], "reward": [0.0, 1.0, 1.0],
    ...     "behavior_logprob": [-1.0, -2.0, -1.5], "target_logprob/new": [-1.5, -1.0, -1.5],
    ... })
    >>> log.policies
    ('new',)
    """
    log = open_log(
        source,
        columns=columns,
        policies=policies,
        format=format,
        filesystem=filesystem,
        reward_range=reward_range,
        unit=unit,
        memory_limit=memory_limit,
        temp_dir=temp_dir,
        progress=progress,
    )
    if log.faults:
        raise log.faults[0].to_error()
    return log


def open_log(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    policies: PolicySpec | None = None,
    format: str | None = None,
    filesystem: Any = None,
    reward_range: tuple[float, float] | None = None,
    unit: str = "prompt",
    memory_limit: int = 1 << 30,
    temp_dir: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> FeedbackLog:
    """Open a log as :func:`read_log` does, but keep the schema's faults instead of raising the first."""
    opened = open_source(source, format=format, filesystem=filesystem, memory_limit=memory_limit, temp_dir=temp_dir)
    declared = None if reward_range is None else declared_range(reward_range)
    if memory_limit <= 0:
        raise PopeError(f"memory_limit must be positive, not {memory_limit}")
    if temp_dir is not None and not os.path.isdir(temp_dir):
        raise PopeError(f"temp_dir is no folder: {os.fspath(temp_dir)}")
    log = FeedbackLog(
        opened,
        resolve(opened.schema, columns, policies),
        declared_range=declared,
        unit=unit,
        memory_limit=memory_limit,
        temp_dir=None if temp_dir is None else os.fspath(temp_dir),
        progress=progress,
    )
    log.faults = with_text_rewards(log.faults, log.reader, log.columns.get("reward"))
    return log
