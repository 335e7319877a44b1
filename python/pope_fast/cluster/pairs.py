"""Same or different, as somebody else judges: a user's function over pairs of texts, or an NLI model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pope_fast import _core
from pope_fast._extras import require
from pope_fast.cluster.features import Features, Linkage, Texts, number_within, text_keys
from pope_fast.cluster.rows import Block
from pope_fast.errors import PopeError

__all__ = ["PairFeatures", "Same", "entailment"]

#: Takes pairs of texts; returns for each a score (1 the same, 0 different) or a boolean.
Same = Callable[[list[tuple[str, str]]], Any]

_BATCH = 1024


@dataclass(frozen=True, slots=True)
class _Distinct:
    """The distinct texts of a block's prompts, sorted within each."""

    texts: list[list[str]]
    row_place: NDArray[np.int64]  # of each row: which of all distinct texts it is
    counts: NDArray[np.int64]  # of each distinct text: how many rows have it

    @property
    def offsets(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum([len(texts) for texts in self.texts])]).astype(np.int64)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield the pairs within each prompt, in the kernel's order."""
        for texts in self.texts:
            for i, left in enumerate(texts):
                for right in texts[i + 1 :]:
                    yield left, right


class PairFeatures(Features):
    """Similarities from a function over pairs of texts, asked once for each pair of distinct texts of a prompt.

    Parameters
    ----------
    same : callable
        Takes a list of pairs of texts, returns as many scores in [-1, 1] (or booleans).
    texts : Texts
        What is compared.
    with_prompt : bool
        Whether each response comes after its prompt.
    batch_size : int, optional
        Most pairs per call.
    """

    threaded = False
    default_threshold = 0.5

    def __init__(self, same: Same, texts: Texts, *, with_prompt: bool = False, batch_size: int | None = None) -> None:
        self.same = same
        self.texts = texts
        self.columns = texts.columns if with_prompt else (texts.completion,)
        self.with_prompt = with_prompt
        self.batch_size = _BATCH if batch_size is None else batch_size

    def labels(
        self, block: Block, thresholds: NDArray[np.float64], linkage: Linkage, threads: int | None = None
    ) -> NDArray[np.int32]:
        """Return labels, shape (thresholds, rows)."""
        distinct = self._distinct(block)
        found = _core.cluster_pairs(
            distinct.offsets,
            self._scores(distinct),
            thresholds,
            linkage,
            text_keys([text for texts in distinct.texts for text in texts]),
            distinct.counts,
            threads,
        )
        labels = found[:, distinct.row_place]
        # The kernel numbers clusters by the sorted texts; here the log's order decides.
        prompt = np.repeat(np.arange(len(block.keys)), block.sizes)
        return np.stack([number_within(row.astype(np.uint64), prompt) for row in labels])

    def _distinct(self, block: Block) -> _Distinct:
        responses = self.texts.in_context(block) if self.with_prompt else self.texts.responses(block)
        prompts: list[list[str]] = []
        place: list[int] = []
        first = 0
        for start, stop in zip(block.offsets[:-1].tolist(), block.offsets[1:].tolist(), strict=True):
            texts = sorted(set(responses[start:stop]))
            where = {text: first + i for i, text in enumerate(texts)}
            place.extend(where[text] for text in responses[start:stop])
            prompts.append(texts)
            first += len(texts)
        row_place = np.array(place, dtype=np.int64)
        return _Distinct(prompts, row_place, np.bincount(row_place, minlength=first))

    def _scores(self, distinct: _Distinct) -> NDArray[np.float32]:
        stream = distinct.pairs()
        scores: list[NDArray[np.float32]] = []
        while pairs := list(islice(stream, self.batch_size)):
            asked = list(dict.fromkeys(pairs))
            answers = dict(zip(asked, _checked(self.same(asked), asked).tolist(), strict=True))
            scores.append(np.array([answers[pair] for pair in pairs], dtype=np.float32))
        return np.concatenate(scores) if scores else np.empty(0, dtype=np.float32)

    def describe(self) -> dict[str, Any]:
        """Return what is known of the function."""
        described = {"kind": "same", "function": _name_of(self.same), "with_prompt": self.with_prompt}
        return {**described, **getattr(self.same, "description", {}), **self.texts.describe()}

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that an NLI model needs."""
        return dict(getattr(self.same, "versions", {}))


def _checked(answers: Any, asked: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    scores: NDArray[Any] = np.asarray(answers)
    if scores.shape != (len(asked),) or scores.dtype.kind not in "fiub":
        raise PopeError(
            f"same= must return one score or boolean per pair: {len(asked)} were asked for, "
            f"{scores.dtype} of shape {scores.shape} came back"
        )
    scores = scores.astype(np.float64)
    wrong = np.flatnonzero(~(np.abs(scores) <= 1.0))
    if wrong.size:
        left, right = asked[int(wrong[0])]
        raise PopeError(
            f"same= gave the score {scores[wrong[0]]:g} to the pair {_short(left)}, {_short(right)}; "
            "scores lie in [-1, 1]"
        )
    return scores


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


class _Entailment:
    """See :func:`entailment`."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, strict: bool) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._strict = strict
        self._label = _entailment_label(model.config)
        self.description = {
            "function": "entailment",
            "model": str(getattr(model.config, "_name_or_path", "") or type(model).__name__),
            "strict": strict,
        }

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that compute it."""
        torch, transformers = require("torch", "an NLI model"), require("transformers", "an NLI model")
        return {"torch": str(torch.__version__), "transformers": str(transformers.__version__)}

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """Return the smaller of the two directions' scores for each pair."""
        directed = [*pairs, *((right, left) for left, right in pairs)]
        # Texts of like length together: little is padded.
        order = sorted(range(len(directed)), key=lambda i: (len(directed[i][0]) + len(directed[i][1]), directed[i]))
        scores = np.empty(len(directed), dtype=np.float64)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            scores[batch] = self._forward([directed[i] for i in batch])
        return np.minimum(scores[: len(pairs)], scores[len(pairs) :])

    def _forward(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        torch = require("torch", "an NLI model")
        inputs = self._tokenizer(
            [premise for premise, _ in pairs],
            [hypothesis for _, hypothesis in pairs],
            padding=True,
            return_tensors="pt",
        )
        longest, most = int(inputs["input_ids"].shape[1]), self._context()
        if longest > most:
            raise PopeError(
                f"a pair of responses has {longest} tokens, and the NLI model reads {most}; it is not cut: "
                "use a model with a longer context"
            )
        with torch.inference_mode():
            logits = self._model(**inputs.to(self._model.device)).logits.float()
        if self._strict:
            won = logits.argmax(dim=-1) == self._label
            return np.asarray(won.cpu().numpy(), dtype=np.float64)
        return np.asarray(logits.softmax(dim=-1)[:, self._label].cpu().numpy(), dtype=np.float64)

    def _context(self) -> int:
        positions = getattr(self._model.config, "max_position_embeddings", None)
        limits = [limit for limit in (positions, getattr(self._tokenizer, "model_max_length", None)) if limit]
        return int(min(limits, default=1 << 30))


def _entailment_label(config: Any) -> int:
    labels = {int(index): str(name) for index, name in (getattr(config, "id2label", None) or {}).items()}
    found = [index for index, name in labels.items() if name.casefold().startswith("entail")]
    if len(found) != 1:
        raise PopeError(
            f"the NLI model's labels are {', '.join(labels.values()) or 'unknown'}; one of them must be 'entailment' "
            "(set model.config.id2label)"
        )
    return found[0]


def entailment(model: Any, tokenizer: Any = None, *, batch_size: int = 64, strict: bool = False) -> Same:
    """Make a same/different function of an NLI model: two texts are the same if each entails the other.

    Parameters
    ----------
    model : str, path, or transformers sequence-classification model
        A model with a label "entailment"; by name or folder it is loaded with its tokenizer.
    tokenizer : transformers tokenizer, optional
        For a loaded model.
    batch_size : int
        Directed pairs per forward pass.
    strict : bool
        Score 1 if "entailment" is the likeliest label in both directions, else 0 (semantic entropy, Kuhn, Gal &
        Farquhar 2023). By default the score is the smaller of the two probabilities of entailment.

    Returns
    -------
    callable
        For ``cluster(..., same=...)``.

    Raises
    ------
    PopeError
        If the model cannot be loaded or has no label "entailment"; when called, if a pair does not fit its context.
    """
    if batch_size < 1:
        raise PopeError(f"batch_size must be at least 1, not {batch_size}")
    if not hasattr(model, "config"):
        transformers = require("transformers", "an NLI model")
        require("torch", "an NLI model")
        try:
            loaded = transformers.AutoModelForSequenceClassification.from_pretrained(str(model)).eval()
            tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(str(model))
        except (OSError, ValueError) as error:
            raise PopeError(f"the NLI model {str(model)!r} cannot be loaded: {error}") from error
        model = loaded
    if tokenizer is None:
        raise PopeError("a loaded NLI model needs its tokenizer: entailment(model, tokenizer)")
    return _Entailment(model.eval(), tokenizer, batch_size, strict)
