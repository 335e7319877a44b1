//! Everything the state says about one policy, and about two.

mod diagnostics;
mod groups;
mod options;
mod over_log;
mod pairs;
mod prompt;
mod records;
mod utility;
mod value;

pub use options::{Choice, Options};
use records::named_t;
pub use records::{
    BehaviorSummary, ClusterShare, Diagnostics, Difference, Group, MarginalDiversity, Named, PairDiversity,
    PolicySummary, PromptDiversity, VarianceParts,
};
use value::difference;

use crate::cut::{A, Sums, natural_scale};
use crate::diversity::Measure;
use crate::error::{Error, Result};
use crate::interval::{Interval, t_of_level};
use crate::lane::PolicyLane;
use crate::marginal::Marginal;
use crate::math;
use crate::pairs::{PairMeasure, PairSums};
use crate::state::Snapshot;
use crate::totals::{BUCKETS, Totals};
use crate::unit::{MAX_DEGREE, MAX_ORDER};
use crate::utility::Estimate;

/// One policy's sums at the levels that the estimators need.
struct Reading<'a> {
    snapshot: &'a Snapshot,
    policy: usize,
    options: &'a Options,
    full: Sums,
    cut_totals: Totals,
    cut: Sums,
    pair_cut: Option<PairSums>,
    log_tau: f64,
    raised: bool,
    prompt_order: Option<usize>,
    level: Level,
}

/// Where the headline diversity comes from.
#[derive(Clone, Copy, PartialEq)]
enum Level {
    /// From clusters within prompts, with the highest order `M` of `zeta`.
    Prompt(usize),
    /// From embeddings.
    Pairs(PairMeasure),
    /// From clusters over the whole log.
    Marginal,
    Absent,
}

impl Level {
    /// The documented rule: within prompts if enough prompts have several draws, else over the log. Embeddings stand in
    /// where clusters say nothing.
    fn by_rule(snapshot: &Snapshot, options: &Options, has_pairs: bool) -> Self {
        let config = &snapshot.config;
        let (all, repeated) = (units_of(snapshot, 1), units_of(snapshot, 2));
        if config.has_cluster && repeated >= 2.0 && (repeated >= options.repeated_share * all || !config.marginal()) {
            return Level::Prompt(prompt_order(snapshot, options));
        }
        match (config.marginal(), has_pairs) {
            (true, _) => Level::Marginal,
            (false, true) => Level::Pairs(PairMeasure::Rao),
            (false, false) => Level::Absent,
        }
    }

    /// What was asked for, if the log has it.
    fn choose(snapshot: &Snapshot, options: &Options, has_pairs: bool) -> Result<Self> {
        let config = &snapshot.config;
        let refuse = |why: &str| Err(Error::Config(format!("diversity '{}' {why}", options.diversity.name())));
        match options.diversity {
            Choice::Auto => Ok(Level::by_rule(snapshot, options, has_pairs)),
            Choice::Pairs(_) if !config.has_embedding => refuse("needs embeddings"),
            Choice::Pairs(_) if snapshot.lane.shared.pair_units().iter().sum::<u64>() < 2 => {
                refuse("needs at least two units with two or more responses")
            }
            Choice::Pairs(_) if !has_pairs => {
                Err(Error::Overlap("no unit has two responses that the policy could give: there are no pairs".into()))
            }
            Choice::Pairs(measure) => Ok(Level::Pairs(measure)),
            _ if !config.has_cluster => refuse("needs clusters"),
            Choice::Marginal if !config.marginal() => refuse("needs clusters that mean the same in every prompt"),
            Choice::Marginal => Ok(Level::Marginal),
            _ if units_of(snapshot, 2) < 2.0 => refuse("needs at least two units with two or more responses"),
            Choice::Coverage(draws) if prompt_order(snapshot, options) + 1 < draws => {
                refuse(&format!("needs {draws} responses for nearly all units that have two"))
            }
            _ => Ok(Level::Prompt(prompt_order(snapshot, options))),
        }
    }
}

