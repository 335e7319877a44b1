//! Annotator groups and welfare over them.

use super::{Group, Named, Reading, named_t};
use crate::interval::{Interval, t_of_level};
use crate::jackknife::{Jackknife, jackknife};
use crate::math;
use crate::totals::BUCKETS;

impl Reading<'_> {
    pub(super) fn groups(&self) -> (Vec<Group>, Vec<Named>) {
        let lane = &self.snapshot.lane;
        let level = self.options.level;
        let (low, span) = self.span();
        let slots: Vec<u32> = lane
            .groups
            .by_key()
            .into_iter()
            .filter(|&s| lane.shared.group_rows.get(s as usize).is_some_and(|&n| n > 0))
            .collect();
        if slots.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let mut position = vec![usize::MAX; lane.groups.len()];
        slots.iter().enumerate().for_each(|(at, &slot)| position[slot as usize] = at);
        let mut sums = vec![vec![[0.0f64; 2]; slots.len()]; BUCKETS];
        for (which, table) in self.cut_totals.group.iter().enumerate() {
            for (slot, bucket, sum) in table.iter() {
                if let Some(place) = position.get(slot as usize).and_then(|&at| sums[bucket].get_mut(at)) {
                    place[which] = sum.dd(self.cut.scale).value();
                }
            }
        }
        let mut whole = vec![[0.0f64; 2]; slots.len()];
        for bucket in &sums {
            for (w, b) in whole.iter_mut().zip(bucket) {
                w[0] += b[0];
                w[1] += b[1];
            }
        }
        let values = |s: &[[f64; 2]]| s.iter().map(|[a, n]| low + span * n / a).collect::<Vec<f64>>();
        let welfare = |v: &[f64]| -> [f64; 3] {
            let g = v.len() as f64;
            let mean = v.iter().sum::<f64>() / g;
            let min = v.iter().copied().fold(f64::INFINITY, f64::min);
            // Nash welfare counts utilities from the worst possible reward.
            let nash = low + math::exp(v.iter().map(|&v| math::ln((v - low).max(0.0))).sum::<f64>() / g);
            [mean, min, nash]
        };
        let extended = |s: &[[f64; 2]]| {
            let mut v = values(s);
            let w = welfare(&v);
            v.extend(w);
            v
        };
        let sizes = self.bucket_sizes(1);
        let without: Vec<(u64, Vec<f64>)> = sums
            .iter()
            .zip(&sizes)
            .map(|(bucket, &m)| {
                let rest: Vec<[f64; 2]> = whole.iter().zip(bucket).map(|(w, b)| [w[0] - b[0], w[1] - b[1]]).collect();
                (m, extended(&rest))
            })
            .collect();
        let all = extended(&whole);
        // One by one: a group that sits in a single bucket has no error, and must not take that of the others away.
        let errors: Vec<Option<Jackknife>> = (0..all.len())
            .map(|i| jackknife(all[i], &without.iter().map(|(m, x)| (*m, x[i])).collect::<Vec<_>>()))
            .collect();
        let error = |i: usize| errors[i].map(|j| j.variance.sqrt());
        let df = errors.iter().flatten().next().map_or(0.0, |j| j.groups as f64 - 1.0);
        let named = |i: usize, name: &str| named_t(name, all[i], error(i), "jackknife", level, df);
        let groups: Vec<Group> = slots
            .iter()
            .enumerate()
            .map(|(i, &slot)| Group {
                key: lane.groups.key(slot),
                units: lane.shared.groups[slot as usize].iter().sum(),
                rows: lane.shared.group_rows[slot as usize],
                utility: named(i, "sn_tips"),
            })
            .collect();
        let g = slots.len();
        let mut min = Named { intervals: Vec::new(), ..named(g + 1, "min") };
        // The minimum is not smooth: its interval is that of the worst group, at simultaneous level.
        let t = t_of_level(1.0 - (1.0 - level) / g as f64, df);
        if let Some(errors) = (0..g).map(error).collect::<Option<Vec<f64>>>() {
            let end = |sign: f64| (0..g).map(|i| all[i] + sign * t * errors[i]).fold(f64::INFINITY, f64::min);
            min.intervals.push(("bonferroni", Interval { low: end(-1.0), high: end(1.0) }));
        }
        (groups, vec![named(g, "mean"), min, named(g + 2, "nash")])
    }
}
