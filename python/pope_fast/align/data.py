"""From a log to batches of whole prompts: what the trainer's data loader hands to the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pope_fast import _core
from pope_fast.errors import PopeError
from pope_fast.score.tokens import TokenLists

__all__ = ["Collator", "LoggedPrompts"]

_Int64 = npt.NDArray[np.int64]

#: Columns of rows that become tensors of :class:`~pope_fast.align.losses.LossInputs`, and their types there.
COLUMNS: Mapping[str, torch.dtype] = {
    "behavior_logprob": torch.float64,
    "reward": torch.float64,
    "cluster": torch.int64,
    "group": torch.int64,
    "count": torch.float64,
    "ref_logprob": torch.float64,
}


@dataclass(frozen=True, slots=True, eq=False)
class LoggedPrompts(Dataset[dict[str, Any]]):
    """Prompts of a log with all their responses; item i is prompt i.

    Attributes
    ----------
    prompts : TokenLists
        Token ids of the P prompts.
    completions : TokenLists
        Token ids of the n responses, prompt after prompt.
    offsets : int64 array of shape (P + 1,)
        Responses of prompt i are ``offsets[i]:offsets[i + 1]``.
    columns : mapping of str to array of shape (n,)
        ``behavior_logprob``, ``reward``, and of ``cluster``, ``group``, ``count`` and ``ref_logprob`` those that are
        there. Clusters and groups are numbered from 0.
    behavior_tokens : float32 array, optional
        Log-prob of each completion token under the behavior policy, flat as ``completions.values``.
    reward_range : (float, float)
        Bounds of the reward over the whole log.
    names : mapping of str to mapping
        Names of the numbers in ``cluster`` and ``group``.
    """

    prompts: TokenLists
    completions: TokenLists
    offsets: _Int64
    columns: Mapping[str, npt.NDArray[Any]]
    behavior_tokens: npt.NDArray[np.float32] | None = None
    reward_range: tuple[float, float] = (0.0, 1.0)
    names: Mapping[str, Mapping[int, str | int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.offsets.size - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = range(int(self.offsets[index]), int(self.offsets[index + 1]))
        item: dict[str, Any] = {
            "prompt_ids": self.prompts[index],
            "completion_ids": [self.completions[row] for row in rows],
        }
        item.update((name, values[rows.start : rows.stop]) for name, values in self.columns.items())
        if self.behavior_tokens is not None:
            bounds = self.completions.offsets
            item["behavior_token_logprobs"] = [self.behavior_tokens[bounds[row] : bounds[row + 1]] for row in rows]
        return item

    @property
    def n_rows(self) -> int:
        """Number of responses."""
        return int(self.offsets[-1])

    @property
    def responses(self) -> _Int64:
        """Responses of each prompt, shape (P,)."""
        return np.diff(self.offsets)

    @property
    def prompt_of_row(self) -> _Int64:
        """Prompt of each response, shape (n,)."""
        return np.repeat(np.arange(len(self)), self.responses)

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with one of its responses."""
        return int((self.prompts.lengths[self.prompt_of_row] + self.completions.lengths).max(initial=0))

    def take(self, prompts: _Int64) -> LoggedPrompts:
        """Return some of the prompts, in the order given."""
        rows = np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in prompts] or [np.empty(0, int)])
        bounds, tokens = self.completions.offsets, self.behavior_tokens
        return replace(
            self,
            prompts=self.prompts.take(prompts),
            completions=self.completions.take(rows),
            offsets=np.concatenate(([0], np.cumsum(self.responses[prompts]))),
            columns={name: values[rows] for name, values in self.columns.items()},
            behavior_tokens=None
            if tokens is None
            else np.concatenate([tokens[bounds[row] : bounds[row + 1]] for row in rows]),
        )

    def with_column(self, name: str, values: npt.NDArray[Any]) -> LoggedPrompts:
        """Return the same prompts with one more column of rows."""
        if values.shape != (self.n_rows,):
            raise PopeError(f"{name} has shape {values.shape}, not ({self.n_rows},)")
        return replace(self, columns={**self.columns, name: values})

    def split(self, share: float, seed: int) -> tuple[LoggedPrompts, LoggedPrompts]:
        """Part the prompts in two, the second with ``share`` of them.

        Where a prompt goes depends on its tokens and the seed, and on how many prompts there are, not on the order of
        the log: a log that is written anew is parted alike.

        Raises
        ------
        PopeError
            If either part would have fewer than two prompts.
        """
        held = round(share * len(self))
        if held < 2 or len(self) - held < 2:
            raise PopeError(
                f"{len(self)} prompts cannot be parted with {share:g} of them held out: both parts need two or more. "
                "Remedy: log more prompts, change holdout, or give an eval_dataset."
            )
        bounds, values = self.prompts.offsets, self.prompts.values.astype(np.int64)
        keyed = np.stack([_core.hash_lists(bounds, values), _core.hash_lists(bounds, values ^ (seed + 1))])
        order = np.lexsort((keyed[0], keyed[1]))
        return self.take(np.sort(order[held:])), self.take(np.sort(order[:held]))


