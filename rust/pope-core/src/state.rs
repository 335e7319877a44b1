//! The mergeable state: a log read in any pieces, by any number of threads, in any order, ends in the same numbers.
//!
//! `empty`, `update`, `merge` form a commutative monoid up to the representation of what is still open: the first and
//! the last unit of a stretch of rows may go on in the neighbouring stretch, so they are kept as rows and joined by key
//! when the state is read ([`State::snapshot`]).

use std::collections::BTreeMap;

use crate::batch::{Batch, Floats, Ints, Vectors};
use crate::error::{Error, Result};
use crate::lane::{Lane, check_rows};
use crate::par::{Interrupt, for_each_task};

/// Rows per task of a parallel update (rounded to unit boundaries).
const TASK: usize = 1 << 16;
/// The same with embeddings, of which rows have so much more to do.
const EMBEDDING_TASK: usize = 1 << 11;

/// What a state is about. States with different configurations do not merge.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Names of the target policies.
    pub policies: Vec<String>,
    /// Known bounds of the reward.
    pub reward_range: (f64, f64),
    /// Every row is a unit of its own (`count` of them).
    pub row_units: bool,
    /// Rows carry clusters.
    pub has_cluster: bool,
    /// Rows carry annotator groups.
    pub has_group: bool,
    /// Rows carry token counts.
    pub has_tokens: bool,
    /// Rows carry reward predictions and their policy means.
    pub has_baseline: bool,
    /// Rows carry embeddings.
    pub has_embedding: bool,
    /// Cluster labels mean the same for all prompts (false: they are local to a prompt).
    pub clusters_span_log: bool,
    /// How many units with the largest weights are kept whole.
    pub tail_capacity: usize,
}

impl Config {
    /// Is the cluster distribution over the whole log of interest?
    pub fn marginal(&self) -> bool {
        self.has_cluster && self.clusters_span_log
    }

    /// Refuse what no log can have.
    pub fn check(&self) -> Result<()> {
        let (low, high) = self.reward_range;
        if !(low.is_finite() && high.is_finite() && low < high && (high - low).is_finite()) {
            return Err(Error::Config(format!("reward_range must be finite with low < high, not [{low}, {high}]")));
        }
        if self.policies.is_empty() {
            return Err(Error::Config("at least one target policy is needed".into()));
        }
        let mut seen = std::collections::HashSet::new();
        if let Some(name) = self.policies.iter().find(|&name| !seen.insert(name)) {
            return Err(Error::Config(format!("two policies are named '{name}'; give them different names")));
        }
        if self.row_units && self.has_embedding {
            return Err(Error::Config(
                "embeddings are compared within units; with row units there are no pairs".into(),
            ));
        }
        if self.tail_capacity == 0 || self.tail_capacity > 1 << 24 {
            return Err(Error::Config("tail_capacity must be between 1 and 2^24".into()));
        }
        Ok(())
    }
}

/// Rows of one unit that may not be complete yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fragment {
    /// The unit.
    pub key: i64,
    /// Columns: behavior, reward, count, tokens, baseline.
    pub floats: [Vec<f64>; 5],
    /// Per policy: log-probability, baseline mean.
    pub per_policy: Vec<[Vec<f64>; 2]>,
    /// Columns: cluster, group.
    pub labels: [Vec<i64>; 2],
    /// Embeddings, row after row.
    pub embedding: Vec<f64>,
}

impl Fragment {
    fn of(batch: &Batch<'_>, key: i64, start: usize, end: usize) -> Self {
        let mut fragment =
            Fragment { key, per_policy: vec![Default::default(); batch.targets.len()], ..Default::default() };
        fragment.extend(batch, start, end);
        fragment
    }

