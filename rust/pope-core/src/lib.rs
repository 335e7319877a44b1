//! The numbers of `pope_fast`: from log-probabilities and rewards to values, intervals and diagnostics.
//!
//! Read in this order: [`fixed`] and [`mod@unit`] (what one prompt contributes), [`totals`] and [`state`] (how contributions are summed,
//! exactly and in any order), [`cut`] (truncation after the fact), then the estimators ([`utility`], [`diversity`],
//! [`pairs`], [`marginal`]), [`interval`], and [`summary`], which puts them together.
//! The formulas are those of `docs/theory.md`; each has a plain NumPy twin in `python/pope_fast/reference`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::disallowed_methods))]

pub mod batch;
pub mod bytes;
pub mod cluster;
pub mod cut;
pub mod dd;
pub mod diversity;
pub mod error;
pub mod field;
pub mod fixed;
pub mod hash;
pub mod hist;
pub mod interval;
pub mod jackknife;
pub mod lane;
pub mod marginal;
pub mod math;
pub mod pairs;
pub mod par;
pub mod psis;
pub mod ragged;
pub mod sample;
pub mod scalars;
pub mod scan;
pub mod simd;
pub mod slots;
pub mod special;
pub mod state;
pub mod sum;
pub mod summary;
pub mod tail;
pub mod totals;
pub mod unit;
pub mod utility;
