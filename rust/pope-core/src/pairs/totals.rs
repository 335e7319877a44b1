//! What pairs of draws give to a unit, and exact sums of it over units.

use super::similarity::{ONE, blocks, pairs_of, share_within_blocks};
use crate::dd::Dd;
use crate::fixed::{Encoded, Fixed, Rows, to_integer, total};
use crate::hist::LogHistogram;
use crate::math;
use crate::simd::multiversion;
use crate::sum::ExactSum;
use crate::totals::{BUCKETS, PAIRS, Placement, Sign, Z, merge_sums, pair};
use crate::unit::UnitStats;

/// Position of `A` in the vector `(A, N, B, Q_1, Q_2)` of a unit.
pub const A: usize = 0;
/// Position of `B`.
pub const B: usize = 2;
/// Position of `Q_1`; `Q_2` follows.
pub const Q: usize = 3;
/// Degree in the weights of each element.
const DEGREE: [i32; Z] = [1, 1, 2, 2, 2];
/// Non-negative variables whose means bound `E k` and `E k^2` from both sides: see [`PairTotals::histograms`].
const BOUNDS: usize = 4;

/// Pair statistics of a unit with at least two draws, times `2^-(2 e)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairStats {
    /// `B`.
    pub b: f64,
    /// `Q_1`, `Q_2`.
    pub q: [f64; 2],
}

/// Sums over pairs as integers: of `w w`, `w w k` and `w w k^2`.
type PairIntegers = [i64; 3];

multiversion! {
    /// Add all pairs of rows of one block.
    fn add_pairs(w: &[f64], similar: &[i32], up: f64, sums: &mut PairIntegers) {
        const STEP: f64 = 1.0 / ONE as f64;
        let [mut b, mut q1, mut q2] = *sums;
        let mut rest = similar;
        for (j, &first) in w.iter().enumerate() {
            let others = &w[j + 1..];
            let (row, after) = rest.split_at(others.len());
            for (&second, &k) in others.iter().zip(row) {
                let k = f64::from(k) * STEP;
                let both = first * second;
                let once = both * k;
                b += to_integer(both * up);
                q1 += to_integer(once * up);
                q2 += to_integer(once * k * up);
            }
            rest = after;
        }
        *sums = [b, q1, q2];
    }
}

/// The pair statistics of unit `u` of a chunk, whose pairs take the rows in this order; `None` with a single draw.
pub fn pair_stats(
    rows: &Rows,
    encoded: &Encoded,
    u: usize,
    (order, similar): (&[u32], &[i32]),
    weights: &mut Vec<f64>,
) -> Option<PairStats> {
    let draws = encoded.units[u].draws;
    if draws < 2.0 {
        return None;
    }
    // All pairs together weigh at most half the square of the sum of weights.
    let rows_of_unit = rows.starts[u]..rows.starts[u + 1];
    let sum = total(&encoded.w[0][rows_of_unit]) as f64 * encoded.units[u].step;
    let fixed = Fixed::new(sum * sum, 0);
    weights.clear();
    weights.extend(order.iter().map(|&row| encoded.relative_weight(rows, row as usize)));
    // The m draws of one row are m (m - 1) / 2 pairs of equal responses.
    let mut same = 0i64;
    if !rows.m.is_empty() {
        for (w, &row) in weights.iter_mut().zip(order) {
            let m = rows.m[row as usize];
            same += fixed.encode(m * (m - 1.0) * 0.5 * (*w * *w));
            *w *= m;
        }
    }
    let (mut sums, mut at) = ([0i64; 3], 0);
    for block in blocks(order.len()) {
        let size = pairs_of(block.len());
        add_pairs(&weights[block], &similar[at..at + size], fixed.up(), &mut sums);
        at += size;
    }
    let (same, share) = (fixed.decode(same), share_within_blocks(order.len()));
    let per_pair = 1.0 / math::binomial(draws, 2);
    let [b, q1, q2] = sums.map(|sum| (same + fixed.decode(sum) / share) * per_pair);
    Some(PairStats { b, q: [q1, q2] })
}

/// Sums over the units with at least two draws. Units are taken out again as in [`crate::totals`].
#[derive(Clone, Debug)]
pub struct PairTotals {
    /// First-order sums per bucket: `A, N, B, Q_1, Q_2`.
    pub buckets: Vec<[ExactSum; Z]>,
    /// Sums of products of two of these, by [`pair`].
    pub gram: [ExactSum; PAIRS],
    /// Histograms of the pair means of `w w (1 - k)`, `w w (1 + k)`, `w w k^2` and `w w (1 - k^2)`.
    pub histograms: [LogHistogram; BOUNDS],
}

