"""``pope evaluate``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from pope_fast.cli.common import (
    ColumnOption,
    JsonOption,
    LogArgument,
    PolicyOption,
    QuietOption,
    RangeOption,
    name_values,
    policy_map,
    user_errors,
    write_text,
)
from pope_fast.cli.common import (
    bounds as parse_bounds,
)
from pope_fast.errors import PopeWarning

if TYPE_CHECKING:
    from pope_fast.evaluate.findings import Verdict, VerdictLevel
    from pope_fast.evaluate.results import Evaluation
    from pope_fast.evaluate.sensitivity import ClusterSensitivity


class ClusterScope(StrEnum):
    """Whether a cluster means the same in every prompt."""

    log = "log"
    prompt = "prompt"


def evaluate(
    log: LogArgument,
    policy: PolicyOption = None,
    column: ColumnOption = None,
    diversity: Annotated[
        str, typer.Option(metavar="NAME", help="What D is: auto, h_m, gini, coverage@M, entropy, rao or vendi.")
    ] = "auto",
    diversity_weight: Annotated[
        float, typer.Option(metavar="F", help="lambda in V = U + lambda D, reward units per unit of D.")
    ] = 1.0,
    diversity_order: Annotated[int, typer.Option(metavar="M", help="Order of the diversity measure H_M.")] = 3,
    unit: Annotated[str, typer.Option(metavar="prompt|row|COLUMN", help="What is independent.")] = "prompt",
    level: Annotated[float, typer.Option(metavar="F", help="Coverage of the intervals.")] = 0.95,
    reward_range: RangeOption = None,
    estimator: Annotated[str, typer.Option(metavar="NAME", help="Estimator of U that is shown first.")] = "sn_tips",
    cluster_scope: Annotated[
        ClusterScope | None,
        typer.Option(
            help="Whether a cluster means the same in every prompt; by default what the log says, else log.",
            show_default=False,
        ),
    ] = None,
    cluster_sensitivity: Annotated[
        bool,
        typer.Option("--cluster-sensitivity", help="Cluster again at other thresholds: how D and V depend on them."),
    ] = False,
    aa_policy: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Behavior policy scored a second time: measures log-prob noise."),
    ] = None,
    fresh: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="Fresh draws of policy NAME ('pope sample'): checks the log-probs. Repeat for several policies.",
        ),
    ] = None,
    fresh_logger: Annotated[
        str, typer.Option(metavar="NAME", help="Policy or column of the fresh draws that wrote LOG.")
    ] = "logger",
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
    json_to: JsonOption = None,
    html_to: Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write a self-contained page.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help="What the verdict of a policy is about; by default utility, diversity and value. Also: groups, "
            "welfare, differences. Everything is estimated and judged on its own all the same.",
        ),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LEVEL[:NAME[,NAME]]",
            help="Exit with 1 if a verdict is this bad (caution or unreliable) or worse: of any policy, or on the "
            "quantities named (utility, diversity, value, groups, welfare, differences). Repeat for several.",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads; by default all there are.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Estimate utility U, diversity D and value V = U + lambda D of every target policy in a log.

    Prints a table with intervals and, for each policy, a verdict on whether the log can answer at all.
    """
    policies, columns, thresholds = policy_map(policy), name_values(column, "--column"), _thresholds(threshold)
    bounds, compared = parse_bounds(reward_range), _compared(compare)
    limits, asked = _limits(fail_on), _quantities(",".join(only), "--only") if only else None
    with user_errors():
        from pope_fast.evaluate import evaluate as estimate
        from pope_fast.evaluate.findings import ASKED
        from pope_fast.log import read_log

        known = _truth(truth)
        # What the reader of the log warns about comes with the evaluation, and is printed with it.
        warnings.simplefilter("ignore", PopeWarning)
        opened = read_log(
            log,
            columns=columns or None,
            policies=policies,
            reward_range=bounds,
            unit=unit,
            progress=False if quiet else None,
        )
        evaluation = estimate(
            opened,
            diversity=diversity,
            diversity_weight=diversity_weight,
            diversity_order=diversity_order,
            estimator=estimator,
            level=level,
            unit=unit,
            cluster_scope=None if cluster_scope is None else cluster_scope.value,
            thresholds=thresholds,
            quantities=asked or ASKED,
            aa_policy=aa_policy,
            fresh=_fresh(fresh),
            fresh_logger=fresh_logger,
            threads=threads,
            progress=False if quiet else None,
        )
        failed = [limit for limit in limits if limit.verdict(evaluation).at_least(limit.level)]
        pairs = [(d.a, d.b) for d in (evaluation.compare(a, b) for a, b in compared)]
        sensitivity = None
        if cluster_sensitivity:
            from pope_fast.evaluate.sensitivity import cluster_sensitivity as vary

            sensitivity = vary(
                opened,
                diversity=diversity,
                diversity_weight=diversity_weight,
                diversity_order=diversity_order,
                estimator=estimator,
                level=level,
                unit=unit,
                gates=thresholds,
                aa_policy=aa_policy,
                threads=threads,
                progress=False if quiet else None,
            )
        _deliver(evaluation, known, pairs, json_to, html_to, quiet, sensitivity)
    for limit in failed:
        typer.echo(f"{limit.said}: {limit.verdict(evaluation).level} (--fail-on {limit})", err=True)
    if failed:
        raise typer.Exit(1)


