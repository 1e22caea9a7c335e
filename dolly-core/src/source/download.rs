//! Downloads from a hub into its cache, as `huggingface_hub` would: listing, then the needed files
//! into `blobs/`, links to them in `snapshots/`, and last the name of the commit in `refs/`.
//!
//! A download that was cut goes on where it stopped; a blob gets its name only when its size and,
//! where the hub's etag is one, its hash are right. Two processes never write one file: it is
//! locked. Everything is bounded: redirects, attempts, sizes of listings.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::Value;

use super::cache::{Repo, is_commit};
use super::files::{self, FAMILIES, Family, MAX_INDEX_BYTES, is_safe_name, shards};
use super::{DEFAULT_ENDPOINT, DownloadProgress, OnProgress, SourceOptions};
use crate::error::{Error, Result};
use crate::json::{parse_strict, read_bounded};
use crate::weights::ModelFiles;
use http::{Hub, Remote};

mod blob;
mod http;
#[cfg(test)]
mod tests;

/// Files taken beside the weights where the model has them.
const OPTIONAL: [&str; 4] = [
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];
/// Longest listing of a model's files that is read.
const MAX_LISTING_BYTES: u64 = 16 << 20;

/// Where one model's files go, and who is told of it.
struct Job<'a> {
    hub: Hub<'a>,
    repo_dir: &'a Path,
    commit: String,
    on_progress: &'a mut OnProgress<'a>,
}

/// Downloads the files of `revision` that this library needs and gives the snapshot.
pub(super) fn download(
    repo: &Repo<'_>,
    repo_dir: &Path,
    revision: &str,
    options: &SourceOptions,
    on_progress: &mut OnProgress<'_>,
) -> Result<ModelFiles> {
    let endpoint = options.endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT);
    let hub = Hub::new(endpoint, repo.id(), options.token.as_deref())?;
    let (commit, names) = listing(&hub, revision)?;
    let mut forward = |progress: DownloadProgress<'_>| on_progress(progress);
    let mut job = Job { hub, repo_dir, commit, on_progress: &mut forward };
    let has = |name: &str| names.iter().any(|known| known == name);
    if !has("config.json") {
        return Err(job.missing("the hub's copy has no config.json"));
    }
    job.file("config.json")?;
    for name in OPTIONAL.into_iter().filter(|name| has(name)) {
        job.file(name)?;
    }
    job.weights(&names)?;
    let snapshot = job.snapshot();
    if revision != job.commit {
        write_ref(&repo_dir.join("refs").join(revision), &job.commit)?;
    }
    files::in_directory(&snapshot)
}

/// The commit that `revision` stands for and the names of its files.
fn listing(hub: &Hub<'_>, revision: &str) -> Result<(String, Vec<String>)> {
    let url = hub.api_url(revision);
    let bytes = hub.read_small(&url, MAX_LISTING_BYTES)?;
    let refuse = |reason: String| Error::Download { url: url.clone(), reason };
    let value = parse_strict(&bytes, 1 << 20).map_err(|e| refuse(format!("listing: {e}")))?;
    let commit = value.get("sha").and_then(Value::as_str).filter(|commit| is_commit(commit));
    let commit = commit.ok_or_else(|| refuse("listing: no commit in \"sha\"".into()))?;
    if is_commit(revision) && revision != commit {
        return Err(refuse(format!("the hub answered with commit {commit}")));
    }
    let siblings = value.get("siblings").and_then(Value::as_array);
    let siblings = siblings.ok_or_else(|| refuse("listing: no \"siblings\"".into()))?;
    let names = siblings.iter().filter_map(|file| file.get("rfilename")?.as_str());
    // A name that leads elsewhere is no file of ours: it is never asked for.
    let names = names.filter(|name| is_safe_name(name)).map(str::to_owned).collect();
    Ok((commit.to_owned(), names))
}

