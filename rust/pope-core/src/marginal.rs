//! Diversity over the whole log (theory 2.1): the entropy of the marginal cluster distribution.

use crate::interval::{Interval, log_smoothing_bound_of, t_of_level};
use crate::lane::Shared;
use crate::math::{self, x_ln_x};
use crate::slots::Slots;
use crate::totals::{BUCKETS, Totals};

/// Cluster masses of one policy, in the canonical order of the keys.
#[derive(Clone, Debug)]
pub struct Marginal {
    /// Keys of the clusters.
    pub keys: Vec<i64>,
    /// `S_c`.
    pub mass: Vec<f64>,
    /// Draws of the logger per cluster.
    pub draws: Vec<u64>,
    /// Units in which a cluster occurs.
    pub units: Vec<u64>,
    /// Per bucket: `(cluster, mass)`.
    buckets: Vec<Vec<(usize, f64)>>,
    /// `sum_i A_ic A_i` and `sum_i A_ic^2`.
    second: Vec<[f64; 2]>,
}

impl Marginal {
    /// Read the masses relative to `2^scale`.
    pub fn new(totals: &Totals, slots: &Slots, shared: &Shared, scale: i32) -> Self {
        let order: Vec<u32> = slots.by_key().into_iter().filter(|&s| count(shared, s)[1] > 0).collect();
        let mut position = vec![usize::MAX; slots.len()];
        order.iter().enumerate().for_each(|(at, &slot)| position[slot as usize] = at);
        let mut buckets = vec![Vec::new(); BUCKETS];
        // A label without a place can only come from a forged state; there is nothing to count it under.
        let place = |slot: u32| position.get(slot as usize).copied().filter(|&at| at < order.len());
        for (slot, bucket, sum) in totals.cluster.mass.iter() {
            if let Some(at) = place(slot) {
                buckets[bucket].push((at, sum.dd(scale).value()));
            }
        }
        let mut mass = vec![0.0; order.len()];
        for bucket in &mut buckets {
            bucket.sort_unstable_by_key(|&(at, _)| at);
            bucket.iter().for_each(|&(at, x)| mass[at] += x);
        }
        let second = order
            .iter()
            .map(|&slot| {
                totals
                    .cluster
                    .second
                    .get(slot as usize)
                    .map_or([0.0; 2], |s| [0, 1].map(|i| s[i].dd(2 * scale).value()))
            })
            .collect();
        Marginal {
            keys: order.iter().map(|&slot| slots.key(slot)).collect(),
            mass,
            draws: order.iter().map(|&slot| count(shared, slot)[0]).collect(),
            units: order.iter().map(|&slot| count(shared, slot)[1]).collect(),
            buckets,
            second,
        }
    }

    /// `W = sum_c S_c`.
    pub fn total(&self) -> f64 {
        self.mass.iter().sum()
    }

    /// Plug-in entropy in nats.
    pub fn plug_in(&self) -> f64 {
        entropy(self.total(), self.mass.iter().map(|&s| x_ln_x(s)).sum())
    }

    /// Plug-in entropies with one bucket left out.
    pub fn leave_one_out(&self) -> Vec<f64> {
        let (total, sum): (f64, f64) = (self.total(), self.mass.iter().map(|&s| x_ln_x(s)).sum());
        let without = |bucket: &Vec<(usize, f64)>| {
            let mass: f64 = bucket.iter().map(|&(_, x)| x).sum();
            let change: f64 =
                bucket.iter().map(|&(at, x)| x_ln_x(self.mass[at]) - x_ln_x((self.mass[at] - x).max(0.0))).sum();
            entropy(total - mass, sum - change)
        };
        self.buckets.iter().map(without).collect()
    }

    /// Bias of the plug-in entropy to second order: the weighted Miller-Madow correction of theory 2.1 for units with
    /// several draws, `W^-2 [ sum_c (ln q_c + H) sum_i A_ic A_i + sum_i A_i^2 / 2 - sum_c sum_i A_ic^2 / (2 q_c) ]`.
    pub fn miller_madow_bias(&self, sum_a_squared: f64) -> f64 {
        let (w, h) = (self.total(), self.plug_in());
        let terms = self.mass.iter().zip(&self.second).filter(|&(&s, _)| s > 0.0);
        let sum: f64 = terms.map(|(&s, &[cross, square])| (math::ln(s / w) + h) * cross - square / (2.0 * s / w)).sum();
        (sum + sum_a_squared / 2.0) / (w * w)
    }

    /// Weighted Good-Turing: the share of the weight in clusters that occur in one unit only.
    pub fn unseen_mass(&self) -> f64 {
        let alone = self.mass.iter().zip(&self.units).filter(|&(_, &n)| n == 1);
        alone.map(|(s, _)| s).sum::<f64>() / self.total()
    }

    /// Range of the entropy over all distributions that respect lower bounds on the cluster masses.
    ///
    /// Entropy is concave: least where all free mass goes to one cluster, most where it fills up the smallest ones.
    /// Only clusters that occur in the log are considered.
    fn range(lower: &[f64]) -> Interval {
        let free = (1.0 - lower.iter().sum::<f64>()).max(0.0);
        let sum: f64 = lower.iter().map(|&l| x_ln_x(l)).sum();
        let vertex = |l: f64| -(sum - x_ln_x(l) + x_ln_x(l + free));
        let low = lower.iter().map(|&l| vertex(l)).fold(f64::INFINITY, f64::min);
        let mut sorted = lower.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let (mut level, mut filled, mut left) = (0.0, 0, free);
        for (i, &l) in sorted.iter().enumerate() {
            let need = (l - level) * i as f64;
            if i > 0 && need > left {
                break;
            }
            left -= if i > 0 { need } else { 0.0 };
            level = l;
            filled = i + 1;
        }
        level += left / filled.max(1) as f64;
        let high = -(filled as f64 * x_ln_x(level) + sorted[filled..].iter().map(|&l| x_ln_x(l)).sum::<f64>());
        Interval { low: low.max(0.0), high: high.max(low).max(0.0) }
    }

