//! One thread's share of the work: rows in, exact sums out.

use crate::batch::{self, Batch};
use crate::error::Result;
use crate::math;
use crate::simd::multiversion;
use crate::slots::Slots;
use crate::state::Config;
use crate::sum::ExactSum;
use crate::tail::{Tail, TailRow, TailUnit};
use crate::totals::{BUCKETS, GroupMass, Placement, Sign, Totals, merge_sums};
use crate::unit::{Fixed, MAX_DEGREE, Scratch, UnitRows, UnitStats, unit_stats};

/// Rows are handled in chunks of about this many, so that the buffers stay in the first-level cache.
const CHUNK: usize = 1024;

/// Sums of one policy that truncation leaves alone. All are over units; "mean" is over a unit's draws.
#[derive(Clone, Debug, Default)]
pub struct PolicyScalars {
    /// Mean log-weight (finite ones): first and second moment.
    pub l: [ExactSum; 2],
    /// Mean `w log w`.
    pub wl: ExactSum,
    /// Leave-one-out baseline estimator `B = B1 + R`: sums of `B1, R, B1^2, B1 R, R^2` (units with one draw: R = 0).
    pub baseline: [ExactSum; 5],
    /// Mean `w T`.
    pub wt: ExactSum,
    /// Doubly robust: with `Q` = mean `w (r - f)` and `G` = mean policy mean of f: sums of `Q, G, Q^2, Q G, G^2, A Q, A G`.
    pub dr: [ExactSum; 7],
    /// Draws with weight 0.
    pub zero_draws: u64,
    /// Largest `A` of a unit, as `(exponent, mantissa)`.
    pub max_a: Option<(i32, f64)>,
}

impl PolicyScalars {
    fn merge(&mut self, other: &PolicyScalars) {
        merge_sums(&mut self.l, &other.l);
        self.wl.merge(&other.wl);
        merge_sums(&mut self.baseline, &other.baseline);
        self.wt.merge(&other.wt);
        merge_sums(&mut self.dr, &other.dr);
        self.zero_draws += other.zero_draws;
        if let Some((e, m)) = other.max_a {
            self.raise_max(e, m);
        }
    }

    #[inline(always)]
    fn raise_max(&mut self, e: i32, mantissa: f64) {
        if self.max_a.is_none_or(|(e0, m0)| (e, mantissa) > (e0, m0)) {
            self.max_a = Some((e, mantissa));
        }
    }
}

/// Everything known about one policy.
#[derive(Clone, Debug)]
pub struct PolicyLane {
    /// Sums that truncation changes.
    pub totals: Totals,
    /// Sums that it does not.
    pub scalars: PolicyScalars,
    /// The units with the largest weights.
    pub tail: Tail,
}

/// Counts and sums that no policy changes.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Rows read.
    pub rows: u64,
    /// Draws (rows times multiplicity).
    pub draws: u64,
    /// Units per class and bucket.
    pub units: [[u64; BUCKETS]; MAX_DEGREE],
    /// Units with at least 2 draws.
    pub units_repeated: u64,
    /// Mean reward of a unit: first and second moment.
    pub reward: [ExactSum; 2],
    /// Mean token count of a unit.
    pub tokens: ExactSum,
    /// Per cluster slot: draws, units.
    pub clusters: Vec<[u64; 2]>,
    /// Per group slot: units per bucket.
    pub groups: Vec<[u64; BUCKETS]>,
    /// Per group slot: rows.
    pub group_rows: Vec<u64>,
}

impl Default for Shared {
    fn default() -> Self {
        Shared {
            rows: 0,
            draws: 0,
            units: [[0; BUCKETS]; MAX_DEGREE],
            units_repeated: 0,
            reward: Default::default(),
            tokens: ExactSum::default(),
            clusters: Vec::new(),
            groups: Vec::new(),
            group_rows: Vec::new(),
        }
    }
}

