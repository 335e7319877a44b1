//! Everything the state says about one policy, and about two.

mod diagnostics;
mod groups;
mod options;
mod over_log;
mod prompt;
mod records;
mod utility;
mod value;

pub use options::Options;
use records::named_t;
pub use records::{
    BehaviorSummary, ClusterShare, Diagnostics, Difference, Group, MarginalDiversity, Named, PolicySummary,
    PromptDiversity, VarianceParts,
};
use value::difference;

use crate::cut::{A, Sums, natural_scale};
use crate::error::{Error, Result};
use crate::interval::{Interval, t_of_level};
use crate::lane::PolicyLane;
use crate::marginal::Marginal;
use crate::math;
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
    log_tau: f64,
    raised: bool,
    level: Level,
}

/// Where the headline diversity comes from.
#[derive(Clone, Copy, PartialEq)]
enum Level {
    Prompt(usize),
    Marginal,
    Absent,
}

impl Level {
    /// The documented rule: within prompts if enough prompts have several draws, else over the log.
    fn choose(snapshot: &Snapshot, options: &Options) -> Self {
        let units = |degree: usize| snapshot.lane.shared.units[degree - 1..].iter().flatten().sum::<u64>() as f64;
        let config = &snapshot.config;
        if !config.has_cluster {
            return Level::Absent;
        }
        let repeated = units(2);
        if repeated >= 2.0 && (repeated >= options.repeated_share * units(1) || !config.marginal()) {
            let enough = |order: &usize| units(order + 1) >= options.order_share * repeated && units(order + 1) >= 2.0;
            return Level::Prompt((1..=options.max_order).rev().find(enough).unwrap_or(1));
        }
        if config.marginal() { Level::Marginal } else { Level::Absent }
    }
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
        let level = Level::choose(snapshot, options);
        Ok(Reading { snapshot, policy, options, full, cut_totals, cut, log_tau, raised: log_tau > wanted, level })
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
        let prompt =
            if let Level::Prompt(order) = self.level { Some(self.prompt(order, marginal.as_ref())) } else { None };
        let over_log = marginal.as_ref().map(|m| self.over_log(m));
        let (level, d) = match self.level {
            Level::Prompt(order) => {
                let name = format!("H_{order}");
                (Some("prompt"), prompt.as_ref().and_then(|p| p.control.iter().find(|m| m.name == name).cloned()))
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
            marginal: over_log,
            variance,
            groups,
            welfare,
            diagnostics: self.diagnostics(),
        })
    }
}

const _: () = assert!(MAX_DEGREE == MAX_ORDER + 1);
