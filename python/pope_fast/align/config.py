"""Settings of an alignment run: one dataclass for Python, YAML and the command line."""

# ruff: noqa: RUF009, RUF012  # _option only spells field(...) with less noise.

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from pope_fast.align.losses import LOSSES
from pope_fast.errors import PopeError

__all__ = ["POPEConfig"]


def _option(default: Any, text: str, **metadata: Any) -> Any:
    """Declare a field with a help text; ``%`` would be taken for a format by the argument parser."""
    return field(default=default, metadata={"help": text.replace("%", "%%"), **metadata})


@dataclass
class POPEConfig(TrainingArguments):
    """Settings of a :class:`~pope_fast.align.POPETrainer`: those of `transformers.TrainingArguments`, and these.

    Parameters
    ----------
    loss_type
        "pope", or a baseline: a name of :data:`pope_fast.align.losses.LOSSES`.
    diversity_weight
        lambda in V = U + lambda D, reward units per unit of D. 0 trains on utility alone and needs no clusters.
    beta
        Weight of the divergence from the reference policy, reward units per nat. Some baselines have their own use
        for it: see their docstrings.
    kl
        Which divergence: "forward", KL(ref || policy), which holds the policy to what the reference says; or an
        estimate "k3" or "k1" of KL(policy || ref): see :class:`pope_fast.align.losses.Objective`.
    form
        "score" (policy gradient with the unified reward) or "direct" (differentiates the estimate itself).
    diversity_measure, diversity_level, diversity_order
        Which D: "h_m", "gini", "coverage" or "shannon"; within prompts ("prompt") or over all of them ("marginal"); M
        of H_M, or m of coverage@m.
    marginal_memory
        At the marginal level: share of the cluster masses of earlier batches that is kept at every step. The diversity
        of all prompts together is judged by them, since one batch has few prompts. 0 uses the batch alone.
    welfare
        How the utilities of annotator groups make one: "mean", "nash" or "softmin".
    weight_level, truncation, clip, rejection, taper
        Importance weights: see :class:`pope_fast.align.losses.Weighting`.
    baseline
        What is subtracted from the reward: "loo" (mean of the prompt's other responses), "mean" or "none".
    loss_options
        Further keyword arguments of the loss, as a mapping or JSON.
    temperature
        At which the policy is meant to be sampled, and at which the log-probs are taken.
    max_length
        Most tokens of prompt and response; rows beyond are an error, never cut.
    max_responses
        Most responses of a prompt in a batch, another draw of them in every epoch; all by default.
    disable_dropout
        Off for exact likelihoods; needed for exact gradient accumulation.
    holdout
        Share of the prompts that is held out to estimate the value, if no ``eval_dataset`` is given; 0 estimates
        nothing.
    lower_bound
        Which lower bound of V chooses checkpoints: "robust" or "certified".
    level
        Coverage of the intervals.
    early_stopping_patience
        Evaluations without a better lower bound until training stops; None never stops for that.
    on_unreliable
        What to do when the policy being trained has left what the log supports, so that the verdict on it is
        ``unreliable`` (and not only because few prompts are held out): "stop", "lower" (halve the learning rate) or
        "ignore".

    Notes
    -----
    A batch is counted in prompts: ``per_device_train_batch_size=8`` are 8 prompts with all their responses. Defaults
    that differ from those of transformers: ``logging_steps`` 10, ``learning_rate`` 1e-5, ``remove_unused_columns``
    False, and checkpoints are compared by ``eval_value_lower``.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "loss_options"]

    learning_rate: float = _option(1e-5, "The initial learning rate of the optimizer.")
    logging_steps: float = _option(10, "Steps between two entries of the training log.")
    remove_unused_columns: bool = _option(False, "Not used: batches are made by the trainer's own collator.")

    loss_type: str = _option("pope", "Which loss: pope, or a baseline.", choices=sorted(LOSSES))
    diversity_weight: float = _option(0.1, "lambda in V = U + lambda D, reward units per unit of D.")
    beta: float = _option(0.05, "Weight of the divergence from the reference policy, reward units per nat.")
    kl: str = _option("forward", "Which divergence from the reference.", choices=["forward", "k3", "k1"])
    form: str = _option("score", "Form of the POPE objective.", choices=["score", "direct"])
    diversity_measure: str = _option("h_m", "Which D.", choices=["h_m", "gini", "coverage", "shannon"])
    diversity_level: str = _option("prompt", "D within prompts, or over all.", choices=["prompt", "marginal"])
    diversity_order: int = _option(3, "M of H_M, or m of coverage@m.")
    marginal_memory: float = _option(0.9, "Share of earlier cluster masses kept at a step, at level 'marginal'.")
    welfare: str = _option("mean", "How groups make one utility.", choices=["mean", "nash", "softmin"])
    weight_level: str = _option("sequence", "Importance weights of what.", choices=["sequence", "token", "geometric"])
    truncation: str = _option("clip", "How weights are bounded.", choices=["none", "clip", "sn_tips", "psis"])
    clip: float = _option(2.0, "Largest weight, for truncation 'clip'.")
    rejection: str = _option("none", "Which rows are left out.", choices=["none", "ratio", "geometric", "k3", "token"])
    taper: str = _option("none", "How weights fade.", choices=["none", "ppo", "logistic", "topr", "gspo"])
    baseline: str = _option("loo", "What is subtracted from the reward.", choices=["loo", "mean", "none"])
    loss_options: dict[str, Any] | str | None = _option(None, "Further keyword arguments of the loss, as JSON.")

    temperature: float = _option(1.0, "Temperature at which the policy is meant to be sampled.")
    max_length: int | None = _option(None, "Most tokens of prompt and response; longer rows are an error.")
    max_responses: int | None = _option(None, "Most responses of a prompt in a batch; all by default.")
    disable_dropout: bool = _option(True, "Whether dropout is off.")

    holdout: float = _option(0.2, "Share of the prompts that is held out to estimate the value.")
    lower_bound: str = _option("robust", "Lower bound of V that chooses.", choices=["robust", "certified"])
    level: float = _option(0.95, "Coverage of the intervals.")
    early_stopping_patience: int | None = _option(None, "Evaluations without a better bound until training stops.")
    on_unreliable: str = _option("stop", "What an unreliable verdict does.", choices=["stop", "lower", "ignore"])

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.metric_for_best_model in (None, "loss"):
            # Set by load_best_model_at_end to the loss, which says nothing about the value here.
            self.metric_for_best_model = "eval_value_lower"
            self.greater_is_better = True
        if self.loss_type not in LOSSES:
            raise PopeError(f"there is no loss_type {self.loss_type!r}; there are: {', '.join(sorted(LOSSES))}")
        if self.on_unreliable not in ("stop", "lower", "ignore"):
            raise PopeError(f"on_unreliable must be 'stop', 'lower' or 'ignore', not {self.on_unreliable!r}")
        if self.lower_bound not in ("robust", "certified"):
            raise PopeError(f"lower_bound must be 'robust' or 'certified', not {self.lower_bound!r}")
        if not 0 <= self.holdout < 1:
            raise PopeError(f"holdout must be at least 0 and less than 1, not {self.holdout}")
        if not 0 <= self.marginal_memory < 1:
            raise PopeError(f"marginal_memory must be at least 0 and less than 1, not {self.marginal_memory}")
        for name, high in (("level", 1.0), ("temperature", math.inf)):
            if not 0 < getattr(self, name) < high:
                raise PopeError(f"{name} must lie between 0 and {high:g}, not {getattr(self, name)}")
        for name in ("diversity_weight", "beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise PopeError(f"{name} must be at least 0 and finite, not {getattr(self, name)}")
        if self.max_responses is not None and self.max_responses < 1:
            raise PopeError(f"max_responses must be at least 1, not {self.max_responses}")
