//! SHA-256 of files and bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result, try_zeroed};
use crate::hex::hex;

/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// A file as it was: its name, size and hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FileHash {
    /// Its name within the directory of what it belongs to, `/` between parts.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

impl FileHash {
    /// Reads a regular file, under the name `name`.
    pub fn of_file(name: impl Into<String>, file: &Path) -> Result<Self> {
        let io = |error| Error::io(file, error);
        if !std::fs::metadata(file).map_err(io)?.is_file() {
            return Err(Error::format(file, "not a regular file"));
        }
        let mut open = File::open(file).map_err(io)?;
        let mut piece = try_zeroed::<u8>(PIECE, "a piece of a file")?;
        let (mut hash, mut bytes) = (Sha256::new(), 0u64);
        loop {
            let read = match open.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io(error)),
            };
            hash.update(piece.get(..read).unwrap_or_default());
            bytes += read as u64;
        }
        Ok(Self { path: name.into(), bytes, sha256: hex(&hash.finalize()) })
    }

    /// Of bytes in memory, under the name `name`.
    pub fn of_bytes(name: impl Into<String>, bytes: &[u8]) -> Self {
        Self { path: name.into(), bytes: bytes.len() as u64, sha256: of_bytes(bytes) }
    }
}

/// SHA-256 in hexadecimal.
pub(super) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
