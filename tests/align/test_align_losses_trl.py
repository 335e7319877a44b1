"""The same numbers in, the same loss out as TRL's own trainers: their loss methods, on a stand-in for the rest."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pope_fast.align.losses import (
    LossInputs,
    Objective,
    Weighting,
    advantages,
    cispo_loss,
    dpo_loss,
    gspo_loss,
    kto_loss,
    make_pairs,
    offline_pg_loss,
    pope_loss,
    preference_rows,
)
from tiny_models import tiny_model, tiny_tokenizer

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.slow

PROMPTS, DRAWS, LENGTH = 4, 4, 5


def method(trainer: str, name: str = "_compute_loss") -> Any:
    found = getattr(getattr(trl, trainer, None), name, None)
    if found is None:
        pytest.skip(f"this TRL has no {trainer}.{name}")
    return found


class Accelerator:
    """One process: nothing to gather."""

    device = torch.device("cpu")
    num_processes = 1
    sync_gradients = True

    def gather(self, value: Tensor) -> Tensor:
        return value

    gather_for_metrics = gather

    def reduce(self, value: Tensor, reduction: str) -> Tensor:
        return value


@pytest.fixture
def batch() -> LossInputs:
    g = torch.Generator().manual_seed(3)
    n = PROMPTS * DRAWS
    old = -2.0 * torch.rand(n, LENGTH, generator=g) - 0.1
    new = (old + 0.3 * torch.randn(n, LENGTH, generator=g)).clamp(max=-0.01).requires_grad_()
    mask = torch.arange(LENGTH) < torch.randint(1, LENGTH + 1, (n, 1), generator=g)
    return LossInputs.from_tokens(
        new,
        mask,
        behavior_logprob=(old * mask).sum(dim=1),
        behavior_token_logprobs=old,
        reward=torch.randint(0, 2, (n,), generator=g).float() + 0.1 * torch.rand(n, generator=g),
        prompt=torch.arange(PROMPTS).repeat_interleave(DRAWS),
    )


def outputs(logprobs: Tensor) -> SimpleNamespace:
    filler = torch.zeros_like(logprobs.detach())
    return SimpleNamespace(log_probs=logprobs, entropy=filler, mean_logits=filler, is_top1=filler.bool())


def sequence(batch: LossInputs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Token log-probabilities, 0 beyond the response, and the completion mask with the prompt's one token before."""
    assert batch.token_logprobs is not None
    assert batch.mask is not None
    mask = batch.mask[rows].long()
    return batch.token_logprobs[rows] * mask, torch.cat([torch.zeros(len(rows), 1, dtype=torch.int64), mask], dim=1)


def same(ours: Tensor, theirs: Tensor, leaf: Tensor | None) -> None:
    assert leaf is not None
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5, abs=1e-7)
    mine, other = (torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in (ours, theirs))
    assert torch.allclose(mine, other, rtol=1e-4, atol=1e-7)
    assert float(mine.abs().sum()) > 0


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
def test_dpo(batch: LossInputs, kind: str) -> None:
    compute = method("DPOTrainer")
    pairs = make_pairs(batch)
    assert len(pairs.chosen) == PROMPTS  # every prompt has its pair, so the mean over prompts is that over pairs
    rows = torch.cat([pairs.chosen, pairs.rejected])
    logprobs, mask = sequence(batch, rows)
    stand_in = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=0.3,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": batch.behavior_logprob[pairs.chosen],
        "ref_rejected_logps": batch.behavior_logprob[pairs.rejected],
    }
    theirs = compute(stand_in, lambda **_: outputs(logprobs), inputs, False)
    ours, metrics = dpo_loss(batch, beta=0.3, kind=kind, length_normalize=kind == "ipo")  # type: ignore[arg-type]
    same(ours, theirs, batch.token_logprobs)
    if kind != "ipo":
        margins = stand_in._metrics["train"]["rewards/margins"][0]
        assert metrics["reward_margin"] == pytest.approx(margins, rel=1e-5)


def test_kto(batch: LossInputs) -> None:
    compute = method("KTOTrainer")
    rows = torch.arange(len(batch))
    logprobs, mask = sequence(batch, rows)
    shift = torch.tensor([0.4, 0.2, -0.1, 0.3] * PROMPTS)
    stand_in = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=0.3,
        desirable_weight=1.3,
        undesirable_weight=0.8,
        _compute_kl_logps=lambda *_: shift,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": batch.reward > 0.5,
        "ref_logps": batch.behavior_logprob,
        "ref_KL_logps": torch.zeros(len(batch)),
    }
    theirs = compute(stand_in, lambda **_: outputs(logprobs), inputs, False)
    ours, _ = kto_loss(
        batch, beta=0.3, kl=float(shift.mean()), desirable_weight=1.3, undesirable_weight=0.8, threshold=0.5
    )
    same(ours, theirs, batch.token_logprobs)


