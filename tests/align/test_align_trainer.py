"""The trainer: exact gradients, a value that rises, estimates on held-out prompts, and refusals with a remedy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from align_logs import VOCABULARY, draw, make_log, tiny_policy

from pope_fast.align import POPEConfig, POPETrainer, read_prompts
from pope_fast.align.data import Collator
from pope_fast.align.likelihood import completion_logprobs, head_of
from pope_fast.align.losses import LOSSES
from pope_fast.errors import PopeError, PopeWarning, SchemaError
from tiny_models import tiny_tokenizer


def config(folder: Path, **changes: Any) -> POPEConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "diversity_order": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        "holdout": 0.25,
        "logging_steps": 1,
    }
    return POPEConfig(**{**settings, **changes})


def gradients(folder: Path, log: Any, **changes: Any) -> dict[str, torch.Tensor]:
    """Parameters' change after one step of plain gradient descent: minus the gradient."""
    model = tiny_policy()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    args = config(folder, max_steps=1, holdout=0.0, max_grad_norm=0.0, **changes)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    POPETrainer(model, args=args, train_dataset=log, optimizers=(optimizer, schedule)).train()
    return {name: before[name] - value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("loss_type", ["pope", "gspo", "dpo", "topr"])
def test_accumulation_does_not_change_the_gradient(tmp_path: Path, loss_type: str) -> None:
    log = make_log(tiny_policy(1), prompts=8)
    options = {"loss_type": loss_type, "diversity_weight": 0.5}
    whole = gradients(tmp_path, log, per_device_train_batch_size=8, gradient_accumulation_steps=1, **options)
    parts = gradients(tmp_path, log, per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    scale = max(float(value.abs().max()) for value in whole.values())
    assert scale > 1e-6
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], atol=2e-5 * scale, rtol=1e-4), name


