//! Where similarities come from: embeddings, or relations that the caller computed.

use core::ops::Range;

use super::chain::stride;
use super::gram::{BLOCK, Embeddings, quantize};
use super::matrix::{check_size, of_rows, reserve, square};
use super::{Crew, LARGE, Linkage, Worker};
use crate::error::{Error, Result};
use crate::simd::prefetch;

/// Gives a worker the similarities of a prompt: of the rows of a small one, of the points of any other.
pub(super) trait Source: Sync {
    /// Put the similarities of the rows of a small prompt, all to all, into `worker.rows`. False if that cannot be.
    fn load_rows(&self, prompt: usize, worker: &mut Worker) -> Result<bool>;

    /// Go from the rows of a small prompt that `worker.points` has taken to points.
    fn arrange(&self, prompt: usize, worker: &mut Worker);

    /// Find the points of all rows and their matrix, after [`Self::load_rows`] has said no. If embeddings come back, there are
    /// too many points for a matrix, and `linkage` needs none.
    fn load_points(
        &self,
        prompt: usize,
        linkage: Linkage,
        worker: &mut Worker,
        crew: &mut Crew<'_>,
    ) -> Result<Option<Embeddings<'_>>>;
}

/// The row numbers of a small prompt.
const ROWS: [u32; BLOCK] = {
    let mut rows = [0; BLOCK];
    let mut i = 0;
    while i < BLOCK {
        rows[i] = i as u32;
        i += 1;
    }
    rows
};

fn rows(offsets: &[i64], prompt: usize) -> Range<usize> {
    offsets[prompt] as usize..offsets[prompt + 1] as usize
}

/// Embeddings of the rows of all prompts.
pub(super) struct Vectors<'a> {
    pub offsets: &'a [i64],
    pub embeddings: Embeddings<'a>,
}

impl Vectors<'_> {
    fn of(&self, prompt: usize) -> Embeddings<'_> {
        self.embeddings.part(rows(self.offsets, prompt))
    }
}

impl Source for Vectors<'_> {
    fn load_rows(&self, prompt: usize, worker: &mut Worker) -> Result<bool> {
        let n = rows(self.offsets, prompt).len();
        if prompt + 2 < self.offsets.len() {
            prefetch(self.of(prompt + 1).values);
        }
        let Worker { points, dots, rows, .. } = worker;
        Ok(n <= BLOCK && of_rows(self.of(prompt), &ROWS[..n], points, dots, rows))
    }

    fn arrange(&self, prompt: usize, worker: &mut Worker) {
        worker.points.arrange(self.of(prompt));
    }

    fn load_points(
        &self,
        prompt: usize,
        linkage: Linkage,
        worker: &mut Worker,
        crew: &mut Crew<'_>,
    ) -> Result<Option<Embeddings<'_>>> {
        let embeddings = self.of(prompt);
        worker.points.load(embeddings, rows(self.offsets, prompt).start)?;
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

impl Pairs<'_> {
    /// Give each pair of a prompt's rows and its similarity to `put`.
    fn each(&self, prompt: usize, mut put: impl FnMut(usize, usize, f64)) -> Result<()> {
        let rows = rows(self.offsets, prompt);
        let mut given = self.relations.similarities[self.starts[prompt]..self.starts[prompt + 1]].iter();
        for i in 0..rows.len() {
            put(i, i, 1.0);
            for (j, &s) in (i + 1..rows.len()).zip(&mut given) {
                if !(-1.0..=1.0).contains(&s) {
                    return Err(Error::Value {
                        column: "similarity".into(),
                        row: rows.start + i,
                        problem: format!("{s} to row {} is not in [-1, 1]", rows.start + j),
                        remedy: "give 1 for the same, 0 for different, or a similarity",
                    });
                }
                let s = quantize(f64::from(s));
                put(i, j, s);
                put(j, i, s);
            }
        }
        Ok(())
    }
}

impl Source for Pairs<'_> {
    fn load_rows(&self, prompt: usize, worker: &mut Worker) -> Result<bool> {
        let rows = rows(self.offsets, prompt);
        let n = rows.len();
        check_size(n)?;
        let keys = self.relations.keys.map(|keys| &keys[rows.clone()]);
        let counts = self.relations.counts.map(|counts| &counts[rows.clone()]);
        worker.points.load_given(n, keys, counts, rows.start)?;
        if n <= BLOCK {
            worker.rows.resize(n * n, 0.0);
            self.each(prompt, |i, j, s| worker.rows[i * n + j] = s)?;
        }
        Ok(n <= BLOCK)
    }

    fn arrange(&self, _: usize, worker: &mut Worker) {
        worker.points.arrange_given();
    }

    fn load_points(
        &self,
        prompt: usize,
        _: Linkage,
        worker: &mut Worker,
        _: &mut Crew<'_>,
    ) -> Result<Option<Embeddings<'_>>> {
        let Worker { points, chain, .. } = worker;
        points.take(0..rows(self.offsets, prompt).len() as u32);
        points.arrange_given();
        let stride = stride(points.len());
        reserve(&mut chain.matrix, points.len() * stride)?;
        let of_row = &points.of_row;
        self.each(prompt, |i, j, s| chain.matrix[of_row[i] as usize * stride + of_row[j] as usize] = s)?;
        Ok(None)
    }
}
