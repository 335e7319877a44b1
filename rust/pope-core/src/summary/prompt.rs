//! Diversity within prompts.

use super::{Named, PromptDiversity, Reading, named_t};
use crate::cut::{A, Point};
use crate::diversity::{self, Measure};
use crate::interval::{Interval, Sample, t_of_level};
use crate::jackknife::jackknife;
use crate::marginal::Marginal;
use crate::math;

impl Reading<'_> {
    pub(super) fn prompt(&self, order: usize, marginal: Option<&Marginal>) -> PromptDiversity {
        let degree = order + 1;
        let p = self.cut.whole(degree);
        let without = self.cut.leave_one_out(degree);
        let control = Measure::all(order).iter().map(|m| self.control(m, degree, &without)).collect();
        let product = |m: &Measure| {
            let value = m.of(diversity::zeta_product(&p));
            let others: Vec<_> = without.iter().map(|(n, p)| (*n, m.of(diversity::zeta_product(p)))).collect();
            let j = jackknife(value, &others);
            let df = j.map_or(0.0, |j| j.groups as f64 - 1.0);
            named_t(&m.name, value, j.map(|j| j.variance.sqrt()), "jackknife", self.options.level, df)
        };
        PromptDiversity {
            order,
            units_used: p.units as u64,
            units_left_out: self.snapshot.lane.shared.n_units() - p.units as u64,
            control,
            product: Measure::all(order).iter().map(product).collect(),
            sandwich: self.sandwich(degree, marginal),
        }
    }

    pub(super) fn control(&self, measure: &Measure, degree: usize, without: &[(u64, Point)]) -> Named {
        let level = self.options.level;
        let estimate = diversity::estimate(measure, &self.cut, degree);
        let p = self.cut.whole(degree);
        let half = t_of_level(level, p.units - 1.0) * estimate.standard_error;
        let m = 1.0 - p.sums[A] / self.full.whole(degree).sums[A];
        let tail = measure.worst_case_tail(diversity::zeta_control(&p), half, m.clamp(0.0, 1.0));
        let mut intervals = vec![("delta", Interval::around(estimate.value, half)), ("worst_case_tail", tail)];
        let others: Vec<_> = without.iter().map(|(n, p)| (*n, measure.of_control(p))).collect();
        if let Some(j) = jackknife(estimate.value, &others) {
            let half = t_of_level(level, j.groups as f64 - 1.0) * j.variance.sqrt();
            intervals.push(("jackknife", Interval::around(j.value, half)));
        }
        if measure.has_bounds() {
            intervals.push(("robust", self.bounded_measure(measure, degree, level, false)));
            intervals.push(("certified", self.bounded_measure(measure, degree, level, true)));
        }
        Named {
            name: measure.name.clone(),
            value: estimate.value,
            standard_error: Some(estimate.standard_error),
            intervals,
        }
    }

    /// Bounds from the product forms, which hold for truncated weights: `E X_M <= H_M <= sum 1/v - E Y_M`.
    pub(super) fn bounded_measure(
        &self,
        measure: &Measure,
        degree: usize,
        level: f64,
        finite_sample: bool,
    ) -> Interval {
        let order = measure.order();
        // X and Y mix degrees 2 to M + 1 in the weights; the least favorable one calibrates them.
        let kappa = self.options.kappa;
        let factor = if kappa > 1.0 { kappa.powi(-(order as i32 + 1)) } else { kappa.powi(-2) };
        let truncated;
        let totals = if finite_sample {
            &self.lane().totals
        } else {
            truncated = self.snapshot.truncated(self.policy, self.robust_cut());
            &truncated
        };
        let bound = |upper: bool| {
            let classes = totals.class[degree - 1..].iter().flatten();
            let parts = classes.map(|class| if upper { &class.upper[order - 1] } else { &class.lower[order - 1] });
            let sample = Sample::new(parts, factor);
            if finite_sample { sample.log_smoothing_bound((1.0 - level) / 2.0) } else { sample.t_bound(level) }
        };
        let (least, most) = measure.range();
        Interval { low: least + bound(false), high: most - bound(true) }
    }

    /// Certified bounds on the mean Shannon entropy within prompts: Renyi-2 below, a cross entropy above.
    pub(super) fn sandwich(&self, degree: usize, marginal: Option<&Marginal>) -> Option<Interval> {
        let level = self.options.level;
        let gini = self.bounded_measure(&Measure::gini(), degree, level, true);
        let untruncated;
        let high = match marginal {
            Some(_) => {
                let lane = &self.snapshot.lane;
                untruncated = Marginal::new(&self.lane().totals, &lane.clusters, &lane.shared, self.full.scale);
                let factor = math::scale(1.0, self.full.scale) / self.options.kappa;
                untruncated.cross_entropy_bound(&self.bucket_sizes(1), factor, 1.0 - (1.0 - level) / 2.0)?
            }
            None => return None,
        };
        Some(Interval { low: -math::ln(1.0 - gini.low.clamp(0.0, 1.0 - 1e-12)), high })
    }
}
