//! A first look at a log in one pass: the jobs that data-frame tools are used for, fused.
//!
//! Row-level importance sampling with a prompt-clustered error, and the plug-in entropy of each prompt's
//! self-normalized cluster masses. The latter is what practitioners compute; it is badly biased for few responses per
//! prompt (theory 2.2), which is why an evaluation reports the unbiased family instead.

use crate::batch::{self, Floats, Ints, mark_starts};
use crate::error::{Error, Result};
use crate::field::record;
use crate::fixed::Fixed;
use crate::math;
use crate::par::{Interrupt, for_each_task};
use crate::simd::multiversion;
use crate::slots::{DIRECT, Slots};
use crate::sum::ExactSum;

const CHUNK: usize = 1024;
const TASK: usize = 1 << 16;
/// Prompts that wait before their values are summed.
const FLUSH: usize = 512;
/// Per prompt: weight, weighted reward, squares and product of these, clipped, squared weight, entropy and its square.
const COLUMNS: usize = 9;

record! {
    /// Result of [`prompt_scan`].
    #[derive(Clone, Debug)]
    pub struct Scan {
        /// `mean w r` over rows.
        ips: f64,
        /// `sum w r / sum w`.
        snips: f64,
        /// `mean min(w, clip) r`.
        clipped_ips: f64,
        /// `(sum w)^2 / sum w^2` over rows.
        ess: f64,
        /// Largest weight.
        max_weight: f64,
        /// Standard error of `snips`, clustered by prompt.
        snips_standard_error: f64,
        /// Mean plug-in entropy of the prompts' cluster masses (nats).
        entropy_mean: Option<f64>,
        /// Its variance over prompts.
        entropy_variance: Option<f64>,
        /// Rows.
        n_rows: usize,
        /// Prompts.
        n_prompts: u64,
    }
}

/// The columns of a scan; rows of a prompt stand together.
#[derive(Clone, Copy)]
pub struct ScanColumns<'a> {
    /// Prompt keys.
    pub prompt: &'a [i64],
    /// Log-probabilities under the target.
    pub target: Floats<'a>,
    /// Log-probabilities under the logger.
    pub behavior: Floats<'a>,
    /// Rewards in reward units.
    pub reward: Floats<'a>,
    /// Cluster keys.
    pub cluster: Option<Ints<'a>>,
    /// Weights are clipped here for `clipped_ips`.
    pub clip: f64,
}

#[derive(Default)]
struct Worker {
    sums: [ExactSum; COLUMNS],
    prompts: u64,
    max: f64,
    slots: Slots,
    buffers: Buffers,
}

#[derive(Default)]
struct Buffers {
    b: Vec<f64>,
    w: Vec<f64>,
    l: Vec<f64>,
    r: Vec<f64>,
    slot: Vec<u32>,
    starts: Vec<usize>,
    columns: [Vec<f64>; COLUMNS],
    table: Vec<i64>,
    mass: Vec<f64>,
    log: Vec<f64>,
    ends: Vec<usize>,
    others: Vec<u32>,
}

/// Scan a log.
pub fn prompt_scan(columns: ScanColumns<'_>, threads: usize, interrupt: &mut dyn Interrupt) -> Result<Scan> {
    let n = columns.prompt.len();
    let lengths =
        [columns.target.len(), columns.behavior.len(), columns.reward.len(), columns.cluster.map_or(n, |c| c.len())];
    if lengths.iter().any(|&l| l != n) {
        return Err(Error::Shape(format!(
            "columns must be equally long; 'prompt_id' has {n} rows, the others {lengths:?}"
        )));
    }
    if n == 0 {
        return Err(Error::Shape("the log has no rows".into()));
    }
    let edge = |task: usize| {
        let mut at = (task * TASK).min(n);
        while task > 0 && at < n && columns.prompt[at] == columns.prompt[at - 1] {
            at += 1;
        }
        at
    };
    let mut workers: Vec<Worker> = (0..threads.max(1)).map(|_| Worker::default()).collect();
    for_each_task(&mut workers, n.div_ceil(TASK), interrupt, |worker, task| {
        let (mut row, end) = (edge(task), edge(task + 1));
        while row < end {
            let mut stop = (row + CHUNK).min(end);
            while stop < end && columns.prompt[stop] == columns.prompt[stop - 1] {
                stop += 1;
            }
            worker.chunk(&columns, row, stop)?;
            row = stop;
        }
        Ok(())
    })?;
    let mut total = Worker::default();
    for worker in &mut workers {
        worker.flush();
        crate::totals::merge_sums(&mut total.sums, &worker.sums);
        total.prompts += worker.prompts;
        total.max = total.max.max(worker.max);
    }
    let [w, wr, ww, wwr, wrwr, clipped, squares, h, hh] = total.sums.map(|sum| sum.value());
    let (rows, prompts) = (n as f64, total.prompts as f64);
    let v = wr / w;
    let residual = (wrwr - 2.0 * v * wwr + v * v * ww).max(0.0) * prompts / (prompts - 1.0);
    let mean = h / prompts;
    let has = columns.cluster.is_some();
    Ok(Scan {
        ips: wr / rows,
        snips: v,
        clipped_ips: clipped / rows,
        ess: w * w / squares,
        max_weight: total.max,
        snips_standard_error: residual.sqrt() / w,
        entropy_mean: has.then_some(mean),
        entropy_variance: has.then(|| (hh - prompts * mean * mean) / (prompts - 1.0)),
        n_rows: n,
        n_prompts: total.prompts,
    })
}

