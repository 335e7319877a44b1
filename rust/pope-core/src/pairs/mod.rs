//! Diversity from embeddings, without clusters: how similar are two independent responses to one prompt?
//!
//! With unit vectors `v_j` (the embeddings of a unit's draws, normalized), `k_jl = v_j . v_l` in [-1, 1] and `K` draws:
//!
//! - `B = 1/C(K, 2) sum_{j < l} w_j w_l`, mean 1;
//! - `Q_1 = 1/C(K, 2) sum_{j < l} w_j w_l k_jl`, the U-statistic that is unbiased for `E k(Y, Y')`, `Y, Y' ~ pi(.|x)`
//!   independent;
//! - `Q_2`, the same with `k^2`.
//!
//! Both kernels are positive semidefinite, so `E k` lies in [0, 1] and `E k^2` in `[1/d, 1]`. Rao's quadratic entropy is
//! `1 - E k` (Rao 1982), the Vendi score of order 2 is `1 / E k^2` (Friedman & Dieng 2023; Pasarkar & Dieng 2024: the
//! exponential of the order-2 Renyi entropy of the kernel matrix has this closed form). Draws of one row have `k = 1`.
//! With one-hot vectors of clusters `Q_1 = Q_2 = P_2` of [`crate::unit`]: Rao is then the Gini-Simpson index.
//!
//! Only `B` and `Q` depend on the weights, so similarities are computed once for all policies and kept with the units
//! of the tail, where truncation needs them again.

mod measure;
mod similarity;
mod totals;

pub use measure::PairMeasure;
pub use similarity::{ONE, Similarities, check_vectors, stored_pairs};
pub use totals::{PairPoint, PairStats, PairSums, PairTotals, pair_stats};
