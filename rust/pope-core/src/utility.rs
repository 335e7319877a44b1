//! Estimators of utility (theory 1), on rescaled rewards in [0, 1].
//!
//! Each is a function of first-order sums with a linear influence function, so its standard error is a quadratic form
//! in the Gram matrix of unit statistics ("delta" method, cluster-robust by unit).

use crate::cut::{A, N, Point, Sums};
use crate::field::record;
use crate::math;
use crate::scalars::PolicyScalars;

record! {
    /// A value with its standard error.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct Estimate {
        /// The estimate.
        value: f64,
        /// Its standard error.
        standard_error: f64,
    }
}

impl Estimate {
    /// The image under `x -> offset + factor x`.
    #[must_use]
    pub fn affine(self, offset: f64, factor: f64) -> Self {
        Estimate { value: offset + factor * self.value, standard_error: factor.abs() * self.standard_error }
    }
}

/// Standard error of a mean over `n` units from the centered sum of squares.
fn standard_error(sum_of_squares: f64, n: f64) -> f64 {
    // Not f64::max, which would turn an overflow (NaN) into an error of 0.
    let square = if sum_of_squares < 0.0 { 0.0 } else { sum_of_squares };
    (square / (n - 1.0) / n).sqrt()
}

/// Self-normalized: `v = sum N / sum A`, influence `(N_i - v A_i) / mean A`. On truncated sums this is SN-TIPS, on
/// smoothed ones SN-PSIS, on plain ones SNIPS (Hesterberg 1995; Swaminathan & Joachims 2015).
pub fn self_normalized(sums: &Sums) -> Estimate {
    let p = sums.whole(1);
    let v = ratio(&p);
    let residual = [(N, 1.0), (A, -v)];
    let square = sums.quadratic(1, &residual, &residual);
    Estimate { value: v, standard_error: standard_error(square, p.units) / p.mean(A) }
}

/// `sum N / sum A`.
pub fn ratio(p: &Point) -> f64 {
    p.sums[N] / p.sums[A]
}

/// Mean of `low A + span N`: inverse propensity scoring of the raw reward (Horvitz & Thompson 1952); on truncated sums
/// TIPS (Ionides 2008).
pub fn weighted_mean(sums: &Sums, low: f64, span: f64) -> Estimate {
    let p = sums.whole(1);
    let mean = low * p.mean(A) + span * p.mean(N);
    let raw = [(A, low), (N, span)];
    let square = sums.quadratic(1, &raw, &raw) - p.units * mean * mean;
    Estimate {
        value: math::scale(mean, sums.scale),
        standard_error: math::scale(standard_error(square, p.units), sums.scale),
    }
}

/// Control variate: `mean N - b (mean A - 1)`, `b = Cov(N, A) / Var(A)`.
pub fn control_variate(sums: &Sums) -> Estimate {
    let p = sums.whole(1);
    let (a, n) = (p.mean(A), p.mean(N));
    let moment = |i, j, mi: f64, mj: f64| sums.quadratic(1, &[(i, 1.0)], &[(j, 1.0)]) / p.units - mi * mj;
    let (nn, an, aa) = (moment(N, N, n, n), moment(A, N, a, n), moment(A, A, a, a));
    // Constant weights leave nothing to regress on; what is left of their variance is rounding.
    let b = if aa > 1e-14 * a * a { an / aa } else { 0.0 };
    let value = math::scale(n, sums.scale) - b * (math::scale(a, sums.scale) - 1.0);
    let square = (nn - 2.0 * b * an + b * b * aa) * p.units;
    Estimate { value, standard_error: math::scale(standard_error(square, p.units), sums.scale) }
}

/// Mean and standard error of `X + Y` where the sums of `X, Y, X^2, X Y, Y^2` are given at scale 1.
fn mean_of_two([x, y, xx, xy, yy]: [f64; 5], n: f64) -> Estimate {
    let mean = (x + y) / n;
    Estimate { value: mean, standard_error: standard_error(xx + 2.0 * xy + yy - n * mean * mean, n) }
}

/// Leave-one-out baseline: `mean_k [w_k (r_k - b_k) + b_k]`, `b_k` the mean reward of the unit's other draws.
pub fn leave_one_out_baseline(s: &PolicyScalars, n: f64) -> Estimate {
    mean_of_two([0, 1, 2, 3, 4].map(|i| s.baseline[i].value()), n)
}

/// Direct method: the mean of the reward model's policy means.
pub fn direct(s: &PolicyScalars, n: f64) -> Estimate {
    mean_of_two([0.0, s.dr[1].value(), 0.0, 0.0, s.dr[4].value()], n)
}

/// Doubly robust (Dudik, Langford & Li 2011): `mean [w (r - f)] + E_pi f`.
pub fn doubly_robust(s: &PolicyScalars, n: f64) -> Estimate {
    mean_of_two([0, 1, 2, 3, 4].map(|i| s.dr[i].value()), n)
}

/// Doubly robust with a self-normalized correction: `sum Q / sum A + mean G`.
pub fn self_normalized_doubly_robust(s: &PolicyScalars, sums: &Sums) -> Estimate {
    const DEGREES: [i32; 7] = [1, 0, 2, 1, 0, 2, 1];
    let p = sums.whole(1);
    let [q, g, qq, qg, gg, aq, ag] = [0, 1, 2, 3, 4, 5, 6].map(|i| s.dr[i].dd(DEGREES[i] * sums.scale).value());
    let (n, a, aa) = (p.units, p.sums[A], sums.quadratic(1, &[(A, 1.0)], &[(A, 1.0)]));
    let correction = q / a;
    let (mean_a, mean_g) = (a / n, g / n);
    // Influence (Q - c A) / mean A + (G - mean G).
    let first = (qq - 2.0 * correction * aq + correction * correction * aa) / (mean_a * mean_a);
    let cross = (qg - correction * ag - mean_g * (q - correction * a)) / mean_a;
    let square = first + 2.0 * cross + gg - n * mean_g * mean_g;
    Estimate { value: correction + mean_g, standard_error: standard_error(square, n) }
}