impl Worker {
    /// Bring what waits into the sums.
    fn flush(&mut self) {
        add_columns(&self.buffers.columns, &mut self.sums);
        self.buffers.columns.iter_mut().for_each(Vec::clear);
    }

    fn chunk(&mut self, columns: &ScanColumns<'_>, start: usize, end: usize) -> Result<()> {
        let n = end - start;
        let b = &mut self.buffers;
        for buffer in [&mut b.b, &mut b.w, &mut b.l, &mut b.r] {
            buffer.resize(n, 0.0);
        }
        batch::load_behavior(columns.behavior, start, &mut b.b)?;
        batch::load_target(columns.target, "target", start, &mut b.l)?;
        batch::load_finite(columns.reward, "reward", start, &mut b.r)?;
        batch::log_weights(&mut b.l, &b.b, &mut b.w);
        b.slot.clear();
        if let Some(cluster) = columns.cluster {
            self.slots.load(cluster, start, end, &mut b.slot);
        }
        b.table.resize(self.slots.len(), 0);
        mark_starts(Some(&columns.prompt[start..end]), n, &mut b.starts);
        self.prompts += b.starts.len() as u64 - 1;
        let max = scan_chunk(b, columns.clip, &self.slots);
        self.max = self.max.max(max);
        if b.columns[0].len() >= FLUSH {
            self.flush();
        }
        Ok(())
    }
}

multiversion! {
    fn add_columns(columns: &[Vec<f64>; COLUMNS], sums: &mut [ExactSum; COLUMNS]) {
        for (sum, column) in sums.iter_mut().zip(columns) {
            sum.add_slice(column);
        }
    }
}

multiversion! {
    fn scan_chunk(b: &mut Buffers, clip: f64, slots: &Slots) -> f64 {
        let has_cluster = !b.slot.is_empty();
        let mut max = 0.0f64;
        b.mass.clear();
        b.ends.clear();
        for u in 0..b.starts.len() - 1 {
            let (from, to) = (b.starts[u], b.starts[u + 1]);
            let (w, r) = (&b.w[from..to], &b.r[from..to]);
            let (mut largest, mut reach) = (0.0f64, 0.0f64);
            for (&w, &r) in w.iter().zip(r) {
                largest = if w > largest { w } else { largest };
                reach = if r.abs() > reach { r.abs() } else { reach };
            }
            max = if largest > max { largest } else { max };
            let exponent = if largest > 0.0 { math::exponent(largest) + 1 } else { 0 };
            let shrink = math::pow2(i64::from((-exponent).clamp(-1000, 1000)));
            let grow = math::pow2(i64::from(exponent.clamp(-1000, 1000)));
            let limit = clip * shrink;
            let draws = (to - from) as f64;
            let fixed = Fixed::new(draws, 0);
            let fixed_r = Fixed::new(draws, if reach > 0.0 { math::exponent(reach) + 1 } else { 0 });
            let (mut sw, mut swr, mut scr, mut sww) = (0i64, 0i64, 0i64, 0i64);
            let mut direct = 0u64;
            for k in 0..w.len() {
                let w = w[k] * shrink;
                let cut = if w < limit { w } else { limit };
                let q = fixed.encode(w);
                sw += q;
                swr += fixed_r.encode(w * r[k]);
                scr += fixed_r.encode(cut * r[k]);
                sww += fixed.encode(w * w);
                if has_cluster {
                    let slot = b.slot[from + k];
                    if (slot as usize) < DIRECT {
                        direct |= 1 << slot;
                    } else if !b.others.contains(&slot) {
                        b.others.push(slot);
                    }
                    b.table[slot as usize] += q;
                }
            }
            let total = fixed.decode(sw);
            let (sw, swr) = (total * grow, fixed_r.decode(swr) * grow);
            let values = [sw, swr, sw * sw, sw * swr, swr * swr, fixed_r.decode(scr) * grow, fixed.decode(sww) * grow * grow];
            for (column, x) in b.columns.iter_mut().zip(values) {
                column.push(x);
            }
            if has_cluster {
                while direct != 0 {
                    let slot = direct.trailing_zeros() as usize;
                    direct &= direct - 1;
                    b.mass.push(fixed.decode(core::mem::take(&mut b.table[slot])));
                }
                if !b.others.is_empty() {
                    b.others.sort_unstable_by_key(|&slot| slots.key(slot));
                    for &slot in &b.others {
                        b.mass.push(fixed.decode(core::mem::take(&mut b.table[slot as usize])));
                    }
                    b.others.clear();
                }
                b.mass.push(total);
                b.ends.push(b.mass.len());
            }
        }
        if has_cluster {
            b.log.resize(b.mass.len(), 0.0);
            for (log, &s) in b.log.iter_mut().zip(&b.mass) {
                *log = math::x_ln_x(s);
            }
            let mut from = 0;
            for &end in &b.ends {
                // The last entry is the prompt's total: H = (W ln W - sum S ln S) / W.
                let w = b.mass[end - 1];
                let sum: f64 = b.log[from..end - 1].iter().sum();
                let h = if w > 0.0 { (b.log[end - 1] - sum) / w } else { 0.0 };
                b.columns[7].push(h);
                b.columns[8].push(h * h);
                from = end;
            }
        }
        max
    }
}

