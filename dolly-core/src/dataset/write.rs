//! Writing a set as JSONL.

use std::path::Path;

use super::{Dataset, Record};
use crate::error::{Error, Result};
use crate::weights::AtomicFile;

/// Bytes that are written at a time.
const CHUNK: usize = 1 << 20;

/// Appends a record as one line of JSON.
pub(super) fn append_line(record: &Record, out: &mut Vec<u8>) -> Result<()> {
    serde_json::to_writer(&mut *out, record)
        .map_err(|error| Error::Internal(format!("writing a record as JSON: {error}")))?;
    out.push(b'\n');
    Ok(())
}

impl Dataset {
    /// Writes one JSON object a line: `instruction`, `context`, `response`, and `category` where it
    /// is known.
    ///
    /// The file appears whole or not at all: it is written beside its place, synced and renamed.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("rows.jsonl");
    /// use dolly_core::dataset::{Dataset, ReadOptions, Record};
    /// let rows = vec![Record::new("Name a colour.", "Blue.").with_category("open_qa")];
    /// let data = Dataset::from_records(rows, "mine", &ReadOptions::default())?;
    /// data.to_jsonl(&path)?;
    /// let again = Dataset::from_file(&path, &ReadOptions::default())?;
    /// assert!(again.iter().eq(data.iter()));
    /// # Ok::<(), dolly_core::Error>(())
    /// ```
    pub fn to_jsonl(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut file = AtomicFile::create(path.as_ref())?;
        let mut buffer = Vec::new();
        for record in self.iter() {
            append_line(record, &mut buffer)?;
            if buffer.len() >= CHUNK {
                file.write(&buffer)?;
                buffer.clear();
            }
        }
        file.write(&buffer)?;
        file.commit()
    }
}
