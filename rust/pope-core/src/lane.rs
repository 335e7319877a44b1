//! One thread's share of the work: rows in, exact sums out.

use crate::batch::{self, Batch};
use crate::error::Result;
use crate::fixed::{Encoded, Fixed, Rows};
use crate::math;
use crate::pairs::{Similarities, check_vectors, pair_stats};
use crate::scalars::{PolicyScalars, Waiting, add_product};
use crate::simd::multiversion;
use crate::slots::Slots;
use crate::state::Config;
use crate::sum::ExactSum;
use crate::tail::{Tail, TailRow, TailUnit};
use crate::totals::{BUCKETS, GroupMass, Placement, Sign, Totals, merge_sums};
use crate::unit::{MAX_DEGREE, Scratch, UnitStats, unit_stats};

/// Rows are handled in chunks of about this many, so that the buffers stay in the nearer caches.
const CHUNK: usize = 256;

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
    /// Units with at least 2 draws per bucket; empty without embeddings.
    pub pair_units: Vec<u64>,
    waiting: Waiting<1>,
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
            pair_units: Vec::new(),
            waiting: Waiting::default(),
        }
    }
}

impl Shared {
    /// Number of units.
    pub fn n_units(&self) -> u64 {
        self.units.iter().flatten().sum()
    }

    /// Units with at least two draws, per bucket.
    pub fn pair_units(&self) -> [u64; BUCKETS] {
        core::array::from_fn(|bucket| self.pair_units.get(bucket).copied().unwrap_or(0))
    }

    fn settle(&mut self) {
        let ([r], n) = self.waiting.take();
        add_product(&r[..n], None, &mut self.reward[0]);
        add_product(&r[..n], Some(&r[..n]), &mut self.reward[1]);
    }

    fn make_room(&mut self, clusters: usize, groups: usize) {
        self.clusters.resize(clusters.max(self.clusters.len()), [0; 2]);
        self.groups.resize(groups.max(self.groups.len()), [0; BUCKETS]);
        self.group_rows.resize(self.groups.len(), 0);
    }

