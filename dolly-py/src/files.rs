//! Model files without a pipeline: what they hold, and in other formats.

use std::ops::ControlFlow;
use std::path::PathBuf;

use dolly_core::source::{self, SourceOptions};
use dolly_core::weights::{Checkpoint, TensorInfo};
use dolly_core::{CancelToken, ConvertOptions, FileFormat, Result, WeightFormat, WriteProgress};
use pyo3::prelude::*;

use crate::errors::Outcome;
use crate::load::{Raised, Reporter, take};
use crate::wait::interruptible;

/// `(name, shape, stored type, bytes)`.
type TensorParts = (String, Vec<usize>, String, u64);

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(tensors, module)?)?;
    module.add_function(wrap_pyfunction!(convert, module)?)
}

pub(crate) fn source_options(bundled_dir: PathBuf) -> SourceOptions {
    let mut options = SourceOptions::from_env();
    options.bundled_dirs.push(bundled_dir);
    options
}

/// The tensors of a model's files, in the order of their names; reads headers only.
#[pyfunction]
#[pyo3(signature = (model, bundled_dir))]
fn tensors(py: Python<'_>, model: String, bundled_dir: PathBuf) -> Outcome<Vec<TensorParts>> {
    let options = source_options(bundled_dir);
    let list = || -> Result<Vec<TensorParts>> {
        let checkpoint = Checkpoint::open(&source::resolve(&model, &options)?)?;
        let one = |info: &TensorInfo| {
            let stored = format!("{:?}", info.stored).to_lowercase();
            (info.name.clone(), info.shape.clone(), stored, info.bytes)
        };
        let mut rows: Vec<TensorParts> = checkpoint.tensors().map(one).collect();
        rows.sort();
        Ok(rows)
    };
    Ok(interruptible(py, &CancelToken::new(), list)??)
}

/// Writes a model in another format; `form` is the file's format and the weights' type.
///
/// `progress(written, total, tensor)` is called after every tensor, on another thread.
#[pyfunction]
#[pyo3(signature = (model, destination, form, bundled_dir, adapter, progress))]
fn convert(
    py: Python<'_>,
    model: String,
    destination: PathBuf,
    form: (String, String),
    bundled_dir: PathBuf,
    adapter: Option<PathBuf>,
    progress: Option<Py<PyAny>>,
) -> Outcome<()> {
    let (token, raised) = (CancelToken::new(), Raised::default());
    let reporter = progress.map(|progress| Reporter::new(progress, &token, &raised));
    let mut report = |WriteProgress { written, total, tensor, .. }: WriteProgress| {
        if let Some(reporter) = &reporter {
            reporter.call((written, total, tensor));
        }
    };
    let options = source_options(bundled_dir);
    let (to, dtype): (FileFormat, WeightFormat) = (form.0.parse()?, form.1.parse()?);
    let write = || {
        let files = source::resolve_with(&model, &options, &mut |_| match token.is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })?;
        let options = ConvertOptions {
            adapter: adapter.as_deref(),
            cancel: token.clone(),
            on_progress: Some(&mut report),
        };
        dolly_core::convert_with(&files, &destination, to, dtype, options)
    };
    let result = interruptible(py, &token, write)?;
    take(&raised)?;
    Ok(result?)
}
