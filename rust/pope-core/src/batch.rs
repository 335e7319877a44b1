//! A batch of log rows as columns, and the checks that every value must pass.

use crate::error::{Error, Result};
use crate::math;
use crate::simd::multiversion;

/// Log-probabilities may exceed 0 by this much (nats): rounding of a single-precision sum.
pub const LOGPROB_SLACK: f64 = 1e-4;
/// Finite log-probabilities below this are masks, not measurements.
pub const LOGPROB_FLOOR: f64 = -1e6;
/// Reward predictions may lie this many reward ranges outside the reward range.
pub const BASELINE_REACH: f64 = 1000.0;

/// A column of floats.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Double precision.
    F64(&'a [f64]),
}

/// A column of integers.
#[derive(Clone, Copy, Debug)]
pub enum Ints<'a> {
    /// 32 bits.
    I32(&'a [i32]),
    /// 64 bits.
    I64(&'a [i64]),
}

impl Floats<'_> {
    /// Number of rows.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match self {
            Floats::F32(x) => x.len(),
            Floats::F64(x) => x.len(),
        }
    }

    /// The value in a row.
    pub fn get(&self, row: usize) -> f64 {
        match self {
            Floats::F32(x) => f64::from(x[row]),
            Floats::F64(x) => x[row],
        }
    }
}

impl Ints<'_> {
    /// Number of rows.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match self {
            Ints::I32(x) => x.len(),
            Ints::I64(x) => x.len(),
        }
    }

    /// The value in a row.
    #[inline(always)]
    pub fn get(&self, row: usize) -> i64 {
        match self {
            Ints::I32(x) => i64::from(x[row]),
            Ints::I64(x) => x[row],
        }
    }
}

/// A column of vectors of one width, row after row.
#[derive(Clone, Copy, Debug)]
pub struct Vectors<'a> {
    /// All elements.
    pub values: Floats<'a>,
    /// Elements per row.
    pub width: usize,
}

impl Vectors<'_> {
    /// An element.
    pub fn get(&self, row: usize, i: usize) -> f64 {
        self.values.get(row * self.width + i)
    }
}

/// Columns of equal length; see the log schema for their meaning.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    /// Key of the row's unit; rows of a unit stand together. `None`: every row is a unit.
    pub unit: Option<&'a [i64]>,
    /// Log-probability of the response under the logger (nats).
    pub behavior: Floats<'a>,
    /// The same under each target policy.
    pub targets: Vec<Floats<'a>>,
    /// Reward in reward units.
    pub reward: Floats<'a>,
    /// Cluster key.
    pub cluster: Option<Ints<'a>>,
    /// Annotator group key.
    pub group: Option<Ints<'a>>,
    /// Multiplicity.
    pub count: Option<&'a [f64]>,
    /// Number of tokens of the response.
    pub tokens: Option<&'a [f64]>,
    /// A reward model's prediction for the row.
    pub baseline: Option<&'a [f64]>,
    /// The prediction's mean under each target policy, given the prompt.
    pub baseline_means: Vec<&'a [f64]>,
    /// Embedding of the response.
    pub embedding: Option<Vectors<'a>>,
    /// Number of the first row in the whole log.
    pub first_row: u64,
}

impl Batch<'_> {
    /// Number of rows.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.reward.len()
    }

    /// All columns must be as long as the rewards.
    pub fn check_lengths(&self) -> Result<()> {
        let n = self.len();
        let check = |name: &str, len: Option<usize>| match len {
            Some(len) if len != n => {
                let problem = format!("{len} rows where 'reward' has {n}; columns must be equally long");
                Err(Error::Length { column: name.to_owned(), problem })
            }
            _ => Ok(()),
        };
        check("unit_key", self.unit.map(<[i64]>::len))?;
        check("behavior_logprob", Some(self.behavior.len()))?;
        self.targets.iter().try_for_each(|t| check("target_logprob", Some(t.len())))?;
        check("cluster", self.cluster.as_ref().map(Ints::len))?;
        check("group", self.group.as_ref().map(Ints::len))?;
        check("count", self.count.map(<[f64]>::len))?;
        check("num_tokens", self.tokens.map(<[f64]>::len))?;
        check("baseline", self.baseline.map(<[f64]>::len))?;
        self.baseline_means.iter().try_for_each(|b| check("baseline_mean", Some(b.len())))?;
        if let Some(vectors) = self.embedding {
            if vectors.width == 0 {
                return Err(Error::Length { column: "embedding".into(), problem: "vectors without elements".into() });
            }
            check("embedding", Some(vectors.values.len() / vectors.width))?;
        }
        Ok(())
    }
}

