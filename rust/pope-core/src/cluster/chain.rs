//! Agglomerative clustering by nearest-neighbor chains (Murtagh 1983; Benzecri 1982): quadratic time.
//!
//! Average and complete linkage are reducible: a union is never nearer to a third cluster than the nearer of its parts
//! was. Two clusters that are each other's nearest can therefore be joined at once, and the tree is the one that joining
//! the nearest pair of all, step by step, gives.
//!
//! Ties: of equally near neighbors the one with the smallest point is taken, which is the order of pairs by (similarity,
//! smaller of the two smallest points, larger of them). Reducibility holds for that order as well, so tied
//! similarities too give the tree of the step-by-step rule. Average linkage keeps sums of similarities, which are exact
//! (see `gram`), and rounds only their quotient by the number of pairs: equal means are equal doubles.

use crate::simd::multiversion;

/// Cells per step of a vector loop; rows of a matrix are padded to a multiple.
pub(super) const PAD: usize = 8;
/// A matrix of at least so many clusters is packed when no more than this share of them is left: the cost of packing
/// stays quadratic in all, and the rows to read shrink with the clusters.
const PACK_FROM: usize = 128;
const PACK: (usize, usize) = (3, 4);

/// Two clusters become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Merge {
    /// Smallest point of the union.
    pub low: u32,
    /// Smallest point of the other part.
    pub high: u32,
    /// Their similarity; never above that of a merge which made one of the parts.
    pub height: f64,
}

/// Distance between the rows of a matrix of `n` points.
pub(super) fn stride(n: usize) -> usize {
    n.next_multiple_of(PAD)
}

/// A run of the algorithm; reused from prompt to prompt.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// Similarities, for average linkage summed over pairs of rows; every `stride(n)` cells a row.
    pub matrix: Vec<f64>,
    /// The merges in the order found: a part's before the whole's.
    pub merges: Vec<Merge>,
    /// Number of rows in each cluster (average) or 0 (complete); NaN where there is no cluster, so that no comparison
    /// ever chooses it.
    size: Vec<f64>,
    /// Similarity of the last merge within each cluster.
    height: Vec<f64>,
    /// Smallest point of each cluster; ascends.
    first: Vec<u32>,
    path: Vec<usize>,
    on_path: Vec<bool>,
    alive: usize,
}

multiversion! {
    /// Join clusters while their similarity is at least `least`; `weight` is the number of rows of each point.
    pub(super) fn agglomerate<const AVERAGE: bool>(chain: &mut Chain, weight: &[f64], least: f64) {
        chain.start::<AVERAGE>(weight);
        // Every cluster before it is gone.
        let mut begin = 0;
        loop {
            let Some(&top) = chain.path.last() else {
                while begin < chain.first.len() && chain.size[begin].is_nan() {
                    begin += 1;
                }
                if begin == chain.first.len() {
                    break;
                }
                chain.push(begin);
                continue;
            };
            let (score, nearest) = chain.nearest::<AVERAGE>(top);
            if score == f64::NEG_INFINITY || score < least {
                // The others on the path are farther still from their nearest, and unions come no nearer.
                chain.finish_path();
            } else if chain.path.len() > 1 && chain.path[chain.path.len() - 2] == nearest {
                chain.pop();
                chain.pop();
                chain.join::<AVERAGE>(top.min(nearest), top.max(nearest), score);
                if chain.first.len() >= PACK_FROM && chain.alive * PACK.1 <= chain.first.len() * PACK.0 {
                    chain.pack();
                    begin = 0;
                }
            } else if chain.on_path[nearest] {
                // Only rounding can lead back: equal quotients of unequal means. Going on from there ends, because
                // similarities ascend along a path that no merge interrupts.
                while chain.path.last() != Some(&nearest) {
                    chain.pop();
                }
            } else {
                chain.push(nearest);
            }
        }
    }
}

impl Chain {
    #[inline(always)]
    fn start<const AVERAGE: bool>(&mut self, weight: &[f64]) {
        let n = weight.len();
        let stride = stride(n);
        self.merges.clear();
        self.path.clear();
        self.on_path.clear();
        self.on_path.resize(n, false);
        self.height.clear();
        self.height.resize(n, 1.0);
        self.first.clear();
        self.first.extend(0..n as u32);
        self.alive = n;
        self.size.clear();
        self.size.extend(weight.iter().map(|&w| if AVERAGE { w } else { 0.0 }));
        self.size.resize(stride, f64::NAN);
        if AVERAGE && weight.iter().any(|&w| w != 1.0) {
            for (row, &a) in self.matrix.chunks_exact_mut(stride).zip(weight) {
                for (x, &b) in row.iter_mut().zip(weight) {
                    *x *= a * b;
                }
            }
        }
        for i in 0..n {
            self.matrix[i * stride + i] = f64::NEG_INFINITY;
        }
    }

    #[inline(always)]
    fn push(&mut self, cluster: usize) {
        self.path.push(cluster);
        self.on_path[cluster] = true;
    }

