//! From the rows of one unit (prompt) to the statistics that every estimator is a function of.
//!
//! With weights `w`, rescaled rewards `r` in [0, 1], multiplicities `m`, clusters `c` and `K = sum m` draws:
//!
//! - `A = sum m w / K`, `N = sum m w r / K`;
//! - `P_d = sum_c e_d(w in c) / C(K, d)`, `d = 2, 3, 4`, with `e_d` the elementary symmetric polynomials: the U-statistic
//!   that is unbiased for `sum_c q_c^d`. In control form (theory 2.2) `zeta_v = sum_s (-1)^s C(v, s) P_{s+1}`: expand
//!   `e_v` of `1 - w_k 1{c_k = c_j}` in powers of the weights and collect `C(K-1-s, v-s) / C(K-1, v) = C(v, s) / C(K-1, s)`;
//! - `Z_v`, the product form of `zeta_v`, and `T_v = e_{v+1}(all w) / C(K, v+1)`, which bound it from both sides even for
//!   truncated weights: `E Z_v <= zeta_v <= 1 - E (T_v - Z_v)`.
//!
//! Everything is relative to a power of two near the largest weight, so nothing overflows; sums within the unit are
//! taken in 64-bit fixed point relative to that power. Integer addition has no order: shuffled rows give the same bits, at
//! a precision (2^-58 of the largest weight for eight rows) finer than a double's.

use crate::math;
use crate::slots::{DIRECT, Slots};

/// Highest degree of the polynomials in cluster masses: `coverage@4` and `H_3` need 4.
pub const MAX_DEGREE: usize = 4;
/// Highest order `v` of `zeta_v`.
pub const MAX_ORDER: usize = MAX_DEGREE - 1;
/// Weights are taken from a pre-computed `exp` if the unit's largest log-weight is at most this far from 0.
const DIRECT_EXP: f64 = 300.0;

const LN2_HI: f64 = 6.931_471_803_691_238e-1;
const LN2_LO: f64 = 1.908_214_929_270_587_7e-10;

/// The rows of one unit, one element per row in every slice.
#[derive(Clone, Copy)]
pub struct UnitRows<'a> {
    /// Log-weights, `-inf` allowed.
    pub l: &'a [f64],
    /// `exp(l)`, used only if `l` is moderate.
    pub w: &'a [f64],
    /// Rescaled rewards in [0, 1].
    pub r: &'a [f64],
    /// Multiplicities (positive integers); `None` for 1.
    pub m: Option<&'a [f64]>,
    /// Slots of the rows' clusters.
    pub cluster: Option<&'a [u32]>,
}

/// The mass that a unit gives to one of its clusters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClusterMass {
    /// Slot of the cluster.
    pub slot: u32,
    /// Draws of the unit in the cluster.
    pub draws: f64,
    /// `sum_{k in c} m w / K`, times `2^-e`.
    pub mass: f64,
}

/// Statistics of a unit; a quantity of degree `d` in the weights is given times `2^-(d e)`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnitStats {
    /// Exponent of the largest weight.
    pub e: i32,
    /// `K`, the number of draws.
    pub draws: f64,
    /// Largest log-weight.
    pub l_max: f64,
    /// `A`.
    pub a: f64,
    /// `N`.
    pub n: f64,
    /// `P_2, P_3, P_4`; entry `d - 2` is meaningful if `K >= d` and the unit has clusters.
    pub p: [f64; MAX_ORDER],
    /// `Z_1, Z_2, Z_3` (degrees 2 to 4), meaningful like `p`.
    pub z: [f64; MAX_ORDER],
    /// `X_M = sum_{v <= M} Z_v / v` at its true scale (saturating), entry `M - 1`.
    pub x: [f64; MAX_ORDER],
    /// `Y_M = sum_{v <= M} (T_v - Z_v) / v` likewise.
    pub y: [f64; MAX_ORDER],
    /// Rows in clusters, in canonical order (direct slots first, the others by key).
    pub clusters: Vec<ClusterMass>,
}

impl UnitStats {
    /// How many of `P_1 .. P_4` the unit can estimate: `min(K, 4)`, or 1 without clusters. Its class.
    #[inline(always)]
    pub fn degree(&self, has_cluster: bool) -> usize {
        if has_cluster { (self.draws as usize).clamp(1, MAX_DEGREE) } else { 1 }
    }
}

/// Fixed-point numbers of a unit: integers in steps of `2^-bits`.
#[derive(Clone, Copy)]
pub struct Fixed {
    up: f64,
    down: f64,
}

