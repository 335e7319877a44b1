//! Pareto-smoothed importance sampling: the tail index k-hat and smoothed weights.
//!
//! Zhang & Stephens (2009), "A new and efficient estimation method for the generalized Pareto distribution", with the
//! weakly informative prior of Vehtari et al. (2024), "Pareto smoothed importance sampling", JMLR 25(72).

use crate::math;
use crate::special::{exp_m1, ln_1p};

/// A fitted tail.
#[derive(Clone, Debug, PartialEq)]
pub struct TailFit {
    /// Shape of the generalized Pareto distribution.
    pub k: f64,
    /// Its scale, relative to the largest weight.
    pub sigma: f64,
    /// Log-weight at which the tail begins.
    pub cutoff: f64,
    /// Number of draws in the tail.
    pub size: usize,
    /// Log of the chance that the largest of so many draws from the fitted tail is no larger than the largest there is.
    pub log_p: f64,
}

/// How many of `n` draws make the tail: `ceil(min(n / 5, 3 sqrt n))`.
pub fn tail_size(n: f64) -> usize {
    (0.2 * n).min(3.0 * n.sqrt()).ceil() as usize
}

/// Fit the tail of log-weights, given the largest of them in descending order with multiplicities.
///
/// `None` if fewer than five draws exceed the cutoff (equal weights, say): there is no tail to speak of.
pub fn fit(descending: &[(f64, f64)], size: usize) -> Option<TailFit> {
    let largest = descending.first()?.0;
    let mut draws = descending.iter().flat_map(|&(l, m)| core::iter::repeat_n(l, m as usize));
    let tail: Vec<f64> = draws.by_ref().take(size).collect();
    let cutoff = draws.next()?.max(largest + math::ln(f64::MIN_POSITIVE));
    let base = math::exp(cutoff - largest);
    let mut excess: Vec<f64> = tail.iter().filter(|&&l| l > cutoff).map(|&l| math::exp(l - largest) - base).collect();
    if excess.len() <= 4 {
        return None;
    }
    excess.reverse();
    let (k, sigma) = pareto_fit(&excess);
    let size = excess.len();
    let log_p = size as f64 * log_below(excess[size - 1], k, sigma);
    Some(TailFit { k, sigma, cutoff, size, log_p })
}

/// Log of the generalized Pareto distribution function.
fn log_below(x: f64, k: f64, sigma: f64) -> f64 {
    let reach = 1.0 + k * x / sigma;
    if reach <= 0.0 {
        return 0.0;
    }
    let log_above = if k == 0.0 { -x / sigma } else { -math::ln(reach) / k };
    ln_1p(-math::exp(log_above))
}

/// Shape and scale of a generalized Pareto distribution from ascending positive excesses.
fn pareto_fit(x: &[f64]) -> (f64, f64) {
    const PRIOR_B: f64 = 3.0;
    const PRIOR_K: f64 = 10.0;
    let n = x.len();
    let grid = 30 + (n as f64).sqrt() as usize;
    let quartile = x[(n as f64 / 4.0 + 0.5) as usize - 1];
    let mean_log = |b: f64| x.iter().map(|&x| ln_1p(-b * x)).sum::<f64>() / n as f64;
    let (mut b, mut profile): (Vec<f64>, Vec<f64>) = (1..=grid)
        .map(|j| {
            let b = (1.0 - (grid as f64 / (j as f64 - 0.5)).sqrt()) / (PRIOR_B * quartile) + 1.0 / x[n - 1];
            let k = mean_log(b);
            (b, n as f64 * (math::ln(-(b / k)) - k - 1.0))
        })
        .unzip();
    let weights: Vec<f64> =
        profile.iter().map(|&p| 1.0 / profile.iter().map(|&q| math::exp(q - p)).sum::<f64>()).collect();
    profile.clear();
    let keep = |w: f64| if w >= 10.0 * f64::EPSILON { w } else { 0.0 };
    let total: f64 = weights.iter().map(|&w| keep(w)).sum();
    let b_mean = b.drain(..).zip(&weights).map(|(b, &w)| b * keep(w)).sum::<f64>() / total;
    let k = mean_log(b_mean);
    let sigma = -k / b_mean;
    ((n as f64 * k + PRIOR_K * 0.5) / (n as f64 + PRIOR_K), sigma)
}

