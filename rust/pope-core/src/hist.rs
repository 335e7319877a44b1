//! A histogram of non-negative unit values on a logarithmic grid: 256 bins per octave from 2^-40 to 2^40.
//!
//! The log-smoothing bound and the betting e-value are sums of `ln(1 + l X)` over units for many `l`. Both only grow
//! with `X`, so replacing each `X` by the lower edge of its bin (at most 2^-8 below) keeps a lower bound a lower bound.
//! In exchange an update is one integer increment, exact in any order, and every `l`, any rescaling of the weights and
//! any later truncation is evaluated after the fact.

use crate::math;

const MANTISSA_BITS: u32 = 8;
const OCTAVES: usize = 80;
const LOWEST: i64 = -40;
const BINS: usize = OCTAVES << MANTISSA_BITS;
const BIAS: i64 = (1023 + LOWEST) << MANTISSA_BITS;

/// Counts per bin; bin 0 is "below 2^-40" and counts as 0, the last one is "2^40 and above".
#[derive(Clone, Debug)]
pub struct LogHistogram {
    counts: Vec<u64>,
}

impl Default for LogHistogram {
    fn default() -> Self {
        LogHistogram { counts: vec![0; BINS + 2] }
    }
}

/// The bin of `x * 2^scale`.
#[inline(always)]
fn bin(x: f64, scale: i32) -> usize {
    if x <= 0.0 {
        return 0;
    }
    let grid = (x.to_bits() >> (52 - MANTISSA_BITS)) as i64 + (i64::from(scale) << MANTISSA_BITS);
    (grid - BIAS + 1).clamp(0, BINS as i64 + 1) as usize
}

fn edge(bin: usize) -> f64 {
    if bin == 0 { 0.0 } else { f64::from_bits(((bin as i64 - 1 + BIAS) as u64) << (52 - MANTISSA_BITS)) }
}

impl LogHistogram {
    /// Count `x * 2^scale` `times` times.
    #[inline(always)]
    pub fn add(&mut self, x: f64, scale: i32, times: u64) {
        let count = &mut self.counts[bin(x, scale)];
        *count = count.wrapping_add(times);
    }

    /// Take back what [`Self::add`] counted.
    pub fn remove(&mut self, x: f64, scale: i32, times: u64) {
        let count = &mut self.counts[bin(x, scale)];
        *count = count.wrapping_sub(times);
    }

    /// Add another histogram.
    pub fn merge(&mut self, other: &LogHistogram) {
        for (a, b) in self.counts.iter_mut().zip(&other.counts) {
            *a = a.wrapping_add(*b);
        }
    }

    /// `(lower edge, count)` of every bin in use, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (f64, u64)> {
        self.counts.iter().enumerate().filter(|&(_, &n)| n > 0).map(|(i, &n)| (edge(i), n))
    }

    /// `(bin, count)` of every bin in use, for storage.
    pub fn entries(&self) -> impl Iterator<Item = (u32, u64)> {
        self.counts.iter().enumerate().filter(|&(_, &n)| n > 0).map(|(i, &n)| (i as u32, n))
    }

    /// Set a stored bin; false if there is no such bin.
    pub fn set(&mut self, bin: u32, count: u64) -> bool {
        self.counts.get_mut(bin as usize).map(|slot| *slot = count).is_some()
    }

    /// Number of values counted. Wraps like [`Self::remove`], which a forged state can drive below zero.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, &n| sum.wrapping_add(n))
    }

    /// `sum ln(1 + a (x factor - b))`, over the floored values; needs `a b < 1`.
    pub fn sum_log1p(&self, a: f64, b: f64, factor: f64) -> f64 {
        self.iter().map(|(x, c)| math::ln(1.0 + a * (x * factor - b)) * c as f64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_within_one_part_in_256() {
        for x in [1e-9, 0.3, 1.0, 1.5, 777.0, 1e9] {
            let floored = edge(bin(x, 0));
            assert!(floored <= x && x < floored * (1.0 + 1.0 / 256.0), "{x} {floored}");
            assert_eq!(bin(x, 3), bin(8.0 * x, 0));
        }
        assert_eq!(edge(bin(1e-30, 0)), 0.0);
        assert_eq!(edge(bin(1e30, 0)), 2f64.powi(40));
        assert_eq!(edge(bin(1.0, 5000)), 2f64.powi(40));
        assert_eq!(edge(bin(f64::INFINITY, 0)), 2f64.powi(40));
        assert_eq!(edge(bin(0.0, 100)), 0.0);
    }

    #[test]
    fn removes_what_it_added() {
        let mut h = LogHistogram::default();
        h.add(0.75, 1, 3);
        h.add(1.5, 0, 2);
        assert_eq!(h.iter().collect::<Vec<_>>(), [(1.5, 5)]);
        h.remove(1.5, 0, 5);
        assert_eq!(h.total(), 0);
    }
}
