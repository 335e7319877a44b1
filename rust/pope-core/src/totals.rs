//! Exact sums over units, everything that truncation can change: what the estimators are functions of.
//!
//! Units are kept apart by class (how many of `P_1 .. P_4` they can estimate), so that the order `M` of the diversity
//! is chosen when all units are known, and by one of 128 hashed buckets for the grouped jackknife. A unit can be taken
//! out again without a trace: that is how the sums at any truncation level are made from the untruncated ones.

use crate::hash::mix;
use crate::hist::LogHistogram;
use crate::pairs::PairTotals;
use crate::simd::multiversion;
use crate::sum::{ExactSum, WIDTH, add_rows};
use crate::unit::{MAX_DEGREE, MAX_ORDER, UnitStats};

/// Number of hashed unit buckets.
pub const BUCKETS: usize = 128;
/// Length of the vector `z = (A, N, P_2, P_3, P_4)` of a unit.
pub const Z: usize = MAX_DEGREE + 1;
/// Length of what is summed per bucket: `z`, then the product forms `Z_1, Z_2, Z_3`.
pub const FIRST: usize = Z + MAX_ORDER;
/// Degree in the weights of each of these.
pub const DEGREE: [i32; FIRST] = [1, 1, 2, 3, 4, 2, 3, 4];
/// Pairs `i <= j` of elements of `z`.
pub const PAIRS: usize = Z * (Z + 1) / 2;
/// Weights of a unit may be this many octaves from 1 and still go through plain doubles (degree 8 stays in range).
const PLAIN_OCTAVES: i32 = 60;
const BLOCK: usize = 256;
/// Length of the blocks of [`BucketBlock`].
const BUCKET_BLOCK: usize = 32;
/// Length of the blocks of [`PairBlock`], of which there is one per cluster.
const PAIR_BLOCK: usize = 64;
/// Clusters or groups whose bucket sums are stored as a dense table; rarer ones share a map.
const DENSE: usize = 256;

/// Where the pair `i <= j` stands.
#[inline(always)]
pub const fn pair(i: usize, j: usize) -> usize {
    j * (j + 1) / 2 + i
}

/// The bucket of a unit.
#[inline(always)]
pub fn bucket_of(key: u64) -> usize {
    (mix(key) >> 57) as usize
}

/// Rows of more draws than this are spread over buckets by binomial splitting instead of draw by draw.
const COUNTED_DRAWS: u64 = 1 << 16;

/// Spread `times` draws over buckets as a multinomial would: halve them binomially at every node of a binary tree (in
/// the normal approximation, which is excellent for the more than 500 draws that a leaf gets).
fn split_draws(key: u64, times: u64, node: usize, counts: &mut [u64; BUCKETS]) {
    if node >= BUCKETS {
        counts[node - BUCKETS] = times;
        return;
    }
    let uniform = (mix(key ^ mix(node as u64)) >> 11) as f64 + 0.5;
    let z = crate::special::normal_quantile(uniform / (1u64 << 53) as f64);
    let left = (times as f64 / 2.0 + z * (times as f64).sqrt() / 2.0).round().clamp(0.0, times as f64) as u64;
    split_draws(key, left, 2 * node, counts);
    split_draws(key, times - left, 2 * node + 1, counts);
}

/// Where a unit is counted: its buckets with how often. An ordinary unit has one; a row that stands for several
/// independent draws (`unit="row"` with counts) spreads over buckets as those draws would.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placement {
    first: (u8, u64),
    more: Vec<(u8, u64)>,
    times: u64,
}

impl Placement {
    /// One unit in the bucket of its key.
    #[inline(always)]
    pub fn one(key: u64) -> Self {
        Placement { first: (bucket_of(key) as u8, 1), more: Vec::new(), times: 1 }
    }

    /// `times` independent draws, each in a bucket of its own.
    pub fn draws(key: u64, times: u64) -> Self {
        if times == 1 {
            return Self::one(key);
        }
        let mut counts = [0u64; BUCKETS];
        if times <= COUNTED_DRAWS {
            for copy in 0..times {
                counts[bucket_of(mix(key).wrapping_add(copy))] += 1;
            }
        } else {
            split_draws(key, times, 1, &mut counts);
        }
        let mut used = counts.iter().enumerate().filter(|&(_, &n)| n > 0).map(|(b, &n)| (b as u8, n));
        let first = used.next().unwrap_or((0, 0));
        Placement { first, more: used.collect(), times }
    }

