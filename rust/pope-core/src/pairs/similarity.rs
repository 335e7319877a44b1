//! From embeddings to similarities, as integers.
//!
//! Dot products are taken in double precision, in a fixed order of operations without fused multiply-add, so that every
//! instruction set gives the same bits; multiplication commutes, so `k_jl = k_lj` to the bit. A similarity is then
//! rounded to a step of `2^-30`: finer than any embedding, half the memory of a double where similarities are kept, and
//! equal vectors come out as exactly 1, orthogonal ones as exactly 0.

use core::cmp::Ordering;
use core::ops::Range;

use crate::batch::{Batch, Floats, Vectors};
use crate::error::{Error, Result};
use crate::hash::mix;
use crate::math;
use crate::simd::{multiversion, prefetch};

/// The integer that stands for a similarity of 1.
pub const ONE: i32 = 1 << 30;
/// Pairs are formed within blocks of at most this many rows. Larger units are cut into random blocks: their cost grows
/// with the number of rows, not with its square, and what they estimate stays unbiased.
const BLOCK_ROWS: usize = 1024;
/// Dot products are summed in this many lanes.
const LANES: usize = 32;
/// Squared lengths outside this range are computed again, after scaling by a power of two.
const SAFE: Range<f64> = 1e-200..1e200;

/// The blocks of a unit with this many rows, of nearly equal size.
pub(super) fn blocks(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let count = rows.div_ceil(BLOCK_ROWS).max(1);
    (0..count).map(move |i| rows * i / count..rows * (i + 1) / count)
}

/// Number of pairs of so many rows.
pub(super) fn pairs_of(rows: usize) -> usize {
    rows * rows.saturating_sub(1) / 2
}

/// Number of similarities that belong to a unit with this many rows.
pub fn stored_pairs(rows: usize) -> usize {
    blocks(rows).map(|block| pairs_of(block.len())).sum()
}

/// Share of a unit's pairs of rows that lie within a block: the chance of any pair to be one of them.
pub(super) fn share_within_blocks(rows: usize) -> f64 {
    if rows <= BLOCK_ROWS { 1.0 } else { stored_pairs(rows) as f64 / (rows as f64 * (rows - 1) as f64 / 2.0) }
}

/// Similarities of the rows of some units; a buffer that is used again and again.
#[derive(Default)]
pub struct Similarities {
    /// Similarities of pairs `j < l` of each block of each unit, times [`ONE`].
    values: Vec<i32>,
    /// First value of each unit, and the number of values.
    starts: Vec<usize>,
    /// The rows (within the chunk) of each unit in the order in which pairs count them.
    order: Vec<u32>,
    matrix: Vec<f64>,
}

impl Similarities {
    /// Compute the similarities of the units whose first rows, counted from `start`, are `units` (with the end at last).
    pub fn load(&mut self, batch: &Batch<'_>, vectors: Vectors<'_>, start: usize, units: &[usize]) -> Result<()> {
        self.values.clear();
        self.starts.clear();
        self.order.clear();
        self.starts.push(0);
        for (u, unit) in units.windows(2).enumerate() {
            if let Some(&end) = units.get(u + 2) {
                ask_for(vectors, start + unit[1]..start + end);
            }
            let first = self.order.len();
            self.order.extend(unit[0] as u32..unit[1] as u32);
            let order = &mut self.order[first..];
            if order.len() > BLOCK_ROWS {
                arrange(batch, vectors, start, order);
            }
            for block in blocks(order.len()) {
                similar(vectors, start, &order[block], &mut self.matrix, &mut self.values)?;
            }
            self.starts.push(self.values.len());
        }
        Ok(())
    }

    /// Rows of a unit in the order of its pairs, and the similarities of these.
    pub fn unit(&self, u: usize, rows: Range<usize>) -> (&[u32], &[i32]) {
        (&self.order[rows], &self.values[self.starts[u]..self.starts[u + 1]])
    }
}

/// Prefetch rows.
fn ask_for(vectors: Vectors<'_>, rows: Range<usize>) {
    let at = rows.start * vectors.width..rows.end * vectors.width;
    match vectors.values {
        Floats::F32(x) => prefetch(&x[at]),
        Floats::F64(x) => prefetch(&x[at]),
    }
}