impl TailFit {
    /// Smoothed weight, relative to the largest one, of the draw of ascending rank `j` (from 0) within the tail; at most 1.
    fn smoothed(&self, rank: usize, base: f64) -> f64 {
        let p = (rank as f64 + 0.5) / self.size as f64;
        let tail = ln_1p(-p);
        let excess = if self.k == 0.0 { -tail * self.sigma } else { self.sigma * exp_m1(-self.k * tail) / self.k };
        (excess + base).min(1.0)
    }

    /// Smoothed log-weights of the tail's distinct log-weights, given these in descending order with multiplicities.
    ///
    /// Draws of equal weight share the mean of their smoothed weights: which of them is "larger" is an accident of
    /// their order, and must not decide which reward gets more weight.
    pub fn smooth(&self, descending: &[(f64, f64)]) -> Vec<(f64, f64)> {
        let Some(&(largest, _)) = descending.first() else { return Vec::new() };
        let base = math::exp(self.cutoff - largest);
        let mut rank = self.size;
        let mut smoothed = Vec::new();
        for ties in descending.chunk_by(|a, b| a.0 == b.0).take_while(|ties| ties[0].0 > self.cutoff) {
            let draws = ties.iter().map(|&(_, m)| m as usize).sum::<usize>().min(rank);
            rank -= draws;
            let mean = (rank..rank + draws).map(|j| self.smoothed(j, base)).sum::<f64>() / draws as f64;
            smoothed.push((ties[0].0, math::ln(mean) + largest));
        }
        smoothed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_pareto_tail() {
        // Log-weights at the exact quantiles of a Pareto law with tail index 1/k.
        for k in [0.3, 0.7, 1.2] {
            let n = 20_000;
            let mut l: Vec<(f64, f64)> =
                (0..n).map(|i| (-k * math::ln((f64::from(i) + 0.5) / f64::from(n)), 1.0)).collect();
            l.sort_by(|a, b| b.0.total_cmp(&a.0));
            let fit = fit(&l, tail_size(f64::from(n))).unwrap();
            assert!((fit.k - k).abs() < 0.05, "{k} {}", fit.k);
            // The largest of M quantiles (i + .5) / M has been exceeded by no draw with chance about exp(-1/2).
            assert!((fit.log_p + 0.5).abs() < 0.1, "{k} {}", fit.log_p);
            let smoothed = fit.smooth(&l);
            assert_eq!(smoothed.len(), fit.size);
            assert!(smoothed.iter().all(|&(_, s)| s <= l[0].0) && smoothed.windows(2).all(|w| w[0].1 >= w[1].1));
        }
    }

    #[test]
    fn a_mixture_ends_where_no_such_tail_would() {
        // 4,730 weights near 1 and 70 near 8: the gap looks like a tail of index 2, whose largest weight were far larger.
        let near = |center: f64, n: i32| (0..n).map(move |i| (center + 0.1 * f64::from(i) / f64::from(n), 1.0));
        let mut l: Vec<(f64, f64)> = near(0.0, 4730).chain(near(math::ln(8.0), 70)).collect();
        l.sort_by(|a, b| b.0.total_cmp(&a.0));
        let fit = fit(&l, tail_size(4800.0)).unwrap();
        assert!(fit.k > 1.0 && fit.log_p < -10.0, "{fit:?}");
    }

    #[test]
    fn equal_weights_have_no_tail() {
        assert_eq!(fit(&[(0.0, 1000.0)], tail_size(1000.0)), None);
        assert_eq!(fit(&[], 10), None);
    }
}
