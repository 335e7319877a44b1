//! The matrix of similarities of a prompt's points.

use std::sync::Mutex;

use super::Crew;
use super::chain::stride;
use super::gram::{BLOCK, Embeddings, dots, quantize};
use super::points::{Points, Side};
use crate::error::{Error, Result};
use crate::par::for_each_task;
use crate::simd::multiversion;

/// Most points for which a matrix is made: it takes 2 GiB.
pub const MAX_POINTS: usize = 1 << 14;

multiversion! {
    /// Dot products to similarities.
    fn finish(dots: &[f32], left: &[f64], right: &[f64], out: &mut [f64], stride: usize) {
        for (i, &a) in left.iter().enumerate() {
            let dots = &dots[i * right.len()..(i + 1) * right.len()];
            for ((o, &dot), &b) in out[i * stride..].iter_mut().zip(dots).zip(right) {
                *o = quantize(f64::from(dot) * (a * b));
            }
        }
    }
}

/// Similarities of the points `left` to the points `right`, a row of `out` every `stride` cells. With `upper`, those left
/// of the diagonal are undefined.
pub(super) fn similarities(
    embeddings: Embeddings<'_>,
    left: Side<'_>,
    right: Side<'_>,
    upper: bool,
    buffer: &mut Vec<f32>,
    (out, stride): (&mut [f64], usize),
) {
    let cells = left.row.len() * right.row.len();
    if buffer.len() < cells {
        buffer.resize(cells, 0.0);
    }
    let buffer = &mut buffer[..cells];
    dots(embeddings, left.row, right.row, upper, buffer);
    finish(buffer, left.inverse, right.inverse, out, stride);
}

/// Similarities of the rows of a small prompt, all to all, whose row numbers are `rows`; false, and nothing, if a row needs a
/// closer look.
pub(super) fn of_rows(
    embeddings: Embeddings<'_>,
    rows: &[u32],
    points: &mut Points,
    buffer: &mut Vec<f32>,
    out: &mut Vec<f64>,
) -> bool {
    let n = rows.len();
    let mut inverse = [0.0; BLOCK];
    buffer.resize(n * n, 0.0);
    out.resize(n * n, 0.0);
    dots(embeddings, rows, rows, true, buffer);
    if !points.load_squares(buffer.iter().step_by(n + 1).copied(), &mut inverse[..n]) {
        return false;
    }
    finish(buffer, &inverse[..n], &inverse[..n], out, n);
    mirror(out, n, n);
    true
}

/// Copy the upper half of a matrix to its lower half.
#[inline(always)]
fn mirror(matrix: &mut [f64], n: usize, stride: usize) {
    for i in 1..n {
        for j in 0..i {
            matrix[i * stride + j] = matrix[j * stride + i];
        }
    }
}

/// The matrix of points of a small prompt from that of its `n` rows.
pub(super) fn of_points(points: &Points, rows: &[f64], n: usize, matrix: &mut Vec<f64>) -> Result<()> {
    let stride = stride(points.len());
    reserve(matrix, points.len() * stride)?;
    for (&from, out) in points.row.iter().zip(matrix.chunks_exact_mut(stride.max(1))) {
        let row = &rows[from as usize * n..][..n];
        for (o, &to) in out.iter_mut().zip(&points.row) {
            *o = row[to as usize];
        }
    }
    Ok(())
}

/// Make room for `cells`; what was there is lost.
pub(super) fn reserve(matrix: &mut Vec<f64>, cells: usize) -> Result<()> {
    if matrix.len() < cells {
        *matrix = Vec::new();
        let mut room: Vec<f64> = Vec::new();
        let enough = room.try_reserve_exact(cells);
        enough.map_err(|_| Error::Config(format!("no memory for a matrix of {} MB", cells >> 17)))?;
        drop(room);
        // Pages that the system zeroes when they are first touched, which many threads do.
        *matrix = vec![0.0; cells];
    }
    Ok(())
}

/// Check that a matrix of `n` points is not too large.
pub(super) fn check_size(n: usize) -> Result<()> {
    if n > MAX_POINTS {
        return Err(Error::Config(format!(
            "a prompt has {n} distinct responses; average and complete linkage take at most {MAX_POINTS}, because their \
             memory grows with the square. Remedy: linkage 'leader'"
        )));
    }
    Ok(())
}