    #[inline(always)]
    fn pop(&mut self) {
        if let Some(cluster) = self.path.pop() {
            self.on_path[cluster] = false;
        }
    }

    #[inline(always)]
    fn finish_path(&mut self) {
        self.alive -= self.path.len();
        while let Some(&top) = self.path.last() {
            self.size[top] = f64::NAN;
            self.pop();
        }
    }

    /// The nearest of the other clusters, the first of them if several are.
    #[inline(always)]
    fn nearest<const AVERAGE: bool>(&self, cluster: usize) -> (f64, usize) {
        let stride = self.size.len();
        let own = self.size[cluster];
        let row = self.matrix[cluster * stride..(cluster + 1) * stride].as_chunks::<PAD>().0;
        let mut best = [f64::NEG_INFINITY; PAD];
        let mut at = [0.0f64; PAD];
        for (k, (cells, size)) in row.iter().zip(self.size.as_chunks::<PAD>().0).enumerate() {
            for l in 0..PAD {
                let score = if AVERAGE { cells[l] / (own * size[l]) } else { cells[l] + size[l] };
                let nearer = score > best[l];
                best[l] = if nearer { score } else { best[l] };
                at[l] = if nearer { k as f64 } else { at[l] };
            }
        }
        let mut most = best;
        let mut width = PAD / 2;
        while width > 0 {
            for l in 0..width {
                most[l] = if most[l + width] > most[l] { most[l + width] } else { most[l] };
            }
            width /= 2;
        }
        let mut index: [f64; PAD] =
            core::array::from_fn(|l| if best[l] == most[0] { at[l] * PAD as f64 + l as f64 } else { f64::INFINITY });
        let mut width = PAD / 2;
        while width > 0 {
            for l in 0..width {
                index[l] = if index[l + width] < index[l] { index[l + width] } else { index[l] };
            }
            width /= 2;
        }
        (most[0], index[0] as usize)
    }

    #[inline(always)]
    fn join<const AVERAGE: bool>(&mut self, low: usize, high: usize, score: f64) {
        let stride = self.size.len();
        let (before, after) = self.matrix.split_at_mut(high * stride);
        let row = &mut before[low * stride..(low + 1) * stride];
        for (a, b) in row.as_chunks_mut::<PAD>().0.iter_mut().zip(after[..stride].as_chunks::<PAD>().0) {
            for l in 0..PAD {
                let smaller = if b[l] < a[l] { b[l] } else { a[l] };
                a[l] = if AVERAGE { a[l] + b[l] } else { smaller };
            }
        }
        row[low] = f64::NEG_INFINITY;
        let clusters = self.first.len();
        for k in 0..clusters {
            self.matrix[k * stride + low] = self.matrix[low * stride + k];
        }
        let height = [self.height[low], self.height[high]].into_iter().fold(score, f64::min);
        self.merges.push(Merge { low: self.first[low], high: self.first[high], height });
        self.height[low] = height;
        self.size[low] += self.size[high];
        self.size[high] = f64::NAN;
        self.alive -= 1;
    }

