//! Rows as integers: the step that makes sums within a unit independent of the order of its rows.
//!
//! Per unit, weights are divided by a power of two near the largest one and rounded to steps of about `2^-60 K`, finer
//! than a double for all but huge units. Integer addition has no order. The conversion runs over whole chunks of rows,
//! eight at a time where the CPU can.

use crate::math;
use crate::simd::multiversion;

/// Weights are taken from a pre-computed `exp` if the unit's largest log-weight is at most this far from 0.
const DIRECT_EXP: f64 = 300.0;

const LN2_HI: f64 = 6.931_471_803_691_238e-1;
const LN2_LO: f64 = 1.908_214_929_270_587_7e-10;

/// Rows of some units, one element per row in every column.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// First row of each unit, and the number of rows at the end.
    pub starts: Vec<usize>,
    /// Log-weights, `-inf` allowed.
    pub l: Vec<f64>,
    /// `exp(l)`; changed where that is out of range.
    pub w: Vec<f64>,
    /// Rescaled rewards in [0, 1].
    pub r: Vec<f64>,
    /// Multiplicities (positive integers); empty for 1.
    pub m: Vec<f64>,
    /// Slots of the rows' clusters; empty without clusters.
    pub cluster: Vec<u32>,
}

/// What a unit's integers mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UnitScale {
    /// Weights are relative to `2^e`.
    pub e: i32,
    /// Number of draws `K`.
    pub draws: f64,
    /// Largest log-weight.
    pub l_max: f64,
    /// Largest finite `|l|`, at least 1.
    pub l_reach: f64,
    /// Draws of weight 0.
    pub zeros: f64,
    /// One step of `w`, `w^2 .. w^4`, `w r` and `r`.
    pub step: f64,
    /// One step of `l` and `w l`.
    pub l_step: f64,
}

/// The integers of a chunk. Vectors of unused columns stay empty.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    /// One entry per unit.
    pub units: Vec<UnitScale>,
    /// `m w^d`, `d = 1 .. 4`; only the first without clusters.
    pub w: [Vec<i64>; 4],
    /// `m w r`.
    pub wr: Vec<i64>,
    /// `m r`.
    pub r: Vec<i64>,
    /// `m l`, impossible rows counting 0.
    pub l: Vec<i64>,
    /// `m w l` likewise.
    pub wl: Vec<i64>,
    shrink: Vec<f64>,
    up: Vec<f64>,
    l_up: Vec<f64>,
}

/// Bits of fixed point for `draws` terms of absolute value below `2^magnitude`: their sum stays below 2^62.
#[inline(always)]
fn fixed_bits(draws: f64, magnitude: i32) -> i64 {
    i64::from(60 - math::exponent(draws) - magnitude).clamp(-900, 900)
}

/// A fixed-point scale for columns that only some logs have.
#[derive(Clone, Copy)]
pub struct Fixed {
    up: f64,
    down: f64,
}

impl Fixed {
    /// Room for `draws` terms of absolute value at most `2^magnitude`.
    #[inline(always)]
    pub fn new(draws: f64, magnitude: i32) -> Self {
        let bits = fixed_bits(draws, magnitude);
        Fixed { up: math::pow2(bits), down: math::pow2(-bits) }
    }

    /// Steps per unit, a power of two.
    pub fn up(self) -> f64 {
        self.up
    }

    /// Round towards zero to a step.
    #[inline(always)]
    pub fn encode(self, x: f64) -> i64 {
        to_integer(x * self.up)
    }

    /// Back to a double, correctly rounded.
    #[inline(always)]
    pub fn decode(self, q: i64) -> f64 {
        q as f64 * self.down
    }
}

/// Round towards zero; `|x|` must be below 2^63.
#[inline(always)]
pub fn to_integer(x: f64) -> i64 {
    debug_assert!(x.abs() < 9.3e18);
    // SAFETY: scales are chosen so that |x| < 2^63, and inputs are finite (validated when loaded).
    unsafe { x.to_int_unchecked() }
}

impl Encoded {
    /// Encode all rows.
    #[inline(always)]
    pub fn encode(&mut self, rows: &mut Rows) {
        let n = rows.l.len();
        let powers = if rows.cluster.is_empty() { 1 } else { 4 };
        self.w[..powers].iter_mut().for_each(|w| w.resize(n, 0));
        for column in [&mut self.wr, &mut self.r, &mut self.l, &mut self.wl] {
            column.resize(n, 0);
        }
        for column in [&mut self.shrink, &mut self.up, &mut self.l_up] {
            column.resize(n, 0.0);
        }
        self.scales(rows);
        match (rows.m.is_empty(), powers == 4) {
            (true, true) => encode_rows::<false, true>(rows, self),
            (true, false) => encode_rows::<false, false>(rows, self),
            (false, true) => encode_rows::<true, true>(rows, self),
            (false, false) => encode_rows::<true, false>(rows, self),
        }
    }

    /// A row's weight relative to its unit's power of two.
    pub fn relative_weight(&self, rows: &Rows, row: usize) -> f64 {
        rows.w[row] * self.shrink[row]
    }

