//! Where rows arrive from the readers: what is good is kept, what is not is an error or counted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::options::{OnBadRow, ReadOptions, Wanted};
use crate::error::{Error, Result};

/// Longest piece of a file that a message repeats, in characters.
const MAX_SHOWN: usize = 64;
/// Most names of columns that are counted one by one.
const MAX_NAMES: usize = 256;
/// Bytes that a row takes beside its text: its strings, its place in the list, the allocator's own.
const ROW_OVERHEAD: u64 = 256;

/// A row that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BadRow {
    /// The line the row starts at, counted from 1; in a Parquet file the row itself.
    pub line: u64,
    /// The column or key, where the fault lies in one.
    pub field: Option<String>,
    /// What is wrong.
    pub reason: String,
}

/// What was found while a file was read: every line is a row, a skipped row or blank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReadSummary {
    /// The file, or the name of a set that came from none.
    pub file: PathBuf,
    /// Rows that were kept.
    pub rows: u64,
    /// Lines with nothing but blanks.
    pub blank_lines: u64,
    /// Rows that were left out: [`OnBadRow::Skip`].
    pub skipped: u64,
    /// The first of them, at most [`MAX_LISTED`](Self::MAX_LISTED).
    pub first_skipped: Vec<BadRow>,
    /// Columns that are no part of a record, with the number of rows that have them.
    pub extra_fields: BTreeMap<String, u64>,
}

impl ReadSummary {
    /// Most skipped rows that are listed.
    pub const MAX_LISTED: usize = 100;
}

/// One value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    /// The row lacks the column.
    Missing,
    /// It is there and says that there is no value.
    Null,
    Text(String),
    /// A value that is no text, in words.
    Other(&'static str),
}

/// Why a row cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub field: Option<String>,
    pub reason: String,
}

impl Fault {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { field: None, reason: reason.into() }
    }

    pub(super) fn of_field(name: &str, reason: impl Into<String>) -> Self {
        Self { field: Some(shown(name)), reason: reason.into() }
    }
}

/// The beginning of a name from a file, for messages.
pub(super) fn shown(name: &str) -> String {
    match name.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", name.get(..end).unwrap_or_default()),
        None => name.to_owned(),
    }
}

/// Takes the cells of a row in the order of the wanted columns; says which cell is at fault.
pub(super) type Accept<'a> = dyn FnMut(u64, &mut [Cell]) -> Result<(), (usize, String)> + 'a;

/// Counts rows, applies the policy for bad ones, and hands good ones on.
pub(super) struct Intake<'a> {
    file: &'a Path,
    pub wanted: &'a [Wanted],
    options: &'a ReadOptions,
    accept: &'a mut Accept<'a>,
    summary: ReadSummary,
    /// Per wanted column: whether any row had it.
    seen: Vec<bool>,
    bytes: u64,
}

impl<'a> Intake<'a> {
    pub(super) fn new(
        file: &'a Path,
        wanted: &'a [Wanted],
        options: &'a ReadOptions,
        accept: &'a mut Accept<'a>,
    ) -> Self {
        let summary = ReadSummary {
            file: file.to_owned(),
            rows: 0,
            blank_lines: 0,
            skipped: 0,
            first_skipped: Vec::new(),
            extra_fields: BTreeMap::new(),
        };
        let seen = wanted.iter().map(|one| one.name.is_none()).collect();
        Self { file, wanted, options, accept, summary, seen, bytes: 0 }
    }

