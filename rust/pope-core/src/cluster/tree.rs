//! From merges to labels, and to a tree in the usual form.

use core::ops::Range;

use super::chain::Merge;
use super::points::Points;

/// Cuts trees; reused from prompt to prompt.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    /// The smallest point known to be in one cluster with each point; never larger than the point.
    parent: Vec<u32>,
    root: Vec<u32>,
    first: Vec<i32>,
}

/// Label rows by the first row of their cluster. `root` names the cluster of each point.
fn label(points: &Points, root: &[u32], first: &mut Vec<i32>, out: &mut [i32]) {
    first.clear();
    first.resize(root.len(), -1);
    for &row in &points.taken {
        let first = &mut first[root[points.of_row[row as usize] as usize] as usize];
        if *first < 0 {
            *first = row as i32;
        }
        out[row as usize] = *first;
    }
}

/// From the first row of each row's cluster to numbers, in the order in which clusters appear.
pub(super) fn number(labels: &mut [i32]) {
    let mut next = 0;
    for row in 0..labels.len() {
        let first = labels[row] as usize;
        labels[row] = if first == row { next } else { labels[first] };
        next += i32::from(first == row);
    }
}

/// By falling similarity; a whole is never above its parts and comes after them.
pub(super) fn sort(merges: &mut [Merge]) {
    if !merges.is_sorted_by(|a, b| a.height >= b.height) {
        merges.sort_by(|a, b| b.height.total_cmp(&a.height));
    }
}

impl Cutter {
    /// Label by first rows, at each of `thresholds` (column, similarity; by falling similarity), in `rows` of the columns.
    pub fn cut(
        &mut self,
        points: &Points,
        merges: &mut [Merge],
        thresholds: &[(usize, f64)],
        columns: &mut [&mut [i32]],
        rows: &Range<usize>,
    ) {
        if thresholds.len() > 1 {
            sort(merges);
        }
        self.parent.clear();
        self.parent.extend(0..=points.len() as u32);
        let mut done = 0;
        for &(column, threshold) in thresholds {
            // A single threshold sees merges in the order found, all of which are at or above it.
            while done < merges.len() && merges[done].height >= threshold {
                self.parent[merges[done].high as usize] = merges[done].low;
                done += 1;
            }
            self.root.clear();
            for (point, &parent) in self.parent.iter().enumerate() {
                let root = if parent as usize == point { parent } else { self.root[parent as usize] };
                self.root.push(root);
            }
            label(points, &self.root, &mut self.first, &mut columns[column][rows.clone()]);
        }
    }

    /// Label by first rows, where each point names the one that stands for its cluster.
    pub fn follow(&mut self, points: &Points, leader: &[u32], out: &mut [i32]) {
        self.root.clear();
        self.root.extend_from_slice(leader);
        self.root.push(leader.len() as u32);
        label(points, &self.root, &mut self.first, out);
    }
}

/// The tree over the rows: children of every merge (rows, then merges from the number of rows on) and similarities.
///
/// Equal vectors are joined first, at 1; zero vectors join the rest last, at minus infinity.
pub(super) fn tree(points: &Points, merges: &mut [Merge], children: &mut [[i32; 2]], similarity: &mut [f64]) {
    sort(merges);
    let (of_row, n) = (&points.of_row, points.len());
    let rows = of_row.len();
    let mut node = vec![-1i32; n + 1];
    let mut made = 0;
    let mut join = |a: i32, b: i32, height: f64| {
        children[made] = [a.min(b), a.max(b)];
        similarity[made] = height;
        made += 1;
        (rows + made - 1) as i32
    };
    for (row, &point) in of_row.iter().enumerate() {
        let node = &mut node[point as usize];
        *node = if *node < 0 { row as i32 } else { join(*node, row as i32, 1.0) };
    }
    for merge in merges.iter() {
        node[merge.low as usize] = join(node[merge.low as usize], node[merge.high as usize], merge.height);
    }
    if n > 0 && node[n] >= 0 {
        join(node[0], node[n], f64::NEG_INFINITY);
    }
}
