//! Double-double numbers (about 106 bits): enough to subtract two long sums without losing the difference.
//!
//! Sums come out of the exact accumulators with all their bits; a variance such as `sum N^2 - 2 v sum A N + v^2 sum A^2`
//! may cancel nearly all of them. Dekker (1971), Knuth's two-sum; products by splitting, since FMA is not used.

use core::ops::{Add, Mul, Neg, Sub};

/// An unevaluated sum `hi + lo` with `|lo| <= ulp(hi)/2`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dd {
    hi: f64,
    lo: f64,
}

fn two_sum(a: f64, b: f64) -> Dd {
    let s = a + b;
    if !s.is_finite() {
        return Dd { hi: s, lo: 0.0 };
    }
    let t = s - a;
    Dd { hi: s, lo: (a - (s - t)) + (b - t) }
}

fn split(a: f64) -> (f64, f64) {
    let c = 134_217_729.0 * a; // 2^27 + 1
    let hi = c - (c - a);
    (hi, a - hi)
}

fn two_product(a: f64, b: f64) -> Dd {
    let p = a * b;
    if !p.is_finite() || p.abs() > 1e290 {
        return Dd { hi: p, lo: 0.0 };
    }
    let ((ah, al), (bh, bl)) = (split(a), split(b));
    Dd { hi: p, lo: ((ah * bh - p) + ah * bl + al * bh) + al * bl }
}

impl Dd {
    /// The nearest double.
    pub fn value(self) -> f64 {
        self.hi + self.lo
    }

    /// `self * 2^k`, exact but for over- and underflow.
    #[must_use]
    pub fn scale(self, k: i32) -> Self {
        Dd { hi: crate::math::scale(self.hi, k), lo: crate::math::scale(self.lo, k) }
    }
}

impl From<f64> for Dd {
    fn from(x: f64) -> Self {
        Dd { hi: x, lo: 0.0 }
    }
}

impl Add for Dd {
    type Output = Dd;
    fn add(self, other: Dd) -> Dd {
        let s = two_sum(self.hi, other.hi);
        let t = two_sum(self.lo, other.lo);
        let u = two_sum(s.hi, s.lo + t.hi);
        two_sum(u.hi, u.lo + t.lo)
    }
}

impl Neg for Dd {
    type Output = Dd;
    fn neg(self) -> Dd {
        Dd { hi: -self.hi, lo: -self.lo }
    }
}

impl Sub for Dd {
    type Output = Dd;
    fn sub(self, other: Dd) -> Dd {
        self + (-other)
    }
}

impl Mul for Dd {
    type Output = Dd;
    fn mul(self, other: Dd) -> Dd {
        let p = two_product(self.hi, other.hi);
        two_sum(p.hi, p.lo + (self.hi * other.lo + self.lo * other.hi))
    }
}

impl Mul<f64> for Dd {
    type Output = Dd;
    fn mul(self, other: f64) -> Dd {
        self * Dd::from(other)
    }
}

impl core::iter::Sum for Dd {
    fn sum<I: Iterator<Item = Dd>>(iter: I) -> Dd {
        iter.fold(Dd::default(), |a, b| a + b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_cancellation() {
        let x = Dd::from(1e16) + Dd::from(1.0) - Dd::from(1e16);
        assert_eq!(x.value(), 1.0);
        // (1 + e)^2 - 1 - 2e = e^2, far below the last bit of 1.
        let e = 2f64.powi(-40);
        let y = Dd::from(1.0 + e) * Dd::from(1.0 + e) - Dd::from(1.0) - Dd::from(2.0 * e);
        assert_eq!(y.value(), e * e);
    }
}
