"""Models of the experiment: the base model, the loggers, sampling, and packed batches of a log."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pope_fast.align.losses import LossInputs
from pope_fast.simulate.text_models import Example, encode, train, world_examples
from pope_fast.simulate.text_world import TextWorld

LONGEST = 24


def fine_tuned(base: Any, tokenizer: Any, examples: Sequence[Example], steps: int, seed: int) -> Any:
    """Return a copy of a model, fine-tuned on answers."""
    model = copy.deepcopy(base)
    train(model, tokenizer, examples, steps=steps, learning_rate=1e-3, completions_only=True, seed=seed)
    return model


def answers(world: TextWorld, policy: np.ndarray, steps: int, seed: int) -> list[Example]:
    """Return enough answers of a policy for so many steps of fine-tuning."""
    return world_examples(world, policy, 64 * min(steps, 40), seed)


@dataclass(frozen=True)
class Responses:
    """Responses to questions, k to each, as token ids with end of sequence, and their exact log-probabilities."""

    prompt: np.ndarray
    tokens: list[list[int]]
    token_logprobs: list[np.ndarray]
    text: list[str]
    cluster: np.ndarray
    upvote: np.ndarray


@torch.no_grad()
def sample(
    model: Any, tokenizer: Any, world: TextWorld, prompts: Sequence[int], k: int, seed: int, temperature: float = 1.0
) -> Responses:
    """Draw k responses to each question, with the exact log-probability of every token."""
    generator = torch.Generator().manual_seed(seed)
    ids = [encode(tokenizer, [Example(world.prompts[x], "")])[0][0] for x in prompts]
    tokens: list[list[int]] = [[] for _ in range(len(prompts) * k)]
    logprobs: list[list[float]] = [[] for _ in tokens]
    for length in sorted({len(i) for i in ids}):
        rows = np.array([i for i, p in enumerate(ids) if len(p) == length])
        for start in range(0, len(rows), max(1, 512 // k)):
            part = rows[start : start + max(1, 512 // k)]
            _draw(model, tokenizer, [ids[i] for i in part], part, k, temperature, generator, tokens, logprobs)
    text = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    prompt = np.repeat(np.asarray(prompts), k)
    parsed = [world.parse_response(int(x), t) for x, t in zip(prompt, text, strict=True)]
    upvote = np.array([world.upvote_probability(int(x), t) for x, t in zip(prompt, text, strict=True)])
    cluster = np.array([-1 if found is None else found[0] for found in parsed])
    return Responses(prompt, tokens, [np.array(row) for row in logprobs], text, cluster, upvote)


def _draw(
    model: Any,
    tokenizer: Any,
    ids: list[list[int]],
    rows: np.ndarray,
    k: int,
    temperature: float,
    generator: torch.Generator,
    tokens: list[list[int]],
    logprobs: list[list[float]],
) -> None:
    out = model(input_ids=torch.tensor(ids), use_cache=True)
    cache = out.past_key_values
    cache.batch_repeat_interleave(k)
    logits = out.logits[:, -1].repeat_interleave(k, 0)
    number = (rows[:, None] * k + np.arange(k)).ravel()
    alive = np.ones(len(number), dtype=bool)
    for _ in range(LONGEST):
        logp = torch.log_softmax(logits.float() / temperature, -1)
        drawn = torch.multinomial(logp.exp(), 1, generator=generator)
        chosen = logp.gather(1, drawn).squeeze(1).tolist()
        for i, (token, value) in enumerate(zip(drawn.squeeze(1).tolist(), chosen, strict=True)):
            if alive[i]:
                tokens[number[i]].append(token)
                logprobs[number[i]].append(value)
                alive[i] = token != tokenizer.eos_token_id
        if not alive.any():
            return
        logits = model(input_ids=drawn, past_key_values=cache).logits[:, -1]


@dataclass(frozen=True)
class Unit:
    """A question and its logged responses, packed into one sequence: the question is computed once.

    Attributes
    ----------
    ids, position, block : Tensor, shape (L,)
        Tokens of the question (block 0) and of the responses without their last ones (blocks 1 to K).
    source, target : Tensor, shape (K, T)
        Where in the sequence a token of a response is predicted from, and the token itself.
    mask : Tensor of bool, shape (K, T)
        Where there is a token.
    """

    ids: Tensor
    position: Tensor
    block: Tensor
    source: Tensor
    target: Tensor
    mask: Tensor


def pack(prompt: list[int], responses: Sequence[list[int]]) -> Unit:
    """Pack a question and its responses."""
    ids, position, block = list(prompt), list(range(len(prompt))), [0] * len(prompt)
    longest = max(len(r) for r in responses)
    source = torch.zeros(len(responses), longest, dtype=torch.int64)
    target, mask = torch.zeros_like(source), torch.zeros_like(source, dtype=torch.bool)
    for k, response in enumerate(responses):
        n, start = len(response), len(ids)
        source[k, :n] = torch.tensor([len(prompt) - 1, *range(start, start + n - 1)])
        target[k, :n] = torch.tensor(response)
        mask[k, :n] = True
        ids += response[:-1]
        position += range(len(prompt), len(prompt) + n - 1)
        block += [k + 1] * (n - 1)
    return Unit(torch.tensor(ids), torch.tensor(position), torch.tensor(block), source, target, mask)


def token_logprobs(model: Any, units: Sequence[Unit]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens of all responses of some units, and where there is one; shape (N, T)."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([u.ids for u in units], batch_first=True)
    position = pad([u.position for u in units], batch_first=True)
    block = pad([u.block for u in units], batch_first=True, padding_value=-1)
    length = ids.shape[1]
    before = torch.ones(length, length, dtype=torch.bool).tril()
    # A token sees what is before it in its own response, and the question.
    seen = before & ((block[:, :, None] == block[:, None, :]) | (block[:, None, :] == 0))
    bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    hidden = model.model(
        input_ids=ids, attention_mask=bias, position_ids=position, use_cache=False
    ).last_hidden_state
    longest = max(u.mask.shape[1] for u in units)
    stretch = [(0, longest - u.mask.shape[1]) for u in units]
    put = torch.nn.functional.pad
    source = torch.cat([put(u.source, s) + i * length for i, (u, s) in enumerate(zip(units, stretch, strict=True))])
    target = torch.cat([put(u.target, s) for u, s in zip(units, stretch, strict=True)])
    mask = torch.cat([put(u.mask, s) for u, s in zip(units, stretch, strict=True)])
    logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1])[source[mask]])
    values = torch.log_softmax(logits.float(), -1).gather(1, target[mask][:, None]).squeeze(1)
    return torch.zeros(mask.shape).masked_scatter(mask, values), mask


@dataclass(frozen=True)
class Log:
    """A feedback log, ready for training: units, and what is known about their responses."""

    units: list[Unit]
    prompt: np.ndarray
    behavior: list[Tensor]
    reward: Tensor
    cluster: Tensor
    group: Tensor

    def __len__(self) -> int:
        return len(self.units)

    def rows(self, unit: int) -> slice:
        """Rows of a unit."""
        k = len(self.reward) // len(self.units)
        return slice(unit * k, (unit + 1) * k)


def make_log(tokenizer: Any, world: TextWorld, drawn: Responses, k: int, seed: int) -> Log:
    """Let one annotator, drawn from the population, judge each response."""
    rng = np.random.default_rng([seed, 31])
    group = world.draw_groups(rng, len(drawn.text))
    reward = rng.random(len(group)) < drawn.upvote[np.arange(len(group)), group]
    units, behavior = [], []
    for first in range(0, len(drawn.text), k):
        prompt = encode(tokenizer, [Example(world.prompts[int(drawn.prompt[first])], "")])[0][0]
        units.append(pack(prompt, drawn.tokens[first : first + k]))
        width = units[-1].mask.shape[1]
        table = torch.zeros(k, width)
        for row, values in enumerate(drawn.token_logprobs[first : first + k]):
            table[row, : len(values)] = torch.from_numpy(values)
        behavior.append(table)
    return Log(
        units,
        drawn.prompt[::k],
        behavior,
        torch.from_numpy(reward.astype(np.float64)),
        torch.from_numpy(drawn.cluster.astype(np.int64)),
        torch.from_numpy(group.astype(np.int64)),
    )


def loss_inputs(model: Any, log: Log, chosen: Sequence[int]) -> LossInputs:
    """Score some units of a log under a model."""
    tokens, mask = token_logprobs(model, [log.units[i] for i in chosen])
    behavior = torch.cat(
        [torch.nn.functional.pad(log.behavior[i], (0, mask.shape[1] - log.behavior[i].shape[1])) for i in chosen]
    )
    rows = [log.rows(i) for i in chosen]
    k = rows[0].stop - rows[0].start
    return LossInputs.from_tokens(
        tokens,
        mask,
        behavior_logprob=behavior.double().sum(1),
        behavior_token_logprobs=behavior,
        reward=torch.cat([log.reward[r] for r in rows]),
        cluster=torch.cat([log.cluster[r] for r in rows]),
        group=torch.cat([log.group[r] for r in rows]),
        prompt=torch.arange(len(rows)).repeat_interleave(k),
    )
