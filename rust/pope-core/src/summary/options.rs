//! What a reading of the state is asked for.

use crate::error::{Error, Result};
use crate::pairs::PairMeasure;
use crate::unit::{MAX_DEGREE, MAX_ORDER};

/// Which measure is the headline diversity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// By the documented rule.
    #[default]
    Auto,
    /// `H_M` within prompts, with the largest `M` that the log allows.
    Entropy,
    /// The Gini-Simpson index within prompts.
    Gini,
    /// `coverage@m` within prompts.
    Coverage(usize),
    /// The entropy of the clusters over the whole log.
    Marginal,
    /// A measure from embeddings.
    Pairs(PairMeasure),
}

impl Choice {
    /// The choice with this name.
    pub fn named(name: &str) -> Result<Self> {
        Ok(match name {
            "auto" => Choice::Auto,
            "h_m" => Choice::Entropy,
            "gini" | "gini_simpson" => Choice::Gini,
            "entropy" => Choice::Marginal,
            "rao" => Choice::Pairs(PairMeasure::Rao),
            "vendi" => Choice::Pairs(PairMeasure::Vendi),
            other => {
                let draws = other.strip_prefix("coverage@").and_then(|m| m.parse().ok());
                let draws = draws.filter(|m| (2..=MAX_DEGREE).contains(m));
                Choice::Coverage(draws.ok_or_else(|| Error::Config(format!("there is no diversity '{other}'")))?)
            }
        })
    }

    /// Its name.
    pub fn name(self) -> String {
        match self {
            Choice::Auto => "auto".into(),
            Choice::Entropy => "h_m".into(),
            Choice::Gini => "gini_simpson".into(),
            Choice::Coverage(draws) => format!("coverage@{draws}"),
            Choice::Marginal => "entropy".into(),
            Choice::Pairs(measure) => measure.name().into(),
        }
    }
}

/// Choices that a reading of the state leaves open.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Confidence level.
    pub level: f64,
    /// `lambda`, reward units per unit of diversity.
    pub diversity_weight: f64,
    /// The headline diversity.
    pub diversity: Choice,
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
            diversity: Choice::Auto,
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
