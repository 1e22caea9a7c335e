//! How a file of rows is read.

use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::options::CancelToken;

/// Which columns (or keys) of a file hold which part of a record.
///
/// The defaults are those of databricks-dolly-15k; context and category may then be absent. A
/// column that is named otherwise must be there: a name that no row has is an error.
///
/// ```
/// use dolly_core::dataset::Columns;
/// let alpaca = Columns {
///     context: Some("input".to_owned()),
///     response: "output".to_owned(),
///     ..Columns::default()
/// };
/// assert_eq!(alpaca.instruction, "instruction");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// The instruction; default `instruction`.
    pub instruction: String,
    /// The passage it speaks of; default `context`, `None` reads none.
    pub context: Option<String>,
    /// The answer; default `response`.
    pub response: String,
    /// The kind of task; default `category`, `None` reads none.
    pub category: Option<String>,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            instruction: "instruction".to_owned(),
            context: Some("context".to_owned()),
            response: "response".to_owned(),
            category: Some("category".to_owned()),
        }
    }
}

impl Columns {
    /// The columns in the order in which readers fill their cells.
    pub(super) fn wanted(&self) -> Result<Vec<Wanted>> {
        let own = Self::default();
        let fields = [
            (Some(&self.instruction), true),
            (self.context.as_ref(), self.context != own.context),
            (Some(&self.response), true),
            (self.category.as_ref(), self.category != own.category),
        ];
        let wanted = fields.map(|(name, must_occur)| Wanted { name: name.cloned(), must_occur });
        for (index, one) in wanted.iter().enumerate() {
            let name = one.name.as_deref();
            let again = wanted.iter().take(index).any(|other| other.name.as_deref() == name);
            if name == Some("") || (name.is_some() && again) {
                let allowed = "four different names that are not empty";
                return Err(Error::option("columns", format!("{:?}", name.unwrap_or("")), allowed));
            }
        }
        Ok(wanted.into())
    }
}

/// A column that a reader is to fill a cell from.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Its name; `None` leaves the cell missing.
    pub name: Option<String>,
    /// Whether a file without it is refused.
    pub must_occur: bool,
}

/// What becomes of a row that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnBadRow {
    /// It is the error of the call: [`Error::Row`].
    #[default]
    Error,
    /// It is left out, counted, and the first [`ReadSummary::MAX_LISTED`] are listed.
    ///
    /// [`ReadSummary::MAX_LISTED`]: super::ReadSummary::MAX_LISTED
    Skip,
}

impl FromStr for OnBadRow {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "error" => Ok(Self::Error),
            "skip" => Ok(Self::Skip),
            _ => Err(Error::option("on_bad_row", format!("{name:?}"), "\"error\" or \"skip\"")),
        }
    }
}

/// The form of a file of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataFormat {
    /// One JSON object a line (`.jsonl`, `.ndjson`).
    Jsonl,
    /// One JSON list of objects, or objects one a line (`.json`).
    Json,
    /// Comma-separated values as in RFC 4180, with a header (`.csv`).
    Csv,
    /// The same separated by tabs (`.tsv`).
    Tsv,
    /// Parquet (`.parquet`); needs the feature `parquet`.
    Parquet,
    /// Plain text, the whole file one document (`.txt`); for [`TextCorpus`](super::TextCorpus).
    Text,
}

impl DataFormat {
    /// The format that the end of the file's name stands for.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" => Ok(Self::Jsonl),
            "json" => Ok(Self::Json),
            "csv" => Ok(Self::Csv),
            "tsv" => Ok(Self::Tsv),
            "parquet" => Ok(Self::Parquet),
            "txt" => Ok(Self::Text),
            _ => Err(Error::format(
                path,
                "the name does not end in .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .txt",
            )),
        }
    }
}

/// How [`Dataset::from_file`](super::Dataset::from_file) reads.
///
/// ```
/// use dolly_core::dataset::{OnBadRow, ReadOptions};
/// let options = ReadOptions { on_bad_row: OnBadRow::Skip, ..Default::default() };
/// assert_eq!(options.max_line_bytes, 16 << 20);
/// ```
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Which columns hold what.
    pub columns: Columns,
    /// What becomes of a row that cannot be used; default: the call fails.
    pub on_bad_row: OnBadRow,
    /// Longest row in bytes as it stands in the file; default 16 MiB.
    pub max_line_bytes: usize,
    /// Most bytes that the rows may take in memory; default 8 GiB.
    pub memory_limit: u64,
    /// The form of the file; by its name unless given.
    pub format: Option<DataFormat>,
    /// Name of the set; the file's name without its end unless given.
    pub name: Option<String>,
    /// Where the set was had from.
    pub source: Option<String>,
    /// Its licence, as an SPDX expression where one exists.
    pub licence: Option<String>,
    /// Stops the call with [`Error::Cancelled`].
    pub cancel: Option<CancelToken>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            columns: Columns::default(),
            on_bad_row: OnBadRow::Error,
            max_line_bytes: 16 << 20,
            memory_limit: 8 << 30,
            format: None,
            name: None,
            source: None,
            licence: None,
            cancel: None,
        }
    }
}
