"""The summary of one policy as the NumPy twins see it: the same nested dictionaries, every number of them.

Built of :mod:`pope_fast.reference` wherever it has the function; what is only a combination of those
(intervals of V, bounds on entropies by cluster, the choice between diversity levels) is written out from its
definition. Weights are relative to the largest, with one factor ``exp(top)``, so that they never overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
from twin_pairs import WithPairs
from twin_units import Array, Record, around, ends, log_smoothing, named, quantile, scaled, student, within

from pope_fast.reference import diagnostics as dg
from pope_fast.reference import intervals as iv
from pope_fast.reference import marginal as mg
from pope_fast.reference import tails, utility, welfare
from pope_fast.reference._types import Interval, PointEstimate
from pope_fast.reference.units import counts_or_ones, unit_means
from pope_fast.reference.value import spread, variance_decomposition


class Twin(WithPairs):
    """Everything about one policy of a log."""

    # Utility.

    def affine(self, estimate: PointEstimate) -> tuple[float, float]:
        return self.low + self.span * estimate.value, self.span * estimate.standard_error

    @cached_property
    def sn_tips_point(self) -> PointEstimate:
        return utility.sn_tips(self.cut, self.r, self.unit, self.count, tau=math.inf)

    def utility(self) -> list[Record]:
        rows, level, df = self.rows, self.level, self.n - 1.0
        u, m = self.unit, self.count
        raw = self.low + self.span * self.r
        found: dict[str, tuple[float, float]] = {}

        def plain(estimate: PointEstimate) -> tuple[float, float]:
            value, error = scaled([estimate.value, estimate.standard_error], self.top)
            return float(value), float(error)

        found["ips"] = plain(utility.ips(self.rel, raw, u, m))
        found["snips"] = self.affine(utility.snips(self.rel, self.r, u, m))
        found["tips"] = plain(utility.tips(self.cut, raw, u, m, tau=math.inf))
        found["sn_tips"] = self.affine(self.sn_tips_point)
        found["psis"] = self.affine(self.psis())
        repeated = self.log.unit is not None and 2 * np.count_nonzero(self.sizes >= 2) >= self.n
        moderate = abs(self.top) < 600.0
        arguments = self.logw, self.r, u, m
        found["cv"] = self.affine(utility.control_variate(*arguments)) if moderate else self.far_cv()
        if repeated:
            found["baseline_dr"] = self.affine(utility.baseline_dr(*arguments)) if moderate else self.far_baseline_dr()
        if rows["baseline"] is not None:
            model = rows["baseline"], rows["baseline_mean"]
            direct = utility.direct_method(model[1], u, m)
            found["dm"] = self.affine(direct)
            found["dr"] = (
                self.affine(utility.doubly_robust(self.logw, self.r, *model, u, m))
                if moderate
                else self.mixed(utility.ips(self.rel, self.r - model[0], u, m), direct)
            )
            found["sndr"] = self.affine(utility.self_normalized_dr(self.rel, self.r, *model, u, m))
        order = ("ips", "snips", "tips", "sn_tips", "cv", "psis", "baseline_dr", "dm", "dr", "sndr")
        return [
            self.sn_tips(*found[name]) if name == "sn_tips" else student(name, *found[name], "delta", level, df)
            for name in order
            if name in found
        ]

    def mixed(self, weighted: PointEstimate, plain: PointEstimate) -> tuple[float, float]:
        """A part of degree 1 in the weights, given relative to the largest, and one without weights."""
        value = float(scaled(weighted.value, self.top)) + plain.value
        influence = scaled(weighted.influence, self.top) + plain.influence
        return self.affine(PointEstimate(value, influence))

    def far_cv(self) -> tuple[float, float]:
        """The control variate where exp(top) is no double: the coefficient is free of scale."""
        w = np.exp(self.rel)
        a, n = self.means(w), self.means(w * self.r)
        b = float(np.mean((n - n.mean()) * (a - a.mean())) / np.var(a))
        rest = n - b * a
        return self.mixed(PointEstimate(float(rest.mean()), rest - rest.mean()), PointEstimate(b, np.zeros(self.n)))

    def far_baseline_dr(self) -> tuple[float, float]:
        m = counts_or_ones(self.count, len(self.r))
        total = np.bincount(self.codes, m * self.r)[self.codes]
        size = self.sizes[self.codes]
        baseline = np.where(size > 1, (total - self.r) / np.maximum(size - 1.0, 1.0), 0.0)
        plain = self.means(baseline)
        weighted = utility.ips(self.rel, self.r - baseline, self.unit, self.count)
        return self.mixed(weighted, PointEstimate(float(plain.mean()), plain - plain.mean()))

    def psis(self) -> PointEstimate:
        if self.tail_capacity < self.n:
            raise ValueError("the twin smooths the whole tail")
        return utility.psis(self.rel, self.r, self.unit, self.count)

    def sn_tips(self, value: float, error: float) -> Record:
        point, level = self.sn_tips_point, self.level
        found: list[tuple[str, Interval]] = [("delta", iv.delta(point, level))]
        share = self.truncated_share
        low, high = iv.delta(point, level)
        found.append(("worst_case_tail", Interval(low * (1.0 - share), high * (1.0 - share) + share)))
        w = np.exp(self.cut)
        a, n = self.means(w), self.means(w * self.r)
        j = self.jackknife(lambda kept: float(n[kept].sum() / a[kept].sum()))
        if j is not None:
            found.append(("jackknife", around(j.value, quantile(level, j.degrees_of_freedom) * j.standard_error)))
        found += [("robust", self.robust_utility(level)), ("certified", self.certified_utility(level))]
        ends_ = [(name, i if i[0] > i[1] else within(i, 0.0, 1.0)) for name, i in found]
        to_reward = [(name, (self.low + self.span * i[0], self.low + self.span * i[1])) for name, i in ends_]
        return named("sn_tips", value, error, to_reward)

    def robust_utility(self, level: float) -> Interval:
        low, high = iv.mirrored_truncated_t(
            self.robust_cut - math.log(self.kappa), self.r, self.unit, self.count, level=level, tau=math.inf
        )
        return Interval(max(low, 0.0), min(high, 1.0))

    def certified_utility(self, level: float) -> Interval:
        w, factor, alpha = np.exp(self.rel), 1.0 / self.kappa, (1.0 - level) / 2.0
        low, high = (log_smoothing(scaled(self.means(w * f), self.top), alpha, factor) for f in (self.r, 1.0 - self.r))
        return Interval(low, 1.0 - high)

    # Value.

    def d_statistic(self) -> Callable[[Array], float]:
        """Headline diversity as a statistic of the units kept (over the log: plug-in)."""
        level, order = self.where
        if self.pair_headline is not None:
            assert self.pair_cut is not None
            with_pairs, of_pairs = self.pair_cut.used, self.pair_statistic(self.pair_headline)
            return lambda kept: of_pairs(kept[with_pairs])
        if level == "marginal":
            _, table = self.table
            return lambda kept: mg.entropy(mg.shares(table[kept]))
        used, _ = self.moments
        offset, zeta = self.measures(order)[self.headline(order)]
        weights = np.array(zeta)

        def statistic(kept: Array) -> float:
            value = offset + float(weights @ self.zeta("control", kept[used])[: len(weights)])
            return min(max(value, offset), offset + float(weights.sum()))

        return statistic

    def u_statistic(self) -> Callable[[Array], float]:
        w = np.exp(self.cut)
        a, n = self.means(w), self.means(w * self.r)
        return lambda kept: self.low + self.span * float(n[kept].sum() / a[kept].sum())

    def variance(self) -> Record | None:
        level, order = self.where
        weight = self.diversity_weight
        if level is None and self.pair_headline is None:
            return None
        if level == "prompt" or self.pair_headline is not None:
            if self.pair_headline is not None:
                assert self.pair_cut is not None
                h, with_draws = self.pair_point(self.pair_headline), self.pair_cut.used
            else:
                family = self.family(self.cut, "control", order)
                h, with_draws = self.measure_of(family, self.headline(order)), family.used
            u = PointEstimate(self.sn_tips_point.value, self.span * self.sn_tips_point.influence)
            d = PointEstimate(h.value, spread(h.influence, with_draws))
            used = np.count_nonzero(with_draws)
            norm = math.sqrt((self.n - 1) * self.n * (used - 1) * used)
            covariance = float(np.sum(u.influence[with_draws] * h.influence)) / norm
            if with_draws.all():
                parts = variance_decomposition(u, d, 1.0)
                assert math.isclose(parts.covariance, 2 * covariance, rel_tol=1e-9, abs_tol=1e-15)
            var_u, var_d = u.standard_error**2, h.standard_error**2
            method = "delta"
        else:
            d_of = self.d_statistic()
            u_of = self.u_statistic()
            joint = [self.jackknife(f) for f in (u_of, d_of, lambda kept: u_of(kept) + d_of(kept))]
            if any(j is None for j in joint):
                return None
            var_u, var_d, var_sum = (j.standard_error**2 for j in joint if j is not None)
            covariance = (var_sum - var_u - var_d) / 2.0
            method = "jackknife"
        sd_u, sd_d = math.sqrt(var_u), weight * math.sqrt(var_d)
        return {
            "utility": var_u,
            "diversity": var_d,
            "covariance": covariance,
            "total": max(var_u + weight**2 * var_d + 2.0 * weight * covariance, 0.0),
            "lower_bound": (sd_u - sd_d) ** 2,
            "upper_bound": (sd_u + sd_d) ** 2,
            "method": method,
        }

    def value(self, u: Record, d: Record | None, variance: Record | None) -> Record:
        if d is None:
            return u | {"name": "value"}
        weight, level = self.diversity_weight, self.level
        where, order = self.where
        value = u["value"] + weight * d["value"]
        if variance is None:
            record = named("value", value, None, [])
        else:
            over_log = where == "marginal" and self.pair_headline is None
            df = len(np.unique(self.bucket)) - 1 if over_log else self.n - 1
            error = math.sqrt(variance["total"])
            record = student("value", value, error, variance["method"], level, df)
            share = self.truncated_share
            half = quantile(level, df) * error * (1.0 - share)
            point = (u["value"] - self.low) / self.span
            low, high = within((point * (1.0 - share), point * (1.0 - share) + share), 0.0, 1.0)
            if self.pair_headline is not None:
                tail = self.pair_tail(self.pair_headline, 0.0, share)
            elif where == "prompt":
                offset, zeta = self.measures(order)[self.headline(order)]
                every = np.ones(np.count_nonzero(self.sizes >= order + 1), dtype=np.bool_)
                tail = self.measure_tail(offset, zeta, self.zeta("control", every), 0.0, share)
            else:
                tail = self.marginal_tail(d["value"], 0.0)
            sums = [self.low + self.span * end + weight * t for end, t in zip((low, high), tail, strict=True)]
            record["intervals"].append({"method": "worst_case_tail", "interval": ends(sums[0] - half, sums[1] + half)})
        strict = 1.0 - (1.0 - level) / 2.0
        for method, u_part, certified in (
            ("robust", self.robust_utility(strict), False),
            ("certified", self.certified_utility(strict), True),
        ):
            d_part: Interval | None
            if self.pair_headline is not None:
                d_part = self.pair_bounds(self.pair_headline, strict, certified=certified)
            elif where == "prompt":
                offset, zeta = self.measures(order)[self.headline(order)]
                bounded = self.headline(order).startswith("H_") or len(zeta) == 1
                d_part = self.measure_bounds(offset, zeta, order, strict, certified=certified) if bounded else None
            else:
                d_part = self.mass_bounds(strict, certified=certified)
            if d_part is not None:
                sums = [self.low + self.span * a + weight * b for a, b in zip(u_part, d_part, strict=True)]
                record["intervals"].append({"method": method, "interval": ends(*sums)})
        return record

    # Groups.

    def groups(self) -> tuple[list[Record], list[Record]]:
        g = self.rows["group"]
        if g is None:
            return [], []
        points = welfare.group_utilities(self.rel, self.r, g, self.unit, self.count)
        if self.tau is None and self.log_tau == self.wanted:
            values = {key: point.value for key, point in points.items()}
        else:
            values = {}
        sums = {}
        for key in np.unique(g).tolist():
            rows = g == key
            part = None if self.count is None else self.count[rows]
            present = np.unique(self.codes[rows])
            w = np.exp(self.cut[rows])
            a, n = np.zeros(self.n), np.zeros(self.n)
            a[present] = unit_means(w, self.unit[rows], part)
            n[present] = unit_means(w * self.r[rows], self.unit[rows], part)
            sums[key] = a, n
            values.setdefault(key, float(n.sum() / a.sum()))
        keys = list(sums)

        def utilities(kept: Array) -> Array:
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.array([float(n[kept].sum() / a[kept].sum()) for a, n in sums.values()])

        level = self.level
        records, errors = [], []
        df = len(np.unique(self.bucket)) - 1
        for at, key in enumerate(keys):
            j = self.jackknife(lambda kept, at=at: self.low + self.span * utilities(kept)[at])
            errors.append(None if j is None else j.standard_error)
            value = self.low + self.span * values[key]
            assert self.group_rows is not None
            records.append(
                {
                    "key": key,
                    "units": len(np.unique(self.codes[g == key])),
                    "rows": self.group_rows[key],
                    "utility": student("sn_tips", value, errors[-1], "jackknife", level, df),
                }
            )
        functions: dict[str, Callable[[Array], float]] = {
            "mean": lambda v: self.low + self.span * float(v.mean()),
            "min": lambda v: self.low + self.span * float(v.min()),
            "nash": lambda v: self.low + self.span * float(np.exp(np.mean(np.log(v)))),
        }
        twins = {"mean": welfare.mean_welfare, "min": welfare.min_welfare, "nash": welfare.nash_welfare}
        welfares = []
        for name, function in functions.items():
            j = self.jackknife(lambda kept, f=function: f(utilities(kept)))
            error = None if j is None else j.standard_error
            value = function(np.array(list(values.values())))
            if self.tau is None and self.log_tau == self.wanted:
                value = self.low + self.span * twins[name](points).value
            record = student(name, value, error, "jackknife", level, df)
            if name == "min":
                t = quantile(1.0 - (1.0 - level) / len(keys), df)
                reach = [
                    (self.low + self.span * v, t * e)
                    for v, e in zip(values.values(), errors, strict=True)
                    if e is not None
                ]
                bounds = (min(v - h for v, h in reach), min(v + h for v, h in reach))
                record["intervals"] = [{"method": "bonferroni", "interval": ends(*bounds)}]
            welfares.append(record)
        return records, welfares

    # Diagnostics.

    def k_hat(self) -> float | None:
        k = tails.pareto_k(self.rel, self.count)
        return k if math.isfinite(k) else None

    def reward_ess(self) -> float | None:
        """Kish's effective size of what is earned and of what is missed, the smaller one."""
        w = np.exp(self.cut)
        parts = [self.means(w * f) for f in (self.r, 1.0 - self.r)]
        if any(x.sum() <= 1e-12 * self.means(w).sum() for x in parts):
            return None
        return min(float(x.sum() ** 2 / np.sum(x**2)) for x in parts)

    def diagnostics(self) -> Record:
        u, m = self.unit, self.count
        a = scaled(self.means(np.exp(self.rel)), self.top)
        positive = self.logw > -np.inf
        draws = np.ones(len(self.r)) if m is None else m
        zero = int(draws[~positive].sum())
        mean_log = dg.mean_log_weight(self.logw, u, m)
        tokens = self.rows["tokens"]
        floored = iv.floor_mantissa(np.minimum(a, 2.0**41)) / self.kappa
        logs = np.array([np.sum(np.log1p(theta * (floored - 1.0))) for theta in iv.THETAS])
        return {
            "n_units": self.n,
            "n_rows": self.n_rows,
            "n_draws": self.n_draws,
            "ess": dg.effective_sample_size(self.rel, u, m),
            "ess_ceiling": self.n * float(scaled(1.0, -dg.kl_target_behavior(self.logw, u, m))),
            "reward_ess": self.reward_ess(),
            "max_weight_share": dg.max_weight_share(self.rel, u, m),
            "mean_weight": float(scaled(dg.mean_weight(self.rel, u, m).value, self.top)),
            "k_hat": self.k_hat(),
            "k_hat_log_p": None if self.k_hat() is None else tails.pareto_k_log_p(self.rel, self.count),
            "missing_mass": 1.0 - float(np.mean(self.means(np.exp(self.robust_cut)))) / self.kappa,
            "truncation": math.exp(self.log_tau) if self.log_tau < 709 else math.inf,
            "truncated_share": self.truncated_share,
            "truncation_raised": self.log_tau > self.wanted,
            "log_e_value": float(logs.max() + np.log(np.mean(np.exp(logs - logs.max())))),
            "kl_target_behavior": dg.kl_target_behavior(self.logw, u, m),
            "kl_behavior_target": None if zero else -mean_log.value,
            "mean_log_weight": None if zero else mean_log.value,
            "mean_log_weight_standard_error": None if zero else mean_log.standard_error,
            "zero_weight_draws": zero,
            "length_target": None if tokens is None else dg.length_under_target(self.rel, tokens, u, m),
            "length_behavior": None if tokens is None else float(np.mean(self.means(tokens))),
        }

    def summary(self) -> Record:
        utilities = self.utility()
        u = next(record for record in utilities if record["name"] == "sn_tips")
        where, order = self.where
        marginal = self.over_log() if self.rows["cluster"] is not None and self.log.cluster_scope == "log" else None
        prompt = self.prompt(self.by_rule[1]) if self.by_rule[0] == "prompt" else None
        pairs = self.pairs()
        d = None
        if self.pair_headline is not None and pairs is not None:
            d = next(record for record in pairs["measures"] if record["name"] == self.pair_headline)
        elif where == "prompt" and prompt is not None:
            d = next(record for record in prompt["control"] if record["name"] == self.headline(order))
        elif where == "marginal" and marginal is not None:
            d = marginal["entropy"]
        variance = self.variance()
        groups, welfares = self.groups()
        return {
            "policy": "p",
            "utility": utilities,
            "value": self.value(u, d, variance),
            "diversity_level": where if self.pair_headline is None else "prompt",
            "diversity": d,
            "prompt": prompt,
            "pairs": pairs,
            "marginal": marginal,
            "variance": variance,
            "groups": groups,
            "welfare": welfares,
            "diagnostics": self.diagnostics(),
        }
