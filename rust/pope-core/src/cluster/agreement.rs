//! How many clusters labels have, and how well neighboring labelings of the same rows agree.

use super::tasks::{check_offsets, tasks};
use crate::error::{Error, Result};
use crate::par::{Interrupt, for_each_task};
use crate::sum::ExactSum;

/// Labelings side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// Number of clusters of each labeling, over all prompts.
    pub clusters: Vec<i64>,
    /// Adjusted Rand index between each labeling and the next.
    pub rand: Vec<f64>,
}

/// A labeling and the next one: counts of pairs of rows of one prompt, summed over prompts.
#[derive(Clone, Default)]
struct Pairs {
    clusters: i64,
    /// Together in this labeling.
    own: u128,
    /// Together in both.
    both: u128,
    /// What `both` would be by chance.
    chance: ExactSum,
}

#[derive(Clone)]
struct Worker {
    pairs: Vec<Pairs>,
    /// Pairs together within the prompt.
    own: Vec<u64>,
    sorted: Vec<u64>,
}

fn pairs(n: usize) -> u64 {
    (n as u64 * (n as u64).saturating_sub(1)) / 2
}

/// Runs of equal keys among sorted numbers: how many, and the pairs within.
fn runs(sorted: &[u64], key: impl Fn(u64) -> u64) -> (i64, u64) {
    sorted.chunk_by(|&a, &b| key(a) == key(b)).fold((0, 0), |(n, sum), run| (n + 1, sum + pairs(run.len())))
}

impl Worker {
    fn prompt(&mut self, labels: &[&[i32]], rows: core::ops::Range<usize>) {
        let n = rows.len();
        for (t, own) in labels.iter().enumerate() {
            let own = &own[rows.clone()];
            let next = labels.get(t + 1).map_or(own, |next| &next[rows.clone()]);
            self.sorted.clear();
            self.sorted.extend(own.iter().zip(next).map(|(&a, &b)| u64::from(a as u32) << 32 | u64::from(b as u32)));
            self.sorted.sort_unstable();
            let (clusters, together) = runs(&self.sorted, |x| x >> 32);
            self.pairs[t].clusters += clusters;
            self.pairs[t].own += u128::from(together);
            self.pairs[t].both += u128::from(runs(&self.sorted, |x| x).1);
            self.own[t] = together;
        }
        if n > 1 {
            let all = pairs(n) as f64;
            for (pairs, own) in self.pairs.iter_mut().zip(self.own.windows(2)) {
                pairs.chance.add(own[0] as f64 * own[1] as f64 / all);
            }
        }
    }
}

/// Compare each labeling of `labels` with the next: labeling after labeling, each with a label for every row.
///
/// Only pairs of rows of one prompt count. The adjusted Rand index (Hubert & Arabie 1985) is
/// `(sum I - sum E) / (sum M - sum E)` with sums over prompts: `I` pairs together in both labelings, `E` their expected
/// number if the labels of each prompt were dealt out at random, `M` the mean of the pairs together in one and in the
/// other. It is 1 where the two can only agree (0 / 0).
pub fn compare_labels(
    offsets: &[i64],
    labels: &[i32],
    labelings: usize,
    threads: usize,
    interrupt: &mut dyn Interrupt,
) -> Result<Agreement> {
    let rows = labels.len() / labelings.max(1);
    if labelings == 0 || rows * labelings != labels.len() {
        return Err(Error::Shape(format!("{} labels are no {labelings} labelings", labels.len())));
    }
    check_offsets(offsets, rows)?;
    let labels: Vec<&[i32]> = (0..labelings).map(|t| &labels[t * rows..(t + 1) * rows]).collect();
    let worker = Worker { pairs: vec![Pairs::default(); labelings], own: vec![0; labelings], sorted: Vec::new() };
    let mut workers = vec![worker; threads.max(1)];
    let tasks = tasks(offsets);
    for_each_task(&mut workers, tasks.len(), interrupt, |worker, task| {
        let prompts = tasks[task].clone();
        offsets[prompts.start..=prompts.end]
            .windows(2)
            .for_each(|w| worker.prompt(&labels, w[0] as usize..w[1] as usize));
        Ok(())
    })?;
    let mut total = vec![Pairs::default(); labelings];
    for worker in &workers {
        for (sum, part) in total.iter_mut().zip(&worker.pairs) {
            sum.clusters += part.clusters;
            sum.own += part.own;
            sum.both += part.both;
            sum.chance.merge(&part.chance);
        }
    }
    let rand = total.windows(2).map(|w| {
        let (chance, most) = (w[0].chance.value(), (w[0].own + w[1].own) as f64 / 2.0);
        if most == chance { 1.0 } else { (w[0].both as f64 - chance) / (most - chance) }
    });
    Ok(Agreement { clusters: total.iter().map(|p| p.clusters).collect(), rand: rand.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::par::Uninterrupted;

    fn rand(offsets: &[i64], a: &[i32], b: &[i32]) -> Agreement {
        compare_labels(offsets, &[a, b].concat(), 2, 2, &mut Uninterrupted).unwrap()
    }

    #[test]
    fn by_hand() {
        // One prompt: 2 + 1 pairs against 1 + 1 pairs of 10, one in common; chance 3 * 2 / 10.
        let found = rand(&[0, 5], &[0, 0, 1, 1, 2], &[7, 7, -1, 3, 3]);
        assert_eq!(found.clusters, [3, 3]);
        assert!((found.rand[0] - (1.0 - 0.4) / (2.0 - 0.4)).abs() < 1e-15);
        // Pairs of different prompts do not count, and labels are names within a prompt.
        let found = rand(&[0, 2, 4], &[0, 0, 0, 1], &[1, 1, 0, 0]);
        assert_eq!(found.clusters, [3, 2]);
        assert!((found.rand[0] - (1.0 - 1.0) / (1.5 - 1.0)).abs() < 1e-15);
    }

    #[test]
    fn nothing_to_disagree_on() {
        assert_eq!(rand(&[0, 3], &[0, 1, 2], &[5, 4, 3]).rand, [1.0]);
        assert_eq!(rand(&[0, 3], &[0, 0, 0], &[0, 1, 2]).rand, [0.0]);
        assert_eq!(rand(&[0, 1, 1, 2], &[0, 0], &[1, 9]).rand, [1.0]);
        assert_eq!(rand(&[0], &[], &[]), Agreement { clusters: vec![0, 0], rand: vec![1.0] });
    }

    #[test]
    fn shapes_are_checked() {
        assert!(compare_labels(&[0, 2], &[0, 1, 2], 2, 1, &mut Uninterrupted).is_err());
        assert!(compare_labels(&[0, 2], &[], 0, 1, &mut Uninterrupted).is_err());
        assert!(compare_labels(&[0, 3], &[0, 1, 2, 3], 2, 1, &mut Uninterrupted).is_err());
    }
}