    /// Count a unit and its labels.
    #[inline(always)]
    fn count(&mut self, unit: &UnitStats, degree: usize, groups: &[GroupMass], place: &Placement) {
        let times = place.times();
        self.draws += math::whole(unit.draws) * times;
        self.units_repeated += u64::from(unit.draws >= 2.0) * times;
        place.each(|bucket, times| self.units[degree - 1][bucket] += times);
        if times == 1 {
            if self.waiting.push([unit.r]) {
                self.settle();
            }
        } else {
            self.reward[0].add(unit.r * times as f64);
            self.reward[1].add(unit.r * unit.r * times as f64);
        }
        for c in &unit.clusters {
            let [draws, units] = &mut self.clusters[c.slot as usize];
            *draws += math::whole(c.draws) * place.times();
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
    rows: Rows,
    encoded: Encoded,
    behavior: Vec<f64>,
    count: Vec<f64>,
    baseline: Vec<f64>,
    means: Vec<f64>,
    group: Vec<u32>,
    scratch: Scratch,
    unit: UnitStats,
    group_mass: Vec<GroupMass>,
    group_table: GroupTable,
    similar: Similarities,
    weights: Vec<f64>,
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
        let policy = || PolicyLane {
            totals: Totals::default(),
            scalars: PolicyScalars::default(),
            tail: Tail::new(config.tail_capacity),
        };
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
        load_shared(config, batch, start, end, b)?;
        batch::mark_starts(batch.unit.map(|unit| &unit[start..end]), n, &mut b.rows.starts);
        b.rows.cluster.clear();
        if let Some(cluster) = batch.cluster {
            self.clusters.load(cluster, start, end, &mut b.rows.cluster);
        }
        b.group.clear();
        if let Some(group) = batch.group {
            b.group.extend((start..end).map(|i| self.groups.slot(group.get(i))));
        }
        if let Some(vectors) = batch.embedding {
            b.similar.load(batch, vectors, start, &b.rows.starts)?;
        }
        // Everything is checked before anything is counted; the first policy's columns then stay loaded.
        for policy in (0..self.policies.len()).rev() {
            load_policy(config, batch, start, policy, &mut self.buffers)?;
        }
        for policy in 0..self.policies.len() {
            if policy > 0 {
                load_policy(config, batch, start, policy, &mut self.buffers)?;
            }
            let b = &mut self.buffers;
            batch::log_weights(&mut b.rows.l, &b.behavior, &mut b.rows.w);
            b.encoded.encode(&mut b.rows);
            let view = ChunkView { config, batch, start, clusters: &self.clusters, groups: &self.groups };
            // What does not depend on the policy is counted with the first one.
            let shared = (policy == 0).then_some(&mut self.shared);
            add_chunk(&view, b, &mut self.policies[policy], shared);
        }
        Ok(())
    }

    /// Bring everything into the sums and the tail into canonical form.
    pub fn settle(&mut self) {
        self.shared.settle();
        for policy in &mut self.policies {
            policy.totals.settle();
            policy.scalars.settle();
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
        a.pair_units.resize(a.pair_units.len().max(b.pair_units.len()), 0);
        for (a, b) in a.pair_units.iter_mut().zip(&b.pair_units) {
            *a += b;
        }
        for (a, b) in self.policies.iter_mut().zip(&other.policies) {
            a.totals.merge(&b.totals, &clusters, &groups);
            a.scalars.merge(&b.scalars);
            a.tail.merge(&b.tail);
        }
    }
}

/// Check the values of rows `start..end` without counting them.
pub fn check_rows(config: &Config, batch: &Batch<'_>, start: usize, end: usize) -> Result<()> {
    let b = &mut Buffers::default();
    load_shared(config, batch, start, end, b)?;
    if let Some(vectors) = batch.embedding {
        check_vectors(vectors, start, end)?;
    }
    (0..config.policies.len()).try_for_each(|policy| load_policy(config, batch, start, policy, b))
}

/// Load and check the columns that no policy changes, but for labels.
fn load_shared(config: &Config, batch: &Batch<'_>, start: usize, end: usize, b: &mut Buffers) -> Result<()> {
    let n = end - start;
    b.behavior.resize(n, 0.0);
    b.rows.r.resize(n, 0.0);
    b.rows.l.resize(n, 0.0);
    b.rows.w.resize(n, 0.0);
    batch::load_behavior(batch.behavior, start, &mut b.behavior)?;
    batch::load_reward(batch.reward, config.reward_range, start, &mut b.rows.r)?;
    b.count.clear();
    b.rows.m.clear();
    if let Some(count) = batch.count {
        b.count.resize(n, 0.0);
        batch::load_count(count, start, &mut b.count)?;
        if !config.row_units {
            b.rows.m.clone_from(&b.count);
        }
    }
    if let Some(tokens) = batch.tokens {
        batch::check_tokens(&tokens[start..end], start)?;
    }
    if let Some(baseline) = batch.baseline {
        b.baseline.resize(n, 0.0);
        batch::load_baseline(baseline, "baseline", config.reward_range, start, &mut b.baseline)?;
    }
    Ok(())
}

fn load_policy(config: &Config, batch: &Batch<'_>, start: usize, policy: usize, b: &mut Buffers) -> Result<()> {
    batch::load_target(batch.targets[policy], &config.policies[policy], start, &mut b.rows.l)?;
    if let Some(means) = batch.baseline_means.get(policy) {
        b.means.resize(b.rows.l.len(), 0.0);
        batch::load_baseline(means, "baseline_mean", config.reward_range, start, &mut b.means)?;
    }
    Ok(())
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

multiversion! {
    fn add_chunk(view: &ChunkView<'_>, b: &mut Buffers, policy: &mut PolicyLane, shared: Option<&mut Shared>) {
        let ChunkView { config, batch, start, clusters, groups } = *view;
        let mut shared = shared;
        let row_units = config.row_units;
        let marginal = config.marginal();
        let extras = batch.tokens.is_some() || batch.baseline.is_some() || batch.embedding.is_some();
        if let Some(shared) = shared.as_deref_mut() {
            shared.rows += b.rows.l.len() as u64;
            shared.make_room(clusters.len(), groups.len());
            b.group.iter().for_each(|&slot| shared.group_rows[slot as usize] += 1);
        }
        for u in 0..b.rows.starts.len() - 1 {
            let from = b.rows.starts[u];
            let row = start + from;
            // A row unit's key is its number in the log.
            let key = batch.unit.map_or(batch.first_row + row as u64, |unit| unit[row] as u64);
            let place = if row_units && !b.count.is_empty() {
                Placement::draws(key, b.count[from] as u64)
            } else {
                Placement::one(key)
            };
            unit_stats(&b.rows, &b.encoded, u, clusters, &mut b.scratch, &mut b.unit);
            let unit = &b.unit;
            b.group_mass.clear();
            if !b.group.is_empty() {
                group_masses(&b.rows, &b.encoded, u, &b.group, &mut b.group_table, &mut b.group_mass);
            }
            let degree = if row_units { 1 } else { unit.degree(config.has_cluster) };
            policy.totals.add(unit, &b.group_mass, degree, marginal, &place, Sign::Plus);
            policy.scalars.add(unit, &b.encoded.units[u], &place, row_units);
            if let Some(shared) = shared.as_deref_mut() {
                shared.count(unit, degree, &b.group_mass, &place);
            }
            if extras {
                add_extras(view, b, u, &place, policy, shared.as_deref_mut());
            }
            if b.unit.l_max > f64::NEG_INFINITY && policy.tail.admits(b.unit.l_max, key) {
                let with_pairs = batch.embedding.is_some();
                policy.tail.push(if with_pairs { tail_pairs(view, b, u, key) } else { tail_unit(view, b, u, key) });
            }
        }
    }
}

#[cold]
#[inline(never)]
fn tail_unit(view: &ChunkView<'_>, b: &Buffers, u: usize, key: u64) -> TailUnit {
    let rows = b.rows.starts[u]..b.rows.starts[u + 1];
    TailUnit::new(b.unit.l_max, key, rows.map(|k| tail_row(view, b, k)).collect())
}

#[cold]
#[inline(never)]
fn tail_pairs(view: &ChunkView<'_>, b: &Buffers, u: usize, key: u64) -> TailUnit {
    let (order, similar) = b.similar.unit(u, b.rows.starts[u]..b.rows.starts[u + 1]);
    let rows = order.iter().map(|&k| tail_row(view, b, k as usize)).collect();
    TailUnit::with_pairs(b.unit.l_max, key, rows, similar)
}

#[inline(always)]
fn tail_row(view: &ChunkView<'_>, b: &Buffers, k: usize) -> TailRow {
    TailRow {
        l: b.rows.l[k],
        r: b.rows.r[k],
        m: b.count.get(k).copied().unwrap_or(1.0),
        cluster: b.rows.cluster.get(k).map_or(0, |&slot| view.clusters.key(slot)),
        group: b.group.get(k).map_or(0, |&slot| view.groups.key(slot)),
    }
}

/// Token counts, reward predictions and embeddings, which few logs have.
#[inline(never)]
fn add_extras(
    view: &ChunkView<'_>,
    b: &mut Buffers,
    u: usize,
    place: &Placement,
    policy: &mut PolicyLane,
    mut shared: Option<&mut Shared>,
) {
    if view.batch.embedding.is_some() {
        add_pairs(b, u, place, &mut policy.totals, shared.as_deref_mut());
    }
    let s = &mut policy.scalars;
    let (from, to) = (b.rows.starts[u], b.rows.starts[u + 1]);
    let scale = b.encoded.units[u];
    let times = place.times() as f64;
    let multiplicity = |k: usize| b.rows.m.get(k).copied().unwrap_or(1.0);
    // Mean of m w f over the draws, times 2^-e, in fixed point: |f| is at most 2^magnitude.
    let weighted_mean = |magnitude: i32, f: &dyn Fn(usize) -> f64| {
        let fixed = Fixed::new(scale.draws, magnitude);
        let sum: i64 =
            (from..to).map(|k| fixed.encode(multiplicity(k) * (b.encoded.relative_weight(&b.rows, k) * f(k)))).sum();
        fixed.decode(sum) / scale.draws
    };
    if let Some(tokens) = view.batch.tokens {
        let tokens = |k: usize| tokens[view.start + k];
        let longest = (from..to).map(tokens).fold(1.0, f64::max);
        let wt = weighted_mean(math::exponent(longest) + 1, &tokens);
        s.wt.add_scaled(wt * times, scale.e);
        if let Some(shared) = shared {
            // Whole numbers below 2^53: their sum has no rounding and no order.
            let sum: f64 = (from..to).map(|k| multiplicity(k) * tokens(k)).sum();
            shared.tokens.add(sum / scale.draws * times);
        }
    }
    if view.batch.baseline.is_some() {
        let reach = math::exponent(batch::BASELINE_REACH) + 2;
        let q = weighted_mean(reach, &|k| b.rows.r[k] - b.baseline[k]);
        let fixed = Fixed::new(scale.draws, reach);
        let g: i64 = (from..to).map(|k| fixed.encode(multiplicity(k) * b.means[k])).sum();
        let g = fixed.decode(g) / scale.draws;
        let a = b.unit.a;
        let terms = [(q, 1), (g, 0), (q * q, 2), (q * g, 1), (g * g, 0), (a * q, 2), (a * g, 1)];
        for (sum, (term, degree)) in s.dr.iter_mut().zip(terms) {
            sum.add_scaled(term * times, degree * scale.e);
        }
    }
}

/// Similarities of the draws of a unit.
fn add_pairs(b: &mut Buffers, u: usize, place: &Placement, totals: &mut Totals, shared: Option<&mut Shared>) {
    let of_unit = b.similar.unit(u, b.rows.starts[u]..b.rows.starts[u + 1]);
    let Some(pairs) = pair_stats(&b.rows, &b.encoded, u, of_unit, &mut b.weights) else { return };
    totals.pairs.get_or_insert_default().add(&b.unit, &pairs, place, Sign::Plus);
    if let Some(shared) = shared {
        shared.pair_units.resize(BUCKETS, 0);
        place.each(|bucket, times| shared.pair_units[bucket] += times);
    }
}

/// Working memory of [`group_masses`]: sums per group slot, all zero between calls.
pub type GroupTable = Vec<(i64, i64, f64)>;

/// Means of `w` and `w r` per annotator group of unit `u`; `group` holds the rows' slots.
#[inline(always)]
pub fn group_masses(
    rows: &Rows,
    encoded: &Encoded,
    u: usize,
    group: &[u32],
    table: &mut GroupTable,
    out: &mut Vec<GroupMass>,
) {
    for k in rows.starts[u]..rows.starts[u + 1] {
        let slot = group[k];
        if table.len() <= slot as usize {
            table.resize(slot as usize + 1, (0, 0, 0.0));
        }
        let sums = &mut table[slot as usize];
        if sums.2 == 0.0 {
            out.push(GroupMass { slot, a: 0.0, n: 0.0 });
        }
        sums.0 += encoded.w[0][k];
        sums.1 += encoded.wr[k];
        sums.2 += if rows.m.is_empty() { 1.0 } else { rows.m[k] };
    }
    let step = encoded.units[u].step;
    for mass in out.iter_mut() {
        let (a, n, draws) = core::mem::take(&mut table[mass.slot as usize]);
        mass.a = a as f64 * step / draws;
        mass.n = n as f64 * step / draws;
    }
}