def test_the_sum_of_micro_losses_is_logged_as_the_loss_of_the_whole(tmp_path: Path) -> None:
    log = make_log(tiny_policy(1), prompts=8)
    losses = []
    for size, steps in ((8, 1), (2, 4)):
        args = config(
            tmp_path, max_steps=1, holdout=0.0, per_device_train_batch_size=size, gradient_accumulation_steps=steps
        )
        trainer = POPETrainer(tiny_policy(), args=args, train_dataset=log)
        trainer.train()
        losses.append(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_log_probs_in_training_are_those_of_full_logits() -> None:
    model = tiny_policy()
    data = read_prompts(make_log(tiny_policy(1), prompts=6, length=5), None)
    batch = Collator(0)([data[i] for i in range(6)])
    head = head_of(model)
    assert head is not None
    for temperature in (1.0, 0.7):
        tiled = completion_logprobs(model, head, batch, temperature)
        full = completion_logprobs(model, None, batch, temperature)
        logits = model(batch["input_ids"]).logits.double() / temperature
        table = torch.log_softmax(logits, dim=2)
        expected = torch.stack(
            [table[:, 3 + j].gather(1, batch["completion_ids"][:, j : j + 1])[:, 0] for j in range(5)], dim=1
        )
        assert torch.allclose(tiled.double(), expected, atol=1e-5)
        assert torch.allclose(full.double(), expected, atol=1e-5)


def test_no_tensor_of_all_logits_is_made(tmp_path: Path) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for item in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(item, torch.Tensor):
                    Largest.elements = max(Largest.elements, item.numel())
            return result

    from tiny_models import tiny_model

    vocabulary = 20_000
    model = tiny_model("llama", vocab_size=vocabulary, hidden_size=16, intermediate_size=16)
    log = make_log(tiny_policy(1), prompts=8, responses=8, length=40)
    args = config(tmp_path, max_steps=1, holdout=0.0, per_device_train_batch_size=8, diversity_weight=0.0)
    with Largest():
        POPETrainer(model, args=args, train_dataset=log).train()
    full = 8 * 8 * 40 * vocabulary
    assert vocabulary * 16 <= Largest.elements < full / 10


@pytest.mark.slow
def test_training_raises_the_true_utility_and_the_log_sees_it(tmp_path: Path) -> None:
    logger = tiny_policy(1)
    log = make_log(logger, prompts=400, responses=4, length=2)
    model = tiny_policy(1)
    args = config(tmp_path, max_steps=40, per_device_train_batch_size=32, learning_rate=3e-3, diversity_weight=0.1)
    trainer = POPETrainer(model, args=args, train_dataset=log)
    trainer.train()

    def truth(policy: Any) -> float:
        rng = np.random.default_rng(9)
        prompts = [[1, *rng.integers(3, VOCABULARY, 3).tolist()] for _ in range(300)]
        first = draw(policy.eval(), prompts, 8, 1, seed=3)[0][:, :, 0]
        return float(np.where(first > 7, 0.8, 0.2).mean())

    assert truth(model) > truth(logger) + 0.04
    change = trainer.after.compare("after", "before").utility
    assert change.value is not None
    assert change.value > 0.0
    assert trainer.before["before"].diagnostics.ess_fraction > 0.99
    card = (tmp_path / "README.md").read_text()
    assert "Value estimated off-policy" in card
    assert f"{trainer.after['after'].value.value:.4g}" in card


def test_evaluations_during_training_choose_a_checkpoint(tmp_path: Path) -> None:
    log = make_log(tiny_policy(1), prompts=40)
    args = config(
        tmp_path,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        on_unreliable="ignore",
    )
    trainer = POPETrainer(tiny_policy(1), args=args, train_dataset=log)
    trainer.train()
    seen = [entry for entry in trainer.state.log_history if "eval_value_lower" in entry]
    assert len(seen) == 2
    assert {"eval_utility", "eval_diversity", "eval_value", "eval_ess", "eval_verdict"} <= set(seen[0])
    assert trainer.state.best_metric == max(entry["eval_value_lower"] for entry in seen)
    # Two checkpoints were compared, so both intervals hold at once.
    assert trainer.after.settings.level == pytest.approx(1 - 0.05 / 2)
    assert "2 checkpoints" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(("reaction", "steps"), [("stop", 2), ("lower", 6), ("ignore", 6)])
def test_an_unreliable_verdict_stops_or_slows_training(tmp_path: Path, reaction: str, steps: int) -> None:
    log = make_log(tiny_policy(1), prompts=40)
    args = config(
        tmp_path,
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        on_unreliable=reaction,
    )
    trainer = POPETrainer(tiny_policy(1), args=args, train_dataset=log)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PopeWarning)
        trainer.train()
    said = [str(w.message) for w in caught if "no longer supports the policy" in str(w.message)]
    assert bool(said) == (reaction != "ignore")
    assert trainer.state.global_step == steps
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert (rates[-1] < rates[0]) == (reaction == "lower")


def test_few_held_out_prompts_are_no_reason_to_stop(tmp_path: Path) -> None:
    """The policy hardly moves: that ten prompts are too few for a verdict is not its fault."""
    log = make_log(tiny_policy(1), prompts=40)
    args = config(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2, learning_rate=1e-6)
    trainer = POPETrainer(tiny_policy(1), args=args, train_dataset=log)
    with pytest.warns(PopeWarning, match="10 prompts are held out, and any verdict on fewer than 50"):
        trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.after is not None
    assert trainer.after["after"].verdict.level == "unreliable"


@pytest.mark.parametrize("level", ["prompt", "marginal"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, level: str) -> None:
    log = make_log(tiny_policy(1), prompts=24)
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    settings |= {"diversity_level": level, "diversity_weight": 1.0}
    whole = POPETrainer(tiny_policy(), args=config(tmp_path / "whole", **settings), train_dataset=log)
    whole.train()
    folder = tmp_path / "parts"
    POPETrainer(tiny_policy(), args=config(folder, **{**settings, "max_steps": 2}), train_dataset=log).train()
    resumed = POPETrainer(tiny_policy(), args=config(folder, **settings), train_dataset=log)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    for mine, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)
    # "before" is the policy before training, not the checkpoint.
    assert np.array_equal(resumed.initial_logprobs, whole.initial_logprobs)