    fn extend(&mut self, batch: &Batch<'_>, start: usize, end: usize) {
        let [behavior, reward, count, tokens, baseline] = &mut self.floats;
        behavior.extend((start..end).map(|i| batch.behavior.get(i)));
        reward.extend((start..end).map(|i| batch.reward.get(i)));
        for (ours, theirs) in [(count, batch.count), (tokens, batch.tokens), (baseline, batch.baseline)] {
            ours.extend(theirs.into_iter().flat_map(|column| &column[start..end]));
        }
        for (i, [target, mean]) in self.per_policy.iter_mut().enumerate() {
            target.extend((start..end).map(|row| batch.targets[i].get(row)));
            mean.extend(batch.baseline_means.get(i).into_iter().flat_map(|column| &column[start..end]));
        }
        for (ours, theirs) in self.labels.iter_mut().zip([batch.cluster, batch.group]) {
            ours.extend(theirs.into_iter().flat_map(|column| (start..end).map(move |i| column.get(i))));
        }
        if let Some(Vectors { values, width }) = batch.embedding {
            self.embedding.extend((start * width..end * width).map(|i| values.get(i)));
        }
    }

    fn append(&mut self, other: &Fragment) {
        for (a, b) in self.floats.iter_mut().zip(&other.floats) {
            a.extend(b);
        }
        for (a, b) in self.per_policy.iter_mut().flatten().zip(other.per_policy.iter().flatten()) {
            a.extend(b);
        }
        for (a, b) in self.labels.iter_mut().zip(&other.labels) {
            a.extend(b);
        }
        self.embedding.extend(&other.embedding);
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.floats[1].len()
    }

    /// Do the columns fit the configuration and each other? `width` is that of the embeddings.
    pub fn is_sound(&self, config: &Config, width: usize) -> bool {
        let n = self.rows();
        let column = |len: usize, present: bool| len == if present { n } else { 0 };
        let [behavior, _, count, tokens, baseline] = &self.floats;
        behavior.len() == n
            && (count.len() == n || count.is_empty())
            && column(tokens.len(), config.has_tokens)
            && column(baseline.len(), config.has_baseline)
            && self.per_policy.len() == config.policies.len()
            && self.per_policy.iter().all(|[t, m]| t.len() == n && column(m.len(), config.has_baseline))
            && column(self.labels[0].len(), config.has_cluster)
            && column(self.labels[1].len(), config.has_group)
            && n.checked_mul(width).is_some_and(|elements| self.embedding.len() == elements)
    }

    fn close(&self, config: &Config, width: usize, lane: &mut Lane) -> Result<()> {
        let [behavior, reward, count, tokens, baseline] = &self.floats;
        let given = |column: &'_ Vec<f64>| !column.is_empty();
        let unit = vec![self.key; self.rows()];
        let batch = Batch {
            unit: Some(&unit),
            behavior: Floats::F64(behavior),
            targets: self.per_policy.iter().map(|[target, _]| Floats::F64(target)).collect(),
            reward: Floats::F64(reward),
            cluster: config.has_cluster.then_some(Ints::I64(&self.labels[0])),
            group: config.has_group.then_some(Ints::I64(&self.labels[1])),
            count: given(count).then_some(count),
            tokens: given(tokens).then_some(tokens),
            baseline: given(baseline).then_some(baseline),
            baseline_means: self.per_policy.iter().map(|[_, mean]| mean.as_slice()).filter(|m| !m.is_empty()).collect(),
            embedding: config.has_embedding.then_some(Vectors { values: Floats::F64(&self.embedding), width }),
            first_row: 0,
        };
        lane.update(config, &batch, 0, self.rows())
    }
}

/// The mergeable state of an evaluation.
#[derive(Clone, Debug)]
pub struct State {
    config: Config,
    lanes: Vec<Lane>,
    first: Option<Fragment>,
    last: Option<Fragment>,
    edges: Vec<Fragment>,
    /// Elements of an embedding; 0 before the first one.
    width: usize,
    failed: bool,
}

/// A state at rest: one lane, nothing open. Every estimator is a function of it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What it is about.
    pub config: Config,
    /// Elements of an embedding, if there are any.
    pub width: usize,
    /// The sums.
    pub lane: Lane,
}

impl State {
    /// The identity of [`Self::merge`].
    pub fn new(config: Config) -> Result<Self> {
        config.check()?;
        Ok(State { config, lanes: Vec::new(), first: None, last: None, edges: Vec::new(), width: 0, failed: false })
    }

