//! Diversity over the whole log.

use super::{ClusterShare, MarginalDiversity, Reading, named_t};
use crate::cut::A;
use crate::interval::Interval;
use crate::jackknife::jackknife;
use crate::marginal::{self, Marginal};
use crate::math;

impl Reading<'_> {
    pub(super) fn over_log(&self, m: &Marginal) -> MarginalDiversity {
        let level = self.options.level;
        let plug_in = m.plug_in();
        let most = math::ln(m.keys.len().max(1) as f64);
        let sizes = self.bucket_sizes(1);
        let without: Vec<_> = sizes.iter().copied().zip(m.leave_one_out()).collect();
        let j = jackknife(plug_in, &without);
        let value = j.map_or(plug_in, |j| j.value).clamp(0.0, most);
        let error = j.map(|j| j.variance.sqrt());
        let mut entropy =
            named_t("entropy", value, error, "jackknife", level, j.map_or(0.0, |j| j.groups as f64 - 1.0));
        if let Some((_, interval)) = entropy.intervals.first().copied() {
            let half = (interval.high - interval.low) / 2.0;
            entropy.intervals.push((
                "worst_case_tail",
                marginal::worst_case_tail(value, half, self.truncated_share(), m.keys.len()),
            ));
        }
        for (name, finite_sample) in [("robust", false), ("certified", true)] {
            entropy.intervals.extend(self.marginal_bounds(level, finite_sample).map(|i| (name, i)));
        }
        let bias = m.miller_madow_bias(self.cut.quadratic(1, &[(A, 1.0)], &[(A, 1.0)]));
        let (w, draws) = (m.total(), m.draws.iter().sum::<u64>() as f64);
        let mut clusters: Vec<ClusterShare> = (0..m.keys.len())
            .map(|i| ClusterShare {
                key: m.keys[i],
                target: m.mass[i] / w,
                behavior: m.draws[i] as f64 / draws,
                units: m.units[i],
            })
            .collect();
        clusters.sort_by(|a, b| b.target.total_cmp(&a.target).then(a.key.cmp(&b.key)));
        clusters.truncate(100);
        MarginalDiversity {
            entropy,
            plug_in,
            miller_madow: (plug_in - bias).clamp(0.0, most),
            bias,
            unseen_mass: m.unseen_mass(),
            n_clusters: m.keys.len(),
            clusters,
        }
    }

    /// Bounds on the entropy over the log that assume nothing about overlap.
    pub(super) fn marginal_bounds(&self, level: f64, finite_sample: bool) -> Option<Interval> {
        let lane = &self.snapshot.lane;
        let (totals, scale) =
            if finite_sample { (self.lane().totals.clone(), self.full.scale) } else { self.robust_totals() };
        let m = Marginal::new(&totals, &lane.clusters, &lane.shared, scale);
        let factor = math::scale(1.0, scale) / self.options.kappa;
        m.bounded_interval(&self.bucket_sizes(1), factor, level, finite_sample)
    }

    pub(super) fn n_clusters(&self) -> usize {
        self.snapshot.lane.shared.clusters.iter().filter(|c| c[1] > 0).count()
    }
}
