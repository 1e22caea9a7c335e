//! Files that appear whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Bytes between two syncs: what is left for the last one takes a moment only, so that a caller
/// who gives up is not kept waiting for it.
const STRETCH: u64 = 32 << 20;

/// A file under construction beside its destination.
///
/// [`commit`](Self::commit) makes it durable and puts it in place; dropped before that, it is
/// removed. Until then the destination is as it was. What a killed process leaves behind is known by
/// its name: [`is_partial`](Self::is_partial).
#[derive(Debug)]
pub(crate) struct AtomicFile {
    file: File,
    temporary: PathBuf,
    destination: PathBuf,
    unsynced: u64,
    committed: bool,
}

impl AtomicFile {
    /// Whether `name` is one that [`create`](Self::create) gives: `.NAME.PROCESS-NUMBER.partial`.
    pub(crate) fn is_partial(name: &str) -> bool {
        let parts = name.strip_prefix('.').and_then(|name| name.strip_suffix(".partial"));
        let Some((file, numbers)) = parts.and_then(|parts| parts.rsplit_once('.')) else {
            return false;
        };
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let (process, number) = numbers.split_once('-').unwrap_or_default();
        !file.is_empty() && is_number(process) && is_number(number)
    }

    /// Creates a sibling of `destination`, in the same directory so that a rename can replace it.
    pub(crate) fn create(destination: &Path) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Some(name) = destination.file_name() else {
            let reason = std::io::Error::new(std::io::ErrorKind::InvalidInput, "names no file");
            return Err(Error::io(destination, reason));
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        hidden.push(format!(".{}-{number}.partial", std::process::id()));
        let temporary = destination.with_file_name(hidden);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|e| Error::io(&temporary, e))?;
        let destination = destination.to_owned();
        Ok(Self { file, temporary, destination, unsynced: 0, committed: false })
    }

    /// Writes a file of these bytes.
    pub(crate) fn write_whole(destination: &Path, bytes: &[u8]) -> Result<()> {
        let mut file = Self::create(destination)?;
        file.write(bytes)?;
        file.commit()
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.unsynced = self.unsynced.saturating_add(bytes.len() as u64);
        let mut written = self.file.write_all(bytes);
        if self.unsynced >= STRETCH {
            self.unsynced = 0;
            written = written.and_then(|()| self.file.sync_data());
        }
        written.map_err(|e| Error::io(&self.temporary, e))
    }

    /// Syncs the file, renames it to its destination, and syncs the directory.
    ///
    /// A failed sync is final: the kernel may have dropped the pages, so a second one that
    /// succeeds would prove nothing.
    pub(crate) fn commit(mut self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.temporary, e))?;
        std::fs::rename(&self.temporary, &self.destination)
            .map_err(|e| Error::io(&self.destination, e))?;
        self.committed = true;
        sync_directory(&self.destination)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be done about a failure here: the error that led here is the one to tell.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(unix)]
fn sync_directory(file: &Path) -> Result<()> {
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory).and_then(|d| d.sync_all()).map_err(|e| Error::io(directory, e))
}

#[cfg(not(unix))]
fn sync_directory(_file: &Path) -> Result<()> {
    Ok(())
}