    /// What the state is about.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Rows seen.
    pub fn rows(&self) -> u64 {
        let open = self.open_fragments().map(|f| f.rows() as u64).sum::<u64>();
        self.lanes.iter().map(|lane| lane.shared.rows).sum::<u64>() + open
    }

    /// Add the next rows of the log. Rows of a unit stand together; a unit may go on from the previous call.
    ///
    /// After an error the state has lost count and refuses further use.
    pub fn update(&mut self, batch: &Batch<'_>, threads: usize, interrupt: &mut dyn Interrupt) -> Result<()> {
        self.usable()?;
        self.check_batch(batch)?;
        if let Some(Vectors { width, .. }) = batch.embedding.filter(|_| batch.len() > 0) {
            self.width = width;
        }
        self.failed = true;
        let interior = match batch.unit {
            None => 0..batch.len(),
            Some(unit) => self.take_edges(batch, unit)?,
        };
        self.run(batch, interior, threads, interrupt)?;
        self.failed = false;
        Ok(())
    }

    fn check_batch(&self, batch: &Batch<'_>) -> Result<()> {
        let config = &self.config;
        batch.check_lengths()?;
        let missing = |name: &str, want: bool, have: bool| {
            if want == have {
                return Ok(());
            }
            let what =
                if want { "is missing although the state was made for it" } else { "was not announced to the state" };
            Err(Error::Config(format!("column '{name}' {what}")))
        };
        missing("unit_key", !config.row_units, batch.unit.is_some())?;
        missing("cluster", config.has_cluster, batch.cluster.is_some())?;
        missing("group", config.has_group, batch.group.is_some())?;
        missing("num_tokens", config.has_tokens, batch.tokens.is_some())?;
        missing("baseline", config.has_baseline, batch.baseline.is_some())?;
        missing("embedding", config.has_embedding, batch.embedding.is_some())?;
        let width = batch.embedding.map(|vectors| vectors.width).filter(|_| batch.len() > 0);
        if let Some(width) = width.filter(|&width| self.width != 0 && self.width != width) {
            let problem = format!("{width} elements per row where earlier rows have {}", self.width);
            return Err(Error::Length { column: "embedding".into(), problem });
        }
        if batch.targets.len() != config.policies.len() {
            let (have, want) = (batch.targets.len(), config.policies.len());
            return Err(Error::Config(format!("{have} target columns for {want} policies")));
        }
        if config.has_baseline && batch.baseline_means.len() != config.policies.len() {
            return Err(Error::Config("the baseline's mean is needed for every policy".into()));
        }
        let counted = self.open_fragments().next().map(|fragment| !fragment.floats[2].is_empty());
        if batch.len() > 0 && counted.is_some_and(|counted| counted != batch.count.is_some()) {
            return Err(Error::Config("column 'count' must be given for all rows or for none".into()));
        }
        Ok(())
    }

    /// Put the batch's first and last unit where they can go on; the rest is complete.
    fn take_edges(&mut self, batch: &Batch<'_>, unit: &[i64]) -> Result<core::ops::Range<usize>> {
        let n = unit.len();
        let Some(&first_key) = unit.first() else { return Ok(0..0) };
        let head = unit.iter().position(|&key| key != first_key).unwrap_or(n);
        let last_key = unit[n - 1];
        let tail = unit.iter().rposition(|&key| key != last_key).map_or(0, |i| i + 1);
        // Open rows are only counted later, when nobody remembers which row they were: they are checked now.
        check_rows(&self.config, batch, 0, head)?;
        check_rows(&self.config, batch, tail.max(head), n)?;
        let mut start = 0;
        let open = self.last.as_mut().or(self.first.as_mut());
        if let Some(fragment) = open.filter(|fragment| fragment.key == first_key) {
            fragment.extend(batch, 0, head);
            start = head;
        } else if self.first.is_none() {
            self.first = Some(Fragment::of(batch, first_key, 0, head));
            start = head;
        }
        if start == n {
            return Ok(n..n);
        }
        if let Some(done) = self.last.take() {
            self.make_lanes(1);
            done.close(&self.config, self.width, &mut self.lanes[0])?;
        }
        let tail = tail.max(start);
        self.last = Some(Fragment::of(batch, last_key, tail, n));
        Ok(start..tail)
    }

