//! The sums at a truncation level, and as numbers.
//!
//! Truncated sums are the untruncated ones with the units of the tail taken out and put back with smaller weights. What
//! comes out is the same as if every weight had been truncated on the way in.

use crate::dd::Dd;
use crate::fixed::{Encoded, Rows};
use crate::lane::{GroupTable, PolicyLane, group_masses};
use crate::math;
use crate::pairs::pair_stats;
use crate::slots::Slots;
use crate::state::Snapshot;
use crate::sum::ExactSum;
use crate::tail::TailUnit;
use crate::totals::{BUCKETS, DEGREE, FIRST, PAIRS, Placement, Sign, Totals, pair};
use crate::unit::{MAX_DEGREE, Scratch, UnitStats, unit_stats};

/// Position of `A` in [`DEGREE`].
pub const A: usize = 0;
/// Position of `N`.
pub const N: usize = 1;
/// Position of `P_2`; `P_3` and `P_4` follow.
pub const P2: usize = 2;
/// Position of `Z_1`; `Z_2` and `Z_3` follow.
pub const Z1: usize = 5;

impl Snapshot {
    /// The sums with the log-weights of tail units replaced: `change` gives a unit's new ones, or `None` to leave it.
    pub fn reworked(&self, policy: usize, change: impl Fn(&TailUnit) -> Option<Vec<f64>>) -> Totals {
        let PolicyLane { totals, tail, .. } = &self.lane.policies[policy];
        let mut totals = totals.clone();
        let mut desk =
            Desk { clusters: self.lane.clusters.clone(), groups: self.lane.groups.clone(), ..Desk::default() };
        for unit in tail.units() {
            if let Some(changed) = change(unit) {
                let original: Vec<f64> = unit.rows.iter().map(|row| row.l).collect();
                desk.add(self, unit, &original, Sign::Minus, &mut totals);
                desk.add(self, unit, &changed, Sign::Plus, &mut totals);
            }
        }
        totals.settle();
        totals
    }

    /// The sums with every weight cut at `e^log_tau`.
    pub fn truncated(&self, policy: usize, log_tau: f64) -> Totals {
        self.reworked(policy, |unit| {
            (unit.l_max > log_tau).then(|| unit.rows.iter().map(|row| row.l.min(log_tau)).collect())
        })
    }

    /// The lowest level, at least `log_tau`, at which [`Self::truncated`] is complete.
    pub fn feasible_cut(&self, policy: usize, log_tau: f64) -> f64 {
        log_tau.max(self.lane.policies[policy].tail.complete_above())
    }
}

/// Working memory for adding tail units.
#[derive(Default)]
struct Desk {
    clusters: Slots,
    groups: Slots,
    rows: Rows,
    encoded: Encoded,
    scratch: Scratch,
    unit: UnitStats,
    table: GroupTable,
    order: Vec<u32>,
    weights: Vec<f64>,
}

impl Desk {
    fn add(&mut self, snapshot: &Snapshot, tail: &TailUnit, l: &[f64], sign: Sign, totals: &mut Totals) {
        let config = &snapshot.config;
        let rows = &mut self.rows;
        let refill = |column: &mut Vec<f64>, f: &dyn Fn(usize) -> f64| {
            column.clear();
            column.extend((0..l.len()).map(f));
        };
        rows.starts.clear();
        rows.starts.extend([0, l.len()]);
        refill(&mut rows.l, &|k| l[k]);
        refill(&mut rows.w, &|k| math::exp(l[k]));
        refill(&mut rows.r, &|k| tail.rows[k].r);
        rows.m.clear();
        if !config.row_units && tail.rows.iter().any(|row| row.m != 1.0) {
            refill(&mut rows.m, &|k| tail.rows[k].m);
        }
        rows.cluster.clear();
        if config.has_cluster {
            rows.cluster.extend(tail.rows.iter().map(|row| self.clusters.slot(row.cluster)));
        }
        self.encoded.encode(rows);
        unit_stats(rows, &self.encoded, 0, &self.clusters, &mut self.scratch, &mut self.unit);
        let mut masses = Vec::new();
        if config.has_group {
            let group: Vec<u32> = tail.rows.iter().map(|row| self.groups.slot(row.group)).collect();
            group_masses(rows, &self.encoded, 0, &group, &mut self.table, &mut masses);
        }
        let place = match tail.rows.first() {
            Some(row) if config.row_units => Placement::draws(tail.key, row.m as u64),
            _ => Placement::one(tail.key),
        };
        let degree = if config.row_units { 1 } else { self.unit.degree(config.has_cluster) };
        totals.add(&self.unit, &masses, degree, config.marginal(), &place, sign);
        if config.has_embedding {
            self.order.clear();
            self.order.extend(0..l.len() as u32);
            let pairs = pair_stats(rows, &self.encoded, 0, (&self.order, &tail.similar), &mut self.weights);
            if let Some(pairs) = pairs {
                totals.pairs.get_or_insert_default().add(&self.unit, &pairs, &place, sign);
            }
        }
    }
}

