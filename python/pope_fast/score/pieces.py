"""Parts of a plan as the model takes them: token ids of some pairs, padded, and smaller parts if memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pope_fast.score.plan import Plan, cut_shared, cut_unshared
from pope_fast.score.tokens import TokenLists

__all__ = ["Pairs", "Piece", "cut", "prompt_inputs"]

_Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Some pairs of a plan.

    Attributes
    ----------
    prompts, completions : TokenLists
        Those of the plan.
    prompt, completion : int64 arrays of shape (n,)
        Prompt and completion of each pair.
    prompt_length, length : int64 arrays of shape (n,)
        Their tokens.
    """

    prompts: TokenLists
    completions: TokenLists
    prompt: _Int64
    completion: _Int64
    prompt_length: _Int64
    length: _Int64

    @classmethod
    def of(cls, plan: Plan) -> Pairs:
        """Return all pairs of a plan."""
        lengths = plan.prompt_lengths, plan.completion_lengths
        return cls(plan.prompts, plan.completions, plan.pair_prompt, plan.pair_completion, *lengths)

    def __len__(self) -> int:
        return self.prompt.size

    def __getitem__(self, at: _Int64 | slice) -> Pairs:
        """Return the pairs at these positions."""
        parts = {name: getattr(self, name)[at] for name in ("prompt", "completion", "prompt_length", "length")}
        return replace(self, **parts)

    def targets(self) -> _Int64:
        """Return the completions, one after the other."""
        return np.concatenate([self.completions[index] for index in self.completion.tolist()]).astype(np.int64)

    def inputs(self) -> _Int64:
        """Return prompts and completions without their last tokens, padded on the right: (n, tokens)."""
        pairs = zip(self.prompt.tolist(), self.completion.tolist(), strict=True)
        rows = [np.concatenate([self.prompts[i], self.completions[j][:-1]]) for i, j in pairs]
        return _padded(rows, left=False)

    def completion_inputs(self) -> _Int64:
        """Return completions without their last tokens, padded on the right: (n, tokens)."""
        return _padded([self.completions[index][:-1] for index in self.completion.tolist()], left=False)


def prompt_inputs(prompts: TokenLists, chosen: _Int64) -> _Int64:
    """Return prompts, padded on the left: (n, tokens)."""
    return _padded([prompts[index] for index in chosen.tolist()], left=True)


def _padded(rows: Sequence[npt.NDArray[np.int32]], left: bool) -> _Int64:
    """Return rows as a matrix, filled up with the first row's first token: any id does, and this one is valid."""
    width = max(map(len, rows))
    longest = next(row for row in rows if row.size == width)
    result = np.full((len(rows), width), longest[0], np.int64)
    for target, row in zip(result, rows, strict=True):
        start = width - row.size if left else 0
        target[start : start + row.size] = row
    return result


@dataclass(frozen=True, slots=True)
class Piece:
    """Pairs of a batch that the model takes in one call, or in one call for the prompts and one for each chunk.

    Attributes
    ----------
    shared : bool
    at : int64 array
        Positions in the batch.
    chunks : tuple of slice
        Parts of ``at``.
    """

    shared: bool
    at: _Int64
    chunks: tuple[slice, ...]


def cut(pairs: Pairs, at: _Int64, shared: bool, budget: int, cached: float) -> list[Piece]:
    """Cut the pairs ``at`` of a batch into pieces, as the plan does with a budget; see :func:`cut_shared`."""
    lengths = pairs.prompt_length[at], pairs.length[at]
    local = np.arange(at.size)
    if shared:
        order, bounds, chunks = cut_shared(local, pairs.prompt[at], *lengths, budget, cached)
    else:
        order, bounds = cut_unshared(local, *lengths, budget)
        chunks = bounds
    pieces = []
    for start, stop in pairwise(bounds.tolist()):
        ends = (chunks[(chunks >= start) & (chunks <= stop)] - start).tolist()
        parts = tuple(slice(*ends) for ends in pairwise(ends))
        pieces.append(Piece(shared, at[order[start:stop]], parts))
    return pieces