    /// Number of units.
    #[inline(always)]
    pub fn times(&self) -> u64 {
        self.times
    }

    /// The bucket of an ordinary unit.
    #[inline(always)]
    fn only(&self) -> usize {
        usize::from(self.first.0)
    }

    /// Call `f(bucket, times)` for each bucket.
    #[inline(always)]
    pub fn each(&self, mut f: impl FnMut(usize, u64)) {
        f(usize::from(self.first.0), self.first.1);
        for &(bucket, times) in &self.more {
            f(usize::from(bucket), times);
        }
    }
}

/// `+1` to count a unit, `-1` to take it out again.
#[derive(Clone, Copy, PartialEq)]
pub enum Sign {
    /// Count.
    Plus,
    /// Take out.
    Minus,
}

impl Sign {
    /// The sign times a number of units.
    #[inline(always)]
    pub fn of(self, times: u64) -> f64 {
        if self == Sign::Plus { times as f64 } else { -(times as f64) }
    }
}

/// Sums over the units of one class.
#[derive(Clone, Debug)]
pub struct ClassTotals {
    /// Elements of `z` in use: `degree + 1`.
    pub z: usize,
    /// First-order sums per bucket, in the order of [`DEGREE`].
    pub buckets: Vec<[ExactSum; FIRST]>,
    /// `sum z_i z_j`, by [`pair`].
    pub gram: [ExactSum; PAIRS],
    /// Histograms of `A`, `N` and `A - N`.
    pub utility: [LogHistogram; 3],
    /// Histograms of `X_M`, one per order.
    pub lower: Vec<LogHistogram>,
    /// Histograms of `Y_M`, one per order.
    pub upper: Vec<LogHistogram>,
    block: Option<Box<Block>>,
    waiting: Vec<BucketBlock>,
}

/// Rows that wait for their bucket: one cache line each instead of eight sums in eight places.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct BucketBlock {
    rows: [[f64; FIRST]; BUCKET_BLOCK],
    len: usize,
}

impl Default for BucketBlock {
    fn default() -> Self {
        BucketBlock { rows: [[0.0; FIRST]; BUCKET_BLOCK], len: 0 }
    }
}

multiversion! {
    fn add_bucket(rows: &[[f64; FIRST]], sums: &mut [ExactSum; FIRST]) {
        add_rows(rows, sums);
    }
}

#[derive(Clone, Debug)]
struct Block {
    z: [[f64; BLOCK]; Z],
    len: usize,
}

impl ClassTotals {
    /// Empty sums of the class of this degree (1 to 4).
    pub fn new(degree: usize) -> Self {
        ClassTotals {
            z: degree + 1,
            buckets: vec![Default::default(); BUCKETS],
            gram: Default::default(),
            utility: Default::default(),
            lower: vec![LogHistogram::default(); degree - 1],
            upper: vec![LogHistogram::default(); degree - 1],
            block: None,
            waiting: Vec::new(),
        }
    }

    #[inline(always)]
    fn add(&mut self, unit: &UnitStats, place: &Placement, sign: Sign) {
        let z = [unit.a, unit.n, unit.p[0], unit.p[1], unit.p[2]];
        let used = self.z;
        let plain = sign == Sign::Plus && place.times() == 1 && unit.e.abs() <= PLAIN_OCTAVES;
        let first = [z[0], z[1], z[2], z[3], z[4], unit.z[0], unit.z[1], unit.z[2]];
        if plain {
            self.wait(place.only(), first, unit.e);
        } else {
            place.each(|bucket, times| {
                for (i, sum) in self.buckets[bucket].iter_mut().enumerate() {
                    sum.add_scaled(first[i] * sign.of(times), DEGREE[i] * unit.e);
                }
            });
        }
        let times = place.times();
        let values = [unit.a, unit.n, unit.a - unit.n];
        for (histogram, value) in self.utility.iter_mut().zip(values) {
            count(histogram, value, unit.e, times, sign);
        }
        for order in 0..self.lower.len() {
            count(&mut self.lower[order], unit.x[order], 0, times, sign);
            count(&mut self.upper[order], unit.y[order], 0, times, sign);
        }
        if plain {
            return;
        }
        for j in 0..used {
            for i in 0..=j {
                let scale = (DEGREE[i] + DEGREE[j]) * unit.e;
                self.gram[pair(i, j)].add_scaled(z[i] * z[j] * sign.of(times), scale);
            }
        }
    }

