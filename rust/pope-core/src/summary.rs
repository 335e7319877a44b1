//! Everything the state says about one policy, and about two.

use crate::cut::{A, N, Sums, natural_scale};
use crate::diversity::{self, Measure};
use crate::error::{Error, Result};
use crate::field::{Field, record};
use crate::interval::{self, Interval, Sample, t_of_level};
use crate::jackknife::{Jackknife, JointJackknife, jackknife, jackknife_pairs};
use crate::lane::PolicyLane;
use crate::marginal::{self, Marginal};
use crate::math;
use crate::psis;
use crate::state::Snapshot;
use crate::totals::{BUCKETS, Totals};
use crate::unit::{MAX_DEGREE, MAX_ORDER};
use crate::utility::{self, Estimate};

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
    fn check(&self) -> Result<()> {
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

/// A vector of statistics on everything, and without each bucket.
type Replicates = (Vec<f64>, Vec<(u64, Vec<f64>)>);

/// The difference of the headline values, with the jackknife's error.
fn difference(
    a: &str,
    b: &str,
    (headline_a, of_a): &(Vec<f64>, Replicates),
    (headline_b, of_b): &(Vec<f64>, Replicates),
    level: f64,
) -> Difference {
    let minus = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x - y).collect::<Vec<f64>>();
    let (values, whole) = (minus(headline_a, headline_b), minus(&of_a.0, &of_b.0));
    let without: Vec<_> = of_a.1.iter().zip(&of_b.1).map(|((m, x), (_, y))| (*m, minus(x, y))).collect();
    let joint = jackknife_pairs(&whole, &without);
    let df = joint.as_ref().map_or(0.0, |j| j.groups as f64 - 1.0);
    let named = |i: usize, name: &str| {
        let error = joint.as_ref().map(|j| j.covariance[i * whole.len() + i].max(0.0).sqrt());
        named_t(name, values[i], error, "jackknife", level, df)
    };
    let last = whole.len() - 1;
    Difference {
        a: a.to_owned(),
        b: b.to_owned(),
        utility: named(0, "utility"),
        diversity: (last == 2).then(|| named(1, "diversity")),
        value: named(last, "value"),
    }
}