/// Similarities of all points to all points.
pub(super) fn square(
    points: &Points,
    embeddings: Embeddings<'_>,
    crew: &mut Crew<'_>,
    buffer: &mut Vec<f32>,
    matrix: &mut Vec<f64>,
) -> Result<()> {
    let embeddings = points.usable(embeddings);
    let n = points.len();
    let stride = stride(n);
    reserve(matrix, n * stride)?;
    if n <= BLOCK {
        let all = points.side(0..n);
        similarities(embeddings, all, all, true, buffer, (matrix, stride));
        mirror(matrix, n, stride);
        return Ok(());
    }
    let blocks = n.div_ceil(BLOCK);
    let block = |b: usize| b * BLOCK..n.min((b + 1) * BLOCK);
    let bands: Vec<_> = matrix[..n * stride].chunks_mut(BLOCK * stride).map(Mutex::new).collect();
    let pairs: Vec<_> = (0..blocks).flat_map(|i| (i..blocks).map(move |j| (i, j))).collect();
    let tile = |(dots, cells): &mut (Vec<f32>, Vec<f64>), task: usize| {
        let (i, j) = pairs[task];
        let (left, right) = (block(i), block(j));
        similarities(embeddings, points.side(left.clone()), points.side(right.clone()), false, dots, (cells, BLOCK));
        let mut band = bands[i].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (row, cells) in band.chunks_mut(stride).zip(cells.chunks(BLOCK)) {
            row[right.clone()].copy_from_slice(&cells[..right.len()]);
        }
        drop(band);
        let mut band = bands[j].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (c, row) in band.chunks_mut(stride).enumerate() {
            for (o, cells) in row[left.clone()].iter_mut().zip(cells.chunks(BLOCK)) {
                *o = cells[c];
            }
        }
        Ok(())
    };
    let scratch = || (Vec::new(), vec![0.0; BLOCK * BLOCK]);
    if crew.threads == 1 {
        let mut scratch = scratch();
        return (0..pairs.len()).try_for_each(|task| tile(&mut scratch, task));
    }
    let mut workers: Vec<_> = (0..crew.threads).map(|_| scratch()).collect();
    for_each_task(&mut workers, pairs.len(), crew.interrupt, tile)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::crowd;
    use crate::par::Uninterrupted;

    #[test]
    fn blocks_and_threads_give_the_same_bits() {
        for n in [1, 8, 63, 64, 65, 130, 200] {
            let rows = crowd(n, 19, n);
            let embeddings = Embeddings { values: &rows, dims: 19 };
            let mut points = Points::default();
            points.load(embeddings, 0).unwrap();
            let (mut one, mut many) = (Vec::new(), Vec::new());
            for (threads, matrix) in [(1, &mut one), (3, &mut many)] {
                let mut crew = Crew { threads, interrupt: &mut Uninterrupted };
                square(&points, embeddings, &mut crew, &mut Vec::new(), matrix).unwrap();
            }
            assert_eq!(one, many);
            let side = |i| points.side(i..i + 1);
            for (i, j) in [(0, 0), (n / 2, n - 1), (n - 1, n / 3)] {
                let mut one_pair = [0.0];
                similarities(embeddings, side(i), side(j), false, &mut Vec::new(), (&mut one_pair, 1));
                assert_eq!([one[i * stride(n) + j], one[j * stride(n) + i]], [one_pair[0]; 2]);
            }
        }
    }

    #[test]
    fn small_prompts_take_a_shorter_way_to_the_same_matrix() {
        let rows = crowd(30, 10, 12);
        let embeddings = Embeddings { values: &rows, dims: 10 };
        let all: Vec<u32> = (0..30).collect();
        let (mut points, mut by_row, mut found) = (Points::default(), Vec::new(), Vec::new());
        assert!(of_rows(embeddings, &all, &mut points, &mut Vec::new(), &mut by_row));
        points.take(0..30);
        points.arrange(embeddings);
        of_points(&points, &by_row, 30, &mut found).unwrap();
        let (expected_points, expected) = crate::cluster::testing::points_of(embeddings);
        assert_eq!((points.len(), &points.of_row), (12, &expected_points.of_row));
        for i in 0..12 {
            assert_eq!(found[i * stride(12)..][..12], expected[i * stride(12)..][..12]);
        }
    }
}