impl Shared {
    /// Number of units.
    pub fn n_units(&self) -> u64 {
        self.units.iter().flatten().sum()
    }

    fn make_room(&mut self, clusters: usize, groups: usize) {
        self.clusters.resize(clusters.max(self.clusters.len()), [0; 2]);
        self.groups.resize(groups.max(self.groups.len()), [0; BUCKETS]);
        self.group_rows.resize(self.groups.len(), 0);
    }

    #[inline(always)]
    fn count_labels(&mut self, unit: &UnitStats, groups: &[GroupMass], place: &Placement) {
        for c in &unit.clusters {
            let [draws, units] = &mut self.clusters[c.slot as usize];
            *draws += c.draws as u64 * place.times();
            *units += place.times();
        }
        for g in groups {
            place.each(|bucket, times| self.groups[g.slot as usize][bucket] += times);
        }
    }
}

/// One thread's accumulators.
#[derive(Clone, Debug)]
pub struct Lane {
    /// Cluster keys.
    pub clusters: Slots,
    /// Group keys.
    pub groups: Slots,
    /// Policy-independent sums.
    pub shared: Shared,
    /// Per policy, in the configuration's order.
    pub policies: Vec<PolicyLane>,
    buffers: Buffers,
}

#[derive(Default)]
struct Buffers {
    starts: Vec<usize>,
    behavior: Vec<f64>,
    reward: Vec<f64>,
    count: Vec<f64>,
    baseline: Vec<f64>,
    means: Vec<f64>,
    l: Vec<f64>,
    w: Vec<f64>,
    cluster: Vec<u32>,
    group: Vec<u32>,
    scratch: Scratch,
    unit: UnitStats,
    group_mass: Vec<GroupMass>,
    group_table: GroupTable,
}

/// Buffers hold nothing between calls; a copy of a lane starts with empty ones.
impl Clone for Buffers {
    fn clone(&self) -> Self {
        Buffers::default()
    }
}

impl core::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Buffers")
    }
}

impl Lane {
    /// An empty lane.
    pub fn new(config: &Config) -> Self {
        let policy =
            || PolicyLane { totals: Totals::default(), scalars: PolicyScalars::default(), tail: Tail::new(config.tail_capacity) };
        Lane {
            clusters: Slots::default(),
            groups: Slots::default(),
            shared: Shared::default(),
            policies: config.policies.iter().map(|_| policy()).collect(),
            buffers: Buffers::default(),
        }
    }

    /// Add rows `start..end`, which begin and end on unit boundaries.
    pub fn update(&mut self, config: &Config, batch: &Batch<'_>, start: usize, end: usize) -> Result<()> {
        let mut row = start;
        while row < end {
            let mut stop = (row + CHUNK).min(end);
            if let Some(unit) = batch.unit {
                // Back to a unit boundary, or forward if one unit fills the chunk.
                let mut cut = stop;
                while cut < end && cut > row && unit[cut] == unit[cut - 1] {
                    cut -= 1;
                }
                if cut == row {
                    while stop < end && unit[stop] == unit[stop - 1] {
                        stop += 1;
                    }
                } else {
                    stop = cut;
                }
            }
            self.chunk(config, batch, row, stop)?;
            row = stop;
        }
        Ok(())
    }

