//! Instruction data: reading, checking, describing, splitting and extending it.
//!
//! | to | call |
//! |---|---|
//! | read JSONL, JSON, CSV or Parquet | [`Dataset::from_file`], [`ReadOptions`] |
//! | see what is in it | [`Dataset::report`], [`Dataset::categories`] |
//! | choose rows | [`Dataset::filter`], [`Dataset::without_duplicates`], [`Dataset::split`] |
//! | change rows | [`Dataset::clean`]: explicit, counted |
//! | join sets | [`Dataset::concat`]: each keeps its licence and source |
//! | write it | [`Dataset::to_jsonl`] |
//! | train on plain text | [`TextCorpus`] |
//!
//! A set never changes: each of these gives a new one, which shares its texts with the old. What was
//! done stands in [`SetInfo::steps`] and is carried along to what is trained on the set.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, try_vec};

mod bytes;
mod clean;
mod corpus;
mod csv_file;
mod duplicates;
mod intake;
mod json_file;
mod json_row;
mod options;
mod order;
mod parallel;
#[cfg(feature = "parquet")]
mod parquet_file;
#[cfg(feature = "parquet")]
mod parquet_guard;
mod read;
mod report;
#[cfg(test)]
mod tests;
mod write;

pub use clean::{CleanOptions, Cleaning};
pub use corpus::{Packed, TextCorpus};
pub use duplicates::SameRow;
pub use intake::{BadRow, ReadSummary};
pub use options::{Columns, DataFormat, OnBadRow, ReadOptions};
pub use order::SplitSize;
pub use report::{
    Bin, CategoryRows, Duplicates, Empties, Footnotes, LengthUnit, Lengths, Quantiles, Report,
    TooLong,
};

use order::Purpose;
use read::Input;

/// Where a set of rows came from and what was done to it: carried along to what is trained on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SetInfo {
    /// Name of the set, by default its file's name.
    pub name: String,
    /// Where it was had from: an address, a citation.
    pub source: Option<String>,
    /// Its licence, as an SPDX expression where one exists.
    pub licence: Option<String>,
    /// SHA-256 of the file's bytes, in hexadecimal.
    pub sha256: String,
    /// Rows that are left of it.
    pub rows: u64,
    /// Filters, cleaning and splits in the order they were applied, in words.
    pub steps: Vec<String>,
}

/// One example: what is asked, and the answer to learn.
///
/// ```
/// use dolly_core::dataset::Record;
/// let record = Record::new("When was Dolly born?", "In 1996.").with_context("A passage.");
/// assert_eq!((record.context.as_str(), record.category), ("A passage.", None));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize)]
#[non_exhaustive]
pub struct Record {
    /// The instruction; not empty in a set.
    pub instruction: String,
    /// The passage it speaks of, empty where there is none.
    pub context: String,
    /// The answer; not empty in a set.
    pub response: String,
    /// The kind of task, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
}

impl Record {
    /// A record without context and category.
    pub fn new(instruction: impl Into<String>, response: impl Into<String>) -> Self {
        let (instruction, response) = (instruction.into(), response.into());
        Self { instruction, response, ..Self::default() }
    }

    /// With the passage that the instruction speaks of.
    #[must_use]
    pub fn with_context(mut self, context: impl Into<String>) -> Self {
        self.context = context.into();
        self
    }

    /// With the kind of task.
    #[must_use]
    pub fn with_category(mut self, category: impl Into<String>) -> Self {
        self.category = Some(category.into());
        self
    }
}

/// A record and where it came from.
#[derive(Debug, Clone)]
struct Row {
    record: Arc<Record>,
    /// Its set's place in the list of sources.
    set: u32,
    line: u64,
}

/// Records, with the sets they came from.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("mine.jsonl");
/// # let rows = r#"{"instruction": "Name a colour.", "response": "Blue."}"#;
/// # let rows = [rows, r#"{"instruction": "Add.", "context": "1 and 2", "response": "3"}"#, rows];
/// # std::fs::write(&path, rows.join("\n")).unwrap();
/// use dolly_core::dataset::{Dataset, ReadOptions, SameRow};
/// let options = ReadOptions { licence: Some("MIT".to_owned()), ..Default::default() };
/// let data = Dataset::from_file(&path, &options)?;
/// let data = data.without_duplicates(SameRow::Question);
/// assert_eq!(data.len(), 2);
/// let (train, test) = data.split(0.5, 42)?;
/// assert_eq!((train.len(), test.len()), (1, 1));
/// assert_eq!(train.sources()[0].licence.as_deref(), Some("MIT"));
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    rows: Vec<Row>,
    sources: Vec<SetInfo>,
    summaries: Vec<ReadSummary>,
}

