//! From a file, or bytes, to rows: the format's reader, the hash and the name of the set.

use std::io::Read;
use std::path::Path;

use super::bytes::{Hashing, open, without_mark};
use super::intake::{Cell, Intake, ReadSummary};
use super::options::{DataFormat, ReadOptions, Wanted};
use super::{Record, SetInfo, csv_file, json_file};
use crate::error::{Error, Result};

/// SHA-256 of `databricks-dolly-15k.jsonl` as published.
const DOLLY_15K_SHA256: &str = "2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec";

/// Where the bytes of a set come from.
pub(super) enum Input<'a> {
    /// The file that is named.
    File,
    /// Bytes at hand; the name stands in errors.
    Bytes(&'a [u8]),
}

/// Reads all rows; `accept` takes the cells of each in the order of `wanted`.
pub(super) fn read(
    path: &Path,
    input: &Input<'_>,
    options: &ReadOptions,
    wanted: &[Wanted],
    accept: &mut super::intake::Accept<'_>,
) -> Result<(SetInfo, ReadSummary)> {
    if options.max_line_bytes == 0 {
        return Err(Error::option("max_line_bytes", 0, "1 or more"));
    }
    let format = match options.format {
        Some(format) => format,
        None => DataFormat::of(path)?,
    };
    let mut intake = Intake::new(path, wanted, options, accept);
    let sha256 = match (format, input) {
        (DataFormat::Parquet, _) => read_parquet(path, input, &mut intake)?,
        (_, Input::File) => read_text(open(path)?, path, format, &mut intake)?,
        (_, Input::Bytes(bytes)) => read_text(*bytes, path, format, &mut intake)?,
    };
    let summary = intake.finish()?;
    Ok((describe(path, options, sha256, summary.rows, summary.skipped), summary))
}

/// Reads a format that is made of characters; gives the hash of its bytes.
fn read_text(
    reader: impl Read,
    path: &Path,
    format: DataFormat,
    intake: &mut Intake<'_>,
) -> Result<String> {
    let mut reader = Hashing::new(reader);
    let text = without_mark(&mut reader, path)?;
    match format {
        DataFormat::Jsonl => json_file::read_lines(text, intake)?,
        DataFormat::Json => json_file::read_either(text, intake)?,
        DataFormat::Csv => csv_file::read(text, b',', intake)?,
        DataFormat::Tsv => csv_file::read(text, b'\t', intake)?,
        DataFormat::Parquet | DataFormat::Text => {
            return Err(Error::format(path, "plain text holds no rows of instruction data"));
        }
    }
    reader.finish().map_err(|e| Error::io(path, e))
}

#[cfg(feature = "parquet")]
fn read_parquet(path: &Path, input: &Input<'_>, intake: &mut Intake<'_>) -> Result<String> {
    let bytes = match input {
        Input::File => crate::json::read_bounded(path, intake.bytes_left())?,
        Input::Bytes(bytes) => bytes.to_vec(),
    };
    let sha256 = super::bytes::sha256_of([bytes.as_slice()]);
    super::parquet_file::read(bytes, intake)?;
    Ok(sha256)
}

#[cfg(not(feature = "parquet"))]
fn read_parquet(path: &Path, _: &Input<'_>, _: &mut Intake<'_>) -> Result<String> {
    let path = path.display();
    Err(Error::Unsupported(format!("{path}: Parquet; this build is without the feature `parquet`")))
}

/// What is known of the set: what the caller says, and what its hash tells.
pub(super) fn describe(
    path: &Path,
    options: &ReadOptions,
    sha256: String,
    rows: u64,
    skipped: u64,
) -> SetInfo {
    let known = sha256 == DOLLY_15K_SHA256;
    let or_known = |given: &Option<String>, value: &str| {
        given.clone().or_else(|| known.then(|| value.to_owned()))
    };
    let stem = || path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into());
    let mut steps = Vec::new();
    if skipped > 0 {
        steps.push(format!("left out {skipped} rows that could not be used"));
    }
    SetInfo {
        name: or_known(&options.name, "databricks-dolly-15k").unwrap_or_else(stem),
        source: or_known(&options.source, "databricks/databricks-dolly-15k"),
        licence: or_known(&options.licence, "CC-BY-SA-3.0"),
        sha256,
        rows,
        steps,
    }
}

/// A record of the cells instruction, context, response, category; else the cell and what is wrong.
///
/// As in the original, an empty instruction or response is an error.
pub(super) fn record(cells: &mut [Cell]) -> Result<Record, (usize, String)> {
    let instruction = required(cells, 0)?;
    let context = optional(cells, 1)?.unwrap_or_default();
    let response = required(cells, 2)?;
    let category = optional(cells, 3)?.filter(|category| !category.is_empty());
    Ok(Record { instruction, context, response, category })
}

/// The text of a cell that must have one.
pub(super) fn required(cells: &mut [Cell], cell: usize) -> Result<String, (usize, String)> {
    match take(cells, cell)? {
        Cell::Text(text) if text.is_empty() => Err((cell, "is empty".to_owned())),
        Cell::Text(text) => Ok(text),
        Cell::Null => Err((cell, "is null; expected text".to_owned())),
        _ => Err((cell, "is missing".to_owned())),
    }
}

fn optional(cells: &mut [Cell], cell: usize) -> Result<Option<String>, (usize, String)> {
    Ok(match take(cells, cell)? {
        Cell::Text(text) => Some(text),
        _ => None,
    })
}

fn take(cells: &mut [Cell], cell: usize) -> Result<Cell, (usize, String)> {
    let taken = cells.get_mut(cell).map(|cell| std::mem::replace(cell, Cell::Missing));
    match taken.unwrap_or(Cell::Missing) {
        Cell::Other(kind) => Err((cell, format!("is {kind}; expected text"))),
        Cell::Text(text) => match text.find('\0') {
            Some(at) => Err((cell, format!("holds a NUL character at byte {}", at + 1))),
            None => Ok(Cell::Text(text)),
        },
        other => Ok(other),
    }
}