    fn chunk(&mut self, config: &Config, batch: &Batch<'_>, start: usize, end: usize) -> Result<()> {
        let n = end - start;
        let b = &mut self.buffers;
        b.behavior.resize(n, 0.0);
        b.reward.resize(n, 0.0);
        b.l.resize(n, 0.0);
        b.w.resize(n, 0.0);
        batch::load_behavior(batch.behavior, start, &mut b.behavior)?;
        batch::load_reward(batch.reward, config.reward_range, start, &mut b.reward)?;
        if let Some(count) = batch.count {
            b.count.resize(n, 0.0);
            batch::load_count(count, start, &mut b.count)?;
        }
        if let Some(tokens) = batch.tokens {
            batch::check_tokens(&tokens[start..end], start)?;
        }
        if let Some(baseline) = batch.baseline {
            b.baseline.resize(n, 0.0);
            batch::load_baseline(baseline, "baseline", config.reward_range, start, &mut b.baseline)?;
        }
        b.starts.clear();
        match batch.unit {
            Some(unit) => {
                b.starts.push(0);
                b.starts.extend((1..n).filter(|&i| unit[start + i] != unit[start + i - 1]));
            }
            None => b.starts.extend(0..n),
        }
        b.starts.push(n);
        if let Some(cluster) = batch.cluster {
            b.cluster.clear();
            b.cluster.extend((start..end).map(|i| self.clusters.slot(cluster.get(i))));
        }
        if let Some(group) = batch.group {
            b.group.clear();
            b.group.extend((start..end).map(|i| self.groups.slot(group.get(i))));
        }
        for policy in 0..self.policies.len() {
            // Everything is checked before anything is counted: a refused chunk leaves no trace.
            batch::load_target(batch.targets[policy], &config.policies[policy], start, &mut self.buffers.l)?;
            if let Some(means) = batch.baseline_means.get(policy) {
                self.buffers.means.resize(n, 0.0);
                batch::load_baseline(means, "baseline_mean", config.reward_range, start, &mut self.buffers.means)?;
            }
        }
        for policy in 0..self.policies.len() {
            let b = &mut self.buffers;
            if self.policies.len() > 1 {
                batch::load_target(batch.targets[policy], &config.policies[policy], start, &mut b.l)?;
                if let Some(means) = batch.baseline_means.get(policy) {
                    batch::load_baseline(means, "baseline_mean", config.reward_range, start, &mut b.means)?;
                }
            }
            batch::log_weights(&mut b.l, &b.behavior, &mut b.w);
            let view = ChunkView {
                config,
                batch,
                start,
                clusters: &self.clusters,
                groups: &self.groups,
            };
            // Which labels a unit has does not depend on the policy: the first one counts them.
            let labels = (policy == 0).then_some(&mut self.shared);
            add_policy_chunk(&view, b, &mut self.policies[policy], labels);
        }
        add_shared_chunk(config, batch, start, &self.buffers, &mut self.shared);
        Ok(())
    }

    /// Bring everything into the sums and the tail into canonical form.
    pub fn settle(&mut self) {
        for policy in &mut self.policies {
            policy.totals.settle();
            policy.tail.settle();
        }
    }

    /// Add another settled lane of the same configuration.
    pub fn merge(&mut self, other: &Lane) {
        let remap = |ours: &mut Slots, theirs: &Slots| -> Vec<u32> {
            (0..theirs.len() as u32).map(|slot| ours.slot(theirs.key(slot))).collect()
        };
        let clusters = remap(&mut self.clusters, &other.clusters);
        let groups = remap(&mut self.groups, &other.groups);
        let (a, b) = (&mut self.shared, &other.shared);
        a.rows += b.rows;
        a.draws += b.draws;
        a.units_repeated += b.units_repeated;
        for (a, b) in a.units.iter_mut().flatten().zip(b.units.iter().flatten()) {
            *a += b;
        }
        merge_sums(&mut a.reward, &b.reward);
        a.tokens.merge(&b.tokens);
        a.make_room(self.clusters.len(), self.groups.len());
        for (counts, &slot) in b.clusters.iter().zip(&clusters) {
            a.clusters[slot as usize][0] += counts[0];
            a.clusters[slot as usize][1] += counts[1];
        }
        for ((counts, rows), &slot) in b.groups.iter().zip(&b.group_rows).zip(&groups) {
            for (a, b) in a.groups[slot as usize].iter_mut().zip(counts) {
                *a += b;
            }
            a.group_rows[slot as usize] += rows;
        }
        for (a, b) in self.policies.iter_mut().zip(&other.policies) {
            a.totals.merge(&b.totals, &clusters, &groups);
            a.scalars.merge(&b.scalars);
            a.tail.merge(&b.tail);
        }
    }
}

