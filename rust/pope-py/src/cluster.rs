//! Clustering within prompts.

use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods,
};
use pope_core::cluster::{self, Embeddings, Linkage, Relations};
use pyo3::prelude::*;

use crate::border::{matrix, run, slice, threads as resolve};

/// Labels at each threshold by embeddings.
#[pyfunction]
#[pyo3(signature = (offsets, embeddings, thresholds, linkage, threads=None))]
pub fn cluster_prompts<'py>(
    py: Python<'py>,
    offsets: PyReadonlyArray1<'py, i64>,
    embeddings: PyReadonlyArray2<'py, f32>,
    thresholds: PyReadonlyArray1<'py, f64>,
    linkage: &str,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray2<i32>>> {
    let shape = [thresholds.len(), embeddings.shape()[0]];
    let (offsets, thresholds, threads) = (slice(&offsets)?, slice(&thresholds)?, resolve(py, threads)?);
    let embeddings = Embeddings { values: matrix(&embeddings)?, dims: embeddings.shape()[1] };
    let labels = run(py, |interrupt| {
        cluster::cluster_prompts(offsets, embeddings, thresholds, Linkage::named(linkage)?, threads, interrupt)
    })?;
    labels.into_pyarray(py).reshape(shape)
}

/// Labels at each threshold by given similarities of pairs.
#[pyfunction]
#[pyo3(signature = (offsets, similarities, thresholds, linkage, keys=None, counts=None, threads=None))]
pub fn cluster_pairs<'py>(
    py: Python<'py>,
    offsets: PyReadonlyArray1<'py, i64>,
    similarities: PyReadonlyArray1<'py, f32>,
    thresholds: PyReadonlyArray1<'py, f64>,
    linkage: &str,
    keys: Option<PyReadonlyArray1<'py, u64>>,
    counts: Option<PyReadonlyArray1<'py, i64>>,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray2<i32>>> {
    let (offsets, thresholds, threads) = (slice(&offsets)?, slice(&thresholds)?, resolve(py, threads)?);
    let (keys, counts) = (keys.as_ref().map(slice).transpose()?, counts.as_ref().map(slice).transpose()?);
    let relations = Relations { similarities: slice(&similarities)?, keys, counts };
    let labels = run(py, |interrupt| {
        cluster::cluster_pairs(offsets, relations, thresholds, Linkage::named(linkage)?, threads, interrupt)
    })?;
    let rows = labels.len() / thresholds.len();
    labels.into_pyarray(py).reshape([thresholds.len(), rows])
}

type Trees<'py> = (Bound<'py, PyArray2<i32>>, Bound<'py, PyArray1<f64>>);

/// Children and similarities of the merges of every prompt.
#[pyfunction]
#[pyo3(signature = (offsets, embeddings, linkage, threads=None))]
pub fn dendrograms<'py>(
    py: Python<'py>,
    offsets: PyReadonlyArray1<'py, i64>,
    embeddings: PyReadonlyArray2<'py, f32>,
    linkage: &str,
    threads: Option<usize>,
) -> PyResult<Trees<'py>> {
    let (offsets, threads) = (slice(&offsets)?, resolve(py, threads)?);
    let embeddings = Embeddings { values: matrix(&embeddings)?, dims: embeddings.shape()[1] };
    let trees =
        run(py, |interrupt| cluster::dendrograms(offsets, embeddings, Linkage::named(linkage)?, threads, interrupt))?;
    let children = trees.children.into_flattened().into_pyarray(py);
    Ok((children.reshape([trees.similarity.len(), 2])?, trees.similarity.into_pyarray(py)))
}

type Agreement<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f64>>);

/// Number of clusters of each labeling, adjusted Rand index between each and the next.
#[pyfunction]
#[pyo3(signature = (offsets, labels, threads=None))]
pub fn compare_labels<'py>(
    py: Python<'py>,
    offsets: PyReadonlyArray1<'py, i64>,
    labels: PyReadonlyArray2<'py, i32>,
    threads: Option<usize>,
) -> PyResult<Agreement<'py>> {
    let (offsets, threads, labelings) = (slice(&offsets)?, resolve(py, threads)?, labels.shape()[0]);
    let labels = matrix(&labels)?;
    let found = run(py, |interrupt| cluster::compare_labels(offsets, labels, labelings, threads, interrupt))?;
    Ok((found.clusters.into_pyarray(py), found.rand.into_pyarray(py)))
}
