"""The command line: ``pope evaluate``, ``pope validate`` and ``pope simulate``.

Each verb parses its options, calls one public function and prints what that returns. Exit codes: 0, all is
well; 1, the verdict is as bad as ``--fail-on`` says, or ``validate`` found faults; 2, bad input or usage; 70,
a defect of pope_fast itself; 130, interrupted.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pope_fast.errors import PopeError, PopeWarning

if TYPE_CHECKING:
    from pope_fast.evaluate.results import Evaluation

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEFECT = 70
INTERRUPTED = 130


class FailOn(StrEnum):
    """Verdicts that a caller may want to stop at."""

    caution = "caution"
    unreliable = "unreliable"


class ClusterScope(StrEnum):
    """Whether a cluster means the same in every prompt."""

    log = "log"
    prompt = "prompt"


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


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turn a user's mistake into one line and exit code 2; show a traceback only for a defect of ours."""
    try:
        yield
    except PopeError as error:
        _fail(str(error))
    except (typer.Exit, BrokenPipeError):
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}")
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception:
        # Not 1, the code of Python for an uncaught error: a caller would take that for a verdict.
        traceback.print_exc()
        typer.echo("This is a defect of pope_fast; please report it with the lines above.", err=True)
        raise typer.Exit(DEFECT) from None


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


def _pairs(values: Sequence[str] | None, option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values or ():
        name, equals, content = value.partition("=")
        if not (equals and name and content):
            raise typer.BadParameter(f"{value!r} is not of the form NAME=VALUE", param_hint=option)
        if name in pairs:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint=option)
        pairs[name] = content
    return pairs


def _policies(values: Sequence[str] | None) -> dict[str, str] | list[str] | None:
    if not values:
        return None
    if any("=" in value for value in values):
        return _pairs(values, "--policy")
    if len(set(values)) < len(values):
        raise typer.BadParameter("a policy is given twice", param_hint="--policy")
    return list(values)


def _range(value: str | None) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = (float(part) for part in value.split(","))
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not of the form LO,HI", param_hint="--reward-range") from None
    return low, high


def _thresholds(values: Sequence[str] | None) -> dict[str, float] | None:
    thresholds: dict[str, float] = {}
    for name, value in _pairs(values, "--threshold").items():
        try:
            thresholds[name] = float(value)
        except ValueError:
            raise typer.BadParameter(f"{value!r} is not a number", param_hint="--threshold") from None
    return thresholds or None


def _compared(values: Sequence[str] | None) -> list[tuple[str, str]]:
    pairs = []
    for value in values or ():
        names = tuple(part.strip() for part in value.split(","))
        if len(names) != 2 or not all(names):
            raise typer.BadParameter(f"{value!r} is not of the form A,B", param_hint="--compare")
        pairs.append((names[0], names[1]))
    return pairs


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        _fail(f"cannot write {path}: {error.strerror or error}")


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