    /// Let a unit's values wait: in the order of units for the products, in that of buckets for the first-order sums.
    #[inline(always)]
    fn wait(&mut self, bucket: usize, first: [f64; FIRST], e: i32) {
        let block = self.block.get_or_insert_with(|| Box::new(Block { z: [[0.0; BLOCK]; Z], len: 0 }));
        let up = crate::math::pow2(i64::from(e));
        let (up2, up3) = (up * up, up * up * up);
        let powers = [up, up, up2, up3, up2 * up2, up2, up3, up2 * up2];
        let first: [f64; FIRST] = core::array::from_fn(|i| first[i] * powers[i]);
        for i in 0..Z {
            block.z[i][block.len] = first[i];
        }
        block.len += 1;
        if block.len == BLOCK {
            flush(&block.z, BLOCK, self.z, &mut self.gram);
            block.len = 0;
        }
        if self.waiting.is_empty() {
            self.waiting.resize_with(BUCKETS, BucketBlock::default);
        }
        let block = &mut self.waiting[bucket];
        block.rows[block.len] = first;
        block.len += 1;
        if block.len == BUCKET_BLOCK {
            add_bucket(&block.rows, &mut self.buckets[bucket]);
            block.len = 0;
        }
    }

    /// Bring what waits in the block into the sums.
    pub fn settle(&mut self) {
        if let Some(block) = self.block.take() {
            flush(&block.z, block.len, self.z, &mut self.gram);
        }
        for (block, sums) in self.waiting.drain(..).zip(&mut self.buckets) {
            add_bucket(&block.rows[..block.len], sums);
        }
    }

    /// Add settled sums of the same class.
    pub fn merge(&mut self, other: &ClassTotals) {
        for (a, b) in self.buckets.iter_mut().zip(&other.buckets) {
            merge_sums(a, b);
        }
        merge_sums(&mut self.gram, &other.gram);
        for (a, b) in self.histograms_mut().zip(other.histograms()) {
            a.merge(b);
        }
    }

    /// All histograms in a fixed order.
    pub fn histograms(&self) -> impl Iterator<Item = &LogHistogram> {
        self.utility.iter().chain(&self.lower).chain(&self.upper)
    }

    /// All histograms in the same fixed order.
    pub fn histograms_mut(&mut self) -> impl Iterator<Item = &mut LogHistogram> {
        self.utility.iter_mut().chain(&mut self.lower).chain(&mut self.upper)
    }
}

#[inline(always)]
fn count(histogram: &mut LogHistogram, x: f64, scale: i32, times: u64, sign: Sign) {
    match sign {
        Sign::Plus => histogram.add(x, scale, times),
        Sign::Minus => histogram.remove(x, scale, times),
    }
}

/// `a_i += b_i`.
pub fn merge_sums(a: &mut [ExactSum], b: &[ExactSum]) {
    for (a, b) in a.iter_mut().zip(b) {
        a.merge(b);
    }
}

multiversion! {
    /// Add the products of all pairs of columns.
    fn flush(z: &[[f64; BLOCK]; Z], len: usize, used: usize, gram: &mut [ExactSum; PAIRS]) {
        let mut product = [0.0; BLOCK];
        for j in 0..used {
            for i in 0..=j {
                for k in 0..len {
                    product[k] = z[i][k] * z[j][k];
                }
                gram[pair(i, j)].add_slice(&product[..len]);
            }
        }
    }
}

/// Bucket sums per slot: dense for the first slots, a map for the long tail of rare labels.
#[derive(Clone, Debug, Default)]
pub struct SlotBuckets {
    dense: Vec<ExactSum>,
    rare: std::collections::HashMap<u64, ExactSum, crate::hash::BuildMix>,
}