    /// Interval from lower bounds on each cluster's mass, which hold for truncated weights without any overlap:
    /// by Student's t on bucket means, or finite-sample by log-smoothing. `sizes` are the units per bucket; masses are
    /// multiplied by `factor` to their true scale.
    pub fn bounded_interval(&self, sizes: &[u64], factor: f64, level: f64, finite_sample: bool) -> Option<Interval> {
        let alpha = (1.0 - level) / self.keys.len().max(1) as f64;
        let used: Vec<usize> = (0..BUCKETS).filter(|&b| sizes[b] > 0).collect();
        if used.len() < 2 || self.keys.is_empty() || !factor.is_finite() {
            return None;
        }
        let n: u64 = sizes.iter().sum();
        let mut by_cluster = vec![vec![0.0; used.len()]; self.keys.len()];
        for (column, &b) in used.iter().enumerate() {
            for &(at, x) in &self.buckets[b] {
                by_cluster[at][column] = x * factor / sizes[b] as f64;
            }
        }
        let t = t_of_level(1.0 - 2.0 * alpha.min(0.5), used.len() as f64 - 1.0);
        let bound = |(at, means): (usize, &Vec<f64>)| {
            if finite_sample {
                return log_smoothing_bound_of(means, alpha);
            }
            // Ratio-type variance: buckets weigh as many units as they hold.
            let mean = self.mass[at] * factor / n as f64;
            let square: f64 = used.iter().zip(means).map(|(&b, x)| (sizes[b] as f64 * (x - mean)).powi(2)).sum();
            let g = used.len() as f64;
            (mean - t * (square * g / (g - 1.0)).sqrt() / n as f64).max(0.0)
        };
        let lower: Vec<f64> = by_cluster.iter().enumerate().map(bound).collect();
        (lower.iter().sum::<f64>() <= 1.0).then(|| Self::range(&lower))
    }

    /// Finite-sample upper bound on the mean within-prompt entropy by cross entropies (theory F5 with F3):
    /// `E_x H(q_x) <= E_pi[-ln t(c)]` for a reference `t` fitted on the even buckets and evaluated on the odd ones, and
    /// the other way round; the smaller of the two bounds, each at half the error probability.
    pub fn cross_entropy_bound(&self, sizes: &[u64], factor: f64, level: f64) -> Option<f64> {
        let clusters = self.keys.len() as f64;
        let fold = |parity: usize| {
            let mut t = vec![0.0; self.keys.len()];
            for bucket in self.buckets.iter().skip(1 - parity).step_by(2) {
                bucket.iter().for_each(|&(at, x)| t[at] += x);
            }
            let total: f64 = t.iter().sum();
            if total <= 0.0 || !factor.is_finite() {
                return None;
            }
            // Mixed with the uniform distribution, so that the cost of any seen cluster is bounded.
            let cost: Vec<f64> = t.iter().map(|&x| -math::ln(0.95 * x / total + 0.05 / clusters)).collect();
            let most = cost.iter().copied().fold(0.0, f64::max);
            let saved = |b: usize| {
                let sum: f64 = self.buckets[b].iter().map(|&(at, x)| x * (most - cost[at])).sum();
                sum * factor / sizes[b] as f64
            };
            let values: Vec<f64> = (parity..BUCKETS).step_by(2).filter(|&b| sizes[b] > 0).map(saved).collect();
            Some(most - log_smoothing_bound_of(&values, (1.0 - level) / 2.0))
        };
        let bounds = [fold(0)?, fold(1)?];
        Some(bounds[0].min(bounds[1]).max(0.0))
    }
}

fn count(shared: &Shared, slot: u32) -> [u64; 2] {
    shared.clusters.get(slot as usize).copied().unwrap_or_default()
}

/// Entropy of masses with total `w` and `sum s ln s` given.
fn entropy(w: f64, sum: f64) -> f64 {
    (math::ln(w) - sum / w).max(0.0)
}

/// Worst-case tail for an entropy: a share `m` of the target's mass may lie anywhere on `clusters` clusters.
/// Concavity gives `(1 - m) H` below and `(1 - m) H + m ln C + h(m)` above, with `h` the binary entropy.
pub fn worst_case_tail(value: f64, half: f64, m: f64, clusters: usize) -> Interval {
    let most = math::ln(clusters.max(1) as f64);
    let binary = -(x_ln_x(m) + x_ln_x(1.0 - m));
    Interval { low: (value - half) * (1.0 - m), high: (value + half) * (1.0 - m) + m * most + binary }.within(0.0, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_range_of_a_polytope() {
        let r = Marginal::range(&[0.5, 0.5]);
        assert!((r.low - 2f64.ln()).abs() < 1e-15 && (r.high - 2f64.ln()).abs() < 1e-15);
        let r = Marginal::range(&[0.0, 0.0, 0.0]);
        assert!(r.low == 0.0 && (r.high - 3f64.ln()).abs() < 1e-15);
        // (0.6, 0.1, 0.1) with 0.2 free: the most even is (0.6, 0.2, 0.2), the least (0.8, 0.1, 0.1).
        let r = Marginal::range(&[0.6, 0.1, 0.1]);
        let h = |q: &[f64]| -q.iter().map(|q| q * q.ln()).sum::<f64>();
        assert!((r.high - h(&[0.6, 0.2, 0.2])).abs() < 1e-14 && (r.low - h(&[0.8, 0.1, 0.1])).abs() < 1e-14);
    }
}
