"""One step of gradient descent in whatever number of processes this is launched with; rank 0 saves the parameters."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "align")]

from align_logs import make_log, tiny_policy  # noqa: E402

from pope_fast.align import POPEConfig, POPETrainer  # noqa: E402


def main(folder: str, prompts_per_batch: int) -> None:
    model = tiny_policy()
    args = POPEConfig(
        output_dir=folder,
        use_cpu=True,
        ddp_backend="gloo",
        max_steps=1,
        per_device_train_batch_size=prompts_per_batch,
        max_grad_norm=0.0,
        diversity_order=1,
        diversity_weight=0.5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        holdout=0.5,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    log = make_log(tiny_policy(1), prompts=16)
    trainer = POPETrainer(model, args=args, train_dataset=log, optimizers=(optimizer, schedule))
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save([value.detach() for value in model.parameters()], Path(folder) / "parameters.pt")
        torch.save(torch.from_numpy(trainer.final_logprobs), Path(folder) / "held_out.pt")
        (Path(folder) / "processes").write_text(str(trainer.accelerator.num_processes))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