/// What all policies share while a chunk is added.
#[derive(Clone, Copy)]
struct ChunkView<'a> {
    config: &'a Config,
    batch: &'a Batch<'a>,
    start: usize,
    clusters: &'a Slots,
    groups: &'a Slots,
}

/// The key of a unit: its own, or for row units the row's number in the log.
#[inline(always)]
fn unit_key(batch: &Batch<'_>, row: usize) -> u64 {
    batch.unit.map_or(batch.first_row + row as u64, |unit| unit[row] as u64)
}

multiversion! {
    fn add_policy_chunk(view: &ChunkView<'_>, b: &mut Buffers, policy: &mut PolicyLane, labels: Option<&mut Shared>) {
        let mut labels = labels;
        let ChunkView { config, batch, start, clusters, groups } = *view;
        if let Some(shared) = labels.as_deref_mut() {
            shared.make_room(clusters.len(), groups.len());
        }
        let row_units = batch.unit.is_none();
        let marginal = config.marginal();
        for u in 0..b.starts.len() - 1 {
            let (from, to) = (b.starts[u], b.starts[u + 1]);
            let rows = UnitRows {
                l: &b.l[from..to],
                w: &b.w[from..to],
                r: &b.reward[from..to],
                m: if batch.count.is_some() && !row_units { Some(&b.count[from..to]) } else { None },
                cluster: if batch.cluster.is_some() { Some(&b.cluster[from..to]) } else { None },
            };
            let key = unit_key(batch, start + from);
            let place = match batch.count {
                Some(_) if row_units => Placement::draws(key, b.count[from] as u64),
                _ => Placement::one(key),
            };
            unit_stats(rows, clusters, &mut b.scratch, &mut b.unit);
            let unit = &b.unit;
            b.group_mass.clear();
            if batch.group.is_some() {
                group_masses(&rows, &b.group[from..to], unit, &mut b.group_table, &mut b.group_mass);
            }
            if let Some(shared) = labels.as_deref_mut() {
                shared.count_labels(unit, &b.group_mass, &place);
            }
            let degree = if row_units { 1 } else { unit.degree(batch.cluster.is_some()) };
            policy.totals.add(unit, &b.group_mass, degree, marginal, &place, Sign::Plus);
            add_scalars(&rows, unit, &place, row_units, &mut policy.scalars);
            if let Some(tokens) = batch.tokens {
                let tokens = &tokens[start + from..start + to];
                let wt = weighted_mean(&rows, unit, |k| tokens[k], |k| tokens[k]);
                policy.scalars.wt.add_scaled(wt * place.times() as f64, unit.e);
            }
            if batch.baseline.is_some() && !b.means.is_empty() {
                add_doubly_robust(&rows, unit, &b.baseline[from..to], &b.means[from..to], &place, &mut policy.scalars);
            }
            if unit.l_max > f64::NEG_INFINITY && policy.tail.admits(unit.l_max, key) {
                let row = |k: usize| TailRow {
                    l: b.l[k],
                    r: b.reward[k],
                    m: if batch.count.is_some() { b.count[k] } else { 1.0 },
                    cluster: if batch.cluster.is_some() { clusters.key(b.cluster[k]) } else { 0 },
                    group: if batch.group.is_some() { groups.key(b.group[k]) } else { 0 },
                };
                policy.tail.push(TailUnit::new(unit.l_max, key, (from..to).map(row).collect()));
            }
        }
    }
}

