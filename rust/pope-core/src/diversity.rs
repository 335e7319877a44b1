//! Diversity within prompts (theory 2.2): the family `zeta_v`, its members with names, and their variance.

use crate::cut::{A, P2, Point, Sums, Z1};
use crate::interval::Interval;
use crate::unit::{MAX_DEGREE, MAX_ORDER};
use crate::utility::Estimate;

/// A diversity measure: a constant plus a non-negative combination of `zeta_1, zeta_2, zeta_3`.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    /// Its name in results.
    pub name: String,
    /// The constant.
    pub offset: f64,
    /// Coefficients of `zeta_1, zeta_2, zeta_3`.
    pub zeta: [f64; MAX_ORDER],
}

fn zeta_up_to(order: usize, coefficient: impl Fn(usize) -> f64) -> [f64; MAX_ORDER] {
    core::array::from_fn(|i| if i < order { coefficient(i + 1) } else { 0.0 })
}

impl Measure {
    /// `H_M = sum_{v <= M} zeta_v / v`, the Shannon entropy's series cut after `M` terms.
    pub fn entropy(order: usize) -> Self {
        Measure { name: format!("H_{order}"), offset: 0.0, zeta: zeta_up_to(order, |v| 1.0 / v as f64) }
    }

    /// Gini-Simpson index `zeta_1`: the probability that two draws fall into different clusters.
    pub fn gini() -> Self {
        Measure { name: "gini_simpson".into(), offset: 0.0, zeta: zeta_up_to(1, |_| 1.0) }
    }

    /// `coverage@m = sum_{v < m} zeta_v`: the expected number of distinct clusters among `m` draws.
    pub fn coverage(m: usize) -> Self {
        Measure { name: format!("coverage@{m}"), offset: 1.0, zeta: zeta_up_to(m - 1, |_| 1.0) }
    }

    /// Every named measure that needs at most `zeta_order`.
    pub fn all(order: usize) -> Vec<Self> {
        let coverages = (2..=order + 1).map(Measure::coverage);
        core::iter::once(Measure::gini()).chain(coverages).chain((1..=order).map(Measure::entropy)).collect()
    }

    /// Are there bounds that need no overlap? Histograms are kept for the variables that bound `H_M`.
    pub fn has_bounds(&self) -> bool {
        self.order() == 1 || self.name.starts_with("H_")
    }

    /// Highest `v` in use.
    pub fn order(&self) -> usize {
        (1..=MAX_ORDER).rev().find(|&v| self.zeta[v - 1] != 0.0).unwrap_or(1)
    }

    /// Value from `zeta_1, zeta_2, zeta_3`.
    pub fn of(&self, zeta: [f64; MAX_ORDER]) -> f64 {
        self.offset + self.zeta.iter().zip(zeta).map(|(c, z)| if *c == 0.0 { 0.0 } else { c * z }).sum::<f64>()
    }

    /// The same, cut to the range of the measure: with few effective units the control form can leave it.
    pub fn of_control(&self, p: &Point) -> f64 {
        let (least, most) = self.range();
        self.of(zeta_control(p)).clamp(least, most)
    }

    /// Coefficients in terms of `p_d = sum_c q_c^d`, `d = 2, 3, 4`: `zeta_v = sum_s (-1)^s C(v, s) p_{s+1}`.
    fn powers(&self) -> [f64; MAX_ORDER] {
        const C: [[f64; MAX_DEGREE]; MAX_ORDER] =
            [[1.0, -1.0, 0.0, 0.0], [1.0, -2.0, 1.0, 0.0], [1.0, -3.0, 3.0, -1.0]];
        core::array::from_fn(|d| (0..MAX_ORDER).map(|v| self.zeta[v] * C[v][d + 1]).sum())
    }

    /// Smallest and largest value the measure can have.
    pub fn range(&self) -> (f64, f64) {
        (self.offset, self.offset + self.zeta.iter().sum::<f64>())
    }

    /// Worst-case tail: a draw from the target is outside the truncated policy with probability `m`; only tuples of
    /// `v + 1` draws that are all inside are known, the others may have `zeta_v` anywhere in [0, 1].
    pub fn worst_case_tail(&self, zeta: [f64; MAX_ORDER], half: f64, m: f64) -> Interval {
        let (mut low, mut open) = (self.offset, 0.0);
        for v in 0..MAX_ORDER {
            if self.zeta[v] != 0.0 {
                let inside = (1.0 - m).powi(v as i32 + 2);
                low += self.zeta[v] * inside * zeta[v];
                open += self.zeta[v] * (1.0 - inside);
            }
        }
        let half = half * (1.0 - m);
        let (least, most) = self.range();
        Interval { low: low - half, high: low + open + half }.within(least, most)
    }
}

