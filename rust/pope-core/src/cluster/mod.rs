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
mod classes;
mod gram;
mod leader;
mod matrix;
mod points;
mod source;
mod tasks;
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
use classes::label_classes;
use leader::{Leaders, densities};
use points::Points;
use source::{Pairs, Source, Vectors};
use tasks::{check_offsets, split, tasks};
use tree::{Cutter, tree};

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

    /// Labels of a prompt: `rows` of each column, a column for each threshold. Thresholds fall.
    fn cluster(
        &mut self,
        (source, prompt): (&impl Source, usize),
        linkage: Linkage,
        thresholds: &[(usize, f64)],
        crew: &mut Crew<'_>,
        (columns, rows): (&mut [&mut [i32]], Range<usize>),
    ) -> Result<()> {
        let small = source.load_rows(prompt, self)?;
        let mut classes = thresholds.iter();
        if small && classes.all(|&(column, t)| label_classes(&self.rows, t, &mut columns[column][rows.clone()])) {
            return Ok(());
        }
        let vectors = source.load_points(prompt, small, linkage, self, crew)?;
        if linkage != Linkage::Leader {
            self.agglomerate(linkage, thresholds[thresholds.len() - 1].1);
            self.cutter.cut(&self.points, &mut self.chain.merges, thresholds, columns, &rows);
            return Ok(());
        }
        let density = vectors.map(|x| densities(&self.points, x, thresholds, crew)).transpose()?;
        for (i, &(column, threshold)) in thresholds.iter().enumerate() {
            match (&density, vectors) {
                (Some(density), Some(vectors)) => {
                    self.leaders.from_points(&self.points, vectors, &density[i], threshold, crew)?;
                }
                _ => self.leaders.from_matrix(&self.chain.matrix, &self.points.weight, threshold),
            }
            self.cutter.label(&self.points, &self.leaders.leader, &mut columns[column][rows.clone()]);
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
            let small = source.load_rows(prompt, worker)?;
            source.load_points(prompt, small, linkage, worker, crew)?;
            worker.agglomerate(linkage, f64::NEG_INFINITY);
            tree(&worker.points, &mut worker.chain.merges, children, similarity);
        }
        Ok(())
    })?;
    Ok(Dendrograms { children, similarity })
}