/// Units that can estimate cluster moments up to this degree.
fn units_of(snapshot: &Snapshot, degree: usize) -> f64 {
    snapshot.lane.shared.units[degree - 1..].iter().flatten().sum::<u64>() as f64
}

/// The largest order for which nearly all units with two draws have enough.
fn prompt_order(snapshot: &Snapshot, options: &Options) -> usize {
    let units = |order: usize| units_of(snapshot, order + 1);
    let enough = |order: &usize| units(*order) >= options.order_share * units(1) && units(*order) >= 2.0;
    (1..=options.max_order).rev().find(enough).unwrap_or(1)
}

impl Snapshot {
    fn policy_index(&self, name: &str) -> Result<usize> {
        let known = self.config.policies.iter().position(|p| p == name);
        known.ok_or_else(|| {
            Error::Config(format!("there is no policy '{name}'; the state has {:?}", self.config.policies))
        })
    }

    fn to_reward(&self, estimate: Estimate) -> Estimate {
        let (low, high) = self.config.reward_range;
        estimate.affine(low, high - low)
    }

    /// Everything about one policy.
    pub fn summary(&self, policy: &str, options: &Options) -> Result<PolicySummary> {
        let reading = Reading::new(self, self.policy_index(policy)?, options)?;
        reading.summary()
    }

    /// What the log itself earned.
    pub fn behavior(&self, level: f64) -> Result<BehaviorSummary> {
        Options { level, ..Options::default() }.check()?;
        let (n, shared) = (self.lane.shared.n_units() as f64, &self.lane.shared);
        let mean = shared.reward[0].value() / n;
        let square = shared.reward[1].value() - n * mean * mean;
        let estimate = Estimate { value: mean, standard_error: (square.max(0.0) / (n - 1.0) / n).sqrt() };
        let Estimate { value, standard_error } = self.to_reward(estimate);
        Ok(BehaviorSummary {
            value,
            standard_error,
            interval: Interval::around(value, t_of_level(level, n - 1.0) * standard_error),
            n_units: shared.n_units(),
            n_rows: shared.rows,
            n_draws: shared.draws,
        })
    }

    /// Every policy minus every later one, by the grouped jackknife on the units both share.
    pub fn differences(&self, policies: &[String], options: &Options) -> Result<Vec<Difference>> {
        let replicates = policies
            .iter()
            .map(|name| {
                let reading = Reading::new(self, self.policy_index(name)?, options)?;
                Ok((reading.headline(), reading.value_replicates()))
            })
            .collect::<Result<Vec<_>>>()?;
        let pairs = (0..policies.len()).flat_map(|i| (i + 1..policies.len()).map(move |j| (i, j)));
        Ok(pairs
            .map(|(i, j)| difference(&policies[i], &policies[j], &replicates[i], &replicates[j], options.level))
            .collect())
    }
}

impl<'a> Reading<'a> {
    fn new(snapshot: &'a Snapshot, policy: usize, options: &'a Options) -> Result<Self> {
        options.check()?;
        let shared = &snapshot.lane.shared;
        let n = shared.n_units();
        if n < 2 {
            return Err(Error::Config(format!("{n} units are too few; an estimate with an error needs at least 2")));
        }
        let totals = &snapshot.lane.policies[policy].totals;
        let Some(scale) = natural_scale(totals) else {
            let name = &snapshot.config.policies[policy];
            return Err(Error::Overlap(format!(
                "every logged response has probability 0 under policy '{name}': the log says nothing about it"
            )));
        };
        let full = Sums::new(totals, shared.units, scale);
        // tau = sqrt(n) mean(w): the estimator does not change when all log-weights shift.
        let relative =
            || 0.5 * math::ln(n as f64) + math::ln(full.whole(1).mean(A)) + f64::from(scale) * core::f64::consts::LN_2;
        let wanted = options.tau.map_or_else(relative, math::ln);
        let log_tau = snapshot.feasible_cut(policy, wanted);
        let cut_totals = snapshot.truncated(policy, log_tau);
        let cut = Sums::new(&cut_totals, shared.units, scale);
        let raised = log_tau > wanted;
        let mut reading = Reading {
            snapshot,
            policy,
            options,
            full,
            cut_totals,
            cut,
            pair_cut: None,
            log_tau,
            raised,
            prompt_order: None,
            level: Level::Absent,
        };
        reading.pair_cut = reading.pair_sums(&reading.cut_totals);
        let has_pairs = reading.pair_cut.is_some();
        reading.level = Level::choose(snapshot, options, has_pairs)?;
        // Details within prompts come with them as the headline, and wherever the rule would show them.
        reading.prompt_order = [reading.level, Level::by_rule(snapshot, options, has_pairs)]
            .into_iter()
            .find_map(|level| if let Level::Prompt(order) = level { Some(order) } else { None });
        Ok(reading)
    }

