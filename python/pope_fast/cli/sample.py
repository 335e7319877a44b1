"""``pope sample``."""

from __future__ import annotations

import warnings
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from pope_fast.cli.common import ColumnOption, LogArgument, QuietOption, name_values, user_errors
from pope_fast.cli.score import Dtype
from pope_fast.errors import PopeWarning

if TYPE_CHECKING:
    from pope_fast.log import FeedbackLog


def sample(
    log: LogArgument,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FRESH.parquet", help="Where they go.", show_default=False)
    ],
    model: Annotated[str, typer.Option(metavar="MODEL", help="Path or hub id of the policy.", show_default=False)],
    k: Annotated[int, typer.Option("--draws", "-k", metavar="K", min=1, help="Draws per prompt.")] = 1,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name that LOG has for the policy; else the end of its path.")
    ] = None,
    score_under: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MODEL", help="Score the draws under this policy too; logger=MODEL that wrote LOG."),
    ] = None,
    temperature: Annotated[float, typer.Option(metavar="T", help="Divides the logits.")] = 1.0,
    top_k: Annotated[int, typer.Option(metavar="N", help="Only the N most probable tokens; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(metavar="P", help="Only the most probable tokens up to this share.")] = 1.0,
    min_p: Annotated[
        float, typer.Option(metavar="P", help="Only tokens at least this probable, relative to the best.")
    ] = 0.0,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most tokens of a response; by default those of LOG.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Seed of the draws.")] = 0,
    prompts: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Draw for N prompts only, chosen at random.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(metavar="PATH", help="PEFT adapter on the model.")] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="PATH", help="By default the model's own.")] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Number format of the model; auto is that of the files.")
    ] = Dtype.float32,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="cpu, cuda:1, auto (over all GPUs) ...")] = None,
    attention: Annotated[str | None, typer.Option(metavar="NAME", help="sdpa, eager, flash_attention_2 ...")] = None,
    revision: Annotated[str | None, typer.Option(metavar="REV", help="Of models on the hub.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Write log-probs of tokens too.")] = False,
    retokenize: Annotated[
        bool, typer.Option("--retokenize", help="Tokenize the prompt's text, also where LOG has token ids.")
    ] = False,
    token_budget: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most padded tokens that a batch holds.")
    ] = None,
    column: ColumnOption = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the models.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Draw fresh responses of a policy for the prompts of a log, with their exact log-probs.

    The draws are a log too. With --score-under logger=MODEL they check the log-probs of LOG: pope evaluate LOG --fresh.
    """
    columns, others = name_values(column, "--column"), name_values(score_under, "--score-under")
    with user_errors():
        from pope_fast.sample import sample as draw
        from pope_fast.score import HFPolicy

        common = {
            "dtype": dtype.value,
            "device": device,
            "attention": attention,
            "trust_remote_code": trust_remote_code,
        }
        label = name or PurePath(model).name or model
        policy = HFPolicy(
            label,
            model,
            processing_class=tokenizer,
            adapter=adapter,
            temperature=temperature,
            revision=revision,
            tokens="text" if retokenize else "auto",
            **common,  # type: ignore[arg-type]
        )
        warnings.simplefilter("ignore", PopeWarning)
        fresh = draw(
            policy,
            log,
            k,
            output,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
            most_prompts=prompts,
            score_under=[HFPolicy(other, path, **common) for other, path in others.items()] or None,  # type: ignore[arg-type]
            columns=columns or None,
            token_logprobs=tokens,
            token_budget=token_budget,
            overwrite=overwrite,
            progress=False if quiet else None,
        )
        _say(fresh, log, label, output, quiet)


def _say(fresh: FeedbackLog, log: str, label: str, output: str, quiet: bool) -> None:
    for note in fresh.warnings:
        typer.echo(f"warning: {note}", err=True)
    if quiet:
        return
    ready = "logger" in fresh.policies
    then = (
        f"pope evaluate {log} --fresh {label}={output}"
        if ready
        else f"pope score {output} --model LOGGER --name logger -o SCORED"
    )
    typer.echo(f"wrote {fresh.num_rows:,} draws to {output}; next: {then}")
