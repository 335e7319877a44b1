//! The one place where the interpreter is let go, errors change their type and Ctrl-C is heard.

use std::panic::{AssertUnwindSafe, catch_unwind};

use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pope_core::batch::{Floats, Ints, Vectors};
use pope_core::error::Error;
use pope_core::field::Field;
use pope_core::par::Interrupt;
use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

pyo3::import_exception!(pope_fast.errors, OverlapError);
pyo3::import_exception!(pope_fast.errors, PopeError);
pyo3::import_exception!(pope_fast.errors, SchemaError);
pyo3::import_exception!(pope_fast.errors, StateError);

/// Run `work` without the interpreter lock. It is given a way to ask whether the user has pressed Ctrl-C.
pub fn run<T: Send>(py: Python<'_>, work: impl FnOnce(&mut dyn Interrupt) -> Result<T, Error> + Send) -> PyResult<T> {
    let mut signal = None;
    let outcome = py.detach(|| {
        let mut interrupted = || {
            #[allow(clippy::redundant_closure_for_method_calls)] // the method is not general enough in its lifetime
            let pending = Python::attach(|py| py.check_signals());
            signal = pending.err();
            signal.is_some()
        };
        catch_unwind(AssertUnwindSafe(|| work(&mut interrupted)))
    });
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Error::Interrupted)) => Err(signal.unwrap_or_else(|| PyKeyboardInterrupt::new_err(()))),
        Ok(Err(error)) => Err(to_python(py, error)),
        Err(_) => Err(PyRuntimeError::new_err("a bug in pope_fast: the kernel panicked; please report it")),
    }
}

fn to_python(py: Python<'_>, error: Error) -> PyErr {
    match error {
        Error::Value { column, row, problem, remedy } => schema_error(py, problem, &column, Some((row, remedy))),
        Error::Length { column, problem } => schema_error(py, problem, &column, None),
        Error::Shape(message) => SchemaError::new_err(message),
        Error::Overlap(message) => OverlapError::new_err(message),
        Error::State(message) => StateError::new_err(message),
        other => PopeError::new_err(other.to_string()),
    }
}

/// A `SchemaError` with its attributes.
fn schema_error(py: Python<'_>, problem: String, column: &str, place: Option<(usize, &str)>) -> PyErr {
    let make = || {
        let details = PyDict::new(py);
        details.set_item("column", column)?;
        if let Some((row, remedy)) = place {
            details.set_item("row", row)?;
            details.set_item("remedy", remedy)?;
        }
        py.get_type::<SchemaError>().call((problem,), Some(&details))
    };
    make().map_or_else(|failure| failure, PyErr::from_value)
}

/// More threads than this are never started: what is asked for beyond it changes no result, only memory.
const MOST_THREADS: usize = 256;

/// Number of threads: what was asked for, up to [`MOST_THREADS`], else what the package's policy gives.
pub fn threads(py: Python<'_>, asked: Option<usize>) -> PyResult<usize> {
    match asked {
        Some(0) => Err(PopeError::new_err("threads must be at least 1")),
        Some(n) => Ok(n.min(MOST_THREADS)),
        None => py.import("pope_fast._threads")?.call_method0("default_threads")?.extract(),
    }
}

/// A float column as NumPy has it.
#[derive(FromPyObject)]
pub enum FloatArray<'py> {
    /// Single precision.
    F32(PyReadonlyArray1<'py, f32>),
    /// Double precision.
    F64(PyReadonlyArray1<'py, f64>),
}

/// An integer column as NumPy has it.
#[derive(FromPyObject)]
pub enum IntArray<'py> {
    /// 32 bits.
    I32(PyReadonlyArray1<'py, i32>),
    /// 64 bits.
    I64(PyReadonlyArray1<'py, i64>),
}

/// A column of vectors of one width as NumPy has it.
#[derive(FromPyObject)]
pub enum VectorArray<'py> {
    /// Single precision.
    F32(PyReadonlyArray2<'py, f32>),
    /// Double precision.
    F64(PyReadonlyArray2<'py, f64>),
}

/// The elements of an array, which must be contiguous.
pub fn slice<'a, T: numpy::Element>(array: &'a PyReadonlyArray1<'_, T>) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| SchemaError::new_err(format!("an array of {} rows is not contiguous", array.len())))
}

/// The elements of a matrix, row after row; it must lie in memory so.
pub fn matrix<'a, T: numpy::Element>(array: &'a PyReadonlyArray2<'_, T>) -> PyResult<&'a [T]> {
    let wrong = || SchemaError::new_err(format!("an array of shape {:?} is not C-contiguous", array.shape()));
    if array.is_c_contiguous() { array.as_slice().map_err(|_| wrong()) } else { Err(wrong()) }
}

impl FloatArray<'_> {
    /// Borrow as a column.
    pub fn column(&self) -> PyResult<Floats<'_>> {
        match self {
            FloatArray::F32(x) => slice(x).map(Floats::F32),
            FloatArray::F64(x) => slice(x).map(Floats::F64),
        }
    }
}

impl VectorArray<'_> {
    /// Borrow as a column.
    pub fn column(&self) -> PyResult<Vectors<'_>> {
        let (values, width) = match self {
            VectorArray::F32(x) => (x.as_slice().ok().map(Floats::F32), x.shape()[1]),
            VectorArray::F64(x) => (x.as_slice().ok().map(Floats::F64), x.shape()[1]),
        };
        let values = values.ok_or_else(|| SchemaError::new_err("an array of embeddings is not contiguous"))?;
        Ok(Vectors { values, width })
    }
}

impl IntArray<'_> {
    /// Borrow as a column.
    pub fn column(&self) -> PyResult<Ints<'_>> {
        match self {
            IntArray::I32(x) => slice(x).map(Ints::I32),
            IntArray::I64(x) => slice(x).map(Ints::I64),
        }
    }

    /// Elements as 64-bit integers.
    pub fn to_i64(&self) -> PyResult<std::borrow::Cow<'_, [i64]>> {
        Ok(match self {
            IntArray::I32(x) => slice(x)?.iter().map(|&x| i64::from(x)).collect::<Vec<_>>().into(),
            IntArray::I64(x) => slice(x)?.into(),
        })
    }
}

/// A result as Python objects: records become dictionaries.
pub fn to_object(py: Python<'_>, field: Field) -> PyResult<Bound<'_, PyAny>> {
    Ok(match field {
        Field::None => py.None().into_bound(py),
        Field::Bool(x) => x.into_pyobject(py)?.to_owned().into_any(),
        Field::Count(x) => x.into_pyobject(py)?.into_any(),
        Field::Key(x) => x.into_pyobject(py)?.into_any(),
        Field::Number(x) => x.into_pyobject(py)?.into_any(),
        Field::Text(x) => x.into_pyobject(py)?.into_any(),
        Field::List(items) => {
            let items = items.into_iter().map(|x| to_object(py, x)).collect::<PyResult<Vec<_>>>()?;
            PyList::new(py, items)?.into_any()
        }
        Field::Record(items) => {
            let dict = PyDict::new(py);
            items.into_iter().try_for_each(|(name, x)| dict.set_item(name, to_object(py, x)?))?;
            dict.into_any()
        }
    })
}
