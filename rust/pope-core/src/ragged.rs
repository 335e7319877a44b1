//! Token-level log-probabilities: ragged rows as `offsets` and `values` (the Arrow list layout), read once.

use crate::batch::Floats;
use crate::error::{Error, Result};
use crate::par::{Interrupt, for_each_task};
use crate::simd::multiversion;

/// Partial sums per row: element `i` goes to lane `i mod 16`, lanes are added pairwise at the end. This order is part of
/// the result's definition; it lets every instruction set use its full width.
const LANES: usize = 16;
/// Rows per task.
const TASK: usize = 1 << 14;

fn check(offsets: &[i64], lengths: &[usize]) -> Result<()> {
    let len = lengths[0];
    if lengths.iter().any(|&l| l != len) {
        return Err(Error::Shape(format!("token columns have different numbers of tokens: {lengths:?}")));
    }
    let ordered = offsets.windows(2).all(|w| w[0] <= w[1]);
    if offsets.first().is_none_or(|&o| o < 0) || !ordered || offsets.last().is_none_or(|&o| o as u64 > len as u64) {
        return Err(Error::Shape(format!("offsets must ascend from 0 to at most the {len} tokens there are")));
    }
    Ok(())
}

#[inline(always)]
fn combine(lanes: [f64; LANES]) -> f64 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn sum<T: Copy + Into<f64>>(values: &[T]) -> f64 {
    let mut lanes = [0.0; LANES];
    let chunks = values.chunks_exact(LANES);
    for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += x.into();
    }
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += chunk[i].into();
        }
    }
    combine(lanes)
}

multiversion! {
    fn sum_rows(offsets: &[i64], values: Floats<'_>, out: &mut [f64]) {
        for (o, w) in out.iter_mut().zip(offsets.windows(2)) {
            let range = w[0] as usize..w[1] as usize;
            *o = match values {
                Floats::F32(values) => sum(&values[range]),
                Floats::F64(values) => sum(&values[range]),
            };
        }
    }
}

/// Split rows into tasks and let every task write its own part of each output.
fn by_rows<const OUTPUTS: usize>(
    offsets: &[i64],
    threads: usize,
    interrupt: &mut dyn Interrupt,
    work: impl Fn(&[i64], [&mut [f64]; OUTPUTS]) + Sync,
) -> Result<[Vec<f64>; OUTPUTS]> {
    let rows = offsets.len() - 1;
    let mut outputs: [Vec<f64>; OUTPUTS] = core::array::from_fn(|_| vec![0.0; rows]);
    {
        let mut parts: Vec<_> = outputs.iter_mut().map(|o| o.chunks_mut(TASK)).collect();
        let tasks: Vec<_> = (0..rows.div_ceil(TASK))
            .map(|_| {
                let part: Vec<&mut [f64]> = parts.iter_mut().filter_map(Iterator::next).collect();
                std::sync::Mutex::new(<[&mut [f64]; OUTPUTS]>::try_from(part).ok())
            })
            .collect();
        for_each_task(&mut vec![(); threads.max(1)], tasks.len(), interrupt, |(), task| {
            let part = tasks[task].lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            if let Some(part) = part {
                let start = task * TASK;
                work(&offsets[start..=start + part[0].len()], part);
            }
            Ok(())
        })?;
    }
    Ok(outputs)
}

/// Sum of each row's token log-probabilities (nats); an empty row sums to 0, `-inf` is kept.
pub fn sum_tokens(
    offsets: &[i64],
    values: Floats<'_>,
    threads: usize,
    interrupt: &mut dyn Interrupt,
) -> Result<Vec<f64>> {
    check(offsets, &[values.len()])?;
    let [sums] = by_rows(offsets, threads, interrupt, |offsets, [out]| sum_rows(offsets, values, out))?;
    if let Some(row) = sums.iter().position(|x| x.is_nan()) {
        return Err(Error::Value {
            column: "token_logprobs".into(),
            row,
            problem: "a token's log-probability is NaN (or +inf beside -inf)".into(),
            remedy: "score the response again, or drop the row yourself",
        });
    }
    Ok(sums)
}

