//! Utility by every estimator, and the intervals of the headline one.

use super::{Named, Reading, named_t};
use crate::cut::{A, N, Sums, natural_scale};
use crate::interval::{self, Interval, Sample, t_of_level};
use crate::jackknife::jackknife;
use crate::math;
use crate::psis;
use crate::totals::Totals;
use crate::utility::{self, Estimate};

impl Reading<'_> {
    pub(super) fn utility(&self) -> Vec<Named> {
        let (low, span) = self.span();
        let (n, s) = (self.units(), &self.lane().scalars);
        let t = |name: &str, e: Estimate| {
            named_t(name, e.value, Some(e.standard_error), "delta", self.options.level, n - 1.0)
        };
        let reward = |e: Estimate| e.affine(low, span);
        let config = &self.snapshot.config;
        let mut all = vec![
            t("ips", utility::weighted_mean(&self.full, low, span)),
            t("snips", reward(utility::self_normalized(&self.full))),
            t("tips", utility::weighted_mean(&self.cut, low, span)),
            self.sn_tips(),
            t("cv", reward(utility::control_variate(&self.full))),
            t("psis", reward(self.sn_psis())),
        ];
        if 2 * self.snapshot.lane.shared.units_repeated >= self.snapshot.lane.shared.n_units() {
            all.push(t("baseline_dr", reward(utility::leave_one_out_baseline(s, n))));
        }
        if config.has_baseline {
            all.push(t("dm", reward(utility::direct(s, n))));
            all.push(t("dr", reward(utility::doubly_robust(s, n))));
            all.push(t("sndr", reward(utility::self_normalized_doubly_robust(s, &self.full))));
        }
        all
    }

    pub(super) fn sn_tips(&self) -> Named {
        let (low, span) = self.span();
        let estimate = utility::self_normalized(&self.cut);
        let level = self.options.level;
        let half = t_of_level(level, self.units() - 1.0) * estimate.standard_error;
        let mut intervals = vec![
            ("delta", Interval::around(estimate.value, half)),
            ("worst_case_tail", interval::worst_case_tail(estimate.value, half, self.truncated_share())),
        ];
        let without: Vec<_> = self.cut.leave_one_out(1).iter().map(|(m, p)| (*m, utility::ratio(p))).collect();
        if let Some(j) = jackknife(estimate.value, &without) {
            let half = t_of_level(level, j.groups as f64 - 1.0) * j.variance.sqrt();
            intervals.push(("jackknife", Interval::around(j.value, half)));
        }
        intervals.push(("robust", self.robust_utility(level)));
        intervals.push(("certified", self.certified_utility(level)));
        let e = estimate.affine(low, span);
        Named {
            name: "sn_tips".into(),
            value: e.value,
            standard_error: Some(e.standard_error),
            // An inverted interval is a finding; it must not be hidden by clipping.
            intervals: intervals
                .into_iter()
                .map(|(name, i)| (name, if i.inverted() { i } else { i.within(0.0, 1.0) }.affine(low, span)))
                .collect(),
        }
    }

    pub(super) fn sn_psis(&self) -> Estimate {
        let draws = self.tail_draws();
        let Some(fit) = self.tail_fit(&draws) else { return utility::self_normalized(&self.full) };
        let smooth = fit.smooth(&draws);
        let of = |l: f64| {
            // Descending log-weights: find the tie that this one belongs to.
            let at = smooth.partition_point(|&(x, _)| x > l);
            smooth.get(at).filter(|&&(x, _)| x == l).map_or(l, |&(_, s)| s)
        };
        let smoothed = self.snapshot.reworked(self.policy, |unit| {
            (unit.l_max > fit.cutoff).then(|| unit.rows.iter().map(|row| of(row.l)).collect())
        });
        utility::self_normalized(&Sums::new(&smoothed, self.full.units, self.full.scale))
    }

    /// Log-weights and multiplicities of the kept units' rows, descending, down to where the tail is complete.
    pub(super) fn tail_draws(&self) -> Vec<(f64, f64)> {
        let tail = &self.lane().tail;
        let rows = tail.units().iter().flat_map(|unit| &unit.rows);
        let complete = tail.complete_above();
        let mut draws: Vec<_> =
            rows.filter(|row| row.l >= complete && row.l > f64::NEG_INFINITY).map(|row| (row.l, row.m)).collect();
        draws.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
        draws
    }

    pub(super) fn tail_fit(&self, draws: &[(f64, f64)]) -> Option<psis::TailFit> {
        let kept: f64 = draws.iter().map(|d| d.1).sum();
        let size = psis::tail_size(self.snapshot.lane.shared.draws as f64).min((kept as usize).saturating_sub(1));
        psis::fit(draws, size)
    }

    /// The truncation level of intervals that assume nothing about overlap: `sqrt n` on calibrated weights.
    pub(super) fn robust_cut(&self) -> f64 {
        let wanted = 0.5 * math::ln(self.units()) + math::ln(self.options.kappa);
        self.snapshot.feasible_cut(self.policy, wanted)
    }

    /// Totals at the robust truncation level and the scale to read them at.
    pub(super) fn robust_totals(&self) -> (Totals, i32) {
        let totals = self.snapshot.truncated(self.policy, self.robust_cut());
        // Far policies: what is left after truncation may be tiny beside the untruncated weights.
        let scale = natural_scale(&totals).unwrap_or(self.full.scale);
        (totals, scale)
    }

    /// Mirrored truncated t (theory 4), from F3: both ends are lower bounds of means of non-negative variables.
    pub(super) fn robust_utility(&self, level: f64) -> Interval {
        let (totals, scale) = self.robust_totals();
        let sums = Sums::new(&totals, self.full.units, scale);
        let (p, t) = (sums.whole(1), t_of_level(level, self.units() - 1.0));
        let bound = |z: &[(usize, f64)]| {
            let mean = z.iter().map(|&(i, c)| c * p.mean(i)).sum::<f64>();
            let square = (sums.quadratic(1, z, z) - p.units * mean * mean).max(0.0);
            let bound = mean - t * (square / (p.units - 1.0) / p.units).sqrt();
            math::scale(bound, sums.scale) / self.options.kappa
        };
        Interval { low: bound(&[(N, 1.0)]).max(0.0), high: 1.0 - bound(&[(A, 1.0), (N, -1.0)]).max(0.0) }
    }

    /// Log-smoothing mirror (theory 4): finite-sample, any tails.
    pub(super) fn certified_utility(&self, level: f64) -> Interval {
        let bound = |which: usize| {
            let classes = self.lane().totals.class.iter().flatten();
            let sample = Sample::new(classes.map(|class| &class.utility[which]), 1.0 / self.options.kappa);
            sample.log_smoothing_bound((1.0 - level) / 2.0)
        };
        Interval { low: bound(1), high: 1.0 - bound(2) }
    }
}
