"""TF-IDF without a model: n-grams to short dense vectors, prompt by prompt, exactly as far as memory allows.

Two responses to one prompt share few n-grams, and only what they share enters their dot product. So each prompt gets
coordinates of its own: one for every n-gram that two of its responses have, and one for every response, which holds the
length of all that it shares with none. The cosines are those of the whole vocabulary; nothing is hashed away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pope_fast.cluster.ngrams import HASH_BITS, NgramKind, count_ngrams
from pope_fast.log.scatter import mixed_keys

__all__ = ["MAX_WIDTH", "Idf", "PromptVectors", "prompt_vectors"]

#: Coordinates of one prompt; n-grams of a prompt that needs more are hashed into as many.
MAX_WIDTH = 4096
_MIN_WIDTH = 64

# An n-gram that stands in the prompt says what is talked about, not what is said about it.
PROMPT_WEIGHT = 0.35
# One that nearly every response to the prompt has does not tell them apart, but may be all they have.
COMMON_FLOOR = 0.3

_TABLE_BITS = 22


class Idf:
    """Inverse document frequency of n-grams over the responses of a log: ``ln((1 + n) / (1 + df)) + 1``.

    Parameters
    ----------
    kind : {"char", "word"}
        Which n-grams.

    Notes
    -----
    Frequencies are counted in 2**22 cells; n-grams that share a cell share a frequency. Counts are integers, so the
    result depends on the set of texts that were counted and on nothing else.
    """

    def __init__(self, kind: NgramKind = "char") -> None:
        self.kind: NgramKind = kind
        self.n_texts = 0
        self._cells = np.zeros(1 << _TABLE_BITS, dtype=np.int64)

    def add(self, texts: Sequence[str]) -> None:
        """Count texts."""
        cells = _cells(count_ngrams(texts, self.kind).gram)
        first = np.flatnonzero(np.diff(cells, prepend=-1))
        self._cells[cells[first]] += np.diff(first, append=len(cells))
        self.n_texts += len(texts)

    def __call__(self, gram: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return the weight of each n-gram."""
        frequency = self._cells[_cells(gram)]
        # Cells are shared: a frequency above the number of texts is no reason for a negative weight.
        return np.log((1.0 + self.n_texts) / (1.0 + np.minimum(frequency, self.n_texts))) + 1.0