impl Default for PairTotals {
    fn default() -> Self {
        PairTotals {
            buckets: vec![Default::default(); BUCKETS],
            gram: Default::default(),
            histograms: Default::default(),
        }
    }
}

impl PairTotals {
    /// Count a unit or take it out.
    pub fn add(&mut self, unit: &UnitStats, pairs: &PairStats, place: &Placement, sign: Sign) {
        let z = [unit.a, unit.n, pairs.b, pairs.q[0], pairs.q[1]];
        place.each(|bucket, times| {
            for (i, sum) in self.buckets[bucket].iter_mut().enumerate() {
                sum.add_scaled(z[i] * sign.of(times), DEGREE[i] * unit.e);
            }
        });
        let times = place.times();
        for j in 0..Z {
            for i in 0..=j {
                let scale = (DEGREE[i] + DEGREE[j]) * unit.e;
                self.gram[pair(i, j)].add_scaled(z[i] * z[j] * sign.of(times), scale);
            }
        }
        let PairStats { b, q: [q1, q2] } = *pairs;
        for (histogram, x) in self.histograms.iter_mut().zip([b - q1, b + q1, q2, b - q2]) {
            match sign {
                Sign::Plus => histogram.add(x, 2 * unit.e, times),
                Sign::Minus => histogram.remove(x, 2 * unit.e, times),
            }
        }
    }

    /// Add other sums.
    pub fn merge(&mut self, other: &PairTotals) {
        for (a, b) in self.buckets.iter_mut().zip(&other.buckets) {
            merge_sums(a, b);
        }
        merge_sums(&mut self.gram, &other.gram);
        for (a, b) in self.histograms.iter_mut().zip(&other.histograms) {
            a.merge(b);
        }
    }
}

/// The sums as double-doubles; one of degree `d` is given times `2^-(d scale)`.
#[derive(Clone, Debug)]
pub struct PairSums {
    units: [u64; BUCKETS],
    buckets: Vec<[Dd; Z]>,
    gram: [Dd; PAIRS],
}

/// First-order sums over some units, as plain numbers.
#[derive(Clone, Copy, Debug)]
pub struct PairPoint {
    /// Number of units.
    pub units: f64,
    /// Sums of `A, N, B, Q_1, Q_2`.
    pub sums: [f64; Z],
}

impl PairPoint {
    /// Is there a pair that the policy could give?
    pub fn has_weight(&self) -> bool {
        self.sums[B] > 0.0
    }
}

impl PairSums {
    /// Read totals relative to `2^scale`; `units` are those with at least two draws, by bucket.
    pub fn new(totals: &PairTotals, units: [u64; BUCKETS], scale: i32) -> Self {
        let buckets = totals.buckets.iter().map(|sums| core::array::from_fn(|i| sums[i].dd(DEGREE[i] * scale)));
        let mut gram = [Dd::default(); PAIRS];
        for j in 0..Z {
            for i in 0..=j {
                gram[pair(i, j)] = totals.gram[pair(i, j)].dd((DEGREE[i] + DEGREE[j]) * scale);
            }
        }
        PairSums { units, buckets: buckets.collect(), gram }
    }

    fn total(&self) -> [Dd; Z] {
        core::array::from_fn(|i| self.buckets.iter().map(|sums| sums[i]).sum())
    }

    /// Sums over all units.
    pub fn whole(&self) -> PairPoint {
        PairPoint { units: self.units.iter().sum::<u64>() as f64, sums: self.total().map(Dd::value) }
    }

    /// Units of each bucket, and the sums without them.
    pub fn leave_one_out(&self) -> Vec<(u64, PairPoint)> {
        let (total, units) = (self.total(), self.units.iter().sum::<u64>());
        let without = |b: usize| PairPoint {
            units: (units - self.units[b]) as f64,
            sums: core::array::from_fn(|i| (total[i] - self.buckets[b][i]).value()),
        };
        (0..BUCKETS).map(|b| (self.units[b], without(b))).collect()
    }

