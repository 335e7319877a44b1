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

/// One step: the lane is the innermost loop but for the two that are unrolled, so it becomes one vector instruction for
/// each product, and the sums stay in registers.
#[inline(always)]
fn add_products<const R: usize, const C: usize, const W: usize, const UPPER: bool>(
    sums: &mut [[[f32; W]; C]; R],
    a: &[&[f32; W]; R],
    b: &[&[f32; W]; C],
) {
    for w in 0..W {
        for r in 0..R {
            for c in 0..C {
                if !UPPER || c >= r {
                    sums[r][c][w] += a[r][w] * b[c][w];
                }
            }
        }
    }
}

/// Lanes `START..START + W` of the dot products of `R` by `C` vectors; with `UPPER` only of `r` by `c >= r`.
#[inline(always)]
fn lanes<const R: usize, const C: usize, const W: usize, const START: usize, const UPPER: bool>(
    left: &[&[f32]; R],
    right: &[&[f32]; C],
) -> [[[f32; W]; C]; R] {
    let dims = left[0].len();
    let steps = dims / LANES;
    let (mut left_steps, mut right_steps) = ([&[[0.0f32; LANES]; 0][..]; R], [&[[0.0f32; LANES]; 0][..]; C]);
    for r in 0..R {
        left_steps[r] = &left[r].as_chunks().0[..steps];
    }
    for c in 0..C {
        right_steps[c] = &right[c].as_chunks().0[..steps];
    }
    let (mut a, mut b) = ([&[0.0f32; W]; R], [&[0.0f32; W]; C]);
    let mut sums = [[[0.0f32; W]; C]; R];
    for k in 0..steps {
        for r in 0..R {
            a[r] = left_steps[r][k][START..].first_chunk().unwrap_or(a[r]);
        }
        for c in 0..C {
            b[c] = right_steps[c][k][START..].first_chunk().unwrap_or(b[c]);
        }
        add_products::<R, C, W, UPPER>(&mut sums, &a, &b);
    }
    let rest = steps * LANES + START;
    if rest < dims {
        // The last few elements, with zeros up to a whole step, which add nothing.
        let n = W.min(dims - rest);
        let (mut a, mut b) = ([[0.0f32; W]; R], [[0.0f32; W]; C]);
        for r in 0..R {
            a[r][..n].copy_from_slice(&left[r][rest..rest + n]);
        }
        for c in 0..C {
            b[c][..n].copy_from_slice(&right[c][rest..rest + n]);
        }
        add_products::<R, C, W, UPPER>(&mut sums, &a.each_ref(), &b.each_ref());
    }
    sums
}

/// Half of the lanes: what a tile sums at a time where registers are few.
const HALF: usize = LANES / 2;

/// Dot products of `R` by 4 vectors; with `UPPER` those below the diagonal are 0.
#[inline(always)]
fn tile<const R: usize, const WIDE: bool, const UPPER: bool>(left: &[&[f32]; R], right: &[&[f32]; 4]) -> [[f32; 4]; R] {
    let mut sums = [[[0.0f32; LANES]; 4]; R];
    if WIDE {
        sums = lanes::<R, 4, LANES, 0, UPPER>(left, right);
    } else {
        let low = lanes::<R, 4, HALF, 0, UPPER>(left, right);
        let high = lanes::<R, 4, HALF, HALF, UPPER>(left, right);
        for r in 0..R {
            for c in 0..4 {
                sums[r][c][..HALF].copy_from_slice(&low[r][c]);
                sums[r][c][HALF..].copy_from_slice(&high[r][c]);
            }
        }
    }
    let mut dots = [[0.0f32; 4]; R];
    for r in 0..R {
        dots[r] = sum_lanes(&sums[r]);
    }
    dots
}

/// The pairwise sums of four sets of lanes. SSE2 is part of every x86-64; left to itself, the compiler gathers the lanes
/// one by one, which takes longer than all the products.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn sum_lanes(lanes: &[[f32; LANES]; 4]) -> [f32; 4] {
    use core::arch::x86_64::{_mm_add_ps, _mm_loadu_ps, _mm_movehl_ps, _mm_movelh_ps, _mm_shuffle_ps, _mm_storeu_ps};
    let mut out = [0.0; 4];
    // SAFETY: the instructions exist on this architecture; four numbers are read from slices of four and written to an
    // array of four.
    unsafe {
        let quarter = |lanes: &[f32; LANES], i: usize| _mm_loadu_ps(lanes[4 * i..4 * i + 4].as_ptr());
        let four = |x: &[f32; LANES]| {
            _mm_add_ps(_mm_add_ps(quarter(x, 0), quarter(x, 2)), _mm_add_ps(quarter(x, 1), quarter(x, 3)))
        };
        let [a, b, c, d] = [four(&lanes[0]), four(&lanes[1]), four(&lanes[2]), four(&lanes[3])];
        let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
        let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
        let (even, odd) = (_mm_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm_shuffle_ps::<0b11_01_11_01>(ab, cd));
        _mm_storeu_ps(out.as_mut_ptr(), _mm_add_ps(even, odd));
    }
    out
}

