//! Low-rank adapters: their options, merging them, and where a result came from.

use std::path::PathBuf;

use dolly_core::train::LoraConfig;
use dolly_core::{CancelToken, Error, Result, WeightFormat, merge_adapter, provenance, source};
use pyo3::prelude::*;

use crate::errors::Outcome;
use crate::files::source_options;
use crate::options::Fields;
use crate::wait::interruptible;

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(check_lora, module)?)?;
    module.add_function(wrap_pyfunction!(merge, module)?)?;
    module.add_function(wrap_pyfunction!(lineage, module)?)
}

/// The options of adapters from the attributes of `dolly_rs.LoraConfig`, checked.
pub(crate) fn read(lora: &Bound<'_, PyAny>) -> Outcome<LoraConfig> {
    let fields = Fields(lora);
    let config = LoraConfig {
        rank: fields.get("r")?,
        alpha: fields.get("alpha")?,
        dropout: fields.get("dropout")?,
        targets: fields.get("targets")?,
    };
    config.validate()?;
    Ok(config)
}

/// Checks a `dolly_rs.LoraConfig`.
#[pyfunction]
fn check_lora(lora: &Bound<'_, PyAny>) -> Outcome<()> {
    read(lora).map(|_| ())
}

/// Writes a base with an adapter merged in; a signal is heard once the files are complete.
#[pyfunction]
#[pyo3(name = "merge_adapter", signature = (base, adapter, output_dir, dtype, bundled_dir))]
fn merge(
    py: Python<'_>,
    base: String,
    adapter: PathBuf,
    output_dir: PathBuf,
    dtype: &str,
    bundled_dir: PathBuf,
) -> Outcome<()> {
    let options = source_options(bundled_dir);
    let dtype: WeightFormat = dtype.parse()?;
    let write = || {
        let files = source::resolve(&base, &options)?;
        merge_adapter(&base, &files, &adapter, &output_dir, dtype)
    };
    Ok(interruptible(py, &CancelToken::new(), write)??)
}

/// The chain back from a result: `(tree, JSON, CycloneDX as JSON)`.
#[pyfunction]
#[pyo3(signature = (directory))]
fn lineage(py: Python<'_>, directory: PathBuf) -> Outcome<(String, String, String)> {
    let read = || -> Result<_> {
        let lineage = provenance::lineage(&directory)?;
        let json = |value: serde_json::Value| {
            serde_json::to_string(&value).map_err(|error| Error::Internal(error.to_string()))
        };
        Ok((lineage.to_string(), json(lineage.to_json()?)?, json(lineage.cyclonedx())?))
    };
    Ok(interruptible(py, &CancelToken::new(), read)??)
}
