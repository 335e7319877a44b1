//! From the rows of a prompt to distinct points in an order that only their content decides.
//!
//! Everything after this sees points, never rows, so no result can depend on the order of the rows: equal vectors are one
//! point with a weight, and points are numbered by their numbers, compared from the first to the last.

use core::cmp::Ordering;

use super::gram::{Embeddings, squares};
use crate::error::{Error, Result};

/// Squared lengths within which no product of two vectors overflows or loses digits that matter.
const SAFE: core::ops::Range<f32> = 1e-12..1e24;

/// Some points of a prompt, as their similarities need them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side<'a> {
    /// A row of each point.
    pub row: &'a [u32],
    /// One over its length.
    pub inverse: &'a [f64],
}

/// The distinct points of a prompt; reused from prompt to prompt.
#[derive(Debug, Default)]
pub(super) struct Points {
    /// The rows of the prompt that the points stand for, in ascending order.
    pub taken: Vec<u32>,
    /// The point of each of these rows. Zero vectors, which have no direction, are the point `len()`.
    pub of_row: Vec<u32>,
    /// A row of each point.
    pub row: Vec<u32>,
    /// Number of rows of each point.
    pub weight: Vec<f64>,
    /// One over the length of each point's vector.
    inverse: Vec<f64>,
    squares: Vec<f32>,
    order: Vec<(f32, u32)>,
    /// Rows by key, and how many responses each stands for: what is known of rows without embeddings.
    by_key: Vec<u32>,
    counts: Vec<f64>,
    /// All rows, those of extreme length brought near 1 by a power of two; empty when there are none.
    scaled: Vec<f32>,
}

fn by_content(a: &[f32], b: &[f32]) -> Ordering {
    let different = a.iter().zip(b).find(|(x, y)| x != y);
    different.map_or(Ordering::Equal, |(x, y)| if x < y { Ordering::Less } else { Ordering::Greater })
}

/// The power of two that brings the largest of `row` to [1, 2).
fn scale(row: &[f32]) -> f64 {
    let largest = row.iter().fold(0.0f64, |m, &x| m.max(f64::from(x).abs()));
    let exponent = (largest.to_bits() >> 52) as i64 - 1023;
    f64::from_bits(((1023 - exponent) as u64) << 52)
}

impl Points {
    /// Number of points other than the zero vector.
    pub fn len(&self) -> usize {
        self.row.len()
    }

    /// Take the rows of a prompt, the first of which is row `first` of the log.
    pub fn load(&mut self, embeddings: Embeddings<'_>, first: usize) -> Result<()> {
        let n = embeddings.values.len() / embeddings.dims;
        self.squares.resize(n, 0.0);
        squares(embeddings, &mut self.squares);
        self.scaled.clear();
        if self.squares.iter().any(|q| !SAFE.contains(q)) {
            self.rescale(embeddings, first)?;
        }
        self.take(0..n as u32);
        self.arrange(embeddings);
        Ok(())
    }

    /// Choose the rows that the points are to stand for.
    pub fn take(&mut self, rows: impl Iterator<Item = u32>) {
        self.taken.clear();
        self.taken.extend(rows);
    }

    /// Take the squared lengths of a prompt's rows, and its inverse lengths; false if a length is out of the ordinary.
    pub fn load_squares(&mut self, squares: impl Iterator<Item = f32>, inverse: &mut [f64]) -> bool {
        self.squares.clear();
        self.squares.extend(squares);
        self.scaled.clear();
        for (inverse, &square) in inverse.iter_mut().zip(&self.squares) {
            *inverse = 1.0 / f64::from(square).sqrt();
        }
        self.squares.iter().all(|q| SAFE.contains(q))
    }

    /// Go from the rows taken to points, with squared lengths known.
    pub fn arrange(&mut self, embeddings: Embeddings<'_>) {
        self.sort(embeddings);
        self.distinct(embeddings);
    }

    /// Find what is wrong with rows of strange length, and make a copy in which the good ones have a usual length.
    #[cold]
    fn rescale(&mut self, embeddings: Embeddings<'_>, first: usize) -> Result<()> {
        for (i, square) in self.squares.iter().enumerate() {
            let row = embeddings.row(i);
            if let Some(x) = row.iter().find(|x| !x.is_finite()) {
                return Err(Error::Value {
                    column: "embedding".into(),
                    row: first + i,
                    problem: format!("{x} has no direction"),
                    remedy: "embed the response again, or drop the row yourself",
                });
            }
            let factor = if SAFE.contains(square) { 1.0 } else { scale(row) };
            self.scaled.extend(row.iter().map(|&x| (f64::from(x) * factor) as f32));
        }
        squares(Embeddings { values: &self.scaled, dims: embeddings.dims }, &mut self.squares);
        Ok(())
    }

    /// Take `n` rows that are known by their similarities.
    pub fn load_given(&mut self, n: usize, keys: Option<&[u64]>, counts: Option<&[i64]>, first: usize) -> Result<()> {
        self.by_key.clear();
        self.by_key.extend(0..n as u32);
        if let Some(keys) = keys {
            self.by_key.sort_unstable_by_key(|&i| keys[i as usize]);
            if let Some(w) = self.by_key.windows(2).find(|w| keys[w[0] as usize] == keys[w[1] as usize]) {
                let (a, b) = (w[0].min(w[1]) as usize, w[0].max(w[1]) as usize);
                return Err(Error::Value {
                    column: "key".into(),
                    row: first + b,
                    problem: format!("the key of row {} comes again within the prompt", first + a),
                    remedy: "give equal responses once, with their count",
                });
            }
        }
        self.counts.clear();
        self.counts.extend((0..n).map(|row| counts.map_or(1.0, |counts| counts[row] as f64)));
        if let Some(row) = self.counts.iter().position(|&count| count < 1.0) {
            return Err(Error::Value {
                column: "count".into(),
                row: first + row,
                problem: format!("{} is less than 1", self.counts[row]),
                remedy: "leave the row out",
            });
        }
        Ok(())
    }

