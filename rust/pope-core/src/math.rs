//! `exp` and `ln` of our own: at most 1 ulp from the true value, branch-free, without fused multiply-add.
//!
//! The library's promise "same bits on every CPU" ends where the C library's transcendental functions begin, and a
//! call per element cannot be vectorized. These are the classical fdlibm reductions (Sun Microsystems, 1993; `exp`
//! by the rational form `1 + 2r/(R - r)`, `ln` by `s = f/(2+f)`) written so that the compiler turns a loop over them
//! into SIMD code for whatever instruction set the caller enables, with the same operations in the same order.

// fdlibm writes its constants with more digits than a double holds; kept as published.
#![allow(clippy::excessive_precision, clippy::unreadable_literal)]

const LN2_HI: f64 = 6.93147180369123816490e-01;
const LN2_LO: f64 = 1.90821492927058770002e-10;
const LOG2_E: f64 = core::f64::consts::LOG2_E;
/// Adding and subtracting this rounds a small number to the nearest integer and leaves it in the low mantissa bits.
const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52

/// Largest argument for which [`exp`] is finite.
pub const EXP_MAX: f64 = 709.782_712_893_383_9;

/// `2^k` for `-1022 <= k <= 1023`.
#[inline(always)]
pub fn pow2(k: i64) -> f64 {
    f64::from_bits(((k + 1023) as u64) << 52)
}

/// `e^x`; `0` far below, `inf` above [`EXP_MAX`], `NaN` for `NaN`.
#[inline(always)]
pub fn exp(x: f64) -> f64 {
    const P1: f64 = 1.66666666666666019037e-01;
    const P2: f64 = -2.77777777770155933842e-03;
    const P3: f64 = 6.61375632143793436117e-05;
    const P4: f64 = -1.65339022054652515390e-06;
    const P5: f64 = 4.13813679705723846039e-08;
    // Selects instead of f64::clamp: NaN falls through to the arithmetic and comes out as NaN.
    let xc = if x < -746.0 { -746.0 } else { x };
    let xc = if xc > 710.0 { 710.0 } else { xc };
    let shifted = xc * LOG2_E + ROUND;
    let k = shifted - ROUND;
    let hi = xc - k * LN2_HI;
    let lo = k * LN2_LO;
    let r = hi - lo;
    let t = r * r;
    let c = r - t * (P1 + t * (P2 + t * (P3 + t * (P4 + t * P5))));
    let y = 1.0 - ((lo - (r * c) / (2.0 - c)) - hi);
    // 2^k in two factors, so that subnormal results and k = 1024 need no branch.
    let ki = (shifted.to_bits() as i64) << 32 >> 32;
    let k1 = ki >> 1;
    y * pow2(k1) * pow2(ki - k1)
}

/// Natural logarithm; `-inf` at 0, `NaN` below, `inf` at `inf`.
#[inline(always)]
pub fn ln(x: f64) -> f64 {
    const LG1: f64 = 6.666666666666735130e-01;
    const LG2: f64 = 3.999999999940941908e-01;
    const LG3: f64 = 2.857142874366239149e-01;
    const LG4: f64 = 2.222219843214978396e-01;
    const LG5: f64 = 1.818357216161805012e-01;
    const LG6: f64 = 1.531383769920937332e-01;
    const LG7: f64 = 1.479819860511658591e-01;
    const SQRT_HALF_BITS: u64 = 0x3fe6_a09e_667f_3bcd;
    let subnormal = x < f64::MIN_POSITIVE;
    let scaled = if subnormal { x * 18_014_398_509_481_984.0 } else { x }; // 2^54
    let bits = scaled.to_bits().wrapping_sub(SQRT_HALF_BITS);
    let exponent = (bits as i64) >> 52;
    let mantissa = f64::from_bits((bits & 0x000f_ffff_ffff_ffff).wrapping_add(SQRT_HALF_BITS));
    let k = (exponent - if subnormal { 54 } else { 0 }) as f64;
    let f = mantissa - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let t1 = w * (LG2 + w * (LG4 + w * LG6));
    let t2 = z * (LG1 + w * (LG3 + w * (LG5 + w * LG7)));
    let r = t2 + t1;
    let hfsq = 0.5 * f * f;
    let y = k * LN2_HI - ((hfsq - (s * (hfsq + r) + k * LN2_LO)) - f);
    let y = if x == 0.0 { f64::NEG_INFINITY } else { y };
    let y = if x < 0.0 || x.is_nan() { f64::NAN } else { y };
    if x == f64::INFINITY { f64::INFINITY } else { y }
}