impl Job<'_> {
    fn snapshot(&self) -> std::path::PathBuf {
        self.repo_dir.join("snapshots").join(&self.commit)
    }

    /// Brings the weight files, of the kind that is preferred.
    fn weights(&mut self, names: &[String]) -> Result<()> {
        let has = |name: &str| names.iter().any(|known| known == name);
        let whole = |family: &&Family| has(family.single) || has(family.index);
        let Some(family) = FAMILIES.iter().find(whole) else {
            let reason = "the hub's copy has no weights in safetensors or PyTorch's format";
            return Err(self.missing(reason));
        };
        if has(family.single) {
            return self.file(family.single);
        }
        self.file(family.index)?;
        let index = self.snapshot().join(family.index);
        for shard in shards(&read_bounded(&index, MAX_INDEX_BYTES)?, family, &index)? {
            if !has(&shard) {
                return Err(self.missing(&format!("the hub's copy has no shard {shard:?}")));
            }
            self.file(&shard)?;
        }
        Ok(())
    }

    fn missing(&self, reason: &str) -> Error {
        Error::ModelNotFound { id: self.hub.id().into(), reason: reason.to_owned() }
    }

    /// Brings one file into the blobs, if it is not there, and links it into the snapshot.
    fn file(&mut self, name: &str) -> Result<()> {
        let url = self.hub.file_url(&self.commit, name);
        let remote = self.hub.remote(&url, &self.commit)?;
        let blobs = self.repo_dir.join("blobs");
        let blob = blobs.join(&remote.etag);
        create_dir(&blobs)?;
        let size = fs::metadata(&blob).ok().filter(fs::Metadata::is_file).map(|m| m.len());
        if size.is_none() || remote.size.is_some_and(|expected| size != Some(expected)) {
            self.blob(name, &url, &remote, &blob)?;
        }
        link(&blob, &self.snapshot(), name)
    }

    /// Downloads a blob beside its place and moves it there when it is right.
    fn blob(&mut self, name: &str, url: &str, remote: &Remote, blob: &Path) -> Result<()> {
        let partial = blob.with_file_name(format!("{}.incomplete", remote.etag));
        let io = |error| Error::io(&partial, error);
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)
            .map_err(io)?;
        if file.try_lock().is_err() {
            let reason = format!("another process is writing {}", partial.display());
            return Err(Error::Download { url: url.into(), reason });
        }
        let on_progress = &mut *self.on_progress;
        let mut tell = |received: u64| {
            on_progress(DownloadProgress { file: name, received, total: remote.size })
        };
        blob::receive(&self.hub, url, remote, &mut file, &partial, &mut tell)?;
        blob::verify(&mut file, &partial, remote).map_err(|error| {
            // What is wrong must not be gone on with.
            drop(fs::remove_file(&partial));
            match error {
                blob::Bad::Content(reason) => Error::Download { url: url.into(), reason },
                blob::Bad::Io(error) => Error::io(&partial, error),
            }
        })?;
        file.sync_all().map_err(io)?;
        fs::rename(&partial, blob).map_err(|error| Error::io(blob, error))
    }
}

fn create_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|error| Error::io(dir, error))
}

/// Puts `snapshot/name` in place at once: as a link to the blob, by a relative path as the hub's
/// own tools do, so that the cache may be moved.
fn link(blob: &Path, snapshot: &Path, name: &str) -> Result<()> {
    let place = snapshot.join(name);
    let parent = place.parent().unwrap_or(snapshot);
    create_dir(parent)?;
    let etag = blob.file_name().unwrap_or_default();
    let temporary = parent.join(format!(".{}.{}", etag.to_string_lossy(), std::process::id()));
    let up = "../".repeat(2 + name.matches('/').count());
    let target = Path::new(&up).join("blobs").join(etag);
    drop(fs::remove_file(&temporary));
    let made = make_link(&target, blob, &temporary);
    made.and_then(|()| fs::rename(&temporary, &place)).map_err(|error| Error::io(&place, error))
}

#[cfg(unix)]
fn make_link(target: &Path, _: &Path, place: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, place)
}

#[cfg(not(unix))]
fn make_link(_: &Path, blob: &Path, place: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, place).or_else(|_| fs::copy(blob, place).map(drop))
}

/// Writes the name of the commit, whole or not at all.
fn write_ref(reference: &Path, commit: &str) -> Result<()> {
    let io = |error| Error::io(reference, error);
    create_dir(reference.parent().unwrap_or(reference))?;
    let mut name = reference.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = reference.with_file_name(name);
    let mut file = File::create(&temporary).map_err(io)?;
    std::io::Write::write_all(&mut file, commit.as_bytes()).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&temporary, reference).map_err(io)
}

/// What the receiver of progress may answer.
type Tell<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;
