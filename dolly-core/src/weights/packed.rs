//! Weights as a backend packed them, kept in a file so that the next start only reads them.
//!
//! ```text
//! for each tensor    pieces (a panel or a row each), then their checksums (CRC-32, u32 LE)
//! index              JSON: identity of the source, entries
//! footer, 32 bytes   index's offset and length (u64 LE), its CRC-32, version (u32 LE), magic
//! ```
//!
//! The file is built beside its place and renamed, so it is whole or not there; it is used only
//! where footer, index and the source's identity are right, and a piece whose checksum differs is
//! packed from the source again. Nothing here can fail a load: what cannot be read is made anew,
//! and what cannot be written is left.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::atomic::AtomicFile;
use super::file::DataFile;
use crate::error::{Error, Result, try_zeroed};
use crate::hex::hex;

/// Changes whenever the meaning of the bytes does: of this file's or of any packed layout.
const VERSION: u32 = 3;
const MAGIC: &[u8; 8] = b"DOLLYPAK";
const FOOTER: u64 = 32;
/// Longest index read: 100,000 entries need less.
const MAX_INDEX: u64 = 32 << 20;
/// Bytes at the start of a source file, and at each of the places in it, that identify it.
const HEAD: usize = 1 << 20;
const SAMPLE: usize = 4 << 10;
const SAMPLES: u64 = 256;

/// Packed weights of one checkpoint in one format.
#[derive(Debug)]
pub(crate) struct PackedWeights {
    state: State,
}

#[derive(Debug)]
enum State {
    Reading { file: DataFile, entries: HashMap<(String, String), Entry> },
    Writing(Mutex<Option<Writer>>),
}

#[derive(Debug)]
struct Writer {
    file: AtomicFile,
    at: u64,
    index: Index,
}

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    source: String,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    tensor: String,
    layout: String,
    offset: u64,
    pieces: u64,
    piece_bytes: u64,
}

impl Entry {
    /// Where its checksums end, if that is a place in a file.
    fn end(&self) -> Option<u64> {
        let each = self.piece_bytes.checked_add(4)?;
        self.pieces.checked_mul(each)?.checked_add(self.offset)
    }
}

impl PackedWeights {
    /// The file of `directory` for these source files in this format: to be read where there is a
    /// right one, else to be written.
    ///
    /// # Errors
    /// When the sources cannot be read, or the directory not be made or written to.
    pub(crate) fn open(directory: &Path, sources: &[DataFile], format: &str) -> Result<Self> {
        let source = identity(sources, format)?;
        let path = directory.join(format!("{}.packed", source.get(..32).unwrap_or(&source)));
        if path.exists() {
            match read_index(&path, &source) {
                Ok((file, index)) => {
                    let entries = index.entries.into_iter();
                    let entries = entries.map(|e| ((e.tensor.clone(), e.layout.clone()), e));
                    return Ok(Self { state: State::Reading { file, entries: entries.collect() } });
                }
                Err(error) => tracing::warn!(%error, "packed weights are made anew"),
            }
        }
        std::fs::create_dir_all(directory).map_err(|e| Error::io(directory, e))?;
        let (file, index) = (AtomicFile::create(&path)?, Index { source, entries: Vec::new() });
        let writer = Writer { file, at: 0, index };
        Ok(Self { state: State::Writing(Mutex::new(Some(writer))) })
    }

    /// Fills `out` with the pieces of a tensor from piece `first` on; false, and zeros if anything,
    /// where they are not known or not what was written.
    pub(crate) fn read(
        &self,
        tensor: &str,
        layout: &str,
        piece_bytes: usize,
        first: usize,
        out: &mut [u8],
    ) -> bool {
        let State::Reading { file, entries } = &self.state else { return false };
        let Some(entry) = entries.get(&(tensor.to_owned(), layout.to_owned())) else {
            return false;
        };
        let (first, bytes) = (first as u64, piece_bytes as u64);
        let pieces = out.len().checked_div(piece_bytes).unwrap_or(0) as u64;
        if entry.piece_bytes != bytes || first.saturating_add(pieces) > entry.pieces {
            return false;
        }
        // Within the file: `read_index` saw that the entry ends there.
        let sums = entry.offset + entry.pieces * bytes + 4 * first;
        let mut read = || -> Result<bool> {
            let sums = file.read_vec(sums, 4 * pieces, u64::MAX, "checksums")?;
            file.read_at(entry.offset + first * bytes, out)?;
            let sums = sums.as_chunks::<4>().0.iter().map(|sum| u32::from_le_bytes(*sum));
            Ok(out.chunks_exact(piece_bytes).map(crc32fast::hash).eq(sums))
        };
        match read() {
            Ok(true) => return true,
            Ok(false) => tracing::warn!(tensor, "packed weights are damaged"),
            Err(error) => tracing::warn!(%error, tensor, "packed weights cannot be read"),
        }
        out.fill(0);
        false
    }

