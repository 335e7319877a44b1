"""Small language models of the text world: a tokenizer and a Llama trained on its texts, in a minute or two on a CPU.

Beside the questions the models learn two skills that have nothing to do with them, copying and adding, and plain
sentences: what a later fine-tuning must not destroy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pope_fast._extras import require
from pope_fast.errors import PopeError
from pope_fast.simulate.exact import FloatArray
from pope_fast.simulate.text_templates import TOPICS
from pope_fast.simulate.text_world import TextWorld

# transformers' classes, which are imported only when they are needed.
Model: TypeAlias = Any
Tokenizer: TypeAlias = Any

__all__ = [
    "Example",
    "accuracy",
    "adding",
    "copying",
    "make_model",
    "make_tokenizer",
    "menu_logprobs",
    "mixture",
    "perplexity",
    "sentences",
    "train",
    "world_examples",
]

_SUBJECTS = ("the old mayor", "a young teacher", "the bus driver", "my neighbor", "the gardener", "a tall stranger")
_VERBS = ("visited", "painted", "admired", "sketched", "photographed", "crossed")
_OBJECTS = ("the square", "the harbor", "a bright window", "the town hall", "an empty street", "the market gate")
_TIMES = ("in the morning", "after lunch", "at midnight", "every day", "last week", "without a word")
_LARGEST_SUMMAND = 9

_PURPOSE = "a small language model of the text world"


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the completion that follows it; both are text."""

    prompt: str
    completion: str


def copying(n: int, seed: int = 0, *, words: int = 4) -> list[Example]:
    """Return n tasks to repeat a few topics in their order, drawn at random."""
    rng = np.random.default_rng([seed, 21])
    known = [topic for topics in TOPICS.values() for topic in topics]
    drawn = [" ".join(known[i] for i in row) for row in rng.integers(0, len(known), size=(n, words))]
    return [Example(f"copy: {text} =", f"{text}.") for text in drawn]


def adding(n: int, seed: int = 0) -> list[Example]:
    """Return n sums of two numbers from 0 to 9, drawn at random."""
    rng = np.random.default_rng([seed, 22])
    pairs = rng.integers(0, _LARGEST_SUMMAND + 1, size=(n, 2)).tolist()
    return [Example(f"add: {a} + {b} =", f"{a + b}.") for a, b in pairs]


def sentences(n: int, seed: int = 0) -> list[Example]:
    """Return n plain sentences of a small grammar; the prompt is their subject."""
    rng = np.random.default_rng([seed, 23])
    parts = (_SUBJECTS, _VERBS, _OBJECTS, _TIMES)
    drawn = [[part[rng.integers(len(part))] for part in parts] for _ in range(n)]
    return [Example(row[0], f" {' '.join(row[1:])}.") for row in drawn]


def world_examples(world: TextWorld, policy: npt.ArrayLike, n: int, seed: int = 0) -> list[Example]:
    """Return n responses of a policy over the menu, to questions drawn at random.

    Parameters
    ----------
    world : TextWorld
        The world.
    policy : array_like, shape (n_prompts, n_perspectives, n_phrasings)
        Probabilities; they sum to 1 in every question.
    n, seed : int
        How many, and the seed of the draws.
    """
    table = world.log(policy, prompts=n, responses=1, seed=seed).table
    return [Example(str(row["prompt"]), str(row["completion"])) for row in table.to_pylist()]


def mixture(world: TextWorld, n: int, seed: int = 0, policy: npt.ArrayLike | None = None) -> list[Example]:
    """Return a pre-training mixture of n examples: half questions of the world, the rest copying, adding, sentences.

    Parameters
    ----------
    world : TextWorld
        The world.
    n, seed : int
        How many, and the seed of the draws.
    policy : array_like, optional
        How the questions are answered; by default every response on the menu is equally likely.
    """
    skills = {copying: n // 5, adding: n // 5, sentences: n // 10}
    answers = world.policy() if policy is None else policy
    parts = world_examples(world, answers, n - sum(skills.values()), seed)
    for skill, size in skills.items():
        parts += skill(size, seed)
    order = np.random.default_rng([seed, 24]).permutation(len(parts))
    return [parts[i] for i in order]


def make_tokenizer(examples: Sequence[Example]) -> Tokenizer:
    """Return a tokenizer with one token per word, number or punctuation mark, trained on examples.

    A token includes the space before it, so that decoding gives back the text exactly; a prompt and its completion
    can be tokenized separately or together. Ids 0 to 3 are padding, begin, end of sequence and unknown.

    Raises
    ------
    PopeError
        If tokenizers or transformers is not installed.
    """
    require("transformers", _PURPOSE)
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r" ?(?:[a-z]+|[0-9]|[^a-z0-9 ])"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    texts = [text for example in examples for text in (example.prompt, example.completion)]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: Tokenizer, seed: int = 0, *, hidden: int = 160, layers: int = 3, heads: int = 4) -> Model:
    """Return an untrained Llama: 1.04 million parameters in the default size.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerFast
        Gives the size of the vocabulary and the special tokens.
    seed : int
        Seed of the weights; the caller's random state is left as it was.
    hidden, layers, heads : int
        Size of the model.
    """
    require("torch", _PURPOSE)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=hidden**-0.5 / 2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    return model.eval()


