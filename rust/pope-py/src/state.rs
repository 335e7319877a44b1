//! The mergeable state and its snapshots.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use numpy::PyReadonlyArray1;
use pope_core::batch::Batch;
use pope_core::state::{Config, Snapshot, State};
use pope_core::summary::{Choice, Options};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::border::{FloatArray, IntArray, PopeError, VectorArray, run, slice, threads as resolve, to_object};

/// The mergeable state of an evaluation: exact sums, the same for any order and partition of the rows.
#[pyclass(name = "State", module = "pope_fast._core", frozen)]
pub struct PyState(Mutex<State>);

impl PyState {
    /// Call this only inside [`run`]: a thread that waits for the state while it holds the interpreter would lock out
    /// the one that has the state and asks the interpreter for signals.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PyState {
    #[new]
    #[pyo3(signature = (policies, reward_range, *, row_units=false, has_cluster=false, has_group=false, has_tokens=false,
                        has_baseline=false, has_embedding=false, cluster_scope="log", tail_capacity=32768))]
    fn new(
        py: Python<'_>,
        policies: Vec<String>,
        reward_range: (f64, f64),
        row_units: bool,
        has_cluster: bool,
        has_group: bool,
        has_tokens: bool,
        has_baseline: bool,
        has_embedding: bool,
        cluster_scope: &str,
        tail_capacity: usize,
    ) -> PyResult<Self> {
        let clusters_span_log = match cluster_scope {
            "log" => true,
            "prompt" => false,
            other => return Err(PopeError::new_err(format!("cluster_scope must be 'log' or 'prompt', not '{other}'"))),
        };
        let config = Config {
            policies,
            reward_range,
            row_units,
            has_cluster,
            has_group,
            has_tokens,
            has_baseline,
            has_embedding,
            clusters_span_log,
            tail_capacity,
        };
        Ok(PyState(Mutex::new(run(py, |_| State::new(config))?)))
    }

    /// Add the next rows; rows of a unit stand together and may go on from the previous call.
    #[pyo3(signature = (unit_key, behavior_logprob, target_logprobs, reward, *, cluster=None, group=None, count=None,
                        num_tokens=None, baseline=None, baseline_means=None, embedding=None, first_row=0,
                        threads=None))]
    fn update(
        &self,
        py: Python<'_>,
        unit_key: Option<PyReadonlyArray1<'_, i64>>,
        behavior_logprob: FloatArray<'_>,
        target_logprobs: Vec<FloatArray<'_>>,
        reward: FloatArray<'_>,
        cluster: Option<IntArray<'_>>,
        group: Option<IntArray<'_>>,
        count: Option<PyReadonlyArray1<'_, f64>>,
        num_tokens: Option<PyReadonlyArray1<'_, f64>>,
        baseline: Option<PyReadonlyArray1<'_, f64>>,
        baseline_means: Option<Vec<PyReadonlyArray1<'_, f64>>>,
        embedding: Option<VectorArray<'_>>,
        first_row: u64,
        threads: Option<usize>,
    ) -> PyResult<()> {
        let means = baseline_means.unwrap_or_default();
        let batch = Batch {
            unit: unit_key.as_ref().map(slice).transpose()?,
            behavior: behavior_logprob.column()?,
            targets: target_logprobs.iter().map(FloatArray::column).collect::<PyResult<_>>()?,
            reward: reward.column()?,
            cluster: cluster.as_ref().map(IntArray::column).transpose()?,
            group: group.as_ref().map(IntArray::column).transpose()?,
            count: count.as_ref().map(slice).transpose()?,
            tokens: num_tokens.as_ref().map(slice).transpose()?,
            baseline: baseline.as_ref().map(slice).transpose()?,
            baseline_means: means.iter().map(slice).collect::<PyResult<_>>()?,
            embedding: embedding.as_ref().map(VectorArray::column).transpose()?,
            first_row,
        };
        let threads = resolve(py, threads)?;
        run(py, |interrupt| self.lock().update(&batch, threads, interrupt))
    }

    /// Add what another state has seen.
    fn merge(&self, py: Python<'_>, other: Bound<'_, PyState>) -> PyResult<()> {
        // A copy of the other first: merging a state with itself must not lock twice.
        let other = other.get();
        run(py, |_| {
            let theirs = other.lock().clone();
            self.lock().merge(&theirs)
        })
    }

    /// Close what is open and read.
    fn snapshot(&self, py: Python<'_>) -> PyResult<PySnapshot> {
        Ok(PySnapshot(Arc::new(run(py, |_| self.lock().snapshot())?)))
    }

    /// The state as bytes: versioned and checksummed.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = run(py, |_| self.lock().to_bytes())?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// A state from bytes.
    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        Ok(PyState(Mutex::new(run(py, |_| State::from_bytes(data))?)))
    }

    /// Rows seen.
    #[getter]
    fn n_rows(&self, py: Python<'_>) -> PyResult<u64> {
        run(py, |_| Ok(self.lock().rows()))
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let restore = py.get_type::<PyState>().getattr("from_bytes")?;
        Ok((restore, (self.to_bytes(py)?,)))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        run(py, |_| {
            let state = self.lock();
            Ok(format!("State(policies={:?}, n_rows={})", state.config().policies, state.rows()))
        })
    }
}

/// A state at rest, from which everything is read.
#[pyclass(name = "Snapshot", module = "pope_fast._core", frozen)]
pub struct PySnapshot(Arc<Snapshot>);

#[pymethods]
impl PySnapshot {
    /// Everything about one policy. Options are the fields of [`Options`].
    #[pyo3(signature = (policy, **options))]
    fn summary<'py>(
        &self,
        py: Python<'py>,
        policy: &str,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let options = read_options(options)?;
        let summary = run(py, |_| self.0.summary(policy, &options))?;
        to_object(py, summary.into())
    }

    /// Every policy minus every later one on the same units.
    #[pyo3(signature = (policies, **options))]
    fn differences<'py>(
        &self,
        py: Python<'py>,
        policies: Vec<String>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let options = read_options(options)?;
        let differences = run(py, |_| self.0.differences(&policies, &options))?;
        to_object(py, differences.into())
    }

    /// What the log itself earned.
    #[pyo3(signature = (*, level=0.95))]
    fn behavior<'py>(&self, py: Python<'py>, level: f64) -> PyResult<Bound<'py, PyAny>> {
        let summary = run(py, |_| self.0.behavior(level))?;
        to_object(py, summary.into())
    }
}

fn choice(name: &str) -> PyResult<Choice> {
    Choice::named(name).map_err(|error| PopeError::new_err(error.to_string()))
}

/// Options from keyword arguments; an unknown name is an error.
fn read_options(given: Option<&Bound<'_, PyDict>>) -> PyResult<Options> {
    let mut options = Options::default();
    for (name, value) in given.into_iter().flatten() {
        match name.extract::<String>()?.as_str() {
            "level" => options.level = value.extract()?,
            "diversity_weight" => options.diversity_weight = value.extract()?,
            "diversity" => options.diversity = choice(&value.extract::<String>()?)?,
            "diversity_order" => options.max_order = value.extract()?,
            "repeated_share" => options.repeated_share = value.extract()?,
            "order_share" => options.order_share = value.extract()?,
            "kappa" => options.kappa = value.extract()?,
            "tau" => options.tau = value.extract()?,
            other => return Err(PopeError::new_err(format!("there is no option '{other}'"))),
        }
    }
    Ok(options)
}
