"""What the verbs of the command line share: options, their parsing, and what a user's mistake looks like."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pope_fast.errors import PopeError

DEFECT = 70
INTERRUPTED = 130

LogArgument = Annotated[
    str,
    typer.Argument(metavar="LOG", help="Parquet file, folder or glob, JSONL (.gz, .zst) or CSV.", show_default=False),
]
PolicyOption = Annotated[
    list[str] | None,
    typer.Option("--policy", metavar="NAME[=COLUMN]", help="Target policy, and its column. Repeat for several."),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="ROLE=COLUMN", help="Which column plays a role, e.g. reward=upvotes."),
]
RangeOption = Annotated[
    str | None,
    typer.Option("--reward-range", metavar="LO,HI", help="Bounds of the reward; by default those observed."),
]
JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE|-", help="Write JSON; - prints it, and nothing else."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print no table and no progress.")]


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a user's mistake into one line and exit code 2; show a traceback only for a defect of ours."""
    try:
        yield
    except PopeError as error:
        fail(str(error))
    except (typer.Exit, BrokenPipeError):
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        fail(f"{place}{error.strerror or error}")
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception:
        # Not 1, the code of Python for an uncaught error: a caller would take that for a verdict.
        traceback.print_exc()
        typer.echo("This is a defect of pope_fast; please report it with the lines above.", err=True)
        raise typer.Exit(DEFECT) from None


def fail(message: str) -> NoReturn:
    """Print a user's mistake and exit with code 2."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


def name_values(values: Sequence[str] | None, option: str) -> dict[str, str]:
    """Parse a repeated ``NAME=VALUE`` option."""
    pairs: dict[str, str] = {}
    for value in values or ():
        name, equals, content = value.partition("=")
        if not (equals and name and content):
            raise typer.BadParameter(f"{value!r} is not of the form NAME=VALUE", param_hint=option)
        if name in pairs:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint=option)
        pairs[name] = content
    return pairs


def policy_map(values: Sequence[str] | None) -> dict[str, str] | list[str] | None:
    """Parse ``--policy``: names of policies, or ``NAME=COLUMN``."""
    if not values:
        return None
    if any("=" in value for value in values):
        return name_values(values, "--policy")
    if len(set(values)) < len(values):
        raise typer.BadParameter("a policy is given twice", param_hint="--policy")
    return list(values)


def bounds(value: str | None) -> tuple[float, float] | None:
    """Parse ``--reward-range LO,HI``."""
    if value is None:
        return None
    try:
        low, high = (float(part) for part in value.split(","))
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not of the form LO,HI", param_hint="--reward-range") from None
    return low, high


def write_text(path: str, text: str) -> None:
    """Write a file, or say in one line why not."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror or error}")