    /// Go from the rows taken to points when rows are known by their similarities: each is a point, in the order of keys.
    pub fn arrange_given(&mut self) {
        self.row.clear();
        self.weight.clear();
        self.of_row.clear();
        self.of_row.resize(self.by_key.len(), u32::MAX);
        self.taken.iter().for_each(|&row| self.of_row[row as usize] = 0);
        for &row in &self.by_key {
            if self.of_row[row as usize] == 0 {
                self.of_row[row as usize] = self.row.len() as u32;
                self.row.push(row);
                self.weight.push(self.counts[row as usize]);
            }
        }
    }

    fn sort(&mut self, embeddings: Embeddings<'_>) {
        self.order.clear();
        self.order.extend(self.taken.iter().map(|&i| (embeddings.row(i as usize)[0], i)));
        self.order.sort_unstable_by(|a, b| {
            // Most are told apart by their first number, without a look at the rows.
            match a.0.partial_cmp(&b.0) {
                Some(Ordering::Equal) | None => by_content(embeddings.row(a.1 as usize), embeddings.row(b.1 as usize)),
                Some(order) => order,
            }
        });
    }

    fn distinct(&mut self, embeddings: Embeddings<'_>) {
        self.row.clear();
        self.weight.clear();
        self.inverse.clear();
        self.of_row.resize(self.squares.len(), 0);
        let mut zeros = false;
        for &(first, i) in &self.order {
            let row = i as usize;
            let last = self.row.last().map(|&last| embeddings.row(last as usize));
            if self.squares[row] == 0.0 {
                zeros = true;
                self.of_row[row] = u32::MAX;
            } else if let (Some(weight), true) =
                (self.weight.last_mut(), last.is_some_and(|x| x[0] == first && x == embeddings.row(row)))
            {
                *weight += 1.0;
                self.of_row[row] = self.row.len() as u32 - 1;
            } else {
                self.of_row[row] = self.row.len() as u32;
                self.row.push(i);
                self.weight.push(1.0);
                self.inverse.push(1.0 / f64::from(self.squares[row]).sqrt());
            }
        }
        if zeros {
            let n = self.row.len() as u32;
            for &row in &self.taken {
                let point = &mut self.of_row[row as usize];
                *point = n.min(*point);
            }
        }
    }

    /// The rows to compute with: as given, or as rescaled.
    pub fn usable<'a>(&'a self, embeddings: Embeddings<'a>) -> Embeddings<'a> {
        if self.scaled.is_empty() { embeddings } else { Embeddings { values: &self.scaled, dims: embeddings.dims } }
    }

    /// Points of a range.
    pub fn side(&self, points: core::ops::Range<usize>) -> Side<'_> {
        Side { row: &self.row[points.clone()], inverse: &self.inverse[points] }
    }

    /// Points of a list: their rows and inverse lengths.
    pub fn gather(&self, points: &[u32]) -> (Vec<u32>, Vec<f64>) {
        points.iter().map(|&p| (self.row[p as usize], self.inverse[p as usize])).unzip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::points_of;

    #[test]
    fn equal_rows_are_one_point() {
        let rows = [1.0, 0.0, /* */ 0.0, 0.0, /* */ -1.0, 2.0, /* */ 1.0, -0.0, /* */ -0.0, 0.0];
        let (points, matrix) = points_of(Embeddings { values: &rows, dims: 2 });
        assert_eq!(points.of_row, [1, 2, 0, 1, 2]);
        assert_eq!(points.weight, [1.0, 2.0]);
        assert_eq!([matrix[0], matrix[9]], [1.0, 1.0]);
        assert!((matrix[1] + 1.0 / 5f64.sqrt()).abs() < 1e-7);
    }

    #[test]
    fn lengths_do_not_matter() {
        let rows = [1.0f32, 2.0, 3.0, -1.0, 0.5, 2.0];
        let (_, expected) = points_of(Embeddings { values: &rows, dims: 3 });
        for (a, b) in [(-120, 1), (-100, 120), (60, 60), (-50, -50), (10, -100)] {
            let power = |x: i32| 2f64.powi(x);
            let scaled: Vec<f32> = rows
                .iter()
                .enumerate()
                .map(|(i, &x)| (f64::from(x) * power(if i < 3 { a } else { b })) as f32)
                .collect();
            let (points, matrix) = points_of(Embeddings { values: &scaled, dims: 3 });
            assert_eq!((points.len(), matrix), (2, expected.clone()), "{a} {b}");
        }
    }

    #[test]
    fn what_has_no_direction_is_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut points = Points::default();
            let fault = points.load(Embeddings { values: &[1.0, 2.0, 3.0, bad, 1.0, 1.0], dims: 2 }, 40);
            assert!(matches!(fault, Err(Error::Value { row: 41, ref column, .. }) if column == "embedding"));
        }
    }
}