/// Log-weights, leave-one-out baseline, zero weights, largest unit weight.
#[inline(always)]
fn add_scalars(rows: &UnitRows<'_>, unit: &UnitStats, place: &Placement, row_units: bool, s: &mut PolicyScalars) {
    let times = place.times() as f64;
    let per_draw = 1.0 / unit.draws;
    let (mut largest, mut zeros) = (0.0f64, 0.0f64);
    for (k, &l) in rows.l.iter().enumerate() {
        let size = l.abs();
        if size < f64::INFINITY {
            largest = if size > largest { size } else { largest };
        } else {
            zeros += rows.m.map_or(1.0, |m| m[k]);
        }
    }
    let fixed_l = Fixed::new(unit.draws, math::exponent(largest.max(1.0)) + 1);
    let fixed = Fixed::new(unit.draws, 0);
    let (mut l_sum, mut r_sum) = (0i64, 0i64);
    for k in 0..rows.l.len() {
        let m = rows.m.map_or(1.0, |m| m[k]);
        let l = rows.l[k];
        l_sum += fixed_l.encode(m * if l.abs() < f64::INFINITY { l } else { 0.0 });
        r_sum += fixed.encode(m * rows.r[k]);
    }
    let l = fixed_l.decode(l_sum) * per_draw;
    s.l[0].add(l * times);
    s.l[1].add(l * l * times);
    let wl = weighted_mean(rows, unit, |k| if rows.l[k].abs() < f64::INFINITY { rows.l[k] } else { 0.0 }, |_| largest);
    s.wl.add_scaled(wl * times, unit.e);
    s.zero_draws += zeros as u64 * place.times();
    if unit.a > 0.0 {
        let e = math::exponent(unit.a);
        s.raise_max(unit.e + e, unit.a * math::pow2(i64::from(-e)));
    }
    if !row_units {
        let (b1, r) = if unit.draws >= 2.0 {
            let (sum_r, sum_w, sum_wr) = (fixed.decode(r_sum), unit.a * unit.draws, unit.n * unit.draws);
            (unit.n - (sum_r * sum_w - sum_wr) * (per_draw / (unit.draws - 1.0)), sum_r * per_draw)
        } else {
            (unit.n, 0.0)
        };
        let [b, rr, bb, br, rrr] = &mut s.baseline;
        b.add_scaled(b1, unit.e);
        rr.add(r);
        bb.add_scaled(b1 * b1, 2 * unit.e);
        br.add_scaled(b1 * r, unit.e);
        rrr.add(r * r);
    }
}

/// `sum m w f / K` times `2^-e`, summed in fixed point; `bound` gives sizes that `|f|` does not exceed.
#[inline(always)]
fn weighted_mean(rows: &UnitRows<'_>, unit: &UnitStats, f: impl Fn(usize) -> f64, bound: impl Fn(usize) -> f64) -> f64 {
    if unit.l_max == f64::NEG_INFINITY {
        return 0.0;
    }
    let mut largest = 1.0f64;
    for k in 0..rows.l.len() {
        largest = largest.max(bound(k).abs());
    }
    let fixed = Fixed::new(unit.draws, math::exponent(largest) + 1);
    let mut sum = 0i64;
    for k in 0..rows.l.len() {
        sum += fixed.encode(rows.m.map_or(1.0, |m| m[k]) * (relative_weight(rows, unit, k) * f(k)));
    }
    fixed.decode(sum) / unit.draws
}

/// A row's weight times `2^-e`; the same bits as in [`unit_stats`] for moderate weights.
#[inline(always)]
fn relative_weight(rows: &UnitRows<'_>, unit: &UnitStats, k: usize) -> f64 {
    if unit.e.abs() < 400 {
        rows.w[k] * math::pow2(i64::from(-unit.e))
    } else {
        math::exp(rows.l[k] - f64::from(unit.e) * core::f64::consts::LN_2)
    }
}

