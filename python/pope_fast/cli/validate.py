"""``pope validate``."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer

from pope_fast.cli.common import (
    ColumnOption,
    JsonOption,
    LogArgument,
    PolicyOption,
    RangeOption,
    name_values,
    policy_map,
    user_errors,
    write_text,
)
from pope_fast.cli.common import bounds as parse_bounds
from pope_fast.errors import PopeWarning


def validate(
    log: LogArgument,
    policy: PolicyOption = None,
    column: ColumnOption = None,
    reward_range: RangeOption = None,
    max_faults: Annotated[int, typer.Option(metavar="N", min=1, help="Faults that are listed at most.")] = 20,
    json_to: JsonOption = None,
) -> None:
    """Say what a log holds, and list every fault with its column, its row and a remedy.

    Exits with 1 if there are faults.
    """
    policies, columns, bounds = policy_map(policy), name_values(column, "--column"), parse_bounds(reward_range)
    with user_errors():
        from pope_fast.log import validate as check

        warnings.simplefilter("ignore", PopeWarning)
        report = check(log, max_faults=max_faults, columns=columns or None, policies=policies, reward_range=bounds)
        if json_to is not None:
            from pope_fast.report.json import dumps, to_plain

            text = dumps(to_plain(report.to_dict()))
            if json_to == "-":
                typer.echo(text)
            else:
                write_text(json_to, text + "\n")
        if json_to != "-":
            typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)
