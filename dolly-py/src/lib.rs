//! `dolly_rs._native`: the Rust half of the Python package.
//!
//! Conversion only. Options are read from Python objects, the core decides, results go back as
//! plain tuples which the Python half (`python/dolly_rs`) turns into its classes. Every call
//! detaches from the interpreter while it works and looks for signals every [`wait::SLICE`].

use pyo3::prelude::*;

mod errors;
mod files;
mod load;
mod options;
mod pipeline;
mod results;
mod stream;
mod wait;

/// The native half of `dolly_rs`; use `dolly_rs` itself.
#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<pipeline::NativePipeline>()?;
    module.add_class::<pipeline::NativeTokenizer>()?;
    module.add_class::<stream::NativeStream>()?;
    module.add_function(wrap_pyfunction!(load::load, module)?)?;
    module.add_function(wrap_pyfunction!(options::default_options, module)?)?;
    files::add(module)
}
