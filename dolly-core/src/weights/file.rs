//! Positioned reads of one open weight file, from any number of threads at once.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, try_zeroed};

/// An open regular file with the length it had when it was opened.
///
/// Reads do not move a shared cursor, so threads need no lock (on systems without positioned
/// reads they take one). Nothing is mapped: a file cut short by someone else is an error here,
/// where a mapping would kill the process with SIGBUS.
#[derive(Debug)]
pub(crate) struct DataFile {
    path: PathBuf,
    len: u64,
    #[cfg(unix)]
    file: File,
    #[cfg(not(unix))]
    file: std::sync::Mutex<File>,
}

impl DataFile {
    /// Opens `path`, which must lead to a regular file: opening a pipe could wait for ever.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !kind.is_file() {
            return Err(Error::format(path, "is not a regular file"));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
        #[cfg(not(unix))]
        let file = std::sync::Mutex::new(file);
        Ok(Self { path: path.to_owned(), len, file })
    }

    /// Where the file lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes at the time of opening.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `out` with the bytes at `offset`.
    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let want = out.len();
        self.read_exact_at(offset, out).map_err(|source| {
            if source.kind() == std::io::ErrorKind::UnexpectedEof {
                let reason = format!(
                    "ends within the {want} bytes at offset {offset}; it had {} bytes when it was \
                     opened",
                    self.len
                );
                Error::format(&self.path, reason)
            } else {
                Error::io(&self.path, source)
            }
        })
    }

    /// The `len` bytes at `offset`, which must lie within the file and be at most `limit`.
    pub(crate) fn read_vec(
        &self,
        offset: u64,
        len: u64,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let reason = format!(
                "{what} claims {len} bytes at offset {offset}; the file has {} bytes",
                self.len
            );
            return Err(Error::format(&self.path, reason));
        }
        if len > limit {
            let reason = format!("{what} has {len} bytes; at most {limit} are read");
            return Err(Error::format(&self.path, reason));
        }
        let len = usize::try_from(len)
            .map_err(|_| Error::format(&self.path, format!("{what}: {len} bytes overflow")))?;
        let mut bytes = try_zeroed(len, what)?;
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }

    #[cfg(unix)]
    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset)
    }

    #[cfg(not(unix))]
    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        // A panic while the lock was held leaves no broken state: every read seeks first.
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(out)
    }
}

/// Byte length of `elements` elements of a type with `(block, bytes)`; `None` where the product
/// overflows or blocks do not divide the elements.
pub(crate) fn block_bytes(elements: u64, block: (usize, usize)) -> Option<u64> {
    let (weights, bytes) = (block.0 as u64, block.1 as u64);
    if weights == 0 || !elements.is_multiple_of(weights) {
        return None;
    }
    (elements / weights).checked_mul(bytes)
}

/// Product of the dimensions, `None` on overflow, also where a zero would hide it.
pub(crate) fn elements(shape: &[usize]) -> Option<u64> {
    let dims = shape.iter().map(|&dim| dim as u64);
    let product = dims.clone().try_fold(1u64, |product, dim| product.checked_mul(dim.max(1)))?;
    Some(if dims.min() == Some(0) { 0 } else { product })
}

/// Refuses ranges that overlap; `(start, end, name)` in any order.
pub(crate) fn check_overlap(path: &Path, ranges: &mut [(u64, u64, &str)]) -> Result<()> {
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if let [(_, end, first), (start, _, second)] = pair
            && start < end
        {
            let reason = format!(
                "{first:?} ends at byte {end}, beyond {second:?}, which starts at byte {start}"
            );
            return Err(Error::format(path, reason));
        }
    }
    Ok(())
}
