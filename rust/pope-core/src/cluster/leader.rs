//! Greedy leaders (Butina 1999): the densest points lead, every other follows the leader most similar to it.
//!
//! 1. The density of a point is the number of rows at least as similar to it as the threshold.
//! 2. Points are visited by decreasing density, ties by content. One that is not within the threshold of an earlier leader
//!    becomes a leader.
//! 3. Every point joins the leader most similar to it, of equally similar ones the one found first.
//!
//! Memory grows with the number of points only, so there is no largest prompt. Leaders are less similar to each other
//! than the threshold, members at least that similar to their leader. Partitions of different thresholds need not be
//! nested.

use std::sync::Mutex;

use super::Crew;
use super::chain::stride;
use super::gram::{BLOCK, Embeddings};
use super::matrix::similarities;
use super::points::{Points, Side};
use crate::error::Result;
use crate::par::for_each_task;

/// A run of the algorithm; reused from prompt to prompt.
#[derive(Debug, Default)]
pub(super) struct Leaders {
    /// The leader of each point.
    pub leader: Vec<u32>,
    /// Its similarity.
    best: Vec<f64>,
    density: Vec<f64>,
    order: Vec<u32>,
}

/// Offer a leader to points: those more similar to it than to the leader they have take it.
#[inline(always)]
fn offer(leader: u32, row: &[f64], threshold: f64, own: &mut [u32], best: &mut [f64]) {
    for ((best, own), &s) in best.iter_mut().zip(own).zip(row) {
        if s >= threshold && s > *best {
            *best = s;
            *own = leader;
        }
    }
}

impl Leaders {
    fn start(&mut self, density: impl Iterator<Item = f64>) {
        self.density.clear();
        self.density.extend(density);
        let n = self.density.len();
        self.order.clear();
        self.order.extend(0..n as u32);
        let density = &self.density;
        self.order.sort_unstable_by(|&a, &b| density[b as usize].total_cmp(&density[a as usize]).then(a.cmp(&b)));
        self.leader.clear();
        self.leader.resize(n, 0);
        self.best.clear();
        self.best.resize(n, f64::NEG_INFINITY);
    }

    /// Leaders from a matrix of similarities.
    pub fn lead_by_matrix(&mut self, matrix: &[f64], weight: &[f64], threshold: f64) {
        let n = weight.len();
        let rows = || matrix.chunks(stride(n).max(1)).take(n);
        let density = |row: &[f64]| row.iter().zip(weight).map(|(&s, &w)| if s >= threshold { w } else { 0.0 }).sum();
        self.start(rows().map(density));
        for i in 0..n {
            let point = self.order[i] as usize;
            if self.best[point] < threshold {
                let row = &matrix[point * stride(n)..][..n];
                offer(point as u32, row, threshold, &mut self.leader, &mut self.best);
            }
        }
    }

    /// Leaders without a matrix: similarities are computed twice, in blocks.
    pub fn lead_by_points(
        &mut self,
        points: &Points,
        embeddings: Embeddings<'_>,
        density: &[f64],
        threshold: f64,
        crew: &mut Crew<'_>,
    ) -> Result<()> {
        let embeddings = points.usable(embeddings);
        self.start(density.iter().copied());
        let order = core::mem::take(&mut self.order);
        let mut visit = order.iter().copied();
        loop {
            // The next points that no leader holds; the earlier of them may hold the later.
            let candidates: Vec<u32> =
                visit.by_ref().filter(|&p| self.best[p as usize] < threshold).take(BLOCK).collect();
            if candidates.is_empty() {
                break;
            }
            let leaders = independent(points, embeddings, &candidates, threshold);
            self.follow(points, embeddings, &leaders, threshold, crew)?;
        }
        self.order = order;
        Ok(())
    }

    /// Offer new leaders to all points.
    fn follow(
        &mut self,
        points: &Points,
        embeddings: Embeddings<'_>,
        leaders: &[u32],
        threshold: f64,
        crew: &mut Crew<'_>,
    ) -> Result<()> {
        const PART: usize = 16 * BLOCK;
        let (row, inverse) = points.gather(leaders);
        let left = Side { row: &row, inverse: &inverse };
        let parts: Vec<_> = self.leader.chunks_mut(PART).zip(self.best.chunks_mut(PART)).map(Mutex::new).collect();
        let mut workers: Vec<_> = (0..crew.threads).map(|_| (Vec::new(), vec![0.0; BLOCK * BLOCK])).collect();
        for_each_task(&mut workers, parts.len(), crew.interrupt, |(dots, cells), task| {
            let (own, best) = &mut *parts[task].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (block, (own, best)) in own.chunks_mut(BLOCK).zip(best.chunks_mut(BLOCK)).enumerate() {
                let start = task * PART + block * BLOCK;
                let right = points.side(start..start + own.len());
                similarities(embeddings, left, right, false, dots, (cells, BLOCK));
                for (&leader, row) in leaders.iter().zip(cells.chunks(BLOCK)) {
                    offer(leader, row, threshold, own, best);
                }
            }
            Ok(())
        })
    }
}