fn fault(column: &str, row: usize, problem: String, remedy: &'static str) -> Error {
    Error::Value { column: column.to_owned(), row, problem, remedy }
}

/// The first row whose value fails a check, as an error made by `report`.
fn first_bad(xs: &[f64], row: usize, bad: impl Fn(f64) -> bool, report: impl Fn(usize, f64) -> Error) -> Result<()> {
    xs.iter().position(|&x| bad(x)).map_or(Ok(()), |i| Err(report(row + i, xs[i])))
}

multiversion! {
    /// Widen to double precision and say whether all values lie in `[low, high]` (false for NaN).
    fn widen(source: &[f32], low: f64, high: f64, out: &mut [f64]) -> bool {
        let mut good = true;
        for (o, &x) in out.iter_mut().zip(source) {
            let x = f64::from(x);
            *o = x;
            good &= (x >= low) & (x <= high);
        }
        good
    }
}

multiversion! {
    /// Copy and check likewise.
    fn copy(source: &[f64], low: f64, high: f64, out: &mut [f64]) -> bool {
        let mut good = true;
        for (o, &x) in out.iter_mut().zip(source) {
            *o = x;
            good &= (x >= low) & (x <= high);
        }
        good
    }
}

impl Floats<'_> {
    fn load(self, start: usize, low: f64, high: f64, out: &mut [f64]) -> bool {
        match self {
            Floats::F32(x) => widen(&x[start..start + out.len()], low, high, out),
            Floats::F64(x) => copy(&x[start..start + out.len()], low, high, out),
        }
    }
}

/// Load behavior log-probabilities of rows `start ..`.
pub fn load_behavior(column: Floats<'_>, start: usize, out: &mut [f64]) -> Result<()> {
    if column.load(start, LOGPROB_FLOOR, LOGPROB_SLACK, out) {
        return Ok(());
    }
    let bad = |x: f64| !(x >= LOGPROB_FLOOR) || x > LOGPROB_SLACK;
    first_bad(out, start, bad, |row, x| logprob_fault("behavior_logprob", row, x))
}

/// Load one target policy's log-probabilities: `-inf` is allowed and means weight 0.
pub fn load_target(column: Floats<'_>, name: &str, start: usize, out: &mut [f64]) -> Result<()> {
    if column.load(start, LOGPROB_FLOOR, LOGPROB_SLACK, out) {
        return Ok(());
    }
    let bad = |x: f64| x != f64::NEG_INFINITY && (!(x >= LOGPROB_FLOOR) || x > LOGPROB_SLACK);
    first_bad(out, start, bad, |row, x| logprob_fault(&format!("target_logprob/{name}"), row, x))
}

fn logprob_fault(column: &str, row: usize, x: f64) -> Error {
    if x.is_nan() {
        return fault(
            column,
            row,
            "log-probability is NaN".into(),
            "score the response again, or drop the row yourself",
        );
    }
    if x == f64::NEG_INFINITY {
        return fault(
            column,
            row,
            "the log-probability of a logged response under its own logger is -inf".into(),
            "log the probabilities of the distribution that was sampled from (after top-p, top-k and temperature)",
        );
    }
    if x < 0.0 {
        let problem = format!("log-probability {x} is below {LOGPROB_FLOOR:e} nats, which looks like a mask value");
        return fault(
            column,
            row,
            problem,
            "write -inf for an impossible response under a target policy, else score it again",
        );
    }
    let problem = format!("log-probability {x} is above 0, so its probability is above 1");
    fault(column, row, problem, "pass natural logarithms of probabilities (not probabilities, losses or logits)")
}

