"""The trainer: transformers' own loop, fed with whole prompts of a log, watched by an off-policy evaluation."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from pope_fast._extras import require
from pope_fast.align import holdout
from pope_fast.align.card import write_card
from pope_fast.align.config import POPEConfig
from pope_fast.align.data import Collator, LoggedPrompts
from pope_fast.align.likelihood import completion_logprobs, head_of
from pope_fast.align.losses import LOSSES, LossInputs, backward_plan
from pope_fast.align.options import demand, loss_options, running_marginal
from pope_fast.align.reading import demand_signal, read_prompts
from pope_fast.errors import PopeError, PopeWarning
from pope_fast.evaluate import Evaluation, PolicyValue
from pope_fast.evaluate.verdict import DEFAULT_THRESHOLDS
from pope_fast.score.model import ModelScorer
from pope_fast.score.plan import make_plan

__all__ = ["POPETrainer"]

_BEFORE, _NOW, _AFTER = "before", "now", "after"
_MARGINAL_FILE = "marginal.pt"


class POPETrainer(Trainer):
    """Trains a causal language model on a feedback log, off-policy, for utility and diversity.

    Parameters
    ----------
    model : transformers.PreTrainedModel, peft.PeftModel or str
        The policy to train; a path or hub id is loaded.
    ref_model : transformers.PreTrainedModel or str, optional
        The reference of the divergence penalty. By default the behavior policy, whose log-probs are in the log: that
        costs no pass of any model. Log-probs of another reference are computed once, before training.
    args : POPEConfig
    train_dataset : FeedbackLog, LoggedPrompts, or anything that :func:`pope_fast.read_log` takes
        The log: see :func:`pope_fast.align.read_prompts`.
    eval_dataset : likewise, optional
        Prompts on which the value is estimated. By default a share ``args.holdout`` of the log's prompts.
    processing_class : tokenizer, optional
        By default that of the model, if it is given by its path.
    peft_config : peft.PeftConfig, optional
        Trains an adapter instead of the whole model.
    callbacks, optimizers
        As in `transformers.Trainer`.

    Attributes
    ----------
    before, after : Evaluation or None
        The held-out estimates: of policy "before", before training; of "before" and "after", after it.
    initial_logprobs, final_logprobs : float64 array or None
        Log-probs of the held-out responses under these two policies, in nats.

    Raises
    ------
    SchemaError
        If the log cannot be trained on.
    PopeError
        If settings and log do not go together.

    Notes
    -----
    A batch holds whole prompts, since diversity and leave-one-out baselines are about the responses to one prompt.
    Accumulated micro-batches, and the batches of several processes, are one batch to the loss: the log-probs of all are
    computed first, without gradient; the loss of the whole gives the derivative by each; a second pass carries it into
    the parameters (Gao et al. 2021). The gradient is that of the whole batch, exactly, for one more forward pass.

    The estimates during training come from prompts that training does not see, but a checkpoint that is chosen for its
    bound is chosen on them. At the end the intervals are those of ``1 - (1 - level) / k`` after k evaluations: they
    hold for all k checkpoints at once, and so for the chosen one.
    """

    # The loss is that of the whole accumulated batch: nothing is to be divided by the number of micro-batches.
    loss_is_scaled_for_ga = True
    args: POPEConfig

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: POPEConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = POPEConfig(output_dir="pope_output") if args is None else args
        if train_dataset is None:
            raise PopeError("there is no log to train on. Remedy: give train_dataset")
        if isinstance(model, str):
            processing_class = processing_class or AutoTokenizer.from_pretrained(model)
            model = AutoModelForCausalLM.from_pretrained(model)
        self._spec = LOSSES[args.loss_type]
        vocabulary = model.get_input_embeddings().num_embeddings
        longest = args.max_length or getattr(model.config, "max_position_embeddings", None)
        reading = {
            "needs_tokens": "tokens" in demand(args),
            "max_length": longest,
            "vocab_size": vocabulary,
        }
        data = read_prompts(train_dataset, processing_class, **reading)
        held: LoggedPrompts | None = None
        if eval_dataset is not None:
            held = read_prompts(eval_dataset, processing_class, **reading)
        elif args.holdout:
            data, held = data.split(args.holdout, args.seed)
        demand_signal(data)
        self.loss_options = loss_options(args, data)
        if peft_config is not None:
            model = require("peft", "training an adapter").get_peft_model(model, peft_config)
        if args.disable_dropout:
            _disable_dropout(model)
        super().__init__(
            model=model,
            args=args,
            data_collator=Collator(_pad_id(processing_class), args.max_responses),
            train_dataset=data,
            eval_dataset=held,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if "loss_is_scaled_for_ga" not in inspect.getsource(Trainer.training_step):
            # transformers before 5.19 reads these two instead.
            self.model_accepts_loss_kwargs = False
            self.compute_loss_func = _refuse_outputs
        self._head = head_of(model)
        if ref_model is not None:
            if isinstance(ref_model, str):
                ref_model = AutoModelForCausalLM.from_pretrained(ref_model)
            reference = self._sequence_logprobs(data, ref_model.to(self.args.device))
            self.train_dataset = data.with_column("ref_logprob", reference)
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._whole: _WholeBatch | None = None
        self._marginal = running_marginal(args, self.loss_options)
        self.initial_logprobs: npt.NDArray[np.float64] | None = None
        self.final_logprobs: npt.NDArray[np.float64] | None = None
        self.before: Evaluation | None = None
        self.after: Evaluation | None = None

    # ---- The loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Fetch the micro-batches of one step; see the notes of the class for what is done with several."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        several = len(samples) > 1 or self.accelerator.num_processes > 1
        self._whole = _WholeBatch(samples) if several and samples else None
        return samples, items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of one micro-batch, so that the losses of a step add up to that of the whole batch."""
        if self._whole is None:
            batch = self._loss_inputs(model, inputs)
            self._spec.check(batch)
            loss, metrics = self._spec.function(batch, **self._options())
            self._after_loss(batch.detach(), metrics)
        else:
            if self._whole.plan is None:
                self._plan_whole(model)
            loss = self._whole.surrogate(self._loss_inputs(model, inputs))
        return (loss, {}) if return_outputs else loss

    def _loss_inputs(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> LossInputs:
        tokens = completion_logprobs(model, self._head, inputs, self.args.temperature)
        others = {name: inputs.get(name) for name in _ROW_COLUMNS}
        return LossInputs.from_tokens(
            tokens,
            inputs["completion_mask"],
            behavior_token_logprobs=inputs.get("behavior_token_logprobs"),
            **{name: values for name, values in others.items() if values is not None},
        )

    def _plan_whole(self, model: nn.Module) -> None:
        """First pass: what the loss of all micro-batches, and of all processes, asks of each log-prob."""
        whole = self._whole
        assert whole is not None
        with torch.no_grad():
            parts = [self._loss_inputs(model, self._prepare_inputs(sample)) for sample in whole.samples]
        mine = LossInputs.concatenate([part.detach() for part in parts])
        first, batch, processes = 0, mine, self.accelerator.num_processes
        if processes > 1:
            gathered = require("accelerate.utils", "training on several devices").gather_object([mine.to("cpu")])
            first = sum(len(part) for part in gathered[: self.accelerator.process_index])
            batch = LossInputs.concatenate(gathered).to(self.args.device)
        self._spec.check(batch)
        whole.plan = backward_plan(self._spec.function, batch, **self._options())
        # Gradients are averaged over processes; here each has its share of a sum.
        whole.first, whole.scale = first, float(processes)
        self._after_loss(batch, whole.plan.metrics)

    # ---- Diversity of all prompts together: one batch has few of them

    def _options(self) -> dict[str, Any]:
        if self._marginal is None:
            return self.loss_options
        return {**self.loss_options, "reference": self._marginal.masses()}

    def _after_loss(self, batch: LossInputs, metrics: Mapping[str, float]) -> None:
        self._note(metrics)
        if self._marginal is not None:
            # After the loss, so that no response is judged by masses that it is part of.
            self._marginal.update(batch, self.loss_options["objective"].weighting)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._marginal is not None and self.args.should_save:
            torch.save(self._marginal.state_dict(), Path(output_dir) / _MARGINAL_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        stored = None if checkpoint is None else Path(checkpoint) / _MARGINAL_FILE
        if self._marginal is not None and stored is not None and stored.exists():
            self._marginal.load_state_dict(torch.load(stored, weights_only=True))

    # ---- What is logged

    def _note(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if math.isfinite(value):
                self._metrics[name].append(float(value))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss's own metrics beside those of transformers, averaged since the last entry."""
        if "loss" in logs:
            logs = {**logs, **{name: float(np.mean(values)) for name, values in self._metrics.items()}}
            self._metrics.clear()
        super().log(logs, start_time)

    # ---- The value of the policy in training

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Estimate U, D and V of the current policy from the held-out prompts, off-policy, with intervals.

        Returns
        -------
        dict of str to float
            See :func:`pope_fast.align.holdout.metrics`.

        Raises
        ------
        PopeError
            If nothing was held out.
        """
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(data, LoggedPrompts):
            if data is None:
                raise PopeError("no prompts were held out. Remedy: set holdout above 0, or give an eval_dataset")
            data = read_prompts(data, self.processing_class)
        policy = holdout.estimate(data, {_NOW: self._sequence_logprobs(data, self._plain_model())}, self.args)[_NOW]
        numbers = holdout.metrics(policy, self.args.lower_bound, metric_key_prefix)
        self.log(dict(numbers))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, numbers)
        if self.is_in_train:
            self._watch(policy, numbers[f"{metric_key_prefix}_value_lower"], metric_key_prefix)
        return numbers

    def _watch(self, policy: PolicyValue, bound: float, prefix: str) -> None:
        """Stop or slow down where the log no longer supports the policy, or the bound no longer rises."""
        reasons = holdout.reasons_to_stop(policy)
        if reasons and self.args.on_unreliable != "ignore":
            stop = self.args.on_unreliable == "stop"
            done = "training stops" if stop else "the learning rate is halved"
            message = f"{done} at step {self.state.global_step}, for the log no longer supports the policy"
            warnings.warn(f"{message}: {'; '.join(reasons)}", PopeWarning, stacklevel=2)
            if stop:
                self.control.should_training_stop = True
            else:
                self._halve_learning_rate()
        patience = self.args.early_stopping_patience
        key = f"{prefix}_value_lower"
        bounds = [entry[key] for entry in self.state.log_history if key in entry]
        if patience is not None and len(bounds) - 1 - int(np.argmax(bounds)) >= patience and bounds[-1] == bound:
            self.control.should_training_stop = True

    def _halve_learning_rate(self) -> None:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.5
        scheduler: Any = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [rate * 0.5 for rate in scheduler.base_lrs]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, with an evaluation of the held-out prompts before and after, and a model card at the end."""
        held = self.eval_dataset
        if not isinstance(held, LoggedPrompts):
            return super().train(*args, **kwargs)
        least = DEFAULT_THRESHOLDS["ess"]
        if len(held) < least:
            few = f"{len(held)} prompts are held out, and any verdict on fewer than {least:.0f} is unreliable"
            warnings.warn(f"{few}. Remedy: a larger holdout, or a log of more prompts", PopeWarning, stacklevel=2)
        if self.initial_logprobs is None:
            self.initial_logprobs = self._sequence_logprobs(held, self._plain_model())
            self.before = holdout.estimate(held, {_BEFORE: self.initial_logprobs}, self.args)
        result = super().train(*args, **kwargs)
        self.final_logprobs = self._sequence_logprobs(held, self._plain_model())
        looks = sum("eval_value_lower" in entry for entry in self.state.log_history)
        looks = looks if self.args.load_best_model_at_end and looks > 1 else 1
        self.after = holdout.estimate(
            held,
            {_BEFORE: self.initial_logprobs, _AFTER: self.final_logprobs},
            self.args,
            level=1.0 - (1.0 - self.args.level) / looks,
        )
        if self.is_world_process_zero():
            write_card(self, self.after, looks)
        return result

    def _plain_model(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def _sequence_logprobs(self, data: LoggedPrompts, model: Any) -> npt.NDArray[np.float64]:
        """Score every response of some prompts; each process takes its share."""
        training = model.training
        model.eval()
        try:
            scorer = ModelScorer(model, temperature=self.args.temperature)
            plan = make_plan(data.prompts.take(data.prompt_of_row), data.completions, token_budget=scorer.token_budget)
            mine = range(self.accelerator.process_index, len(plan), self.accelerator.num_processes)
            found = [(scores.pairs, scores.sums) for scores in scorer.run(plan, mine)]
        finally:
            model.train(training)
        if self.accelerator.num_processes > 1:
            found = require("accelerate.utils", "training on several devices").gather_object(found)
        sums = np.empty(plan.n_pairs)
        for pairs, values in found:
            sums[pairs] = values
        return sums[plan.inverse]


_ROW_COLUMNS = (
    *("prompt", "behavior_logprob", "reward"),
    *("cluster", "group", "count", "ref_logprob"),
)


class _WholeBatch:
    """The micro-batches of one step, and what the loss of all of them asks of each."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples
        self.plan: Any = None
        self.first = 0
        self.scale = 1.0

    def surrogate(self, part: LossInputs) -> Tensor:
        """Return a micro-batch's share of the loss, with its share of the gradient; parts come in order."""
        value: Tensor = self.plan.surrogate(part, self.first) * self.scale
        self.first += len(part)
        share: Tensor = self.plan.loss * (len(part) * self.scale / len(self.plan.gradients["logprob"]))
        return value - value.detach() + share


def _refuse_outputs(*_: Any, **__: Any) -> Any:
    """Stand for a loss of outputs, so that old versions of transformers leave the scale alone; never called."""
    raise PopeError("POPETrainer computes its loss from the log")


def _disable_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _pad_id(processing_class: Any) -> int:
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(processing_class, name, None)
        if value is not None:
            return int(value)
    return 0
