//! Cleaning: never done unless asked for, and every change counted.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::{Dataset, Row};
use crate::error::Result;
use crate::prompt::strip;

/// What [`Dataset::clean`] changes.
///
/// The card of databricks-dolly-15k recommends to remove the bracketed citation numbers that
/// Wikipedia left in its contexts. In responses the same characters can be code (`a[0]`), so they
/// are left alone there unless asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleanOptions {
    /// Remove footnote marks, `[5]` with one to three digits, from contexts; default true.
    pub footnotes: bool,
    /// Remove them from responses as well; default false.
    pub footnotes_in_responses: bool,
    /// Remove blank space around every field, as Python's `str.strip()`; default true.
    pub trim: bool,
}

impl Default for CleanOptions {
    fn default() -> Self {
        Self { footnotes: true, footnotes_in_responses: false, trim: true }
    }
}

/// What [`Dataset::clean`] changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Cleaning {
    /// Rows that changed, those left out included.
    pub changed_rows: u64,
    /// Fields that had blank space around them.
    pub trimmed_fields: u64,
    /// Footnote marks that were removed.
    pub removed_footnotes: u64,
    /// Rows left out because their instruction or response was then empty.
    pub emptied_rows: u64,
}

// The pattern is fixed: that it compiles is a matter of the tests.
static FOOTNOTE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\[[0-9]{1,3}\]").ok());

/// Number of footnote marks in a text.
pub(super) fn count_footnotes(text: &str) -> u64 {
    // Most texts hold no bracket at all.
    let marked = memchr::memchr(b'[', text.as_bytes()).is_some();
    match FOOTNOTE.as_ref().filter(|_| marked) {
        Some(pattern) => pattern.find_iter(text).count() as u64,
        None => 0,
    }
}

fn without_footnotes<'a>(text: &'a str, removed: &mut u64) -> Cow<'a, str> {
    let count = count_footnotes(text);
    *removed += count;
    match FOOTNOTE.as_ref().filter(|_| count > 0) {
        Some(pattern) => pattern.replace_all(text, ""),
        None => Cow::Borrowed(text),
    }
}

impl CleanOptions {
    /// One field, cleaned.
    fn field(&self, text: &str, footnotes: bool, done: &mut Cleaning) -> String {
        let text = match footnotes {
            true => without_footnotes(text, &mut done.removed_footnotes),
            false => Cow::Borrowed(text),
        };
        let trimmed = if self.trim { strip(&text) } else { &text };
        done.trimmed_fields += u64::from(trimmed.len() != text.len());
        trimmed.to_owned()
    }

    /// The row, cleaned; `None` where nothing is left of its instruction or response.
    fn row(&self, row: &Row, done: &mut Cleaning) -> Option<Row> {
        let old = &row.record;
        let in_responses = self.footnotes && self.footnotes_in_responses;
        let mut new = super::Record::new(
            self.field(&old.instruction, false, done),
            self.field(&old.response, in_responses, done),
        );
        new.context = self.field(&old.context, self.footnotes, done);
        let category = old.category.as_ref().map(|text| self.field(text, false, done));
        new.category = category.filter(|text| !text.is_empty());
        if new == **old {
            return Some(row.clone());
        }
        done.changed_rows += 1;
        if new.instruction.is_empty() || new.response.is_empty() {
            done.emptied_rows += 1;
            return None;
        }
        Some(Row { record: Arc::new(new), ..*row })
    }
}

impl Dataset {
    /// The rows, cleaned, and what was changed; the same stands in the steps of each set.
    ///
    /// ```
    /// use dolly_core::dataset::{Dataset, ReadOptions, Record};
    /// let row = Record::new("When? ", "In 1996.").with_context("Dolly[1] was born in 1996.[23]");
    /// let data = Dataset::from_records([row], "mine", &ReadOptions::default())?;
    /// let (data, done) = data.clean(&Default::default())?;
    /// assert_eq!(data.get(0).unwrap().context, "Dolly was born in 1996.");
    /// assert_eq!((done.removed_footnotes, done.trimmed_fields), (2, 1));
    /// # Ok::<(), dolly_core::Error>(())
    /// ```
    pub fn clean(&self, options: &CleanOptions) -> Result<(Self, Cleaning)> {
        let mut by_set = vec![Cleaning::default(); self.sources.len()];
        let mut rows = crate::error::try_vec(self.len(), "rows")?;
        for row in &self.rows {
            if let Some(done) = by_set.get_mut(row.set as usize) {
                rows.extend(options.row(row, done));
            }
        }
        let mut cleaned = self.with_rows(rows, |_, _| String::new());
        let mut total = Cleaning::default();
        for (info, done) in cleaned.sources.iter_mut().zip(by_set) {
            info.steps.pop();
            info.steps.push(done.to_string());
            total = total.plus(done);
        }
        Ok((cleaned, total))
    }
}

impl Cleaning {
    fn plus(self, other: Self) -> Self {
        Self {
            changed_rows: self.changed_rows + other.changed_rows,
            trimmed_fields: self.trimmed_fields + other.trimmed_fields,
            removed_footnotes: self.removed_footnotes + other.removed_footnotes,
            emptied_rows: self.emptied_rows + other.emptied_rows,
        }
    }
}

impl std::fmt::Display for Cleaning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "clean: {} rows changed; {} fields trimmed, {} footnote marks removed, {} rows left \
             out as empty",
            self.changed_rows, self.trimmed_fields, self.removed_footnotes, self.emptied_rows
        )
    }
}
