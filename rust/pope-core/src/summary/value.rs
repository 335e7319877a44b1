//! The value `V = U + lambda D`: its variance, its intervals, and differences between policies.

use super::{Difference, Level, Named, Reading, VarianceParts, named_t};
use crate::cut::{A, N, Point};
use crate::diversity;
use crate::interval::{self, Interval, t_of_level};
use crate::jackknife::{JointJackknife, jackknife_pairs};
use crate::marginal;
use crate::utility;

/// A vector of statistics on everything, and without each bucket.
pub(super) type Replicates = (Vec<f64>, Vec<(u64, Vec<f64>)>);

impl Reading<'_> {
    /// `(U, D)` with the value `U + lambda D` at the end.
    pub(super) fn with_value(&self, mut x: Vec<f64>) -> Vec<f64> {
        x.push(x[0] + self.options.diversity_weight * x.get(1).copied().unwrap_or(0.0));
        x
    }

    /// Headline utility, diversity (if any) and value.
    pub(super) fn headline(&self) -> Vec<f64> {
        let (mut whole, _) = self.replicates();
        if self.level == Level::Marginal {
            // The headline entropy is corrected for bias; the replicates are not.
            whole[1] = self.over_log(&self.marginal()).entropy.value;
        }
        self.with_value(whole)
    }

    /// [`Self::replicates`] with the value at the end.
    pub(super) fn value_replicates(&self) -> Replicates {
        let (whole, without) = self.replicates();
        (self.with_value(whole), without.into_iter().map(|(m, x)| (m, self.with_value(x))).collect())
    }

    /// Utility and headline diversity on everything and without each bucket.
    pub(super) fn replicates(&self) -> Replicates {
        let (low, span) = self.span();
        let u = |p: &Point| low + span * utility::ratio(p);
        let mut whole = vec![u(&self.cut.whole(1))];
        let mut without: Vec<(u64, Vec<f64>)> =
            self.cut.leave_one_out(1).iter().map(|(m, p)| (*m, vec![u(p)])).collect();
        match self.level {
            Level::Prompt(order) => {
                let measure = self.prompt_measure(order);
                let h = |p: &Point| measure.of_control(p);
                whole.push(h(&self.cut.whole(order + 1)));
                let others = self.cut.leave_one_out(order + 1);
                without.iter_mut().zip(&others).for_each(|((_, x), (_, p))| x.push(h(p)));
            }
            Level::Pairs(measure) => {
                if let Some(sums) = &self.pair_cut {
                    let width = self.snapshot.width;
                    whole.push(measure.of(&sums.whole(), width));
                    let others = sums.leave_one_out();
                    without.iter_mut().zip(&others).for_each(|((_, x), (_, p))| x.push(measure.of(p, width)));
                }
            }
            Level::Marginal => {
                let m = self.marginal();
                whole.push(m.plug_in());
                without.iter_mut().zip(m.leave_one_out()).for_each(|((_, x), h)| x.push(h));
            }
            Level::Absent => {}
        }
        (whole, without)
    }

    pub(super) fn variance(&self) -> Option<VarianceParts> {
        let lambda = self.options.diversity_weight;
        let parts = |utility: f64, diversity: f64, covariance: f64, method| {
            let (sd_u, sd_d) = (utility.sqrt(), lambda * diversity.sqrt());
            VarianceParts {
                utility,
                diversity,
                covariance,
                total: (utility + lambda * lambda * diversity + 2.0 * lambda * covariance).max(0.0),
                lower_bound: (sd_u - sd_d).powi(2),
                upper_bound: (sd_u + sd_d).powi(2),
                method,
            }
        };
        let (_, span) = self.span();
        if let Some((measure, sums)) = self.headline_pairs() {
            let u = utility::self_normalized(&self.cut);
            let d = measure.estimate(sums, self.snapshot.width);
            let covariance = self.pair_covariance(measure, sums, span);
            return Some(parts((span * u.standard_error).powi(2), d.standard_error.powi(2), covariance, "delta"));
        }
        if let Level::Prompt(order) = self.level {
            let (all, used) = (self.cut.whole(1), self.cut.whole(order + 1));
            let u = utility::self_normalized(&self.cut);
            let measure = self.prompt_measure(order);
            let d = diversity::estimate(&measure, &self.cut, order + 1);
            let influence = diversity::influence(&measure, &used);
            let phi_u = [(N, span / all.mean(A)), (A, -u.value * span / all.mean(A))];
            let products = influence.sum_of_products(&self.cut, order + 1, &phi_u);
            // The same n / (n - 1) as in the variances, so that Cauchy-Schwarz and L1 hold exactly.
            let n = (all.units - 1.0).sqrt() * all.units.sqrt() * (used.units - 1.0).sqrt() * used.units.sqrt();
            return Some(parts((span * u.standard_error).powi(2), d.standard_error.powi(2), products / n, "delta"));
        }
        let (whole, without) = self.replicates();
        let JointJackknife { covariance: c, .. } = jackknife_pairs(&whole, &without)?;
        Some(parts(c[0], c[3], c[1], "jackknife"))
    }

    pub(super) fn value(
        &self,
        u: &Named,
        d: Option<&Named>,
        variance: Option<&VarianceParts>,
        low: f64,
        span: f64,
    ) -> Named {
        let Some(d) = d else { return Named { name: "value".into(), ..u.clone() } };
        let (lambda, level) = (self.options.diversity_weight, self.options.level);
        let value = u.value + lambda * d.value;
        let error = variance.map(|v| v.total.sqrt());
        let df = match (self.level, variance) {
            (Level::Marginal, _) => self.bucket_sizes(1).iter().filter(|&&m| m > 0).count() as f64 - 1.0,
            _ => self.units() - 1.0,
        };
        let method = variance.map_or("delta", |v| v.method);
        let mut named = named_t("value", value, error, method, level, df);
        // Worst-case tail: the parts' ends without their half-widths, and the half-width of the sum.
        if let Some(half) = error.map(|se| t_of_level(level, df) * se) {
            let m = self.truncated_share();
            let scaled = interval::worst_case_tail((u.value - low) / span, 0.0, m).affine(low, span);
            let zero = match (self.level, self.headline_pairs()) {
                (Level::Prompt(order), _) => {
                    let p = self.cut.whole(order + 1);
                    self.prompt_measure(order).worst_case_tail(diversity::zeta_control(&p), 0.0, m)
                }
                (_, Some((measure, sums))) => self.pair_tail(measure, sums, m),
                _ => marginal::worst_case_tail(d.value, 0.0, m, self.n_clusters()),
            };
            let sum = scaled.plus(zero, lambda);
            let half = half * (1.0 - m);
            named.intervals.push(("worst_case_tail", Interval { low: sum.low - half, high: sum.high + half }));
        }
        // Intervals without a common variance: each part at half the error probability.
        let strict = 1.0 - (1.0 - level) / 2.0;
        let parts =
            [("robust", self.robust_utility(strict), false), ("certified", self.certified_utility(strict), true)];
        for (name, u_part, finite_sample) in parts {
            let d_part = match self.level {
                Level::Prompt(order) => {
                    let measure = self.prompt_measure(order);
                    measure.has_bounds().then(|| self.bounded_measure(&measure, order + 1, strict, finite_sample))
                }
                Level::Pairs(measure) => self.pair_bounds(measure, strict, finite_sample),
                _ => self.marginal_bounds(strict, finite_sample),
            };
            if let Some(d_part) = d_part {
                named.intervals.push((name, u_part.affine(low, span).plus(d_part, lambda)));
            }
        }
        named
    }
}

/// The difference of the headline values, with the jackknife's error.
pub(super) fn difference(
    a: &str,
    b: &str,
    (headline_a, of_a): &(Vec<f64>, Replicates),
    (headline_b, of_b): &(Vec<f64>, Replicates),
    level: f64,
) -> Difference {
    let minus = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x - y).collect::<Vec<f64>>();
    let (values, whole) = (minus(headline_a, headline_b), minus(&of_a.0, &of_b.0));
    let without: Vec<_> = of_a.1.iter().zip(&of_b.1).map(|((m, x), (_, y))| (*m, minus(x, y))).collect();
    let joint = jackknife_pairs(&whole, &without);
    let df = joint.as_ref().map_or(0.0, |j| j.groups as f64 - 1.0);
    let named = |i: usize, name: &str| {
        let error = joint.as_ref().map(|j| j.covariance[i * whole.len() + i].max(0.0).sqrt());
        named_t(name, values[i], error, "jackknife", level, df)
    };
    let last = whole.len() - 1;
    Difference {
        a: a.to_owned(),
        b: b.to_owned(),
        utility: named(0, "utility"),
        diversity: (last == 2).then(|| named(1, "diversity")),
        value: named(last, "value"),
    }
}
