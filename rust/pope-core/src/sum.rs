//! Exact sums of doubles: the reason why every result has the same bits for any thread count, partition and order.
//!
//! A sum is kept as a number in radix 2^64 with redundant 128-bit digits (a superaccumulator; Neal 2015,
//! arXiv 1505.05571). Adding a double touches one digit and rounds nothing, so addition is associative and
//! commutative to the bit; the only rounding is the one when the sum is read. Terms may carry an extra power of two
//! (`add_scaled`), so that weights of `e^2000` neither overflow nor vanish.

use std::collections::BTreeMap;

use crate::dd::Dd;
use crate::math;

/// Digits held in place: bits `2^-256 ..= 2^255`. Whatever lies outside goes to a map, which ordinary logs never touch.
const NEAR: usize = 8;
const NEAR_BASE: i32 = -(NEAR as i32) / 2;
/// A term is below 2^117 in its digit, a carried digit below 2^63: this many additions cannot overflow 2^127.
const CARRY_EVERY: u32 = 1000;

/// An exact sum of finite doubles times powers of two.
#[derive(Clone, Debug, Default)]
pub struct ExactSum {
    near: [i128; NEAR],
    far: Option<Box<BTreeMap<i32, i128>>>,
    pending: u32,
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
        let bits = x.to_bits();
        let biased = ((bits >> 52) & 0x7ff) as i32;
        let implicit = u64::from(biased != 0) << 52;
        let mantissa = (bits & 0x000f_ffff_ffff_ffff) | implicit;
        let position = biased + i32::from(biased == 0) - 1075 + scale;
        let magnitude = i128::from(mantissa) << (position & 63);
        let sign = (bits as i64 >> 63) as i128; // 0 or -1
        let term = (magnitude ^ sign) - sign;
        let digit = (position >> 6) - NEAR_BASE;
        if (digit as u32) < NEAR as u32 {
            self.near[digit as usize] += term;
        } else if term != 0 {
            self.add_far(digit + NEAR_BASE, term);
        }
        self.pending += 1;
        if self.pending >= CARRY_EVERY {
            self.carry();
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
        self.carry();
        let mut other = other.clone();
        other.carry();
        for (a, b) in self.near.iter_mut().zip(other.near) {
            *a += b;
        }
        if let Some(far) = other.far {
            for (digit, term) in *far {
                self.add_far(digit, term);
            }
        }
        self.carry();
    }

    #[cold]
    fn add_far(&mut self, digit: i32, term: i128) {
        *self.far.get_or_insert_default().entry(digit).or_insert(0) += term;
    }

    /// Bring every digit into `[-2^63, 2^63)`; in this balanced form a number has exactly one representation.
    #[cold]
    #[inline(never)]
    fn carry(&mut self) {
        self.pending = 0;
        if self.far.is_some() {
            return self.carry_all();
        }
        let mut carry = 0;
        for digit in &mut self.near {
            let value = *digit + carry;
            carry = (value + (1 << 63)) >> 64;
            *digit = value - (carry << 64);
        }
        if carry != 0 {
            self.add_far(NEAR_BASE + NEAR as i32, carry);
        }
    }

    fn carry_all(&mut self) {
        let mut digits = self.far.take().map_or_else(BTreeMap::new, |far| *far);
        for (i, digit) in self.near.iter_mut().enumerate() {
            digits.insert(NEAR_BASE + i as i32, core::mem::take(digit));
        }
        let mut low = i32::MIN;
        while let Some((&i, &value)) = digits.range(low..).next() {
            let carry = (value + (1 << 63)) >> 64;
            digits.insert(i, value - (carry << 64));
            if carry != 0 {
                *digits.entry(i + 1).or_insert(0) += carry;
            }
            low = i + 1;
        }
        digits.retain(|_, digit| *digit != 0);
        for (i, digit) in self.near.iter_mut().enumerate() {
            *digit = digits.remove(&(NEAR_BASE + i as i32)).unwrap_or(0);
        }
        self.far = (!digits.is_empty()).then(|| Box::new(digits));
    }

    /// The non-zero digits in canonical form, least significant first: `sum = sum_j digit_j 2^(64 j)`.
    pub fn digits(&self) -> Vec<(i32, i64)> {
        let mut canonical = self.clone();
        canonical.carry();
        let near = canonical.near.iter().enumerate().map(|(i, &d)| (NEAR_BASE + i as i32, d));
        let far = canonical.far.iter().flat_map(|far| far.iter().map(|(&i, &d)| (i, d)));
        let mut digits: Vec<_> = near.chain(far).filter(|&(_, d)| d != 0).map(|(i, d)| (i, d as i64)).collect();
        digits.sort_unstable_by_key(|&(i, _)| i);
        digits
    }

    /// The sum whose canonical digits are given (inverse of [`Self::digits`]).
    pub fn from_digits(digits: &[(i32, i64)]) -> Self {
        let mut sum = ExactSum::default();
        for &(i, digit) in digits {
            let near = i - NEAR_BASE;
            if (near as u32) < NEAR as u32 {
                sum.near[near as usize] += i128::from(digit);
            } else {
                sum.add_far(i, i128::from(digit));
            }
        }
        sum.carry();
        sum
    }

    /// `sum * 2^-scale` to about 106 bits.
    pub fn dd(&self, scale: i32) -> Dd {
        let digits = self.digits();
        let mut total = Dd::default();
        for &(i, digit) in digits.iter().rev().take(4) {
            // A digit has up to 64 bits; split it so that both halves convert exactly.
            let (high, low) = ((digit >> 32) as f64, (digit & 0xffff_ffff) as f64);
            let shift = (64 * i).saturating_sub(scale);
            total = total + Dd::from(math::scale(high, shift + 32)) + Dd::from(math::scale(low, shift));
        }
        total
    }

    /// The sum as a double (infinite if it is beyond the range of doubles).
    pub fn value(&self) -> f64 {
        self.dd(0).value()
    }

    /// An exponent `e` with `|sum|` within a factor of 2 of `2^e`; `None` for zero.
    pub fn exponent(&self) -> Option<i32> {
        let &(i, digit) = self.digits().last()?;
        Some(64 * i + 63 - digit.unsigned_abs().leading_zeros() as i32)
    }
}

const PRE_ROUND_BLOCK: usize = 256;

#[inline(always)]
fn pre_round(xs: &[f64]) -> Option<[f64; 3]> {
    const LANES: usize = 8;
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
        for j in 0..LANES {
            let mut x = chunk[j];
            for (sum, grid) in sums.iter_mut().zip(grids) {
                let high = (x + grid) - grid;
                sum[j] += high;
                x -= high;
            }
            left[j] += x.abs();
        }
    }
    for (j, &x) in rest.iter().enumerate() {
        let mut x = x;
        for (sum, grid) in sums.iter_mut().zip(grids) {
            let high = (x + grid) - grid;
            sum[j] += high;
            x -= high;
        }
        left[j] += x.abs();
    }
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
        fn adding_and_removing_leaves_nothing(xs in prop::collection::vec(wide(), 0..100)) {
            let mut sum = sum_of(&xs);
            xs.iter().for_each(|&x| sum.add(-x));
            prop_assert!(sum.digits().is_empty());
        }
    }
}
