//! Diversity within prompts from embeddings.

use super::{Level, Named, PairDiversity, Reading, named_t};
use crate::cut::{A, N};
use crate::interval::{Interval, t_of_level};
use crate::jackknife::jackknife;
use crate::pairs::{PairMeasure, PairPoint, PairSums};
use crate::totals::Totals;
use crate::utility;

impl Reading<'_> {
    /// Sums over pairs at the scale of the reading; `None` if there are no pairs, or none that the policy could give.
    pub(super) fn pair_sums(&self, totals: &Totals) -> Option<PairSums> {
        let units = self.snapshot.lane.shared.pair_units();
        let sums = PairSums::new(totals.pairs.as_ref()?, units, self.full.scale);
        let p = sums.whole();
        (p.units >= 2.0 && p.has_weight()).then_some(sums)
    }

    pub(super) fn pairs(&self) -> Option<PairDiversity> {
        let sums = self.pair_cut.as_ref()?;
        let p = sums.whole();
        Some(PairDiversity {
            units_used: p.units as u64,
            units_left_out: self.snapshot.lane.shared.n_units().saturating_sub(p.units as u64),
            measures: PairMeasure::ALL.map(|m| self.pair_measure(m, sums)).into(),
            control: PairMeasure::ALL.map(|m| self.pair_control(m, sums)).into(),
        })
    }

    fn pair_measure(&self, measure: PairMeasure, sums: &PairSums) -> Named {
        let (level, width, p) = (self.options.level, self.snapshot.width, sums.whole());
        let estimate = measure.estimate(sums, width);
        let t = t_of_level(level, p.units - 1.0);
        let mut intervals = vec![
            ("delta", measure.delta(estimate, &p, t, width)),
            ("worst_case_tail", measure.worst_case_tail(estimate, &p, t, self.pair_truncated_share(&p), width)),
        ];
        let others: Vec<_> = sums.leave_one_out().iter().map(|(n, p)| (*n, measure.of(p, width))).collect();
        if let Some(j) = jackknife(estimate.value, &others) {
            let half = t_of_level(level, j.groups as f64 - 1.0) * j.variance.sqrt();
            intervals.push(("jackknife", Interval::around(j.value, half)));
        }
        for (name, finite_sample) in [("robust", false), ("certified", true)] {
            intervals.extend(self.pair_bounds(measure, level, finite_sample).map(|i| (name, i)));
        }
        Named {
            name: measure.name().into(),
            value: estimate.value,
            standard_error: Some(estimate.standard_error),
            intervals,
        }
    }

    fn pair_control(&self, measure: PairMeasure, sums: &PairSums) -> Named {
        let (width, value) = (self.snapshot.width, |p: &PairPoint| measure.of_control(p, self.snapshot.width));
        let whole = value(&sums.whole());
        let others: Vec<_> = sums.leave_one_out().iter().map(|(n, p)| (*n, measure.of_control(p, width))).collect();
        let j = jackknife(whole, &others);
        let df = j.map_or(0.0, |j| j.groups as f64 - 1.0);
        named_t(measure.name(), whole, j.map(|j| j.variance.sqrt()), "jackknife", self.options.level, df)
    }

    /// Share of the weight lost to truncation among the units that have pairs.
    fn pair_truncated_share(&self, cut: &PairPoint) -> f64 {
        let full = self.pair_full().map_or(cut.sums[A], |sums| sums.whole().sums[A]);
        (1.0 - cut.sums[A] / full).clamp(0.0, 1.0)
    }

    fn pair_full(&self) -> Option<PairSums> {
        self.pair_sums(&self.lane().totals)
    }

    /// Bounds that assume nothing about overlap.
    pub(super) fn pair_bounds(&self, measure: PairMeasure, level: f64, finite_sample: bool) -> Option<Interval> {
        let truncated;
        let totals = if finite_sample {
            &self.lane().totals
        } else {
            truncated = self.snapshot.truncated(self.policy, self.robust_cut());
            &truncated
        };
        let factor = self.options.kappa.powi(-2);
        Some(measure.bounded(&totals.pairs.as_ref()?.histograms, factor, self.snapshot.width, |sample| {
            if finite_sample { sample.log_smoothing_bound((1.0 - level) / 2.0) } else { sample.t_bound(level) }
        }))
    }

    /// `Cov(U, D)` by the delta method, with the same `n / (n - 1)` as in the variances.
    pub(super) fn pair_covariance(&self, measure: PairMeasure, sums: &PairSums, span: f64) -> f64 {
        let (all, used) = (self.cut.whole(1), sums.whole());
        let u = utility::ratio(&all);
        let phi_u = [(N, span / all.mean(A)), (A, -u * span / all.mean(A))];
        let products = sums.quadratic(&measure.influence(&used), &phi_u);
        products / ((all.units - 1.0) * all.units * (used.units - 1.0) * used.units).sqrt()
    }

    /// The worst-case tail of a measure without its sampling error, where a share `m` of the weight was truncated.
    pub(super) fn pair_tail(&self, measure: PairMeasure, sums: &PairSums, m: f64) -> Interval {
        let width = self.snapshot.width;
        measure.worst_case_tail(measure.estimate(sums, width), &sums.whole(), 0.0, m, width)
    }

    /// The measure from embeddings that is the headline, with its sums.
    pub(super) fn headline_pairs(&self) -> Option<(PairMeasure, &PairSums)> {
        match (&self.level, &self.pair_cut) {
            (Level::Pairs(measure), Some(sums)) => Some((*measure, sums)),
            _ => None,
        }
    }
}
