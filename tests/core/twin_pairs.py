"""The twin of a summary's diversity from embeddings."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from twin_diversity import WithinPrompts
from twin_units import Array, Record, around, log_smoothing, named, quantile, scaled, student, within

from pope_fast.reference import intervals as iv
from pope_fast.reference import pairs as pr
from pope_fast.reference._types import Interval, PointEstimate

FUNCTIONS = {"rao": (pr.rao, pr.rao_control), "vendi": (pr.vendi, pr.vendi_control)}


class WithPairs(WithinPrompts):
    """Rao's entropy and the Vendi score."""

    def pair_moments(self, logw: Array) -> pr.PairMoments:
        return pr.pair_moments(logw, self.rows["embedding"], self.unit, self.count)

    @cached_property
    def pair_cut(self) -> pr.PairMoments | None:
        if self.rows["embedding"] is None or np.count_nonzero(self.sizes >= 2) < 2:
            return None
        moments = self.pair_moments(self.cut)
        return moments if moments.b.sum() > 0 else None

    @cached_property
    def pair_headline(self) -> str | None:
        """The measure from embeddings that is the headline."""
        if self.diversity in FUNCTIONS:
            return self.diversity
        return "rao" if self.diversity == "auto" and self.where[0] is None and self.pair_cut is not None else None

    @staticmethod
    def kept_moments(moments: pr.PairMoments, kept: Array) -> pr.PairMoments:
        return moments._replace(a=moments.a[kept], b=moments.b[kept], q1=moments.q1[kept], q2=moments.q2[kept])

    def pair_statistic(self, name: str, form: int = 0) -> Callable[[Array], float]:
        """A measure as a statistic of the units kept among those with pairs."""
        moments = self.pair_cut
        assert moments is not None

        def statistic(kept: Array) -> float:
            with np.errstate(invalid="ignore", divide="ignore"):
                found = FUNCTIONS[name][form](self.kept_moments(moments, kept))
            return found.value if isinstance(found, PointEstimate) else found

        return statistic

    def pair_point(self, name: str) -> PointEstimate:
        assert self.pair_cut is not None
        return FUNCTIONS[name][0](self.pair_cut)

    def of_mean(self, name: str, low: float, high: float) -> Interval:
        """The measure between two values of the mean similarity (or its square)."""
        if name == "rao":
            return within((1.0 - high, 1.0 - low), 0.0, 1.0)
        width = self.rows["embedding"].shape[1]
        return within(tuple(1.0 / max(s, 1.0 / width) for s in (high, low)), 1.0, width)

    def pair_tail(self, name: str, t: float, share: float) -> Interval:
        moments = self.pair_cut
        assert moments is not None
        q = moments.q1 if name == "rao" else moments.q2
        s = float(q.mean() / moments.b.mean())
        residual = (q - s * moments.b) / moments.b.mean()
        half = t * PointEstimate(s, residual).standard_error * (1.0 - share)
        inside = (1.0 - share) ** 2
        least = -1.0 if name == "rao" else 0.0
        return self.of_mean(name, inside * s + (1.0 - inside) * least - half, inside * s + (1.0 - inside) + half)

    def pair_bounds(self, name: str, level: float, *, certified: bool) -> Interval:
        logw = self.logw if certified else self.robust_cut
        top = float(logw.max())
        variables = pr.bound_variables(self.pair_moments(logw - top))
        factor, alpha = self.kappa**-2, (1.0 - level) / 2.0
        bounds = []
        for values in variables:
            x = iv.floor_mantissa(scaled(np.maximum(values, 0.0), 2.0 * top))
            bounds.append(log_smoothing(x, alpha, factor) if certified else max(iv.one_sided_t(x * factor, alpha), 0.0))
        apart, near, same, unlike = bounds
        if name == "rao":
            return Interval(apart, min(2.0 - near, 1.0))
        width = self.rows["embedding"].shape[1]
        low = 1.0 / (1.0 - unlike) if unlike < 1.0 else np.inf
        return Interval(low, 1.0 / max(same, 1.0 / width))

    def pair_record(self, name: str) -> Record:
        moments, point, level = self.pair_cut, self.pair_point(name), self.level
        assert moments is not None
        n = len(moments.b)
        every = np.ones(n, dtype=np.bool_)
        t = quantile(level, n - 1)
        if name == "rao":
            found = [("delta", around(point.value, t * point.standard_error))]
        else:
            found = [("delta", self.pair_tail(name, t, 0.0))]
        kept = moments.a.sum() / self.means(np.exp(self.rel))[moments.used].sum()
        found.append(("worst_case_tail", self.pair_tail(name, t, float(np.clip(1.0 - kept, 0.0, 1.0)))))
        j = self.jackknife_on(moments.used, self.pair_statistic(name))
        if j is not None:
            found.append(("jackknife", around(j.value, quantile(level, j.degrees_of_freedom) * j.standard_error)))
        found += [(method, self.pair_bounds(name, level, certified=method == "certified")) for method in BOUNDS]
        assert self.pair_statistic(name)(every) == point.value
        return named(name, point.value, point.standard_error, found)

    def pairs(self) -> Record | None:
        moments = self.pair_cut
        if moments is None:
            return None
        control = []
        for name in FUNCTIONS:
            statistic = self.pair_statistic(name, 1)
            j = self.jackknife_on(moments.used, statistic)
            error, df = (None, 0.0) if j is None else (j.standard_error, j.degrees_of_freedom)
            whole = statistic(np.ones(len(moments.b), dtype=np.bool_))
            control.append(student(name, whole, error, "jackknife", self.level, df))
        return {
            "units_used": int(np.count_nonzero(moments.used)),
            "units_left_out": int(np.count_nonzero(~moments.used)),
            "measures": [self.pair_record(name) for name in FUNCTIONS],
            "control": control,
        }


BOUNDS = ("robust", "certified")
