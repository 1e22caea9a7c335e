//! Sets of instruction data.

use std::path::PathBuf;

use dolly_core::dataset::{
    CleanOptions, Columns, DataFormat, Dataset, OnBadRow, ReadOptions, Record, SplitSize,
};
use dolly_core::{CancelToken, Error};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::Outcome;
use crate::options::{Fields, convert};
use crate::pipeline::NativeTokenizer;
use crate::wait::interruptible;

/// `(instruction, context, response, category)`.
type RowParts = (String, String, String, Option<String>);

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<NativeDataset>()?;
    module.add_function(wrap_pyfunction!(read_files, module)?)?;
    module.add_function(wrap_pyfunction!(read_rows, module)?)
}

/// Records and the sets they came from; never changes.
#[pyclass(frozen, module = "dolly_rs._native", name = "Dataset")]
pub(crate) struct NativeDataset(Dataset);

/// The options from the attributes of `dolly_rs.data._Reading`.
fn options(from: &Bound<'_, PyAny>, cancel: &CancelToken) -> Outcome<ReadOptions> {
    let fields = Fields(from);
    let (instruction, context, response, category) = fields.get("columns")?;
    let defaults = ReadOptions::default();
    let max_line_bytes: Option<usize> = fields.get("max_line_bytes")?;
    Ok(ReadOptions {
        columns: Columns { instruction, context, response, category },
        on_bad_row: fields.get::<String>("on_bad_row")?.parse::<OnBadRow>()?,
        max_line_bytes: max_line_bytes.unwrap_or(defaults.max_line_bytes),
        name: fields.get("name")?,
        source: fields.get("source")?,
        licence: fields.get("licence")?,
        cancel: Some(cancel.clone()),
        ..defaults
    })
}

/// Reads files as one set each.
#[pyfunction]
#[pyo3(signature = (paths, reading))]
fn read_files(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    reading: &Bound<'_, PyAny>,
) -> Outcome<NativeDataset> {
    let token = CancelToken::new();
    let options = options(reading, &token)?;
    let data = interruptible(py, &token, || Dataset::from_files(&paths, &options))??;
    Ok(NativeDataset(data))
}

/// Reads rows that were made in Python, as lines of JSON.
#[pyfunction]
#[pyo3(signature = (jsonl, name, reading))]
fn read_rows(
    py: Python<'_>,
    jsonl: &[u8],
    name: &str,
    reading: &Bound<'_, PyAny>,
) -> Outcome<NativeDataset> {
    let token = CancelToken::new();
    let options = ReadOptions { format: Some(DataFormat::Jsonl), ..options(reading, &token)? };
    let data = interruptible(py, &token, || Dataset::from_bytes(jsonl, name, &options))??;
    Ok(NativeDataset(data))
}

fn parts(record: &Record) -> RowParts {
    let Record { instruction, context, response, category, .. } = record.clone();
    (instruction, context, response, category)
}

fn json(value: &impl serde::Serialize) -> Outcome<String> {
    Ok(serde_json::to_string(value).map_err(|error| Error::Internal(error.to_string()))?)
}

#[pymethods]
impl NativeDataset {
    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// A row that is there; `None` otherwise.
    fn row(&self, index: usize) -> Option<RowParts> {
        self.0.get(index).map(parts)
    }

    /// Name of the set a row came from, and its line there.
    fn origin(&self, index: usize) -> Option<(String, u64)> {
        self.0.origin(index).map(|(info, line)| (info.name.clone(), line))
    }

    fn categories(&self) -> Vec<(Option<String>, u64)> {
        self.0.categories().into_iter().map(|one| (one.category, one.rows)).collect()
    }

    /// The sources as JSON.
    fn sources(&self) -> Outcome<String> {
        json(&self.0.sources())
    }

    /// What was found while the files were read, as JSON.
    fn summaries(&self) -> Outcome<String> {
        json(&self.0.summaries())
    }

    fn select(&self, py: Python<'_>, indices: Vec<usize>, description: &str) -> Outcome<Self> {
        Ok(Self(py.detach(|| self.0.select(indices, description))?))
    }

    /// The rows whose flag is set.
    fn filter(&self, py: Python<'_>, keep: Vec<bool>, description: &str) -> Self {
        let mut keep = keep.into_iter();
        Self(py.detach(|| self.0.filter(description, |_| keep.next().unwrap_or(false))))
    }

    fn shuffle(&self, py: Python<'_>, seed: &Bound<'_, PyAny>) -> Outcome<Self> {
        let seed = convert("seed", seed)?;
        Ok(Self(py.detach(|| self.0.shuffle(seed))?))
    }

    fn split(
        &self,
        py: Python<'_>,
        test: &Bound<'_, PyAny>,
        seed: &Bound<'_, PyAny>,
    ) -> Outcome<(Self, Self)> {
        let seed = convert("seed", seed)?;
        let size = match test.extract::<usize>() {
            Ok(rows) => SplitSize::Rows(rows),
            Err(_) => SplitSize::Fraction(convert("test", test)?),
        };
        let (train, test) = py.detach(|| self.0.split(size, seed))?;
        Ok((Self(train), Self(test)))
    }

    fn without_duplicates(&self, py: Python<'_>, same: &str) -> Outcome<Self> {
        let same = same.parse()?;
        Ok(Self(py.detach(|| self.0.without_duplicates(same))))
    }

    fn clean<'py>(
        &self,
        py: Python<'py>,
        footnotes: bool,
        footnotes_in_responses: bool,
        trim: bool,
    ) -> Outcome<(Self, Bound<'py, PyDict>)> {
        let options = CleanOptions { footnotes, footnotes_in_responses, trim };
        let (data, done) = py.detach(|| self.0.clean(&options))?;
        let dict = PyDict::new(py);
        dict.set_item("changed_rows", done.changed_rows)?;
        dict.set_item("trimmed_fields", done.trimmed_fields)?;
        dict.set_item("removed_footnotes", done.removed_footnotes)?;
        dict.set_item("emptied_rows", done.emptied_rows)?;
        Ok((Self(data), dict))
    }

    fn concat(&self, py: Python<'_>, other: &Self) -> Outcome<Self> {
        Ok(Self(py.detach(|| self.0.concat(&other.0))?))
    }

    /// The report as JSON and as text.
    fn report(
        &self,
        py: Python<'_>,
        tokenizer: Option<&NativeTokenizer>,
        max_length: Option<usize>,
    ) -> Outcome<(String, String)> {
        let tokenizer = tokenizer.map(|one| &one.0);
        let make = || self.0.report(tokenizer, max_length);
        let report = interruptible(py, &CancelToken::new(), make)??;
        Ok((json(&report)?, report.to_string()))
    }

    fn to_jsonl(&self, py: Python<'_>, path: PathBuf) -> Outcome<()> {
        Ok(interruptible(py, &CancelToken::new(), || self.0.to_jsonl(&path))??)
    }
}
