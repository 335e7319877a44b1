//! What a reading of the state is asked for.

use crate::error::{Error, Result};
use crate::unit::MAX_ORDER;

/// Choices that a reading of the state leaves open.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Confidence level.
    pub level: f64,
    /// `lambda`, reward units per unit of diversity.
    pub diversity_weight: f64,
    /// Largest order `M` of `H_M` to use.
    pub max_order: usize,
    /// Prompt-level diversity is the headline if at least this share of the units has two draws.
    pub repeated_share: f64,
    /// `M` is the largest order for which at least this share of the units with two draws has `M + 1`.
    pub order_share: f64,
    /// Mean of `e^eps` of noisy log-probabilities, from an A/A column; weights are divided by it in bounded intervals.
    pub kappa: f64,
    /// Truncation level of the weights; `None` for `sqrt(n)` times the mean weight.
    pub tau: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            level: 0.95,
            diversity_weight: 1.0,
            max_order: MAX_ORDER,
            repeated_share: 0.5,
            order_share: 0.9,
            kappa: 1.0,
            tau: None,
        }
    }
}

impl Options {
    pub(super) fn check(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Config(message));
        if !(self.level > 0.0 && self.level < 1.0) {
            return fail(format!("level must lie strictly between 0 and 1, not {}", self.level));
        }
        if !(self.diversity_weight >= 0.0 && self.diversity_weight.is_finite()) {
            return fail(format!("diversity_weight must be finite and not negative, not {}", self.diversity_weight));
        }
        if !(1..=MAX_ORDER).contains(&self.max_order) {
            return fail(format!("diversity_order must be between 1 and {MAX_ORDER}, not {}", self.max_order));
        }
        if self.tau.is_some_and(|tau| !(tau > 0.0)) {
            return fail("tau must be positive".into());
        }
        if !(self.kappa > 0.0 && self.kappa.is_finite()) {
            return fail(format!("kappa must be positive and finite, not {}", self.kappa));
        }
        Ok(())
    }
}
