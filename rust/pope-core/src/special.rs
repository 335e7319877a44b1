//! Quantiles and the small functions around them.

use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use crate::math;

/// Quantile of Student's t with `df` degrees of freedom; infinite where there are none.
pub fn t_quantile(p: f64, df: f64) -> f64 {
    if df < 1.0 {
        return f64::INFINITY;
    }
    // Beyond this the two agree to 1e-9 and the normal's quantile is the more accurate of the two routines.
    if df > 1e7 {
        return normal_quantile(p);
    }
    StudentsT::new(0.0, 1.0, df).map_or(f64::INFINITY, |t| t.inverse_cdf(p))
}

/// Quantile of the standard normal.
pub fn normal_quantile(p: f64) -> f64 {
    Normal::standard().inverse_cdf(p)
}

/// `ln(1 + x)` without cancellation (Kahan).
#[inline(always)]
pub fn ln_1p(x: f64) -> f64 {
    let u = 1.0 + x;
    if u == 1.0 { x } else { math::ln(u) * x / (u - 1.0) }
}

/// `e^x - 1` without cancellation (Kahan).
pub fn exp_m1(x: f64) -> f64 {
    let u = math::exp(x);
    if u == 1.0 {
        x
    } else if u - 1.0 == -1.0 {
        -1.0
    } else if u.is_infinite() {
        u
    } else {
        (u - 1.0) * x / math::ln(u)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn tabulated_quantiles() {
        // scipy.stats.t.ppf / norm.ppf
        for (p, df, expected) in [
            (0.975, 1.0, 12.706_204_736_174_7),
            (0.975, 127.0, 1.978_819_534_654_49),
            (0.995, 12.0, 3.054_539_589_392_9),
            (0.9, 3.0, 1.637_744_353_696_21),
            (0.975, 4999.0, 1.960_438_647_460_85),
        ] {
            assert!((t_quantile(p, df) / expected - 1.0).abs() < 1e-8, "{p} {df} {}", t_quantile(p, df));
        }
        assert!((normal_quantile(0.975) - 1.959_963_984_540_054).abs() < 1e-9);
        assert!((t_quantile(0.975, 2e7) - 1.959_963_984_540_054).abs() < 1e-6);
        assert_eq!(t_quantile(0.975, 0.0), f64::INFINITY);
    }

    #[test]
    fn small_arguments() {
        for x in [1e-18, 1e-9, 0.1, -0.3, 2.0] {
            assert!((ln_1p(x) / x.ln_1p() - 1.0).abs() < 1e-14);
            assert!((exp_m1(x) / x.exp_m1() - 1.0).abs() < 1e-14);
        }
        assert_eq!((exp_m1(-800.0), exp_m1(800.0)), (-1.0, f64::INFINITY));
    }
}
