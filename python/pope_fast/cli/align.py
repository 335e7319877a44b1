"""``pope align``."""

from __future__ import annotations

from typing import Annotated

import typer

from pope_fast.cli.common import ColumnOption, LogArgument, QuietOption, RangeOption, name_values, user_errors
from pope_fast.cli.common import bounds as parse_bounds
from pope_fast.errors import PopeError

#: Flags that are not declared here are fields of POPEConfig.
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}


def _show_settings(wanted: bool) -> None:
    if wanted:
        with user_errors():
            from pope_fast._extras import require

            require("transformers", "alignment")
            from pope_fast.align.command import settings_help

            typer.echo(settings_help())
        raise typer.Exit


def align(
    context: typer.Context,
    log: LogArgument,
    model: Annotated[str | None, typer.Option(metavar="PATH", help="The policy to train: path or hub id.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where it is saved.")] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="YAML file with settings; flags win.")] = None,
    ref_model: Annotated[
        str | None, typer.Option(metavar="PATH", help="Reference policy; that of the log by default.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="PATH", help="By default the model's own.")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="NAME", help="In which the model is loaded.")] = None,
    column: ColumnOption = None,
    reward_range: RangeOption = None,
    lora_rank: Annotated[int | None, typer.Option(metavar="R", min=1, help="Train a LoRA adapter.")] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Train once for each of these lambdas, and show the frontier.")
    ] = None,
    sweep_beta: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Train once for each of these betas too.")
    ] = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE", help="Figure of the frontier.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    quiet: QuietOption = False,
    settings: Annotated[
        bool,
        typer.Option("--settings", callback=_show_settings, is_eager=True, help="List every setting of the training."),
    ] = False,
) -> None:
    """Train a model on the log for utility and diversity, off-policy.

    Every setting of the training is a flag as well, such as --diversity_weight 0.1 --learning_rate 1e-5; --settings
    lists them. Held-out prompts of the log say what the model is worth before and after.
    """
    columns = name_values(column, "--column")
    span = parse_bounds(reward_range)
    lambdas, betas = _numbers(sweep, "--sweep"), _numbers(sweep_beta, "--sweep-beta")
    with user_errors():
        from pope_fast._extras import require

        for module in ("torch", "transformers", "accelerate"):
            require(module, "alignment")
        from pope_fast.align.command import align as train
        from pope_fast.align.command import parse_settings
        from pope_fast.align.sweeping import Frontier

        flags = [*context.args, *(["--disable_tqdm", "true"] if quiet else [])]
        arguments, args = parse_settings(
            flags,
            config,
            log=log,
            model=model,
            output_dir=output,
            ref_model=ref_model,
            tokenizer=tokenizer,
            dtype=dtype,
            columns=columns or None,
            reward_range=span,
            lora_rank=lora_rank,
            sweep_diversity_weight=lambdas,
            sweep_beta=betas,
            resume=resume or None,
        )
        if plot is not None and not (arguments.sweep_diversity_weight or arguments.sweep_beta):
            raise PopeError("--plot draws the frontier of a --sweep, and there is none")
        result = train(arguments, args)
        if plot is not None and isinstance(result, Frontier):
            result.plot(plot)
        if not quiet:
            typer.echo("" if result is None else str(result))
            typer.echo(f"saved in {args.output_dir}; next: pope score LOG --model {args.output_dir} --name aligned")


def _numbers(text: str | None, option: str) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not of the form A,B,...", param_hint=option) from None
