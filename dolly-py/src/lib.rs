//! `dolly_rs._native`: the Rust half of the Python package.
//!
//! Conversion only. Options are read from Python objects, the core decides, results go back as
//! plain tuples which the Python half (`python/dolly_rs`) turns into its classes. Every call
//! detaches from the interpreter while it works and looks for signals every [`wait::SLICE`].

use pyo3::prelude::*;

mod dataset;
mod errors;
mod files;
mod load;
mod lora;
mod options;
mod pipeline;
mod results;
mod stream;
mod wait;

/// The native half of `dolly_rs`; use `dolly_rs` itself.
#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    forward_log(module.py())?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<pipeline::NativePipeline>()?;
    module.add_class::<pipeline::NativeTokenizer>()?;
    module.add_class::<stream::NativeStream>()?;
    module.add_function(wrap_pyfunction!(load::load, module)?)?;
    module.add_function(wrap_pyfunction!(options::default_options, module)?)?;
    dataset::add(module)?;
    files::add(module)?;
    lora::add(module)
}

/// Passes the core's events on to `logging`, under the names of the modules they come from.
///
/// Levels are asked for at every event: they are rare, and may be set after the import.
fn forward_log(py: Python<'_>) -> PyResult<()> {
    let logger = pyo3_log::Logger::new(py, pyo3_log::Caching::Loggers)?;
    // A second import (of a subinterpreter, or after a reload) finds the first one's logger.
    let _ = logger.filter(log::LevelFilter::Debug).install();
    Ok(())
}