impl SlotBuckets {
    /// The sum of a slot's bucket, for adding.
    #[inline(always)]
    pub fn at(&mut self, slot: u32, bucket: usize) -> &mut ExactSum {
        let index = slot as usize * BUCKETS + bucket;
        if index < self.dense.len() {
            return &mut self.dense[index];
        }
        self.grow(slot, index)
    }

    #[inline(never)]
    fn grow(&mut self, slot: u32, index: usize) -> &mut ExactSum {
        if (slot as usize) < DENSE {
            self.dense.resize_with((slot as usize + 1) * BUCKETS, ExactSum::default);
            return &mut self.dense[index];
        }
        self.rare.entry(index as u64).or_default()
    }

    /// Non-empty `(slot, bucket, sum)`, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, usize, &ExactSum)> {
        let dense = self.dense.iter().enumerate();
        let rare = self.rare.iter().map(|(&index, sum)| (index as usize, sum));
        let all = dense.chain(rare).filter(|(_, sum)| !sum.is_blank());
        all.map(|(index, sum)| ((index / BUCKETS) as u32, index % BUCKETS, sum))
    }

    /// Add another table whose slot `s` is our slot `remap[s]`.
    pub fn merge(&mut self, other: &SlotBuckets, remap: &[u32]) {
        for (slot, bucket, sum) in other.iter() {
            self.at(remap[slot as usize], bucket).merge(sum);
        }
    }
}

/// Sums over units per cluster, for the entropy of the marginal.
#[derive(Clone, Debug, Default)]
pub struct ClusterTotals {
    /// `S_c = sum_i A_ic` per bucket.
    pub mass: SlotBuckets,
    /// `(sum_i A_ic A_i, sum_i A_ic^2)` per slot.
    pub second: Vec<[ExactSum; 2]>,
    waiting: Vec<PairBlock>,
}

/// Second-order terms of one cluster that wait to be summed together.
#[derive(Clone, Debug)]
struct PairBlock {
    terms: [[f64; PAIR_BLOCK]; 2],
    len: usize,
}

impl Default for PairBlock {
    fn default() -> Self {
        PairBlock { terms: [[0.0; PAIR_BLOCK]; 2], len: 0 }
    }
}

impl ClusterTotals {
    /// Sums of stored parts, nothing waiting.
    pub fn from_parts(mass: SlotBuckets, second: Vec<[ExactSum; 2]>) -> Self {
        ClusterTotals { mass, second, waiting: Vec::new() }
    }

    fn grow(&mut self, slots: usize) {
        if self.second.len() < slots {
            self.second.resize_with(slots, Default::default);
        }
    }

    #[inline(always)]
    fn add(&mut self, unit: &UnitStats, place: &Placement, sign: Sign) {
        let ordinary = sign == Sign::Plus && place.times() == 1;
        let plain = ordinary && unit.e.abs() <= PLAIN_OCTAVES;
        let square = if plain { crate::math::pow2(i64::from(2 * unit.e)) } else { 0.0 };
        for c in &unit.clusters {
            let slot = c.slot as usize;
            if ordinary {
                self.mass.at(c.slot, place.only()).add_positive(c.mass, unit.e);
            } else {
                place.each(|bucket, times| {
                    self.mass.at(c.slot, bucket).add_scaled(c.mass * sign.of(times), unit.e);
                });
            }
            if self.second.len() <= slot {
                self.grow(slot + 1);
            }
            let terms = [c.mass * unit.a, c.mass * c.mass];
            if plain && slot < DENSE {
                self.wait(slot, terms.map(|x| x * square));
            } else {
                let times = sign.of(place.times());
                for (sum, x) in self.second[slot].iter_mut().zip(terms) {
                    sum.add_scaled(x * times, 2 * unit.e);
                }
            }
        }
    }

    #[inline(always)]
    fn wait(&mut self, slot: usize, terms: [f64; 2]) {
        if self.waiting.len() <= slot {
            self.waiting.resize_with(slot + 1, PairBlock::default);
        }
        let block = &mut self.waiting[slot];
        for (column, x) in block.terms.iter_mut().zip(terms) {
            column[block.len] = x;
        }
        block.len += 1;
        if block.len == PAIR_BLOCK {
            add_columns(&block.terms, PAIR_BLOCK, &mut self.second[slot]);
            block.len = 0;
        }
    }