/// `zeta_1, zeta_2, zeta_3` in control form, self-normalized over all units.
pub fn zeta_control(p: &Point) -> [f64; MAX_ORDER] {
    let a = p.mean(A);
    let [p2, p3, p4] = core::array::from_fn(|i| p.mean(P2 + i) / a.powi(i as i32 + 2));
    [1.0 - p2, 1.0 - 2.0 * p2 + p3, 1.0 - 3.0 * p2 + 3.0 * p3 - p4]
}

/// The same in product form.
pub fn zeta_product(p: &Point) -> [f64; MAX_ORDER] {
    let a = p.mean(A);
    core::array::from_fn(|i| p.mean(Z1 + i) / a.powi(i as i32 + 2))
}

/// The influence function of a measure, as coefficients of `z` and a constant.
pub struct Influence {
    /// `(element of z, coefficient)`.
    pub z: Vec<(usize, f64)>,
    /// Constant term.
    pub constant: f64,
}

/// Influence of a measure in control form on the units of class `order + 1` and above.
pub fn influence(measure: &Measure, p: &Point) -> Influence {
    let a = p.mean(A);
    let mut z = vec![(A, 0.0)];
    let mut constant = 0.0;
    for (i, g) in measure.powers().into_iter().enumerate().filter(|&(i, _)| i < measure.order()) {
        let d = i as i32 + 2;
        let mean = p.mean(P2 + i);
        z.push((P2 + i, g / a.powi(d)));
        z[0].1 -= g * f64::from(d) * mean / a.powi(d + 1);
        constant += g * f64::from(d - 1) * mean / a.powi(d);
    }
    Influence { z, constant }
}

impl Influence {
    /// Sum of squares over the units of class `degree` and above.
    pub fn sum_of_squares(&self, sums: &Sums, degree: usize) -> f64 {
        let p = sums.whole(degree);
        let linear: f64 = self.z.iter().map(|&(i, c)| c * p.sums[i]).sum();
        sums.quadratic(degree, &self.z, &self.z) + self.constant * (2.0 * linear + self.constant * p.units)
    }

    /// Sum of products with another linear form of `z` (without constant).
    pub fn sum_of_products(&self, sums: &Sums, degree: usize, other: &[(usize, f64)]) -> f64 {
        let p = sums.whole(degree);
        sums.quadratic(degree, &self.z, other) + self.constant * other.iter().map(|&(i, c)| c * p.sums[i]).sum::<f64>()
    }
}

/// A measure in control form with its standard error by the delta method.
pub fn estimate(measure: &Measure, sums: &Sums, degree: usize) -> Estimate {
    let p = sums.whole(degree);
    let square = influence(measure, &p).sum_of_squares(sums, degree).max(0.0);
    Estimate { value: measure.of_control(&p), standard_error: (square / (p.units - 1.0) / p.units).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_identities() {
        let q = [0.5f64, 0.3, 0.2];
        let zeta = core::array::from_fn(|v| q.iter().map(|q| q * (1.0 - q).powi(v as i32 + 1)).sum());
        assert!((Measure::gini().of(zeta) - (1.0 - 0.38)).abs() < 1e-15);
        // Distinct clusters among m draws: sum_c 1 - (1 - q_c)^m.
        for m in 2..=4 {
            let distinct: f64 = q.iter().map(|q| 1.0 - (1.0 - q).powi(m)).sum();
            assert!((Measure::coverage(m as usize).of(zeta) - distinct).abs() < 1e-14);
        }
        let shannon: f64 = -q.iter().map(|q| q * q.ln()).sum::<f64>();
        let series: Vec<f64> = (1..=3).map(|m| Measure::entropy(m).of(zeta)).collect();
        assert!(series[0] < series[1] && series[1] < series[2] && series[2] < shannon);
        assert!(shannon < series[2] + 3.0 / 4.0);
        let powers: [f64; 3] = core::array::from_fn(|d| q.iter().map(|q| q.powi(d as i32 + 2)).sum());
        for measure in Measure::all(3) {
            let total: f64 = measure.offset + measure.zeta.iter().sum::<f64>();
            let by_powers = total + measure.powers().iter().zip(powers).map(|(g, p)| g * p).sum::<f64>();
            assert!((by_powers - measure.of(zeta)).abs() < 1e-14, "{}", measure.name);
        }
    }
}
