"""Estimators on arrays, for those who have arrays, in the manner of ``scipy.stats``.

Every function takes one element per logged response and returns an :class:`~pope_fast.evaluate.Estimate` or a number.
They read the same native state as :func:`pope_fast.evaluate`, so a number here is that number there, to the bit.

>>> import numpy as np
>>> from pope_fast import ope
>>> target, behavior = np.log([0.5, 0.1, 0.3]), np.log([0.25, 0.2, 0.3])
>>> ope.snips(target, behavior, [1.0, 0.0, 1.0]).value
0.8571428571428571

What may be an interval without assumptions on overlap needs the bounds of the reward: pass ``reward_range``.
A call reads the arrays once; for many numbers of one log, :func:`pope_fast.evaluate` is the cheaper way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast import _core
from pope_fast.errors import PopeError, SchemaError
from pope_fast.evaluate.records import make_estimate
from pope_fast.evaluate.results import Estimate

__all__ = [
    "baseline_dr",
    "control_variate",
    "coverage",
    "diagnostics",
    "dm",
    "dr",
    "effective_sample_size",
    "entropy",
    "entropy_within_prompts",
    "gini_simpson",
    "ips",
    "pareto_k",
    "prompt_scan",
    "psis",
    "rao",
    "sequence_logprob",
    "sn_tips",
    "sndr",
    "snips",
    "summary",
    "tips",
    "token_sums",
    "vendi",
]

_POLICY = "target"


def summary(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    prompt_id: npt.ArrayLike | None = None,
    cluster: npt.ArrayLike | None = None,
    group: npt.ArrayLike | None = None,
    count: npt.ArrayLike | None = None,
    num_tokens: npt.ArrayLike | None = None,
    baseline: npt.ArrayLike | None = None,
    baseline_mean: npt.ArrayLike | None = None,
    embedding: npt.ArrayLike | None = None,
    reward_range: tuple[float, float] | None = None,
    cluster_scope: str = "log",
    threads: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return everything that the native state says about one policy, as nested dictionaries.

    Parameters
    ----------
    target_logprob, behavior_logprob : array_like of float, shape (n,)
        Log-probability of each response under the target policy and under the logger, in nats.
    reward : array_like of float, shape (n,)
        In reward units.
    prompt_id : array_like, shape (n,), optional
        The independent unit of each row, integers or strings, in any order; without it every row is a unit.
    cluster, group : array_like, shape (n,), optional
        Integers or strings.
    count : array_like of int, shape (n,), optional
        How many draws a row stands for.
    num_tokens, baseline, baseline_mean : array_like of float, shape (n,), optional
        Length of the response; a reward model's prediction, and its mean under the target policy given the prompt.
    embedding : array_like of float, shape (n, width), optional
        A vector for each response, of any length but 0; needs ``prompt_id``.
    reward_range : (low, high), optional
        Bounds of the reward; the observed ones by default.
    cluster_scope : {"log", "prompt"}
        Whether a cluster label means the same in every prompt.
    threads : int, optional
        Threads; the result does not depend on it.
    **options
        ``level``, ``diversity`` (as in :func:`pope_fast.evaluate`), ``diversity_weight``, ``diversity_order``, ``tau``
        (truncation level of the weights; by default sqrt(n) times their mean), ``kappa`` (calibration of noisy
        log-probs), ``repeated_share``, ``order_share``.

    Raises
    ------
    SchemaError
        If an array has the wrong shape or a value that it cannot have.
    """
    columns: dict[str, Any] = {
        "target_logprob": _floats("target_logprob", target_logprob),
        "behavior_logprob": _floats("behavior_logprob", behavior_logprob),
        "reward": _floats("reward", reward),
        "unit_key": _keys("prompt_id", prompt_id),
        "cluster": _keys("cluster", cluster),
        "group": _keys("group", group),
        "count": _optional("count", count),
        "num_tokens": _optional("num_tokens", num_tokens),
        "baseline": _optional("baseline", baseline),
        "baseline_mean": _optional("baseline_mean", baseline_mean),
        "embedding": _vectors("embedding", embedding),
    }
    n = len(columns["reward"])
    for name, values in columns.items():
        if values is not None and len(values) != n:
            raise SchemaError(f"{len(values)} elements where reward has {n}", column=name)
    if n == 0:
        raise SchemaError("there are no rows", column="reward")
    if (columns["baseline"] is None) != (columns["baseline_mean"] is None):
        raise PopeError("baseline and baseline_mean go together: DR needs the prediction and its policy mean")
    if embedding is not None and prompt_id is None:
        raise PopeError("embeddings are compared within prompts: pass prompt_id")
    order = _unit_order(columns["unit_key"])
    if order is not None:
        columns = {name: None if values is None else values[order] for name, values in columns.items()}
    state = _core.State(
        [_POLICY],
        _bounds(columns["reward"], reward_range),
        row_units=columns["unit_key"] is None,
        has_cluster=columns["cluster"] is not None,
        has_group=columns["group"] is not None,
        has_tokens=columns["num_tokens"] is not None,
        has_baseline=columns["baseline"] is not None,
        has_embedding=columns["embedding"] is not None,
        cluster_scope=cluster_scope,
    )
    means = columns.pop("baseline_mean")
    target = columns.pop("target_logprob")
    try:
        state.update(
            columns.pop("unit_key"),
            columns.pop("behavior_logprob"),
            [target],
            columns.pop("reward"),
            baseline_means=None if means is None else [means],
            threads=threads,
            **columns,
        )
    except SchemaError as error:
        row = error.row if error.row is None or order is None else int(order[error.row])
        raise SchemaError(error.message, column=error.column, row=row, remedy=error.remedy) from None
    return state.snapshot().summary(_POLICY, **options)