    fn settle(&mut self) {
        for (slot, block) in self.waiting.drain(..).enumerate() {
            add_columns(&block.terms, block.len, &mut self.second[slot]);
        }
    }

    fn merge(&mut self, other: &ClusterTotals, slots: &[u32]) {
        self.mass.merge(&other.mass, slots);
        for (slot, sums) in other.second.iter().enumerate() {
            let slot = slots[slot] as usize;
            self.grow(slot + 1);
            merge_sums(&mut self.second[slot], sums);
        }
    }
}

multiversion! {
    /// Add two columns to two sums.
    fn add_columns(columns: &[[f64; PAIR_BLOCK]; 2], len: usize, sums: &mut [ExactSum; 2]) {
        for (sum, column) in sums.iter_mut().zip(columns) {
            sum.add_slice(&column[..len]);
        }
    }
}

/// What one annotator group gives to a unit: means over the group's draws, times `2^-e`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupMass {
    /// Slot of the group.
    pub slot: u32,
    /// `sum m w / sum m` over the group's rows.
    pub a: f64,
    /// `sum m w r / sum m` over the group's rows.
    pub n: f64,
}

/// All sums of one policy that depend on the truncation of its weights.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// By class; entry `d - 1` holds units that can estimate up to `P_d`.
    pub class: [Option<Box<ClassTotals>>; MAX_DEGREE],
    /// Per cluster over the whole log.
    pub cluster: ClusterTotals,
    /// `sum A_g` and `sum N_g` per group and bucket.
    pub group: [SlotBuckets; 2],
    /// Similarities of pairs, if the log has embeddings.
    pub pairs: Option<Box<PairTotals>>,
}

impl Totals {
    /// Count a unit or take it out. `degree` is its class, `marginal` whether clusters are compared across units.
    #[inline(always)]
    pub fn add(
        &mut self,
        unit: &UnitStats,
        groups: &[GroupMass],
        degree: usize,
        marginal: bool,
        place: &Placement,
        sign: Sign,
    ) {
        let class = self.class[degree - 1].get_or_insert_with(|| Box::new(ClassTotals::new(degree)));
        class.add(unit, place, sign);
        if marginal {
            self.cluster.add(unit, place, sign);
        }
        for g in groups {
            place.each(|bucket, times| {
                let times = sign.of(times);
                self.group[0].at(g.slot, bucket).add_scaled(g.a * times, unit.e);
                self.group[1].at(g.slot, bucket).add_scaled(g.n * times, unit.e);
            });
        }
    }

    /// Bring what waits in blocks into the sums. Everything that reads them expects this.
    pub fn settle(&mut self) {
        self.class.iter_mut().flatten().for_each(|class| class.settle());
        self.cluster.settle();
    }

    /// Add another policy's settled totals; `clusters` and `groups` translate its slots to ours.
    pub fn merge(&mut self, other: &Totals, clusters: &[u32], groups: &[u32]) {
        for (degree, theirs) in (1..).zip(&other.class) {
            if let Some(theirs) = theirs {
                let ours = self.class[degree - 1].get_or_insert_with(|| Box::new(ClassTotals::new(degree)));
                ours.merge(theirs);
            }
        }
        self.cluster.merge(&other.cluster, clusters);
        for (ours, theirs) in self.group.iter_mut().zip(&other.group) {
            ours.merge(theirs, groups);
        }
        if let Some(theirs) = &other.pairs {
            self.pairs.get_or_insert_default().merge(theirs);
        }
    }
}

const _: () = assert!(MAX_ORDER + 2 == Z && FIRST == WIDTH);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_spread_like_a_multinomial() {
        for times in [1u64, 1000, COUNTED_DRAWS, 40 * COUNTED_DRAWS] {
            // Chi-square statistic of the bucket counts, averaged over keys: 127 on average, 16 its deviation.
            let statistic = |key: u64| {
                let (mut total, mut square) = (0, 0.0);
                Placement::draws(key, times).each(|_, n| {
                    total += n;
                    square += (n as f64).powi(2);
                });
                assert_eq!(total, times);
                square * BUCKETS as f64 / times as f64 - times as f64
            };
            let mean = (0..50).map(statistic).sum::<f64>() / 50.0;
            assert!((mean - 127.0).abs() < 12.0, "{times} {mean}");
        }
    }
}
