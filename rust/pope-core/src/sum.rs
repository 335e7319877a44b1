//! Exact sums of doubles: the reason why every result has the same bits for any thread count, partition and order.
//!
//! A sum is kept as a number in radix 2^32 with redundant 128-bit digits (a superaccumulator; Neal 2015,
//! arXiv 1505.05571). Adding a double touches one digit and rounds nothing, so addition is associative and
//! commutative to the bit; the only rounding is the one when the sum is read. Terms may carry an extra power of two
//! (`add_scaled`), so that weights of `e^2000` neither overflow nor vanish.

use std::collections::BTreeMap;

use crate::dd::Dd;
use crate::math;

/// Bits per digit. A term is below 2^85 in its digit, a carried digit below 2^31: 2^42 additions fit 128 bits, more than
/// a lane will ever see, so that adding needs no carry.
const RADIX_BITS: i32 = 32;
/// Digits held in place: bits `2^-256 ..= 2^255`. Whatever lies outside goes to a map, which ordinary logs never touch.
const NEAR: usize = 16;
const NEAR_BASE: i32 = -(NEAR as i32) / 2;

/// An exact sum of finite doubles times powers of two.
#[derive(Clone, Debug, Default)]
pub struct ExactSum {
    near: [i128; NEAR],
    // Boxed: nearly always absent, and there are thousands of sums.
    #[allow(clippy::box_collection)]
    far: Option<Box<BTreeMap<i32, i128>>>,
}

/// The integer and the position (as a power of two) that make up a double: `|x| = mantissa 2^position`.
#[inline(always)]
fn parts(x: f64, scale: i32) -> (u64, i32) {
    let bits = x.to_bits();
    let biased = ((bits >> 52) & 0x7ff) as i32;
    let normal = biased != 0;
    ((bits & 0x000f_ffff_ffff_ffff) | u64::from(normal) << 52, biased + i32::from(!normal) - 1075 + scale)
}

impl ExactSum {
    /// Add `x`.
    #[inline(always)]
    pub fn add(&mut self, x: f64) {
        self.add_scaled(x, 0);
    }

    /// Add `x * 2^scale`, exactly. `x` must be finite.
    #[inline(always)]
    pub fn add_scaled(&mut self, x: f64, scale: i32) {
        debug_assert!(x.is_finite());
        let (mantissa, position) = parts(x, scale);
        let magnitude = i128::from(mantissa) << (position & (RADIX_BITS - 1));
        let sign = i128::from(x.to_bits() as i64 >> 63); // 0 or -1
        self.add_digit(position >> 5, (magnitude ^ sign) - sign);
    }

    /// [`Self::add_scaled`] for `x >= 0`: the hot path, a few instructions shorter.
    #[inline(always)]
    pub fn add_positive(&mut self, x: f64, scale: i32) {
        debug_assert!(x >= 0.0 && x.is_finite());
        let (mantissa, position) = parts(x, scale);
        self.add_digit(position >> 5, i128::from(mantissa) << (position & (RADIX_BITS - 1)));
    }

    #[inline(always)]
    fn add_digit(&mut self, digit: i32, term: i128) {
        if let Some(near) = self.near.get_mut((digit - NEAR_BASE) as usize) {
            *near += term;
        } else if term != 0 {
            self.add_far(digit, term);
        }
    }

    /// Add every element of a slice, exactly.
    ///
    /// Elements are split against fixed grids below the largest of them into three parts whose sums are exact in
    /// plain doubles (pre-rounding; Demmel & Nguyen 2013). That is a few vector instructions per eight elements. A slice
    /// that spans more than about 75 binary orders of magnitude leaves remainders and is added one by one.
    #[inline(always)]
    pub fn add_slice(&mut self, xs: &[f64]) {
        for block in xs.chunks(PRE_ROUND_BLOCK) {
            match pre_round(block) {
                Some(parts) => parts.into_iter().for_each(|part| self.add(part)),
                None => block.iter().for_each(|&x| self.add(x)),
            }
        }
    }

    /// Add another sum.
    pub fn merge(&mut self, other: &ExactSum) {
        for (i, digit) in other.digits() {
            self.add_digit(i, i128::from(digit));
        }
    }

    #[cold]
    fn add_far(&mut self, digit: i32, term: i128) {
        *self.far.get_or_insert_default().entry(digit).or_insert(0) += term;
    }

