"""Which features a call asks for: one of several ways to say what is compared."""

from __future__ import annotations

import os
from typing import Any

from pope_fast.cluster.embeddings import ArrayFeatures, ColumnFeatures, ModelFeatures
from pope_fast.cluster.features import Features, SameText, Texts, TfidfFeatures
from pope_fast.cluster.metadata import ClusterInfo
from pope_fast.cluster.pairs import PairFeatures, Same
from pope_fast.cluster.texts import check_text_type, is_text
from pope_fast.errors import PopeError, SchemaError
from pope_fast.log.feedback_log import FeedbackLog
from pope_fast.log.remedies import missing_column

__all__ = ["TEXT_FEATURES", "choose_features", "restore_features"]

TEXT_FEATURES = ("tfidf", "tfidf-word", "exact", "normalized")
"""Features that need no model."""


def choose_features(
    log: FeedbackLog,
    *,
    features: str | None = None,
    embeddings: Any = None,
    model: Any = None,
    same: Same | None = None,
    with_prompt: bool = False,
    batch_size: int | None = None,
) -> Features:
    """Return the features that the options of :func:`pope_fast.cluster` ask for.

    Raises
    ------
    PopeError
        If they ask for several, or for something that there is not.
    SchemaError
        If the log does not have the columns.
    """
    given = {"features": features, "embeddings": embeddings, "model": model, "same": same}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise PopeError(f"{' and '.join(named)}: say in one way only what is compared")
    if batch_size is not None and batch_size < 1:
        raise PopeError(f"batch_size must be at least 1, not {batch_size}")
    if with_prompt and model is None and same is None:
        raise PopeError("with_prompt is for model= and same=; n-grams of the prompt are weighed down in any case")
    if isinstance(embeddings, str):
        return ColumnFeatures(embeddings, _type(log, embeddings))
    if embeddings is not None:
        return ArrayFeatures(embeddings)
    texts = _texts(log)
    if with_prompt and texts.prompt is None:
        raise missing_column("prompt", log.schema.names, why="asked for by with_prompt")
    if model is not None:
        loaded = os.fspath(model) if isinstance(model, os.PathLike) else model
        return ModelFeatures(loaded, texts, with_prompt=with_prompt, batch_size=batch_size)
    if same is not None:
        if not callable(same):
            raise PopeError(f"same must be a function of a list of pairs of texts, not {type(same).__name__}")
        return PairFeatures(same, texts, with_prompt=with_prompt, batch_size=batch_size)
    features = features or "tfidf"
    if features in ("tfidf", "tfidf-word"):
        return TfidfFeatures(texts, "char" if features == "tfidf" else "word")
    if features in ("exact", "normalized"):
        return SameText(texts, normalized=features == "normalized")
    raise PopeError(f"features must be one of {', '.join(TEXT_FEATURES)}; not {features!r}")


def restore_features(
    log: FeedbackLog, info: ClusterInfo, *, embeddings: Any = None, model: Any = None, same: Same | None = None
) -> Features:
    """Return the features that a log was clustered by, from its metadata.

    Parameters
    ----------
    log : FeedbackLog
        With the columns that the features need.
    info : ClusterInfo
        How it was clustered.
    embeddings, model, same : optional
        What metadata cannot hold: an array, a loaded model or a function.

    Raises
    ------
    PopeError
        If such a thing is needed and not given, or given and not needed.
    SchemaError
        If the columns are no longer there.
    """
    kind = str(info.features.get("kind", ""))
    wanted = {"array": "embeddings", "model": "model", "same": "same"}.get(kind)
    given = {"embeddings": embeddings, "model": model, "same": same}
    for name, value in given.items():
        if value is not None and name != wanted:
            raise PopeError(f"{name}= is not what this log was clustered by ({kind})")
    if kind == "model" and model is None and info.features.get("loadable"):
        model = info.features.get("model")
    value = {"embeddings": embeddings, "model": model, "same": same}.get(wanted or "")
    if wanted is not None and value is None:
        raise PopeError(f"the log was clustered by {wanted}=, which its metadata cannot hold: pass it again")
    if kind == "array":
        return ArrayFeatures(embeddings)
    if kind == "column":
        column = str(info.features.get("column"))
        return ColumnFeatures(column, _type(log, column))
    completion, prompt = str(info.features.get("completion")), info.features.get("prompt")
    check_text_type(_type(log, completion), completion)
    if prompt is not None:
        check_text_type(_type(log, str(prompt)), str(prompt))
    texts = Texts(completion, prompt)
    with_prompt = bool(info.features.get("with_prompt"))
    if kind == "model":
        return ModelFeatures(model, texts, with_prompt=with_prompt)
    if kind == "same" and same is not None:
        return PairFeatures(same, texts, with_prompt=with_prompt)
    if kind in ("tfidf", "tfidf-word"):
        return TfidfFeatures(texts, "char" if kind == "tfidf" else "word")
    raise PopeError(f"the log was clustered by features that this version does not know ({kind!r})")


def _texts(log: FeedbackLog) -> Texts:
    completion = log.columns.get("completion")
    if completion is None:
        ids = log.columns.get("completion_ids")
        why = "" if ids is None else f"and token ids ({ids!r}) have to be decoded first"
        raise missing_column("completion", log.schema.names, why=why)
    check_text_type(_type(log, completion), completion)
    prompt = log.columns.get("prompt")
    if prompt is not None and not is_text(_type(log, prompt)):
        prompt = None  # a key, or token ids, are no text
    return Texts(completion, prompt)


def _type(log: FeedbackLog, column: str) -> Any:
    times = log.schema.names.count(column)
    if times == 0:
        raise missing_column(column, log.schema.names)
    if times > 1:
        raise SchemaError(f"duplicate column: there are {times}", column=column, remedy="rename or drop all but one")
    return log.schema.field(column).type
