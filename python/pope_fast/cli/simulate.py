"""``pope simulate``."""

from __future__ import annotations

from typing import Annotated

import typer

from pope_fast.cli.common import user_errors


def simulate(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="table, lognormal, tiny-lm, clusters or no-support.", show_default=False),
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="LOG.parquet", help="Where the log goes.", show_default=False),
    ],
    prompts: Annotated[int | None, typer.Option(metavar="N", help="Prompts; by default those of the kind.")] = None,
    responses: Annotated[
        int | None, typer.Option(metavar="K", help="Responses per prompt; by default those of the kind.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Seed of the draws.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not say what was written.")] = False,
) -> None:
    """Write a log with known truth, and the truth beside it as LOG.truth.json."""
    with user_errors():
        from pope_fast.simulate import simulate as draw

        log, truth = draw(kind, prompts=prompts, responses=responses, seed=seed).write(output)
        if not quiet:
            typer.echo(f"wrote {log} and {truth}; next: pope evaluate {log} --truth {truth}")