impl Dataset {
    /// Reads a file of JSONL, JSON, CSV, TSV or Parquet.
    ///
    /// The published databricks-dolly-15k is known by its hash and has its licence and source
    /// without being told. Errors with [`Error::Row`] at the first row that cannot be used (unless
    /// they are skipped: [`OnBadRow`]), [`Error::Format`] where the file as a whole cannot be read
    /// or holds no rows, [`Error::Io`], [`Error::MemoryLimit`].
    pub fn from_file(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Self> {
        Self::read(path.as_ref(), &Input::File, options)
    }

    /// Reads several files as one set each, in their order.
    pub fn from_files<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
        options: &ReadOptions,
    ) -> Result<Self> {
        let mut all = Self::default();
        for path in paths {
            all = all.concat(&Self::from_file(path, options)?)?;
        }
        Ok(all)
    }

    /// Reads the bytes of a file; `name` stands for it in errors, and its end for the format.
    ///
    /// ```
    /// use dolly_core::dataset::{Dataset, ReadOptions};
    /// let rows = b"instruction,response\nName a colour.,Blue.\n";
    /// let data = Dataset::from_bytes(rows, "rows.csv", &ReadOptions::default())?;
    /// assert_eq!(data.get(0).unwrap().response, "Blue.");
    /// # Ok::<(), dolly_core::Error>(())
    /// ```
    pub fn from_bytes(bytes: &[u8], name: impl AsRef<Path>, options: &ReadOptions) -> Result<Self> {
        Self::read(name.as_ref(), &Input::Bytes(bytes), options)
    }

    fn read(path: &Path, input: &Input<'_>, options: &ReadOptions) -> Result<Self> {
        let wanted = options.columns.wanted()?;
        let mut rows = Vec::new();
        let mut accept = |line, cells: &mut [intake::Cell]| {
            let record = Arc::new(read::record(cells)?);
            rows.push(Row { record, set: 0, line });
            Ok(())
        };
        let (info, summary) = read::read(path, input, options, &wanted, &mut accept)?;
        Ok(Self { rows, sources: vec![info], summaries: vec![summary] })
    }

    /// A set of records made here; its hash is that of its JSONL, and its lines count from 1.
    ///
    /// `name` names the set; licence and source are taken from `options`. Errors with
    /// [`Error::Row`] on an empty instruction or response or a NUL character.
    ///
    /// ```
    /// use dolly_core::dataset::{Dataset, ReadOptions, Record};
    /// let rows = vec![Record::new("Name a colour.", "Blue.")];
    /// let data = Dataset::from_records(rows, "mine", &ReadOptions::default())?;
    /// assert_eq!(data.sources()[0].rows, 1);
    /// # Ok::<(), dolly_core::Error>(())
    /// ```
    pub fn from_records(
        records: impl IntoIterator<Item = Record>,
        name: &str,
        options: &ReadOptions,
    ) -> Result<Self> {
        let mut jsonl = Vec::new();
        for record in records {
            write::append_line(&record, &mut jsonl)?;
        }
        let options = ReadOptions {
            columns: Columns::default(),
            format: Some(DataFormat::Jsonl),
            name: options.name.clone().or_else(|| Some(name.to_owned())),
            ..options.clone()
        };
        Self::from_bytes(&jsonl, name, &options)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The record at a place.
    pub fn get(&self, index: usize) -> Option<&Record> {
        self.rows.get(index).map(|row| &*row.record)
    }

    /// The records in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Record> {
        self.rows.iter().map(|row| &*row.record)
    }

    /// The set that a row came from, and its line there.
    pub fn origin(&self, index: usize) -> Option<(&SetInfo, u64)> {
        let row = self.rows.get(index)?;
        Some((self.sources.get(row.set as usize)?, row.line))
    }

    /// The sets the rows came from, also those of which none is left.
    pub fn sources(&self) -> &[SetInfo] {
        &self.sources
    }

    /// What was found while the files were read, one entry per file.
    pub fn summaries(&self) -> &[ReadSummary] {
        &self.summaries
    }

    /// The rows for which `keep` says so; `description` is noted in the steps of each set.
    pub fn filter(&self, description: &str, mut keep: impl FnMut(&Record) -> bool) -> Self {
        let rows = self.rows.iter().filter(|row| keep(&row.record)).cloned().collect();
        self.with_rows(rows, |before, after| {
            format!("filter: {description}; kept {after} of {before} rows")
        })
    }

