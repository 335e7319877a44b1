"""Log-probs that are means over tokens: they do not grow with the length of the response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pope_fast.log.inspection.repeats import Likeness
from pope_fast.log.inspection.sample import Rows
from pope_fast.log.inspection.signs import AVERAGED, Sign
from pope_fast.log.scatter import mixed_keys

__all__ = ["averaged_signs"]

_GROUPS = 32
_FEWEST_ROWS = 100
_SPREAD = 0.15  # least standard deviation of the logarithms of the lengths
_FLAT, _SURELY_FLAT = 0.3, 0.5  # |logprob| ~ length^slope: the slope of a mean, and its upper limit
_GROWS = 0.6  # the least slope of a sum
_PER_TOKEN = 5.0  # nats: the largest median that a mean over tokens has
_SHRINKS = -0.15  # spread of the log-weights ~ length^slope: that of means of independent parts is -1/2
_DISTINCT = 0.5  # share of different log-probs below which they are those of a menu
_FEWEST_PAIRS = 10.0
_IMPOSSIBLE = 0.05  # share of prompts whose probabilities add to more than 1


@dataclass(frozen=True, slots=True)
class _Slope:
    value: float
    error: float

    @property
    def flat(self) -> bool:
        return self.value < _FLAT and self.value + 3 * self.error < _SURELY_FLAT

    @property
    def grows(self) -> bool:
        return self.value - 3 * self.error > _GROWS


def averaged_signs(
    rows: Rows,
    targets: Mapping[str, str],
    likeness: Likeness | None,
    columns: Mapping[str, str],
    behavior_column: str | None,
    measure: str,
) -> list[Sign]:
    """Find log-probs that are means over tokens.

    That ``|logprob|`` does not grow with the length is no proof: it does not in a menu of texts either. Where it grows
    for one of the two policies and not for the other, that other one is averaged. Where it grows for neither, a second
    sign is needed: that responses whose means are taken for log-probs would have to repeat and do not, or that the
    log-weights shrink with the length, as means do.

    Parameters
    ----------
    rows : dict of str to ndarray
        A sample of rows, with ``behavior``, ``length`` and the columns of ``targets``.
    targets : mapping of str to str
        Policy -> its column in ``rows``.
    likeness : Likeness or None
        Pairs of responses to a prompt that are alike.
    columns, behavior_column
        Names for the signs.
    measure : str
        What the length is counted in.
    """
    if "length" not in rows:
        return []
    usable = (rows["length"] >= 1) & (rows["behavior"] < -1e-9)
    rows = {name: values[usable] for name, values in rows.items()}
    n = len(rows["behavior"])
    if n < _FEWEST_ROWS:
        return []
    size = np.log(rows["length"])
    if size.std() < _SPREAD:
        return []
    group = (mixed_keys(rows["unit"] if "unit" in rows else rows["row"]) >> np.uint64(59)).astype(np.int64)
    ours = _slope(size, np.log(-rows["behavior"]), group)
    # The log-probs of a menu are few, and their slope is that of its few lengths.
    many = np.unique(rows["behavior"]).size >= _DISTINCT * n
    flat_behavior = many and ours.flat and np.median(-rows["behavior"]) <= _PER_TOKEN
    both, single = [], []
    for policy, name in targets.items():
        target = rows[name]
        there = np.isfinite(target) & (target < -1e-9)
        if there.sum() < _FEWEST_ROWS:
            continue
        theirs = _slope(size[there], np.log(-target[there]), group[there])
        various = np.unique(target[there]).size >= _DISTINCT * there.sum()
        flat_target = various and theirs.flat and np.median(-target[there]) <= _PER_TOKEN
        if flat_behavior and various and theirs.grows:
            single.append((policy, "the behavior policy", behavior_column, ours))
        elif flat_target and many and ours.grows:
            single.append((policy, "this policy", columns.get(policy), theirs))
        elif flat_behavior and flat_target and _second_sign(rows, target, there, size, group, likeness):
            both.append(policy)
    signs = [
        _sign((policy,), f"those of {whose}", column, slope, n, measure, _other(whose))
        for policy, whose, column, slope in single
    ]
    if both:
        signs.append(_sign(tuple(both), "those of both policies", behavior_column, ours, n, measure, ""))
    return signs


def _other(whose: str) -> str:
    return "this policy" if whose == "the behavior policy" else "the behavior policy"


def _sign(
    policies: tuple[str, ...], whose: str, column: str | None, slope: _Slope, n: int, measure: str, other: str
) -> Sign:
    grown = 2.0**slope.value - 1.0
    contrast = f", and those of {other} are sums" if other else ""
    message = (
        f"the log-probs are means over tokens, not sums: {whose} grow by {max(grown, 0.0):.0%} where the response is "
        f"twice as long (by {measure}, in {n:,} rows), where a sum grows by about 100%{contrast}. Weights of means are "
        "those of no policy"
    )
    return Sign(AVERAGED, "unreliable", message, column, share=slope.value, policies=policies)


def _second_sign(
    rows: Rows,
    target: NDArray[np.float64],
    there: NDArray[np.bool_],
    size: NDArray[np.float64],
    group: NDArray[np.int64],
    likeness: Likeness | None,
) -> bool:
    behavior = rows["behavior"]
    if likeness is not None and likeness.expected >= _FEWEST_PAIRS:
        if likeness.equal > 0.1 * likeness.expected:
            return False
        # Means near -1 would make every third pair alike, and probabilities of different responses add to more than 1.
        if likeness.impossible > _IMPOSSIBLE:
            return True
    weight = (target - behavior)[there]
    spread = np.abs(weight - np.median(weight))
    seen = spread > 0
    if seen.sum() < _FEWEST_ROWS:
        return False
    shrinks = _slope(size[there][seen], np.log(spread[seen]), group[there][seen])
    return shrinks.value + 3 * shrinks.error < _SHRINKS


def _slope(x: NDArray[np.float64], y: NDArray[np.float64], group: NDArray[np.int64]) -> _Slope:
    """Fit y by x; the error is a jackknife over groups of prompts."""
    x = x - x.mean()
    sums = np.stack([np.bincount(group, part, _GROUPS) for part in (np.ones_like(x), x, y, x * x, x * y)])
    total = sums.sum(axis=1, keepdims=True)

    def fit(part: NDArray[Any]) -> NDArray[Any]:
        n, sx, sy, sxx, sxy = part
        return np.asarray((n * sxy - sx * sy) / (n * sxx - sx * sx))

    with np.errstate(divide="ignore", invalid="ignore"):
        without = fit(total - sums)
        value = float(fit(total)[0])
    if not np.isfinite(without).all() or not np.isfinite(value):
        return _Slope(np.inf, np.inf)
    spread = float(np.sqrt((_GROUPS - 1) / _GROUPS * ((without - without.mean()) ** 2).sum()))
    return _Slope(value, spread)
