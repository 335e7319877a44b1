//! Sums of one policy that truncation leaves alone, and the blocks in which unit values wait to be summed.

use crate::fixed::UnitScale;
use crate::math;
use crate::simd::multiversion;
use crate::sum::ExactSum;
use crate::totals::{Placement, merge_sums};
use crate::unit::UnitStats;

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
    waiting: Waiting<4>,
}

impl PolicyScalars {
    /// Count a unit: log-weights, leave-one-out baseline, zero weights, largest unit weight.
    #[inline(always)]
    pub fn add(&mut self, unit: &UnitStats, scale: &UnitScale, place: &Placement, row_units: bool) {
        self.zero_draws += math::whole(scale.zeros) * place.times();
        if unit.a > 0.0 {
            let e = math::exponent(unit.a);
            self.raise_max(unit.e + e, unit.a * math::pow2(i64::from(-e)));
        }
        let (mut b1, mut r) = (0.0, 0.0);
        if !row_units {
            b1 = unit.n;
            if unit.draws >= 2.0 {
                // sum_k w_k b_k = (sum r sum w - sum w r) / (K - 1), in means.
                b1 -= (unit.r * unit.a * unit.draws - unit.n) / (unit.draws - 1.0);
                r = unit.r;
            }
        }
        if place.times() == 1 && unit.e.abs() < 200 {
            let up = math::pow2(i64::from(unit.e));
            if self.waiting.push([unit.l, unit.wl * up, b1 * up, r]) {
                self.settle();
            }
            return;
        }
        let times = place.times() as f64;
        self.l[0].add(unit.l * times);
        self.l[1].add(unit.l * unit.l * times);
        self.wl.add_scaled(unit.wl * times, unit.e);
        let [b, rr, bb, br, rrr] = &mut self.baseline;
        b.add_scaled(b1 * times, unit.e);
        rr.add(r * times);
        bb.add_scaled(b1 * b1 * times, 2 * unit.e);
        br.add_scaled(b1 * r * times, unit.e);
        rrr.add(r * r * times);
    }

    /// Bring what waits into the sums.
    pub fn settle(&mut self) {
        let ([l, wl, b1, r], n) = self.waiting.take();
        let [l, wl, b1, r] = [&l[..n], &wl[..n], &b1[..n], &r[..n]];
        let [sum_l, sum_ll] = &mut self.l;
        let [sum_b, sum_r, sum_bb, sum_br, sum_rr] = &mut self.baseline;
        add_product(l, None, sum_l);
        add_product(l, Some(l), sum_ll);
        add_product(wl, None, &mut self.wl);
        add_product(b1, None, sum_b);
        add_product(r, None, sum_r);
        add_product(b1, Some(b1), sum_bb);
        add_product(b1, Some(r), sum_br);
        add_product(r, Some(r), sum_rr);
    }

    /// Add another policy's settled scalars.
    pub fn merge(&mut self, other: &PolicyScalars) {
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

/// Units per block of [`Waiting`].
const BLOCK: usize = 256;

/// Columns of unit values that wait to be summed together.
#[derive(Clone, Debug)]
pub struct Waiting<const COLUMNS: usize>(Vec<[f64; COLUMNS]>);

impl<const COLUMNS: usize> Default for Waiting<COLUMNS> {
    fn default() -> Self {
        Waiting(Vec::new())
    }
}

impl<const COLUMNS: usize> Waiting<COLUMNS> {
    /// Add a row; true when the block is full.
    #[inline(always)]
    pub fn push(&mut self, row: [f64; COLUMNS]) -> bool {
        if self.0.capacity() < BLOCK {
            self.0.reserve_exact(BLOCK);
        }
        self.0.push(row);
        self.0.len() == BLOCK
    }

    /// The columns so far, and their number of rows; empties the block.
    pub fn take(&mut self) -> ([[f64; BLOCK]; COLUMNS], usize) {
        let mut columns = [[0.0; BLOCK]; COLUMNS];
        for (k, row) in self.0.iter().enumerate() {
            for (column, x) in columns.iter_mut().zip(row) {
                column[k] = *x;
            }
        }
        let len = self.0.len();
        self.0.clear();
        (columns, len)
    }
}

multiversion! {
    /// Add `sum x` or, with two columns, `sum x y`.
    pub fn add_product(x: &[f64], y: Option<&[f64]>, sum: &mut ExactSum) {
        let Some(y) = y else { return sum.add_slice(x) };
        let mut product = [0.0; BLOCK];
        for ((p, x), y) in product.iter_mut().zip(x).zip(y) {
            *p = x * y;
        }
        sum.add_slice(&product[..x.len()]);
    }
}