impl Fixed {
    /// Room for `draws` terms of absolute value at most `2^magnitude`.
    #[inline(always)]
    pub fn new(draws: f64, magnitude: i32) -> Self {
        let bits = i64::from(60 - math::exponent(draws) - magnitude).clamp(-900, 900);
        Fixed { up: math::pow2(bits), down: math::pow2(-bits) }
    }

    /// Round towards zero to a step.
    #[inline(always)]
    pub fn encode(self, x: f64) -> i64 {
        // SAFETY: by construction |x * up| <= 2^60; inputs are finite (validated when loaded).
        unsafe { (x * self.up).to_int_unchecked() }
    }

    /// Back to a double, correctly rounded.
    #[inline(always)]
    pub fn decode(self, q: i64) -> f64 {
        q as f64 * self.down
    }
}

/// Power sums of the weights in one cluster, in fixed point.
#[derive(Clone, Copy, Default)]
struct PowerSums {
    p: [i64; MAX_DEGREE],
    draws: f64,
}

/// Working memory of [`unit_stats`]: a table over cluster slots, all zero between calls.
#[derive(Default)]
pub struct Scratch {
    table: Vec<PowerSums>,
    others: Vec<u32>,
    weights: Vec<f64>,
}

/// The exponent `e` of the unit and its weights times `2^-e`, in (0, 1].
#[inline(always)]
fn normalized<'a>(rows: &UnitRows<'a>, scratch: &'a mut Vec<f64>, l_max: f64) -> (i32, &'a [f64], f64) {
    if l_max == f64::NEG_INFINITY {
        return (0, rows.w, 0.0);
    }
    if l_max.abs() <= DIRECT_EXP {
        // exp is monotone, so the largest weight belongs to the largest log-weight.
        let e = math::exponent(math::exp(l_max)) + 1;
        return (e, rows.w, math::pow2(i64::from(-e)));
    }
    let e = (l_max * core::f64::consts::LOG2_E).floor() + 1.0;
    scratch.clear();
    scratch.extend(rows.l.iter().map(|&l| math::exp((l - e * LN2_HI) - e * LN2_LO)));
    (e as i32, scratch, 1.0)
}

/// Elementary symmetric polynomials `e_1 .. e_4` of numbers with the given power sums (Newton's identities).
///
/// Cancellation can leave rounding noise of relative size 1e-16 of `p_1^d`; it is cut at zero, where the true value of
/// a polynomial in non-negative weights lies.
#[inline(always)]
fn elementary(p: [f64; MAX_DEGREE], draws: f64) -> [f64; MAX_DEGREE] {
    let [p1, p2, p3, p4] = p;
    let e2 = (p1 * p1 - p2) * 0.5;
    let e3 = (p1 * (p1 * p1 - 3.0 * p2) + 2.0 * p3) * (1.0 / 6.0);
    let e4 = (p1 * p1 * (p1 * p1 - 6.0 * p2) + 3.0 * p2 * p2 + 8.0 * p1 * p3 - 6.0 * p4) * (1.0 / 24.0);
    let keep = |e: f64, d: f64| if draws >= d && e > 0.0 { e } else { 0.0 };
    [p1, keep(e2, 2.0), keep(e3, 3.0), keep(e4, 4.0)]
}

