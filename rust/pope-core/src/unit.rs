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
//! sums of integers ([`crate::fixed`]), so shuffled rows give the same bits.

use crate::fixed::{Encoded, Rows, total};
use crate::math;
use crate::slots::{DIRECT, Slots};

/// Highest degree of the polynomials in cluster masses: `coverage@4` and `H_3` need 4.
pub const MAX_DEGREE: usize = 4;
/// Highest order `v` of `zeta_v`.
pub const MAX_ORDER: usize = MAX_DEGREE - 1;
/// Clusters are handled this many at a time.
const LANES: usize = 8;

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
    /// Mean reward.
    pub r: f64,
    /// Mean log-weight over all draws, impossible rows counting 0 (degree 0).
    pub l: f64,
    /// Mean `w l` (degree 1).
    pub wl: f64,
    /// `P_2, P_3, P_4`; entry `d - 2` is meaningful if `K >= d` and the unit has clusters.
    pub p: [f64; MAX_ORDER],
    /// `Z_1, Z_2, Z_3` (degrees 2 to 4), meaningful like `p`.
    pub z: [f64; MAX_ORDER],
    /// `X_M = sum_{v <= M} Z_v / v` at its true scale (saturating), entry `M - 1`.
    pub x: [f64; MAX_ORDER],
    /// `Y_M = sum_{v <= M} (T_v - Z_v) / v` likewise.
    pub y: [f64; MAX_ORDER],
    /// The unit's clusters in canonical order (direct slots first, the others by key).
    pub clusters: Vec<ClusterMass>,
}

impl UnitStats {
    /// How many of `P_1 .. P_4` the unit can estimate: `min(K, 4)`, or 1 without clusters. Its class.
    #[inline(always)]
    pub fn degree(&self, has_cluster: bool) -> usize {
        if has_cluster { (math::whole(self.draws) as usize).clamp(1, MAX_DEGREE) } else { 1 }
    }
}

/// Power sums of the weights in one cluster, as integers.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct PowerSums {
    p: [i64; MAX_DEGREE],
    draws: f64,
}

/// Working memory of [`unit_stats`]: a table over cluster slots, all zero between calls.
#[derive(Default)]
pub struct Scratch {
    table: Vec<PowerSums>,
    others: Vec<u32>,
    /// Coefficients of the unit size seen last; most logs have one size.
    per_k: f64,
    per_tuple: [f64; MAX_ORDER],
}

/// Power sums of [`LANES`] clusters, one column per cluster.
type Columns = [[f64; LANES]; MAX_DEGREE];

/// Elementary symmetric polynomials `e_2, e_3, e_4` of numbers with the given power sums (Newton's identities).
///
/// Cancellation can leave rounding noise of relative size 1e-16 of `p_1^d`; it is cut at zero, where the true value of
/// a polynomial in non-negative weights lies.
#[inline(always)]
fn elementary(p1: f64, p2: f64, p3: f64, p4: f64, draws: f64) -> [f64; MAX_ORDER] {
    let e2 = (p1 * p1 - p2) * 0.5;
    let e3 = (p1 * (p1 * p1 - 3.0 * p2) + 2.0 * p3) * (1.0 / 6.0);
    let e4 = (p1 * p1 * (p1 * p1 - 6.0 * p2) + 3.0 * p2 * p2 + 8.0 * p1 * p3 - 6.0 * p4) * (1.0 / 24.0);
    let keep = |e: f64, d: f64| if (draws >= d) & (e > 0.0) { e } else { 0.0 };
    [keep(e2, 2.0), keep(e3, 3.0), keep(e4, 4.0)]
}

/// For each lane's cluster: `e_d` of its rows (`d = 2, 3, 4`), and `p_1 e_v` of the rows outside it (`v = 1, 2, 3`);
/// summed over the lanes in a fixed order.
#[inline(always)]
fn polynomials(p: &Columns, draws: &[f64; LANES], all: [f64; MAX_DEGREE], k: f64) -> [[f64; MAX_ORDER]; 2] {
    let mut same = [[0.0f64; LANES]; MAX_ORDER];
    let mut apart = [[0.0f64; LANES]; MAX_ORDER];
    for j in 0..LANES {
        let [e2, e3, e4] = elementary(p[0][j], p[1][j], p[2][j], p[3][j], draws[j]);
        same[0][j] = e2;
        same[1][j] = e3;
        same[2][j] = e4;
        let rest = all[0] - p[0][j];
        let [f2, f3, _] = elementary(rest, all[1] - p[1][j], all[2] - p[2][j], 0.0, k - draws[j]);
        apart[0][j] = p[0][j] * rest;
        apart[1][j] = p[0][j] * f2;
        apart[2][j] = p[0][j] * f3;
    }
    let sums = |x: &[[f64; LANES]; MAX_ORDER]| [sum_lanes(x[0]), sum_lanes(x[1]), sum_lanes(x[2])];
    [sums(&same), sums(&apart)]
}

#[inline(always)]
fn sum_lanes(x: [f64; LANES]) -> f64 {
    ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))
}

