//! Rows of text columns in Parquet, by the crate `parquet`, after [`parquet_guard`]'s checks.
//!
//! Compression by Snappy and gzip is read; other codecs are C code or rarely used.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use parquet::basic::{Compression, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::intake::{Cell, Fault, Intake, shown};
use super::parquet_guard;
use crate::error::{Error, Result};

/// Rows that are read at a time.
const BATCH: usize = 1024;
/// Most rows per byte of a file: what repeats can be stored in little, but rows are still built one
/// by one.
const ROWS_PER_BYTE: u64 = 1024;

/// Where a wanted cell comes from.
#[derive(Clone, Copy)]
enum Source {
    Missing,
    /// This leaf column of texts.
    Text(usize),
    /// A column that holds something else.
    Other(&'static str),
}

/// Reads all rows of the file in `file`.
pub(super) fn read(file: Vec<u8>, intake: &mut Intake<'_>) -> Result<()> {
    let path = intake.file();
    parquet_guard::check_metadata(&file).map_err(|reason| Error::format(path, reason))?;
    let file = Bytes::from(file);
    // What the checks leave open is a defect of the crate, and no reason to end the process.
    catch_unwind(AssertUnwindSafe(|| read_groups(&file, intake)))
        .unwrap_or_else(|_| Err(Error::format(path, "the reader of Parquet failed on it")))
}

fn refused(path: &Path) -> impl Fn(ParquetError) -> Error {
    move |error| Error::format(path, error.to_string())
}

fn read_groups(file: &Bytes, intake: &mut Intake<'_>) -> Result<()> {
    let path = intake.file();
    let reader = SerializedFileReader::new(file.clone()).map_err(refused(path))?;
    let (sources, extra) = columns(&reader, intake)?;
    let limit = (file.len() as u64).saturating_mul(ROWS_PER_BYTE);
    let mut row = 0;
    for group in 0..reader.num_row_groups() {
        let claimed = reader.metadata().row_group(group).num_rows();
        let rows = u64::try_from(claimed).ok().filter(|rows| row + rows <= limit);
        let Some(rows) = rows else {
            let reason = format!("row group {group} claims {claimed} rows; {limit} are read");
            return Err(Error::format(path, reason));
        };
        let mut cells = Vec::new();
        for source in &sources {
            cells.push(match source {
                Source::Missing => Column::Same(Cell::Missing),
                Source::Other(kind) => Column::Same(Cell::Other(kind)),
                Source::Text(leaf) => open(&reader, file, group, *leaf, path)?,
            });
        }
        read_rows(rows, &mut row, &mut cells, &extra, intake)?;
    }
    Ok(())
}

/// Where each wanted cell comes from, and the names of the other columns.
fn columns(
    reader: &SerializedFileReader<Bytes>,
    intake: &Intake<'_>,
) -> Result<(Vec<Source>, Vec<String>)> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let names: Vec<String> =
        schema.root_schema().get_fields().iter().map(|field| field.name().to_owned()).collect();
    intake.check_header(&names)?;
    let source = |name: &Option<String>| {
        let Some(name) = name.as_ref().filter(|name| names.contains(name)) else {
            return Source::Missing;
        };
        let mut leaves = schema.columns().iter();
        let leaf = leaves.position(|leaf| leaf.path().parts() == [name.as_str()]);
        let text = leaf.filter(|leaf| {
            let leaf = schema.column(*leaf);
            leaf.physical_type() == Type::BYTE_ARRAY
                && leaf.max_rep_level() == 0
                && leaf.max_def_level() <= 1
        });
        match (text, leaf) {
            (Some(leaf), _) => Source::Text(leaf),
            (None, Some(_)) => Source::Other("a number or other value"),
            (None, None) => Source::Other("a nested value"),
        }
    };
    let sources = intake.wanted.iter().map(|one| source(&one.name)).collect();
    let wanted = |name: &String| intake.wanted.iter().any(|one| one.name.as_ref() == Some(name));
    let extra = names.iter().filter(|name| !wanted(name)).map(|name| shown(name)).collect();
    Ok((sources, extra))
}

/// One wanted column of a row group.
enum Column {
    /// Every row has this cell.
    Same(Cell),
    Text {
        reader: Box<ColumnReaderImpl<ByteArrayType>>,
        batch: std::vec::IntoIter<Option<ByteArray>>,
    },
}