/// Load rewards, rescaled from `[low, high]` to [0, 1].
pub fn load_reward(column: Floats<'_>, (low, high): (f64, f64), start: usize, out: &mut [f64]) -> Result<()> {
    if !column.load(start, low, high, out) {
        first_bad(
            out,
            start,
            |x| !(x >= low) || x > high,
            |row, x| {
                if x.is_finite() {
                    let problem = format!("reward {x} is outside the reward range [{low}, {high}]");
                    fault("reward", row, problem, "declare a reward_range that holds all possible rewards")
                } else {
                    fault("reward", row, format!("reward is {x}"), "drop the row yourself or log a finite reward")
                }
            },
        )?;
    }
    let span = high - low;
    if (low, high) != (0.0, 1.0) {
        for x in out.iter_mut() {
            *x = ((*x - low) / span).clamp(0.0, 1.0);
        }
    }
    Ok(())
}

/// Load a column that may hold any finite value.
pub fn load_finite(column: Floats<'_>, name: &str, start: usize, out: &mut [f64]) -> Result<()> {
    if column.load(start, f64::MIN, f64::MAX, out) {
        return Ok(());
    }
    first_bad(
        out,
        start,
        |x| !x.is_finite(),
        |row, x| fault(name, row, format!("{name} is {x}"), "drop the row yourself or log a finite value"),
    )
}

/// Load multiplicities.
pub fn load_count(column: &[f64], start: usize, out: &mut [f64]) -> Result<()> {
    let good = |x: f64| (1.0..=9e15).contains(&x) && x.fract() == 0.0;
    out.copy_from_slice(&column[start..start + out.len()]);
    first_bad(
        out,
        start,
        |x| !good(x),
        |row, x| {
            fault(
                "count",
                row,
                format!("count {x} is not a positive whole number"),
                "drop rows that stand for no draw; round counts",
            )
        },
    )
}

/// Check token counts.
pub fn check_tokens(column: &[f64], start: usize) -> Result<()> {
    first_bad(
        column,
        start,
        |x| !(0.0..=1e12).contains(&x),
        |row, x| {
            fault(
                "num_tokens",
                row,
                format!("token count {x} is not a non-negative number"),
                "log the number of tokens of the completion",
            )
        },
    )
}

/// Load reward predictions, rescaled like rewards.
pub fn load_baseline(column: &[f64], name: &str, (low, high): (f64, f64), start: usize, out: &mut [f64]) -> Result<()> {
    let span = high - low;
    for (o, &x) in out.iter_mut().zip(&column[start..]) {
        *o = (x - low) / span;
    }
    first_bad(
        out,
        start,
        |x| !(x.abs() <= BASELINE_REACH),
        |row, x| {
            let problem = format!(
                "prediction {} is not finite or lies more than {BASELINE_REACH} reward ranges away",
                x * span + low
            );
            fault(name, row, problem, "predict rewards on the scale of the reward column")
        },
    )
}

multiversion! {
    /// Log-weights and weights from log-probabilities.
    pub fn log_weights(target: &mut [f64], behavior: &[f64], weight: &mut [f64]) {
        for ((t, &b), w) in target.iter_mut().zip(behavior).zip(weight.iter_mut()) {
            *t -= b;
            *w = math::exp(*t);
        }
    }
}

multiversion! {
    /// First rows of units, and the number of rows.
    pub fn mark_starts(unit: Option<&[i64]>, n: usize, starts: &mut Vec<usize>) {
        const BLOCK: usize = 64;
        starts.clear();
        let Some(unit) = unit else {
            starts.extend(0..=n);
            return;
        };
        starts.push(0);
        // A flag per row first, which is vector code; then only the rows that begin a unit.
        let (later, earlier) = (&unit[1..n], &unit[..n - 1]);
        let mut flags = [0u8; BLOCK];
        for (block, (later, earlier)) in later.chunks(BLOCK).zip(earlier.chunks(BLOCK)).enumerate() {
            flags.fill(0);
            for (flag, (a, b)) in flags.iter_mut().zip(later.iter().zip(earlier)) {
                *flag = u8::from(a != b);
            }
            for (word, bytes) in flags.chunks_exact(8).enumerate() {
                let mut bits = bytes.iter().rev().fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
                while bits != 0 {
                    starts.push(block * BLOCK + word * 8 + bits.trailing_zeros() as usize / 8 + 1);
                    bits &= bits - 1;
                }
            }
        }
        starts.push(n);
    }
}
