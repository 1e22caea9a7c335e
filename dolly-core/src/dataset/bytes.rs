//! Bytes of a file as they are read once: hashed, without a byte order mark, in bounded lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::hex::hex;

/// Bytes taken from the system at a time.
const CHUNK: usize = 256 << 10;

/// Passes bytes on and hashes them.
pub(super) struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// SHA-256 of all bytes, in hexadecimal; reads what is left.
    pub(super) fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(hex(&self.hash.finalize()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        self.hash.update(out.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// SHA-256 of the parts one after the other, in hexadecimal.
pub(super) fn sha256_of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hex(&hash.finalize())
}

/// Opens a regular file: opening a pipe could wait for ever.
pub(super) fn open(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !kind.is_file() {
        return Err(Error::format(path, "is not a regular file"));
    }
    File::open(path).map_err(|e| Error::io(path, e))
}

/// A buffered reader of what follows the byte order mark of UTF-8, if there is one.
///
/// Fails with a message in words on the marks of UTF-16 and UTF-32.
pub(super) fn without_mark<R: Read>(mut reader: R, file: &Path) -> Result<impl BufRead> {
    let mut head = Vec::new();
    (&mut reader).take(3).read_to_end(&mut head).map_err(|e| Error::io(file, e))?;
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = head.as_slice() {
        let reason = "starts with the byte order mark of UTF-16; UTF-8 is read";
        return Err(Error::format(file, reason));
    }
    if head == [0xef, 0xbb, 0xbf] {
        head.clear();
    }
    Ok(BufReader::with_capacity(CHUNK, Cursor::new(head).chain(reader)))
}

/// What [`Lines::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    End,
    /// [`Lines::bytes`] holds it.
    Whole,
    /// It has more bytes than are allowed; this many.
    TooLong(u64),
}

/// Lines that end in a newline, of bounded length; carriage returns before it are left to the
/// caller.
pub(super) struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    number: u64,
    limit: usize,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R, limit: usize) -> Self {
        Self { reader, line: Vec::new(), number: 0, limit }
    }

    /// The line found last, without its newline.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.line
    }

    /// Its number, counted from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Goes to the next line; of one that is too long nothing is kept.
    pub(super) fn next(&mut self) -> io::Result<Line> {
        self.line.clear();
        let (mut len, mut started) = (0u64, false);
        loop {
            let chunk = self.reader.fill_buf()?;
            if chunk.is_empty() {
                break;
            }
            started = true;
            let end = memchr::memchr(b'\n', chunk);
            let part = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or_default();
            len = len.saturating_add(part.len() as u64);
            if len <= self.limit as u64 {
                self.line.extend_from_slice(part);
            } else {
                // What was kept of a line that is refused is given back.
                self.line = Vec::new();
            }
            let taken = part.len() + usize::from(end.is_some());
            self.reader.consume(taken);
            if end.is_some() {
                break;
            }
        }
        if !started {
            return Ok(Line::End);
        }
        self.number += 1;
        Ok(if len > self.limit as u64 { Line::TooLong(len) } else { Line::Whole })
    }
}