/// `x ln x`, continued by 0 at 0.
#[inline(always)]
pub fn x_ln_x(x: f64) -> f64 {
    if x > 0.0 { x * ln(x) } else { 0.0 }
}

/// A whole number from 0 to 2^62 as an integer, in one instruction where `as u64` takes ten.
#[inline(always)]
pub fn whole(x: f64) -> u64 {
    debug_assert!((0.0..4e18).contains(&x));
    // SAFETY: callers pass counts, which are checked when they are loaded; NaN and infinity do not pass that check.
    unsafe { x.to_int_unchecked::<i64>() as u64 }
}

/// The exponent of a finite positive number: `2^e <= x < 2^(e+1)`. Subnormals count as `2^-1023`.
#[inline(always)]
pub fn exponent(x: f64) -> i32 {
    ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

/// `x * 2^k` without intermediate overflow for any `k`; saturates to 0 or infinity.
pub fn scale(x: f64, k: i32) -> f64 {
    let mut y = x;
    let mut k = i64::from(k.clamp(-5000, 5000));
    while k > 1000 {
        y *= pow2(1000);
        k -= 1000;
    }
    while k < -1000 {
        y *= pow2(-1000);
        k += 1000;
    }
    y * pow2(k)
}

/// Binomial coefficient `C(n, k)` for real `n >= 0` and small `k`; 0 where `n < k` is an integer.
#[inline]
pub fn binomial(n: f64, k: u32) -> f64 {
    let mut c = 1.0;
    for j in 0..k {
        c *= (n - f64::from(j)) / f64::from(j + 1);
    }
    c
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // the standard library is the oracle here
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ulps(a: f64, b: f64) -> u64 {
        if a == b { 0 } else { (a.to_bits() as i64).abs_diff(b.to_bits() as i64) }
    }

    #[test]
    fn special_values() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(-800.0), 0.0);
        assert_eq!(exp(f64::INFINITY), f64::INFINITY);
        assert!(exp(f64::NAN).is_nan());
        assert!(exp(EXP_MAX).is_finite());
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        assert_eq!(ln(f64::INFINITY), f64::INFINITY);
        assert!(ln(-1.0).is_nan() && ln(f64::NAN).is_nan());
        assert!(ulps(ln(5e-324), 5e-324f64.ln()) <= 1);
        assert_eq!(binomial(7.0, 3), 35.0);
        assert_eq!(binomial(2.0, 3), 0.0);
        assert_eq!(scale(3.0, -2000), 0.0);
        assert_eq!(scale(scale(3.0, -900), 900), 3.0);
    }

    // std's functions are within 1 ulp of the truth, so ours within 1 ulp differ by at most 2.
    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200_000))]
        #[test]
        fn exp_agrees_with_std(x in -745.0f64..709.0) {
            prop_assert!(ulps(exp(x), x.exp()) <= 1, "{x}: {} vs {}", exp(x), x.exp());
        }
        #[test]
        fn ln_agrees_with_std(x in 1e-300f64..1e300) {
            prop_assert!(ulps(ln(x), x.ln()) <= 1);
        }
        #[test]
        fn ln_near_one(x in 0.5f64..2.0) {
            prop_assert!(ulps(ln(x), x.ln()) <= 1);
        }
    }
}
