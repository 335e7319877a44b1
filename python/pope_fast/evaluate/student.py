"""Student's t distribution, for tests whose degrees of freedom are no integers: no SciPy at run time."""

from __future__ import annotations

import math

__all__ = ["t_quantile", "t_tail"]

_TINY = 1e-300


def t_tail(t: float, df: float) -> float:
    """Return the two-sided p-value of ``t``: the probability of a value at least as far from 0.

    It is I_x(df/2, 1/2) at x = df / (df + t^2), the regularized incomplete beta function, by its continued fraction
    (Lentz's method; Abramowitz & Stegun 26.5.8).
    """
    if math.isnan(t) or df <= 0:
        return math.nan
    x = df / (df + t * t)
    a, b = df / 2, 0.5
    if x <= 0 or math.isinf(t):
        return 0.0
    if x >= 1:
        return 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    front = math.exp(log_front)
    if x < (a + 1) / (a + b + 2):
        return min(1.0, front * _fraction(a, b, x) / a)
    return max(0.0, 1.0 - front * _fraction(b, a, 1 - x) / b)


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 + term * d
            c = 1.0 + term / c
            d = 1.0 / (d if abs(d) > _TINY else _TINY)
            c = c if abs(c) > _TINY else _TINY
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def t_quantile(level: float, df: float) -> float:
    """Return the half-width of a two-sided interval, in standard errors: ``t_tail`` of it is ``1 - level``."""
    if not 0 < level < 1:
        raise ValueError(f"level must be within 0 and 1, not {level}")
    if df <= 0:
        return math.inf
    low, high = 0.0, 1.0
    while t_tail(high, df) > 1 - level:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_tail(middle, df) > 1 - level else (low, middle)
    return high