    fn make_lanes(&mut self, n: usize) {
        while self.lanes.len() < n {
            self.lanes.push(Lane::new(&self.config));
        }
    }

    fn run(
        &mut self,
        batch: &Batch<'_>,
        rows: core::ops::Range<usize>,
        threads: usize,
        interrupt: &mut dyn Interrupt,
    ) -> Result<()> {
        let size = if batch.embedding.is_some() { EMBEDDING_TASK } else { TASK };
        let tasks = rows.len().div_ceil(size);
        self.make_lanes(threads.clamp(1, tasks.max(1)));
        // Task edges depend on the data alone: every so many rows, moved forward to the next unit.
        let edge = |task: usize| {
            let mut at = (rows.start + task * size).min(rows.end);
            if let (Some(unit), true) = (batch.unit, task > 0) {
                while at < rows.end && unit[at] == unit[at - 1] {
                    at += 1;
                }
            }
            at
        };
        let config = &self.config;
        if tasks <= 1 {
            return self.lanes[0].update(config, batch, rows.start, rows.end);
        }
        let lanes = self.lanes.len().min(threads.max(1));
        for_each_task(&mut self.lanes[..lanes], tasks, interrupt, |lane, task| {
            lane.update(config, batch, edge(task), edge(task + 1))
        })
    }

    fn usable(&self) -> Result<()> {
        if self.failed {
            return Err(Error::Config("an earlier update failed half-way; start with a new state".into()));
        }
        Ok(())
    }

    fn open_fragments(&self) -> impl Iterator<Item = &Fragment> {
        self.first.iter().chain(&self.last).chain(&self.edges)
    }

    /// Add what another state has seen. Its rows may come from anywhere in the log.
    pub fn merge(&mut self, other: &State) -> Result<()> {
        self.usable()?;
        other.usable()?;
        if self.config != other.config {
            return Err(Error::State("states with different configurations cannot be merged".into()));
        }
        if self.width != 0 && other.width != 0 && self.width != other.width {
            let (ours, theirs) = (self.width, other.width);
            return Err(Error::State(format!("embeddings of {ours} and of {theirs} elements cannot be merged")));
        }
        self.width = self.width.max(other.width);
        self.edges.extend(other.open_fragments().cloned());
        if other.lanes.is_empty() {
            return Ok(());
        }
        self.make_lanes(1);
        self.lanes[0].settle();
        for lane in &other.lanes {
            let mut lane = lane.clone();
            lane.settle();
            self.lanes[0].merge(&lane);
        }
        Ok(())
    }

    /// Close everything and read: the sums of all rows seen so far, the same whatever the way they came.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.usable()?;
        let mut lane = Lane::new(&self.config);
        let mut open: BTreeMap<i64, Fragment> = BTreeMap::new();
        for fragment in self.open_fragments() {
            match open.get_mut(&fragment.key) {
                Some(known) => known.append(fragment),
                None => {
                    open.insert(fragment.key, fragment.clone());
                }
            }
        }
        for fragment in open.values() {
            fragment.close(&self.config, self.width, &mut lane)?;
        }
        lane.settle();
        for other in &self.lanes {
            let mut other = other.clone();
            other.settle();
            lane.merge(&other);
        }
        Ok(Snapshot { config: self.config.clone(), width: self.width, lane })
    }

    /// The parts to store: one settled lane and what is open.
    pub(crate) fn parts(&self) -> Result<(Lane, Vec<&Fragment>)> {
        self.usable()?;
        let mut lane = Lane::new(&self.config);
        for other in &self.lanes {
            let mut other = other.clone();
            other.settle();
            lane.merge(&other);
        }
        Ok((lane, self.open_fragments().collect()))
    }

    /// Elements of an embedding; 0 before the first one.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// A state from stored parts. What was open is joined by key, as after a merge.
    pub(crate) fn from_parts(config: Config, width: usize, lane: Lane, edges: Vec<Fragment>) -> Self {
        State { config, lanes: vec![lane], first: None, last: None, edges, width, failed: false }
    }
}