/// A reader of one chunk, whose pages have been checked.
fn open(
    reader: &SerializedFileReader<Bytes>,
    file: &Bytes,
    group: usize,
    leaf: usize,
    path: &Path,
) -> Result<Column> {
    let rows = reader.get_row_group(group).map_err(refused(path))?;
    let chunk = rows.metadata().column(leaf);
    match chunk.compression() {
        Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) => {}
        codec => {
            let path = path.display();
            let reason = format!("{path}: Parquet compressed by {codec}; Snappy and gzip are read");
            return Err(Error::Unsupported(reason));
        }
    }
    let column = chunk.column_path().string();
    let bytes = chunk_bytes(file, chunk)
        .ok_or_else(|| Error::format(path, format!("column {column:?} lies outside the file")))?;
    parquet_guard::check_pages(bytes)
        .map_err(|reason| Error::format(path, format!("column {column:?}: {reason}")))?;
    match rows.get_column_reader(leaf).map_err(refused(path))? {
        ColumnReader::ByteArrayColumnReader(reader) => {
            Ok(Column::Text { reader: Box::new(reader), batch: Vec::new().into_iter() })
        }
        _ => Err(Error::format(path, format!("column {column:?} is no column of texts"))),
    }
}

/// The bytes of a chunk, by the same rule as the crate's.
fn chunk_bytes<'a>(file: &'a Bytes, chunk: &ColumnChunkMetaData) -> Option<&'a [u8]> {
    let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
    let start = usize::try_from(start).ok()?;
    let length = usize::try_from(chunk.compressed_size()).ok()?;
    file.get(start..start.checked_add(length)?)
}

impl Column {
    /// The next row's value. `None` where the column ends too early.
    fn next(&mut self) -> std::result::Result<Option<Value>, ParquetError> {
        let Self::Text { reader, batch } = self else { return Ok(Some(Value::Same)) };
        if batch.as_slice().is_empty() {
            let (mut levels, mut values) = (Vec::new(), Vec::new());
            let (records, _, _) =
                reader.read_records(BATCH, Some(&mut levels), None, &mut values)?;
            let mut values = values.into_iter();
            // A required column has no levels: all of its values are there.
            let there = |row: usize| levels.get(row).is_none_or(|level| *level > 0);
            let cells: Vec<_> =
                (0..records).map(|row| if there(row) { values.next() } else { None }).collect();
            *batch = cells.into_iter();
        }
        Ok(batch.next().map(|value| value.map_or(Value::Null, Value::Text)))
    }
}

enum Value {
    Same,
    Null,
    Text(ByteArray),
}

/// Hands `rows` rows on; `row` counts the rows of the file.
fn read_rows(
    rows: u64,
    row: &mut u64,
    columns: &mut [Column],
    extra: &[String],
    intake: &mut Intake<'_>,
) -> Result<()> {
    let path = intake.file();
    let mut cells = intake.cells();
    for _ in 0..rows {
        *row += 1;
        let (mut fault, mut size) = (None, 0usize);
        for ((column, cell), wanted) in columns.iter_mut().zip(&mut cells).zip(intake.wanted) {
            let value = column.next().map_err(refused(path))?.ok_or_else(|| {
                Error::format(
                    path,
                    format!("a column ends before row {row} of {rows} in its group"),
                )
            })?;
            *cell = match (value, &*column) {
                (Value::Same, Column::Same(same)) => same.clone(),
                (Value::Text(text), _) => {
                    size = size.saturating_add(text.len());
                    match std::str::from_utf8(text.data()) {
                        Ok(_) if size > intake.max_row_bytes() => Cell::Null,
                        Ok(text) => Cell::Text(text.to_owned()),
                        Err(error) => {
                            let name = wanted.name.as_deref().unwrap_or_default();
                            let byte = error.valid_up_to() + 1;
                            let words = format!("is not UTF-8 from byte {byte} on");
                            fault.get_or_insert(Fault::of_field(name, words));
                            Cell::Null
                        }
                    }
                }
                _ => Cell::Null,
            };
        }
        if size > intake.max_row_bytes() {
            let limit = intake.max_row_bytes();
            let words = format!("has {size} bytes; at most {limit} are allowed (`max_line_bytes`)");
            fault = Some(Fault::new(words));
        }
        match fault {
            Some(fault) => intake.fault(*row, fault)?,
            None => intake.row(*row, &mut cells, extra)?,
        }
    }
    Ok(())
}