def test_an_adapter_is_trained_and_the_base_is_left_alone(tmp_path: Path) -> None:
    from peft import LoraConfig

    model = tiny_policy()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    log = make_log(tiny_policy(1), prompts=24)
    trainer = POPETrainer(model, args=config(tmp_path), train_dataset=log, peft_config=adapter)
    trainer.train()
    names = dict(trainer.model.named_parameters())
    assert any("lora_B" in name and float(value.detach().abs().max()) > 0 for name, value in names.items())
    for name, value in before.items():
        kept = [other for full, other in names.items() if full.replace(".base_layer", "").endswith(f"model.{name}")]
        assert kept
        assert torch.equal(kept[0], value)


def test_another_reference_is_scored_once(tmp_path: Path) -> None:
    log = make_log(tiny_policy(1), prompts=12)
    args = config(tmp_path, holdout=0.0, beta=0.5)
    trainer = POPETrainer(tiny_policy(), ref_model=tiny_policy(2), args=args, train_dataset=log)
    data = trainer.train_dataset
    batch = Collator(0)([data[i] for i in range(len(data))])
    expected = completion_logprobs(tiny_policy(2), None, batch).sum(dim=1)
    assert torch.allclose(batch["ref_logprob"].float(), expected, atol=1e-4)


@pytest.mark.parametrize("loss_type", sorted(LOSSES))
def test_every_loss_trains(tmp_path: Path, loss_type: str) -> None:
    model = tiny_policy()
    before = [value.detach().clone() for value in model.parameters()]
    args = config(tmp_path, loss_type=loss_type, max_steps=1, holdout=0.0, per_device_train_batch_size=12)
    trainer = POPETrainer(model, args=args, train_dataset=make_log(tiny_policy(1), prompts=12))
    trainer.train()
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert {"ess", "k_hat", "largest_share", "ess_clipped"} <= set(entry)


