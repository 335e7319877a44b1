"""Vectors that somebody else made: a column of the log, an array, or a sentence-embedding model."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast import _core
from pope_fast._extras import require
from pope_fast.cluster.features import Half, Texts, VectorFeatures
from pope_fast.cluster.rows import Block
from pope_fast.cluster.tfidf import PromptVectors
from pope_fast.errors import PopeError, SchemaError
from pope_fast.log.arrays import as_numpy, plain, ragged
from pope_fast.log.arrow_types import Array, DataType
from pope_fast.log.columns import bare_type, is_list_type, is_number_type

__all__ = ["ArrayFeatures", "ColumnFeatures", "ModelFeatures", "embedding_matrix"]

#: Texts whose embeddings are remembered: what the threshold was chosen on is not embedded again.
_REMEMBERED = 1 << 14


class _Dense(VectorFeatures):
    """Vectors of one width for all responses."""

    #: Embeddings of unrelated sentences often have a cosine of .2 to .5; those of paraphrases, .7 and more.
    default_threshold = 0.7

    @abstractmethod
    def matrix(self, block: Block) -> NDArray[np.float32]:
        """Return the vectors of a block, shape (n, width)."""

    def identity(self, block: Block) -> NDArray[np.uint64]:
        """Return a hash of each vector."""
        matrix = np.ascontiguousarray(self.matrix(block))
        offsets = np.arange(len(matrix) + 1, dtype=np.int64) * matrix.shape[1] * matrix.itemsize
        return _core.hash_strings(offsets, matrix.view(np.uint8).ravel())

    def vectors(self, block: Block, half: Half | None = None) -> Iterator[PromptVectors]:
        """Yield all vectors at once."""
        matrix = self.matrix(block)
        if half is not None:
            seed, side = half
            width = matrix.shape[1]
            order = np.random.default_rng([seed, width]).permutation(width)
            matrix = matrix[:, np.sort(order[: width // 2] if side == 0 else order[width // 2 :])]
        matrix = np.ascontiguousarray(matrix, dtype=np.float32)
        yield PromptVectors(np.arange(len(block.keys)), np.arange(len(block)), block.offsets, matrix)


class ColumnFeatures(_Dense):
    """A column of embeddings: lists of numbers, all of one length."""

    def __init__(self, column: str, type_: DataType) -> None:
        bare = bare_type(type_)
        if not (is_list_type(bare) and is_number_type(bare.value_type)):
            raise SchemaError(
                f"wrong type {type_}: embeddings are lists of numbers, all of one length",
                column=column,
                remedy="name the column that holds the embeddings",
            )
        self.column = column
        self.columns = (column,)
        self._width: int | None = None

    def matrix(self, block: Block) -> NDArray[np.float32]:
        """Return the vectors of a block."""
        matrix = embedding_matrix(block.columns[self.column], self.column, block.rows)
        if self._width is None:
            self._width = matrix.shape[1]
        elif matrix.shape[1] != self._width:
            raise _other_width(self.column, int(block.rows[0]), matrix.shape[1], self._width)
        return matrix

    @property
    def source(self) -> str:
        """The column."""
        return self.column

    def describe(self) -> dict[str, Any]:
        """Return what is needed to compute them again."""
        return {"kind": "column", "column": self.column}


def embedding_matrix(array: Array, column: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a column of embeddings as float32, shape (n, width).

    Raises
    ------
    SchemaError
        On nulls, and on lists of different lengths.
    """
    array = plain(array)
    if array.null_count:
        missing = int(rows[np.flatnonzero(as_numpy(array.is_null()))[0]])
        raise SchemaError("missing embedding (null)", column=column, row=missing, remedy="embed every response")
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        # Not .values, which ignores where a slice begins.
        inner = plain(array.flatten())
    else:
        offsets, inner = ragged(array)
        inner = plain(inner)
        lengths = np.diff(offsets)
        width = int(lengths[0]) if len(lengths) else 0
        odd = np.flatnonzero(lengths != width)
        if odd.size:
            raise _other_width(column, int(rows[odd[0]]), int(lengths[odd[0]]), width)
    if inner.null_count:
        item = int(np.flatnonzero(as_numpy(inner.is_null()))[0])
        raise SchemaError(
            "missing value (null) inside an embedding",
            column=column,
            row=int(rows[item // width]),
            remedy="embed every response",
        )
    values = inner if pa.types.is_floating(inner.type) else inner.cast(pa.float32())
    return as_numpy(values).astype(np.float32, copy=False).reshape(len(rows), width)


def _other_width(column: str, row: int, width: int, expected: int) -> SchemaError:
    return SchemaError(
        f"an embedding of {width} numbers where others have {expected}",
        column=column,
        row=row,
        remedy="use one embedding model for the whole log",
    )


class ArrayFeatures(_Dense):
    """An array of embeddings, row i for row i of the log."""

    def __init__(self, array: Any) -> None:
        matrix = np.asarray(array)
        if matrix.ndim != 2 or matrix.shape[1] == 0 or matrix.dtype.kind not in "fiu":
            raise PopeError(f"embeddings must be numbers of shape (rows, width), not {matrix.dtype} {matrix.shape}")
        self._array = matrix

    @property
    def n_rows(self) -> int:
        """Number of rows of the array."""
        return len(self._array)

    @property
    def source(self) -> str:
        """What the user calls it."""
        return "embeddings="

    def matrix(self, block: Block) -> NDArray[np.float32]:
        """Return the vectors of a block."""
        return np.asarray(self._array[block.rows], dtype=np.float32)

    def describe(self) -> dict[str, Any]:
        """Return what is known of them."""
        return {"kind": "array", "width": int(self._array.shape[1])}


class ModelFeatures(_Dense):
    """Embeddings from a model, computed batch by batch, each distinct text once per block.

    Parameters
    ----------
    model : str, path, object with ``encode``, or callable
        A sentence-transformers model: its name or folder, or the loaded object; or a function from a list of texts to
        an array of shape (texts, width).
    texts : Texts
        What is embedded.
    with_prompt : bool
        Whether each response is embedded after its prompt.
    batch_size : int, optional
        Texts per batch of the model; its own default otherwise.
    """

    threaded = False

    def __init__(self, model: Any, texts: Texts, *, with_prompt: bool = False, batch_size: int | None = None) -> None:
        self.texts = texts
        self.columns = texts.columns if with_prompt else (texts.completion,)
        self.with_prompt = with_prompt
        self.batch_size = batch_size
        self._model = model
        self._encode: Callable[[list[str]], Any] | None = None
        self._known: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def _encoder(self) -> Callable[[list[str]], Any]:
        """Return what embeds texts; a model given by name is loaded when it is first needed."""
        if self._encode is None:
            model = self._model
            if callable(getattr(model, "encode", None)):
                self._encode = self._sentence_transformer(model)
            elif callable(model):
                self._encode = model
            else:
                library = require("sentence_transformers", "a sentence-embedding model")
                try:
                    loaded = library.SentenceTransformer(str(model))
                except (OSError, ValueError) as error:
                    raise PopeError(f"the embedding model {str(model)!r} cannot be loaded: {error}") from error
                self._encode = self._sentence_transformer(loaded)
        return self._encode

    def _sentence_transformer(self, model: Any) -> Callable[[list[str]], Any]:
        options: dict[str, Any] = {"show_progress_bar": False, "convert_to_numpy": True}
        if self.batch_size is not None:
            options["batch_size"] = self.batch_size
        return lambda texts: model.encode(texts, **options)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector per text, shape (n, width)."""
        distinct = list(dict.fromkeys(texts))
        fresh = [text for text in distinct if text not in self._known]
        vectors = {text: self._known[text] for text in distinct if text in self._known}
        if fresh:
            matrix = np.asarray(self._encoder()(fresh), dtype=np.float32)
            if matrix.ndim != 2 or len(matrix) != len(fresh):
                raise PopeError(
                    f"the embedding model gave an array of shape {matrix.shape} for {len(fresh)} texts; "
                    "one row per text is needed"
                )
            vectors.update(zip(fresh, matrix, strict=True))
        for text in fresh:
            self._known[text] = vectors[text]
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return np.stack([vectors[text] for text in texts])

    def matrix(self, block: Block) -> NDArray[np.float32]:
        """Return the vectors of a block."""
        return self.embed(self.texts.in_context(block) if self.with_prompt else self.texts.responses(block))

    @property
    def source(self) -> str:
        """What the user calls it."""
        return "model="

    def describe(self) -> dict[str, Any]:
        """Return what is needed to compute them again, if the model was given by name."""
        name = self._model if isinstance(self._model, str) else _name_of(self._model)
        return {
            "kind": "model",
            "model": str(name),
            "loadable": isinstance(self._model, str),
            "with_prompt": self.with_prompt,
            **self.texts.describe(),
        }

    def versions(self) -> dict[str, str]:
        """Return the version of sentence-transformers if it was used."""
        import sys

        library = sys.modules.get("sentence_transformers")
        return {} if library is None else {"sentence-transformers": str(getattr(library, "__version__", "unknown"))}


def _name_of(model: Any) -> str:
    card = getattr(getattr(model, "model_card_data", None), "base_model", None)
    return str(card or getattr(model, "__qualname__", type(model).__qualname__))