/// Compute the statistics of unit `u` of a chunk into `out` (whose cluster list is reused).
#[inline(always)]
pub fn unit_stats(rows: &Rows, encoded: &Encoded, u: usize, slots: &Slots, scratch: &mut Scratch, out: &mut UnitStats) {
    let scale = &encoded.units[u];
    let (from, to) = (rows.starts[u], rows.starts[u + 1]);
    let per_draw = 1.0 / scale.draws;
    let [a, n, r, l, wl] = sums(encoded, from, to);
    let mean = |q: i64, step: f64| q as f64 * step * per_draw;
    out.e = scale.e;
    out.draws = scale.draws;
    out.l_max = scale.l_max;
    out.a = mean(a, scale.step);
    out.n = mean(n, scale.step);
    out.r = mean(r, scale.step);
    out.l = mean(l, scale.l_step);
    out.wl = mean(wl, scale.l_step);
    out.clusters.clear();
    out.p = [0.0; MAX_ORDER];
    out.z = [0.0; MAX_ORDER];
    out.x = [0.0; MAX_ORDER];
    out.y = [0.0; MAX_ORDER];
    if !rows.cluster.is_empty() {
        group_rows(rows, encoded, from, to, slots, scratch, &mut out.clusters);
        cluster_stats(encoded, u, from, to, scratch, out);
    }
}

/// Sums of `w, w r, r, l, w l` over rows.
#[inline(always)]
fn sums(encoded: &Encoded, from: usize, to: usize) -> [i64; 5] {
    let (w, wr, r) = (&encoded.w[0][from..to], &encoded.wr[from..to], &encoded.r[from..to]);
    let (l, wl) = (&encoded.l[from..to], &encoded.wl[from..to]);
    if w.len() == 8 {
        return [total(w), total(wr), total(r), total(l), total(wl)];
    }
    let mut sums = [0i64; 5];
    for k in 0..w.len() {
        sums[0] += w[k];
        sums[1] += wr[k];
        sums[2] += r[k];
        sums[3] += l[k];
        sums[4] += wl[k];
    }
    sums
}

/// Add the rows to their clusters' power sums, and list the clusters in canonical order.
#[inline(always)]
fn group_rows(
    rows: &Rows,
    encoded: &Encoded,
    from: usize,
    to: usize,
    slots: &Slots,
    scratch: &mut Scratch,
    clusters: &mut Vec<ClusterMass>,
) {
    let Scratch { table, others, .. } = scratch;
    if table.len() < slots.len() {
        table.resize(slots.len(), PowerSums::default());
    }
    let [q1, q2, q3, q4] = &encoded.w;
    let (q1, q2, q3, q4) = (&q1[from..to], &q2[from..to], &q3[from..to], &q4[from..to]);
    let mut direct = 0u64;
    for (k, &slot) in rows.cluster[from..to].iter().enumerate() {
        let sums = &mut table[slot as usize];
        if (slot as usize) < DIRECT {
            direct |= 1 << slot;
        } else if sums.draws == 0.0 {
            others.push(slot);
        }
        sums.draws += if rows.m.is_empty() { 1.0 } else { rows.m[from + k] };
        for (p, q) in sums.p.iter_mut().zip([q1[k], q2[k], q3[k], q4[k]]) {
            *p += q;
        }
    }
    clusters.clear();
    let mass = |slot| ClusterMass { slot, draws: 0.0, mass: 0.0 };
    if clusters.capacity() < DIRECT {
        clusters.reserve(DIRECT);
    }
    while direct != 0 {
        clusters.push(mass(direct.trailing_zeros()));
        direct &= direct - 1;
    }
    if !others.is_empty() {
        others.sort_unstable_by_key(|&slot| slots.key(slot));
        clusters.extend(others.drain(..).map(mass));
    }
}

