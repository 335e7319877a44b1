//! Clusters of the responses to one prompt, by the cosine similarity of their embeddings or by given similarities.
//!
//! Two clusters are joined while the mean (average linkage) or the least (complete linkage) of the similarities between
//! their members is at least a threshold. The third method, greedy leaders, needs no matrix of similarities.
//!
//! - The partition of a prompt depends on its vectors, not on the order of the rows (see `points`). It has the same bits for
//!   any number of threads and on any CPU (see `gram`). Labels count from 0 in each prompt, in the order in which the
//!   clusters appear among the rows.
//! - Equal vectors are always together. A zero vector has no direction: zero vectors are together, apart from all others.
//! - One run serves many thresholds. With average and complete linkage the partitions are nested.

mod agreement;
mod chain;
mod gram;
mod kin;
mod leader;
mod matrix;
mod points;
mod source;
mod tasks;
#[cfg(test)]
mod testing;
mod tree;

use core::ops::Range;
use std::sync::Mutex;

pub use agreement::{Agreement, compare_labels};
pub use gram::Embeddings;
pub use matrix::MAX_POINTS;
pub use source::Relations;

use crate::error::{Error, Result};
use crate::par::{Interrupt, Uninterrupted, for_each_task};
use chain::{Chain, agglomerate};
use kin::{Kin, members};
use leader::{Leaders, densities};
use matrix::of_points;
use points::Points;
use source::{Pairs, Source, Vectors};
use tasks::{check_offsets, split, tasks};
use tree::{Cutter, number, tree};

/// Prompts of more rows are worked on one after the other, each by all threads.
const LARGE: usize = 2048;

/// How clusters are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// Mean similarity between members (UPGMA).
    Average,
    /// Least similarity between members.
    Complete,
    /// Greedy leaders.
    Leader,
}

impl Linkage {
    /// The method of a name.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "average" => Ok(Linkage::Average),
            "complete" => Ok(Linkage::Complete),
            "leader" => Ok(Linkage::Leader),
            _ => Err(Error::Config(format!("linkage '{name}' is none of 'average', 'complete' and 'leader'"))),
        }
    }
}

/// What a thread keeps from prompt to prompt.
#[derive(Debug, Default)]
struct Worker {
    points: Points,
    chain: Chain,
    leaders: Leaders,
    cutter: Cutter,
    dots: Vec<f32>,
    /// Similarities of the rows of a small prompt.
    rows: Vec<f64>,
    kin: Kin,
}

/// Who works on a prompt.
struct Crew<'a> {
    threads: usize,
    interrupt: &'a mut dyn Interrupt,
}

impl Worker {
    fn agglomerate(&mut self, linkage: Linkage, least: f64) {
        match linkage {
            Linkage::Average => agglomerate::<true>(&mut self.chain, &self.points.weight, least),
            _ => agglomerate::<false>(&mut self.chain, &self.points.weight, least),
        }
    }

    /// Turn the rows of a small prompt that `points` has taken into points with a matrix; the prompt has `n` rows.
    fn arrange(&mut self, source: &impl Source, prompt: usize, n: usize) -> Result<()> {
        source.arrange(prompt, self);
        of_points(&self.points, &self.rows, n, &mut self.chain.matrix)
    }

    /// Labels of a prompt: `rows` of each column, a column for each threshold. Thresholds fall.
    fn cluster(
        &mut self,
        (source, prompt): (&impl Source, usize),
        linkage: Linkage,
        thresholds: &[(usize, f64)],
        crew: &mut Crew<'_>,
        (columns, rows): (&mut [&mut [i32]], Range<usize>),
    ) -> Result<()> {
        if source.load_rows(prompt, self)? {
            let mut kin = core::mem::take(&mut self.kin);
            kin.load(&self.rows, rows.len(), thresholds);
            for family in kin.families() {
                let mut each = thresholds.iter().enumerate();
                if !each.all(|(t, &(column, _))| kin.classes(t, family, &mut columns[column][rows.clone()])) {
                    self.points.take(members(family));
                    self.arrange(source, prompt, rows.len())?;
                    self.join(None, linkage, thresholds, crew, (columns, rows.clone()))?;
                }
            }
            self.kin = kin;
        } else {
            let vectors = source.load_points(prompt, linkage, self, crew)?;
            self.join(vectors, linkage, thresholds, crew, (columns, rows.clone()))?;
        }
        columns.iter_mut().for_each(|column| number(&mut column[rows.clone()]));
        Ok(())
    }