/// Sequence log-ratio, its mean per token, and the sum of token log-ratios clipped to `[-clip, clip]`.
///
/// The second and third are the length-normalized and token-clipped surrogates of the literature. They belong to other
/// policies than the target (theory 1) and are offered for comparison.
pub fn token_sums(
    offsets: &[i64],
    target: &[f32],
    behavior: &[f32],
    clip: f64,
    threads: usize,
    interrupt: &mut dyn Interrupt,
) -> Result<[Vec<f64>; 3]> {
    check(offsets, &[target.len(), behavior.len()])?;
    if !(clip > 0.0) {
        return Err(Error::Config(format!("clip must be positive, not {clip}")));
    }
    by_rows(offsets, threads, interrupt, |offsets, out| ratio_rows(offsets, target, behavior, clip, out))
}

multiversion! {
    fn ratio_rows(offsets: &[i64], target: &[f32], behavior: &[f32], clip: f64, out: [&mut [f64]; 3]) {
        let [sums, means, clipped] = out;
        for (row, w) in offsets.windows(2).enumerate() {
            let range = w[0] as usize..w[1] as usize;
            let (t, b) = (&target[range.clone()], &behavior[range]);
            let (mut plain, mut cut) = ([0.0f64; LANES], [0.0f64; LANES]);
            let whole = t.len() / LANES * LANES;
            for (t, b) in t[..whole].chunks_exact(LANES).zip(b[..whole].chunks_exact(LANES)) {
                for i in 0..LANES {
                    let l = f64::from(t[i]) - f64::from(b[i]);
                    plain[i] += l;
                    cut[i] += clamp(l, clip);
                }
            }
            for (i, (&t, &b)) in t[whole..].iter().zip(&b[whole..]).enumerate() {
                let l = f64::from(t) - f64::from(b);
                plain[i] += l;
                cut[i] += clamp(l, clip);
            }
            sums[row] = combine(plain);
            means[row] = if t.is_empty() { 0.0 } else { sums[row] / t.len() as f64 };
            clipped[row] = combine(cut);
        }
    }
}

#[inline(always)]
fn clamp(x: f64, clip: f64) -> f64 {
    let x = if x > clip { clip } else { x };
    if x < -clip { -clip } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::par::Uninterrupted;

    #[test]
    fn rows_of_any_length() {
        let offsets = [0i64, 0, 1, 18, 60];
        let values: Vec<f32> = (0..60).map(|i| -(i as f32) / 4.0).collect();
        let zeros = vec![0.0f32; 60];
        for threads in [1, 3] {
            let sums = sum_tokens(&offsets, Floats::F32(&values), threads, &mut Uninterrupted).unwrap();
            assert_eq!(sums, [0.0, 0.0, -38.25, -404.25]);
            let [ratio, mean, clipped] =
                token_sums(&offsets, &values, &zeros, 1.0, threads, &mut Uninterrupted).unwrap();
            assert_eq!(ratio, sums);
            assert_eq!(mean, [0.0, 0.0, -2.25, -9.625]);
            assert_eq!(clipped, [0.0, 0.0, -15.5, -42.0]);
        }
    }

    #[test]
    fn faults_are_named() {
        let nan = sum_tokens(&[0, 1, 2], Floats::F64(&[-1.0, f64::NAN]), 1, &mut Uninterrupted);
        assert!(matches!(nan, Err(Error::Value { row: 1, .. })));
        let inf = sum_tokens(&[0, 2], Floats::F64(&[-1.0, f64::NEG_INFINITY]), 1, &mut Uninterrupted).unwrap();
        assert_eq!(inf, [f64::NEG_INFINITY]);
        assert!(sum_tokens(&[0, 5], Floats::F64(&[-1.0]), 1, &mut Uninterrupted).is_err());
        assert!(token_sums(&[0, 1], &[0.0], &[], 1.0, 1, &mut Uninterrupted).is_err());
    }
}
