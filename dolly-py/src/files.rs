//! Model files without a pipeline: what they hold.

use std::path::PathBuf;

use dolly_core::source::{self, SourceOptions};
use dolly_core::weights::Checkpoint;
use dolly_core::CancelToken;
use pyo3::prelude::*;

use crate::errors::Outcome;
use crate::wait::interruptible;

/// `(name, shape, stored type, bytes)`.
type TensorParts = (String, Vec<usize>, String, u64);

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(tensors, module)?)
}

/// The tensors of a model's files, in the order of their names; reads headers only.
#[pyfunction]
#[pyo3(signature = (model, bundled_dir))]
fn tensors(py: Python<'_>, model: String, bundled_dir: PathBuf) -> Outcome<Vec<TensorParts>> {
    let mut options = SourceOptions::from_env();
    options.bundled_dirs.push(bundled_dir);
    let list = || {
        let checkpoint = Checkpoint::open(&source::resolve(&model, &options)?)?;
        let one = |info: &dolly_core::weights::TensorInfo| {
            (info.name.clone(), info.shape.clone(), format!("{:?}", info.stored), info.bytes)
        };
        let mut rows: Vec<TensorParts> = checkpoint.tensors().map(one).collect();
        rows.sort();
        dolly_core::Result::Ok(rows)
    };
    Ok(interruptible(py, &CancelToken::new(), list)??)
}
