"""What is compared: every kind of feature turns a block of responses into labels at one or several thresholds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pope_fast import _core
from pope_fast.cluster.ngrams import NgramKind, normalize_texts
from pope_fast.cluster.rows import Block, Rows
from pope_fast.cluster.texts import text_list
from pope_fast.cluster.tfidf import Idf, PromptVectors, prompt_vectors
from pope_fast.errors import SchemaError

__all__ = [
    "Features",
    "Half",
    "Linkage",
    "SameText",
    "Texts",
    "TfidfFeatures",
    "VectorFeatures",
    "number_within",
    "text_keys",
]

Linkage = Literal["average", "complete", "leader"]
Half = tuple[int, int]


class Features(ABC):
    """Features of responses that can be clustered within prompts.

    Attributes
    ----------
    columns : tuple of str
        Columns of the log that they need.
    threaded : bool
        Whether blocks may be worked on by several threads at once.
    default_threshold : float or None
        Similarity from which responses belong together if nothing says otherwise; None if there is no similarity.
    """

    columns: tuple[str, ...] = ()
    threaded = True
    default_threshold: float | None = None

    @abstractmethod
    def labels(
        self, block: Block, thresholds: NDArray[np.float64], linkage: Linkage, threads: int | None = None
    ) -> NDArray[np.int32]:
        """Return labels, shape (thresholds, rows), numbered from 0 within each prompt by first appearance."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the metadata of the result says about them."""

    def fit(self, rows: Rows, seed: int) -> None:
        """Learn from the log what has to be known before the first block."""
        return

    def versions(self) -> dict[str, str]:
        """Return the versions of libraries that take part."""
        return {}


class VectorFeatures(Features):
    """Features that are vectors: similarity is the cosine, the kernel does the rest."""

    @abstractmethod
    def vectors(self, block: Block, half: Half | None = None) -> Iterator[PromptVectors]:
        """Yield vectors of the prompts of a block; every prompt once.

        Parameters
        ----------
        block : Block
            Responses.
        half : (seed, 0 or 1), optional
            Use one half of the features only; the two halves of one seed are disjoint.
        """

    @abstractmethod
    def identity(self, block: Block) -> NDArray[np.uint64]:
        """Return a hash of each response, equal for those that are the same to these features."""

    def labels(
        self,
        block: Block,
        thresholds: NDArray[np.float64],
        linkage: Linkage,
        threads: int | None = None,
        half: Half | None = None,
    ) -> NDArray[np.int32]:
        """Return labels, shape (thresholds, rows); with ``half``, from one half of the features."""
        found = np.zeros((len(thresholds), len(block)), dtype=np.int32)
        for part in self.vectors(block, half):
            try:
                labels = _core.cluster_prompts(part.offsets, part.vectors, thresholds, linkage, threads)
            except SchemaError as error:
                raise self._located(error, block, part) from error
            found[:, part.rows] = labels
        return found

    def _located(self, error: SchemaError, block: Block, part: PromptVectors) -> SchemaError:
        """Say in the log's terms which row the kernel complains about."""
        row = None if error.row is None else int(block.rows[part.rows[error.row]])
        return SchemaError(error.message, column=self.source, row=row, remedy=error.remedy)

    @property
    def source(self) -> str:
        """Where the vectors come from, for errors."""
        return "embedding"


