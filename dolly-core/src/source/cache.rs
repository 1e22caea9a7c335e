//! The hub cache as `huggingface_hub` lays it out:
//! `models--org--name/{refs/<revision>, snapshots/<commit>/<file>, blobs/<etag>}`.

use std::path::Path;

use super::files;
use crate::error::{Error, Result};
use crate::json::read_bounded;
use crate::weights::ModelFiles;

/// The name of a model on a hub.
pub(super) struct Repo<'a> {
    id: &'a str,
}

impl<'a> Repo<'a> {
    /// `org/name` or `name` by the rules of `huggingface_hub.validate_repo_id`: letters, digits,
    /// `-`, `_`, `.`; at most 96 characters; no `--`, no `..`, no `-` or `.` at an end.
    pub fn parse(id: &'a str) -> Option<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let ends = ['-', '.'];
        let part = |part: &str| {
            !part.is_empty()
                && part.chars().all(plain)
                && !part.starts_with(ends)
                && !part.ends_with(ends)
        };
        let fits = id.len() <= 96 && !id.contains("--") && !id.contains("..");
        let parts = id.split('/').count() <= 2 && id.split('/').all(part);
        (fits && parts && !id.ends_with(".git")).then_some(Self { id })
    }

    pub fn dir_name(&self) -> String {
        format!("models--{}", self.id.replace('/', "--"))
    }

    #[cfg(feature = "hf-hub")]
    pub fn id(&self) -> &str {
        self.id
    }
}

/// A revision becomes part of a path and of an address.
pub(super) fn check_revision(revision: &str) -> Result<()> {
    match files::is_safe_name(revision) {
        true => Ok(()),
        false => Err(Error::option(
            "revision",
            format!("{:?}", super::cut(revision)),
            "a branch, a tag or a commit",
        )),
    }
}

/// Whether `commit` is a commit's name: SHA-1 or SHA-256 in lower-case hexadecimal digits.
pub(super) fn is_commit(commit: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    matches!(commit.len(), 40 | 64) && commit.bytes().all(hex)
}

/// What the cache holds.
pub(super) enum Found {
    Files(ModelFiles),
    /// Nothing complete; where was looked.
    Nothing(String),
}

/// The snapshot of `revision` (a branch or tag by `refs/`, or a commit) in a repository's cache.
pub(super) fn find(repo_dir: &Path, revision: &str) -> Result<Found> {
    let nothing = |what: &str| Found::Nothing(format!("{what} in {}", repo_dir.display()));
    if !repo_dir.is_dir() {
        return Ok(nothing("no copy"));
    }
    let reference = repo_dir.join("refs").join(revision);
    let commit = match reference.is_file() {
        true => {
            let bytes = read_bounded(&reference, 256)?;
            let text = String::from_utf8_lossy(&bytes).trim().to_owned();
            if !is_commit(&text) {
                return Err(Error::format(reference, "does not hold the name of a commit"));
            }
            text
        }
        false if is_commit(revision) => revision.to_owned(),
        false => return Ok(nothing("no such revision")),
    };
    let snapshot = repo_dir.join("snapshots").join(commit);
    if !snapshot.is_dir() {
        return Ok(nothing("no snapshot of that revision"));
    }
    match files::in_directory(&snapshot) {
        Ok(files) => Ok(Found::Files(files)),
        // A copy that was begun and not ended.
        Err(Error::ModelNotFound { id, reason }) => Ok(Found::Nothing(format!("{id}: {reason}"))),
        Err(error) => Err(error),
    }
}
