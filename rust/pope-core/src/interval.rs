//! Confidence intervals for quantities in [0, 1], or bounded alike (theory 4).

use crate::field::record;
use crate::hist::LogHistogram;
use crate::math;
use crate::special::t_quantile;

record! {
    /// An interval in the units of its quantity.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct Interval {
        /// Lower end.
        low: f64,
        /// Upper end.
        high: f64,
    }
}

impl Interval {
    /// `value -+ half`.
    pub fn around(value: f64, half: f64) -> Self {
        Interval { low: value - half, high: value + half }
    }

    /// The image under `x -> offset + factor x`, `factor >= 0`.
    #[must_use]
    pub fn affine(self, offset: f64, factor: f64) -> Self {
        Interval { low: offset + factor * self.low, high: offset + factor * self.high }
    }

    /// The part inside `[low, high]`.
    #[must_use]
    pub fn within(self, low: f64, high: f64) -> Self {
        Interval { low: self.low.clamp(low, high), high: self.high.clamp(low, high) }
    }

    /// The sum of two intervals, the second times `factor >= 0`.
    #[must_use]
    pub fn plus(self, other: Interval, factor: f64) -> Self {
        Interval { low: self.low + factor * other.low, high: self.high + factor * other.high }
    }

    /// Has it the lower end above the upper one? Then its assumptions are false.
    pub fn inverted(self) -> bool {
        self.low > self.high
    }
}

/// Two-sided t quantile at a level.
pub fn t_of_level(level: f64, df: f64) -> f64 {
    t_quantile(0.5 + level / 2.0, df)
}

/// Worst-case tail (theory 4): an estimate `value -+ half` about the truncated policy, whose weights miss a share `m` of
/// the target's mass; that share may earn anything in [0, 1].
pub fn worst_case_tail(value: f64, half: f64, m: f64) -> Interval {
    Interval { low: (value - half) * (1.0 - m), high: (value + half) * (1.0 - m) + m }.within(0.0, 1.0)
}

/// Histograms of one non-negative variable over several classes of units, read as one; values are taken times `factor`.
pub struct Sample<'a> {
    parts: Vec<&'a LogHistogram>,
    factor: f64,
}

/// Number of tilts `l` over which the log-smoothing bound is maximized.
const TILTS: i32 = 24;

impl<'a> Sample<'a> {
    /// A sample from its parts.
    pub fn new(parts: impl IntoIterator<Item = &'a LogHistogram>, factor: f64) -> Self {
        Sample { parts: parts.into_iter().collect(), factor }
    }

    /// Number of units.
    pub fn len(&self) -> f64 {
        self.parts.iter().map(|h| h.total() as f64).sum()
    }

    /// No units?
    pub fn is_empty(&self) -> bool {
        self.len() == 0.0
    }

    /// Finite-sample lower confidence bound of the mean: for every tilt `l`, `prod (1 + l X) / (1 + l E X)^n` has mean 1
    /// at most, so `exp(L/n - ln(J/alpha)/n) - 1) / l` is below `E X` with probability `1 - alpha/J` (Markov). No
    /// assumption on tails; Bahadur & Savage (1956) exclude an upper bound of this kind.
    pub fn log_smoothing_bound(&self, alpha: f64) -> f64 {
        let n = self.len();
        if n == 0.0 {
            return 0.0;
        }
        let price = math::ln(f64::from(TILTS) / alpha) / n;
        tilts().map(|l| (math::exp(self.sum_log1p(l, 0.0) / n - price) - 1.0) / l).fold(0.0, f64::max)
    }

    /// Lower confidence bound by Student's t.
    pub fn t_bound(&self, level: f64) -> f64 {
        let n = self.len();
        if n < 2.0 {
            return 0.0;
        }
        let mean = self.sum(|x| x) / n;
        let variance = self.sum(|x| (x - mean) * (x - mean)) / (n - 1.0);
        (mean - t_of_level(level, n - 1.0) * (variance / n).sqrt()).max(0.0)
    }

    fn sum(&self, f: impl Fn(f64) -> f64) -> f64 {
        self.parts.iter().flat_map(|h| h.iter()).map(|(x, c)| f(x * self.factor) * c as f64).sum()
    }

    fn sum_log1p(&self, a: f64, b: f64) -> f64 {
        self.parts.iter().map(|h| h.sum_log1p(a, b, self.factor)).sum()
    }

    /// Logarithm of the betting e-value against `E X <= 1`: `mean_j prod (1 + th_j (X - 1))`.
    pub fn log_e_value(&self) -> f64 {
        let logs: Vec<f64> = (0..10).map(|j| self.sum_log1p(0.05 + 0.1 * f64::from(j), 1.0)).collect();
        let max = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        max + math::ln(logs.iter().map(|l| math::exp(l - max)).sum::<f64>() / logs.len() as f64)
    }
}

fn tilts() -> impl Iterator<Item = f64> {
    let (low, high) = (math::ln(1e-3), math::ln(3.0));
    (0..TILTS).map(move |j| math::exp(low + (high - low) * f64::from(j) / f64::from(TILTS - 1)))
}

/// The log-smoothing bound for plain values (a handful, such as bucket means).
pub fn log_smoothing_bound_of(values: &[f64], alpha: f64) -> f64 {
    let mut histogram = LogHistogram::default();
    values.iter().for_each(|&x| histogram.add(x, 0, 1));
    Sample::new([&histogram], 1.0).log_smoothing_bound(alpha)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worst_case_by_hand() {
        let i = worst_case_tail(0.5, 0.1, 0.2);
        assert!((i.low - 0.32).abs() < 1e-15 && (i.high - 0.68).abs() < 1e-15);
        assert_eq!(worst_case_tail(0.05, 0.1, 0.0).low, 0.0);
    }

    #[test]
    fn log_smoothing_of_a_constant() {
        // For X = 1 the bound is max_l ((1 + l) e^{-price} - 1) / l, largest at l = 3.
        let price = (24.0f64 / 0.05).ln() / 1000.0;
        let expected = (4.0 * (-price).exp() - 1.0) / 3.0;
        assert!((log_smoothing_bound_of(&[1.0; 1000], 0.05) - expected).abs() < 1e-12);
        assert_eq!(log_smoothing_bound_of(&[], 0.05), 0.0);
        assert_eq!(log_smoothing_bound_of(&[0.0; 10], 0.05), 0.0);
    }

    #[test]
    fn e_value_of_constants() {
        let mut h = LogHistogram::default();
        h.add(1.0, 0, 50);
        assert_eq!(Sample::new([&h], 1.0).log_e_value(), 0.0);
        // X = 2: mean over th of (1 + th)^50.
        let expected = ((0..10).map(|j| (1.05 + 0.1 * f64::from(j)).powi(50)).sum::<f64>() / 10.0).ln();
        assert!((Sample::new([&h], 2.0).log_e_value() - expected).abs() < 1e-10);
    }
}
