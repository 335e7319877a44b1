"""Log-probs of the completions of one synthetic log, by every way that is compared: one process each.

naive    logits of the whole sequence, log-softmax in float32, choice of the completion's tokens
lm-eval  `HFLM` of lm-evaluation-harness: what `HFLM.loglikelihood` calls once the texts are token ids
trl      the fused head of TRL's trainers, or `logits_to_keep` and TRL's `selective_log_softmax`: the faster one
ours     `pope_fast`: the plan and all of its batches
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

VOCABULARY = 32_000
COMPLETION = 64

Sums = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """What is scored: `rows` completions, `responses` of each prompt."""

    prompt: int
    responses: int
    rows: int
    seed: int = 0

    def lists(self) -> tuple[list[npt.NDArray[np.int32]], list[npt.NDArray[np.int32]]]:
        """Return one prompt and one completion a row, in an order that no plan would choose."""
        rng = np.random.default_rng(self.seed)
        prompts = rng.integers(3, VOCABULARY, (self.rows // self.responses, self.prompt), dtype=np.int32)
        completions = rng.integers(3, VOCABULARY, (self.rows, COMPLETION), dtype=np.int32)
        return [prompts[row % len(prompts)] for row in range(self.rows)], list(completions)


def make_model(device: str, dtype: str, size: str) -> Any:
    """Return a Llama with random weights: the same every time."""
    import torch
    import transformers

    torch.manual_seed(0)
    shapes = {
        "tiny": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4},
        # As Llama 3.2 1B, with the vocabulary of the tiny one.
        "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    }
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        num_key_value_heads=8 if size == "1b" else 4,
        **shapes[size],
    )
    model = transformers.LlamaForCausalLM(config)
    # Wider than at the start of training: log-probs that differ from token to token.
    torch.nn.init.normal_(model.lm_head.weight, 0.0, 2.0 / config.hidden_size**0.5)
    return model.to(device, getattr(torch, dtype)).eval()


def matrices(job: Job, device: str) -> Any:
    """Return prompts with their completions: all of one length, so that nothing needs padding."""
    import torch

    prompts, completions = job.lists()
    ids = np.stack([np.concatenate(pair) for pair in zip(prompts, completions, strict=True)]).astype(np.int64)
    return torch.from_numpy(ids).to(device)


def naive(model: Any, job: Job, batch: int) -> Callable[[], Sums]:
    """Return a function that computes all logits of everything."""
    import torch

    ids = matrices(job, model.device.type)

    def run() -> Sums:
        sums = []
        for part in ids.split(batch):
            logprobs = torch.log_softmax(model(part).logits[:, :-1].float(), -1)
            chosen = logprobs.gather(2, part[:, 1:, None])[:, -COMPLETION:, 0]
            sums.append(chosen.double().sum(1).cpu().numpy())
        return np.concatenate(sums)

    return run


def lm_eval(model: Any, job: Job, batch: int) -> Callable[[], Sums]:
    """Return a function that has lm-evaluation-harness score token ids."""
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2")
    harness = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch)
    prompts, completions = job.lists()
    requests = [
        (("", ""), prompt.tolist(), completion.tolist())
        for prompt, completion in zip(prompts, completions, strict=True)
    ]

    def run() -> Sums:
        return np.array([value for value, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)])

    return run


def trl_fused(model: Any, job: Job, batch: int) -> Callable[[], Sums]:
    """Return a function that uses the head that TRL's trainers put on their models."""
    from trl.trainer.utils import add_fused_lm_head

    if not hasattr(model, "has_fused_head"):
        add_fused_lm_head(model)
        model.has_fused_head = True
    ids = matrices(job, model.device.type)

    def run() -> Sums:
        sums = []
        for part in ids.split(batch):
            labels = part.clone()
            labels[:, :-COMPLETION] = -100
            output = model(part, attention_mask=part.new_ones(part.shape), labels=labels, fused_lm_head=True)
            sums.append(output.log_probs[:, -COMPLETION:].double().sum(1).cpu().numpy())
        return np.concatenate(sums)

    return run


def trl_selective(model: Any, job: Job, batch: int) -> Callable[[], Sums]:
    """Return a function that keeps the logits of completions, and lets TRL choose from them."""
    from trl.trainer.utils import selective_log_softmax

    ids = matrices(job, model.device.type)

    def run() -> Sums:
        sums = []
        for part in ids.split(batch):
            logits = model(part, attention_mask=part.new_ones(part.shape), logits_to_keep=COMPLETION + 1).logits
            chosen = selective_log_softmax(logits[:, :-1].float(), part[:, -COMPLETION:])
            sums.append(chosen.double().sum(1).cpu().numpy())
        return np.concatenate(sums)

    return run


def ours(model: Any, job: Job, batch: int) -> Callable[[], Sums]:
    """Return a function that plans and scores as `pope_fast.score` does; it chooses its batches itself."""
    from pope_fast.score.model import ModelScorer
    from pope_fast.score.plan import make_plan

    scorer = ModelScorer(model)
    prompts, completions = job.lists()

    def run() -> Sums:
        plan = make_plan(prompts, completions, token_budget=scorer.token_budget)
        sums = np.empty(plan.n_pairs)
        for scores in scorer.run(plan):
            sums[scores.pairs] = scores.sums
        return sums[plan.inverse]

    return run


#: Name -> the function, and how many tokens a batch holds: the best of them is used.
WAYS: dict[str, tuple[Callable[[Any, Job, int], Callable[[], Sums]], tuple[int, ...]]] = {
    "naive": (naive, (1024, 4096, 16384)),
    "lm-eval": (lm_eval, (1024, 4096, 16384)),
    "trl fused": (trl_fused, (1024, 4096, 16384)),
    "trl selective": (trl_selective, (1024, 4096, 16384)),
    "ours": (ours, (0,)),
}


def measure(way: str, job: Job, tokens: int, model: Any, repeats: int) -> dict[str, Any]:
    """Return the times of some runs after a small one, and the sums."""
    import torch

    device = model.device.type
    batch = max(1, tokens // (job.prompt + COMPLETION))
    small = replace(job, rows=max(job.responses, job.rows // 8 // job.responses * job.responses))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds, cpu = [], []
    with torch.no_grad():
        WAYS[way][0](model, small, batch)()
        run = WAYS[way][0](model, job, batch)
        for _ in range(repeats):
            wait()
            started = time.perf_counter(), time.process_time()
            sums = run()
            wait()
            seconds.append(time.perf_counter() - started[0])
            cpu.append(time.process_time() - started[1])
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else kilobytes * 1024
    return {
        "median_s": statistics.median(seconds),
        "cpu_s": statistics.median(cpu),
        "peak_bytes": peak,
        "sums": sums.tolist(),
    }


def choose(way: str, job: Job, model: Any) -> dict[str, Any]:
    """Return the batch that is fastest, in tokens."""
    found = {}
    for tokens in WAYS[way][1]:
        try:
            found[tokens] = measure(way, job, tokens, model, 1)["median_s"]
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
    best = min(found, key=found.__getitem__)
    return {"tokens": best, "median_s": found[best], "tried": found}


def main() -> None:
    """Measure one way, and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--prompt", type=int, required=True)
    parser.add_argument("--responses", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--tokens", type=int, help="tokens of a batch; without it the best is looked for")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    model = make_model(args.device, args.dtype, args.size)
    job = Job(args.prompt, args.responses, args.rows)
    if args.tokens is None:
        result = choose(args.way, job, model)
    else:
        result = measure(args.way, job, args.tokens, model, args.repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