def _floats(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise SchemaError(f"must be one-dimensional, not of shape {array.shape}", column=name)
    if array.dtype == np.float32:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "fiub":
        raise SchemaError(f"must hold numbers, not {array.dtype}", column=name)
    return np.ascontiguousarray(array, dtype=np.float64)


def _optional(name: str, values: npt.ArrayLike | None) -> npt.NDArray[np.float64] | None:
    return None if values is None else _floats(name, values).astype(np.float64, copy=False)


def _vectors(name: str, values: npt.ArrayLike | None) -> npt.NDArray[Any] | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[1] == 0:
        raise SchemaError(f"must have a row of numbers for each response, not the shape {array.shape}", column=name)
    if array.dtype.kind not in "fiu":
        raise SchemaError(f"must hold numbers, not {array.dtype}", column=name)
    single = array.dtype in (np.float16, np.float32)
    return np.ascontiguousarray(array, dtype=np.float32 if single else np.float64)


def _keys(name: str, values: npt.ArrayLike | None) -> npt.NDArray[np.int64] | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim != 1:
        raise SchemaError(f"must be one-dimensional, not of shape {array.shape}", column=name)
    if array.dtype.kind in "iub":
        return np.ascontiguousarray(array, dtype=np.int64)
    if array.dtype.kind in "UOS":
        # The labels themselves do not come back from here: their rank in the sorted labels is key enough.
        return np.unique(array, return_inverse=True)[1].astype(np.int64)
    raise SchemaError(f"must hold integers or strings, not {array.dtype}", column=name)


def _unit_order(unit: npt.NDArray[np.int64] | None) -> npt.NDArray[np.intp] | None:
    """Return the order that brings the rows of a unit together, or None if they already are."""
    if unit is None or _core.UnitScan().feed(unit) < 0:
        return None
    return np.argsort(unit, kind="stable")


def _bounds(reward: npt.NDArray[Any], declared: tuple[float, float] | None) -> tuple[float, float]:
    if declared is not None:
        return declared
    low, high = float(np.min(reward)), float(np.max(reward))
    if not (np.isfinite(low) and np.isfinite(high)):
        row = int(np.flatnonzero(~np.isfinite(reward))[0])
        raise SchemaError(
            f"reward is {reward[row]}", column="reward", row=row, remedy="drop the row or log a finite reward"
        )
    return (low, high) if low < high else (low, low + 1.0)


def _named(records: Sequence[Mapping[str, Any]], name: str, level: float, **more: Any) -> Estimate:
    for record in records:
        if record["name"] == name:
            return make_estimate(record, level, **more)
    raise PopeError(f"{name} is not available for these arrays")


def _utility(name: str, arrays: Sequence[npt.ArrayLike], level: float, options: Mapping[str, Any]) -> Estimate:
    target, behavior, reward = arrays
    found = summary(target, behavior, reward, level=level, **options)
    headline = ("worst_case_tail", "delta") if name == "sn_tips" else ("delta",)
    return _named(found["utility"], name, level, headline=headline)


def ips(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Inverse propensity scoring: the mean of ``w r`` over units. Unbiased, and of huge variance.

    Parameters
    ----------
    target_logprob, behavior_logprob, reward : array_like, shape (n,)
        See :func:`summary`, which also takes the options.
    level : float
        Coverage of the interval.

    References
    ----------
    Horvitz & Thompson (1952), JASA 47.
    """
    return _utility("ips", (target_logprob, behavior_logprob, reward), level, options)


def snips(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Self-normalized inverse propensity scoring: ``sum w r / sum w`` over units.

    Parameters as in :func:`ips`.

    References
    ----------
    Swaminathan & Joachims (2015), NeurIPS.
    """
    return _utility("snips", (target_logprob, behavior_logprob, reward), level, options)


def tips(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    tau: float | None = None,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """TIPS, truncated inverse propensity scoring: the mean of ``min(w, tau) r``.

    Parameters as in :func:`ips`, and ``tau``, the truncation level (sqrt(n) times the mean weight by default).

    References
    ----------
    Ionides (2008), JCGS 17.
    """
    return _utility("tips", (target_logprob, behavior_logprob, reward), level, {"tau": tau, **options})


def sn_tips(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    tau: float | None = None,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Self-normalized TIPS, the default estimator, with every interval that there is.

    Parameters as in :func:`tips`. The headline interval is the worst case over the truncated tail.
    """
    return _utility("sn_tips", (target_logprob, behavior_logprob, reward), level, {"tau": tau, **options})


def control_variate(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """IPS with the weights as control variate: best where the policies are close. Parameters as in :func:`ips`."""
    return _utility("cv", (target_logprob, behavior_logprob, reward), level, options)


def psis(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Self-normalized IPS with Pareto-smoothed weights. Parameters as in :func:`ips`.

    References
    ----------
    Vehtari et al. (2024), JMLR 25(72).
    """
    return _utility("psis", (target_logprob, behavior_logprob, reward), level, options)


def baseline_dr(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    prompt_id: npt.ArrayLike,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Leave-one-out baseline: the mean of ``w_k (r_k - b_k) + b_k``, ``b_k`` the mean of the prompt's other rewards.

    Unbiased like IPS, of smaller variance; needs two responses for half of the prompts. Parameters as in :func:`ips`.
    """
    options["prompt_id"] = prompt_id
    return _utility("baseline_dr", (target_logprob, behavior_logprob, reward), level, options)


def _doubly_robust(
    name: str,
    arrays: Sequence[npt.ArrayLike],
    baseline: npt.ArrayLike,
    baseline_mean: npt.ArrayLike,
    level: float,
    options: dict[str, Any],
) -> Estimate:
    return _utility(name, arrays, level, {"baseline": baseline, "baseline_mean": baseline_mean, **options})


def dm(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    baseline: npt.ArrayLike,
    baseline_mean: npt.ArrayLike,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Direct method: the mean of ``baseline_mean``; as good as the reward model. Parameters as in :func:`dr`."""
    arrays = (target_logprob, behavior_logprob, reward)
    return _doubly_robust("dm", arrays, baseline, baseline_mean, level, options)


def dr(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    baseline: npt.ArrayLike,
    baseline_mean: npt.ArrayLike,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Doubly robust: the mean of ``w (r - baseline) + baseline_mean``.

    Parameters
    ----------
    target_logprob, behavior_logprob, reward : array_like, shape (n,)
        See :func:`summary`, which also takes the options.
    baseline : array_like, shape (n,)
        A reward model's prediction for the logged response.
    baseline_mean : array_like, shape (n,)
        The prediction's mean over the target policy's responses to the prompt.
    level : float
        Coverage of the interval.

    References
    ----------
    Dudik, Langford & Li (2011), ICML.
    """
    arrays = (target_logprob, behavior_logprob, reward)
    return _doubly_robust("dr", arrays, baseline, baseline_mean, level, options)


def sndr(
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    *,
    baseline: npt.ArrayLike,
    baseline_mean: npt.ArrayLike,
    level: float = 0.95,
    **options: Any,
) -> Estimate:
    """Doubly robust with a self-normalized correction. Parameters as in :func:`dr`."""
    arrays = (target_logprob, behavior_logprob, reward)
    return _doubly_robust("sndr", arrays, baseline, baseline_mean, level, options)


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
    return _named(prompt[form], name, level, unit=unit)


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
    return _named(found["measures" if form == "pairs" else "control"], name, level, unit=unit)


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


def diagnostics(target_logprob: npt.ArrayLike, behavior_logprob: npt.ArrayLike, **options: Any) -> dict[str, Any]:
    """Return the diagnostics of the weights: ESS, k-hat, missing mass, KL estimates, e-value ...

    Parameters
    ----------
    target_logprob, behavior_logprob : array_like, shape (n,)
        See :func:`summary`, which also takes the options.
    """
    reward = np.zeros(len(np.asarray(target_logprob)))
    found = summary(target_logprob, behavior_logprob, reward, reward_range=(0.0, 1.0), **options)
    return dict(found["diagnostics"])


def effective_sample_size(
    target_logprob: npt.ArrayLike, behavior_logprob: npt.ArrayLike, *, prompt_id: npt.ArrayLike | None = None
) -> float:
    """Kish's effective sample size ``(sum A)^2 / sum A^2`` of the units' mean weights, before any truncation."""
    return float(diagnostics(target_logprob, behavior_logprob, prompt_id=prompt_id)["ess"])


def pareto_k(target_logprob: npt.ArrayLike, behavior_logprob: npt.ArrayLike) -> float | None:
    """Tail index k-hat of the weights; None where there is no tail (equal weights). Above .7 a mean cannot be trusted.

    References
    ----------
    Zhang & Stephens (2009), Technometrics 51; Vehtari et al. (2024), JMLR 25(72).
    """
    value = diagnostics(target_logprob, behavior_logprob)["k_hat"]
    return None if value is None else float(value)


def sequence_logprob(
    token_logprobs: npt.ArrayLike, offsets: npt.ArrayLike, *, threads: int | None = None
) -> npt.NDArray[np.float64]:
    """Sum ragged token log-probabilities to sequence log-probabilities.

    Parameters
    ----------
    token_logprobs : array_like of float, shape (tokens,)
        All rows' tokens, one row after the other (nats).
    offsets : array_like of int, shape (n + 1,)
        Row ``i`` is ``token_logprobs[offsets[i]:offsets[i + 1]]``.
    threads : int, optional
        Threads; the result does not depend on it.

    Returns
    -------
    ndarray of float64, shape (n,)

    Examples
    --------
    >>> sequence_logprob([-1.0, -2.0, -0.5], [0, 2, 3])
    array([-3. , -0.5])
    """
    return _core.sum_tokens(_offsets(offsets), _floats("token_logprobs", token_logprobs), threads)


def _offsets(offsets: npt.ArrayLike) -> npt.NDArray[np.int64]:
    return np.ascontiguousarray(offsets, dtype=np.int64)


def token_sums(
    target: npt.ArrayLike,
    behavior: npt.ArrayLike,
    offsets: npt.ArrayLike,
    *,
    clip: float = 10.0,
    threads: int | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sequence log-ratio, its mean per token, and the sum of token log-ratios clipped to ``[-clip, clip]``.

    Only the first belongs to the target policy; the others are surrogates that estimate different policies, with a bias
    that does not vanish with n (theory, section 1).

    Parameters
    ----------
    target, behavior : array_like of float32, shape (tokens,)
        Token log-probabilities under both policies (nats).
    offsets : array_like of int, shape (n + 1,)
        As in :func:`sequence_logprob`.
    clip : float
        Bound of a token's log-ratio in the third result.
    threads : int, optional
        Threads; the result does not depend on it.
    """
    first, second = (np.ascontiguousarray(values, dtype=np.float32) for values in (target, behavior))
    return _core.token_sums(_offsets(offsets), first, second, clip, threads)


def prompt_scan(
    prompt_id: npt.ArrayLike,
    target_logprob: npt.ArrayLike,
    behavior_logprob: npt.ArrayLike,
    reward: npt.ArrayLike,
    cluster: npt.ArrayLike | None = None,
    *,
    clip: float = 10.0,
    threads: int | None = None,
) -> dict[str, Any]:
    """Take a first look in one pass: IPS, SNIPS and clipped IPS by row, ESS, and plug-in entropies per prompt.

    The plug-in entropy is what practitioners compute; with few responses per prompt it is far too low (theory 2.2), so
    :func:`entropy_within_prompts` is the number to report.

    Parameters
    ----------
    prompt_id : array_like of int, shape (n,)
        Rows of a prompt must stand together.
    target_logprob, behavior_logprob, reward : array_like, shape (n,)
        As in :func:`summary`.
    cluster : array_like of int, shape (n,), optional
        Cluster of each response.
    clip : float
        Weights are clipped here for ``clipped_ips``.
    threads : int, optional
        Threads; the result does not depend on it.

    Returns
    -------
    dict
        ``ips``, ``snips``, ``clipped_ips``, ``ess``, ``max_weight``, ``snips_standard_error`` (clustered by prompt),
        ``entropy_mean``, ``entropy_variance``, ``n_rows``, ``n_prompts``.
    """
    keys = np.ascontiguousarray(prompt_id, dtype=np.int64)
    labels = None if cluster is None else np.asarray(cluster)
    if labels is not None and labels.dtype != np.int32:
        labels = np.ascontiguousarray(labels, dtype=np.int64)
    return _core.prompt_scan(
        keys,
        _floats("target_logprob", target_logprob),
        _floats("behavior_logprob", behavior_logprob),
        _floats("reward", reward),
        labels,
        clip,
        threads,
    )