    /// Keeps the pieces of a tensor, all of them, where the file is being written.
    pub(crate) fn keep(&self, tensor: &str, layout: &str, piece_bytes: usize, bytes: &[u8]) {
        let State::Writing(writer) = &self.state else { return };
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &mut *writer
            && let Err(error) = open.append(tensor, layout, piece_bytes, bytes)
        {
            tracing::warn!(%error, "packed weights are not kept");
            *writer = None;
        }
    }

    /// Puts the file in its place, once all tensors have been loaded.
    pub(crate) fn finish(self) {
        let State::Writing(writer) = self.state else { return };
        let writer = writer.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = writer.map(Writer::finish) {
            tracing::warn!(%error, "packed weights are not kept");
        }
    }
}

impl Writer {
    fn append(&mut self, tensor: &str, layout: &str, piece: usize, bytes: &[u8]) -> Result<()> {
        if piece == 0 || !bytes.len().is_multiple_of(piece) {
            return Ok(());
        }
        let pieces = bytes.len() / piece;
        let mut sums = try_zeroed::<u8>(4 * pieces, "checksums")?;
        for (sum, piece) in sums.as_chunks_mut::<4>().0.iter_mut().zip(bytes.chunks_exact(piece)) {
            *sum = crc32fast::hash(piece).to_le_bytes();
        }
        self.file.write(bytes)?;
        self.file.write(&sums)?;
        self.index.entries.push(Entry {
            tensor: tensor.to_owned(),
            layout: layout.to_owned(),
            offset: self.at,
            pieces: pieces as u64,
            piece_bytes: piece as u64,
        });
        self.at += (bytes.len() + sums.len()) as u64;
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let index = serde_json::to_vec(&self.index)
            .map_err(|error| Error::Internal(format!("index of packed weights: {error}")))?;
        self.file.write(&index)?;
        self.file.write(&self.at.to_le_bytes())?;
        self.file.write(&(index.len() as u64).to_le_bytes())?;
        self.file.write(&crc32fast::hash(&index).to_le_bytes())?;
        self.file.write(&VERSION.to_le_bytes())?;
        self.file.write(MAGIC)?;
        self.file.commit()
    }
}

/// Opens a file of packed weights and reads its index; an error where anything is not as it should.
fn read_index(path: &Path, source: &str) -> Result<(DataFile, Index)> {
    let file = DataFile::open(path)?;
    let fail = |reason: &str| Error::format(path, reason);
    let start = file.len().checked_sub(FOOTER).ok_or_else(|| fail("is cut short"))?;
    let footer = file.read_vec(start, FOOTER, FOOTER, "the footer")?;
    let (words, _) = footer.as_chunks::<8>();
    let &[offset, length, checks, magic] = words else { return Err(fail("has no footer")) };
    let [offset, length] = [offset, length].map(u64::from_le_bytes);
    let ([sum, version], _) = checks.as_chunks::<4>() else { return Err(fail("has no footer")) };
    if &magic != MAGIC || u32::from_le_bytes(*version) != VERSION {
        return Err(fail("is cut short or of another version"));
    }
    if offset.checked_add(length) != Some(start) {
        return Err(fail("has an index that does not end where the footer begins"));
    }
    let index = file.read_vec(offset, length, MAX_INDEX, "the index")?;
    if crc32fast::hash(&index) != u32::from_le_bytes(*sum) {
        return Err(fail("has a damaged index"));
    }
    let index: Index = serde_json::from_slice(&index).map_err(|e| fail(&e.to_string()))?;
    if index.source != source {
        return Err(fail("belongs to other weights"));
    }
    if index.entries.iter().any(|entry| entry.end().is_none_or(|end| end > offset)) {
        return Err(fail("has an entry beyond its data"));
    }
    Ok((file, index))
}

/// What tells weights apart without reading all of them: sizes, times, the first bytes of each file
/// (a header names every tensor) and samples from all over it; the format and the byte order.
fn identity(sources: &[DataFile], format: &str) -> Result<String> {
    let mut hash = Sha256::new();
    let order = if cfg!(target_endian = "little") { "little" } else { "big" };
    hash.update(format!("{VERSION} {format} {order} {}", sources.len()));
    for file in sources {
        let metadata = std::fs::metadata(file.path()).map_err(|e| Error::io(file.path(), e))?;
        let changed =
            metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        hash.update(file.len().to_le_bytes());
        hash.update(changed.unwrap_or_default().as_nanos().to_le_bytes());
        let head = file.len().min(HEAD as u64);
        hash.update(file.read_vec(0, head, head, "the first bytes")?);
        let rest = file.len() - head;
        for i in 0..SAMPLES {
            let at = head + rest / SAMPLES * i;
            let len = (file.len() - at).min(SAMPLE as u64);
            hash.update(file.read_vec(at, len, len, "a sample")?);
        }
    }
    Ok(hex(&hash.finalize()))
}

#[cfg(test)]
mod tests;