/// Everything that needs clusters; empties the table.
#[inline(always)]
fn cluster_stats(encoded: &Encoded, u: usize, from: usize, to: usize, scratch: &mut Scratch, out: &mut UnitStats) {
    let scale = &encoded.units[u];
    let (k, per_draw) = (scale.draws, 1.0 / scale.draws);
    let [q1, q2, q3, q4] = &encoded.w;
    let (q1, q2, q3, q4) = (&q1[from..to], &q2[from..to], &q3[from..to], &q4[from..to]);
    let mut all = [0i64; MAX_DEGREE];
    for k in 0..q1.len() {
        all[0] += q1[k];
        all[1] += q2[k];
        all[2] += q3[k];
        all[3] += q4[k];
    }
    // Spelled out: `array::map` is a call into code that was compiled for any CPU.
    let all = [
        all[0] as f64 * scale.step,
        all[1] as f64 * scale.step,
        all[2] as f64 * scale.step,
        all[3] as f64 * scale.step,
    ];
    let mut same = [0.0f64; MAX_ORDER]; // sum_c e_d(c), d = 2..4
    let mut apart = [0.0f64; MAX_ORDER]; // sum_c p_1(c) e_v(all rows outside c), v = 1..3
    for clusters in out.clusters.chunks_mut(LANES) {
        let mut p: Columns = [[0.0; LANES]; MAX_DEGREE];
        let mut draws = [0.0; LANES];
        for (j, c) in clusters.iter_mut().enumerate() {
            let sums = core::mem::take(&mut scratch.table[c.slot as usize]);
            for d in 0..MAX_DEGREE {
                p[d][j] = sums.p[d] as f64 * scale.step;
            }
            draws[j] = sums.draws;
            c.draws = sums.draws;
            c.mass = p[0][j] * per_draw;
        }
        let [a, b] = polynomials(&p, &draws, all, k);
        for d in 0..MAX_ORDER {
            same[d] += a[d];
            apart[d] += b[d];
        }
    }
    let whole = elementary(all[0], all[1], all[2], all[3], k);
    if scratch.per_k != k {
        (scratch.per_k, scratch.per_tuple) = (k, tuples(k));
    }
    let up = power_of_two(scale.e);
    let (mut x, mut y, mut factor) = (0.0, 0.0, up);
    for v in 1..=MAX_ORDER {
        if k < (v + 1) as f64 {
            break;
        }
        factor *= up;
        let per = scratch.per_tuple[v - 1];
        let z = apart[v - 1] * (per * PER_ORDER[v - 1]);
        let t = whole[v - 1] * per;
        let share = factor * PER_TERM[v - 1];
        out.p[v - 1] = same[v - 1] * per;
        out.z[v - 1] = z;
        x += if z > 0.0 { z * share } else { 0.0 };
        // Below this share of t, the difference is what rounding leaves where all draws lie apart.
        y += if t - z > 1e-13 * t { (t - z) * share } else { 0.0 };
        out.x[v - 1] = x;
        out.y[v - 1] = y;
    }
}

/// `1 / (v + 1)` and `1 / v`.
const PER_ORDER: [f64; MAX_ORDER] = [1.0 / 2.0, 1.0 / 3.0, 1.0 / 4.0];
const PER_TERM: [f64; MAX_ORDER] = [1.0, 1.0 / 2.0, 1.0 / 3.0];

/// `1 / C(k, v + 1)`, `v = 1, 2, 3`; infinite where there is no such tuple.
#[cold]
fn tuples(k: f64) -> [f64; MAX_ORDER] {
    [2, 3, 4].map(|d| 1.0 / math::binomial(k, d))
}

#[inline(always)]
fn power_of_two(k: i32) -> f64 {
    math::pow2(i64::from(k.clamp(-1022, 1023)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stats(l: &[f64], r: &[f64], m: &[f64], c: &[i64]) -> UnitStats {
        let mut slots = Slots::default();
        let mut rows = Rows {
            starts: vec![0, l.len()],
            l: l.to_vec(),
            w: l.iter().map(|&l| math::exp(l)).collect(),
            r: r.to_vec(),
            m: m.to_vec(),
            cluster: c.iter().map(|&key| slots.slot(key)).collect(),
        };
        let (mut encoded, mut scratch, mut out) = Default::default();
        Encoded::encode(&mut encoded, &mut rows);
        unit_stats(&rows, &encoded, 0, &slots, &mut scratch, &mut out);
        assert!(scratch.table.iter().all(|s| s.draws == 0.0 && s.p == [0; 4]));
        out
    }

    #[test]
    fn closed_forms() {
        // Two clusters with weights (1, 2) and (4): all polynomials by hand.
        let l = [0.0, math::ln(2.0), math::ln(4.0)];
        let s = stats(&l, &[1.0, 0.0, 0.5], &[], &[7, 7, -3]);
        let f = power_of_two(s.e);
        assert!((s.a * f - 7.0 / 3.0).abs() < 1e-14);
        assert!((s.n * f - 1.0).abs() < 1e-14);
        assert!((s.r - 0.5).abs() < 1e-15);
        assert!((s.l - 2f64.ln()).abs() < 1e-15);
        assert!((s.wl * f - (2.0 * 2f64.ln() + 4.0 * 4f64.ln()) / 3.0).abs() < 1e-14);
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
        let s = stats(&[f64::NEG_INFINITY; 2], &[1.0; 2], &[], &[]);
        assert_eq!((s.a, s.n, s.e, s.l, s.wl), (0.0, 0.0, 0, 0.0, 0.0));
        let near = stats(&[0.5, 1.5, -1.0], &[0.2, 0.4, 0.9], &[], &[1, 1, 2]);
        for shift in [-4000.0f64, 2000.0] {
            let far = stats(&[0.5 + shift, 1.5 + shift, -1.0 + shift], &[0.2, 0.4, 0.9], &[], &[1, 1, 2]);
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
            let (a, b) = (stats(&l, &r, &m, &c), stats(&l2, &r2, &[], &c2));
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
            mut rows in prop::collection::vec((-30.0f64..30.0, 0.0f64..1.0, -70i64..70), 1..20), turn in 0usize..20,
        ) {
            let run = |rows: &[(f64, f64, i64)]| {
                let (l, r, c): (Vec<_>, Vec<_>, Vec<_>) = (
                    rows.iter().map(|x| x.0).collect(), rows.iter().map(|x| x.1).collect(), rows.iter().map(|x| x.2).collect());
                let mut s = stats(&l, &r, &[], &c);
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
