"""Estimators of the diversity D: from clusters, and from embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast.errors import PopeError, SchemaError
from pope_fast.evaluate.records import make_estimate
from pope_fast.evaluate.results import Estimate
from pope_fast.ope.arrays import named, summary


def _clustered(
    target: npt.ArrayLike, behavior: npt.ArrayLike, cluster: npt.ArrayLike, level: float, options: Mapping[str, Any]
) -> dict[str, Any]:
    reward = np.zeros(len(np.asarray(target)))
    return summary(target, behavior, reward, cluster=cluster, level=level, reward_range=(0.0, 1.0), **options)


def entropy(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    cluster: npt.ArrayLike,
    *,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Entropy in nats of the target's clusters over all prompts together, by the grouped jackknife.

    Parameters
    ----------
    target_logprob, behavior_logprob : array_like, shape (n,)
        See :func:`summary`, which also takes the options.
    cluster : array_like of int or str, shape (n,)
        Labels that mean the same in every prompt.
    level : float
        Coverage of the intervals.
    """
    found = _clustered(target_logprob, behavior_logprob, cluster, level, options)
    return make_estimate(found["marginal"]["entropy"], level, unit="nats")


def _within(
    name: str,
    arrays: Sequence[npt.ArrayLike],
    prompt_id: npt.ArrayLike,
    order: int,
    level: float,
    unit: str,
    form: str,
    options: Mapping[str, Any],
) -> Estimate:
    if form not in ("control", "product"):
        raise PopeError(f"form must be 'control' or 'product', not {form!r}")
    target, behavior, cluster = arrays
    settings = {"prompt_id": prompt_id, "diversity_order": order, "repeated_share": 0.0, **options}
    prompt = _clustered(target, behavior, cluster, level, settings)["prompt"]
    if prompt is None or prompt["order"] < order:
        raise SchemaError(
            f"{name} needs {order + 1} responses for nearly all prompts that have two",
            column="prompt_id",
            remedy="use a lower order, or log more responses per prompt",
        )
    return named(prompt[form], name, level, unit=unit)


def gini_simpson(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    cluster: npt.ArrayLike,
    *,
    prompt_id: npt.ArrayLike,
    form: str = "control",
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Probability that two draws for a prompt fall into different clusters. Parameters as in :func:`coverage`."""
    arrays = (target_logprob, behavior_logprob, cluster)
    return _within("gini_simpson", arrays, prompt_id, 1, level, "probability", form, options)


def coverage(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    cluster: npt.ArrayLike,
    *,
    draws: int,
    prompt_id: npt.ArrayLike,
    form: str = "control",
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Mean number of distinct clusters among ``draws`` responses of the target to a prompt.

    Parameters
    ----------
    target_logprob, behavior_logprob : array_like, shape (n,)
        See :func:`summary`, which also takes the options.
    cluster : array_like of int or str, shape (n,)
        Labels; they need to mean the same only within a prompt.
    draws : int
        2, 3 or 4; every prompt needs at least as many logged responses.
    prompt_id : array_like, shape (n,)
        The prompt of each row.
    form : {"control", "product"}
        Which of the two unbiased forms: the control form varies less, the product form is never negative.
    level : float
        Coverage of the intervals.
    """
    if draws not in (2, 3, 4):
        raise PopeError(f"draws must be 2, 3 or 4, not {draws}")
    arrays = (target_logprob, behavior_logprob, cluster)
    return _within(f"coverage@{draws}", arrays, prompt_id, draws - 1, level, "clusters", form, options)


def entropy_within_prompts(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    cluster: npt.ArrayLike,
    *,
    prompt_id: npt.ArrayLike,
    order: int = 3,
    form: str = "control",
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """H_M, the Shannon entropy's series cut after ``order`` terms: unbiased, and below the entropy by at most C/(M+1).

    Parameters as in :func:`coverage`, with ``order`` 1, 2 or 3 and ``order + 1`` responses per prompt.
    """
    if order not in (1, 2, 3):
        raise PopeError(f"order must be 1, 2 or 3, not {order}")
    arrays = (target_logprob, behavior_logprob, cluster)
    return _within(f"H_{order}", arrays, prompt_id, order, level, "nats", form, options)


def _pairs(
    name: str,
    arrays: Sequence[npt.ArrayLike],
    prompt_id: npt.ArrayLike,
    level: float,
    unit: str,
    form: str,
    options: Mapping[str, Any],
) -> Estimate:
    if form not in ("pairs", "control"):
        raise PopeError(f"form must be 'pairs' or 'control', not {form!r}")
    target, behavior, embedding = arrays
    settings = {"prompt_id": prompt_id, "diversity": name, "level": level, "reward_range": (0.0, 1.0), **options}
    found = summary(target, behavior, np.zeros(len(np.asarray(target))), embedding=embedding, **settings)["pairs"]
    return named(found["measures" if form == "pairs" else "control"], name, level, unit=unit)


def rao(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    embedding: npt.ArrayLike,
    *,
    prompt_id: npt.ArrayLike,
    form: str = "pairs",
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Rao's quadratic entropy: expected cosine distance ``1 - cos`` of two responses of the target to a prompt.

    It needs no clusters. It is 0 if all responses to a prompt point the same way and at most 1, because the mean cosine
    of independent draws is the squared length of their mean direction. With one-hot vectors of clusters it is the
    Gini-Simpson index.

    Parameters
    ----------
    target_logprob, behavior_logprob : array_like, shape (n,)
        See :func:`summary`, which also takes the options.
    embedding : array_like of float, shape (n, width)
        A vector for each response; only its direction counts.
    prompt_id : array_like, shape (n,)
        The prompt of each row; those with a single response are left out.
    form : {"pairs", "control"}
        Normalized by the pairs themselves, or by the squared mean weight as :func:`gini_simpson` is. The first varies
        far less where all responses to a prompt have much in common.
    level : float
        Coverage of the intervals.

    Examples
    --------
    >>> import numpy as np
    >>> from pope_fast import ope
    >>> behavior = np.log([0.5, 0.5, 0.5, 0.5])
    >>> target = np.log([0.75, 0.25, 0.75, 0.25])
    >>> ope.rao(target, behavior, [[1, 0], [0, 1], [1, 0], [1, 0]], prompt_id=[1, 1, 2, 2]).value
    0.5
    """
    arrays = (target_logprob, behavior_logprob, embedding)
    return _pairs("rao", arrays, prompt_id, level, "cosine distance", form, options)


def vendi(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    embedding: npt.ArrayLike,
    *,
    prompt_id: npt.ArrayLike,
    form: str = "pairs",
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Vendi score of order 2, ``1 / E cos^2`` over two responses to a prompt: how many kinds of response there are.

    It is 1 if all responses are alike and at most the width of the embedding. Over prompts it is the harmonic mean of
    their scores, which is at most the mean: only ``E cos^2`` has an unbiased estimator from a few responses. With
    one-hot vectors of clusters it is the inverse Simpson index.

    Parameters as in :func:`rao`.

    Examples
    --------
    >>> import numpy as np
    >>> from pope_fast import ope
    >>> behavior = np.log([0.5, 0.5, 0.5, 0.5])
    >>> target = np.log([0.75, 0.25, 0.75, 0.25])
    >>> ope.vendi(target, behavior, [[1, 0], [0, 1], [1, 0], [1, 0]], prompt_id=[1, 1, 2, 2]).value
    2.0
    """
    arrays = (target_logprob, behavior_logprob, embedding)
    return _pairs("vendi", arrays, prompt_id, level, "effective kinds", form, options)
