"""What to score, in which batches: a pure function of the token ids and the options, made once for all policies.

Rows are reduced to distinct (prompt, completion) pairs; pairs are put into batches under a budget of padded tokens. A
*shared* batch computes each of its prompts once and continues it with every completion, chunk by chunk; an *unshared*
batch computes prompt and completion together, row by row. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pope_fast.errors import PopeError, SchemaError
from pope_fast.score.tokens import TokenLists, distinct

__all__ = ["Batch", "Plan", "PlanOptions", "TokenLists", "make_plan"]

_Int64 = npt.NDArray[np.int64]

#: Enters the fingerprint: raised whenever the same data and options give other batches.
_VERSION = 1

# A shared batch holds at most this many budgets of completion tokens, so that a batch stays a small step of a run.
_CHUNKS_PER_BATCH = 8


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a plan depends on beside the token ids.

    Attributes
    ----------
    token_budget : int
        Most padded tokens of one call of the model. A single pair may exceed it: it is then a batch of its own.
    share_prompt : {"auto", "always", "never"}
        Which prompts are computed once for all their completions.
    min_saving : float
        "auto" shares a prompt if that saves at least this fraction of the tokens of its pairs.
    """

    token_budget: int
    share_prompt: Literal["auto", "always", "never"]
    min_saving: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Pairs that are scored together.

    Attributes
    ----------
    index : int
        Its number in the plan.
    shared : bool
        Whether each prompt is computed once and continued by its completions.
    pairs : int64 array
        Ids of the pairs, longest completion first within a shared batch, longest pair first within an unshared one.
    chunks : tuple of slice
        Parts of ``pairs`` that go through the model together: one for an unshared batch; for a shared one the calls
        that follow the call with the prompts.
    """

    index: int
    shared: bool
    pairs: _Int64
    chunks: tuple[slice, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Distinct pairs, their batches, and the way back to the rows.

    Attributes
    ----------
    prompts, completions : TokenLists
        The distinct ones, in order of first appearance.
    pair_prompt, pair_completion : int64 array of shape (n_pairs,)
        Prompt and completion of each distinct pair; pairs are in order of first appearance.
    inverse : int64 array of shape (n_rows,)
        Pair of each row; -1 for excluded rows.
    order : int64 array of shape (n_pairs,)
        All pairs, batch after batch.
    batch_offsets : int64 array of shape (n_batches + 1,)
        Batch i scores ``order[batch_offsets[i]:batch_offsets[i + 1]]``.
    batch_shared : bool array of shape (n_batches,)
        Whether batch i shares prompts.
    chunk_offsets : int64 array
        Positions in ``order`` where a chunk begins, and the end.
    options : PlanOptions
    fingerprint : str
        Digest of rows and options, hence of everything above: 32 hexadecimal digits.
    """

    prompts: TokenLists
    completions: TokenLists
    pair_prompt: _Int64
    pair_completion: _Int64
    inverse: _Int64
    order: _Int64
    batch_offsets: _Int64
    batch_shared: npt.NDArray[np.bool_]
    chunk_offsets: _Int64
    options: PlanOptions
    fingerprint: str

    @property
    def n_rows(self) -> int:
        """Rows the plan was made for, excluded ones too."""
        return self.inverse.size

    @property
    def n_pairs(self) -> int:
        """Distinct pairs."""
        return self.pair_prompt.size

    @property
    def prompt_lengths(self) -> _Int64:
        """Prompt tokens of each pair."""
        return self.prompts.lengths[self.pair_prompt]

    @property
    def completion_lengths(self) -> _Int64:
        """Completion tokens of each pair: the number of log-probs it gets."""
        return self.completions.lengths[self.pair_completion]

    @property
    def batch_tokens(self) -> _Int64:
        """Tokens of the pairs of each batch, prompts counted with every pair: the measure of progress."""
        lengths = (self.prompt_lengths + self.completion_lengths)[self.order]
        return np.add.reduceat(lengths, self.batch_offsets[:-1]) if self.order.size else np.empty(0, np.int64)

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest pair."""
        return int((self.prompt_lengths + self.completion_lengths).max(initial=0))

    @property
    def largest_id(self) -> int:
        """Largest token id; -1 if there is none."""
        return max(int(lists.values.max(initial=-1)) for lists in (self.prompts, self.completions))

    def __len__(self) -> int:
        """Return the number of batches."""
        return self.batch_shared.size

    def __getitem__(self, index: int) -> Batch:
        """Return batch ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, stop = self.batch_offsets[index : index + 2].tolist()
        first, last = np.searchsorted(self.chunk_offsets, (start, stop)).tolist()
        bounds = (self.chunk_offsets[first : last + 1] - start).tolist()
        chunks = tuple(slice(*ends) for ends in pairwise(bounds))
        return Batch(index, bool(self.batch_shared[index]), self.order[start:stop], chunks)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.__getitem__, range(len(self)))

    def save(self, path: str | Path) -> None:
        """Write the plan to a file; :meth:`load` reads it."""
        arrays = {f"{name}_{part}": getattr(getattr(self, name), part) for name in _LISTS for part in _PARTS}
        arrays |= {name: getattr(self, name) for name in _ARRAYS}
        facts = json.dumps({"options": asdict(self.options), "fingerprint": self.fingerprint, "version": _VERSION})
        with Path(path).open("wb") as file:
            np.savez(file, facts=np.frombuffer(facts.encode(), np.uint8), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that :meth:`save` wrote.

        Raises
        ------
        PopeError
            If the file is no plan, or one of another version.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                facts = json.loads(stored["facts"].tobytes())
                if facts["version"] != _VERSION:
                    raise PopeError(f"{path} holds a plan of version {facts['version']}; this is version {_VERSION}")
                content: dict[str, Any] = {name: stored[name] for name in _ARRAYS}
                for name in _LISTS:
                    content[name] = TokenLists(*(stored[f"{name}_{part}"] for part in _PARTS))
        except (ValueError, KeyError, EOFError, OSError) as error:
            raise PopeError(f"{path} holds no scoring plan: {error}") from error
        return cls(**content, options=PlanOptions(**facts["options"]), fingerprint=facts["fingerprint"])


_LISTS = ("prompts", "completions")
_PARTS = ("offsets", "values")
_ARRAYS = ("pair_prompt", "pair_completion", "inverse", "order", "batch_offsets", "batch_shared", "chunk_offsets")


def make_plan(
    prompts: TokenLists | Sequence[Any],
    completions: TokenLists | Sequence[Any],
    *,
    token_budget: int = 4096,
    share_prompt: bool | Literal["auto"] = "auto",
    min_saving: float = 0.1,
    excluded: npt.ArrayLike | None = None,
) -> Plan:
    """Plan the scoring of rows.

    Parameters
    ----------
    prompts, completions : TokenLists or sequences of integer arrays
        Token ids of each row.
    token_budget : int
        Most padded tokens of one call of a model; see ``ModelScorer.token_budget`` for what suits a device.
    share_prompt : "auto", True or False
        Whether a prompt with several completions is computed once: where that saves tokens, always, or never.
    min_saving : float
        Fraction of a prompt's tokens that "auto" must save. Below some 10 % the second call costs more than it saves.
    excluded : bool array of shape (n_rows,), optional
        Rows that cannot be scored; their contents do not matter.

    Returns
    -------
    Plan
        It depends on the arguments alone, not on a model, a device or chance.

    Raises
    ------
    SchemaError
        If a row that is not excluded has an empty prompt or completion, or a negative id.
    PopeError
        If an option is out of its range.

    Examples
    --------
    >>> plan = make_plan([[5, 6], [5, 6], [7], [5, 6]], [[1, 2], [3], [4], [1, 2]], token_budget=64)
    >>> plan.n_pairs, plan.inverse.tolist()
    (3, [0, 1, 2, 0])
    """
    if token_budget < 1:
        raise PopeError(f"token_budget must be at least 1, not {token_budget}")
    if share_prompt not in ("auto", True, False):
        raise PopeError(f"share_prompt must be 'auto', True or False, not {share_prompt!r}")
    if not 0 <= min_saving <= 1:
        raise PopeError(f"min_saving must be within 0 and 1, not {min_saving}")
    share: Literal["auto", "always", "never"]
    share = "auto" if share_prompt == "auto" else "always" if share_prompt else "never"
    options = PlanOptions(int(token_budget), share, float(min_saving))

    lists = [TokenLists.of(prompts), TokenLists.of(completions)]
    if len(lists[0]) != len(lists[1]):
        raise SchemaError(f"there are {len(lists[0])} prompts but {len(lists[1])} completions")
    kept = _kept(len(lists[0]), excluded)
    _check(lists, kept)
    first_prompt, prompt_of = distinct(lists[0], kept)
    first_completion, completion_of = distinct(lists[1], kept)
    # Both are numbers of distinct lists now: a pair of them is one exact integer.
    key = prompt_of * max(first_completion.size, 1) + completion_of
    _, first_pair, pair_of = np.unique(key, return_index=True, return_inverse=True)
    appearance = np.argsort(first_pair, kind="stable")
    rank = np.empty_like(appearance)
    rank[appearance] = np.arange(appearance.size)
    first_pair = first_pair[appearance]
    inverse = np.full(len(lists[0]), -1, np.int64)
    inverse[kept] = rank[pair_of]

    content = _Content(
        prompts=lists[0].take(kept[first_prompt]),
        completions=lists[1].take(kept[first_completion]),
        pair_prompt=prompt_of[first_pair],
        pair_completion=completion_of[first_pair],
        inverse=inverse,
    )
    order, batches, shared, chunks = _batches(content, options)
    return Plan(*content, order, batches, shared, chunks, options, _fingerprint(content, options))


class _Content(NamedTuple):
    """What is to be scored: the part of a plan that does not depend on the options."""

    prompts: TokenLists
    completions: TokenLists
    pair_prompt: _Int64
    pair_completion: _Int64
    inverse: _Int64


def _kept(n_rows: int, excluded: npt.ArrayLike | None) -> _Int64:
    """Return the rows to score."""
    if excluded is None:
        return np.arange(n_rows)
    mask = np.asarray(excluded)
    if mask.shape != (n_rows,) or mask.dtype != np.bool_:
        raise PopeError(f"excluded must be {n_rows} booleans, not {mask.dtype} of shape {mask.shape}")
    return np.flatnonzero(~mask)


def _check(lists: Sequence[TokenLists], kept: _Int64) -> None:
    """Raise for the first row that no model can score."""
    for column, tokens in zip(("prompt_ids", "completion_ids"), lists, strict=True):
        empty = kept[tokens.lengths[kept] == 0]
        if empty.size:
            raise SchemaError("no tokens", column=column, row=int(empty[0]), remedy="exclude the row")
        if tokens.values.size and tokens.values.min() < 0:
            at = np.flatnonzero(tokens.values < 0)
            rows = np.intersect1d(np.searchsorted(tokens.offsets, at, side="right") - 1, kept)
            if rows.size:
                raise SchemaError("a negative token id", column=column, row=int(rows[0]), remedy="exclude the row")


def _batches(content: _Content, options: PlanOptions) -> tuple[_Int64, _Int64, npt.NDArray[np.bool_], _Int64]:
    """Put pairs into batches: return order, batch offsets, which batches share prompts, and chunk offsets."""
    prompt = content.pair_prompt
    prompt_length = content.prompts.lengths[prompt]
    length = content.completions.lengths[content.pair_completion]
    shared = _shares(prompt, prompt_length, length, options)
    together, apart = np.flatnonzero(shared), np.flatnonzero(~shared)
    first_order, first_batches, chunks = cut_shared(together, prompt, prompt_length, length, options.token_budget)
    second_order, second_batches = cut_unshared(apart, prompt_length, length, options.token_budget)
    moved = second_batches[1:] + together.size
    return (
        np.concatenate([first_order, second_order]),
        np.concatenate([first_batches, moved]),
        np.arange(first_batches.size + moved.size - 1) < first_batches.size - 1,
        np.concatenate([chunks, moved]),
    )


def _shares(prompt: _Int64, prompt_length: _Int64, length: _Int64, options: PlanOptions) -> npt.NDArray[np.bool_]:
    """Return for each pair whether its prompt is computed once for all its completions."""
    if options.share_prompt != "auto":
        return np.full(prompt.size, options.share_prompt == "always")
    size = np.bincount(prompt)[prompt]
    alone = np.bincount(prompt, prompt_length + length)[prompt]
    saves: npt.NDArray[np.bool_] = (size - 1) * prompt_length >= options.min_saving * alone
    return saves & (size > 1)


def cut_unshared(pairs: _Int64, prompt_length: _Int64, length: _Int64, budget: int) -> tuple[_Int64, _Int64]:
    """Cut pairs, longest first, into batches of at most ``budget`` padded tokens: return order and batch offsets."""
    total = prompt_length + length
    order = pairs[np.lexsort((-length[pairs], -total[pairs]))]
    sizes = total[order]
    bounds = [0]
    while bounds[-1] < order.size:
        bounds.append(min(order.size, bounds[-1] + max(1, budget // int(sizes[bounds[-1]]))))
    return order, np.array(bounds, np.int64)


def cut_shared(
    pairs: _Int64, prompt: _Int64, prompt_length: _Int64, length: _Int64, budget: int, cached: float = 0.0
) -> tuple[_Int64, _Int64, _Int64]:
    """Cut pairs into batches of whole prompts, and these into chunks: return order, batch offsets, chunk offsets.

    ``cached`` is what a prompt token costs a completion that reads it, as a fraction of a token of the completion.

    Prompts of one length follow each other, so that most batches need no padding before the completions; among them,
    those with the longest completions come first, so that completions of a chunk are of one length nearly.
    """
    if not pairs.size:
        return pairs, np.zeros(1, np.int64), np.zeros(1, np.int64)
    limit = budget * _CHUNKS_PER_BATCH
    longest = np.zeros(int(prompt.max()) + 1, np.int64)
    np.maximum.at(longest, prompt[pairs], length[pairs])
    order = pairs[np.lexsort((-length[pairs], prompt[pairs], -longest[prompt[pairs]], -prompt_length[pairs]))]

    # Units are what a batch cannot split: a prompt with its completions, or a batch's fill of them if there are more.
    total = np.cumsum(length[order])
    new_prompt = np.flatnonzero(np.diff(prompt[order], prepend=-1))
    group = np.repeat(np.arange(new_prompt.size), np.diff(new_prompt, append=order.size))
    before = total[new_prompt] - length[order][new_prompt]
    part = (total - length[order] - before[group]) // limit
    unit_start = np.flatnonzero((np.diff(group, prepend=-1) != 0) | (np.diff(part, prepend=0) != 0))
    unit_end = np.append(unit_start[1:], order.size)
    unit_prompt = prompt_length[order][unit_start]

    batches = [0]
    unit = 0
    while unit < unit_start.size:
        done = int(total[unit_start[unit] - 1]) if unit_start[unit] else 0
        by_completions = int(np.searchsorted(total[unit_end - 1], done + limit, side="right")) - unit
        by_prompts = budget // int(unit_prompt[unit])
        unit = min(unit_start.size, unit + max(1, min(by_completions, by_prompts)))
        batches.append(int(unit_end[unit - 1]))
    batch_offsets = np.array(batches, np.int64)

    batch = np.repeat(np.arange(batch_offsets.size - 1), np.diff(batch_offsets))
    order = order[np.lexsort((prompt[order], -length[order], batch))]
    sizes = length[order]
    # Prompts of a batch are padded to its longest, and every completion reads all of that.
    padded_prompt = np.maximum.reduceat(prompt_length[order], batch_offsets[:-1])
    weights = cached * padded_prompt[batch] + sizes
    chunks = [0]
    for stop in batch_offsets[1:].tolist():
        while chunks[-1] < stop:
            chunks.append(min(stop, chunks[-1] + max(1, int(budget / weights[chunks[-1]]))))
    return order, batch_offsets, np.array(chunks, np.int64)


def _fingerprint(content: _Content, options: PlanOptions) -> str:
    """Digest the distinct pairs, the way back to the rows and the options; batches follow from them."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([_VERSION, asdict(options)], sort_keys=True).encode())
    arrays = [getattr(getattr(content, name), part) for name in _LISTS for part in _PARTS]
    for array in (*arrays, content.pair_prompt, content.pair_completion, content.inverse):
        digest.update(array.size.to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()