def test_bfloat16_keeps_single_precision_log_probs(tmp_path: Path) -> None:
    model = tiny_policy().to(torch.bfloat16)
    data = read_prompts(make_log(tiny_policy(1), prompts=4), None)
    tokens = completion_logprobs(model, head_of(model), Collator(0)([data[i] for i in range(4)]))
    assert tokens.dtype == torch.float32
    exact = completion_logprobs(tiny_policy(), None, Collator(0)([data[i] for i in range(4)]))
    assert torch.allclose(tokens, exact, atol=0.1)
    args = config(tmp_path, bf16=True, max_steps=1)
    POPETrainer(tiny_policy(), args=args, train_dataset=make_log(tiny_policy(1))).train()


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({"cluster": None}, {}, "pope cluster"),
        ({"behavior_logprob": None, "behavior_token_logprobs": None}, {}, "--behavior-model"),
        ({"behavior_token_logprobs": None}, {"loss_type": "cispo"}, "--tokens"),
        ({"group": None}, {"welfare": "nash"}, "group"),
        ({"reward": [1.0] * 96}, {}, "all 72 rewards are 1"),
        ({}, {"diversity_order": 4}, "diversity_order=3"),
        ({}, {"max_length": 5}, "more than 5 tokens"),
        ({}, {"holdout": 0.99}, "parted"),
        ({"completion_ids": [[VOCABULARY, 3, 4]] * 96}, {}, "not in the model's vocabulary"),
        ({"prompt_ids": [[1, 3 + row % 2] for row in range(96)]}, {"diversity_weight": 0.0}, "same prompt id"),
    ],
)
def test_a_log_that_cannot_be_trained_on_is_refused_with_a_remedy(
    tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    log = make_log(tiny_policy(1), **changes)
    with pytest.raises((SchemaError, PopeError), match=said):
        POPETrainer(tiny_policy(), args=config(tmp_path, **settings), train_dataset=log)


def test_one_response_per_prompt_has_no_diversity_within_prompts(tmp_path: Path) -> None:
    log = make_log(tiny_policy(1), prompts=40, responses=1)
    with pytest.raises(PopeError, match="diversity_level='marginal'"):
        POPETrainer(tiny_policy(), args=config(tmp_path), train_dataset=log)
    args = config(tmp_path, diversity_level="marginal", baseline="mean", per_device_train_batch_size=16)
    POPETrainer(tiny_policy(), args=args, train_dataset=log).train()


def test_the_marginal_level_remembers_earlier_batches(tmp_path: Path) -> None:
    log = make_log(tiny_policy(1), prompts=24)
    settings = {"diversity_level": "marginal", "diversity_weight": 1.0, "holdout": 0.0, "max_steps": 3}
    trained = {}
    for memory in (0.0, 0.9):
        args = config(tmp_path / str(memory), marginal_memory=memory, **settings)
        trainer = POPETrainer(tiny_policy(1), args=args, train_dataset=log)
        trainer.train()
        trained[memory] = torch.cat([value.detach().flatten() for value in trainer.model.parameters()])
        assert (trainer._marginal is None) == (memory == 0.0)
    assert not torch.equal(trained[0.0], trained[0.9])
    # Three batches of four prompts, the older ones faded.
    remembered = trainer._marginal.state_dict()
    assert remembered["prompts"] == pytest.approx(4 * (1 + 0.9 + 0.9**2))
    assert remembered["weight"] == pytest.approx(remembered["prompts"], rel=0.2)
    assert float(remembered["masses"].sum()) == pytest.approx(remembered["weight"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss_type": "ppo"}, "no loss_type"),
        ({"on_unreliable": "panic"}, "on_unreliable"),
        ({"diversity_weight": -1.0}, "diversity_weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"max_responses": 0}, "max_responses"),
        ({"marginal_memory": 1.0}, "marginal_memory"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(PopeError, match=said):
        config(tmp_path, **settings)


def test_held_out_prompts_do_not_depend_on_the_order_of_the_log() -> None:
    log = make_log(tiny_policy(1))
    blocks = [log.slice(4 * i, 4) for i in np.random.default_rng(0).permutation(24)]
    import pyarrow as pa

    held = [read_prompts(table, None).split(0.25, seed=3)[1] for table in (log, pa.concat_tables(blocks))]
    first, second = ({tuple(part.prompts[i].tolist()) for i in range(len(part))} for part in held)
    assert first == second
    assert len(first) == 6


def test_text_is_tokenized_and_names_of_clusters_are_kept(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    rows = {
        "prompt": ["what should we do"] * 2 + ["ask the people"] * 2,
        "completion": ["plant trees", "sell the land", "yes", "no"],
        "finish_reason": ["stop"] * 4,
        "reward": [1.0, 0.0, 1.0, 0.0],
        "behavior_logprob": [-9.0, -9.5, -3.0, -4.0],
        "cluster": ["green", "money", "yes", "no"],
    }
    data = read_prompts(rows, tokenizer)
    assert len(data) == 2
    assert data.completions[0][-1] == tokenizer.eos_token_id
    assert {data.names["cluster"][int(value)] for value in data.columns["cluster"]} == set(rows["cluster"])


@pytest.mark.parametrize("settings", [{"form": "direct"}, {"taper": "logistic"}, {"diversity_measure": "shannon"}])
def test_forms_and_tapers_train(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = tiny_policy()
    before = [value.detach().clone() for value in model.parameters()]
    args = config(tmp_path, max_steps=1, holdout=0.0, **settings)
    POPETrainer(model, args=args, train_dataset=make_log(tiny_policy(1), prompts=12)).train()
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