    /// The scale of every unit, spread to its rows.
    #[inline(always)]
    fn scales(&mut self, rows: &mut Rows) {
        self.units.clear();
        for u in 0..rows.starts.len() - 1 {
            let range = rows.starts[u]..rows.starts[u + 1];
            let draws = if rows.m.is_empty() { range.len() as f64 } else { rows.m[range.clone()].iter().sum() };
            let (l_min, l_max, l_reach) = extremes(&rows.l[range.clone()]);
            let zeros = if l_min == f64::NEG_INFINITY { zero_draws(rows, range.clone()) } else { 0.0 };
            let (e, shrink) = if l_max == f64::NEG_INFINITY {
                (0, 0.0)
            } else if l_max.abs() <= DIRECT_EXP {
                // exp is monotone, so the largest weight belongs to the largest log-weight.
                let e = math::exponent(math::exp(l_max)) + 1;
                (e, math::pow2(i64::from(-e)))
            } else {
                let e = (l_max * core::f64::consts::LOG2_E).floor() + 1.0;
                for k in range.clone() {
                    rows.w[k] = math::exp((rows.l[k] - e * LN2_HI) - e * LN2_LO);
                }
                (e as i32, 1.0)
            };
            let bits = fixed_bits(draws, 0);
            let l_bits = bits - i64::from(math::exponent(l_reach)) - 1;
            self.shrink[range.clone()].fill(shrink);
            self.up[range.clone()].fill(math::pow2(bits));
            self.l_up[range].fill(math::pow2(l_bits));
            let (step, l_step) = (math::pow2(-bits), math::pow2(-l_bits));
            self.units.push(UnitScale { e, draws, l_max, l_reach, zeros, step, l_step });
        }
    }
}

#[cold]
fn zero_draws(rows: &Rows, range: core::ops::Range<usize>) -> f64 {
    let zeros = range.filter(|&k| rows.l[k] == f64::NEG_INFINITY);
    zeros.map(|k| rows.m.get(k).copied().unwrap_or(1.0)).sum()
}

/// Smallest value, largest value, and largest finite absolute value but at least 1.
#[inline(always)]
fn extremes(l: &[f64]) -> (f64, f64, f64) {
    // A fixed length lets the compiler use vectors; eight responses per prompt are the common case.
    if let Ok(eight) = <&[f64; 8]>::try_from(l) { extremes_of(eight) } else { extremes_of(l) }
}

#[inline(always)]
fn extremes_of(l: &[f64]) -> (f64, f64, f64) {
    let (mut min, mut max, mut reach) = (f64::INFINITY, f64::NEG_INFINITY, 1.0f64);
    for &l in l {
        min = if l < min { l } else { min };
        max = if l > max { l } else { max };
        let size = if l == f64::NEG_INFINITY { 0.0 } else { l.abs() };
        reach = if size > reach { size } else { reach };
    }
    (min, max, reach)
}

multiversion! {
    fn encode_rows<const COUNTS: bool, const POWERS: bool>(rows: &Rows, out: &mut Encoded) {
        let n = rows.l.len();
        let (l, w, r) = (&rows.l[..n], &rows.w[..n], &rows.r[..n]);
        let (shrink, up, l_up) = (&out.shrink[..n], &out.up[..n], &out.l_up[..n]);
        let [q1, q2, q3, q4] = &mut out.w;
        let q1 = &mut q1[..n];
        let (qwr, qr, ql, qwl) = (&mut out.wr[..n], &mut out.r[..n], &mut out.l[..n], &mut out.wl[..n]);
        for k in 0..n {
            let m = if COUNTS { rows.m[k] } else { 1.0 };
            let w1 = w[k] * shrink[k];
            let mw = m * w1;
            let finite = if l[k] == f64::NEG_INFINITY { 0.0 } else { l[k] };
            q1[k] = to_integer(mw * up[k]);
            qwr[k] = to_integer(mw * r[k] * up[k]);
            qr[k] = to_integer(m * r[k] * up[k]);
            ql[k] = to_integer(m * finite * l_up[k]);
            qwl[k] = to_integer(mw * finite * l_up[k]);
        }
        if POWERS {
            let (q2, q3, q4) = (&mut q2[..n], &mut q3[..n], &mut q4[..n]);
            for k in 0..n {
                let m = if COUNTS { rows.m[k] } else { 1.0 };
                let w1 = w[k] * shrink[k];
                let w2 = m * w1 * w1;
                let w3 = w2 * w1;
                q2[k] = to_integer(w2 * up[k]);
                q3[k] = to_integer(w3 * up[k]);
                q4[k] = to_integer(w3 * w1 * up[k]);
            }
        }
    }
}

/// Sum of integers; wrapping cannot happen by the choice of scales.
#[inline(always)]
pub fn total(q: &[i64]) -> i64 {
    if let Ok(eight) = <&[i64; 8]>::try_from(q) { eight.iter().sum() } else { q.iter().sum() }
}
