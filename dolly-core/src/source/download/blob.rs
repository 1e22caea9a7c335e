//! The bytes of one file: received in as many goes as it takes, then checked.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use ureq::Body;
use ureq::http::Response;

use super::Tell;
use super::http::{Hub, Remote, failed, text};
use crate::error::{Error, Result, try_zeroed};

/// Most goes at one file.
const MAX_ATTEMPTS: usize = 100;
/// Most goes in a row that bring nothing.
const MAX_IDLE: usize = 3;
/// Most bytes of a file whose size the hub does not tell.
const MAX_UNKNOWN: u64 = 64 << 20;
/// Bytes read at a time.
const CHUNK: usize = 128 << 10;

/// How one go ended.
enum Go {
    Done,
    /// Cut, for this reason; what came is in the file.
    Cut(Error),
}

/// Why a received file is not taken.
pub(super) enum Bad {
    Content(String),
    Io(std::io::Error),
}

/// Receives the file at `url` into `file`, going on after what it already holds.
pub(super) fn receive(
    hub: &Hub<'_>,
    url: &str,
    remote: &Remote,
    file: &mut File,
    path: &Path,
    tell: &mut Tell<'_>,
) -> Result<()> {
    let io = |error| Error::io(path, error);
    let limit = remote.size.unwrap_or(MAX_UNKNOWN);
    let mut buffer = try_zeroed(CHUNK, "a download buffer")?;
    let mut idle = 0;
    for _ in 0..MAX_ATTEMPTS {
        let mut have = file.seek(SeekFrom::End(0)).map_err(io)?;
        // Without a size nothing tells whether a part is of this file's end.
        if have > limit || remote.size.is_none() {
            file.set_len(0).map_err(io)?;
            have = file.seek(SeekFrom::Start(0)).map_err(io)?;
        }
        if remote.size == Some(have) {
            return Ok(());
        }
        let before = have;
        let response = hub.get(url, (have > 0).then_some(have));
        let go = match response.and_then(|response| start(hub, url, response, &mut have, remote)) {
            Ok(Some(body)) => {
                if have != before {
                    file.set_len(have).map_err(io)?;
                    file.seek(SeekFrom::Start(have)).map_err(io)?;
                }
                copy(url, body, file, path, &mut have, limit, &mut buffer, tell)?
            }
            // The part that is there cannot be gone on with.
            Ok(None) => {
                file.set_len(0).map_err(io)?;
                Go::Cut(failed(url, "the hub refuses the range asked for"))
            }
            Err(error @ Error::ModelNotFound { .. }) => return Err(error),
            Err(error) => Go::Cut(error),
        };
        match go {
            Go::Done if remote.size.is_none_or(|size| size == have) => return Ok(()),
            Go::Done => idle += 1,
            Go::Cut(error) => {
                idle = if have > before { 0 } else { idle + 1 };
                if idle >= MAX_IDLE {
                    return Err(error);
                }
            }
        }
        if idle >= MAX_IDLE {
            return Err(failed(url, format!("ends after {have} of {limit} bytes")));
        }
    }
    Err(failed(url, format!("not complete after {MAX_ATTEMPTS} connections")))
}

/// Checks how an answer begins: its body, from byte `have` on (set to 0 if it is the whole file);
/// `None` where the range was refused.
fn start(
    hub: &Hub<'_>,
    url: &str,
    response: Response<Body>,
    have: &mut u64,
    remote: &Remote,
) -> Result<Option<Body>> {
    match response.status().as_u16() {
        200 => *have = 0,
        206 if *have > 0 => {
            let range = text(response.headers(), "content-range").unwrap_or("missing");
            let parts = range.strip_prefix("bytes ").and_then(|range| range.split_once('/'));
            let first = parts.and_then(|(range, _)| range.split_once('-')?.0.parse().ok());
            let total = parts.and_then(|(_, total)| total.parse().ok());
            if first != Some(*have) || (total.is_some() && total != remote.size) {
                let shown: String = range.chars().take(60).collect();
                return Err(failed(url, format!("asked from byte {have}, got range {shown:?}")));
            }
        }
        416 if *have > 0 => return Ok(None),
        status => return Err(hub.refused(url, status)),
    }
    Ok(Some(response.into_body()))
}

/// Writes a body to the file until it ends, is cut, or is longer than announced.
#[allow(clippy::too_many_arguments, reason = "the state of one go, used once")]
fn copy(
    url: &str,
    body: Body,
    file: &mut File,
    path: &Path,
    have: &mut u64,
    limit: u64,
    buffer: &mut [u8],
    tell: &mut Tell<'_>,
) -> Result<Go> {
    let mut body = body.into_reader();
    loop {
        let count = match body.read(buffer) {
            Ok(0) => return Ok(Go::Done),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Ok(Go::Cut(failed(url, error))),
        };
        if limit - *have < count as u64 {
            return Err(failed(url, format!("sends more than the {limit} bytes announced")));
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        file.write_all(bytes).map_err(|error| Error::io(path, error))?;
        *have += count as u64;
        if tell(*have).is_break() {
            return Err(Error::Cancelled);
        }
    }
}

/// Checks size and hash: the hub's etag is the SHA-256 of a large file, and git's object name
/// (SHA-1 of `blob <size>\0` and the content) of a small one.
pub(super) fn verify(file: &mut File, path: &Path, remote: &Remote) -> Result<(), Bad> {
    let size = file.seek(SeekFrom::End(0)).map_err(Bad::Io)?;
    if let Some(expected) = remote.size.filter(|expected| *expected != size) {
        return Err(Bad::Content(format!("{} has {size} of {expected} bytes", path.display())));
    }
    let mut hash = match remote.etag.len() {
        64 => Context::new(&SHA256),
        40 => {
            let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
            hash.update(format!("blob {size}\0").as_bytes());
            hash
        }
        _ => return Ok(()),
    };
    file.seek(SeekFrom::Start(0)).map_err(Bad::Io)?;
    let mut buffer = [0; 16 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hash.update(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Bad::Io(error)),
        }
    }
    let found: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    match found == remote.etag {
        true => Ok(()),
        false => Err(Bad::Content(format!("has hash {found}; expected {}", remote.etag))),
    }
}