    /// The non-zero digits in canonical form, least significant first: `sum = sum_j digit_j 2^(32 j)`. Every digit lies in
    /// `[-2^31, 2^31)`; in this balanced form a number has exactly one representation.
    pub fn digits(&self) -> Vec<(i32, i64)> {
        let mut digits: Vec<(i32, i64)> = Vec::new();
        let mut carry = 0i128;
        let mut at = i32::MIN;
        let near = self.near.iter().enumerate().map(|(i, &d)| (NEAR_BASE + i as i32, d));
        let mut raw: Vec<(i32, i128)> = near.filter(|&(_, d)| d != 0).collect();
        if let Some(far) = &self.far {
            raw.extend(far.iter().map(|(&i, &d)| (i, d)));
            raw.sort_unstable_by_key(|&(i, _)| i);
        }
        let mut raw = raw.into_iter().peekable();
        loop {
            // Where the carry has died out, jump to the next digit in use.
            if carry == 0 {
                match raw.peek() {
                    Some(&(next, _)) => at = next,
                    None => return digits,
                }
            }
            let own = raw.next_if(|&(i, _)| i == at).map_or(0, |(_, d)| d);
            let value = own + carry;
            carry = (value + (1 << 31)) >> 32;
            let digit = (value - (carry << 32)) as i64;
            if digit != 0 {
                digits.push((at, digit));
            }
            at += 1;
        }
    }

    /// The sum whose canonical digits are given (inverse of [`Self::digits`]).
    pub fn from_digits(digits: &[(i32, i64)]) -> Self {
        let mut sum = ExactSum::default();
        digits.iter().for_each(|&(i, digit)| sum.add_digit(i, i128::from(digit)));
        sum
    }

    /// Has nothing but zeros ever been added? (A sum that has cancelled is zero but not blank.)
    pub fn is_blank(&self) -> bool {
        self.near == [0; NEAR] && self.far.is_none()
    }

    /// `sum * 2^-scale` to about 106 bits.
    pub fn dd(&self, scale: i32) -> Dd {
        // Five digits of 32 bits hold at least 129 significant bits.
        let top = self.digits().into_iter().rev().take(5);
        top.map(|(i, digit)| Dd::from(math::scale(digit as f64, (RADIX_BITS * i).saturating_sub(scale)))).sum()
    }

    /// The sum as a double (infinite if it is beyond the range of doubles).
    pub fn value(&self) -> f64 {
        self.dd(0).value()
    }

    /// An exponent `e` with `|sum|` within a factor of 2 of `2^e`; `None` for zero.
    pub fn exponent(&self) -> Option<i32> {
        let &(i, digit) = self.digits().last()?;
        Some(RADIX_BITS * i + 63 - digit.unsigned_abs().leading_zeros() as i32)
    }
}

const PRE_ROUND_BLOCK: usize = 256;
/// Columns of [`add_rows`].
pub const WIDTH: usize = 8;

/// Add every column of at most 256 rows to its sum, exactly; pre-rounding as in [`ExactSum::add_slice`], one column per
/// vector lane.
#[inline(always)]
pub fn add_rows(rows: &[[f64; WIDTH]], sums: &mut [ExactSum; WIDTH]) {
    debug_assert!(rows.len() <= PRE_ROUND_BLOCK);
    let mut top = [0.0f64; WIDTH];
    for row in rows {
        for j in 0..WIDTH {
            let size = row[j].abs();
            top[j] = if size > top[j] { size } else { top[j] };
        }
    }
    let mut in_range = true;
    let mut anchor = [0.0f64; WIDTH];
    for j in 0..WIDTH {
        let e = if top[j] == 0.0 { 0 } else { math::exponent(top[j]) };
        in_range &= (-800..=900).contains(&e);
        anchor[j] = 1.5 * math::pow2(i64::from(e) + 10);
    }
    let mut parts = [[0.0f64; WIDTH]; 3];
    let mut left = [0.0f64; WIDTH];
    for row in rows {
        let mut x = *row;
        for (level, part) in parts.iter_mut().enumerate() {
            let finer = math::pow2(-43 * level as i64);
            for j in 0..WIDTH {
                let grid = anchor[j] * finer;
                let high = (x[j] + grid) - grid;
                part[j] += high;
                x[j] -= high;
            }
        }
        for j in 0..WIDTH {
            left[j] += x[j].abs();
        }
    }
    for (j, sum) in sums.iter_mut().enumerate() {
        if in_range && left[j] == 0.0 {
            parts.iter().filter(|part| part[j] != 0.0).for_each(|part| sum.add(part[j]));
        } else {
            rows.iter().for_each(|row| sum.add(row[j]));
        }
    }
}

const LANES: usize = 8;

/// Take the parts of `x` on the three grids away into `sums`; what is left is added to `left`.
#[inline(always)]
fn split(mut x: [f64; LANES], grids: &[f64; 3], sums: &mut [[f64; LANES]; 3], left: &mut [f64; LANES]) {
    for level in 0..3 {
        for j in 0..LANES {
            let high = (x[j] + grids[level]) - grids[level];
            sums[level][j] += high;
            x[j] -= high;
        }
    }
    for j in 0..LANES {
        left[j] += x[j].abs();
    }
}