    pub(super) fn file(&self) -> &'a Path {
        self.file
    }

    pub(super) fn max_row_bytes(&self) -> usize {
        self.options.max_line_bytes
    }

    /// Bytes that rows may still take.
    #[cfg(feature = "parquet")]
    pub(super) fn bytes_left(&self) -> u64 {
        self.options.memory_limit.saturating_sub(self.bytes)
    }

    /// Empty cells, one per wanted column.
    pub(super) fn cells(&self) -> Vec<Cell> {
        vec![Cell::Missing; self.wanted.len()]
    }

    pub(super) fn blank_line(&mut self) {
        self.summary.blank_lines += 1;
    }

    /// A row whose columns could be told apart; `extra` are the names of those not wanted.
    pub(super) fn row(&mut self, line: u64, cells: &mut [Cell], extra: &[String]) -> Result<()> {
        if self.options.cancel.as_ref().is_some_and(|cancel| cancel.is_cancelled()) {
            return Err(Error::Cancelled);
        }
        for (seen, cell) in self.seen.iter_mut().zip(cells.iter()) {
            *seen |= *cell != Cell::Missing;
        }
        let text = cells.iter().map(|cell| match cell {
            Cell::Text(text) => text.len() as u64,
            _ => 0,
        });
        let bytes = text.sum::<u64>().saturating_add(ROW_OVERHEAD);
        let missing = |cell: usize| cells.get(cell) == Some(&Cell::Missing);
        let missing: Vec<usize> = (0..cells.len()).filter(|cell| missing(*cell)).collect();
        match (self.accept)(line, cells) {
            Ok(()) => self.keep(bytes, extra),
            Err((cell, reason)) => {
                let hint = match missing.contains(&cell) {
                    true => names(extra),
                    false => String::new(),
                };
                let name = self.wanted.get(cell).and_then(|one| one.name.clone());
                self.fault(line, Fault { field: name, reason: reason + &hint })
            }
        }
    }

    fn keep(&mut self, bytes: u64, extra: &[String]) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.options.memory_limit {
            return Err(Error::MemoryLimit {
                what: format!(
                    "the first {} rows of {}",
                    self.summary.rows + 1,
                    self.file.display()
                ),
                needed: self.bytes,
                limit: self.options.memory_limit,
            });
        }
        self.summary.rows += 1;
        for name in extra {
            let full = self.summary.extra_fields.len() >= MAX_NAMES;
            let name = match full && !self.summary.extra_fields.contains_key(name) {
                true => "...".to_owned(),
                false => shown(name),
            };
            *self.summary.extra_fields.entry(name).or_default() += 1;
        }
        Ok(())
    }

    /// A row that cannot be used.
    pub(super) fn fault(&mut self, line: u64, fault: Fault) -> Result<()> {
        let Fault { field, reason } = fault;
        if self.options.on_bad_row == OnBadRow::Error {
            return Err(Error::Row { file: self.file.to_owned(), line, field, reason });
        }
        if self.options.cancel.as_ref().is_some_and(|cancel| cancel.is_cancelled()) {
            return Err(Error::Cancelled);
        }
        self.summary.skipped += 1;
        if self.summary.first_skipped.len() < ReadSummary::MAX_LISTED {
            self.summary.first_skipped.push(BadRow { line, field, reason });
        }
        Ok(())
    }

    /// The first line's names lack a column, or hold one twice: no row can be read.
    pub(super) fn check_header(&self, names: &[String]) -> Result<()> {
        let refuse = |name: &str, reason: String| {
            let (file, field) = (self.file.to_owned(), Some(shown(name)));
            Err(Error::Row { file, line: 1, field, reason })
        };
        let mut sorted: Vec<&String> = names.iter().collect();
        sorted.sort_unstable();
        let twice = sorted.windows(2).find_map(|pair| match pair {
            [first, second] if first == second => Some(*first),
            _ => None,
        });
        if let Some(name) = twice {
            return refuse(name, "occurs twice in the header".to_owned());
        }
        let needed = self.wanted.iter().filter(|one| one.must_occur);
        for name in needed.filter_map(|one| one.name.as_ref()) {
            if !names.contains(name) {
                return refuse(name, format!("is missing from the header{}", self::names(names)));
            }
        }
        Ok(())
    }

    /// What was found; an error where nothing was, or where a column occurs in no row.
    pub(super) fn finish(self) -> Result<ReadSummary> {
        let summary = self.summary;
        if summary.rows == 0 {
            let skipped = summary.skipped;
            let reason = match summary.first_skipped.first() {
                Some(BadRow { line, reason, .. }) => format!(
                    "no row can be used; {skipped} were skipped, the first at line {line}: {reason}"
                ),
                None => "holds no rows".to_owned(),
            };
            return Err(Error::format(self.file, reason));
        }
        for (one, seen) in self.wanted.iter().zip(&self.seen) {
            if let (Some(name), true, false) = (&one.name, one.must_occur, *seen) {
                let field = Some(shown(name));
                let reason = "occurs in no row; see the mapping of columns".to_owned();
                return Err(Error::Row { file: self.file.to_owned(), line: 1, field, reason });
            }
        }
        Ok(summary)
    }
}

/// The names that are there, to help where one is missing.
fn names(there: &[String]) -> String {
    if there.is_empty() {
        return String::new();
    }
    let first: Vec<String> =
        there.iter().take(8).map(|name| format!("{:?}", shown(name))).collect();
    let more = if there.len() > first.len() { ", ..." } else { "" };
    format!("; there are {}{more}: map them with `columns`", first.join(", "))
}
