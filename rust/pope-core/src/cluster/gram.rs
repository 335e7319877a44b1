//! Cosine similarities of embeddings: dot products in tiles that the registers hold.
//!
//! The dot product is defined as 16 partial sums in single precision, element `k` going to lane `k mod 16`, which are
//! then added pairwise (8 + 8, 4 + 4, ...). A tile computes many of them at a time, but each in this order, so that
//! neither the tile, nor the instruction set, nor the order of the two vectors changes a bit.

use crate::simd::multiversion;

/// Partial sums of a dot product.
const LANES: usize = 16;
/// Rows of a block: with its other side it stays in the second-level cache.
pub(super) const BLOCK: usize = 64;
/// Similarities are multiples of `2^-24`: finer than the error of a dot product in single precision, and coarse enough
/// that sums of them are exact in double precision (up to `2^29` pairs).
const GRID: f64 = 1.5 * (1u64 << 28) as f64;

/// Embeddings, row after row.
#[derive(Clone, Copy, Debug)]
pub struct Embeddings<'a> {
    /// All rows.
    pub values: &'a [f32],
    /// Numbers per row.
    pub dims: usize,
}

impl<'a> Embeddings<'a> {
    pub(super) fn part(self, rows: core::ops::Range<usize>) -> Self {
        Embeddings { values: &self.values[rows.start * self.dims..rows.end * self.dims], dims: self.dims }
    }

    #[inline(always)]
    pub(super) fn row(self, i: usize) -> &'a [f32] {
        &self.values[i * self.dims..(i + 1) * self.dims]
    }
}

/// Round to the grid of similarities and into [-1, 1].
#[inline(always)]
pub(super) fn quantize(x: f64) -> f64 {
    let x = (x + GRID) - GRID;
    let x = if x > 1.0 { 1.0 } else { x };
    if x < -1.0 { -1.0 } else { x }
}

#[inline(always)]
fn combine<const W: usize>(low: [f32; W], high: [f32; W]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    lanes[..W].copy_from_slice(&low);
    if W < LANES {
        lanes[W..].copy_from_slice(&high);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Lanes `start..start + W` of the dot products of `R` by `C` vectors.
#[inline(always)]
fn lanes<const R: usize, const C: usize, const W: usize>(
    left: [&[f32]; R],
    right: [&[f32]; C],
    start: usize,
) -> [[[f32; W]; C]; R] {
    let whole = left[0].len() / LANES;
    let left_chunks = left.map(|x| &x.as_chunks::<LANES>().0[..whole]);
    let right_chunks = right.map(|x| &x.as_chunks::<LANES>().0[..whole]);
    let mut sums = [[[0.0f32; W]; C]; R];
    for k in 0..whole {
        for c in 0..C {
            for r in 0..R {
                for w in 0..W {
                    sums[r][c][w] += left_chunks[r][k][start + w] * right_chunks[c][k][start + w];
                }
            }
        }
    }
    let rest = left[0].len() % LANES;
    for w in 0..W.min(rest.saturating_sub(start)) {
        for r in 0..R {
            for c in 0..C {
                sums[r][c][w] += left[r][whole * LANES + start + w] * right[c][whole * LANES + start + w];
            }
        }
    }
    sums
}

/// Dot products of `R` by `C` vectors.
#[inline(always)]
fn tile<const R: usize, const C: usize, const W: usize>(left: [&[f32]; R], right: [&[f32]; C]) -> [[f32; C]; R] {
    let low = lanes::<R, C, W>(left, right, 0);
    let high = if W < LANES { lanes::<R, C, W>(left, right, W) } else { [[[0.0; W]; C]; R] };
    core::array::from_fn(|r| core::array::from_fn(|c| combine(low[r][c], high[r][c])))
}

#[inline(always)]
fn tiles<const R: usize, const C: usize, const W: usize>(
    embeddings: Embeddings<'_>,
    left: &[u32],
    right: &[u32],
    upper: bool,
    out: &mut [f32],
) {
    for i in (0..left.len()).step_by(R) {
        // At an edge the last vector is taken again and its results are dropped.
        let a = core::array::from_fn(|r| embeddings.row(left[(i + r).min(left.len() - 1)] as usize));
        let first = if upper { i / C * C } else { 0 };
        for j in (first..right.len()).step_by(C) {
            let b = core::array::from_fn(|c| embeddings.row(right[(j + c).min(right.len() - 1)] as usize));
            let dots = tile::<R, C, W>(a, b);
            for (r, row) in out.chunks_mut(right.len()).skip(i).take(R).enumerate() {
                let n = C.min(right.len() - j);
                row[j..j + n].copy_from_slice(&dots[r][..n]);
            }
        }
    }
}

multiversion! {
    fn dots_by<const WIDE: bool>(embeddings: Embeddings<'_>, left: &[u32], right: &[u32], upper: bool, out: &mut [f32]) {
        if WIDE {
            tiles::<4, 4, 16>(embeddings, left, right, upper, out);
        } else {
            tiles::<2, 4, 8>(embeddings, left, right, upper, out);
        }
    }
}

/// `out[i, j] = embeddings[left[i]] . embeddings[right[j]]`; with `upper` only where `j >= i` (the rest is undefined).
pub(super) fn dots(embeddings: Embeddings<'_>, left: &[u32], right: &[u32], upper: bool, out: &mut [f32]) {
    // How many sums fit the registers depends on how many there are; the result does not.
    #[cfg(target_arch = "x86_64")]
    if crate::simd::has_avx512() {
        return dots_by::<true>(embeddings, left, right, upper, out);
    }
    dots_by::<false>(embeddings, left, right, upper, out);
}

multiversion! {
    /// Squared length of every row.
    pub(super) fn squares(embeddings: Embeddings<'_>, out: &mut [f32]) {
        for (i, o) in out.iter_mut().enumerate() {
            let row = embeddings.row(i);
            *o = tile::<1, 1, 16>([row], [row])[0][0];
        }
    }
}