#[inline(always)]
fn pre_round(xs: &[f64]) -> Option<[f64; 3]> {
    let mut max = [0.0f64; LANES];
    let (chunks, rest) = (xs.chunks_exact(LANES), xs.chunks_exact(LANES).remainder());
    for chunk in chunks.clone() {
        for j in 0..LANES {
            let a = chunk[j].abs();
            max[j] = if a > max[j] { a } else { max[j] };
        }
    }
    let mut top = max.into_iter().fold(0.0, f64::max);
    top = rest.iter().fold(top, |t, x| t.max(x.abs()));
    if top == 0.0 {
        return Some([0.0; 3]);
    }
    let e = math::exponent(top);
    if !(-800..=900).contains(&e) {
        return None;
    }
    // 256 elements below 2^(e+1): the grid 2^(e-42) keeps every partial sum below 2^53 grid steps. Each next grid
    // is 43 bits finer.
    let anchor = |level: i64| 1.5 * math::pow2(i64::from(e) + 10 - 43 * level);
    let grids = [anchor(0), anchor(1), anchor(2)];
    let mut sums = [[0.0f64; LANES]; 3];
    let mut left = [0.0f64; LANES];
    for chunk in chunks {
        split(core::array::from_fn(|j| chunk[j]), &grids, &mut sums, &mut left);
    }
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    split(last, &grids, &mut sums, &mut left);
    left.iter().all(|&x| x == 0.0).then(|| sums.map(|lanes| lanes.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum_of(xs: &[f64]) -> ExactSum {
        let mut sum = ExactSum::default();
        xs.iter().for_each(|&x| sum.add(x));
        sum
    }

    #[test]
    fn cancels_exactly() {
        assert_eq!(sum_of(&[1e300, 1.0, -1e300, 1e-300, -1.0]).value(), 1e-300);
        assert_eq!(sum_of(&[0.1; 10]).value(), 1.0); // 10 * 0.1's double rounds to 1
        assert_eq!(sum_of(&[]).exponent(), None);
        assert_eq!(sum_of(&[-3.0]).exponent(), Some(1));
    }

    #[test]
    fn reaches_far_beyond_doubles() {
        let mut sum = ExactSum::default();
        for _ in 0..5000 {
            sum.add_scaled(1.5, 20_000);
            sum.add_scaled(1.5, -20_000);
        }
        assert_eq!(sum.dd(20_000).value(), 7500.0);
        assert_eq!(sum.value(), f64::INFINITY);
        for _ in 0..5000 {
            sum.add_scaled(-1.5, 20_000);
        }
        assert_eq!(sum.dd(-20_000).value(), 7500.0);
    }

    #[test]
    fn many_additions_carry() {
        let mut sum = ExactSum::default();
        for i in 0..10_000 {
            sum.add(if i % 3 == 0 { -1e9 } else { 1e9 });
        }
        assert_eq!(sum.value(), 1e9 * (6666.0 - 3334.0));
    }

    fn wide() -> impl Strategy<Value = f64> {
        (-1.0f64..1.0, -300i32..300).prop_map(|(m, e)| math::scale(m, e))
    }

    proptest! {
        #[test]
        fn same_digits_for_any_order_and_grouping(mut xs in prop::collection::vec(wide(), 0..400), cut in 0usize..400) {
            let whole = sum_of(&xs).digits();
            let cut = cut.min(xs.len());
            let mut merged = sum_of(&xs[cut..]);
            merged.merge(&sum_of(&xs[..cut]));
            prop_assert_eq!(&merged.digits(), &whole);
            xs.reverse();
            prop_assert_eq!(&sum_of(&xs).digits(), &whole);
            let mut sliced = ExactSum::default();
            sliced.add_slice(&xs);
            prop_assert_eq!(&sliced.digits(), &whole);
            prop_assert_eq!(&ExactSum::from_digits(&whole).digits(), &whole);
        }

        #[test]
        fn slices_of_like_magnitude(xs in prop::collection::vec(-5.0f64..5.0, 0..1000)) {
            let mut sliced = ExactSum::default();
            sliced.add_slice(&xs);
            prop_assert_eq!(sliced.digits(), sum_of(&xs).digits());
        }

        #[test]
        fn rows_of_columns(rows in prop::collection::vec(prop::array::uniform8(wide()), 0..60), like in any::<bool>()) {
            let rows: Vec<[f64; 8]> = if like { rows.iter().map(|r| r.map(|x| x % 3.0)).collect() } else { rows };
            let mut sums: [ExactSum; 8] = Default::default();
            add_rows(&rows, &mut sums);
            for (j, sum) in sums.iter().enumerate() {
                let column: Vec<f64> = rows.iter().map(|row| row[j]).collect();
                prop_assert_eq!(sum.digits(), sum_of(&column).digits());
            }
        }

        #[test]
        fn adding_and_removing_leaves_nothing(xs in prop::collection::vec(wide(), 0..100)) {
            let mut sum = sum_of(&xs);
            xs.iter().for_each(|&x| sum.add(-x));
            prop_assert!(sum.digits().is_empty());
        }
    }
}
