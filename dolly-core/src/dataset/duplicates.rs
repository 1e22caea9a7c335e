//! Rows that occur more than once.

use std::collections::HashSet;
use std::str::FromStr;

use super::{Dataset, Record};
use crate::error::{Error, Result};

/// When two rows count as the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SameRow {
    /// Equal in instruction and context.
    Question,
    /// Equal in instruction, context, response and category.
    Whole,
}

impl FromStr for SameRow {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "question" => Ok(Self::Question),
            "whole" => Ok(Self::Whole),
            _ => Err(Error::option("same", format!("{name:?}"), "\"question\" or \"whole\"")),
        }
    }
}

type Key<'a> = (&'a str, &'a str, Option<(&'a str, Option<&'a str>)>);

impl SameRow {
    fn key(self, record: &Record) -> Key<'_> {
        let answer = || (record.response.as_str(), record.category.as_deref());
        let answer = (self == Self::Whole).then(answer);
        (&record.instruction, &record.context, answer)
    }
}

impl Dataset {
    /// The first of each group of equal rows.
    pub fn without_duplicates(&self, same: SameRow) -> Self {
        let mut seen = HashSet::new();
        let rows = self.rows.iter();
        let rows = rows.filter(|row| seen.insert(same.key(&row.record))).cloned().collect();
        let words = match same {
            SameRow::Question => "equal in instruction and context",
            SameRow::Whole => "equal in all fields",
        };
        self.with_rows(rows, |before, after| {
            format!("without duplicates: {words}; kept {after} of {before} rows")
        })
    }

    /// Rows that are equal to an earlier one.
    pub(super) fn count_duplicates(&self, same: SameRow) -> u64 {
        let mut seen = HashSet::new();
        let again = self.iter().filter(|record| !seen.insert(same.key(record)));
        again.count() as u64
    }
}
