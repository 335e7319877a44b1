"""The twin of a summary's diversity: over the whole log and within prompts."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from twin_units import (
    Array,
    Cuts,
    Record,
    around,
    ends,
    log_smoothing,
    named,
    quantile,
    scaled,
    student,
    within,
    x_ln_x,
)

from pope_fast.reference import diversity as dv
from pope_fast.reference import intervals as iv
from pope_fast.reference import marginal as mg
from pope_fast.reference._types import Interval, PointEstimate
from pope_fast.reference.units import expand_draws


class OverLog(Cuts):
    """Entropy of the marginal cluster distribution."""

    @cached_property
    def table(self) -> tuple[Array, Array]:
        labels, table = mg.cluster_table(self.cut, self.rows["cluster"], self.unit, self.count)
        return labels, table

    def over_log(self) -> Record:
        labels, table = self.table
        level, c = self.level, len(labels)
        most = math.log(c)
        plug_in, bias = mg.entropy_plug_in(table).value, mg.miller_madow_bias(table)
        j = self.jackknife(lambda kept: mg.entropy(mg.shares(table[kept])))
        value = min(max(plug_in if j is None else j.value, 0.0), most)
        error, df = (None, 0.0) if j is None else (j.standard_error, j.degrees_of_freedom)
        entropy = student("entropy", value, error, "jackknife", level, df)
        if error is not None:
            tail = self.marginal_tail(value, quantile(level, df) * error)
            entropy["intervals"].append({"method": "worst_case_tail", "interval": ends(*tail)})
        for method, certified in (("robust", False), ("certified", True)):
            interval = self.mass_bounds(level, certified=certified)
            if interval is not None:
                entropy["intervals"].append({"method": method, "interval": ends(*interval)})
        draws = np.zeros(c)
        m = np.ones(len(self.r)) if self.count is None else self.count
        index = np.searchsorted(labels, self.rows["cluster"])
        np.add.at(draws, index, m)
        units = np.array([len(np.unique(self.codes[index == i])) for i in range(c)])
        shares = mg.shares(table)
        clusters = sorted(
            (
                {
                    "key": int(labels[i]),
                    "target": shares[i],
                    "behavior": draws[i] / draws.sum(),
                    "units": int(units[i]),
                }
                for i in range(c)
            ),
            key=lambda record: (-record["target"], record["key"]),
        )
        return {
            "entropy": entropy,
            "plug_in": plug_in,
            "miller_madow": min(max(plug_in - bias, 0.0), most),
            "bias": bias,
            # Of the weight, what lies in clusters that occur in no other unit, whatever weights those have.
            "unseen_mass": float(table[:, units == 1].sum() / table.sum()),
            "n_clusters": c,
            "clusters": clusters[:100],
        }

    def marginal_tail(self, value: float, half: float) -> Interval:
        m, most = self.truncated_share, math.log(len(self.table[0]))
        binary = -float(np.sum(x_ln_x(np.array([m, 1.0 - m]))))
        low, high = (value - half) * (1.0 - m), (value + half) * (1.0 - m) + m * most + binary
        return within((low, high), 0.0, most)

    def mass_bounds(self, level: float, *, certified: bool) -> Interval | None:
        """Entropies that are possible given lower bounds for all cluster masses, together at ``level``."""
        logw = self.logw if certified else self.robust_cut
        top = float(logw.max())
        labels, table = mg.cluster_table(logw, self.rows["cluster"], self.unit, self.count)
        groups, sizes = np.unique(self.bucket, return_counts=True)
        if len(groups) < 2:
            return None
        alpha = (1.0 - level) / len(labels)
        factor = top - math.log(self.kappa)
        sums = scaled(np.array([table[self.bucket == g].sum(axis=0) for g in groups]), factor)
        if certified:
            lower = np.array([log_smoothing(sums[:, i] / sizes, alpha) for i in range(len(labels))])
        else:
            mean = sums.sum(axis=0) / self.n
            square = np.sum((sums - sizes[:, None] * mean) ** 2, axis=0)
            g = len(groups)
            error = np.sqrt(square * g / (g - 1)) / self.n
            lower = np.maximum(mean - quantile(1.0 - 2.0 * min(alpha, 0.5), g - 1) * error, 0.0)
        return self.entropy_range(lower) if lower.sum() <= 1.0 else None

    @staticmethod
    def entropy_range(lower: Array) -> Interval:
        """Least with all free mass on one cluster, most with the smallest ones filled up to one level."""
        free = 1.0 - lower.sum()
        low = min(mg.entropy(lower + free * (np.arange(len(lower)) == i)) for i in range(len(lower)))
        below, above = 0.0, 1.0
        for _ in range(200):
            middle = 0.5 * (below + above)
            if np.maximum(lower, middle).sum() > 1.0:
                above = middle
            else:
                below = middle
        return Interval(max(low, 0.0), mg.entropy(np.maximum(lower, below)))

    def cross_entropy_bound(self, level: float) -> float | None:
        """A reference from every other bucket, its cost measured on the rest, and the other way round."""
        if self.top - math.log(self.kappa) > 709.0:
            return None  # Weights that no double holds: there is no scale on which to bound a cost.
        _, table = mg.cluster_table(self.rel, self.rows["cluster"], self.unit, self.count)
        bounds = []
        for parity in (0, 1):
            odd = self.bucket % 2 != parity
            mass = table[odd].sum(axis=0)
            if mass.sum() <= 0:
                return None
            cost = -np.log(0.95 * mass / mass.sum() + 0.05 / len(mass))
            most = cost.max()
            saved = [
                scaled((table[self.bucket == b] @ (most - cost)).mean(), self.top) / self.kappa
                for b in np.unique(self.bucket[~odd])
            ]
            bounds.append(most - log_smoothing(np.array(saved), (1.0 - level) / 2.0) if saved else most)
        return max(min(bounds), 0.0)


class WithinPrompts(OverLog):
    """The zeta family."""

    @cached_property
    def by_rule(self) -> tuple[str | None, int]:
        """Level of the headline diversity from clusters, and its order, if nothing is asked for."""
        if self.rows["cluster"] is None:
            return None, 0
        marginal = self.log.cluster_scope == "log"
        per_unit = np.ones(self.n) if self.log.unit is None else self.sizes
        repeated = np.count_nonzero(per_unit >= 2)
        if repeated >= 2 and (repeated >= self.repeated_share * self.n or not marginal):
            for order in range(self.diversity_order, 0, -1):
                units = np.count_nonzero(per_unit >= order + 1)
                if units >= 2 and units >= self.order_share * repeated:
                    return "prompt", order
            return "prompt", 1
        return ("marginal", 0) if marginal else (None, 0)

    @cached_property
    def where(self) -> tuple[str | None, int]:
        """Level of the headline diversity from clusters, and its order."""
        return ("marginal", 0) if self.diversity == "entropy" else self.by_rule

    def headline(self, order: int) -> str:
        """The measure that is the headline within prompts."""
        return f"H_{order}" if self.diversity in ("auto", "h_m") else self.diversity

    @staticmethod
    def measures(order: int) -> dict[str, tuple[float, list[float]]]:
        """Constant and coefficients of zeta_1, zeta_2 .. of every measure."""
        found: dict[str, tuple[float, list[float]]] = {"gini_simpson": (0.0, [1.0])}
        found |= {f"coverage@{m}": (1.0, [1.0] * (m - 1)) for m in range(2, order + 2)}
        return found | {f"H_{m}": (0.0, [1.0 / v for v in range(1, m + 1)]) for m in range(1, order + 1)}

    def family(self, logw: Array, form: dv.Form, order: int) -> dv.WithinPrompt:
        shifted = logw - logw.max()
        return dv.within_prompt(shifted, self.rows["cluster"], self.unit, self.count, max_order=order, form=form)

    @cached_property
    def moments(self) -> tuple[Array, dict[str, Array]]:
        """Per unit with enough draws: A, and what both forms of the zeta family are made of; truncated."""
        order = self.by_rule[1]
        used = self.sizes >= order + 1
        draws = dv._draws_by_unit(self.cut, self.rows["cluster"], self.unit, self.count)
        kept = [d for d, keep in zip(draws, used, strict=True) if keep]
        p = np.array([[dv.collision_moment(w, c, d) for d in range(2, order + 2)] for w, c in kept])
        z = np.array([[dv.zeta_unit_kernel(w, c, v, "product") for v in range(1, order + 1)] for w, c in kept])
        return used, {"a": self.means(np.exp(self.cut))[used], "control": p, "product": z}

    def zeta(self, form: str, kept: Array) -> Array:
        """zeta_1 .. zeta_M of the units kept, globally self-normalized."""
        _, moments = self.moments
        a = moments["a"][kept].mean()
        power = moments[form][kept].mean(axis=0) / a ** np.arange(2, moments[form].shape[1] + 2)
        if form == "product":
            return power
        sums = [1.0, *power]
        return np.array([sum((-1) ** s * math.comb(v, s) * sums[s] for s in range(v + 1)) for v in range(1, len(sums))])

    def prompt(self, order: int) -> Record:
        used, _ = self.moments
        every = np.ones(np.count_nonzero(used), dtype=np.bool_)
        control = self.family(self.cut, "control", order)
        kept = self.means(np.exp(self.cut))[used].sum() / self.means(np.exp(self.rel))[used].sum()
        share = float(np.clip(1.0 - kept, 0.0, 1.0))
        records: dict[str, list[Record]] = {"control": [], "product": []}
        for name, (offset, zeta) in self.measures(order).items():
            most = offset + sum(zeta)

            def clamped(kept: Array, zeta: list[float] = zeta, offset: float = offset, most: float = most) -> float:
                value = offset + float(np.dot(zeta, self.zeta("control", kept)[: len(zeta)]))
                return min(max(value, offset), most)

            point = self.measure_of(control, name)
            value = point.value
            half = quantile(self.level, len(every) - 1) * point.standard_error
            found = [("delta", around(value, half))]
            tail = self.measure_tail(offset, zeta, self.zeta("control", every), half, share)
            found.append(("worst_case_tail", tail))
            j = self.jackknife_on(used, clamped)
            if j is not None:
                half = quantile(self.level, j.degrees_of_freedom) * j.standard_error
                found.append(("jackknife", around(j.value, half)))
            if name.startswith("H_") or len(zeta) == 1:
                found.append(("robust", self.measure_bounds(offset, zeta, order, self.level, certified=False)))
                found.append(("certified", self.measure_bounds(offset, zeta, order, self.level, certified=True)))
            records["control"].append(named(name, value, point.standard_error, found))

            def product(kept: Array, zeta: list[float] = zeta, offset: float = offset) -> float:
                return offset + float(np.dot(zeta, self.zeta("product", kept)[: len(zeta)]))

            j = self.jackknife_on(used, product)
            error, df = (None, 0.0) if j is None else (j.standard_error, j.degrees_of_freedom)
            records["product"].append(student(name, product(every), error, "jackknife", self.level, df))
        return {
            "order": order,
            "units_used": int(np.count_nonzero(used)),
            "units_left_out": int(np.count_nonzero(~used)),
            **records,
            "sandwich": self.sandwich(order),
        }

    @staticmethod
    def measure_of(family: dv.WithinPrompt, name: str) -> PointEstimate:
        if name == "gini_simpson":
            return dv.gini_simpson(family)
        if name.startswith("coverage@"):
            return dv.coverage(family, int(name.removeprefix("coverage@")))
        return dv.harmonic_entropy(family, int(name.removeprefix("H_")))

    def measure_tail(self, offset: float, zeta: list[float], values: Array, half: float, share: float) -> Interval:
        """Tuples of draws that are all inside the truncated policy are known; others may have any zeta."""
        inside = (1.0 - share) ** np.arange(2, len(zeta) + 2)
        low = offset + float(np.sum(zeta * inside * values[: len(zeta)]))
        free = float(np.sum(zeta * (1.0 - inside)))
        half *= 1.0 - share
        return within((low - half, low + free + half), offset, offset + sum(zeta))

    @cached_property
    def _bound_variables(self) -> dict[bool, tuple[Array, Array]]:
        """X_M and Y_M of every unit with enough draws, for M up to the order; truncated at sqrt n or not."""
        order = self.by_rule[1]
        found = {}
        for certified in (False, True):
            logw = self.logw if certified else self.robust_cut
            x, y = np.zeros((self.n, order)), np.zeros((self.n, order))
            for i in np.flatnonzero(self.sizes >= order + 1):
                rows = self.codes == i
                top = float(logw[rows].max())
                if top == -np.inf:
                    continue
                c = self.rows["cluster"][rows]
                w = np.exp(logw[rows] - top)
                if self.count is not None:
                    w, c = expand_draws(self.count[rows], w, c)
                total = np.zeros(2)
                for v in range(1, order + 1):
                    z = dv.zeta_unit_kernel(w, c, v, "product")
                    total += scaled([z / v, self.shared_tuples(w, c, v) / v], (v + 1) * top)
                    x[i, v - 1], y[i, v - 1] = total
            found[certified] = x, y
        return found

    @staticmethod
    def shared_tuples(w: Array, c: Array, order: int) -> float:
        """``T_v - Z_v``: zero if no two draws share a cluster, else the difference."""
        if len(np.unique(c)) == len(c):
            return 0.0
        return max(dv.total_moment(w, order) - dv.zeta_unit_kernel(w, c, order, "product"), 0.0)

    def measure_bounds(
        self, offset: float, zeta: list[float], units_order: int, level: float, *, certified: bool
    ) -> Interval:
        order = len(zeta)
        used = self.sizes >= units_order + 1
        factor = self.kappa ** -(order + 1) if self.kappa > 1.0 else self.kappa**-2
        bounds = []
        for values in self._bound_variables[certified]:
            x = iv.floor_mantissa(values[used, order - 1]) * factor
            alpha = (1.0 - level) / 2.0
            bound = iv.log_smoothing_lower(x, alpha, floored=False) if certified else iv.one_sided_t(x, alpha)
            bounds.append(max(bound, 0.0))
        return Interval(offset + bounds[0], offset + sum(zeta) - bounds[1])

    def sandwich(self, order: int) -> Record | None:
        if self.log.cluster_scope != "log":
            return None
        gini = self.measure_bounds(0.0, [1.0], order, self.level, certified=True)
        high = self.cross_entropy_bound(1.0 - (1.0 - self.level) / 2.0)
        return None if high is None else ends(dv.renyi_two_lower(min(max(gini.low, 0.0), 1.0 - 1e-12)), high)
