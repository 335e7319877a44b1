//! Where similarities come from: embeddings, or relations that the caller computed.

use core::ops::Range;

use super::chain::stride;
use super::gram::{Embeddings, quantize};
use super::matrix::{check_size, reserve, square};
use super::{Crew, LARGE, Linkage, Worker};
use crate::error::{Error, Result};

/// Gives a worker the points of a prompt and their matrix.
pub(super) trait Source: Sync {
    /// If embeddings come back, there are too many points for a matrix, and `linkage` needs none.
    fn load(
        &self,
        prompt: usize,
        linkage: Linkage,
        worker: &mut Worker,
        crew: &mut Crew<'_>,
    ) -> Result<Option<Embeddings<'_>>>;
}

fn rows(offsets: &[i64], prompt: usize) -> Range<usize> {
    offsets[prompt] as usize..offsets[prompt + 1] as usize
}

/// Embeddings of the rows of all prompts.
pub(super) struct Vectors<'a> {
    pub offsets: &'a [i64],
    pub embeddings: Embeddings<'a>,
}

impl Source for Vectors<'_> {
    fn load(
        &self,
        prompt: usize,
        linkage: Linkage,
        worker: &mut Worker,
        crew: &mut Crew<'_>,
    ) -> Result<Option<Embeddings<'_>>> {
        let rows = rows(self.offsets, prompt);
        let embeddings = self.embeddings.part(rows.clone());
        worker.points.load(embeddings, rows.start)?;
        let n = worker.points.len();
        if linkage == Linkage::Leader && n > LARGE {
            return Ok(Some(embeddings));
        }
        check_size(n)?;
        square(&worker.points, embeddings, crew, &mut worker.dots, &mut worker.chain.matrix)?;
        Ok(None)
    }
}

/// Similarities that the caller computed.
#[derive(Clone, Copy, Debug)]
pub struct Relations<'a> {
    /// Prompt after prompt, the pairs (0, 1), (0, 2), ..., (1, 2), ... of its rows.
    pub similarities: &'a [f32],
    /// What stands for a row's content when similarities tie; without it, the row's position.
    pub keys: Option<&'a [u64]>,
    /// How many responses each row stands for; without it, one.
    pub counts: Option<&'a [i64]>,
}

/// Relations of all prompts.
pub(super) struct Pairs<'a> {
    offsets: &'a [i64],
    relations: Relations<'a>,
    /// First pair of each prompt.
    starts: Vec<usize>,
}

impl<'a> Pairs<'a> {
    pub fn new(offsets: &'a [i64], relations: Relations<'a>) -> Result<Self> {
        let rows = offsets[offsets.len() - 1] as usize;
        let lengths = [("keys", relations.keys.map(<[u64]>::len)), ("counts", relations.counts.map(<[i64]>::len))];
        if let Some((name, Some(n))) = lengths.into_iter().find(|(_, n)| n.is_some_and(|n| n != rows)) {
            return Err(Error::Shape(format!("{n} {name} for {rows} rows")));
        }
        let mut starts = vec![0usize];
        for w in offsets.windows(2) {
            let n = (w[1] - w[0]) as usize;
            starts.push(starts[starts.len() - 1] + n * n.saturating_sub(1) / 2);
        }
        let pairs = starts[starts.len() - 1];
        if pairs != relations.similarities.len() {
            let given = relations.similarities.len();
            return Err(Error::Shape(format!("{given} similarities, but the prompts have {pairs} pairs of rows")));
        }
        Ok(Pairs { offsets, relations, starts })
    }
}

impl Source for Pairs<'_> {
    fn load(&self, prompt: usize, _: Linkage, worker: &mut Worker, _: &mut Crew<'_>) -> Result<Option<Embeddings<'_>>> {
        let rows = rows(self.offsets, prompt);
        let n = rows.len();
        check_size(n)?;
        let (keys, counts) = (self.relations.keys.map(|x| &x[rows.clone()]), self.relations.counts.map(|x| &x[rows.clone()]));
        worker.points.load_given(n, keys, counts, rows.start)?;
        let stride = stride(n);
        let matrix = &mut worker.chain.matrix;
        reserve(matrix, n * stride)?;
        let mut given = self.relations.similarities[self.starts[prompt]..self.starts[prompt + 1]].iter();
        for i in 0..n {
            let a = worker.points.of_row[i] as usize;
            matrix[a * stride + a] = 1.0;
            for (j, &s) in (i + 1..n).zip(&mut given) {
                if !(-1.0..=1.0).contains(&s) {
                    return Err(Error::Value {
                        column: "similarity".into(),
                        row: rows.start + i,
                        problem: format!("{s} to row {} is not in [-1, 1]", rows.start + j),
                        remedy: "give 1 for the same, 0 for different, or a similarity",
                    });
                }
                let b = worker.points.of_row[j] as usize;
                let s = quantize(f64::from(s));
                matrix[a * stride + b] = s;
                matrix[b * stride + a] = s;
            }
        }
        Ok(None)
    }
}