def _cells(gram: NDArray[np.uint64]) -> NDArray[np.int64]:
    # The leading bits: n-grams come sorted, and so walk through the table in order.
    return (gram >> np.uint64(HASH_BITS - _TABLE_BITS)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class PromptVectors:
    """Vectors of the responses to some prompts, all of one width.

    Attributes
    ----------
    prompts : ndarray of int64, shape (p,)
        Which prompts of the block.
    rows : ndarray of int64, shape (n,)
        Which rows of the block, prompt by prompt.
    offsets : ndarray of int64, shape (p + 1,)
        Rows of each prompt within ``rows``.
    vectors : ndarray of float32, shape (n, width)
        Of length 1.
    """

    prompts: NDArray[np.int64]
    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    vectors: NDArray[np.float32]


def prompt_vectors(
    texts: Sequence[str],
    offsets: NDArray[np.int64],
    idf: Idf,
    prompts: Sequence[str | None] | None = None,
    *,
    keep: tuple[int, int] | None = None,
) -> Iterator[PromptVectors]:
    """Turn responses into vectors whose dot products within a prompt are TF-IDF cosines.

    Parameters
    ----------
    texts : sequence of str, length n
        Responses, those of a prompt side by side.
    offsets : ndarray of int64, shape (p + 1,)
        Rows of each prompt.
    idf : Idf
        Fitted on the log.
    prompts : sequence of str or None, length p, optional
        The prompts' own texts.
    keep : (seed, half), optional
        Keep only a pseudo-random half of the n-grams: ``half`` 0 and 1 of one seed are disjoint. For stability.

    Yields
    ------
    PromptVectors
        Prompts of similar width together; every prompt is in one of them.

    Notes
    -----
    The weight of an n-gram in a response is ``(1 + ln tf) * idf * (ln((1 + k) / (1 + df)) + 0.3)``, with df the number
    of the prompt's k responses that have it, times 0.35 if it stands in the prompt. A prompt's vectors depend on its
    own texts and on ``idf``, not on what else is in the block.
    """
    sizes = np.diff(offsets)
    entries = _entries(texts, sizes, idf, prompts)
    if keep is not None:
        entries = _half(entries, *keep)
    n, row_prompt = len(texts), np.repeat(np.arange(len(sizes)), sizes)
    squares = entries.weight**2
    length = np.sqrt(np.bincount(entries.row, squares, minlength=n))
    length[length == 0] = 1.0
    value = entries.weight / length[entries.row]
    alone = np.sqrt(np.bincount(entries.row[~entries.shared], squares[~entries.shared], minlength=n)) / length
    own_column = entries.n_shared[row_prompt] + np.arange(n) - offsets[row_prompt]
    width = _padded(entries.n_shared + sizes)
    entry_width, row_width = width[row_prompt[entries.row]], width[row_prompt]
    place = np.empty(n, dtype=np.int64)
    for columns in np.unique(width).tolist():
        chosen = np.flatnonzero(width == columns)
        rows = np.flatnonzero(row_width == columns)
        place[rows] = np.arange(len(rows))
        dense = np.zeros((len(rows), columns), dtype=np.float32)
        here = entry_width == columns
        if columns > MAX_WIDTH:
            dense = _hashed(entries, np.flatnonzero(here), place, value, len(rows))
        else:
            here &= entries.shared
            dense[place[entries.row[here]], entries.column[here]] = value[here]
            dense[np.arange(len(rows)), own_column[rows]] = alone[rows]
        edges = np.zeros(len(chosen) + 1, dtype=np.int64)
        np.cumsum(sizes[chosen], out=edges[1:])
        yield PromptVectors(chosen, rows, edges, dense)


@dataclass(frozen=True, slots=True)
class _Entries:
    """Weighted n-grams of responses: entry j says that ``row[j]`` has ``gram[j]``."""

    gram: NDArray[np.uint64]
    row: NDArray[np.int64]
    weight: NDArray[np.float64]
    shared: NDArray[np.bool_]  # whether another response to the prompt has it too
    column: NDArray[np.int64]  # if so: its number among the prompt's shared n-grams
    n_shared: NDArray[np.int64]  # of each prompt


def _entries(
    texts: Sequence[str], sizes: NDArray[np.int64], idf: Idf, prompts: Sequence[str | None] | None
) -> _Entries:
    # Each prompt's own text comes right before its responses: then it is the first entry of any n-gram that it has.
    documents: list[str] = []
    start = 0
    for index, size in enumerate(sizes.tolist()):
        documents.append((prompts[index] if prompts is not None else None) or "")
        documents.extend(texts[start : start + size])
        start += size
    document_prompt = np.repeat(np.arange(len(sizes)), sizes + 1)
    is_prompt = np.zeros(len(documents), dtype=np.bool_)
    is_prompt[np.cumsum(sizes + 1) - sizes - 1] = True
    grams = count_ngrams(documents, idf.kind)
    prompt = document_prompt[grams.text]
    first = np.ones(len(prompt), dtype=np.bool_)
    first[1:] = (grams.gram[1:] != grams.gram[:-1]) | (prompt[1:] != prompt[:-1])
    segment = np.cumsum(first) - 1  # one n-gram in one prompt
    in_prompt = is_prompt[grams.text[first]]
    said = ~is_prompt[grams.text]
    grams, prompt, segment = grams.take(said), prompt[said], segment[said]
    frequency = np.bincount(segment, minlength=len(in_prompt))
    common = np.log((1.0 + sizes[prompt]) / (1.0 + frequency[segment])) + COMMON_FLOOR
    weight = (1.0 + np.log(grams.count)) * idf(grams.gram) * common
    weight[in_prompt[segment]] *= PROMPT_WEIGHT
    column, n_shared = _columns(frequency >= 2, segment, prompt, len(sizes))
    return _Entries(grams.gram, grams.text - prompt - 1, weight, frequency[segment] >= 2, column[segment], n_shared)


def _columns(
    shared: NDArray[np.bool_], segment: NDArray[np.int64], prompt: NDArray[np.int64], n_prompts: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a number for each shared n-gram of a prompt, in the order of their hashes, and how many there are."""
    owner = np.zeros(len(shared), dtype=np.int64)
    owner[segment] = prompt
    which = np.flatnonzero(shared)
    counts = np.bincount(owner[which], minlength=n_prompts)
    order = which[np.argsort(owner[which], kind="stable")]
    column = np.zeros(len(shared), dtype=np.int64)
    column[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return column, counts


def _half(entries: _Entries, seed: int, half: int) -> _Entries:
    mark = mixed_keys((entries.gram ^ mixed_keys(np.array([seed]))[0]).view(np.int64))
    kept = (mark >> np.uint64(63)) == half
    return replace(entries, weight=np.where(kept, entries.weight, 0.0))


def _padded(width: NDArray[np.int64]) -> NDArray[np.int64]:
    """Round widths up to powers of two, so that a few calls serve all prompts; too wide ones are alike."""
    padded = _MIN_WIDTH << np.ceil(np.log2(np.maximum(width, _MIN_WIDTH) / _MIN_WIDTH)).astype(np.int64)
    return np.where(width > MAX_WIDTH, MAX_WIDTH + 1, padded)


def _hashed(
    entries: _Entries, here: NDArray[np.int64], place: NDArray[np.int64], value: NDArray[np.float64], rows: int
) -> NDArray[np.float32]:
    """Fold all n-grams of wide prompts into few coordinates with random signs (Weinberger et al. 2009)."""
    gram = entries.gram[here]
    sign = np.where(gram >> np.uint64(HASH_BITS - 1) == 1, 1.0, -1.0)
    cell = place[entries.row[here]] * MAX_WIDTH + (gram % np.uint64(MAX_WIDTH)).astype(np.int64)
    return np.bincount(cell, sign * value[here], minlength=rows * MAX_WIDTH).reshape(rows, MAX_WIDTH).astype(np.float32)