@dataclass(frozen=True, slots=True)
class Collator:
    """Puts prompts into one batch of padded tensors.

    Attributes
    ----------
    pad_id : int
        Token id that fills up rows; it is masked and never scored.
    max_responses : int, optional
        Most responses of a prompt; more are drawn from at random, with torch's generator.
    """

    pad_id: int
    max_responses: int | None = None

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the tensors of a batch with N rows, L tokens at most, and T tokens of a response at most.

        ``input_ids`` and ``attention_mask`` (N, L), padded on the right; ``completion_ids`` and ``completion_mask``
        (N, T); ``prompt_length`` (N,); ``prompt`` (N,), and the columns of the log.
        """
        kept = [self._kept(len(item["completion_ids"])) for item in items]
        prompt = np.repeat(np.arange(len(items)), [len(rows) for rows in kept])
        heads = [item["prompt_ids"] for item, rows in zip(items, kept, strict=True) for _ in rows]
        tails = [item["completion_ids"][row] for item, rows in zip(items, kept, strict=True) for row in rows]
        batch = {
            "input_ids": _padded([np.concatenate(pair) for pair in zip(heads, tails, strict=True)], self.pad_id),
            "attention_mask": _lengths_mask([len(head) + len(tail) for head, tail in zip(heads, tails, strict=True)]),
            "completion_ids": _padded(tails, self.pad_id),
            "completion_mask": _lengths_mask([len(tail) for tail in tails]),
            "prompt_length": torch.tensor([len(head) for head in heads]),
            "prompt": torch.from_numpy(prompt),
        }
        for name, dtype in COLUMNS.items():
            if name in items[0]:
                values = np.concatenate([item[name][rows] for item, rows in zip(items, kept, strict=True)])
                batch[name] = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
        if "behavior_token_logprobs" in items[0]:
            tokens = [
                item["behavior_token_logprobs"][row] for item, rows in zip(items, kept, strict=True) for row in rows
            ]
            batch["behavior_token_logprobs"] = _padded(tokens, 0.0)
        return batch

    def _kept(self, responses: int) -> _Int64:
        if self.max_responses is None or responses <= self.max_responses:
            return np.arange(responses)
        drawn: _Int64 = torch.randperm(responses)[: self.max_responses].numpy()
        return np.sort(drawn)


def _padded(rows: Sequence[npt.NDArray[Any]], filler: float) -> Tensor:
    longest = max(len(row) for row in rows)
    integers = rows[0].dtype.kind in "iu"
    table = np.full((len(rows), longest), filler, dtype=np.int64 if integers else np.float32)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(table)


def _lengths_mask(lengths: Sequence[int]) -> Tensor:
    return torch.arange(max(lengths)).unsqueeze(0) < torch.tensor(lengths).unsqueeze(1)
