//! Whether the log can answer: figures for the verdict (theory 5).

use super::{Diagnostics, Reading};
use crate::cut::{A, N, Sums};
use crate::interval::Sample;
use crate::math;

impl Reading<'_> {
    /// Kish's effective size of the terms `w r` and of `w (1 - r)`, the smaller one.
    pub(super) fn reward_ess(&self) -> Option<f64> {
        let p = self.cut.whole(1);
        let size = |z: &[(usize, f64)]| {
            let sum: f64 = z.iter().map(|&(i, c)| c * p.sums[i]).sum();
            // Below this, rewards are constant up to rounding, and so is what can be said of them.
            (sum > 1e-12 * p.sums[A]).then(|| sum * sum / self.cut.quadratic(1, z, z))
        };
        let (earned, missed) = (size(&[(N, 1.0)])?, size(&[(A, 1.0), (N, -1.0)])?);
        Some(earned.min(missed))
    }

    pub(super) fn diagnostics(&self) -> Diagnostics {
        let lane = &self.snapshot.lane;
        let (shared, s) = (&lane.shared, &self.lane().scalars);
        let (n, p) = (self.units(), self.full.whole(1));
        let aa = self.full.quadratic(1, &[(A, 1.0)], &[(A, 1.0)]);
        let kl = s.wl.dd(self.full.scale).value() / p.sums[A];
        let l = s.l[0].value() / n;
        let l_square = s.l[1].value() - n * l * l;
        let finite = s.zero_draws == 0;
        let (robust, scale) = self.robust_totals();
        let reached = math::scale(Sums::new(&robust, self.full.units, scale).whole(1).mean(A), scale);
        let e_sample =
            Sample::new(self.lane().totals.class.iter().flatten().map(|c| &c.utility[0]), 1.0 / self.options.kappa);
        let largest = s.max_a.map_or(0.0, |(e, m)| math::scale(m, e - self.full.scale));
        let has_tokens = self.snapshot.config.has_tokens;
        let tail = self.tail_fit(&self.tail_draws());
        Diagnostics {
            n_units: shared.n_units(),
            n_rows: shared.rows,
            n_draws: shared.draws,
            ess: p.sums[A] * p.sums[A] / aa,
            ess_ceiling: n * math::exp(-kl),
            reward_ess: self.reward_ess(),
            max_weight_share: largest / p.sums[A],
            mean_weight: math::scale(p.mean(A), self.full.scale),
            k_hat: tail.as_ref().map(|fit| fit.k),
            k_hat_log_p: tail.as_ref().map(|fit| fit.log_p),
            missing_mass: 1.0 - reached / self.options.kappa,
            truncation: math::exp(self.log_tau),
            truncated_share: self.truncated_share(),
            truncation_raised: self.raised,
            log_e_value: e_sample.log_e_value(),
            kl_target_behavior: kl,
            kl_behavior_target: finite.then_some(-l),
            mean_log_weight: finite.then_some(l),
            mean_log_weight_standard_error: finite.then(|| (l_square.max(0.0) / (n - 1.0) / n).sqrt()),
            zero_weight_draws: s.zero_draws,
            length_target: has_tokens.then(|| s.wt.dd(self.full.scale).value() / p.sums[A]),
            length_behavior: has_tokens.then(|| shared.tokens.value() / n),
        }
    }
}