    /// Leave out the clusters that are gone; the others keep their order.
    #[inline(never)]
    fn pack(&mut self) {
        let old = self.size.len();
        let kept: Vec<usize> = (0..self.first.len()).filter(|&k| !self.size[k].is_nan()).collect();
        let new = stride(kept.len());
        for (i, &from) in kept.iter().enumerate() {
            for (j, &k) in kept.iter().enumerate() {
                self.matrix[i * new + j] = self.matrix[from * old + k];
            }
            self.size[i] = self.size[from];
            self.height[i] = self.height[from];
            self.first[i] = self.first[from];
        }
        self.size.truncate(kept.len());
        self.size.resize(new, f64::NAN);
        self.height.truncate(kept.len());
        self.first.truncate(kept.len());
        for slot in &mut self.path {
            *slot = kept.binary_search(slot).unwrap_or(0);
        }
        self.on_path.clear();
        self.on_path.resize(kept.len(), false);
        self.path.iter().for_each(|&slot| self.on_path[slot] = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::Random;

    fn run(average: bool, similarity: &[Vec<f64>], weight: &[f64], least: f64) -> Vec<Merge> {
        let n = weight.len();
        let mut chain = Chain { matrix: vec![f64::NAN; n * stride(n)], ..Chain::default() };
        for i in 0..n {
            chain.matrix[i * stride(n)..][..n].copy_from_slice(&similarity[i]);
        }
        if average {
            agglomerate::<true>(&mut chain, weight, least);
        } else {
            agglomerate::<false>(&mut chain, weight, least);
        }
        let mut merges = chain.merges;
        merges.sort_by(|a, b| b.height.total_cmp(&a.height).then(a.low.cmp(&b.low)).then(a.high.cmp(&b.high)));
        merges
    }

    /// Join the nearest pair, step by step; of several, that of the smallest points.
    fn step_by_step(average: bool, similarity: &[Vec<f64>], weight: &[f64], least: f64) -> Vec<Merge> {
        let mut clusters: Vec<Vec<usize>> = (0..weight.len()).map(|i| vec![i]).collect();
        let mut merges = Vec::new();
        loop {
            let mut best: Option<(f64, usize, usize)> = None;
            for i in 0..clusters.len() {
                for j in i + 1..clusters.len() {
                    let pairs = || clusters[i].iter().flat_map(|&a| clusters[j].iter().map(move |&b| (a, b)));
                    let sum: f64 = pairs().map(|(a, b)| similarity[a][b] * weight[a] * weight[b]).sum();
                    let count: f64 = pairs().map(|(a, b)| weight[a] * weight[b]).sum();
                    let least = pairs().map(|(a, b)| similarity[a][b]).fold(f64::INFINITY, f64::min);
                    let score = if average { sum / count } else { least };
                    if best.is_none_or(|(most, _, _)| score > most) {
                        best = Some((score, i, j));
                    }
                }
            }
            let Some((height, i, j)) = best.filter(|&(score, _, _)| score >= least) else { break };
            merges.push(Merge { low: clusters[i][0] as u32, high: clusters[j][0] as u32, height });
            let other = clusters.remove(j);
            clusters[i].extend(other);
        }
        merges.sort_by(|a, b| b.height.total_cmp(&a.height).then(a.low.cmp(&b.low)).then(a.high.cmp(&b.high)));
        merges
    }

    /// A matrix whose entries are multiples of `1 / levels`: few levels, many ties.
    fn symmetric(random: &mut Random, n: usize, levels: f64) -> Vec<Vec<f64>> {
        let mut matrix = vec![vec![1.0; n]; n];
        for i in 0..n {
            for j in 0..i {
                let x = (random.next() * levels).round() / levels;
                matrix[i][j] = x;
                matrix[j][i] = x;
            }
        }
        matrix
    }

    #[test]
    fn four_points_by_hand() {
        let s = [[1.0, 0.9, 0.2, 0.4], [0.9, 1.0, 0.1, 0.3], [0.2, 0.1, 1.0, 0.6], [0.4, 0.3, 0.6, 1.0]];
        let s: Vec<Vec<f64>> = s.iter().map(|row| row.to_vec()).collect();
        let merge = |low, high, height| Merge { low, high, height };
        let found = run(true, &s, &[1.0; 4], -1.0);
        assert_eq!(found[..2], [merge(0, 1, 0.9), merge(2, 3, 0.6)]);
        assert!((found[2].height - 0.25).abs() < 1e-15);
        assert_eq!(run(false, &s, &[1.0; 4], -1.0), [merge(0, 1, 0.9), merge(2, 3, 0.6), merge(0, 2, 0.1)]);
        assert_eq!(run(false, &s, &[1.0; 4], 0.7), [merge(0, 1, 0.9)]);
        // Three copies of the last: (0.2 + 0.1 + 3 (0.4 + 0.3)) / 8.
        let weighted = run(true, &s, &[1.0, 1.0, 1.0, 3.0], -1.0);
        assert!((weighted[2].height - 0.3).abs() < 1e-15);
    }

    #[test]
    fn a_chain_of_ties() {
        // 0 - 1 - 2 in which neighbors are the same: the first pair wins.
        let s = vec![vec![1.0, 1.0, 0.0], vec![1.0, 1.0, 1.0], vec![0.0, 1.0, 1.0]];
        assert_eq!(run(false, &s, &[1.0; 3], 0.5), [Merge { low: 0, high: 1, height: 1.0 }]);
        let found = run(true, &s, &[1.0; 3], 0.5);
        assert_eq!(found[1], Merge { low: 0, high: 2, height: 0.5 });
    }

    #[test]
    fn as_if_step_by_step() {
        let mut random = Random(7);
        for n in [1, 2, 3, 5, 8, 9, 20, 40] {
            for levels in [1.0, 2.0, 3.0, 8.0, 16_777_216.0] {
                let s = symmetric(&mut random, n, levels);
                let weight: Vec<f64> = (0..n).map(|_| 1.0 + (random.next() * 3.0).floor()).collect();
                // Thirds are not sums of powers of two, but equal sums of equally many of them are equal.
                let s: Vec<Vec<f64>> =
                    s.iter().map(|row| row.iter().map(|&x| super::super::gram::quantize(x)).collect()).collect();
                for average in [true, false] {
                    for least in [-1.0, 0.5] {
                        let (found, expected) =
                            (run(average, &s, &weight, least), step_by_step(average, &s, &weight, least));
                        assert_eq!(found, expected, "{n} {levels} {average} {least}");
                    }
                }
            }
        }
    }

    #[test]
    fn packing_changes_nothing() {
        let mut random = Random(11);
        for levels in [4.0, 1024.0] {
            let s = symmetric(&mut random, 200, levels);
            for average in [true, false] {
                let expected = step_by_step(average, &s, &[1.0; 200], 0.3);
                assert_eq!(run(average, &s, &[1.0; 200], 0.3), expected, "{levels} {average}");
            }
        }
    }
}