/// Put the rows of a large unit into an order that is random, but a property of the set of rows: sorted by content, then
/// shuffled by the unit's key. Rows of equal content are interchangeable.
#[cold]
fn arrange(batch: &Batch<'_>, vectors: Vectors<'_>, start: usize, order: &mut [u32]) {
    let key = batch.unit.map_or(0, |unit| unit[start + order[0] as usize] as u64);
    let content = |&a: &u32, &b: &u32| {
        let (a, b) = (start + a as usize, start + b as usize);
        let numbers = |row: usize| {
            let targets = batch.targets.iter().map(move |target| target.get(row));
            let count = batch.count.map_or(1.0, |count| count[row]);
            (0..vectors.width)
                .map(move |i| vectors.get(row, i))
                .chain([count, batch.behavior.get(row), batch.reward.get(row)])
                .chain(targets)
        };
        numbers(a).zip(numbers(b)).map(|(x, y)| x.total_cmp(&y)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
    };
    order.sort_by(content);
    let mut shuffled: Vec<(u64, u32)> =
        order.iter().zip(0u64..).map(|(&row, place)| (mix(place ^ mix(key)), row)).collect();
    shuffled.sort_by_key(|&(chance, _)| chance);
    order.iter_mut().zip(shuffled).for_each(|(row, (_, shuffled))| *row = shuffled);
}

/// Similarities of all pairs of some rows.
fn similar(
    vectors: Vectors<'_>,
    start: usize,
    rows: &[u32],
    matrix: &mut Vec<f64>,
    values: &mut Vec<i32>,
) -> Result<()> {
    let stride = vectors.width.next_multiple_of(LANES);
    matrix.resize((rows.len() * stride).max(matrix.len()), 0.0);
    for (out, &row) in matrix.chunks_exact_mut(stride).zip(rows) {
        load_unit_vector(vectors, start + row as usize, out)?;
    }
    let first = values.len();
    values.resize(first + pairs_of(rows.len()), 0);
    multiply(&matrix[..rows.len() * stride], stride, &mut values[first..]);
    Ok(())
}

/// Check the embeddings of rows without using them.
pub fn check_vectors(vectors: Vectors<'_>, start: usize, end: usize) -> Result<()> {
    let mut buffer = vec![0.0; vectors.width.next_multiple_of(LANES)];
    (start..end).try_for_each(|row| load_unit_vector(vectors, row, &mut buffer))
}

/// An embedding as a vector of length 1, padded with zeros.
fn load_unit_vector(vectors: Vectors<'_>, row: usize, out: &mut [f64]) -> Result<()> {
    let width = vectors.width;
    out[width..].fill(0.0);
    let at = row * width..(row + 1) * width;
    let mut square = match vectors.values {
        Floats::F32(x) => widen(&x[at], out),
        Floats::F64(x) => copy(&x[at], out),
    };
    if !SAFE.contains(&square) {
        square = rescale(&mut out[..width], row)?;
    }
    shrink(out, 1.0 / square.sqrt());
    Ok(())
}

/// Bring a vector of extreme length to one near 1; the place where embeddings without a direction are found.
#[cold]
fn rescale(x: &mut [f64], row: usize) -> Result<f64> {
    let fault = |problem: String, remedy| Error::Value { column: "embedding".into(), row, problem, remedy };
    if let Some(i) = x.iter().position(|x| !x.is_finite()) {
        let problem = format!("element {i} of the embedding is {}", x[i]);
        return Err(fault(problem, "embed the response again, or drop the row yourself"));
    }
    let largest = x.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    if largest == 0.0 {
        let problem = "the embedding is zero, and so has no direction".into();
        return Err(fault(problem, "embed the response again, or drop the row yourself"));
    }
    let power = -math::exponent(largest);
    x.iter_mut().for_each(|x| *x = math::scale(*x, power));
    Ok(x.iter().map(|x| x * x).sum())
}

#[inline(always)]
fn sum_lanes(mut x: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for j in 0..half {
            x[j] += x[j + half];
        }
        half /= 2;
    }
    x[0]
}

/// Dot products of two by two vectors of equal length, `W` lanes at a time: as many as the registers hold. Each is summed
/// in the order of [`dot`]; together they only load every element once for two of them.
#[inline(always)]
fn two_by_two<const W: usize>(left: [&[f64]; 2], right: [&[f64]; 2]) -> [[f64; 2]; 2] {
    let rows = [left[0], left[1], right[0], right[1]].map(|row| row.as_chunks::<LANES>().0);
    let steps = rows.iter().fold(usize::MAX, |least, row| least.min(row.len()));
    let [a, b, c, d] = rows.map(|row| &row[..steps]);
    let mut sums = [[0.0f64; LANES]; 4];
    for start in (0..LANES).step_by(W) {
        let mut part = [[0.0f64; W]; 4];
        for k in 0..steps {
            let at = start..start + W;
            let (a, b, c, d) = (&a[k][at.clone()], &b[k][at.clone()], &c[k][at.clone()], &d[k][at]);
            for i in 0..W {
                part[0][i] += a[i] * c[i];
                part[1][i] += a[i] * d[i];
                part[2][i] += b[i] * c[i];
                part[3][i] += b[i] * d[i];
            }
        }
        for (sums, part) in sums.iter_mut().zip(&part) {
            sums[start..start + W].copy_from_slice(part);
        }
    }
    let [ac, ad, bc, bd] = sums.map(sum_lanes);
    [[ac, ad], [bc, bd]]
}

