//! Loading: settings in, a pipeline out.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dolly_core::source::DownloadProgress;
use dolly_core::{CancelToken, LoadProgress, Pipeline};
use pyo3::prelude::*;

use crate::errors::Outcome;
use crate::options::Fields;
use crate::pipeline::NativePipeline;
use crate::wait::interruptible;

/// The first exception of a callable; it stops the call.
pub(crate) type Raised = Arc<Mutex<Option<PyErr>>>;

/// Shortest time between two reports of one file's download.
const BETWEEN_REPORTS: Duration = Duration::from_millis(100);

/// Loads the model that `settings` describe (attributes of `dolly_rs.Settings`).
///
/// `progress(loaded, total, tensor)` is called after every tensor, `download(received, total, file)`
/// while files are downloaded; both on another thread.
#[pyfunction]
#[pyo3(signature = (settings, bundled_dir, progress, download))]
pub(crate) fn load(
    py: Python<'_>,
    settings: &Bound<'_, PyAny>,
    bundled_dir: PathBuf,
    progress: Option<Py<PyAny>>,
    download: Option<Py<PyAny>>,
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
    if let Some(format) = fields.get::<Option<String>>("kv_cache")? {
        builder = builder.kv_cache(format.parse()?);
    }
    if let Some(bytes) = fields.get("prefix_cache")? {
        builder = builder.prefix_cache(bytes);
    }
    if let Some(revision) = fields.get::<Option<String>>("revision")? {
        builder = builder.revision(revision);
    }
    if let Some(adapter) = fields.get::<Option<PathBuf>>("adapter")? {
        builder = builder.adapter(adapter);
    }
    if let Some(directory) = fields.get::<Option<PathBuf>>("packed_weights")? {
        builder = builder.packed_weights(directory);
    }
    if let Some(offline) = fields.get("offline")? {
        builder = builder.offline(offline);
    }
    let (token, raised) = (CancelToken::new(), Raised::default());
    builder = builder.cancel(token.clone());
    if let Some(progress) = progress {
        let reporter = Reporter::new(progress, &token, &raised);
        builder = builder.on_progress(move |LoadProgress { loaded, total, tensor, .. }| {
            reporter.call((loaded, total, tensor));
        });
    }
    if let Some(download) = download {
        builder = builder.on_download(report_download(Reporter::new(download, &token, &raised)));
    }
    let result = interruptible(py, &token, || builder.build())?;
    take(&raised)?;
    Ok(NativePipeline::new(result?))
}

/// The exception that stopped the call, if one did.
pub(crate) fn take(raised: &Raised) -> PyResult<()> {
    match raised.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

pub(crate) fn report_download(
    reporter: Reporter,
) -> impl FnMut(DownloadProgress<'_>) + Send + 'static {
    let mut told: Option<(String, Instant)> = None;
    move |DownloadProgress { file, received, total, .. }| {
        let early = |(name, at): &(String, Instant)| name == file && at.elapsed() < BETWEEN_REPORTS;
        if total != Some(received) && told.as_ref().is_some_and(early) {
            return;
        }
        told = Some((file.to_owned(), Instant::now()));
        reporter.call((received, total, file));
    }
}

/// A Python callable that hears how far a call is; what it raises cancels the call.
pub(crate) struct Reporter {
    call: Py<PyAny>,
    token: CancelToken,
    raised: Raised,
}

impl Reporter {
    pub(crate) fn new(call: Py<PyAny>, token: &CancelToken, raised: &Raised) -> Self {
        Self { call, token: token.clone(), raised: Arc::clone(raised) }
    }

    pub(crate) fn call<A>(&self, report: A)
    where
        A: for<'py> pyo3::call::PyCallArgs<'py>,
    {
        let _ = self.ask(report);
    }

    /// As [`call`](Self::call); breaks where the callable returns False.
    pub(crate) fn ask<A>(&self, report: A) -> ControlFlow<()>
    where
        A: for<'py> pyo3::call::PyCallArgs<'py>,
    {
        if self.token.is_cancelled() {
            return ControlFlow::Continue(());
        }
        let answer = Python::attach(|py| -> PyResult<bool> {
            let answer = self.call.bind(py).call1(report)?;
            Ok(answer.extract::<bool>().unwrap_or(true))
        });
        match answer {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => ControlFlow::Break(()),
            Err(error) => {
                *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                self.token.cancel();
                ControlFlow::Continue(())
            }
        }
    }
}