    /// The measure that is the headline within prompts.
    fn prompt_measure(&self, order: usize) -> Measure {
        match self.options.diversity {
            Choice::Gini => Measure::gini(),
            Choice::Coverage(draws) => Measure::coverage(draws),
            _ => Measure::entropy(order),
        }
    }

    fn lane(&self) -> &PolicyLane {
        &self.snapshot.lane.policies[self.policy]
    }

    fn units(&self) -> f64 {
        self.snapshot.lane.shared.n_units() as f64
    }

    fn span(&self) -> (f64, f64) {
        let (low, high) = self.snapshot.config.reward_range;
        (low, high - low)
    }

    /// Share of the weight lost to truncation.
    fn truncated_share(&self) -> f64 {
        (1.0 - self.cut.whole(1).sums[A] / self.full.whole(1).sums[A]).clamp(0.0, 1.0)
    }

    fn marginal(&self) -> Marginal {
        let lane = &self.snapshot.lane;
        Marginal::new(&self.cut_totals, &lane.clusters, &lane.shared, self.cut.scale)
    }

    fn bucket_sizes(&self, degree: usize) -> Vec<u64> {
        let units = &self.snapshot.lane.shared.units[degree - 1..];
        (0..BUCKETS).map(|b| units.iter().map(|class| class[b]).sum()).collect()
    }

    fn summary(&self) -> Result<PolicySummary> {
        let (low, span) = self.span();
        let utility = self.utility();
        let headline = utility.iter().find(|e| e.name == "sn_tips").cloned();
        let Some(u) = headline else { return Err(Error::Config("no utility estimate".into())) };
        let marginal = self.snapshot.config.marginal().then(|| self.marginal());
        let prompt = self.prompt_order.map(|order| self.prompt(order, marginal.as_ref()));
        let pairs = self.pairs();
        let over_log = marginal.as_ref().map(|m| self.over_log(m));
        let (level, d) = match self.level {
            Level::Prompt(order) => {
                let name = self.prompt_measure(order).name;
                (Some("prompt"), prompt.as_ref().and_then(|p| p.control.iter().find(|m| m.name == name).cloned()))
            }
            Level::Pairs(measure) => {
                let found = pairs.as_ref().and_then(|p| p.measures.iter().find(|m| m.name == measure.name()));
                (Some("prompt"), found.cloned())
            }
            Level::Marginal => (Some("marginal"), over_log.as_ref().map(|m| m.entropy.clone())),
            Level::Absent => (None, None),
        };
        let variance = d.as_ref().and_then(|_| self.variance());
        let value = self.value(&u, d.as_ref(), variance.as_ref(), low, span);
        let (groups, welfare) = self.groups();
        Ok(PolicySummary {
            policy: self.snapshot.config.policies[self.policy].clone(),
            utility,
            value,
            diversity_level: level,
            diversity: d,
            prompt,
            pairs,
            marginal: over_log,
            variance,
            groups,
            welfare,
            diagnostics: self.diagnostics(),
        })
    }
}

const _: () = assert!(MAX_DEGREE == MAX_ORDER + 1);