    /// `sum (a . z) (b . z)` for coefficient vectors given as `(element, coefficient)`.
    pub fn quadratic(&self, a: &[(usize, f64)], b: &[(usize, f64)]) -> f64 {
        let terms = a.iter().flat_map(|&(i, x)| b.iter().map(move |&(j, y)| (i, j, x, y)));
        terms.map(|(i, j, x, y)| self.gram[pair(i.min(j), i.max(j))] * x * y).sum::<Dd>().value()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Similarities;
    use super::*;
    use crate::batch::{Batch, Floats, Vectors};
    use crate::slots::Slots;
    use crate::unit::{Scratch, unit_stats};
    use proptest::prelude::*;

    /// One row: log-weight, multiplicity, embedding.
    type Row = (f64, f64, Vec<f64>);

    /// Pair statistics of one unit at their true scale, from the way that a lane goes.
    fn pairs(rows: &[Row], key: i64) -> Option<PairStats> {
        let n = rows.len();
        let column = |f: &dyn Fn(&Row) -> f64| rows.iter().map(f).collect::<Vec<f64>>();
        let (l, m, zero) = (column(&|r| r.0), column(&|r| r.1), vec![0.0; n]);
        let (flat, unit) = (rows.iter().flat_map(|r| r.2.clone()).collect::<Vec<f64>>(), vec![key; n]);
        let vectors = Vectors { values: Floats::F64(&flat), width: rows[0].2.len() };
        let batch = Batch {
            unit: Some(&unit),
            behavior: Floats::F64(&zero),
            targets: vec![Floats::F64(&l)],
            reward: Floats::F64(&zero),
            cluster: None,
            group: None,
            count: Some(&m),
            tokens: None,
            baseline: None,
            baseline_means: vec![],
            embedding: Some(vectors),
            first_row: 0,
        };
        let mut similar = Similarities::default();
        similar.load(&batch, vectors, 0, &[0, n]).unwrap();
        let mut chunk =
            Rows { starts: vec![0, n], w: l.iter().map(|&l| math::exp(l)).collect(), l, r: zero, m, ..Rows::default() };
        let mut encoded = Encoded::default();
        encoded.encode(&mut chunk);
        let up = |x: f64| math::scale(x, 2 * encoded.units[0].e);
        let found = pair_stats(&chunk, &encoded, 0, similar.unit(0, 0..n), &mut Vec::new())?;
        Some(PairStats { b: up(found.b), q: found.q.map(up) })
    }

    fn row(w: f64, m: f64, v: &[f64]) -> Row {
        (math::ln(w), m, v.to_vec())
    }

    #[test]
    fn by_hand() {
        // Weights 1, 2, 4; similarities 0.6, 0, 0.8.
        let rows = [row(1.0, 1.0, &[1.0, 0.0]), row(2.0, 1.0, &[0.6, 0.8]), row(4.0, 1.0, &[0.0, 3.0])];
        let s = pairs(&rows, 5).unwrap();
        assert!((s.b - 14.0 / 3.0).abs() < 1e-14);
        assert!((s.q[0] - (2.0 * 0.6 + 8.0 * 0.8) / 3.0).abs() < 1e-8);
        assert!((s.q[1] - (2.0 * 0.36 + 8.0 * 0.64) / 3.0).abs() < 1e-8);
        assert_eq!(pairs(&rows[..1], 5), None);
        // One row that stands for three draws: pairs of equal responses.
        let s = pairs(&[row(2.0, 3.0, &[7.0])], 5).unwrap();
        assert!((s.b - 4.0).abs() < 1e-14 && s.q == [s.b; 2]);
        let nothing = [(f64::NEG_INFINITY, 1.0, vec![1.0]), (f64::NEG_INFINITY, 1.0, vec![1.0])];
        assert_eq!(pairs(&nothing, 5).unwrap(), PairStats::default());
    }

    #[test]
    fn one_hot_vectors_are_clusters() {
        let l: Vec<f64> = (0..9).map(|i| (f64::from(i) * 1.7).sin()).collect();
        let cluster: Vec<usize> = vec![0, 1, 1, 2, 0, 2, 2, 3, 1];
        let vector = |c: usize| (0..4).map(|i| f64::from(u8::from(i == c))).collect::<Vec<f64>>();
        let rows: Vec<Row> = l.iter().zip(&cluster).map(|(&l, &c)| (l, 1.0, vector(c))).collect();
        let found = pairs(&rows, 1).unwrap();
        let mut slots = Slots::default();
        let mut chunk = Rows {
            starts: vec![0, 9],
            w: l.iter().map(|&l| math::exp(l)).collect(),
            r: vec![0.0; 9],
            cluster: cluster.iter().map(|&c| slots.slot(c as i64)).collect(),
            l,
            m: vec![],
        };
        let (mut encoded, mut scratch, mut unit) = (Encoded::default(), Scratch::default(), UnitStats::default());
        encoded.encode(&mut chunk);
        unit_stats(&chunk, &encoded, 0, &slots, &mut scratch, &mut unit);
        let p2 = math::scale(unit.p[0], 2 * unit.e);
        assert!((found.q[0] - p2).abs() < 1e-14 && (found.q[1] - p2).abs() < 1e-14);
    }

    /// Rows of a unit that is cut into blocks.
    fn large() -> Vec<Row> {
        let angle = |i: usize| (i as f64 * 0.37).sin() * 2.0;
        (0..1100)
            .map(|i| ((i as f64 * 0.7).cos(), 1.0 + (i % 3) as f64, vec![angle(i).cos(), angle(i).sin()]))
            .collect()
    }

    #[test]
    fn large_units_in_random_blocks_are_unbiased() {
        let rows = large();
        let mut exact = [0.0; 3];
        for (j, (la, ma, a)) in rows.iter().enumerate() {
            for (lb, mb, b) in &rows[j + 1..] {
                let both = ma * mb * (la + lb).exp();
                let k = a[0] * b[0] + a[1] * b[1];
                exact = [exact[0] + both, exact[1] + both * k, exact[2] + both * k * k];
            }
            let both = ma * (ma - 1.0) / 2.0 * (2.0 * la).exp();
            exact = exact.map(|x| x + both);
        }
        let draws: f64 = rows.iter().map(|row| row.1).sum();
        let exact = exact.map(|x| x / (draws * (draws - 1.0) / 2.0));
        let keys = 60;
        let found: Vec<[f64; 3]> =
            (0..keys).map(|key| pairs(&rows, key).map(|s| [s.b, s.q[0], s.q[1]]).unwrap()).collect();
        for i in 0..3 {
            let mean = found.iter().map(|s| s[i]).sum::<f64>() / keys as f64;
            let square = found.iter().map(|s| (s[i] - mean).powi(2)).sum::<f64>() / (keys - 1) as f64;
            assert!(square > 0.0 && square.sqrt() < 0.05 * exact[i].abs());
            assert!((mean - exact[i]).abs() < 4.0 * (square / keys as f64).sqrt(), "{i}: {mean} {}", exact[i]);
        }
    }

    #[test]
    fn order_leaves_the_bits_of_large_units() {
        let mut rows = large();
        rows.extend_from_within(..40);
        let before = pairs(&rows, 9);
        rows.rotate_left(123);
        rows.reverse();
        rows.swap(3, 700);
        assert_eq!(pairs(&rows, 9), before);
        assert_ne!(pairs(&rows, 10), before);
    }

    fn any_row() -> impl Strategy<Value = Row> {
        (-30.0f64..30.0, 1u32..4, prop::collection::vec(0.1f64..1.0, 3)).prop_map(|(l, m, v)| (l, f64::from(m), v))
    }

    proptest! {
        #[test]
        fn order_leaves_the_bits(mut rows in prop::collection::vec(any_row(), 2..12), turn in 0usize..12) {
            let before = pairs(&rows, 0);
            let turn = turn % rows.len();
            rows.rotate_left(turn);
            rows.reverse();
            prop_assert_eq!(pairs(&rows, 0), before);
        }

        #[test]
        fn multiplicity_is_repetition(rows in prop::collection::vec(any_row(), 1..6)) {
            let repeated: Vec<Row> =
                rows.iter().flat_map(|(l, m, v)| (0..*m as usize).map(|_| (*l, 1.0, v.clone()))).collect();
            match (pairs(&rows, 0), pairs(&repeated, 0)) {
                (Some(a), Some(b)) => {
                    // Products of weights are kept to some 2^-58 of the largest one.
                    let largest = rows.iter().map(|row| row.0).fold(f64::NEG_INFINITY, f64::max);
                    let close = 1e-12 * b.b + 1e-15 * (2.0 * largest).exp();
                    prop_assert!((a.b - b.b).abs() <= close);
                    for i in 0..2 {
                        prop_assert!((a.q[i] - b.q[i]).abs() <= close);
                    }
                }
                (a, b) => prop_assert_eq!(a, b),
            }
        }

        #[test]
        fn bounds_are_not_negative(rows in prop::collection::vec(any_row(), 2..12)) {
            let s = pairs(&rows, 0).unwrap();
            prop_assert!(s.b - s.q[0] >= 0.0 && s.b + s.q[0] >= 0.0 && s.q[1] >= 0.0 && s.b - s.q[1] >= 0.0);
        }

        #[test]
        fn taking_out_leaves_nothing(rows in prop::collection::vec(any_row(), 2..9)) {
            let s = pairs(&rows, 0).unwrap();
            let unit = UnitStats { a: 0.3, n: 0.1, e: 4, ..UnitStats::default() };
            let mut totals = PairTotals::default();
            totals.add(&unit, &s, &Placement::one(3), Sign::Plus);
            totals.add(&unit, &s, &Placement::one(3), Sign::Minus);
            prop_assert!(totals.gram.iter().chain(totals.buckets.iter().flatten()).all(|sum| sum.digits().is_empty()));
            prop_assert!(totals.histograms.iter().all(|h| h.total() == 0));
        }
    }
}