fn named_t(name: &str, value: f64, error: Option<f64>, method: &'static str, level: f64, df: f64) -> Named {
    let intervals = error.map(|se| (method, Interval::around(value, t_of_level(level, df) * se)));
    Named { name: name.to_owned(), value, standard_error: error, intervals: intervals.into_iter().collect() }
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
            return Err(Error::Config(format!(
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

    // Utility.

    fn utility(&self) -> Vec<Named> {
        let (low, span) = self.span();
        let (n, s) = (self.units(), &self.lane().scalars);
        let t = |name: &str, e: Estimate| {
            named_t(name, e.value, Some(e.standard_error), "delta", self.options.level, n - 1.0)
        };
        let reward = |e: Estimate| e.affine(low, span);
        let config = &self.snapshot.config;
        let mut all = vec![
            t("ips", utility::weighted_mean(&self.full, low, span)),
            t("snips", reward(utility::self_normalized(&self.full))),
            t("tips", utility::weighted_mean(&self.cut, low, span)),
            self.sn_tips(),
            t("cv", reward(utility::control_variate(&self.full))),
            t("psis", reward(self.sn_psis())),
        ];
        if 2 * self.snapshot.lane.shared.units_repeated >= self.snapshot.lane.shared.n_units() {
            all.push(t("baseline_dr", reward(utility::leave_one_out_baseline(s, n))));
        }
        if config.has_baseline {
            all.push(t("dm", reward(utility::direct(s, n))));
            all.push(t("dr", reward(utility::doubly_robust(s, n))));
            all.push(t("sndr", reward(utility::self_normalized_doubly_robust(s, &self.full))));
        }
        all
    }

    fn sn_tips(&self) -> Named {
        let (low, span) = self.span();
        let estimate = utility::self_normalized(&self.cut);
        let level = self.options.level;
        let half = t_of_level(level, self.units() - 1.0) * estimate.standard_error;
        let mut intervals = vec![
            ("delta", Interval::around(estimate.value, half)),
            ("worst_case_tail", interval::worst_case_tail(estimate.value, half, self.truncated_share())),
        ];
        let without: Vec<_> = self.cut.leave_one_out(1).iter().map(|(m, p)| (*m, utility::ratio(p))).collect();
        if let Some(j) = jackknife(estimate.value, &without) {
            let half = t_of_level(level, j.groups as f64 - 1.0) * j.variance.sqrt();
            intervals.push(("jackknife", Interval::around(j.value, half)));
        }
        intervals.push(("robust", self.robust_utility(level)));
        intervals.push(("certified", self.certified_utility(level)));
        let e = estimate.affine(low, span);
        Named {
            name: "sn_tips".into(),
            value: e.value,
            standard_error: Some(e.standard_error),
            // An inverted interval is a finding; it must not be hidden by clipping.
            intervals: intervals
                .into_iter()
                .map(|(name, i)| (name, if i.inverted() { i } else { i.within(0.0, 1.0) }.affine(low, span)))
                .collect(),
        }
    }

    fn sn_psis(&self) -> Estimate {
        let draws = self.tail_draws();
        let Some(fit) = self.tail_fit(&draws) else { return utility::self_normalized(&self.full) };
        let smooth = fit.smooth(&draws);
        let of = |l: f64| {
            // Descending log-weights: find the tie that this one belongs to.
            let at = smooth.partition_point(|&(x, _)| x > l);
            smooth.get(at).filter(|&&(x, _)| x == l).map_or(l, |&(_, s)| s)
        };
        let smoothed = self.snapshot.reworked(self.policy, |unit| {
            (unit.l_max > fit.cutoff).then(|| unit.rows.iter().map(|row| of(row.l)).collect())
        });
        utility::self_normalized(&Sums::new(&smoothed, self.full.units, self.full.scale))
    }

    /// Log-weights and multiplicities of the kept units' rows, descending, down to where the tail is complete.
    fn tail_draws(&self) -> Vec<(f64, f64)> {
        let tail = &self.lane().tail;
        let rows = tail.units().iter().flat_map(|unit| &unit.rows);
        let complete = tail.complete_above();
        let mut draws: Vec<_> =
            rows.filter(|row| row.l >= complete && row.l > f64::NEG_INFINITY).map(|row| (row.l, row.m)).collect();
        draws.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
        draws
    }

    fn tail_fit(&self, draws: &[(f64, f64)]) -> Option<psis::TailFit> {
        let kept: f64 = draws.iter().map(|d| d.1).sum();
        let size = psis::tail_size(self.snapshot.lane.shared.draws as f64).min((kept as usize).saturating_sub(1));
        psis::fit(draws, size)
    }

    fn k_hat(&self) -> Option<f64> {
        self.tail_fit(&self.tail_draws()).map(|fit| fit.k)
    }

    /// The truncation level of intervals that assume nothing about overlap: `sqrt n` on calibrated weights.
    fn robust_cut(&self) -> f64 {
        let wanted = 0.5 * math::ln(self.units()) + math::ln(self.options.kappa);
        self.snapshot.feasible_cut(self.policy, wanted)
    }

    /// Totals at the robust truncation level and the scale to read them at.
    fn robust_totals(&self) -> (Totals, i32) {
        let totals = self.snapshot.truncated(self.policy, self.robust_cut());
        // Far policies: what is left after truncation may be tiny beside the untruncated weights.
        let scale = natural_scale(&totals).unwrap_or(self.full.scale);
        (totals, scale)
    }

    /// Mirrored truncated t (theory 4), from F3: both ends are lower bounds of means of non-negative variables.
    fn robust_utility(&self, level: f64) -> Interval {
        let (totals, scale) = self.robust_totals();
        let sums = Sums::new(&totals, self.full.units, scale);
        let (p, t) = (sums.whole(1), t_of_level(level, self.units() - 1.0));
        let bound = |z: &[(usize, f64)]| {
            let mean = z.iter().map(|&(i, c)| c * p.mean(i)).sum::<f64>();
            let square = (sums.quadratic(1, z, z) - p.units * mean * mean).max(0.0);
            let bound = mean - t * (square / (p.units - 1.0) / p.units).sqrt();
            math::scale(bound, sums.scale) / self.options.kappa
        };
        Interval { low: bound(&[(N, 1.0)]).max(0.0), high: 1.0 - bound(&[(A, 1.0), (N, -1.0)]).max(0.0) }
    }

    /// Log-smoothing mirror (theory 4): finite-sample, any tails.
    fn certified_utility(&self, level: f64) -> Interval {
        let bound = |which: usize| {
            let classes = self.lane().totals.class.iter().flatten();
            let sample = Sample::new(classes.map(|class| &class.utility[which]), 1.0 / self.options.kappa);
            sample.log_smoothing_bound((1.0 - level) / 2.0)
        };
        Interval { low: bound(1), high: 1.0 - bound(2) }
    }

    // Diversity within prompts.

    fn prompt(&self, order: usize, marginal: Option<&Marginal>) -> PromptDiversity {
        let degree = order + 1;
        let p = self.cut.whole(degree);
        let without = self.cut.leave_one_out(degree);
        let control = Measure::all(order).iter().map(|m| self.control(m, degree, &without)).collect();
        let product = |m: &Measure| {
            let value = m.of(diversity::zeta_product(&p));
            let others: Vec<_> = without.iter().map(|(n, p)| (*n, m.of(diversity::zeta_product(p)))).collect();
            let j = jackknife(value, &others);
            let df = j.map_or(0.0, |j| j.groups as f64 - 1.0);
            named_t(&m.name, value, j.map(|j| j.variance.sqrt()), "jackknife", self.options.level, df)
        };
        PromptDiversity {
            order,
            units_used: p.units as u64,
            units_left_out: self.snapshot.lane.shared.n_units() - p.units as u64,
            control,
            product: Measure::all(order).iter().map(product).collect(),
            sandwich: self.sandwich(degree, marginal),
        }
    }

    fn control(&self, measure: &Measure, degree: usize, without: &[(u64, crate::cut::Point)]) -> Named {
        let level = self.options.level;
        let estimate = diversity::estimate(measure, &self.cut, degree);
        let p = self.cut.whole(degree);
        let half = t_of_level(level, p.units - 1.0) * estimate.standard_error;
        let m = 1.0 - p.sums[A] / self.full.whole(degree).sums[A];
        let tail = measure.worst_case_tail(diversity::zeta_control(&p), half, m.clamp(0.0, 1.0));
        let mut intervals = vec![("delta", Interval::around(estimate.value, half)), ("worst_case_tail", tail)];
        let others: Vec<_> = without.iter().map(|(n, p)| (*n, measure.of_control(p))).collect();
        if let Some(j) = jackknife(estimate.value, &others) {
            let half = t_of_level(level, j.groups as f64 - 1.0) * j.variance.sqrt();
            intervals.push(("jackknife", Interval::around(j.value, half)));
        }
        if measure.offset == 0.0 && measure.name != "gini_simpson" || measure.order() == 1 {
            intervals.push(("robust", self.bounded_measure(measure, degree, level, false)));
            intervals.push(("certified", self.bounded_measure(measure, degree, level, true)));
        }
        Named {
            name: measure.name.clone(),
            value: estimate.value,
            standard_error: Some(estimate.standard_error),
            intervals,
        }
    }

    /// Bounds from the product forms, which hold for truncated weights: `E X_M <= H_M <= sum 1/v - E Y_M`.
    fn bounded_measure(&self, measure: &Measure, degree: usize, level: f64, finite_sample: bool) -> Interval {
        let order = measure.order();
        // X and Y mix degrees 2 to M + 1 in the weights; the least favorable one calibrates them.
        let kappa = self.options.kappa;
        let factor = if kappa > 1.0 { kappa.powi(-(order as i32 + 1)) } else { kappa.powi(-2) };
        let truncated;
        let totals = if finite_sample {
            &self.lane().totals
        } else {
            truncated = self.snapshot.truncated(self.policy, self.robust_cut());
            &truncated
        };
        let bound = |upper: bool| {
            let classes = totals.class[degree - 1..].iter().flatten();
            let parts = classes.map(|class| if upper { &class.upper[order - 1] } else { &class.lower[order - 1] });
            let sample = Sample::new(parts, factor);
            if finite_sample { sample.log_smoothing_bound((1.0 - level) / 2.0) } else { sample.t_bound(level) }
        };
        let (least, most) = measure.range();
        Interval { low: least + bound(false), high: most - bound(true) }
    }

    /// Certified bounds on the mean Shannon entropy within prompts: Renyi-2 below, a cross entropy above.
    fn sandwich(&self, degree: usize, marginal: Option<&Marginal>) -> Option<Interval> {
        let level = self.options.level;
        let gini = self.bounded_measure(&Measure::gini(), degree, level, true);
        let untruncated;
        let high = match marginal {
            Some(_) => {
                let lane = &self.snapshot.lane;
                untruncated = Marginal::new(&self.lane().totals, &lane.clusters, &lane.shared, self.full.scale);
                let factor = math::scale(1.0, self.full.scale) / self.options.kappa;
                untruncated.cross_entropy_bound(&self.bucket_sizes(1), factor, 1.0 - (1.0 - level) / 2.0)?
            }
            None => return None,
        };
        Some(Interval { low: -math::ln(1.0 - gini.low.clamp(0.0, 1.0 - 1e-12)), high })
    }

    // Diversity over the log.

    fn over_log(&self, m: &Marginal) -> MarginalDiversity {
        let level = self.options.level;
        let plug_in = m.plug_in();
        let most = math::ln(m.keys.len().max(1) as f64);
        let sizes = self.bucket_sizes(1);
        let without: Vec<_> = sizes.iter().copied().zip(m.leave_one_out()).collect();
        let j = jackknife(plug_in, &without);
        let value = j.map_or(plug_in, |j| j.value).clamp(0.0, most);
        let error = j.map(|j| j.variance.sqrt());
        let mut entropy =
            named_t("entropy", value, error, "jackknife", level, j.map_or(0.0, |j| j.groups as f64 - 1.0));
        if let Some((_, interval)) = entropy.intervals.first().copied() {
            let half = (interval.high - interval.low) / 2.0;
            entropy.intervals.push((
                "worst_case_tail",
                marginal::worst_case_tail(value, half, self.truncated_share(), m.keys.len()),
            ));
        }
        for (name, finite_sample) in [("robust", false), ("certified", true)] {
            entropy.intervals.extend(self.marginal_bounds(level, finite_sample).map(|i| (name, i)));
        }
        let bias = m.miller_madow_bias(self.cut.quadratic(1, &[(A, 1.0)], &[(A, 1.0)]));
        let (w, draws) = (m.total(), m.draws.iter().sum::<u64>() as f64);
        let mut clusters: Vec<ClusterShare> = (0..m.keys.len())
            .map(|i| ClusterShare {
                key: m.keys[i],
                target: m.mass[i] / w,
                behavior: m.draws[i] as f64 / draws,
                units: m.units[i],
            })
            .collect();
        clusters.sort_by(|a, b| b.target.total_cmp(&a.target).then(a.key.cmp(&b.key)));
        clusters.truncate(100);
        MarginalDiversity {
            entropy,
            plug_in,
            miller_madow: (plug_in - bias).clamp(0.0, most),
            bias,
            unseen_mass: m.unseen_mass(),
            n_clusters: m.keys.len(),
            clusters,
        }
    }

    // Value.

    /// `(U, D)` with the value `U + lambda D` at the end.
    fn with_value(&self, mut x: Vec<f64>) -> Vec<f64> {
        x.push(x[0] + self.options.diversity_weight * x.get(1).copied().unwrap_or(0.0));
        x
    }

    /// Headline utility, diversity (if any) and value.
    fn headline(&self) -> Vec<f64> {
        let (mut whole, _) = self.replicates();
        if self.level == Level::Marginal {
            // The headline entropy is corrected for bias; the replicates are not.
            whole[1] = self.over_log(&self.marginal()).entropy.value;
        }
        self.with_value(whole)
    }

    /// [`Self::replicates`] with the value at the end.
    fn value_replicates(&self) -> Replicates {
        let (whole, without) = self.replicates();
        (self.with_value(whole), without.into_iter().map(|(m, x)| (m, self.with_value(x))).collect())
    }

    /// Utility and headline diversity on everything and without each bucket.
    fn replicates(&self) -> Replicates {
        let (low, span) = self.span();
        let u = |p: &crate::cut::Point| low + span * utility::ratio(p);
        let mut whole = vec![u(&self.cut.whole(1))];
        let mut without: Vec<(u64, Vec<f64>)> =
            self.cut.leave_one_out(1).iter().map(|(m, p)| (*m, vec![u(p)])).collect();
        match self.level {
            Level::Prompt(order) => {
                let h = |p: &crate::cut::Point| Measure::entropy(order).of_control(p);
                whole.push(h(&self.cut.whole(order + 1)));
                let others = self.cut.leave_one_out(order + 1);
                without.iter_mut().zip(&others).for_each(|((_, x), (_, p))| x.push(h(p)));
            }
            Level::Marginal => {
                let m = self.marginal();
                whole.push(m.plug_in());
                without.iter_mut().zip(m.leave_one_out()).for_each(|((_, x), h)| x.push(h));
            }
            Level::Absent => {}
        }
        (whole, without)
    }

    fn variance(&self) -> Option<VarianceParts> {
        let lambda = self.options.diversity_weight;
        let parts = |utility: f64, diversity: f64, covariance: f64, method| {
            let (sd_u, sd_d) = (utility.sqrt(), lambda * diversity.sqrt());
            VarianceParts {
                utility,
                diversity,
                covariance,
                total: (utility + lambda * lambda * diversity + 2.0 * lambda * covariance).max(0.0),
                lower_bound: (sd_u - sd_d).powi(2),
                upper_bound: (sd_u + sd_d).powi(2),
                method,
            }
        };
        if let Level::Prompt(order) = self.level {
            let (_, span) = self.span();
            let (all, used) = (self.cut.whole(1), self.cut.whole(order + 1));
            let u = utility::self_normalized(&self.cut);
            let d = diversity::estimate(&Measure::entropy(order), &self.cut, order + 1);
            let influence = diversity::influence(&Measure::entropy(order), &used);
            let phi_u = [(N, span / all.mean(A)), (A, -u.value * span / all.mean(A))];
            let products = influence.sum_of_products(&self.cut, order + 1, &phi_u);
            // The same n / (n - 1) as in the variances, so that Cauchy-Schwarz and L1 hold exactly.
            let n = (all.units - 1.0).sqrt() * all.units.sqrt() * (used.units - 1.0).sqrt() * used.units.sqrt();
            return Some(parts((span * u.standard_error).powi(2), d.standard_error.powi(2), products / n, "delta"));
        }
        let (whole, without) = self.replicates();
        let JointJackknife { covariance: c, .. } = jackknife_pairs(&whole, &without)?;
        Some(parts(c[0], c[3], c[1], "jackknife"))
    }

    fn value(&self, u: &Named, d: Option<&Named>, variance: Option<&VarianceParts>, low: f64, span: f64) -> Named {
        let Some(d) = d else { return Named { name: "value".into(), ..u.clone() } };
        let (lambda, level) = (self.options.diversity_weight, self.options.level);
        let value = u.value + lambda * d.value;
        let error = variance.map(|v| v.total.sqrt());
        let df = match (self.level, variance) {
            (Level::Marginal, _) => self.bucket_sizes(1).iter().filter(|&&m| m > 0).count() as f64 - 1.0,
            _ => self.units() - 1.0,
        };
        let method = variance.map_or("delta", |v| v.method);
        let mut named = named_t("value", value, error, method, level, df);
        // Worst-case tail: the parts' ends without their half-widths, and the half-width of the sum.
        if let Some(half) = error.map(|se| t_of_level(level, df) * se) {
            let m = self.truncated_share();
            let scaled = interval::worst_case_tail((u.value - low) / span, 0.0, m).affine(low, span);
            let zero = match self.level {
                Level::Prompt(order) => {
                    let p = self.cut.whole(order + 1);
                    Measure::entropy(order).worst_case_tail(diversity::zeta_control(&p), 0.0, m)
                }
                _ => marginal::worst_case_tail(d.value, 0.0, m, self.n_clusters()),
            };
            let sum = scaled.plus(zero, lambda);
            let half = half * (1.0 - m);
            named.intervals.push(("worst_case_tail", Interval { low: sum.low - half, high: sum.high + half }));
        }
        // Intervals without a common variance: each part at half the error probability.
        let strict = 1.0 - (1.0 - level) / 2.0;
        let parts =
            [("robust", self.robust_utility(strict), false), ("certified", self.certified_utility(strict), true)];
        for (name, u_part, finite_sample) in parts {
            let d_part = match self.level {
                Level::Prompt(order) => {
                    Some(self.bounded_measure(&Measure::entropy(order), order + 1, strict, finite_sample))
                }
                _ => self.marginal_bounds(strict, finite_sample),
            };
            if let Some(d_part) = d_part {
                named.intervals.push((name, u_part.affine(low, span).plus(d_part, lambda)));
            }
        }
        named
    }

    /// Bounds on the entropy over the log that assume nothing about overlap.
    fn marginal_bounds(&self, level: f64, finite_sample: bool) -> Option<Interval> {
        let lane = &self.snapshot.lane;
        let (totals, scale) =
            if finite_sample { (self.lane().totals.clone(), self.full.scale) } else { self.robust_totals() };
        let m = Marginal::new(&totals, &lane.clusters, &lane.shared, scale);
        let factor = math::scale(1.0, scale) / self.options.kappa;
        m.bounded_interval(&self.bucket_sizes(1), factor, level, finite_sample)
    }

    fn n_clusters(&self) -> usize {
        self.snapshot.lane.shared.clusters.iter().filter(|c| c[1] > 0).count()
    }

    // Groups.

    fn groups(&self) -> (Vec<Group>, Vec<Named>) {
        let lane = &self.snapshot.lane;
        let level = self.options.level;
        let (low, span) = self.span();
        let slots: Vec<u32> = lane
            .groups
            .by_key()
            .into_iter()
            .filter(|&s| lane.shared.group_rows.get(s as usize).is_some_and(|&n| n > 0))
            .collect();
        if slots.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let mut position = vec![usize::MAX; lane.groups.len()];
        slots.iter().enumerate().for_each(|(at, &slot)| position[slot as usize] = at);
        let mut sums = vec![vec![[0.0f64; 2]; slots.len()]; BUCKETS];
        for (which, table) in self.cut_totals.group.iter().enumerate() {
            for (slot, bucket, sum) in table.iter() {
                if let Some(place) = position.get(slot as usize).and_then(|&at| sums[bucket].get_mut(at)) {
                    place[which] = sum.dd(self.cut.scale).value();
                }
            }
        }
        let mut whole = vec![[0.0f64; 2]; slots.len()];
        for bucket in &sums {
            for (w, b) in whole.iter_mut().zip(bucket) {
                w[0] += b[0];
                w[1] += b[1];
            }
        }
        let values = |s: &[[f64; 2]]| s.iter().map(|[a, n]| low + span * n / a).collect::<Vec<f64>>();
        let welfare = |v: &[f64]| -> [f64; 3] {
            let g = v.len() as f64;
            let mean = v.iter().sum::<f64>() / g;
            let min = v.iter().copied().fold(f64::INFINITY, f64::min);
            // Nash welfare counts utilities from the worst possible reward.
            let nash = low + math::exp(v.iter().map(|&v| math::ln((v - low).max(0.0))).sum::<f64>() / g);
            [mean, min, nash]
        };
        let extended = |s: &[[f64; 2]]| {
            let mut v = values(s);
            let w = welfare(&v);
            v.extend(w);
            v
        };
        let sizes = self.bucket_sizes(1);
        let without: Vec<(u64, Vec<f64>)> = sums
            .iter()
            .zip(&sizes)
            .map(|(bucket, &m)| {
                let rest: Vec<[f64; 2]> = whole.iter().zip(bucket).map(|(w, b)| [w[0] - b[0], w[1] - b[1]]).collect();
                (m, extended(&rest))
            })
            .collect();
        let all = extended(&whole);
        // One by one: a group that sits in a single bucket has no error, and must not take that of the others away.
        let errors: Vec<Option<Jackknife>> = (0..all.len())
            .map(|i| jackknife(all[i], &without.iter().map(|(m, x)| (*m, x[i])).collect::<Vec<_>>()))
            .collect();
        let error = |i: usize| errors[i].map(|j| j.variance.sqrt());
        let df = errors.iter().flatten().next().map_or(0.0, |j| j.groups as f64 - 1.0);
        let named = |i: usize, name: &str| named_t(name, all[i], error(i), "jackknife", level, df);
        let groups: Vec<Group> = slots
            .iter()
            .enumerate()
            .map(|(i, &slot)| Group {
                key: lane.groups.key(slot),
                units: lane.shared.groups[slot as usize].iter().sum(),
                rows: lane.shared.group_rows[slot as usize],
                utility: named(i, "sn_tips"),
            })
            .collect();
        let g = slots.len();
        let mut min = Named { intervals: Vec::new(), ..named(g + 1, "min") };
        // The minimum is not smooth: its interval is that of the worst group, at simultaneous level.
        let t = t_of_level(1.0 - (1.0 - level) / g as f64, df);
        if let Some(errors) = (0..g).map(error).collect::<Option<Vec<f64>>>() {
            let end = |sign: f64| (0..g).map(|i| all[i] + sign * t * errors[i]).fold(f64::INFINITY, f64::min);
            min.intervals.push(("bonferroni", Interval { low: end(-1.0), high: end(1.0) }));
        }
        (groups, vec![named(g, "mean"), min, named(g + 2, "nash")])
    }

    // Diagnostics.

    /// Kish's effective size of the terms `w r` and of `w (1 - r)`, the smaller one.
    fn reward_ess(&self) -> Option<f64> {
        let p = self.cut.whole(1);
        let size = |z: &[(usize, f64)]| {
            let sum: f64 = z.iter().map(|&(i, c)| c * p.sums[i]).sum();
            // Below this, rewards are constant up to rounding, and so is what can be said of them.
            (sum > 1e-12 * p.sums[A]).then(|| sum * sum / self.cut.quadratic(1, z, z))
        };
        let (earned, missed) = (size(&[(N, 1.0)])?, size(&[(A, 1.0), (N, -1.0)])?);
        Some(earned.min(missed))
    }

    fn diagnostics(&self) -> Diagnostics {
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
        Diagnostics {
            n_units: shared.n_units(),
            n_rows: shared.rows,
            n_draws: shared.draws,
            ess: p.sums[A] * p.sums[A] / aa,
            ess_ceiling: n * math::exp(-kl),
            reward_ess: self.reward_ess(),
            max_weight_share: largest / p.sums[A],
            mean_weight: math::scale(p.mean(A), self.full.scale),
            k_hat: self.k_hat(),
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

const _: () = assert!(MAX_DEGREE == MAX_ORDER + 1);
