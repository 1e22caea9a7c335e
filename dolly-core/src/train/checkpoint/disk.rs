//! Directories that appear whole or not at all, and survive a loss of power once they have.
//!
//! Every operation on the file system goes through [`attempt`], where tests make it fail.

use std::fs::{File, OpenOptions};
use std::io::{Result as IoResult, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::hex::hex;
use crate::weights::AtomicFile;

/// Bytes gathered before they are hashed and written.
const BUFFER: usize = 1 << 18;
/// Ends the name of everything that is under construction or about to be removed.
const PARTIAL: &str = ".partial";

/// A file of a checkpoint, as its manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    pub name: String,
    pub bytes: u64,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

/// Performs one operation on `path`.
///
/// A failed operation is never tried again: after a failed sync the kernel may have dropped the
/// pages, so that one that succeeds proves nothing.
fn attempt<T>(path: &Path, operation: impl FnOnce() -> IoResult<T>) -> Result<T> {
    #[cfg(test)]
    faults::check().map_err(|error| Error::io(path, error))?;
    operation().map_err(|error| Error::io(path, error))
}

/// A directory under construction beside its destination.
#[derive(Debug)]
pub(super) struct Building {
    temporary: PathBuf,
    destination: PathBuf,
    files: Vec<FileEntry>,
    committed: bool,
}

impl Building {
    /// Makes a hidden directory beside `destination`.
    pub fn create(destination: &Path) -> Result<Self> {
        let temporary = hidden(destination);
        attempt(&temporary, || std::fs::create_dir(&temporary))?;
        let destination = destination.to_owned();
        Ok(Self { temporary, destination, files: Vec::new(), committed: false })
    }

    /// Writes a file and syncs it.
    pub fn file(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut HashedFile) -> Result<()>,
    ) -> Result<()> {
        let mut file = HashedFile::create(self.temporary.join(name))?;
        write(&mut file)?;
        let (bytes, sha256) = file.finish()?;
        self.files.push(FileEntry { name: name.to_owned(), bytes, sha256 });
        Ok(())
    }

    /// The files written so far.
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }

    /// Makes the directory durable and puts it in place of what is there.
    pub fn commit(mut self) -> Result<()> {
        sync_directory(&self.temporary)?;
        let old = match attempt(&self.destination, || self.destination.try_exists())? {
            true => Some(set_aside(&self.destination)?),
            false => None,
        };
        attempt(&self.destination, || std::fs::rename(&self.temporary, &self.destination))?;
        self.committed = true;
        sync_directory(parent(&self.destination))?;
        match old {
            Some(old) => attempt(&old, || std::fs::remove_dir_all(&old)),
            None => Ok(()),
        }
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        #[cfg(test)]
        if faults::dead() {
            return;
        }
        if !self.committed {
            // The error that led here is the one to tell; what stays is removed at the next start.
            let _ = std::fs::remove_dir_all(&self.temporary);
        }
    }
}

/// A new file that is hashed while it is written.
#[derive(Debug)]
pub(super) struct HashedFile {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    hash: Sha256,
    bytes: u64,
}

impl HashedFile {
    fn create(path: PathBuf) -> Result<Self> {
        let open = || OpenOptions::new().write(true).create_new(true).open(&path);
        let file = attempt(&path, open)?;
        let buffer = crate::error::try_vec(BUFFER, "a checkpoint's buffer")?;
        Ok(Self { file, path, buffer, hash: Sha256::new(), bytes: 0 })
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(BUFFER) {
            if self.buffer.len() + piece.len() > BUFFER {
                self.flush()?;
            }
            self.buffer.extend_from_slice(piece);
        }
        Ok(())
    }