/// Compute the statistics of one unit into `out` (whose cluster list is reused).
#[inline(always)]
pub fn unit_stats(rows: UnitRows<'_>, slots: &Slots, scratch: &mut Scratch, out: &mut UnitStats) {
    let len = rows.l.len();
    let draws = rows.m.map_or(len as f64, |m| m.iter().sum());
    let mut l_max = f64::NEG_INFINITY;
    for &l in rows.l {
        l_max = if l > l_max { l } else { l_max };
    }
    let Scratch { table, others, weights } = scratch;
    let (e, w, shrink) = normalized(&rows, weights, l_max);
    let fixed = Fixed::new(draws, 0);
    let (w, r) = (&w[..len], &rows.r[..len]);
    let per_draw = 1.0 / draws;

    out.e = e;
    out.draws = draws;
    out.l_max = l_max;
    out.clusters.clear();
    out.p = [0.0; MAX_ORDER];
    out.z = [0.0; MAX_ORDER];
    out.x = [0.0; MAX_ORDER];
    out.y = [0.0; MAX_ORDER];

    let Some(cluster) = rows.cluster else {
        let (mut a, mut n) = (0i64, 0i64);
        for k in 0..len {
            let w = rows.m.map_or(1.0, |m| m[k]) * (w[k] * shrink);
            a += fixed.encode(w);
            n += fixed.encode(w * r[k]);
        }
        out.a = fixed.decode(a) * per_draw;
        out.n = fixed.decode(n) * per_draw;
        return;
    };

    if table.len() < slots.len() {
        table.resize(slots.len(), PowerSums::default());
    }
    let cluster = &cluster[..len];
    let mut direct = 0u64;
    let mut n = 0i64;
    for k in 0..len {
        let m = rows.m.map_or(1.0, |m| m[k]);
        let w1 = w[k] * shrink;
        let (mw1, slot) = (m * w1, cluster[k]);
        let mw2 = mw1 * w1;
        let mw3 = mw2 * w1;
        n += fixed.encode(mw1 * r[k]);
        let sums = &mut table[slot as usize];
        if (slot as usize) < DIRECT {
            direct |= 1 << slot;
        } else if sums.draws == 0.0 {
            others.push(slot);
        }
        sums.draws += m;
        sums.p[0] += fixed.encode(mw1);
        sums.p[1] += fixed.encode(mw2);
        sums.p[2] += fixed.encode(mw3);
        sums.p[3] += fixed.encode(mw3 * w1);
    }
    if others.len() > 1 {
        others.sort_unstable_by_key(|&slot| slots.key(slot));
    }

    // Canonical order of the clusters from here on, since these sums are in floating point.
    let mut total = [0i64; MAX_DEGREE];
    let mut bits = direct;
    while bits != 0 {
        let slot = bits.trailing_zeros();
        bits &= bits - 1;
        total = add(total, table[slot as usize].p);
        out.clusters.push(ClusterMass { slot, draws: 0.0, mass: 0.0 });
    }
    for &slot in others.iter() {
        total = add(total, table[slot as usize].p);
        out.clusters.push(ClusterMass { slot, draws: 0.0, mass: 0.0 });
    }
    others.clear();

    let mut same = [0.0f64; MAX_ORDER]; // sum_c e_d(c), d = 2..4
    let mut apart = [0.0f64; MAX_ORDER]; // sum_c p_1(c) e_v(all rows outside c), v = 1..3
    for c in &mut out.clusters {
        let sums = core::mem::take(&mut table[c.slot as usize]);
        let p = sums.p.map(|q| fixed.decode(q));
        c.draws = sums.draws;
        c.mass = p[0] * per_draw;
        if sums.draws > 1.0 {
            let e = elementary(p, sums.draws);
            for (s, e) in same.iter_mut().zip(&e[1..]) {
                *s += e;
            }
        }
        let rest = elementary(sub(total, sums.p).map(|q| fixed.decode(q)), draws - sums.draws);
        for (s, e) in apart.iter_mut().zip(rest) {
            *s += p[0] * e;
        }
    }
    let total = total.map(|q| fixed.decode(q));
    out.a = total[0] * per_draw;
    out.n = fixed.decode(n) * per_draw;
    let all = elementary(total, draws);

    let (mut x, mut y, mut choose) = (0.0, 0.0, draws);
    for v in 1..=MAX_ORDER {
        if draws < (v + 1) as f64 {
            break;
        }
        choose = choose * (draws - v as f64) / (v + 1) as f64; // C(K, v+1)
        let per = 1.0 / choose;
        let factor = power_of_two((v as i32 + 1) * e) / v as f64;
        let z = apart[v - 1] * per / (v + 1) as f64;
        let t = all[v] * per;
        out.p[v - 1] = same[v - 1] * per;
        out.z[v - 1] = z;
        x += if z > 0.0 { z * factor } else { 0.0 };
        y += if t > z { (t - z) * factor } else { 0.0 };
        out.x[v - 1] = x;
        out.y[v - 1] = y;
    }
}

#[inline(always)]
fn power_of_two(k: i32) -> f64 {
    math::pow2(i64::from(k.clamp(-1022, 1023)))
}

#[inline(always)]
fn add(a: [i64; MAX_DEGREE], b: [i64; MAX_DEGREE]) -> [i64; MAX_DEGREE] {
    core::array::from_fn(|i| a[i] + b[i])
}