/// Watches the order of unit keys for one that comes back after its run has ended.
///
/// Ascending keys (the usual row numbers) are remembered as ranges, in next to no memory; others in a hash set.
#[derive(Clone, Debug, Default)]
pub struct UnitScan {
    last: Option<i64>,
    /// Closed keys, as disjoint ascending ranges, while keys ascend.
    ranges: Vec<(i64, i64)>,
    rest: std::collections::HashSet<i64, crate::hash::BuildMix>,
    units: u64,
}

impl UnitScan {
    /// Read the next keys; the index of the first row whose key had been left before.
    pub fn feed(&mut self, keys: &[i64]) -> Option<usize> {
        for (row, &key) in keys.iter().enumerate() {
            let Some(last) = self.last else {
                self.last = Some(key);
                self.units = 1;
                continue;
            };
            if key == last {
                continue;
            }
            if key > last && self.rest.is_empty() {
                match self.ranges.last_mut() {
                    Some((_, end)) if *end == last.wrapping_sub(1) => *end = last,
                    _ => self.ranges.push((last, last)),
                }
            } else {
                self.rest.insert(last);
                if self.seen(key) {
                    return Some(row);
                }
            }
            self.units += 1;
            self.last = Some(key);
        }
        None
    }

    fn seen(&self, key: i64) -> bool {
        let after = self.ranges.partition_point(|&(start, _)| start <= key);
        (after > 0 && key <= self.ranges[after - 1].1) || self.rest.contains(&key)
    }

    /// Units begun so far.
    pub fn units(&self) -> u64 {
        self.units
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::par::Uninterrupted;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        let ln = |x: f64| x.ln();
        let columns = ScanColumns {
            prompt: &[1, 1, 2, 2],
            target: Floats::F64(&[ln(0.2), ln(0.1), ln(0.4), f64::NEG_INFINITY]),
            behavior: Floats::F64(&[ln(0.1), ln(0.1), ln(0.1), ln(0.5)]),
            reward: Floats::F64(&[1.0, 0.0, 3.0, 5.0]),
            cluster: Some(Ints::I64(&[5, -9, 5, 900])),
            clip: 3.0,
        };
        let s = prompt_scan(columns, 2, &mut Uninterrupted).unwrap();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(s.ips, 14.0 / 4.0);
        close(s.snips, 2.0);
        close(s.clipped_ips, 11.0 / 4.0);
        close(s.ess, 49.0 / 21.0);
        close(s.max_weight, 4.0);
        close(s.snips_standard_error, (2.0f64 * (16.0 + 16.0)).sqrt() / 7.0);
        let h = -(2.0 / 3.0 * ln(2.0 / 3.0) + 1.0 / 3.0 * ln(1.0 / 3.0));
        close(s.entropy_mean.unwrap(), h / 2.0);
        close(s.entropy_variance.unwrap(), h * h / 2.0);
        assert_eq!((s.n_rows, s.n_prompts), (4, 2));
    }

    proptest! {
        #[test]
        fn a_key_that_comes_back_is_found(keys in prop::collection::vec(0i64..12, 0..40), cut in 0usize..40) {
            let mut expected = None;
            for i in 1..keys.len() {
                if keys[i] != keys[i - 1] && keys[..i].contains(&keys[i]) {
                    expected = Some(i);
                    break;
                }
            }
            let mut scan = UnitScan::default();
            let cut = cut.min(keys.len());
            let found = scan.feed(&keys[..cut]).or_else(|| scan.feed(&keys[cut..]).map(|i| i + cut));
            prop_assert_eq!(found, expected);
        }
    }
}