#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0f64; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for j in 0..LANES {
            sums[j] += a[j] * b[j];
        }
    }
    sum_lanes(sums)
}

multiversion! {
    /// Widen to double precision; the squared length. `out` is padded with zeros.
    fn widen(source: &[f32], out: &mut [f64]) -> f64 {
        let whole = source.len() / LANES * LANES;
        let mut sums = [0.0f64; LANES];
        for (x, o) in source.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
            for j in 0..LANES {
                let wide = f64::from(x[j]);
                o[j] = wide;
                sums[j] += wide * wide;
            }
        }
        for (j, (&x, o)) in source[whole..].iter().zip(&mut out[whole..]).enumerate() {
            let wide = f64::from(x);
            *o = wide;
            sums[j] += wide * wide;
        }
        sum_lanes(sums)
    }
}

multiversion! {
    /// Copy; the squared length.
    fn copy(source: &[f64], out: &mut [f64]) -> f64 {
        for (o, &x) in out.iter_mut().zip(source) {
            *o = x;
        }
        dot(out, out)
    }
}

multiversion! {
    fn shrink(x: &mut [f64], factor: f64) {
        for x in x.iter_mut() {
            *x *= factor;
        }
    }
}

/// A dot product of unit vectors as an integer, rounded to the nearest, ties to even.
#[inline(always)]
fn quantize(cosine: f64) -> i32 {
    // Adding and subtracting this rounds to a whole number.
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    const MOST: f64 = ONE as f64;
    let k = cosine * MOST;
    let k = if k > MOST { MOST } else { k };
    let k = if k < -MOST { -MOST } else { k };
    ((k + ROUND) - ROUND) as i32
}

multiversion! {
    /// Rounded dot products of all pairs of rows of a matrix.
    fn multiply_by<const WIDE: bool>(matrix: &[f64], stride: usize, out: &mut [i32]) {
        let rows = matrix.len() / stride;
        let row = |i: usize| &matrix[i * stride..(i + 1) * stride];
        let mut at = 0;
        for j in (0..rows).step_by(2) {
            if j + 1 == rows {
                break;
            }
            // Pairs of row j come first in `out`, then those of row j + 1.
            let (a, b) = (row(j), row(j + 1));
            let (of_first, of_second) = out[at..].split_at_mut(rows - j - 1);
            at += 2 * (rows - j) - 3;
            of_first[0] = quantize(dot(a, b));
            let mut l = j + 2;
            while l + 1 < rows {
                let right = [row(l), row(l + 1)];
                let dots = if WIDE { two_by_two::<16>([a, b], right) } else { two_by_two::<8>([a, b], right) };
                for c in 0..2 {
                    of_first[l + c - j - 1] = quantize(dots[0][c]);
                    of_second[l + c - j - 2] = quantize(dots[1][c]);
                }
                l += 2;
            }
            if l < rows {
                of_first[l - j - 1] = quantize(dot(a, row(l)));
                of_second[l - j - 2] = quantize(dot(b, row(l)));
            }
        }
    }
}

