"""From a log and policies to the log with their log-probs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pope_fast.errors import PopeError, PopeWarning, SchemaError
from pope_fast.log import FeedbackLog, read_log
from pope_fast.log.columns import split_role
from pope_fast.log.writing import parquet_name
from pope_fast.score.jobs import Options, Task, Work
from pope_fast.score.output import Names, scored_table, write_scored
from pope_fast.score.policies import ColumnPolicy, Policies, Policy, as_policies, as_policy
from pope_fast.score.store import DiskStore, MemoryStore
from pope_fast.score.workers import Workers, find_workers

__all__ = ["score"]


def score(
    log: Any,
    policies: Policies | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    behavior: Any = None,
    aa: bool = False,
    columns: Mapping[str, str] | None = None,
    token_logprobs: bool = False,
    eos: Literal["auto", "always", "never"] = "auto",
    share_prompt: bool | Literal["auto"] = "auto",
    token_budget: int | None = None,
    deterministic: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    checkpoint_seconds: float = 30.0,
    distributed: bool = True,
    progress: bool | None = None,
) -> FeedbackLog:
    """Add log-probs of a log's responses under other policies, as columns ``target_logprob/NAME``.

    Parameters
    ----------
    log
        A :class:`FeedbackLog`, or anything :func:`read_log` takes. It needs the responses: ``completion_ids`` or
        ``completion``, and ``prompt_ids`` or ``prompt`` (a text, or messages for the chat template).
    policies : policy, sequence of policies, or mapping of name to model
        :class:`HFPolicy`, :class:`ServerPolicy`, :class:`ColumnPolicy`; in a mapping also a path, a hub id or a loaded
        model.
    output : path, optional
        Parquet file to write. Beside it, ``OUTPUT.parts`` holds what is finished: a run that was killed continues when
        it is started again, and gives the same file. Without it the result is in memory, and nothing is kept.
    behavior : policy, path, hub id or model, optional
        The policy that wrote the log, scored into ``behavior_logprob`` if the log has none.
    aa : bool
        Score the behavior policy (also) into ``behavior_logprob_again``, in other batches: ``evaluate(aa_policy=...)``
        measures the noise of log-probs with it.
    columns : mapping of str to str, optional
        Role -> column, as in :func:`read_log`.
    token_logprobs : bool
        Whether to write log-probs of tokens too: ``target_token_logprobs/NAME``, lists of float32.
    eos : {"auto", "always", "never"}
        Whether the end of a response counts as a token of it, where text is tokenized. "auto": if ``finish_reason``
        says that the model ended it; never, without that column.
    share_prompt : "auto", True or False
        Whether a prompt is computed once for all its responses: where that saves work, always, never.
    token_budget : int, optional
        Most padded tokens of one call of the model; by default what suits the model and the device.
    deterministic : bool
        Same bits for any interruption point and number of processes; running out of memory is then an error.
    overwrite : bool
        Whether an existing output may be replaced.
    restart : bool
        Whether to throw away what an earlier run finished.
    checkpoint_seconds : float
        How much work a killed run may lose.
    distributed : bool
        Whether the processes that ``accelerate launch`` or ``torchrun`` started share the work (with ``output`` only).
        All must make this call.
    progress : bool, optional
        Whether to show progress; None shows it on a terminal, after two seconds.

    Returns
    -------
    FeedbackLog
        The log with the new columns, rows in the log's order. ``score_error/NAME`` says why a row has no log-prob
        (null), if there are such rows. The schema's metadata say how the columns were made
        (:func:`pope_fast.score.read_provenance`).

    Raises
    ------
    SchemaError
        If the log has no responses, its ids are outside of a model's vocabulary, or a column is there already.
    PopeError
        If a model, tokenizer or server cannot be used; if another run writes the output; if an earlier run on this
        output had another log, model, tokenizer or options.

    Notes
    -----
    A log-prob is the float64 sum of float32 log-probs of the completion's tokens, at the policy's temperature, without
    top-p, top-k or penalties: those of the plain softmax. The log-sum-exp is in float32, whatever the model's is.

    Examples
    --------
    >>> import pope_fast as pope
    >>> log = {"prompt": ["a"], "completion": ["b"], "reward": [1.0], "behavior_logprob": [-1.0], "old": [-2.0]}
    >>> scored = pope.score(log, [ColumnPolicy("new", "old")])
    >>> scored.policies
    ('new',)
    """
    opened = _open(log, columns)
    tasks = _tasks(opened, as_policies(policies), behavior, aa)
    options = Options(token_logprobs, eos, share_prompt, token_budget, deterministic, progress)
    if output is None:
        work = Work(opened, MemoryStore(), options)
        table = scored_table(opened, work.columns(tasks), tokens=token_logprobs)
        return _result(table, opened, work.notes)
    path = _output(Path(output), opened)
    workers = find_workers() if distributed else Workers(0, 1)
    store = DiskStore(path, rank=workers.rank, world=workers.world, flush_seconds=checkpoint_seconds)
    begin = lambda: store.open(overwrite=overwrite, restart=restart)  # noqa: E731
    try:
        workers.first_then_all(begin, begin)
        work = Work(opened, store, options)
        made = work.columns(tasks)
        if workers.rank == 0:
            write_scored(path, opened, made, tokens=token_logprobs)
            store.remove()
        else:
            store.wait_for_output()
    finally:
        store.close()
    return _result(path, opened, work.notes)


def _open(log: Any, columns: Mapping[str, str] | None) -> FeedbackLog:
    if not isinstance(log, FeedbackLog):
        return read_log(log, columns=columns)
    if columns is not None:
        raise PopeError("columns= belongs to read_log where the log is opened already")
    return log


def _tasks(log: FeedbackLog, policies: list[Policy], behavior: Any, aa: bool) -> list[Task]:
    """Return the columns to make.

    Raises
    ------
    SchemaError
        If one is there already.
    PopeError
        If there is nothing to do.
    """
    tasks = [Task(Names.of_target(policy.name), policy, policy.name) for policy in policies]
    if behavior is not None:
        policy = as_policy("behavior", behavior)
        if not log.has("behavior_logprob"):
            tasks.insert(0, Task(Names.of_behavior(), policy, "behavior"))
        elif not aa:
            raise PopeError(
                "the log has log-probs of the behavior policy. Remedy: leave behavior= out, or score it a second time "
                "with aa=True (--aa)."
            )
        if aa:
            tasks.append(Task(Names.of_behavior(again=True), policy, "behavior, again", again=True))
    elif aa:
        raise PopeError("aa=True scores the behavior policy a second time: say which it is with behavior=")
    if not tasks:
        raise PopeError("there is no policy to score: give policies=, behavior= or both")
    there = set(log.schema.names)
    if len(there) < len(log.schema.names):
        twice = next(name for name in log.schema.names if log.schema.names.count(name) > 1)
        raise SchemaError("the log has two columns of this name", column=twice, remedy="rename or drop one")
    for task in tasks:
        for name in (task.names.logprob, task.names.tokens, task.names.error):
            if name in there and not (isinstance(task.policy, ColumnPolicy) and task.policy.column == name):
                raise SchemaError(
                    "the log has this column already",
                    column=name,
                    remedy="give the policy another name, or drop the column from the log",
                )
    return tasks


def _output(path: Path, log: FeedbackLog) -> Path:
    """Return where the output goes.

    Raises
    ------
    PopeError
        If it is a file of the log, a folder, or named like another format.
    """
    parquet_name(path)
    if path.is_dir():
        raise PopeError(f"{path} is a folder. Remedy: name a file in it.")
    files = getattr(log.reader, "files", None)
    for file in getattr(files, "files", ()):
        with suppress(OSError):
            if path.exists() and os.path.samefile(path, file.path):
                raise PopeError(f"{path} is the log itself. Remedy: give the output another name.")
    return path


def _result(source: Any, log: FeedbackLog, notes: list[str]) -> FeedbackLog:
    """Open the scored log as the log was opened, and say what is to be said."""
    declared = log.declared_range
    columns = {role: column for role, column in log.columns.items() if column != role and not _implied(role, column)}
    scored = read_log(
        source,
        columns=columns or None,
        reward_range=None if declared is None else (declared.low, declared.high),
        unit=log.unit,
    )
    for note in notes:
        warnings.warn(note, PopeWarning, stacklevel=3)
    scored.warnings.extend(notes)
    return scored


def _implied(role: str, column: str) -> bool:
    """Tell whether a column stands for a role by its own name."""
    return split_role(role) == split_role(column)