    /// The rows at `indices`, in that order; `description` is noted in the steps of each set.
    ///
    /// Errors with [`Error::InvalidInput`] on a place that the set does not have.
    pub fn select(
        &self,
        indices: impl IntoIterator<Item = usize>,
        description: &str,
    ) -> Result<Self> {
        let row = |index: usize| {
            let found = self.rows.get(index).cloned();
            found.ok_or_else(|| {
                Error::InvalidInput(format!("row {index} of a set of {} rows", self.len()))
            })
        };
        let rows = indices.into_iter().map(row).collect::<Result<_>>()?;
        Ok(self.with_rows(rows, |before, after| {
            format!("select: {description}; {after} of {before} rows")
        }))
    }

    /// The rows in an order that `seed` decides: the same on every machine and in every version
    /// that keeps `order.rs`, where the algorithm is written down.
    pub fn shuffle(&self, seed: u64) -> Result<Self> {
        let order = order::permutation(self.len(), seed, Purpose::Shuffle)?;
        let rows = order.into_iter().filter_map(|index| self.rows.get(index).cloned()).collect();
        Ok(self.with_rows(rows, |_, _| format!("shuffle: seed {seed}")))
    }

    /// Sets rows apart for testing: `(train, test)`. Every row is in one of the two, in the order it
    /// had; `seed` decides which.
    ///
    /// `test` is a number of rows or a fraction. Equal questions can end up on both sides: see
    /// [`without_duplicates`](Self::without_duplicates). Errors with [`Error::InvalidOption`] unless
    /// a row is left on either side.
    pub fn split(&self, test: impl Into<SplitSize>, seed: u64) -> Result<(Self, Self)> {
        let count = test.into().rows(self.len())?;
        let apart = order::set_apart(self.len(), count, seed)?;
        let part = |wanted: bool, name: &str| {
            let rows = self.rows.iter().zip(&apart).filter(|(_, apart)| **apart == wanted);
            let rows = rows.map(|(row, _)| row.clone()).collect();
            self.with_rows(rows, |before, after| {
                format!(
                    "split: {count} of {} rows set apart for testing, seed {seed}; {name} part, \
                     {after} of {before} rows",
                    self.len()
                )
            })
        };
        Ok((part(false, "training"), part(true, "testing")))
    }

    /// The rows of this set, then those of `other`; each keeps the name, licence and source of its
    /// set.
    pub fn concat(&self, other: &Self) -> Result<Self> {
        let mut rows = try_vec(self.len().saturating_add(other.len()), "rows")?;
        let mut sources = self.sources.clone();
        rows.extend(self.rows.iter().cloned());
        let mut places = Vec::new();
        for info in &other.sources {
            let same = sources.iter().position(|one| one.is_same_set(info));
            let place = same.unwrap_or(sources.len());
            match sources.get_mut(place) {
                Some(one) => one.rows += info.rows,
                None => sources.push(info.clone()),
            }
            places.push(u32::try_from(place).unwrap_or(u32::MAX));
        }
        rows.extend(other.rows.iter().map(|row| {
            let set = places.get(row.set as usize).copied().unwrap_or(row.set);
            Row { set, ..row.clone() }
        }));
        let mut summaries = self.summaries.clone();
        let new = other.summaries.iter().filter(|one| !self.summaries.contains(one));
        summaries.extend(new.cloned());
        Ok(Self { rows, sources, summaries })
    }

    /// This set with other rows of it; `step` puts the change in words from the numbers of rows of
    /// a set before and after.
    fn with_rows(&self, rows: Vec<Row>, step: impl Fn(u64, u64) -> String) -> Self {
        let mut left = vec![0u64; self.sources.len()];
        for row in &rows {
            if let Some(count) = left.get_mut(row.set as usize) {
                *count += 1;
            }
        }
        let mut sources = self.sources.clone();
        for (info, left) in sources.iter_mut().zip(left) {
            info.steps.push(step(info.rows, left));
            info.rows = left;
        }
        Self { rows, sources, summaries: self.summaries.clone() }
    }
}

impl SetInfo {
    /// Whether both speak of the same rows' set, treated in the same way.
    fn is_same_set(&self, other: &Self) -> bool {
        let same = |a: &Self, b: &Self| (&a.name, &a.sha256) == (&b.name, &b.sha256);
        same(self, other)
            && (&self.source, &self.licence, &self.steps)
                == (&other.source, &other.licence, &other.steps)
    }
}