    /// Label the rows of the points by the first row of their cluster.
    fn join(
        &mut self,
        vectors: Option<Embeddings<'_>>,
        linkage: Linkage,
        thresholds: &[(usize, f64)],
        crew: &mut Crew<'_>,
        (columns, rows): (&mut [&mut [i32]], Range<usize>),
    ) -> Result<()> {
        if linkage != Linkage::Leader {
            self.agglomerate(linkage, thresholds[thresholds.len() - 1].1);
            self.cutter.cut(&self.points, &mut self.chain.merges, thresholds, columns, &rows);
            return Ok(());
        }
        let density = vectors.map(|x| densities(&self.points, x, thresholds, crew)).transpose()?;
        for (i, &(column, threshold)) in thresholds.iter().enumerate() {
            match (&density, vectors) {
                (Some(density), Some(vectors)) => {
                    self.leaders.lead_by_points(&self.points, vectors, &density[i], threshold, crew)?;
                }
                _ => self.leaders.lead_by_matrix(&self.chain.matrix, &self.points.weight, threshold),
            }
            self.cutter.follow(&self.points, &self.leaders.leader, &mut columns[column][rows.clone()]);
        }
        Ok(())
    }
}

/// Give every task of prompts its part of the output. Small prompts are spread over the threads; large ones follow.
fn by_prompts<P: Send>(
    offsets: &[i64],
    mut parts: Vec<P>,
    threads: usize,
    interrupt: &mut dyn Interrupt,
    work: impl Fn(&mut Worker, &mut Crew<'_>, Range<usize>, P) -> Result<()> + Sync,
) -> Result<()> {
    let is_large = |prompts: &Range<usize>| offsets[prompts.start + 1] - offsets[prompts.start] > LARGE as i64;
    let all = tasks(offsets).into_iter().zip(parts.drain(..));
    let (large, small): (Vec<_>, Vec<_>) = all.partition(|(prompts, _)| is_large(prompts));
    let small: Vec<_> = small.into_iter().map(|task| Mutex::new(Some(task))).collect();
    let mut workers: Vec<_> = (0..threads.max(1)).map(|_| Worker::default()).collect();
    for_each_task(&mut workers, small.len(), interrupt, |worker, task| {
        let task = small[task].lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let mut crew = Crew { threads: 1, interrupt: &mut Uninterrupted };
        task.map_or(Ok(()), |(prompts, part)| work(worker, &mut crew, prompts, part))
    })?;
    let mut crew = Crew { threads: threads.max(1), interrupt };
    large.into_iter().try_for_each(|(prompts, part)| {
        if crew.interrupt.interrupted() {
            return Err(Error::Interrupted);
        }
        work(&mut workers[0], &mut crew, prompts, part)
    })
}

fn check_thresholds(thresholds: &[f64]) -> Result<Vec<(usize, f64)>> {
    if let Some(x) = thresholds.iter().find(|x| !(-1.0..=1.0).contains(*x)) {
        return Err(Error::Config(format!("a threshold is a similarity in [-1, 1], not {x}")));
    }
    if thresholds.is_empty() {
        return Err(Error::Config("there is no threshold".into()));
    }
    let mut order: Vec<_> = thresholds.iter().copied().enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(order)
}

fn check_embeddings(offsets: &[i64], embeddings: Embeddings<'_>) -> Result<()> {
    let Embeddings { values, dims } = embeddings;
    if dims == 0 || values.len() % dims != 0 {
        return Err(Error::Shape(format!("{} numbers are no embeddings of {dims} dimensions", values.len())));
    }
    check_offsets(offsets, values.len() / dims)
}

fn cluster(
    offsets: &[i64],
    source: &impl Source,
    thresholds: &[f64],
    linkage: Linkage,
    threads: usize,
    interrupt: &mut dyn Interrupt,
) -> Result<Vec<i32>> {
    let falling = check_thresholds(thresholds)?;
    let rows = offsets[offsets.len() - 1] as usize;
    let mut labels = vec![0; rows * thresholds.len()];
    let lengths: Vec<_> = tasks(offsets).iter().map(|p| (offsets[p.end] - offsets[p.start]) as usize).collect();
    let mut parts: Vec<Vec<&mut [i32]>> = lengths.iter().map(|_| Vec::with_capacity(thresholds.len())).collect();
    for column in labels.chunks_mut(rows.max(1)) {
        parts.iter_mut().zip(split(column, lengths.iter().copied())).for_each(|(part, slice)| part.push(slice));
    }
    by_prompts(offsets, parts, threads, interrupt, |worker, crew, prompts, mut columns| {
        let start = offsets[prompts.start];
        for prompt in prompts {
            let rows = (offsets[prompt] - start) as usize..(offsets[prompt + 1] - start) as usize;
            worker.cluster((source, prompt), linkage, &falling, crew, (&mut columns, rows))?;
        }
        Ok(())
    })?;
    Ok(labels)
}

/// Labels of all rows at every threshold: threshold after threshold, as given.
pub fn cluster_prompts(
    offsets: &[i64],
    embeddings: Embeddings<'_>,
    thresholds: &[f64],
    linkage: Linkage,
    threads: usize,
    interrupt: &mut dyn Interrupt,
) -> Result<Vec<i32>> {
    check_embeddings(offsets, embeddings)?;
    cluster(offsets, &Vectors { offsets, embeddings }, thresholds, linkage, threads, interrupt)
}

/// [`cluster_prompts`] by given similarities of pairs, with which a tie is broken by the rows' keys.
pub fn cluster_pairs(
    offsets: &[i64],
    relations: Relations<'_>,
    thresholds: &[f64],
    linkage: Linkage,
    threads: usize,
    interrupt: &mut dyn Interrupt,
) -> Result<Vec<i32>> {
    check_offsets(offsets, offsets.last().map_or(0, |&rows| rows.max(0) as usize))?;
    cluster(offsets, &Pairs::new(offsets, relations)?, thresholds, linkage, threads, interrupt)
}

/// The trees of all prompts: a prompt of `n` rows has `n - 1` merges, in the order in which they are made.
#[derive(Clone, Debug, PartialEq)]
pub struct Dendrograms {
    /// The two parts of each merge: rows of the prompt count from 0, its merges from the number of its rows on.
    pub children: Vec<[i32; 2]>,
    /// Their similarity. It never rises; minus infinity where a zero vector has to join.
    pub similarity: Vec<f64>,
}

/// The trees that average or complete linkage gives.
pub fn dendrograms(
    offsets: &[i64],
    embeddings: Embeddings<'_>,
    linkage: Linkage,
    threads: usize,
    interrupt: &mut dyn Interrupt,
) -> Result<Dendrograms> {
    check_embeddings(offsets, embeddings)?;
    if linkage == Linkage::Leader {
        return Err(Error::Config("leaders make no tree; linkage must be 'average' or 'complete'".into()));
    }
    let merges = |prompt: usize| ((offsets[prompt + 1] - offsets[prompt]) as usize).saturating_sub(1);
    let lengths: Vec<usize> = tasks(offsets).into_iter().map(|prompts| prompts.map(merges).sum()).collect();
    let total = lengths.iter().sum();
    let (mut children, mut similarity) = (vec![[0; 2]; total], vec![0.0; total]);
    let columns = split(&mut children, lengths.iter().copied()).into_iter();
    let parts: Vec<_> = columns.zip(split(&mut similarity, lengths.iter().copied())).collect();
    let source = Vectors { offsets, embeddings };
    by_prompts(offsets, parts, threads, interrupt, |worker, crew, prompts, (children, similarity)| {
        let lengths = || prompts.clone().map(merges);
        let parts = split(children, lengths()).into_iter().zip(split(similarity, lengths()));
        for (prompt, (children, similarity)) in prompts.clone().zip(parts) {
            if source.load_rows(prompt, worker)? {
                let n = (offsets[prompt + 1] - offsets[prompt]) as usize;
                worker.points.take(0..n as u32);
                worker.arrange(&source, prompt, n)?;
            } else {
                source.load_points(prompt, linkage, worker, crew)?;
            }
            worker.agglomerate(linkage, f64::NEG_INFINITY);
            tree(&worker.points, &mut worker.chain.merges, children, similarity);
        }
        Ok(())
    })?;
    Ok(Dendrograms { children, similarity })
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::{Random, crowd};

    const ALL: [Linkage; 3] = [Linkage::Average, Linkage::Complete, Linkage::Leader];

    fn labels(offsets: &[i64], values: &[f32], dims: usize, thresholds: &[f64], linkage: Linkage) -> Vec<i32> {
        let one = cluster_prompts(offsets, Embeddings { values, dims }, thresholds, linkage, 1, &mut Uninterrupted);
        let many = cluster_prompts(offsets, Embeddings { values, dims }, thresholds, linkage, 3, &mut Uninterrupted);
        assert_eq!(one, many);
        one.unwrap()
    }

    #[test]
    fn angles_by_hand() {
        // Directions at 0, 20, 50 and 90 degrees; cosines 0.940, 0.866 and 0.766 between neighbors.
        let rows: Vec<f32> =
            [0.0f32, 20.0, 50.0, 90.0].iter().flat_map(|a| [a.to_radians().cos(), a.to_radians().sin()]).collect();
        for linkage in ALL {
            assert_eq!(labels(&[0, 4], &rows, 2, &[0.95, 0.9, -1.0], linkage), [0, 1, 2, 3, 0, 0, 1, 2, 0, 0, 0, 0]);
        }
        // {0, 20} and 50: mean (0.643 + 0.866) / 2 = 0.754, minimum 0.643; 50 and 90: 0.766; both pairs: 0.463 and 0.
        assert_eq!(labels(&[0, 4], &rows, 2, &[0.76, 0.46], Linkage::Average), [0, 0, 1, 1, 0, 0, 0, 0]);
        assert_eq!(labels(&[0, 4], &rows, 2, &[0.76, -0.1], Linkage::Complete), [0, 0, 1, 1, 0, 0, 0, 0]);
        // 20 and 50 have two neighbors each; 50 comes first by content and leads. 0 leads as well, and 20 is nearer to it.
        assert_eq!(labels(&[0, 4], &rows, 2, &[0.76], Linkage::Leader), [0, 0, 1, 1]);
    }

    #[test]
    fn the_order_of_rows_does_not_matter() {
        let mut random = Random(3);
        for (n, dims) in [(3, 2), (8, 4), (40, 3), (64, 2), (65, 2), (150, 3)] {
            // Few directions on a coarse grid: copies, ties and a zero vector.
            let rows: Vec<[f32; 3]> = (0..n)
                .map(|_| {
                    core::array::from_fn(|d| if d < dims { (random.next() * 3.0).floor() as f32 - 1.0 } else { 0.0 })
                })
                .collect();
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by_key(|&i| crate::hash::mix(i as u64));
            let shuffled: Vec<[f32; 3]> = order.iter().map(|&i| rows[i]).collect();
            for linkage in ALL {
                let thresholds = [0.9, 0.5, 0.0];
                let one = labels(&[0, n as i64], rows.as_flattened(), 3, &thresholds, linkage);
                let other = labels(&[0, n as i64], shuffled.as_flattened(), 3, &thresholds, linkage);
                for t in 0..3 {
                    for i in 0..n {
                        for j in 0..n {
                            let (a, b) = (order[i], order[j]);
                            let together = other[t * n + i] == other[t * n + j];
                            assert_eq!(together, one[t * n + a] == one[t * n + b], "{n} {linkage:?}");
                            assert!(together || rows[a] != rows[b]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn large_prompts_beside_small_ones() {
        // 2500 rows with 2300 directions take every thread; leaders then do without a matrix.
        let dims = 6;
        let (small, large) = (crowd(8, dims, 5), crowd(2500, dims, 2300));
        let rows = [&small[..], &large, &small].concat();
        for linkage in ALL {
            let thresholds = [0.97, 0.8];
            let found = labels(&[0, 8, 2508, 2508, 2516], &rows, dims, &thresholds, linkage);
            let alone = labels(&[0, 2500], &large, dims, &thresholds, linkage);
            for t in 0..2 {
                let found = &found[t * 2516..(t + 1) * 2516];
                assert_eq!(found[..8], found[2508..]);
                assert_eq!(found[8..2508], alone[t * 2500..(t + 1) * 2500]);
                assert!((0..2500 - 2300).all(|i| found[8 + i] == found[8 + i + 2300]));
            }
        }
    }

    #[test]
    fn relations_and_embeddings_agree() {
        let (n, dims) = (70, 5);
        let rows = crowd(n, dims, n);
        let embeddings = Embeddings { values: &rows, dims };
        let (points, matrix) = testing::points_of(embeddings);
        let s = |i: usize, j: usize| {
            matrix[points.of_row[i] as usize * chain::stride(n) + points.of_row[j] as usize] as f32
        };
        for m in [9, n] {
            let similarities: Vec<f32> =
                (0..m).flat_map(|i| (i + 1..m).map(move |j| (i, j))).map(|(i, j)| s(i, j)).collect();
            let keys: Vec<u64> = points.of_row[..m].iter().map(|&p| u64::from(p)).collect();
            let relations = Relations { similarities: &similarities, keys: Some(&keys), counts: None };
            for linkage in ALL {
                let offsets = [0, m as i64];
                let found = cluster_pairs(&offsets, relations, &[0.6, 0.2], linkage, 2, &mut Uninterrupted).unwrap();
                assert_eq!(found, labels(&offsets, &rows[..m * dims], dims, &[0.6, 0.2], linkage));
            }
        }
    }

    #[test]
    fn counts_are_copies() {
        // 0 is close to 1 and to 2; with many copies of 0 the mean over {0, 1} to 2 rises above the threshold.
        let similarities = [0.9f32, 0.8, 0.2];
        let run = |counts: Option<&[i64]>| {
            let relations = Relations { similarities: &similarities, keys: None, counts };
            cluster_pairs(&[0, 3], relations, &[0.6], Linkage::Average, 1, &mut Uninterrupted)
        };
        assert_eq!(run(None).unwrap(), [0, 0, 1]);
        assert_eq!(run(Some(&[5, 1, 1])).unwrap(), [0, 0, 0]);
        assert!(matches!(run(Some(&[5, 0, 1])), Err(Error::Value { row: 1, .. })));
        assert!(run(Some(&[5, 1])).is_err());
    }

    #[test]
    fn trees() {
        // Rows 0 and 3 are equal, row 2 is zero; then 1 joins {0, 3}, and the zero vector everything.
        let rows = [1.0, 0.0, /* */ 1.0, 1.0, /* */ 0.0, 0.0, /* */ 1.0, 0.0, /* */ 2.0, 1.0];
        let found =
            dendrograms(&[0, 4, 4, 5], Embeddings { values: &rows, dims: 2 }, Linkage::Complete, 2, &mut Uninterrupted)
                .unwrap();
        assert_eq!(found.children, [[0, 3], [1, 4], [2, 5]]);
        assert_eq!(found.similarity[0], 1.0);
        assert!((found.similarity[1] - 0.5f64.sqrt()).abs() < 1e-7);
        assert_eq!(found.similarity[2], f64::NEG_INFINITY);
        let leader =
            dendrograms(&[0, 5], Embeddings { values: &rows, dims: 2 }, Linkage::Leader, 1, &mut Uninterrupted);
        assert!(leader.is_err());
    }

    #[test]
    fn faults() {
        let e = Embeddings { values: &[1.0, 2.0, f32::NAN, 1.0], dims: 2 };
        let run = |offsets: &[i64], e, thresholds: &[f64]| {
            cluster_prompts(offsets, e, thresholds, Linkage::Average, 1, &mut Uninterrupted)
        };
        assert!(matches!(run(&[0, 1, 2], e, &[0.5]), Err(Error::Value { row: 1, .. })));
        let e = Embeddings { values: &[1.0; 4], dims: 2 };
        for thresholds in [&[][..], &[f64::NAN], &[1.1], &[0.5, -2.0]] {
            assert!(run(&[0, 2], e, thresholds).is_err());
        }
        assert!(run(&[0, 3], e, &[0.5]).is_err());
        assert!(run(&[0, 1], Embeddings { values: &[1.0; 4], dims: 0 }, &[0.5]).is_err());
        assert!(run(&[0, 1], Embeddings { values: &[1.0; 4], dims: 3 }, &[0.5]).is_err());
        assert_eq!(run(&[0], Embeddings { values: &[], dims: 3 }, &[0.5]), Ok(vec![]));
        assert!(Linkage::named("single").is_err());
        let pairs = |similarities: &[f32], keys: Option<&[u64]>| {
            let relations = Relations { similarities, keys, counts: None };
            cluster_pairs(&[0, 1, 3], relations, &[0.5], Linkage::Leader, 1, &mut Uninterrupted)
        };
        assert_eq!(pairs(&[0.7], None), Ok(vec![0, 0, 0]));
        assert!(matches!(pairs(&[f32::NAN], None), Err(Error::Value { row: 1, .. })));
        assert!(matches!(pairs(&[1.5], None), Err(Error::Value { row: 1, .. })));
        assert!(matches!(pairs(&[0.5], Some(&[4, 7, 7])), Err(Error::Value { row: 2, .. })));
        assert!(pairs(&[0.5, 0.5], None).is_err());
        assert!(pairs(&[0.5], Some(&[4, 7])).is_err());
        let too_many = crowd(MAX_POINTS + 1, 1, 2);
        assert!(run(&[0, too_many.len() as i64], Embeddings { values: &too_many, dims: 1 }, &[0.5]).is_ok());
    }
}
