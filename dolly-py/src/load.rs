//! Loading: settings in, a pipeline out.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use dolly_core::{CancelToken, LoadProgress, Pipeline};
use pyo3::prelude::*;

use crate::errors::Outcome;
use crate::options::Fields;
use crate::pipeline::NativePipeline;
use crate::wait::interruptible;

/// The first exception of the progress callable; it stops the load.
type Raised = Arc<Mutex<Option<PyErr>>>;

/// Loads the model that `settings` describe (attributes of `dolly_rs.Settings`).
///
/// `progress(loaded, total, tensor)` is called after every tensor, on another thread.
#[pyfunction]
#[pyo3(signature = (settings, bundled_dir, progress))]
pub(crate) fn load(
    py: Python<'_>,
    settings: &Bound<'_, PyAny>,
    bundled_dir: PathBuf,
    progress: Option<Py<PyAny>>,
) -> Outcome<NativePipeline> {
    let fields = Fields(settings);
    let mut builder = Pipeline::builder(fields.get::<String>("model")?)
        .device(fields.get::<String>("device")?.parse()?)
        .weights(fields.get::<String>("dtype")?.parse()?)
        .bundled_dir(bundled_dir);
    if let Some(threads) = fields.get("threads")? {
        builder = builder.threads(threads);
    }
    if let Some(tokens) = fields.get("context_length")? {
        builder = builder.context_length(tokens);
    }
    if let Some(bytes) = fields.get("memory_limit")? {
        builder = builder.memory_limit(bytes);
    }
    if let Some(revision) = fields.get::<Option<String>>("revision")? {
        builder = builder.revision(revision);
    }
    if let Some(adapter) = fields.get::<Option<PathBuf>>("adapter")? {
        builder = builder.adapter(adapter);
    }
    if let Some(offline) = fields.get("offline")? {
        builder = builder.offline(offline);
    }
    let (token, raised) = (CancelToken::new(), Raised::default());
    builder = builder.cancel(token.clone());
    if let Some(progress) = progress {
        builder = builder.on_progress(report(progress, token.clone(), Arc::clone(&raised)));
    }
    let result = interruptible(py, &token, || builder.build())?;
    if let Some(error) = raised.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error.into());
    }
    Ok(NativePipeline::new(result?))
}

fn report(
    progress: Py<PyAny>,
    token: CancelToken,
    raised: Raised,
) -> impl FnMut(LoadProgress) + Send + 'static {
    move |LoadProgress { loaded, total, tensor, .. }| {
        if token.is_cancelled() {
            return;
        }
        let call = Python::attach(|py| progress.call1(py, (loaded, total, tensor)));
        if let Err(error) = call {
            *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            token.cancel();
        }
    }
}