/// Those of `candidates` that are not within the threshold of an earlier one that is kept.
fn independent(points: &Points, embeddings: Embeddings<'_>, candidates: &[u32], threshold: f64) -> Vec<u32> {
    let (row, inverse) = points.gather(candidates);
    let side = Side { row: &row, inverse: &inverse };
    let n = candidates.len();
    let mut cells = vec![0.0; n * n];
    similarities(embeddings, side, side, false, &mut Vec::new(), (&mut cells, n));
    let mut kept: Vec<usize> = Vec::new();
    for i in 0..n {
        if kept.iter().all(|&k| cells[k * n + i] < threshold) {
            kept.push(i);
        }
    }
    kept.into_iter().map(|i| candidates[i]).collect()
}

/// Density of every point at every threshold, `[threshold][point]`, without a matrix.
pub(super) fn densities(
    points: &Points,
    embeddings: Embeddings<'_>,
    thresholds: &[(usize, f64)],
    crew: &mut Crew<'_>,
) -> Result<Vec<Vec<f64>>> {
    struct Counter {
        dots: Vec<f32>,
        cells: Vec<f64>,
        density: Vec<Vec<f64>>,
    }
    let embeddings = points.usable(embeddings);
    let n = points.len();
    let blocks = n.div_ceil(BLOCK);
    let block = |b: usize| b * BLOCK..n.min((b + 1) * BLOCK);
    let counter =
        || Counter { dots: Vec::new(), cells: vec![0.0; BLOCK * BLOCK], density: vec![vec![0.0; n]; thresholds.len()] };
    let mut workers: Vec<_> = (0..crew.threads).map(|_| counter()).collect();
    for_each_task(&mut workers, blocks, crew.interrupt, |worker, i| {
        let left = block(i);
        for j in i..blocks {
            let right = block(j);
            let (a, b) = (points.side(left.clone()), points.side(right.clone()));
            similarities(embeddings, a, b, false, &mut worker.dots, (&mut worker.cells, BLOCK));
            for (&(_, threshold), density) in thresholds.iter().zip(&mut worker.density) {
                for (p, row) in left.clone().zip(worker.cells.chunks(BLOCK)) {
                    let mut own = 0.0;
                    for (k, &s) in right.clone().zip(row) {
                        let near = if s >= threshold { 1.0 } else { 0.0 };
                        own += near * points.weight[k];
                        density[k] += if i == j { 0.0 } else { near * points.weight[p] };
                    }
                    density[p] += own;
                }
            }
        }
        Ok(())
    })?;
    // Sums of counts: exact in any order.
    let mut workers = workers.into_iter();
    let mut total = workers.next().map(|w| w.density).unwrap_or_default();
    for worker in workers {
        for (sum, part) in total.iter_mut().flatten().zip(worker.density.iter().flatten()) {
            *sum += part;
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{crowd, points_of};
    use crate::par::Uninterrupted;

    #[test]
    fn the_densest_lead() {
        // A chain a - b - c - d - e in which only neighbors are similar: b and d have most neighbors beside c, which comes
        // third by content and second by order; of the three, b is first.
        let s = |i: usize, j: usize| [1.0, 0.7, 0.1][i.abs_diff(j).min(2)];
        let matrix: Vec<f64> = (0..5).flat_map(|i| (0..8).map(move |j| if j < 5 { s(i, j) } else { 0.0 })).collect();
        let mut leaders = Leaders::default();
        leaders.lead_by_matrix(&matrix, &[1.0; 5], 0.5);
        assert_eq!(leaders.leader, [1, 1, 1, 3, 3]);
        // Many copies of e make d the densest, then e, which d takes; b is left, and c stays with d.
        leaders.lead_by_matrix(&matrix, &[1.0, 1.0, 1.0, 1.0, 9.0], 0.5);
        assert_eq!(leaders.leader, [1, 1, 3, 3, 3]);
        leaders.lead_by_matrix(&matrix, &[1.0; 5], 0.8);
        assert_eq!(leaders.leader, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_point_joins_the_most_similar_leader() {
        // b and d lead; c is within the threshold of both and nearer to the one found later.
        let mut matrix = vec![0.0; 5 * 8];
        for (i, j, s) in [(0, 1, 0.9), (1, 2, 0.6), (2, 3, 0.7), (3, 4, 0.9), (0, 0, 1.0), (1, 1, 1.0)] {
            matrix[i * 8 + j] = s;
            matrix[j * 8 + i] = s;
        }
        (2..5).for_each(|i| matrix[i * 8 + i] = 1.0);
        let mut leaders = Leaders::default();
        leaders.lead_by_matrix(&matrix, &[1.0, 2.0, 1.0, 1.0, 1.0], 0.5);
        assert_eq!(leaders.leader, [1, 1, 3, 3, 3]);
    }

    #[test]
    fn with_and_without_a_matrix() {
        let rows = crowd(300, 20, 12);
        let embeddings = Embeddings { values: &rows, dims: 20 };
        let (points, matrix) = points_of(embeddings);
        for threads in [1, 3] {
            for threshold in [-1.0, 0.2, 0.5, 0.9] {
                let mut crew = Crew { threads, interrupt: &mut Uninterrupted };
                let density = densities(&points, embeddings, &[(0, threshold)], &mut crew).unwrap();
                let (mut found, mut expected) = (Leaders::default(), Leaders::default());
                found.lead_by_points(&points, embeddings, &density[0], threshold, &mut crew).unwrap();
                expected.lead_by_matrix(&matrix, &points.weight, threshold);
                assert_eq!(found.density, expected.density);
                assert_eq!(found.leader, expected.leader);
            }
        }
    }
}
