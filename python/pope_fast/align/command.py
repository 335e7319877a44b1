"""What ``pope align`` does: settings from a YAML file and flags, one run or a sweep, and what is written."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from transformers.trainer_utils import get_last_checkpoint

from pope_fast._extras import require
from pope_fast.align.config import POPEConfig
from pope_fast.align.sweeping import Frontier, sweep
from pope_fast.align.trainer import POPETrainer
from pope_fast.errors import PopeError
from pope_fast.evaluate import Evaluation
from pope_fast.log import read_log

__all__ = ["AlignArguments", "align", "parse_settings", "settings_help"]


@dataclass
class AlignArguments:
    """What to train on what; the settings of the training itself are :class:`POPEConfig`.

    Parameters
    ----------
    log : str
        Anything that :func:`pope_fast.read_log` takes.
    model : str
        Path or hub id of the policy to train.
    ref_model : str, optional
        The reference policy; the behavior policy of the log by default.
    tokenizer : str, optional
        That of the model by default.
    dtype : str
        In which the model is loaded. Keep "float32" unless the parameters do not fit: with ``bf16=True`` activations
        are in bfloat16 all the same.
    columns : mapping of role to column, optional
    reward_range : (float, float), optional
    lora_rank, lora_alpha : int, optional
        Train a LoRA adapter of this rank on all linear layers.
    sweep_diversity_weight, sweep_beta : sequence of float, optional
        Train once for every pair of these.
    resume : bool
        Continue from the last checkpoint in ``output_dir``.
    """

    log: str = ""
    model: str = ""
    ref_model: str | None = None
    tokenizer: str | None = None
    dtype: str = "float32"
    columns: Mapping[str, str] = field(default_factory=dict)
    reward_range: tuple[float, float] | None = None
    lora_rank: int | None = None
    lora_alpha: int | None = None
    sweep_diversity_weight: Sequence[float] | None = None
    sweep_beta: Sequence[float] | None = None
    resume: bool = False


class _Parser(HfArgumentParser):
    """Raises instead of printing a hundred flags."""

    def error(self, message: str) -> NoReturn:
        raise PopeError(f"{message}. Remedy: pope align --settings lists every flag.")


def parse_settings(flags: Sequence[str], config: str | None = None, **given: Any) -> tuple[AlignArguments, POPEConfig]:
    """Read settings: flags win over the YAML file, which wins over the defaults.

    Parameters
    ----------
    flags : sequence of str
        ``--learning_rate 1e-5`` ...: any field of :class:`POPEConfig`.
    config : path, optional
        YAML file with fields of :class:`AlignArguments` and :class:`POPEConfig`.
    **given
        Fields of :class:`AlignArguments` and ``output_dir``, None for those not given.

    Raises
    ------
    PopeError
        If the file cannot be read, or a name or value is not known.
    """
    values = {} if config is None else _read_yaml(config)
    own = {item.name for item in fields(AlignArguments)}
    training = {item.name for item in fields(POPEConfig) if item.init}
    for name in values:
        if name not in own | training:
            close = difflib.get_close_matches(name, [*own, *training], n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise PopeError(f"{config}: there is no setting {name!r}.{hint}")
    values.update({name: value for name, value in given.items() if value is not None})
    arguments = AlignArguments(**{name: value for name, value in values.items() if name in own})
    parser = _Parser([POPEConfig], allow_abbrev=False)  # type: ignore[list-item]
    parser.set_defaults(**{name: value for name, value in values.items() if name in training})
    args, unknown = parser.parse_args_into_dataclasses(list(flags), return_remaining_strings=True)
    if unknown:
        name = unknown[0].lstrip("-").replace("-", "_")
        close = difflib.get_close_matches(name, training, n=1)
        hint = f" Did you mean --{close[0]}?" if close else ""
        raise PopeError(f"no such option: {unknown[0]}.{hint}")
    for name, what in (("log", "a log"), ("model", "a model (--model)")):
        if not getattr(arguments, name):
            raise PopeError(f"pope align needs {what}")
    if not args.output_dir:
        raise PopeError("pope align needs a folder for the model (-o, --output)")
    return arguments, args


def align(arguments: AlignArguments, args: POPEConfig) -> Evaluation | Frontier | None:
    """Train as the settings say, and save model, tokenizer, model card and, of a sweep, its frontier.

    Returns
    -------
    Evaluation, Frontier or None
        Held-out estimates before and after; of a sweep those of all runs; None if nothing was held out.
    """
    log = read_log(
        arguments.log,
        columns=dict(arguments.columns) or None,
        policies=(),
        reward_range=None if arguments.reward_range is None else (arguments.reward_range[0], arguments.reward_range[1]),
    )
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer or arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=arguments.dtype)
    options: dict[str, Any] = {
        "processing_class": tokenizer,
        "ref_model": arguments.ref_model,
        "peft_config": _lora(arguments),
    }
    folder = Path(args.output_dir or ".")
    if arguments.sweep_diversity_weight or arguments.sweep_beta:
        frontier = sweep(
            model,
            args,
            log,
            diversity_weights=arguments.sweep_diversity_weight or [args.diversity_weight],
            betas=arguments.sweep_beta,
            **options,
        )
        from pope_fast.report.json import dumps

        (folder / "frontier.json").write_text(dumps(frontier.to_dict()) + "\n", encoding="utf-8")
        return frontier
    trainer = POPETrainer(model, args=args, train_dataset=log, **options)
    checkpoint = _last(folder) if arguments.resume and folder.is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(folder))
    return trainer.after


def settings_help() -> str:
    """Return the help text of every flag of :class:`POPEConfig`."""
    parser = _Parser([POPEConfig], allow_abbrev=False, prog="pope align", add_help=False)  # type: ignore[list-item]
    return str(parser.format_help())


def _read_yaml(path: str) -> dict[str, Any]:
    yaml = require("yaml", "a settings file")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PopeError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise PopeError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise PopeError(f"{path} must hold names and values, one 'name: value' per line")
    return values


def _last(folder: Path) -> str | None:
    checkpoint: str | None = get_last_checkpoint(str(folder))  # type: ignore[no-untyped-call]
    return checkpoint


def _lora(arguments: AlignArguments) -> Any:
    if arguments.lora_rank is None:
        return None
    peft = require("peft", "training an adapter")
    return peft.LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha or 2 * arguments.lora_rank,
        lora_dropout=0.0,
        # All but the head: its logits are computed in tiles from its own weight.
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