    /// Appends floats in little-endian order.
    pub fn floats(&mut self, values: &[f32]) -> Result<()> {
        for piece in values.chunks(BUFFER / 4) {
            if self.buffer.len() + 4 * piece.len() > BUFFER {
                self.flush()?;
            }
            self.buffer.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.hash.update(&self.buffer);
        self.bytes += self.buffer.len() as u64;
        let Self { file, path, buffer, .. } = self;
        #[cfg(test)]
        faults::before_write(file, buffer);
        attempt(path, || file.write_all(buffer))?;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<(u64, String)> {
        self.flush()?;
        attempt(&self.path, || self.file.sync_all())?;
        Ok((self.bytes, hex(&self.hash.finalize())))
    }
}

/// Length and SHA-256 of a regular file; an error where it is longer than `bytes`.
pub(super) fn hash_file(path: &Path, bytes: u64) -> Result<String> {
    use std::io::Read;
    let io = |error| Error::io(path, error);
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() || metadata.len() != bytes {
        let reason = format!("has {} bytes; its manifest says {bytes}", metadata.len());
        return Err(Error::format(path, reason));
    }
    let mut file = File::open(path).map_err(io)?.take(bytes);
    let mut buffer = crate::error::try_zeroed(BUFFER, "a checkpoint's buffer")?;
    let mut hash = Sha256::new();
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

/// Removes a directory so that no part of it can be taken for the whole.
pub(super) fn remove(directory: &Path) -> Result<()> {
    let aside = set_aside(directory)?;
    attempt(&aside, || std::fs::remove_dir_all(&aside))
}

/// Removes what a killed run left under construction in `directory`: directories whose names start
/// with `prefix`, and files of its result.
pub(super) fn clean(directory: &Path, prefix: &str) -> Result<()> {
    let entries = std::fs::read_dir(directory).map_err(|error| Error::io(directory, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| Error::io(directory, error))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let path = entry.path();
        if name.starts_with(&format!(".{prefix}")) && name.ends_with(PARTIAL) {
            attempt(&path, || std::fs::remove_dir_all(&path))?;
        } else if AtomicFile::is_partial(name) && path.is_file() {
            attempt(&path, || std::fs::remove_file(&path))?;
        }
    }
    Ok(())
}

fn set_aside(directory: &Path) -> Result<PathBuf> {
    let aside = hidden(directory);
    attempt(directory, || std::fs::rename(directory, &aside))?;
    Ok(aside)
}

/// A hidden name beside `path` that no other run of this process or another has.
fn hidden(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}-{number}{PARTIAL}", std::process::id()))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(unix)]
fn sync_directory(directory: &Path) -> Result<()> {
    attempt(directory, || File::open(directory)?.sync_all())
}

/// Other systems open no directories; their renames are as durable as they make them.
#[cfg(not(unix))]
fn sync_directory(_: &Path) -> Result<()> {
    Ok(())
}

/// Failures of the file system, made on the thread of a test.
#[cfg(test)]
pub(crate) mod faults {
    use std::cell::Cell;
    use std::io::{Error, Result, Write};

    /// What happens at an operation.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Fault {
        /// The process ends there: nothing after it is done, not even cleaning up.
        Death,
        /// The operation fails with this error number, after half of what it was to write.
        Errno(i32),
    }

    thread_local! {
        static PLAN: Cell<Option<(u64, Fault)>> = const { Cell::new(None) };
        static COUNT: Cell<u64> = const { Cell::new(0) };
    }

    /// Makes operation number `at` (from 0) fail; `None` only counts.
    pub(crate) fn plan(at: Option<(u64, Fault)>) {
        PLAN.set(at);
        COUNT.set(0);
    }

    /// Operations since [`plan`].
    pub(crate) fn count() -> u64 {
        COUNT.get()
    }

    /// Whether the process has ended, as far as the file system is concerned.
    pub(super) fn dead() -> bool {
        matches!(PLAN.get(), Some((at, Fault::Death)) if COUNT.get() > at)
    }

    pub(super) fn before_write(file: &mut std::fs::File, bytes: &[u8]) {
        if PLAN.get().is_some_and(|(at, _)| at == COUNT.get()) {
            file.write_all(&bytes[..bytes.len() / 2]).unwrap();
        }
    }

    pub(super) fn check() -> Result<()> {
        let now = COUNT.get();
        COUNT.set(now + 1);
        match PLAN.get() {
            Some((at, Fault::Death)) if now >= at => Err(Error::other("the process has ended")),
            Some((at, Fault::Errno(number))) if now == at => Err(Error::from_raw_os_error(number)),
            _ => Ok(()),
        }
    }
}
