"""The command line: one verb a module; each parses its options, calls one public function and prints what that returns.

Exit codes: 0, all is well; 1, the verdict is as bad as ``--fail-on`` says, or ``validate`` found faults; 2, bad input
or usage; 70, a defect of pope_fast itself; 130, interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pope_fast.cli.align import CONTEXT as ALIGN_CONTEXT
from pope_fast.cli.align import align
from pope_fast.cli.evaluate import evaluate
from pope_fast.cli.simulate import simulate
from pope_fast.cli.validate import validate

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from pope_fast import __version__

        typer.echo(f"pope_fast {__version__}")
        raise typer.Exit


@app.callback()
def pope(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Pluralistic off-policy evaluation of LLMs from feedback logs: utility, diversity, honest intervals."""


for verb in (validate, evaluate, simulate):
    app.command()(verb)
app.command(context_settings=ALIGN_CONTEXT)(align)


def main() -> None:
    """Run the command line; the entry point of ``pope``."""
    app(prog_name="pope")