def encode(tokenizer: Tokenizer, examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    """Return the token ids of prompts and completions; the first begin with <s>, the second end with </s>."""
    prompts = tokenizer([e.prompt for e in examples]).input_ids
    completions = tokenizer([e.completion for e in examples], add_special_tokens=False).input_ids
    end = tokenizer.eos_token_id
    return [(p, [*c, end]) for p, c in zip(prompts, completions, strict=True)]


def _batches(
    pairs: Sequence[tuple[list[int], list[int]]], order: npt.NDArray[np.int64], size: int
) -> Iterator[tuple[Any, Any, Any]]:
    """Yield right-padded ids, targets and whether a target belongs to a completion."""
    import torch

    for start in range(0, len(order), size):
        rows = [pairs[i] for i in order[start : start + size]]
        width = max(len(p) + len(c) for p, c in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        completion = torch.zeros(len(rows), width - 1, dtype=torch.bool)
        valid = torch.zeros_like(completion)
        for row, (p, c) in enumerate(rows):
            ids[row, : len(p) + len(c)] = torch.tensor([*p, *c])
            completion[row, len(p) - 1 : len(p) + len(c) - 1] = True
            valid[row, : len(p) + len(c) - 1] = True
        yield ids, completion, valid


def _target_logprobs(model: Model, ids: Any) -> Any:
    import torch

    # Right padding: causal attention keeps it from the tokens that count.
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.log_softmax(logits.float(), -1).gather(2, ids[:, 1:, None]).squeeze(2)


def train(
    model: Model,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    completions_only: bool = False,
    seed: int = 0,
) -> list[float]:
    """Train a model on examples, in place: AdamW, a short warm-up, then a cosine to a tenth of the learning rate.

    Parameters
    ----------
    model, tokenizer
        From :func:`make_model` and :func:`make_tokenizer`.
    examples : sequence of Example
        Training data, shuffled anew in every epoch.
    steps, batch_size : int
        Steps, and examples in each.
    learning_rate : float
        Largest learning rate.
    completions_only : bool
        Whether the loss leaves out the prompts, as in fine-tuning.
    seed : int
        Seed of the order.

    Returns
    -------
    list of float
        Mean loss per token in nats, one number per step.

    Raises
    ------
    PopeError
        If there are no examples.
    """
    import torch

    if not examples:
        raise PopeError("there is nothing to train on: no examples")
    pairs = encode(tokenizer, examples)
    rng = np.random.default_rng([seed, 25])
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = max(1, min(50, steps // 10))
    losses: list[float] = []
    model.train()
    while len(losses) < steps:
        for ids, completion, valid in _batches(pairs, rng.permutation(len(pairs)), batch_size):
            step = len(losses)
            if step == steps:
                break
            decay = 0.55 + 0.45 * math.cos(math.pi * step / steps)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min((step + 1) / warm_up, decay)
            counted = completion if completions_only else valid
            loss = -_target_logprobs(model, ids)[counted].mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
    model.eval()
    return losses


def perplexity(model: Model, tokenizer: Tokenizer, examples: Sequence[Example], batch_size: int = 256) -> float:
    """Return the perplexity per token of whole examples, prompts included."""
    import torch

    pairs = encode(tokenizer, examples)
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, _, valid in _batches(pairs, _by_length(pairs), batch_size):
            total -= float(_target_logprobs(model, ids)[valid].double().sum())
            count += int(valid.sum())
    return math.exp(total / count)


def accuracy(model: Model, tokenizer: Tokenizer, examples: Sequence[Example], batch_size: int = 256) -> float:
    """Return the share of examples whose completion is, token by token, what the model finds most likely.

    The answer that greedy decoding gives is right if and only if every token of the right one is the most likely
    after those before it; so one forward pass decides, without generating.
    """
    import torch

    pairs = encode(tokenizer, examples)
    right = 0
    with torch.no_grad():
        for ids, completion, _ in _batches(pairs, _by_length(pairs), batch_size):
            best = model(input_ids=ids[:, :-1], use_cache=False).logits.argmax(-1)
            right += int(((best == ids[:, 1:]) | ~completion).all(1).sum())
    return right / len(examples)


def menu_logprobs(
    model: Model,
    tokenizer: Tokenizer,
    world: TextWorld,
    prompts: Sequence[int] | None = None,
) -> FloatArray:
    """Return the exact log-probability of every response on the menu, end of sequence included.

    With :meth:`TextWorld.truth` this is the exact truth of a model: what is missing from 1 is unclear text.

    Parameters
    ----------
    model, tokenizer
        The policy.
    world : TextWorld
        The world.
    prompts : sequence of int, optional
        Questions; all by default.

    Returns
    -------
    ndarray, shape (len(prompts), n_perspectives * n_phrasings)
        Log-probabilities: float32 tokens, float64 sums.
    """
    import torch

    rows = range(world.n_prompts) if prompts is None else prompts
    out = np.empty((len(rows), world.n_perspectives * world.n_phrasings))
    with torch.no_grad():
        for i, x in enumerate(rows):
            pairs = encode(tokenizer, [Example(world.prompts[x], text) for text in world.responses(x)])
            # The prompt is the same for the whole menu: computed once, its keys and values are shared.
            head = torch.tensor([pairs[0][0]])
            first = model(input_ids=head, use_cache=True)
            cache = first.past_key_values
            cache.batch_repeat_interleave(len(pairs))
            width = max(len(c) for _, c in pairs)
            ids = torch.tensor([c + [0] * (width - len(c)) for _, c in pairs])
            valid = torch.tensor([[1] * len(c) + [0] * (width - len(c)) for _, c in pairs])
            logits = model(input_ids=ids[:, :-1], past_key_values=cache).logits
            start = first.logits[:, -1:].expand(len(pairs), -1, -1)
            logprobs = torch.log_softmax(torch.cat([start, logits], 1).float(), -1).gather(2, ids[..., None])
            out[i] = (logprobs.squeeze(2).double() * valid).sum(1).numpy()
    return out


def _by_length(pairs: Sequence[tuple[list[int], list[int]]]) -> npt.NDArray[np.int64]:
    return np.argsort([len(p) + len(c) for p, c in pairs], kind="stable")