class Texts:
    """The text of the responses, and of their prompts, in a log.

    Parameters
    ----------
    completion : str
        Column of the responses.
    prompt : str, optional
        Column of the prompts.
    """

    def __init__(self, completion: str, prompt: str | None = None) -> None:
        self.completion = completion
        self.prompt = prompt

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read."""
        return (self.completion,) if self.prompt is None else (self.completion, self.prompt)

    def responses(self, block: Block) -> list[str]:
        """Return the text of each response; a null is an error."""
        return text_list(block.columns[self.completion], self.completion, block.rows)

    def prompts(self, block: Block) -> list[str] | None:
        """Return the text of each prompt, that of its first row; None without a column of prompts."""
        if self.prompt is None:
            return None
        first = block.offsets[:-1]
        return text_list(block.columns[self.prompt].take(first), self.prompt, block.rows[first], null="")

    def in_context(self, block: Block) -> list[str]:
        """Return each response after its prompt, on a line of its own."""
        prompts = self.prompts(block)
        responses = self.responses(block)
        if prompts is None:
            return responses
        owners = np.repeat(np.arange(len(prompts)), block.sizes).tolist()
        return [f"{prompts[owner]}\n{text}" for owner, text in zip(owners, responses, strict=True)]

    def describe(self) -> dict[str, Any]:
        """Return the columns for the metadata."""
        return {"completion": self.completion, "prompt": self.prompt}


class TfidfFeatures(VectorFeatures):
    """Character n-grams or words, weighted by TF-IDF: see :mod:`pope_fast.cluster.tfidf`."""

    default_threshold = 0.2
    #: Rows whose n-grams are counted for the document frequencies.
    fit_rows = 1 << 16

    def __init__(self, texts: Texts, kind: NgramKind = "char") -> None:
        self.texts = texts
        self.columns = texts.columns
        self.idf = Idf(kind)

    def fit(self, rows: Rows, seed: int) -> None:
        """Count document frequencies over the responses of up to 65,536 rows, chosen by their prompts' keys."""
        self.idf = Idf(self.idf.kind)
        sample = rows.sample([self.texts.completion], self.fit_rows, seed)
        responses = self.texts.responses(sample)
        for start in range(0, len(responses), 2048):
            self.idf.add(responses[start : start + 2048])

    def vectors(self, block: Block, half: Half | None = None) -> Iterator[PromptVectors]:
        """Yield exact TF-IDF vectors."""
        responses = self.texts.responses(block)
        return prompt_vectors(responses, block.offsets, self.idf, self.texts.prompts(block), keep=half)

    def identity(self, block: Block) -> NDArray[np.uint64]:
        """Return a hash of each text."""
        return text_keys(self.texts.responses(block))

    @property
    def source(self) -> str:
        """The column of the responses."""
        return self.texts.completion

    def describe(self) -> dict[str, Any]:
        """Return what is needed to compute them again."""
        kind = "tfidf" if self.idf.kind == "char" else "tfidf-word"
        return {"kind": kind, **self.texts.describe(), "n_texts": self.idf.n_texts}


class SameText(Features):
    """Responses of equal text belong together; "normalized" text has no case, punctuation or extra space."""

    def __init__(self, texts: Texts, kind: Literal["exact", "normalized"]) -> None:
        self.texts = texts
        self.columns = (texts.completion,)
        self.kind = kind

    def keys(self, block: Block) -> NDArray[np.uint64]:
        """Return a hash of each response, equal for those that belong together."""
        responses = self.texts.responses(block)
        return text_keys(normalize_texts(responses) if self.kind == "normalized" else responses)

    def labels(
        self, block: Block, thresholds: NDArray[np.float64], linkage: Linkage, threads: int | None = None
    ) -> NDArray[np.int32]:
        """Return labels; thresholds and linkage make no difference."""
        labels = number_within(self.keys(block), np.repeat(np.arange(len(block.keys)), block.sizes))
        return np.tile(labels, (len(thresholds), 1))

    def describe(self) -> dict[str, Any]:
        """Return what is needed to compute them again."""
        return {"kind": self.kind, "completion": self.texts.completion}


def text_keys(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Return the XXH3-64 hash of each text."""
    raw = [text.encode("utf-8", "surrogatepass") for text in texts]
    offsets = np.zeros(len(raw) + 1, dtype=np.int64)
    np.cumsum([len(item) for item in raw], out=offsets[1:])
    return _core.hash_strings(offsets, np.frombuffer(b"".join(raw), dtype=np.uint8))


def number_within(keys: NDArray[np.uint64], groups: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return numbers that are equal where keys are, within each group from 0 by first appearance.

    Parameters
    ----------
    keys : ndarray of uint64, shape (n,)
        What is equal or not.
    groups : ndarray of int64, shape (n,)
        Not decreasing.

    Returns
    -------
    ndarray of int32, shape (n,)
    """
    order = np.lexsort((keys, groups))
    new = np.ones(len(keys), dtype=np.bool_)
    new[1:] = (keys[order][1:] != keys[order][:-1]) | (groups[order][1:] != groups[order][:-1])
    run = np.empty(len(keys), dtype=np.int64)
    run[order] = np.cumsum(new) - 1
    # The sort is stable, so the first of a run is the first in the rows.
    first = np.sort(order[new])
    rank = np.empty(len(first), dtype=np.int64)
    rank[run[first]] = np.arange(len(first))
    before = np.searchsorted(groups[first], groups)
    return (rank[run] - before).astype(np.int32)
