"""``pope score``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from enum import StrEnum
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from pope_fast.cli.common import ColumnOption, LogArgument, QuietOption, name_values, user_errors
from pope_fast.errors import PopeWarning

if TYPE_CHECKING:
    from pope_fast.log import FeedbackLog
    from pope_fast.score.policies import HFPolicy, Policy


class Dtype(StrEnum):
    """Number formats of a model."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"
    auto = "auto"


class Eos(StrEnum):
    """When the end of a response counts as a token."""

    auto = "auto"
    always = "always"
    never = "never"


class Api(StrEnum):
    """Ways to ask a server."""

    auto = "auto"
    vllm = "vllm"
    echo = "echo"
    echo_text = "echo-text"
    llama_cpp = "llama.cpp"


def score(
    log: LogArgument,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT.parquet", help="Where it goes.", show_default=False)
    ],
    model: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="Path or hub id of a target policy. Repeat for several.")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name of each --model, then of --server; else the end of its path."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="PEFT adapter on the one --model: a policy of its own. Repeat."),
    ] = None,
    behavior_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model that wrote the log, if it has no behavior_logprob.")
    ] = None,
    aa: Annotated[bool, typer.Option("--aa", help="Score it (also) into behavior_logprob_again.")] = False,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Server that returns prompt log-probs, e.g. http://host:8000/v1.")
    ] = None,
    server_model: Annotated[str | None, typer.Option(metavar="MODEL", help="Its name there.")] = None,
    server_api: Annotated[Api, typer.Option(help="How to ask it; auto tries.")] = Api.auto,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable with the server's key.")
    ] = None,
    concurrency: Annotated[int, typer.Option(metavar="N", min=1, help="Requests to the server at a time.")] = 8,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="PATH", help="Tokenizer; by default that of each model.")
    ] = None,
    temperature: Annotated[float, typer.Option(metavar="T", help="Temperature of the policies.")] = 1.0,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the models; auto is that of the files.")] = (
        Dtype.float32
    ),
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="cpu, cuda:1, auto (over all GPUs) ...")] = None,
    attention: Annotated[str | None, typer.Option(metavar="NAME", help="sdpa, eager, flash_attention_2 ...")] = None,
    revision: Annotated[str | None, typer.Option(metavar="REV", help="Of models on the hub.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Write log-probs of tokens too.")] = False,
    retokenize: Annotated[
        bool, typer.Option("--retokenize", help="Score the text, also where the log has token ids.")
    ] = False,
    eos: Annotated[Eos, typer.Option(help="Whether the end of a text counts as a token; auto: finish_reason.")] = (
        Eos.auto
    ),
    share_prompt: Annotated[
        bool | None,
        typer.Option("--share-prompt/--no-share-prompt", help="Compute a prompt once for all its responses."),
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most padded tokens of one call of the model.")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Same bits for any interruption and number of processes.")
    ] = False,
    column: ColumnOption = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the models.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what an earlier run finished.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Add log-probs of a log's responses under other models: target_logprob/NAME.

    What is finished is kept in OUT.parts: the same command continues a run that was killed. Several GPUs: accelerate
    launch -m pope_fast.cli score ...
    """
    columns, adapters = name_values(column, "--column"), name_values(adapter, "--adapter")
    if adapters and len(model or ()) != 1:
        raise typer.BadParameter("adapters need exactly one --model to sit on", param_hint="--adapter")
    names = _names(model, name, bool(adapters), server is not None)
    with user_errors():
        from pope_fast.score import HFPolicy, ServerPolicy
        from pope_fast.score import score as run

        def policy(label: str, path: str, on_it: str | None = None) -> HFPolicy:
            return HFPolicy(
                label,
                path,
                adapter=on_it,
                processing_class=tokenizer,
                temperature=temperature,
                dtype=dtype.value,
                device=device,
                attention=attention,
                revision=revision,
                trust_remote_code=trust_remote_code,
                tokens="text" if retokenize else "auto",
            )

        policies: list[Policy] = [policy(label, path) for label, path in zip(names, model or (), strict=False) if label]
        policies += [policy(label, (model or [""])[0], on_it) for label, on_it in adapters.items()]
        if server is not None:
            policies.append(
                ServerPolicy(
                    names[-1] or "server",
                    server,
                    server_model,
                    processing_class=tokenizer,
                    api=server_api.value,
                    api_key_env=api_key_env,
                    concurrency=concurrency,
                    tokens="text" if retokenize else "auto",
                    revision=revision,
                    trust_remote_code=trust_remote_code,
                )
            )
        warnings.simplefilter("ignore", PopeWarning)
        scored = run(
            log,
            policies,
            output,
            behavior=None if behavior_model is None else policy("behavior", behavior_model),
            aa=aa,
            columns=columns or None,
            token_logprobs=tokens,
            eos=eos.value,
            share_prompt="auto" if share_prompt is None else share_prompt,
            token_budget=token_budget,
            deterministic=deterministic,
            overwrite=overwrite,
            restart=restart,
            progress=False if quiet else None,
        )
        if os.environ.get("RANK", "0") == "0":
            _say(scored, output, quiet)


def _names(models: Sequence[str] | None, names: Sequence[str] | None, adapters: bool, server: bool) -> list[str]:
    """Return a name for each model and for the server; "" for a base model that only carries adapters."""
    sources = [*(models or ()), *(["server"] if server else ())]
    given = list(names or ())
    if given and len(given) != len(sources):
        raise typer.BadParameter(
            f"{len(given)} names for {len(sources)} of --model and --server: name all, or none", param_hint="--name"
        )
    own = [PurePath(source).name or source for source in sources]
    return given or (["", *own[1:]] if adapters else own)


def _say(scored: FeedbackLog, output: str, quiet: bool) -> None:
    for note in scored.warnings:
        typer.echo(f"warning: {note}", err=True)
    if not quiet:
        from pope_fast.score import read_provenance

        for column, made in read_provenance(scored.schema).items():
            lost = f", {made.errors:,} without" if made.errors else ""
            typer.echo(f"{column}: {(made.rows or 0) - (made.errors or 0):,} rows{lost} ({made.model}, {made.tokens})")
        typer.echo(f"wrote {output}; next: pope evaluate {output}")