fn multiply(matrix: &[f64], stride: usize, out: &mut [i32]) {
    // How many sums fit the registers depends on how many there are; the result does not.
    #[cfg(target_arch = "x86_64")]
    if crate::simd::has_avx512() {
        return multiply_by::<true>(matrix, stride, out);
    }
    multiply_by::<false>(matrix, stride, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Similarities of all pairs of some rows.
    fn of(values: Floats<'_>, width: usize) -> Result<Vec<i32>> {
        let vectors = Vectors { values, width };
        let rows: Vec<u32> = (0..(values.len() / width) as u32).collect();
        let (mut matrix, mut out) = (vec![f64::NAN; 7], Vec::new());
        similar(vectors, 0, &rows, &mut matrix, &mut out)?;
        Ok(out)
    }

    #[test]
    fn by_hand() {
        let diagonal = (f64::from(ONE) * 0.5f64.sqrt()).round() as i32;
        // (1, 0), (3, 3), (0, 2), (-5, 0), in pairs.
        let x = [1.0, 0.0, 3.0, 3.0, 0.0, 2.0, -5.0, 0.0];
        assert_eq!(of(Floats::F64(&x), 2).unwrap(), [diagonal, 0, -ONE, diagonal, -diagonal, 0]);
        let single: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        assert_eq!(of(Floats::F32(&single), 2).unwrap(), [diagonal, 0, -ONE, diagonal, -diagonal, 0]);
        assert_eq!(of(Floats::F64(&[0.3, -0.7]), 1).unwrap(), [-ONE]);
    }

    #[test]
    fn any_length() {
        for size in [1e-320, 1e-300, 1e-160, 1e-30, 1e150, 1e300] {
            let x: Vec<f64> = [3.0, 4.0, 4.0, 3.0].map(|x| x * size).into();
            let k = of(Floats::F64(&x), 2).unwrap()[0];
            assert!((f64::from(k) / f64::from(ONE) - 0.96).abs() < 1e-3 * 1e-160 / size + 1e-9, "{size} {k}");
        }
        assert_eq!(of(Floats::F32(&[1e-45, 0.0, 3e38, 0.0]), 2).unwrap(), [ONE]);
    }

    #[test]
    fn vectors_without_a_direction() {
        let fault = |x: &[f64]| match of(Floats::F64(x), 2) {
            Err(Error::Value { column, row, problem, .. }) => (column, row, problem),
            other => panic!("{other:?}"),
        };
        let (column, row, problem) = fault(&[1.0, 2.0, 0.5, f64::NAN]);
        assert_eq!((column.as_str(), row), ("embedding", 1));
        assert_eq!(problem, "element 1 of the embedding is NaN");
        assert_eq!(fault(&[1.0, 2.0, f64::NEG_INFINITY, 0.0]).2, "element 0 of the embedding is -inf");
        assert!(fault(&[0.0, -0.0, 1.0, 1.0]).2.contains("zero"));
        assert!(of(Floats::F32(&[f32::INFINITY, 1.0]), 2).is_err());
    }

    #[test]
    fn blocks_cover_large_units() {
        for rows in [1, 2, 1000, 1024, 1025, 5000] {
            let blocks: Vec<_> = blocks(rows).collect();
            assert_eq!(blocks.iter().map(Range::len).sum::<usize>(), rows);
            assert!(blocks.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(
                blocks
                    .iter()
                    .all(|block| block.len() <= BLOCK_ROWS && block.len() * blocks.len() + blocks.len() > rows)
            );
        }
        assert_eq!(stored_pairs(1024), 1024 * 1023 / 2);
        assert_eq!(stored_pairs(1025), 512 * 511 / 2 + 513 * 512 / 2);
        assert_eq!(share_within_blocks(1), 1.0);
        assert!((share_within_blocks(2048) - 1023.0 / 2047.0).abs() < 1e-15);
    }

    proptest! {
        #[test]
        fn agrees_with_plain_sums(rows in prop::collection::vec(prop::collection::vec(-1.0f64..1.0, 70), 2..6)) {
            let flat: Vec<f64> = rows.concat();
            let found = of(Floats::F64(&flat), 70).unwrap();
            let plain = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
            let mut expected = Vec::new();
            for j in 0..rows.len() {
                for l in j + 1..rows.len() {
                    let (a, b) = (&rows[j], &rows[l]);
                    expected.push(plain(a, b) / (plain(a, a) * plain(b, b)).sqrt());
                }
            }
            for (k, e) in found.iter().zip(&expected) {
                prop_assert!((f64::from(*k) / f64::from(ONE) - e).abs() < 0.6 / f64::from(ONE));
            }
        }

        #[test]
        fn any_tile_gives_the_same_bits(rows in 1usize..8, values in prop::collection::vec(-1.0f64..1.0, 7 * 96)) {
            let matrix = &values[..rows * 96];
            let mut found = [vec![0; pairs_of(rows)], vec![0; pairs_of(rows)], Vec::new()];
            multiply_by::<true>(matrix, 96, &mut found[0]);
            multiply_by::<false>(matrix, 96, &mut found[1]);
            for j in 0..rows {
                for l in j + 1..rows {
                    found[2].push(quantize(dot(&matrix[j * 96..(j + 1) * 96], &matrix[l * 96..(l + 1) * 96])));
                }
            }
            prop_assert_eq!(&found[0], &found[2]);
            prop_assert_eq!(&found[1], &found[2]);
        }

        #[test]
        fn either_way_round(a in prop::collection::vec(-1e3f32..1e3, 50), b in prop::collection::vec(-1e3f32..1e3, 50)) {
            let (there, back) = ([a.clone(), b.clone()].concat(), [b, a].concat());
            prop_assert_eq!(of(Floats::F32(&there), 50).unwrap(), of(Floats::F32(&back), 50).unwrap());
        }
    }
}
