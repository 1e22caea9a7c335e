//! Tests of data sets: every row of every bad file is accounted for.

mod files;
#[cfg(feature = "parquet")]
mod parquet;
mod properties;
mod sets;
mod torture;

use super::{Dataset, OnBadRow, ReadOptions};
use crate::error::{Error, Result};

fn skipping() -> ReadOptions {
    ReadOptions { on_bad_row: OnBadRow::Skip, ..Default::default() }
}

fn read(bytes: &[u8], name: &str) -> Result<Dataset> {
    Dataset::from_bytes(bytes, name, &ReadOptions::default())
}

/// Line, field and reason of the row that made reading fail.
fn bad_row(bytes: &[u8], name: &str) -> (u64, Option<String>, String) {
    match read(bytes, name) {
        Err(Error::Row { file, line, field, reason }) => {
            assert_eq!(file, std::path::Path::new(name));
            (line, field, reason)
        }
        other => panic!("expected a bad row, found {other:?}"),
    }
}