/// The pairwise sums of four sets of lanes.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn sum_lanes(lanes: &[[f32; LANES]; 4]) -> [f32; 4] {
    plain_sum_lanes(lanes)
}

/// [`sum_lanes`] without instructions of any machine.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[inline(always)]
fn plain_sum_lanes(lanes: &[[f32; LANES]; 4]) -> [f32; 4] {
    let mut lanes = *lanes;
    let mut width = HALF;
    while width > 0 {
        for lanes in &mut lanes {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        width /= 2;
    }
    [lanes[0][0], lanes[1][0], lanes[2][0], lanes[3][0]]
}

#[inline(always)]
fn tiles<const R: usize, const WIDE: bool>(
    embeddings: Embeddings<'_>,
    left: &[u32],
    right: &[u32],
    upper: bool,
    out: &mut [f32],
) {
    for i in (0..left.len()).step_by(R) {
        // At an edge the last vector is taken again and its results are dropped.
        let mut a = [&[0.0f32][..]; R];
        for r in 0..R {
            a[r] = embeddings.row(left[(i + r).min(left.len() - 1)] as usize);
        }
        let first = if upper { i / 4 * 4 } else { 0 };
        for j in (first..right.len()).step_by(4) {
            let mut b = [&[0.0f32][..]; 4];
            for c in 0..4 {
                b[c] = embeddings.row(right[(j + c).min(right.len() - 1)] as usize);
            }
            // Where rows meet themselves, what is below the diagonal need not be computed.
            let dots = if upper && j == i { tile::<R, WIDE, true>(&a, &b) } else { tile::<R, WIDE, false>(&a, &b) };
            for (r, row) in out.chunks_mut(right.len()).skip(i).take(R).enumerate() {
                let n = right.len().min(j + 4) - j;
                row[j..j + n].copy_from_slice(&dots[r][..n]);
            }
        }
    }
}

multiversion! {
    fn dots_by<const WIDE: bool>(embeddings: Embeddings<'_>, left: &[u32], right: &[u32], upper: bool, out: &mut [f32]) {
        if WIDE {
            tiles::<4, true>(embeddings, left, right, upper, out);
        } else {
            tiles::<2, false>(embeddings, left, right, upper, out);
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
            let [[lanes]] = lanes::<1, 1, LANES, 0, false>(&[row], &[row]);
            *o = sum_lanes(&[lanes; 4])[0];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::crowd;

    /// The definition.
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        a.iter().zip(b).enumerate().for_each(|(k, (x, y))| lanes[k % LANES] += x * y);
        plain_sum_lanes(&[lanes; 4])[2]
    }

    #[test]
    fn every_tile_gives_the_same_bits() {
        for dims in [1, 7, 8, 9, 15, 16, 17, 31, 40, 384] {
            let rows = crowd(11, dims, 11);
            let embeddings = Embeddings { values: &rows, dims };
            let (left, right): (Vec<u32>, Vec<u32>) = ((0..7).collect(), (2..11).collect());
            let mut found = [vec![0.0; 63], vec![0.0; 63], vec![0.0; 63]];
            dots(embeddings, &left, &right, false, &mut found[0]);
            dots_by::<true>(embeddings, &left, &right, false, &mut found[1]);
            dots_by::<false>(embeddings, &left, &right, false, &mut found[2]);
            let mut lengths = vec![0.0; 11];
            squares(embeddings, &mut lengths);
            for (i, &a) in left.iter().enumerate() {
                for (j, &b) in right.iter().enumerate() {
                    let expected = dot(embeddings.row(a as usize), embeddings.row(b as usize));
                    assert_eq!(expected, dot(embeddings.row(b as usize), embeddings.row(a as usize)));
                    assert!(found.iter().all(|x| x[i * 9 + j].to_bits() == expected.to_bits()), "{dims} {a} {b}");
                }
                assert_eq!(lengths[i].to_bits(), dot(embeddings.row(i), embeddings.row(i)).to_bits());
            }
        }
    }

    #[test]
    fn the_upper_half_is_whole() {
        for n in 1..10 {
            let rows = crowd(n, 5, n);
            let embeddings = Embeddings { values: &rows, dims: 5 };
            let all: Vec<u32> = (0..n as u32).collect();
            let mut whole = vec![0.0; n * n];
            dots(embeddings, &all, &all, false, &mut whole);
            for by in [dots_by::<true>, dots_by::<false>] {
                let mut upper = vec![f32::NAN; n * n];
                by(embeddings, &all, &all, true, &mut upper);
                assert!((0..n).all(|i| (i..n).all(|j| whole[i * n + j] == upper[i * n + j])));
            }
        }
    }

    #[test]
    fn similarities_lie_on_a_grid() {
        assert_eq!(quantize(1.0 + 1e-7), 1.0);
        assert_eq!(quantize(-1.5), -1.0);
        assert_eq!(quantize(0.7), (0.7f64 * f64::from(1 << 24)).round() / f64::from(1 << 24));
        assert_eq!(quantize(1e-9), 0.0);
        assert!(quantize(f64::NAN).is_nan());
    }
}