@app.command()
def evaluate(
    log: LogArgument,
    policy: PolicyOption = None,
    column: ColumnOption = None,
    diversity_weight: Annotated[
        float, typer.Option(metavar="F", help="lambda in V = U + lambda D, reward units per unit of D.")
    ] = 1.0,
    diversity_order: Annotated[int, typer.Option(metavar="M", help="Order of the diversity measure H_M.")] = 3,
    unit: Annotated[str, typer.Option(metavar="prompt|row|COLUMN", help="What is independent.")] = "prompt",
    level: Annotated[float, typer.Option(metavar="F", help="Coverage of the intervals.")] = 0.95,
    reward_range: RangeOption = None,
    estimator: Annotated[str, typer.Option(metavar="NAME", help="Estimator of U that is shown first.")] = "sn_tips",
    cluster_scope: Annotated[
        ClusterScope, typer.Option(help="Whether a cluster means the same in every prompt of the log.")
    ] = ClusterScope.log,
    aa_policy: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Behavior policy scored a second time: measures log-prob noise."),
    ] = None,
    threshold: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A gate of the verdict, e.g. ess=100.")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="Show the paired difference A - B. Repeat for several."),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Truth file of a simulated log: shown beside the estimates."),
    ] = None,
    json_to: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write JSON; - prints it, and nothing else."),
    ] = None,
    html_to: Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write a self-contained page.")] = None,
    fail_on: Annotated[FailOn | None, typer.Option(help="Exit with 1 if any verdict is this bad or worse.")] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads; by default all there are.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no table and no progress.")] = False,
) -> None:
    """Estimate utility U, diversity D and value V = U + lambda D of every target policy in a log.

    Prints a table with intervals and, for each policy, a verdict on whether the log can answer at all.
    """
    policies, columns, thresholds = _policies(policy), _pairs(column, "--column"), _thresholds(threshold)
    bounds, compared = _range(reward_range), _compared(compare)
    with _user_errors():
        from pope_fast.evaluate import evaluate as estimate
        from pope_fast.log import read_log

        known = _truth(truth)
        # What the reader of the log warns about comes with the evaluation, and is printed with it.
        warnings.simplefilter("ignore", PopeWarning)
        evaluation = estimate(
            read_log(
                log,
                columns=columns or None,
                policies=policies,
                reward_range=bounds,
                unit=unit,
                progress=False if quiet else None,
            ),
            diversity_weight=diversity_weight,
            diversity_order=diversity_order,
            estimator=estimator,
            level=level,
            unit=unit,
            cluster_scope=cluster_scope.value,
            thresholds=thresholds,
            aa_policy=aa_policy,
            threads=threads,
            progress=False if quiet else None,
        )
        pairs = [(d.a, d.b) for d in (evaluation.compare(a, b) for a, b in compared)]
        _deliver(evaluation, known, pairs, json_to, html_to, quiet)
    if fail_on is not None and evaluation.verdict.at_least(fail_on.value):
        typer.echo(f"verdict: {evaluation.verdict.level} (--fail-on {fail_on.value})", err=True)
        raise typer.Exit(1)


def _truth(path: str | None) -> Mapping[str, Any] | None:
    if path is None:
        return None
    from pope_fast.report.json import load_truth

    return load_truth(path)


def _deliver(
    evaluation: Evaluation,
    truth: Mapping[str, Any] | None,
    compared: Sequence[tuple[str, str]],
    json_to: str | None,
    html_to: str | None,
    quiet: bool,
) -> None:
    if html_to is not None:
        from pope_fast.report.html import render_page

        _write(html_to, render_page(evaluation, truth=truth, title=f"pope_fast: {evaluation.settings.source}"))
    if json_to is not None:
        from pope_fast.report.json import dumps

        text = dumps(evaluation.to_json())
        if json_to == "-":
            typer.echo(text)
            return
        _write(json_to, text + "\n")
    if not quiet:
        from rich.console import Console

        from pope_fast.report.table import render, render_text

        console = Console(highlight=False)
        width, plain, pairs = console.width, console.options.ascii_only, compared or None
        if console.is_terminal:
            console.print(render(evaluation, width=width, truth=truth, compare=pairs, ascii_only=plain))
        else:
            typer.echo(render_text(evaluation, width=width, truth=truth, compare=pairs, ascii_only=plain))


@app.command()
def validate(
    log: LogArgument,
    policy: PolicyOption = None,
    column: ColumnOption = None,
    reward_range: RangeOption = None,
    max_faults: Annotated[int, typer.Option(metavar="N", min=1, help="Faults that are listed at most.")] = 20,
    json_to: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write JSON; - prints it, and nothing else."),
    ] = None,
) -> None:
    """Say what a log holds, and list every fault with its column, its row and a remedy.

    Exits with 1 if there are faults.
    """
    policies, columns, bounds = _policies(policy), _pairs(column, "--column"), _range(reward_range)
    with _user_errors():
        from pope_fast.log import validate as check

        warnings.simplefilter("ignore", PopeWarning)
        report = check(log, max_faults=max_faults, columns=columns or None, policies=policies, reward_range=bounds)
        if json_to is not None:
            from pope_fast.report.json import dumps, to_plain

            text = dumps(to_plain(report.to_dict()))
            if json_to == "-":
                typer.echo(text)
            else:
                _write(json_to, text + "\n")
        if json_to != "-":
            typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
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
    with _user_errors():
        from pope_fast.simulate import simulate as draw

        log, truth = draw(kind, prompts=prompts, responses=responses, seed=seed).write(output)
        if not quiet:
            typer.echo(f"wrote {log} and {truth}; next: pope evaluate {log} --truth {truth}")


def main() -> None:
    """Run the command line; the entry point of ``pope``."""
    app(prog_name="pope")


if __name__ == "__main__":
    main()