def grpo(batch: LossInputs, advantage: Tensor, **settings: Any) -> Tensor:
    """TRL's loss of a policy gradient, on these log-probabilities."""
    compute = method("GRPOTrainer")
    assert batch.mask is not None
    logprobs, _ = sequence(batch, torch.arange(len(batch)))
    options = {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
        **settings,
    }
    stand_in = SimpleNamespace(
        **options,
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        args=SimpleNamespace(delta=None, steps_per_generation=1, use_bias_correction_kl=True),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        use_adaptive_entropy=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs.detach()), None),
    )
    mask = batch.mask.long()
    inputs = {
        "prompt_ids": torch.ones(len(batch), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(batch), 1, dtype=torch.int64),
        "completion_ids": torch.ones_like(mask),
        "completion_mask": mask,
        "advantages": advantage,
        "old_per_token_logps": batch.behavior_token_logprobs,
        "num_items_in_batch": mask.sum().float(),
    }
    if options["beta"]:
        inputs["ref_per_token_logps"] = batch.behavior_token_logprobs
    return compute(stand_in, None, inputs)  # type: ignore[no-any-return]


def test_cispo(batch: LossInputs) -> None:
    theirs = grpo(batch, batch.reward, loss_type="cispo", epsilon_high=1.2)
    ours, _ = cispo_loss(batch, advantage="none", epsilon_high=0.2, tokens_of="batch")
    same(ours, theirs, batch.token_logprobs)


def test_gspo(batch: LossInputs) -> None:
    advantage = batch.reward - 0.6
    centered = LossInputs(**{name: getattr(batch, name) for name in batch.__slots__} | {"reward": advantage})
    theirs = grpo(centered, advantage, importance_sampling_level="sequence", epsilon_low=0.05, epsilon_high=0.1)
    ours, _ = gspo_loss(centered, advantage="none", epsilon_low=0.05, epsilon_high=0.1)
    same(ours, theirs, batch.token_logprobs)


def test_weighted_k3_is_the_divergence_that_trl_weighs_token_by_token(batch: LossInputs) -> None:
    """With one token per response the levels are one, and the two k3 terms must agree."""
    assert batch.token_logprobs is not None
    assert batch.behavior_token_logprobs is not None
    one = LossInputs.from_tokens(
        batch.token_logprobs[:, :1],
        torch.ones(len(batch), 1),
        behavior_logprob=batch.behavior_token_logprobs[:, 0],
        behavior_token_logprobs=batch.behavior_token_logprobs[:, :1],
        reward=batch.reward,
        prompt=batch.prompt,
    )
    theirs = grpo(one, torch.zeros(len(batch)), beta=1.0)
    plain = Objective(
        diversity_weight=0.0,
        beta=1.0,
        self_normalize=False,
        kl="k3",
        weighting=Weighting(truncation="none", taper="none"),
    )
    without = LossInputs(**{name: getattr(one, name) for name in one.__slots__} | {"reward": torch.zeros(len(batch))})
    ours, _ = pope_loss(without, plain, form="direct")
    same(ours, theirs, batch.token_logprobs)


def test_advantages_of_grpo_and_rloo(batch: LossInputs) -> None:
    """The formulas of TRL's trainers: group standard deviation plus 1e-4, and the mean of the others."""
    grouped = batch.reward.view(PROMPTS, DRAWS)
    expected = (grouped - grouped.mean(dim=1, keepdim=True)) / (grouped.std(dim=1, keepdim=True) + 1e-4)
    assert torch.allclose(advantages(batch, "group").float(), expected.flatten(), atol=1e-5)
    others = (grouped.sum(dim=1, keepdim=True) - grouped) / (DRAWS - 1)
    assert torch.allclose(advantages(batch, "loo").float(), (grouped - others).flatten(), atol=1e-6)
    loss, _ = offline_pg_loss(batch)
    assert float(loss.detach()) == pytest.approx(
        float(-((grouped - others).flatten() * batch.logprob.detach()).mean()), rel=1e-5
    )


def test_pairs_of_a_log_go_through_trls_trainer(batch: LossInputs, tmp_path: Path) -> None:
    """A real trainer, tokenizer and model: its loss on our rows is ours on its log-probabilities."""
    datasets = pytest.importorskip("datasets")
    words = ["park", "trees", "pond", "city", "money", "people", "birds", "land"]
    prompts = [f"what about the {words[int(p)]}?" for p in batch.prompt]
    completions = [f"{words[i % 8]} and the {words[i // 2]}." for i in range(len(batch))]
    rows = preference_rows(batch, make_pairs(batch), prompts, completions)
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=PROMPTS, beta=0.4, use_cpu=True, bf16=False, report_to=[]
    )
    trainer = trl.DPOTrainer(
        model=tiny_model(seed=0),
        ref_model=tiny_model(seed=1),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_tokenizer(chat=False),
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        theirs = float(trainer.compute_loss(trainer.model, inputs))
        sums = [
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            .logits[:, :-1]
            .log_softmax(dim=-1)
            .gather(2, inputs["input_ids"][:, 1:, None])[..., 0]
            .mul(inputs["completion_mask"][:, 1:])
            .sum(dim=1)
            for model in (tiny_model(seed=0), tiny_model(seed=1))
        ]
    # Chosen responses first, then the rejected: put those of a prompt together.
    order = torch.arange(2 * PROMPTS).view(2, PROMPTS).T.flatten()
    logged = LossInputs(
        logprob=sums[0][order],
        behavior_logprob=sums[1][order],
        reward=torch.tensor([1.0, 0.0] * PROMPTS),
        prompt=torch.arange(PROMPTS).repeat_interleave(2),
    )
    assert float(dpo_loss(logged, beta=0.4)[0]) == pytest.approx(theirs, rel=1e-4)
    assert theirs != pytest.approx(0.6931, abs=1e-2)
