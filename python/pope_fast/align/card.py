"""The model card of a trained policy: what the log says about its value, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pope_fast import _core
from pope_fast.evaluate import Estimate, Evaluation

if TYPE_CHECKING:
    from pope_fast.align.trainer import POPETrainer

__all__ = ["card_section", "write_card"]

_BEGIN, _END = "<!-- pope_fast -->", "<!-- /pope_fast -->"

#: Settings that a reader needs to judge or repeat the run.
_SETTINGS = (
    *("loss_type", "diversity_weight", "beta", "kl", "form", "diversity_measure", "diversity_level", "diversity_order"),
    *("welfare", "weight_level", "truncation", "clip", "taper", "baseline", "temperature"),
    *(
        "learning_rate",
        "max_steps",
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "seed",
    ),
)


def write_card(trainer: POPETrainer, evaluation: Evaluation, looks: int) -> Path:
    """Write the section into README.md of the output folder, in place of an earlier one."""
    path = Path(trainer.args.output_dir or ".") / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    section = card_section(trainer, evaluation, looks)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    begin, end = text.find(_BEGIN), text.find(_END)
    if begin >= 0 and end > begin:
        text = text[:begin] + section + text[end + len(_END) :]
    else:
        text = f"{text.rstrip()}\n\n{section}\n".lstrip()
    path.write_text(text, encoding="utf-8")
    return path


def card_section(trainer: POPETrainer, evaluation: Evaluation, looks: int) -> str:
    """Return the section as Markdown.

    Parameters
    ----------
    trainer : POPETrainer
    evaluation : Evaluation
        Of policies "before" and "after" on the held-out prompts.
    looks : int
        Checkpoints that were compared on the same prompts to choose this one.
    """
    before, after = evaluation["before"], evaluation["after"]
    difference = evaluation.compare("after", "before")
    rows = ["| | before | after | change |", "|---|---|---|---|"]
    for name, letter in (("value", "V"), ("utility", "U"), ("diversity", "D")):
        cells = [getattr(policy, name) for policy in (before, after, difference)]
        if all(cell is not None for cell in cells):
            rows.append(f"| {letter}, {name} | {' | '.join(map(_cell, cells))} |")
    found = after.diagnostics
    level = evaluation.settings.level
    held = (
        f"{level:.0%} intervals"
        if looks == 1
        else f"intervals at {level:.2%}, so that they hold for the {looks} checkpoints that were compared at once"
    )
    settings = {name: getattr(trainer.args, name) for name in _SETTINGS}
    lines = [
        _BEGIN,
        "## Value estimated off-policy",
        "",
        f"Trained with pope_fast {_core.build_info()['version']} on a feedback log. The table is an estimate from "
        f"{found.n_units:,} prompts of the log that training did not see, by importance weighting; no response of the "
        f"new policy was rated. V = U + {after.diversity_weight:g} D; {held}.",
        "",
        *rows,
        "",
        f"Verdict on the new policy: **{after.verdict.level}** (effective sample size {found.ess:,.0f} of "
        f"{found.n_units:,} prompts).",
        *(f"- {reason}" for reason in after.verdict.reasons),
        "",
        "Settings: " + ", ".join(f"`{name}={value}`" for name, value in settings.items()) + ".",
        _END,
    ]
    return "\n".join(lines)


def _cell(estimate: Estimate) -> str:
    if estimate.value is None:
        return "not available"
    interval = "no valid interval" if estimate.interval is None else str(estimate.interval)
    return f"{estimate.value:.4g} {interval}"