#[cold]
#[inline(never)]
fn add_doubly_robust(
    rows: &UnitRows<'_>,
    unit: &UnitStats,
    baseline: &[f64],
    means: &[f64],
    place: &Placement,
    s: &mut PolicyScalars,
) {
    let times = place.times() as f64;
    let q = weighted_mean(rows, unit, |k| rows.r[k] - baseline[k], |_| batch::BASELINE_REACH + 1.0);
    let fixed = Fixed::new(unit.draws, math::exponent(batch::BASELINE_REACH) + 1);
    let g: i64 = means.iter().enumerate().map(|(k, &x)| fixed.encode(rows.m.map_or(1.0, |m| m[k]) * x)).sum();
    let g = fixed.decode(g) / unit.draws;
    let terms = [(q, 1), (g, 0), (q * q, 2), (q * g, 1), (g * g, 0), (unit.a * q, 2), (unit.a * g, 1)];
    for (sum, (term, degree)) in s.dr.iter_mut().zip(terms) {
        sum.add_scaled(term * times, degree * unit.e);
    }
}

/// Working memory of [`group_masses`]: sums per group slot, all zero between calls.
pub type GroupTable = Vec<(i64, i64, f64)>;

/// Means of `w` and `w r` per annotator group of a unit.
#[inline(always)]
pub fn group_masses(
    rows: &UnitRows<'_>,
    group: &[u32],
    unit: &UnitStats,
    table: &mut GroupTable,
    out: &mut Vec<GroupMass>,
) {
    let fixed = Fixed::new(unit.draws, 0);
    for (k, &slot) in group.iter().enumerate() {
        if table.len() <= slot as usize {
            table.resize(slot as usize + 1, (0, 0, 0.0));
        }
        let sums = &mut table[slot as usize];
        if sums.2 == 0.0 {
            out.push(GroupMass { slot, a: 0.0, n: 0.0 });
        }
        let m = rows.m.map_or(1.0, |m| m[k]);
        let w = if unit.l_max == f64::NEG_INFINITY { 0.0 } else { m * relative_weight(rows, unit, k) };
        sums.0 += fixed.encode(w);
        sums.1 += fixed.encode(w * rows.r[k]);
        sums.2 += m;
    }
    for mass in out.iter_mut() {
        let (a, n, draws) = core::mem::take(&mut table[mass.slot as usize]);
        mass.a = fixed.decode(a) / draws;
        mass.n = fixed.decode(n) / draws;
    }
}

fn add_shared_chunk(config: &Config, batch: &Batch<'_>, start: usize, b: &Buffers, shared: &mut Shared) {
    let row_units = batch.unit.is_none();
    shared.rows += b.reward.len() as u64;
    if batch.group.is_some() {
        b.group.iter().for_each(|&slot| shared.group_rows[slot as usize] += 1);
    }
    for u in 0..b.starts.len() - 1 {
        let (from, to) = (b.starts[u], b.starts[u + 1]);
        let count = |k: usize| if batch.count.is_some() { b.count[k] } else { 1.0 };
        let draws: f64 = (from..to).map(count).sum();
        shared.draws += draws as u64;
        let key = unit_key(batch, start + from);
        let (place, unit_draws) = match batch.count {
            Some(_) if row_units => (Placement::draws(key, b.count[from] as u64), 1.0),
            _ => (Placement::one(key), draws),
        };
        let multiplicity = |k: usize| if row_units { 1.0 } else { count(k) };
        let degree = if row_units || !config.has_cluster { 1 } else { (unit_draws as usize).clamp(1, MAX_DEGREE) };
        place.each(|bucket, times| shared.units[degree - 1][bucket] += times);
        shared.units_repeated += u64::from(unit_draws >= 2.0) * place.times();
        let times = place.times() as f64;
        let fixed = Fixed::new(unit_draws, 0);
        let sum: i64 = (from..to).map(|k| fixed.encode(multiplicity(k) * b.reward[k])).sum();
        let mean = fixed.decode(sum) / unit_draws;
        shared.reward[0].add(mean * times);
        shared.reward[1].add(mean * mean * times);
        if let Some(tokens) = batch.tokens {
            // Whole numbers below 2^53: their sum has no rounding and no order.
            let sum: f64 = (from..to).map(|k| multiplicity(k) * tokens[start + k]).sum();
            shared.tokens.add(sum / unit_draws * times);
        }
    }
}
