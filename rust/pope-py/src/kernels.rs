//! Functions on arrays.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pope_core::{hash, ragged, sample, scan, simd};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::border::{FloatArray, IntArray, run, slice, threads as resolve, to_object};

/// XXH3-64 of each `data[offsets[i]:offsets[i + 1]]`.
#[pyfunction]
pub fn hash_strings<'py>(
    py: Python<'py>,
    offsets: IntArray<'py>,
    data: PyReadonlyArray1<'py, u8>,
) -> PyResult<Bound<'py, PyArray1<u64>>> {
    let (offsets, data) = (offsets.to_i64()?, slice(&data)?);
    Ok(run(py, |_| hash::hash_strings(&offsets, data))?.into_pyarray(py))
}

/// XXH3-64 of each list of integers.
#[pyfunction]
pub fn hash_lists<'py>(
    py: Python<'py>,
    offsets: IntArray<'py>,
    values: IntArray<'py>,
) -> PyResult<Bound<'py, PyArray1<u64>>> {
    let (offsets, values) = (offsets.to_i64()?, values.to_i64()?);
    Ok(run(py, |_| hash::hash_lists(&offsets, &values))?.into_pyarray(py))
}

type Sampled<'py> = (u32, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<u64>>);

/// Which keys belong into a sample by hash that has `kept` already: its new level, places and hashes.
#[pyfunction]
pub fn sample_keys<'py>(
    py: Python<'py>,
    keys: PyReadonlyArray1<'py, u64>,
    kept: PyReadonlyArray1<'py, u64>,
    level: u32,
    capacity: usize,
) -> PyResult<Sampled<'py>> {
    let (keys, kept) = (slice(&keys)?, slice(&kept)?);
    let found = run(py, |_| Ok(sample::select(keys, kept, level, capacity)))?;
    Ok((found.level, found.places.into_pyarray(py), found.hashes.into_pyarray(py)))
}

/// Sum of each row's token log-probabilities (nats).
#[pyfunction]
#[pyo3(signature = (offsets, values, threads=None))]
pub fn sum_tokens<'py>(
    py: Python<'py>,
    offsets: PyReadonlyArray1<'py, i64>,
    values: FloatArray<'py>,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let (offsets, values, threads) = (slice(&offsets)?, values.column()?, resolve(py, threads)?);
    Ok(run(py, |interrupt| ragged::sum_tokens(offsets, values, threads, interrupt))?.into_pyarray(py))
}

type ThreeColumns<'py> = (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<f64>>);

/// Sequence log-ratio, its mean per token, and the sum of clipped token log-ratios.
#[pyfunction]
#[pyo3(signature = (offsets, target, behavior, clip, threads=None))]
pub fn token_sums<'py>(
    py: Python<'py>,
    offsets: PyReadonlyArray1<'py, i64>,
    target: PyReadonlyArray1<'py, f32>,
    behavior: PyReadonlyArray1<'py, f32>,
    clip: f64,
    threads: Option<usize>,
) -> PyResult<ThreeColumns<'py>> {
    let (offsets, target, behavior, threads) =
        (slice(&offsets)?, slice(&target)?, slice(&behavior)?, resolve(py, threads)?);
    let [sum, mean, clipped] =
        run(py, |interrupt| ragged::token_sums(offsets, target, behavior, clip, threads, interrupt))?;
    Ok((sum.into_pyarray(py), mean.into_pyarray(py), clipped.into_pyarray(py)))
}

/// Importance sampling by row, its prompt-clustered error and per-prompt plug-in entropies, in one pass.
#[pyfunction]
#[pyo3(signature = (prompt_id, target, behavior, reward, cluster=None, clip=10.0, threads=None))]
pub fn prompt_scan<'py>(
    py: Python<'py>,
    prompt_id: PyReadonlyArray1<'py, i64>,
    target: FloatArray<'py>,
    behavior: FloatArray<'py>,
    reward: FloatArray<'py>,
    cluster: Option<IntArray<'py>>,
    clip: f64,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    let threads = resolve(py, threads)?;
    let columns = scan::ScanColumns {
        prompt: slice(&prompt_id)?,
        target: target.column()?,
        behavior: behavior.column()?,
        reward: reward.column()?,
        cluster: cluster.as_ref().map(IntArray::column).transpose()?,
        clip,
    };
    let result = run(py, |interrupt| scan::prompt_scan(columns, threads, interrupt))?;
    to_object(py, result.into())
}

/// Watches unit keys for one that comes back after its run has ended.
#[pyclass(name = "UnitScan", module = "pope_fast._core")]
#[derive(Default)]
pub struct PyUnitScan(scan::UnitScan);

#[pymethods]
impl PyUnitScan {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Read the next keys: -1, or the index of the first row whose key had been left before.
    fn feed(&mut self, py: Python<'_>, keys: PyReadonlyArray1<'_, i64>) -> PyResult<i64> {
        let keys = slice(&keys)?;
        let scan = &mut self.0;
        run(py, |_| Ok(scan.feed(keys).map_or(-1, |row| row as i64)))
    }

    /// Units begun so far.
    #[getter]
    fn n_units(&self) -> u64 {
        self.0.units()
    }
}

/// The number of threads that kernels use unless told otherwise.
#[pyfunction]
pub fn num_threads(py: Python<'_>) -> PyResult<usize> {
    resolve(py, None)
}

/// Version, build profile, target and the instruction set in use.
#[pyfunction]
pub fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    info.set_item("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
    info.set_item("target", format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS))?;
    info.set_item("simd", simd::level())?;
    Ok(info)
}
