"""``pope cluster``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

import typer

from pope_fast.cli.common import (
    ColumnOption,
    JsonOption,
    LogArgument,
    QuietOption,
    name_values,
    user_errors,
    write_text,
)


class TextFeatures(StrEnum):
    """Features that need no model."""

    tfidf = "tfidf"
    tfidf_word = "tfidf-word"
    exact = "exact"
    normalized = "normalized"


class Scope(StrEnum):
    """Where a cluster lies."""

    prompt = "prompt"
    log = "log"


class Method(StrEnum):
    """How responses are put together."""

    average = "average"
    complete = "complete"
    leader = "leader"
    kmeans = "kmeans"
    hdbscan = "hdbscan"


def cluster(
    log: LogArgument,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="OUT.parquet", help="Where the log goes.", show_default=False),
    ],
    features: Annotated[
        TextFeatures | None,
        typer.Option(help="Compare texts without a model; by default n-grams (tfidf).", show_default=False),
    ] = None,
    embeddings: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Compare embeddings that the log has in this column.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Compare embeddings by a sentence-transformers model.")
    ] = None,
    nli: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Responses are the same if an NLI model says that each entails the other."),
    ] = None,
    scope: Annotated[
        Scope, typer.Option(help="Perspectives within each prompt, or themes over the log.")
    ] = Scope.prompt,
    method: Annotated[
        Method | None,
        typer.Option(
            help="Within prompts: average, complete, leader. Over the log: kmeans, hdbscan.", show_default=False
        ),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(metavar="auto|F", help="Similarity from which responses belong together; auto chooses it."),
    ] = None,
    stability_plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw how the threshold was chosen (PNG, SVG or PDF).")
    ] = None,
    themes: Annotated[int, typer.Option(metavar="K", help="Themes of kmeans.")] = 20,
    min_cluster_size: Annotated[int, typer.Option(metavar="N", help="Responses of hdbscan's smallest theme.")] = 10,
    with_prompt: Annotated[
        bool, typer.Option("--with-prompt", help="Hand a model the prompt with each response.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Texts or pairs per call of a model.")
    ] = None,
    column: ColumnOption = None,
    into: Annotated[str, typer.Option(metavar="COLUMN", help="Name of the cluster column.")] = "cluster",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a column of that name.")] = False,
    against: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Known clusters: print how well the found ones agree.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Seed of the samples that are learned from.")] = 0,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads; by default all there are.")] = None,
    json_to: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Cluster the responses of a log into perspectives (within prompts) or themes, and write the log with them."""
    columns, cut = name_values(column, "--column"), _threshold(threshold)
    with user_errors():
        from pope_fast.cluster import agreement
        from pope_fast.cluster import cluster as find
        from pope_fast.errors import PopeError
        from pope_fast.log.opening import open_log

        opened = open_log(log, columns=columns or None, progress=False if quiet else None)
        known = None if against is None else _known(opened, against)
        result = find(
            opened,
            output,
            features=None if features is None else features.value,
            embeddings=embeddings,
            model=model,
            same=None if nli is None else _entailment(nli, batch_size),
            scope=scope.value,
            method=None if method is None else method.value,
            threshold=cut,
            n_clusters=themes,
            min_cluster_size=min_cluster_size,
            with_prompt=with_prompt,
            batch_size=None if nli is not None else batch_size,
            into=into,
            overwrite=overwrite,
            columns=columns or None,
            seed=seed,
            threads=threads,
            progress=False if quiet else None,
        )
        if stability_plot is not None:
            if result.stability is None or not result.stability.thresholds:
                why = "no threshold was chosen" if result.stability is None else result.stability.reason
                raise PopeError(f"there is no stability curve to draw: {why}")
            result.stability.save_plot(stability_plot)
        agreed = None if known is None else agreement(result.labels, *known)
        _print(result, agreed, json_to, quiet)


def _threshold(value: str | None) -> float | Literal["auto"] | None:
    if value is None:
        return None
    if value == "auto":
        return "auto"
    try:
        return float(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is neither 'auto' nor a number", param_hint="--threshold") from None


def _entailment(name: str, batch_size: int | None) -> Any:
    from pope_fast.cluster import entailment

    return entailment(name) if batch_size is None else entailment(name, batch_size=batch_size)


def _known(log: Any, column: str) -> tuple[Any, Any]:
    """Return the known cluster and the prompt of each row."""
    from pope_fast.cluster.known import known_clusters

    return known_clusters(log, column)


def _print(result: Any, agreed: Any, json_to: str | None, quiet: bool) -> None:
    if json_to is not None:
        from pope_fast.report.json import dumps, to_plain

        text = dumps(to_plain({**result.to_dict(), "agreement": agreed}))
        if json_to == "-":
            typer.echo(text)
            return
        write_text(json_to, text + "\n")
    if not quiet:
        typer.echo(str(result))
        if agreed is not None:
            typer.echo(f"agreement with the known clusters: {agreed}")
        typer.echo(f"next: pope evaluate {result.output}")
