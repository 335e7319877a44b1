//! The shape of results.

use crate::field::{Field, record};
use crate::interval::{Interval, t_of_level};

record! {
    /// A named estimate with the intervals that exist for it.
    #[derive(Clone, Debug)]
    pub struct Named {
        /// Name.
        name: String,
        /// Value.
        value: f64,
        /// Standard error; `None` if it cannot be had.
        standard_error: Option<f64>,
        /// Intervals by method. An interval with the lower end above the upper one is handed on: it is a finding.
        intervals: Vec<(&'static str, Interval)>,
    }
}

impl From<(&'static str, Interval)> for Field {
    fn from((name, interval): (&'static str, Interval)) -> Self {
        Field::Record(vec![("method".into(), name.into()), ("interval".into(), interval.into())])
    }
}

record! {
    /// Whether the log can answer (theory 5).
    #[derive(Clone, Debug)]
    pub struct Diagnostics {
        /// Units.
        n_units: u64,
        /// Rows.
        n_rows: u64,
        /// Draws.
        n_draws: u64,
        /// Effective sample size, in units.
        ess: f64,
        /// Its ceiling `n exp(-KL)`.
        ess_ceiling: f64,
        /// Effective number of units behind the weighted reward or behind its complement, whichever is smaller; `None` if
        /// one of them is zero throughout.
        reward_ess: Option<f64>,
        /// Largest share of the total weight that one unit has.
        max_weight_share: f64,
        /// Mean weight.
        mean_weight: f64,
        /// Tail index of the draws' weights; `None` if there is no tail.
        k_hat: Option<f64>,
        /// Log of the chance that a tail as fitted, of as many draws, has no larger weight than the largest there is.
        k_hat_log_p: Option<f64>,
        /// `1 - mean min(w, sqrt n)`: mass of the target that the log does not reach.
        missing_mass: f64,
        /// Level at which weights are truncated.
        truncation: f64,
        /// Share of the total weight lost by it.
        truncated_share: f64,
        /// Was the level raised because too few large weights were kept?
        truncation_raised: bool,
        /// Logarithm of the e-value against `E w <= 1`.
        log_e_value: f64,
        /// `KL(pi || pi0)` by self-normalized weights (nats).
        kl_target_behavior: f64,
        /// `KL(pi0 || pi)`; `None` if some logged response is impossible under the policy.
        kl_behavior_target: Option<f64>,
        /// Mean log-weight; `None` if it is `-inf`.
        mean_log_weight: Option<f64>,
        /// Its standard error.
        mean_log_weight_standard_error: Option<f64>,
        /// Draws of weight 0.
        zero_weight_draws: u64,
        /// Mean number of tokens under the target.
        length_target: Option<f64>,
        /// Mean number of tokens in the log.
        length_behavior: Option<f64>,
    }
}

record! {
    /// Utility of one annotator group.
    #[derive(Clone, Debug)]
    pub struct Group {
        /// Key of the group.
        key: i64,
        /// Units with a row of the group.
        units: u64,
        /// Rows of the group.
        rows: u64,
        /// Its utility.
        utility: Named,
    }
}

record! {
    /// Mass of one cluster under the target and in the log.
    #[derive(Clone, Debug)]
    pub struct ClusterShare {
        /// Key of the cluster.
        key: i64,
        /// Self-normalized mass under the target.
        target: f64,
        /// Share of the log's draws.
        behavior: f64,
        /// Units in which it occurs.
        units: u64,
    }
}

record! {
    /// Diversity within prompts.
    #[derive(Clone, Debug)]
    pub struct PromptDiversity {
        /// Order `M` of the headline `H_M`.
        order: usize,
        /// Units with enough draws for it.
        units_used: u64,
        /// Units left out.
        units_left_out: u64,
        /// Measures in control form.
        control: Vec<Named>,
        /// Measures in product form.
        product: Vec<Named>,
        /// Bounds on the Shannon entropy within prompts.
        sandwich: Option<Interval>,
    }
}

record! {
    /// Diversity within prompts from embeddings.
    #[derive(Clone, Debug)]
    pub struct PairDiversity {
        /// Units with two draws or more.
        units_used: u64,
        /// Units left out.
        units_left_out: u64,
        /// Measures, normalized by the pairs.
        measures: Vec<Named>,
        /// Measures in control form.
        control: Vec<Named>,
    }
}

record! {
    /// Diversity over the whole log.
    #[derive(Clone, Debug)]
    pub struct MarginalDiversity {
        /// Grouped-jackknife entropy.
        entropy: Named,
        /// Plug-in entropy.
        plug_in: f64,
        /// Plug-in entropy minus the weighted Miller-Madow bias.
        miller_madow: f64,
        /// The bias itself.
        bias: f64,
        /// Weight share of clusters that occur once.
        unseen_mass: f64,
        /// Number of clusters.
        n_clusters: usize,
        /// Masses, largest first, at most 100.
        clusters: Vec<ClusterShare>,
    }
}

record! {
    /// Variance of `V = U + lambda D` and its parts (theory 3, L1).
    #[derive(Clone, Debug)]
    pub struct VarianceParts {
        /// `Var U`.
        utility: f64,
        /// `Var D`.
        diversity: f64,
        /// `Cov(U, D)`.
        covariance: f64,
        /// `Var U + lambda^2 Var D + 2 lambda Cov(U, D)`.
        total: f64,
        /// `(sd U - lambda sd D)^2`.
        lower_bound: f64,
        /// `(sd U + lambda sd D)^2`.
        upper_bound: f64,
        /// How it was estimated: `delta` or `jackknife`.
        method: &'static str,
    }
}

record! {
    /// One policy.
    #[derive(Clone, Debug)]
    pub struct PolicySummary {
        /// Name.
        policy: String,
        /// Utility, every estimator.
        utility: Vec<Named>,
        /// `V = U + lambda D`; equals U if there are no clusters.
        value: Named,
        /// `prompt`, `marginal` or nothing: where the headline diversity comes from.
        diversity_level: Option<&'static str>,
        /// Headline diversity.
        diversity: Option<Named>,
        /// Details within prompts.
        prompt: Option<PromptDiversity>,
        /// Details from embeddings.
        pairs: Option<PairDiversity>,
        /// Details over the log.
        marginal: Option<MarginalDiversity>,
        /// Variance of V.
        variance: Option<VarianceParts>,
        /// Annotator groups.
        groups: Vec<Group>,
        /// `mean`, `min`, `nash` over groups.
        welfare: Vec<Named>,
        /// Diagnostics.
        diagnostics: Diagnostics,
    }
}

record! {
    /// The log itself.
    #[derive(Clone, Debug)]
    pub struct BehaviorSummary {
        /// Mean reward over units.
        value: f64,
        /// Its standard error.
        standard_error: f64,
        /// Student-t interval.
        interval: Interval,
        /// Units.
        n_units: u64,
        /// Rows.
        n_rows: u64,
        /// Draws.
        n_draws: u64,
    }
}

record! {
    /// Policy `a` minus policy `b` on the same units.
    #[derive(Clone, Debug)]
    pub struct Difference {
        /// Policy `a`.
        a: String,
        /// Policy `b`.
        b: String,
        /// Difference of utilities.
        utility: Named,
        /// Difference of headline diversities.
        diversity: Option<Named>,
        /// Difference of values.
        value: Named,
    }
}

/// An estimate with one Student-t interval.
pub(super) fn named_t(name: &str, value: f64, error: Option<f64>, method: &'static str, level: f64, df: f64) -> Named {
    let intervals = error.map(|se| (method, Interval::around(value, t_of_level(level, df) * se)));
    Named { name: name.to_owned(), value, standard_error: error, intervals: intervals.into_iter().collect() }
}