#[inline(always)]
fn sub(a: [i64; MAX_DEGREE], b: [i64; MAX_DEGREE]) -> [i64; MAX_DEGREE] {
    core::array::from_fn(|i| a[i] - b[i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn stats(l: &[f64], r: &[f64], m: Option<&[f64]>, c: Option<&[i64]>) -> UnitStats {
        let mut slots = Slots::default();
        let cluster: Option<Vec<u32>> = c.map(|c| c.iter().map(|&key| slots.slot(key)).collect());
        let w: Vec<f64> = l.iter().map(|&l| math::exp(l)).collect();
        let mut out = UnitStats::default();
        let rows = UnitRows { l, w: &w, r, m, cluster: cluster.as_deref() };
        let mut scratch = Scratch::default();
        unit_stats(rows, &slots, &mut scratch, &mut out);
        assert!(scratch.table.iter().all(|s| s.draws == 0.0 && s.p == [0; 4]));
        out
    }

    #[test]
    fn closed_forms() {
        // Two clusters with weights (1, 2) and (4): all polynomials by hand.
        let l = [0.0, math::ln(2.0), math::ln(4.0)];
        let s = stats(&l, &[1.0, 0.0, 0.5], None, Some(&[7, 7, -3]));
        let f = power_of_two(s.e);
        assert!((s.a * f - 7.0 / 3.0).abs() < 1e-14);
        assert!((s.n * f - 1.0).abs() < 1e-14);
        assert!((s.p[0] * f * f - 2.0 / 3.0).abs() < 1e-14); // e_2(1,2) / C(3,2)
        assert_eq!(s.p[1], 0.0);
        let z1 = (3.0 * 4.0 + 4.0 * 3.0) / 6.0;
        assert!((s.x[0] - z1).abs() < 1e-13);
        assert!((s.y[0] - (14.0 / 3.0 - z1)).abs() < 1e-13);
        let z2 = (4.0 * 2.0) / 3.0; // sum_c S_c e_2(others) = 4 * e_2(1,2) = 8; over 3 C(3,3)
        let t2 = 8.0;
        assert!((s.x[1] - (z1 + z2 / 2.0)).abs() < 1e-13);
        assert!((s.y[1] - (14.0 / 3.0 - z1 + (t2 - z2) / 2.0)).abs() < 1e-13);
        assert_eq!(s.clusters.iter().map(|c| c.slot).collect::<Vec<_>>(), [7, 64]);
    }

    #[test]
    fn zero_and_extreme_weights() {
        let s = stats(&[f64::NEG_INFINITY; 2], &[1.0; 2], None, None);
        assert_eq!((s.a, s.n, s.e), (0.0, 0.0, 0));
        let near = stats(&[0.5, 1.5, -1.0], &[0.2, 0.4, 0.9], None, Some(&[1, 1, 2]));
        for shift in [-4000.0f64, 2000.0] {
            let far = stats(&[0.5 + shift, 1.5 + shift, -1.0 + shift], &[0.2, 0.4, 0.9], None, Some(&[1, 1, 2]));
            assert!((far.n / far.a - near.n / near.a).abs() < 1e-12);
            assert!((far.p[0] / (far.a * far.a) - near.p[0] / (near.a * near.a)).abs() < 1e-12);
        }
    }

    proptest! {
        #[test]
        fn multiplicity_is_repetition(rows in prop::collection::vec((-3.0f64..3.0, 0.0f64..1.0, 0i64..3, 1u32..4), 1..6)) {
            let (mut l, mut r, mut c, mut m) = (vec![], vec![], vec![], vec![]);
            let (mut l2, mut r2, mut c2) = (vec![], vec![], vec![]);
            for &(a, b, k, times) in &rows {
                l.push(a); r.push(b); c.push(k); m.push(f64::from(times));
                for _ in 0..times { l2.push(a); r2.push(b); c2.push(k); }
            }
            let (a, b) = (stats(&l, &r, Some(&m), Some(&c)), stats(&l2, &r2, None, Some(&c2)));
            prop_assert_eq!(a.draws, b.draws);
            prop_assert!((a.a - b.a).abs() < 1e-14 && (a.n - b.n).abs() < 1e-14);
            for d in 0..MAX_ORDER {
                prop_assert!((a.p[d] - b.p[d]).abs() < 1e-13);
                prop_assert!((a.x[d] - b.x[d]).abs() <= 1e-10 * (1.0 + a.x[d]));
                prop_assert!((a.y[d] - b.y[d]).abs() <= 1e-10 * (1.0 + a.y[d]));
            }
        }

        #[test]
        fn order_leaves_the_bits(
            mut rows in prop::collection::vec((-30.0f64..30.0, 0.0f64..1.0, -70i64..70), 1..12), turn in 0usize..12,
        ) {
            let run = |rows: &[(f64, f64, i64)]| {
                let (l, r, c): (Vec<_>, Vec<_>, Vec<_>) = (
                    rows.iter().map(|x| x.0).collect(), rows.iter().map(|x| x.1).collect(), rows.iter().map(|x| x.2).collect());
                let mut s = stats(&l, &r, None, Some(&c));
                s.clusters.iter_mut().for_each(|c| c.slot = 0); // slots are numbered by appearance
                s
            };
            let before = run(&rows);
            let turn = turn % rows.len();
            rows.rotate_left(turn);
            rows.reverse();
            prop_assert_eq!(run(&rows), before);
        }
    }
}
