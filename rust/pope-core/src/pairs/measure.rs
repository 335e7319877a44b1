//! Rao's quadratic entropy and the Vendi score of order 2 from sums over pairs, with their variance and bounds.

use super::totals::{A, B, PairPoint, PairSums, Q};
use crate::hist::LogHistogram;
use crate::interval::{Interval, Sample};
use crate::utility::Estimate;

/// A diversity measure from similarities; both are functions of one mean `s` over independent pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairMeasure {
    /// Rao's quadratic entropy `1 - s`, `s = E_x E k`: the expected cosine distance of two responses.
    Rao,
    /// The Vendi score of order 2 `1 / s`, `s = E_x E k^2`: an effective number of kinds of response. Over prompts this is
    /// the harmonic mean of the prompts' scores, as only `s` has an unbiased estimator.
    Vendi,
}

impl PairMeasure {
    /// Both.
    pub const ALL: [PairMeasure; 2] = [PairMeasure::Rao, PairMeasure::Vendi];

    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            PairMeasure::Rao => "rao",
            PairMeasure::Vendi => "vendi",
        }
    }

    fn moment(self) -> usize {
        match self {
            PairMeasure::Rao => Q,
            PairMeasure::Vendi => Q + 1,
        }
    }

    /// Smallest and largest value for vectors of `width` elements. As `E k = |E v|^2`, Rao's measure is at most 1, though
    /// single distances reach 2; `E k^2 = |E v v'|^2` is at least `1 / width`.
    pub fn range(self, width: usize) -> (f64, f64) {
        match self {
            PairMeasure::Rao => (0.0, 1.0),
            PairMeasure::Vendi => (1.0, width.max(1) as f64),
        }
    }

    /// The measure at a mean `s`, within its range.
    fn at(self, s: f64, width: usize) -> f64 {
        let (least, most) = self.range(width);
        match self {
            PairMeasure::Rao => (1.0 - s).clamp(least, most),
            PairMeasure::Vendi => (1.0 / s.max(1.0 / most)).clamp(least, most),
        }
    }

    /// Both ends of a range of `s`, turned into the measure and around; cut to its range.
    fn between(self, low: f64, high: f64, width: usize) -> Interval {
        Interval { low: self.at(high, width), high: self.at(low, width) }
    }

    /// `s`, normalized by the pairs themselves: `sum Q / sum B`. What pairs have in common cancels.
    pub fn mean(self, p: &PairPoint) -> f64 {
        p.sums[self.moment()] / p.sums[B]
    }

    /// The measure, normalized by the pairs.
    pub fn of(self, p: &PairPoint, width: usize) -> f64 {
        self.at(self.mean(p), width)
    }

    /// The measure in control form, as [`crate::diversity`] has it: `mean Q / (mean A)^2`.
    pub fn of_control(self, p: &PairPoint, width: usize) -> f64 {
        let a = p.sums[A] / p.units;
        self.at(p.sums[self.moment()] / p.units / (a * a), width)
    }

    /// Derivative of the measure with respect to `s`.
    fn slope(self, s: f64) -> f64 {
        match self {
            PairMeasure::Rao => -1.0,
            PairMeasure::Vendi => -1.0 / (s * s),
        }
    }

    /// Influence function of the measure as coefficients of `(A, N, B, Q_1, Q_2)`; it has no constant.
    pub fn influence(self, p: &PairPoint) -> [(usize, f64); 2] {
        let factor = self.slope(self.mean(p)) * p.units / p.sums[B];
        [(self.moment(), factor), (B, -factor * self.mean(p))]
    }

    /// The measure with its standard error by the delta method.
    pub fn estimate(self, sums: &PairSums, width: usize) -> Estimate {
        let p = sums.whole();
        let influence = self.influence(&p);
        let square = sums.quadratic(&influence, &influence).max(0.0);
        Estimate { value: self.of(&p, width), standard_error: (square / (p.units - 1.0) / p.units).sqrt() }
    }

    /// The interval from one of `s`, `s -+ t se(s)`: a mean is nearer to normal than its reciprocal.
    pub fn delta(self, estimate: Estimate, p: &PairPoint, t: f64, width: usize) -> Interval {
        match self {
            PairMeasure::Rao => Interval::around(estimate.value, t * estimate.standard_error),
            PairMeasure::Vendi => {
                let (s, half) = (self.mean(p), self.half_of_mean(estimate, p, t));
                self.between(s - half, s + half, width)
            }
        }
    }

    fn half_of_mean(self, estimate: Estimate, p: &PairPoint, t: f64) -> f64 {
        t * estimate.standard_error / self.slope(self.mean(p)).abs()
    }

    /// Worst-case tail: a draw from the target is outside the truncated policy with probability `m`. Pairs inside are
    /// known; others may have any `k` in [-1, 1], or any `k^2` in [0, 1]. `t = 0` leaves the sampling error out.
    pub fn worst_case_tail(self, estimate: Estimate, p: &PairPoint, t: f64, m: f64, width: usize) -> Interval {
        let (s, half) = (self.mean(p), self.half_of_mean(estimate, p, t) * (1.0 - m));
        let inside = (1.0 - m) * (1.0 - m);
        let least = match self {
            PairMeasure::Rao => -1.0,
            PairMeasure::Vendi => 0.0,
        };
        let open = 1.0 - inside;
        self.between(inside * s + open * least - half, inside * s + open + half, width)
    }

    /// Bounds that need no overlap: means of non-negative variables of truncated weights, below the target's. An
    /// interval with the lower end above the upper one is handed on: its assumptions are false.
    pub fn bounded(
        self,
        histograms: &[LogHistogram; 4],
        factor: f64,
        width: usize,
        bound: impl Fn(Sample<'_>) -> f64,
    ) -> Interval {
        let [apart, near, same, unlike] = histograms.each_ref().map(|h| bound(Sample::new([h], factor)));
        let most = self.range(width).1;
        match self {
            // 1 - E k >= E ww(1 - k), and 1 - E k = 2 - E (1 + k) <= 2 - E ww(1 + k).
            PairMeasure::Rao => Interval { low: apart, high: (2.0 - near).min(most) },
            PairMeasure::Vendi => {
                let upper = 1.0 - unlike;
                let low = if upper > 0.0 { 1.0 / upper } else { f64::INFINITY };
                Interval { low, high: 1.0 / same.max(1.0 / most) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PairStats, PairTotals};
    use super::*;
    use crate::totals::{BUCKETS, Placement, Sign};
    use crate::unit::UnitStats;

    /// Three units with `A`, `B`, `Q_1`, `Q_2`, in three buckets.
    fn sums() -> (PairTotals, PairSums) {
        let mut totals = PairTotals::default();
        let mut units = [0; BUCKETS];
        for (key, [a, b, q1, q2]) in
            [[1.0, 1.0, 0.5, 0.3], [0.5, 0.25, 0.2, 0.1], [2.0, 3.0, 1.2, 0.6]].into_iter().enumerate()
        {
            let unit = UnitStats { a, n: a / 2.0, ..UnitStats::default() };
            let place = Placement::one(key as u64);
            totals.add(&unit, &PairStats { b, q: [q1, q2] }, &place, Sign::Plus);
            place.each(|bucket, times| units[bucket] += times);
        }
        let read = PairSums::new(&totals, units, 0);
        (totals, read)
    }

    #[test]
    fn by_hand() {
        let (_, sums) = sums();
        let p = sums.whole();
        let s = 1.9 / 4.25;
        assert!((PairMeasure::Rao.of(&p, 8) - (1.0 - s)).abs() < 1e-15);
        assert!((PairMeasure::Vendi.of(&p, 8) - 4.25).abs() < 1e-14); // s = 1 / 4.25
        assert_eq!(PairMeasure::Vendi.of(&p, 4), 4.0);
        assert!((PairMeasure::Rao.of_control(&p, 8) - (1.0 - 1.9 / 3.0 / (3.5f64 / 3.0).powi(2))).abs() < 1e-15);
        // Residuals Q_1 - s B over mean B, root of their sum of squares over n (n - 1).
        let residual = |b: f64, q: f64| (q - s * b) / (4.25 / 3.0);
        let square = [residual(1.0, 0.5), residual(0.25, 0.2), residual(3.0, 1.2)].map(|x| x * x).iter().sum::<f64>();
        let rao = PairMeasure::Rao.estimate(&sums, 8);
        assert!((rao.standard_error - (square / 6.0).sqrt()).abs() < 1e-15);
        let without = sums.leave_one_out();
        assert_eq!(without.iter().filter(|(n, _)| *n == 1).count(), 3);
        assert!(without.iter().all(|(n, p)| p.units + *n as f64 == 3.0));
    }

    #[test]
    fn intervals_by_hand() {
        let (totals, sums) = sums();
        let p = sums.whole();
        let rao = Estimate { value: PairMeasure::Rao.of(&p, 8), standard_error: 0.01 };
        let i = PairMeasure::Rao.worst_case_tail(rao, &p, 2.0, 0.1, 8);
        assert!((i.low - (0.81 * rao.value - 0.018)).abs() < 1e-15);
        assert!((i.high - (0.81 * rao.value + 2.0 * 0.19 + 0.018)).abs() < 1e-15);
        let vendi = Estimate { value: 4.25, standard_error: 0.5 };
        let half = 2.0 * 0.5 / (4.25 * 4.25);
        let i = PairMeasure::Vendi.delta(vendi, &p, 2.0, 8);
        assert!(
            (i.low - 1.0 / (1.0 / 4.25 + half)).abs() < 1e-14 && (i.high - 1.0 / (1.0 / 4.25 - half)).abs() < 1e-13
        );
        let i = PairMeasure::Vendi.worst_case_tail(vendi, &p, 0.0, 0.1, 8);
        assert!((i.low - 1.0 / (0.81 / 4.25 + 0.19)).abs() < 1e-14 && (i.high - 4.25 / 0.81).abs() < 1e-13);
        // Bounds from plain means, which the histograms floor by less than 2^-8.
        let mean = |sample: Sample<'_>| sample.t_bound(0.0);
        let i = PairMeasure::Rao.bounded(&totals.histograms, 1.0, 8, mean);
        assert!((i.low - 2.35 / 3.0).abs() < 0.004);
        assert!(i.high >= 2.0 - 6.15 / 3.0 && i.high < 2.0 - 6.15 / 3.0 * 0.996);
        let i = PairMeasure::Vendi.bounded(&totals.histograms, 0.5, 8, mean);
        assert!((i.low - 1.0 / (1.0 - 3.25 / 6.0)).abs() < 0.02 && (i.high - 6.0).abs() < 0.03);
        // Weights that cannot be: the bounds contradict each other, and nothing hides it.
        assert!(PairMeasure::Vendi.bounded(&totals.histograms, 4.0, 8, mean).inverted());
        assert!(PairMeasure::Rao.bounded(&totals.histograms, 4.0, 8, mean).inverted());
    }
}