/// Sums as double-doubles, relative to a common power of two: a sum of degree `d` is given times `2^-(d scale)`.
#[derive(Clone, Debug)]
pub struct Sums {
    /// The power of two.
    pub scale: i32,
    /// Units per class and bucket.
    pub units: [[u64; BUCKETS]; MAX_DEGREE],
    buckets: Vec<Vec<[Dd; FIRST]>>,
    gram: Vec<[Dd; PAIRS]>,
}

/// First-order sums over some units, as plain numbers.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Number of units.
    pub units: f64,
    /// Sums in the order of [`DEGREE`].
    pub sums: [f64; FIRST],
}

impl Point {
    /// Mean of an element.
    pub fn mean(&self, i: usize) -> f64 {
        self.sums[i] / self.units
    }
}

impl Sums {
    /// Read totals relative to `2^scale`.
    pub fn new(totals: &Totals, units: [[u64; BUCKETS]; MAX_DEGREE], scale: i32) -> Self {
        let mut buckets = vec![vec![[Dd::default(); FIRST]; BUCKETS]; MAX_DEGREE];
        let mut gram = vec![[Dd::default(); PAIRS]; MAX_DEGREE];
        for (c, class) in totals.class.iter().enumerate() {
            let Some(class) = class else { continue };
            for (out, sums) in buckets[c].iter_mut().zip(&class.buckets) {
                for i in 0..FIRST {
                    out[i] = sums[i].dd(DEGREE[i] * scale);
                }
            }
            for j in 0..class.z {
                for i in 0..=j {
                    gram[c][pair(i, j)] = class.gram[pair(i, j)].dd((DEGREE[i] + DEGREE[j]) * scale);
                }
            }
        }
        Sums { scale, units, buckets, gram }
    }

    /// First-order sums over the units of class `degree` and above.
    pub fn whole(&self, degree: usize) -> Point {
        let units: u64 = self.units[degree - 1..].iter().flatten().sum();
        Point { units: units as f64, sums: self.total(degree).map(Dd::value) }
    }

    fn total(&self, degree: usize) -> [Dd; FIRST] {
        core::array::from_fn(|i| self.buckets[degree - 1..].iter().flatten().map(|sums| sums[i]).sum())
    }

    /// Units of each bucket, and the sums without them.
    pub fn leave_one_out(&self, degree: usize) -> Vec<(u64, Point)> {
        let total = self.total(degree);
        let units: u64 = self.units[degree - 1..].iter().flatten().sum();
        (0..BUCKETS)
            .map(|b| {
                let size: u64 = self.units[degree - 1..].iter().map(|units| units[b]).sum();
                let sums = core::array::from_fn(|i| {
                    let own: Dd = self.buckets[degree - 1..].iter().map(|buckets| buckets[b][i]).sum();
                    (total[i] - own).value()
                });
                (size, Point { units: (units - size) as f64, sums })
            })
            .collect()
    }

    /// `sum z_i z_j` over the units of class `degree` and above.
    pub fn gram(&self, degree: usize, i: usize, j: usize) -> Dd {
        self.gram[degree - 1..].iter().map(|gram| gram[pair(i.min(j), i.max(j))]).sum()
    }

    /// `sum (a . z) (b . z)` for coefficient vectors given as `(element, coefficient)`.
    pub fn quadratic(&self, degree: usize, a: &[(usize, f64)], b: &[(usize, f64)]) -> f64 {
        let terms = a.iter().flat_map(|&(i, x)| b.iter().map(move |&(j, y)| (i, j, x, y)));
        terms.map(|(i, j, x, y)| self.gram(degree, i, j) * x * y).sum::<Dd>().value()
    }
}

/// The exponent of `sum A`: the scale at which a policy's sums are read. `None` if all weights are zero.
pub fn natural_scale(totals: &Totals) -> Option<i32> {
    let mut sum = ExactSum::default();
    for sums in totals.class.iter().flatten().flat_map(|class| &class.buckets) {
        sum.merge(&sums[A]);
    }
    sum.exponent()
}
