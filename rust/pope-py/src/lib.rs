//! The extension module `pope_fast._core`: arrays in, numbers out. No algorithm lives here.

// Signatures are Python's.
#![allow(clippy::needless_pass_by_value, clippy::too_many_arguments, clippy::fn_params_excessive_bools)]

mod border;
mod cluster;
mod kernels;
mod state;

use pyo3::prelude::*;

/// Kernels and the mergeable state of `pope_fast`; use the functions of the package instead.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use crate::cluster::{cluster_pairs, cluster_prompts, compare_labels, dendrograms};
    #[pymodule_export]
    use crate::kernels::{
        PyUnitScan, build_info, hash_lists, hash_strings, num_threads, prompt_scan, sample_keys, sum_tokens, token_sums,
    };
    #[pymodule_export]
    use crate::state::{PySnapshot, PyState};
}