class Limit(NamedTuple):
    """A verdict to stop at: of the whole evaluation, or on one quantity."""

    level: VerdictLevel
    quantity: str | None

    def __str__(self) -> str:
        return self.level if self.quantity is None else f"{self.level}:{self.quantity}"

    @property
    def said(self) -> str:
        """What the verdict is on."""
        return "verdict" if self.quantity is None else f"verdict on {self.quantity}"

    def verdict(self, evaluation: Evaluation) -> Verdict:
        """Give the verdict that is held against the level."""
        return evaluation.verdict if self.quantity is None else evaluation.verdict_of(self.quantity)


def _limits(values: Sequence[str] | None) -> list[Limit]:
    """Parse ``--fail-on``: ``LEVEL``, or ``LEVEL:NAME,NAME``."""
    limits = []
    for value in values or ():
        level, colon, names = value.partition(":")
        if level not in ("caution", "unreliable"):
            message = f"{level!r} is no verdict to fail on; there are caution and unreliable, as in unreliable:utility"
            raise typer.BadParameter(message, param_hint="--fail-on")
        wanted: Sequence[str | None] = _quantities(names, "--fail-on") if colon else (None,)
        limits += [Limit(cast("VerdictLevel", level), name) for name in wanted]
    return list(dict.fromkeys(limits))


def _quantities(value: str, option: str) -> tuple[str, ...]:
    """Parse names of quantities, separated by commas."""
    from pope_fast.evaluate.findings import QUANTITIES

    names = tuple(name.strip() for name in value.split(","))
    for name in names:
        if name not in QUANTITIES:
            message = f"there is no quantity {name!r}; there are: {', '.join(QUANTITIES)}"
            raise typer.BadParameter(message, param_hint=option)
    return tuple(dict.fromkeys(names))


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
    sensitivity: ClusterSensitivity | None = None,
) -> None:
    if html_to is not None:
        from pope_fast.report.html import render_page

        write_text(html_to, render_page(evaluation, truth=truth, title=f"pope_fast: {evaluation.settings.source}"))
    if json_to is not None:
        from pope_fast.report.json import dumps

        content = evaluation.to_json()
        if sensitivity is not None:
            content["pope"]["cluster_sensitivity"] = sensitivity.to_dict()
        text = dumps(content)
        if json_to == "-":
            typer.echo(text)
            return
        write_text(json_to, text + "\n")
    if not quiet:
        from rich.console import Console

        from pope_fast.report.table import render, render_text

        console = Console(highlight=False)
        width, plain, pairs = console.width, console.options.ascii_only, compared or None
        if console.is_terminal:
            console.print(render(evaluation, width=width, truth=truth, compare=pairs, ascii_only=plain))
        else:
            typer.echo(render_text(evaluation, width=width, truth=truth, compare=pairs, ascii_only=plain))
        if sensitivity is not None:
            typer.echo(f"\n{sensitivity}")


def _fresh(values: Sequence[str] | None) -> str | dict[str, str] | None:
    """Parse ``--fresh``: one file, or ``NAME=FILE``; a path that has a = in it is a path if it exists."""
    if not values:
        return None
    if len(values) == 1 and ("=" not in values[0] or Path(values[0]).exists()):
        return values[0]
    return name_values(values, "--fresh")


def _thresholds(values: Sequence[str] | None) -> dict[str, float] | None:
    thresholds: dict[str, float] = {}
    for name, value in name_values(values, "--threshold").items():
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
