//! What a caller names - a directory, a file, a hub id - to the files of one model.
//!
//! Nothing is opened here but `config`-sized text (an index, a ref); a file outside the model's own
//! directory is refused before it is opened. Every environment variable and every directory that
//! is searched is named in this module.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::weights::ModelFiles;

mod cache;
#[cfg(feature = "hf-hub")]
mod download;
mod files;
#[cfg(test)]
mod tests;

/// The name of the bundled model.
pub const BUNDLED: &str = "dolly-nano";
/// The hub asked where no other is named.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Where to look for a model, and whether the network may be asked.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SourceOptions {
    /// Branch, tag or commit of a hub model; `None` is `main`.
    pub revision: Option<String>,
    /// Use what is on disk, never the network.
    pub offline: bool,
    /// The hub cache (`.../huggingface/hub`); `None` is one in the home directory, if that is known.
    pub cache_dir: Option<PathBuf>,
    /// Secret sent to the hub's own host, for gated and private models.
    pub token: Option<String>,
    /// Address of the hub; `None` is [`DEFAULT_ENDPOINT`].
    pub endpoint: Option<String>,
    /// Directories that hold a `dolly-nano` directory, searched first for the bundled model.
    pub bundled_dirs: Vec<PathBuf>,
}

impl fmt::Debug for SourceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceOptions")
            .field("revision", &self.revision)
            .field("offline", &self.offline)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("endpoint", &self.endpoint)
            .field("bundled_dirs", &self.bundled_dirs)
            .finish()
    }
}

impl SourceOptions {
    /// The options that the environment asks for, by the variables of `huggingface_hub`:
    /// `HF_HUB_CACHE`, else `HF_HOME`, else `XDG_CACHE_HOME`, else the home directory for the cache;
    /// `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_ENDPOINT`. The environment is read, never set.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn from_vars(var: impl Fn(&str) -> Option<std::ffi::OsString>) -> Self {
        let dir = |name: &str| var(name).map(PathBuf::from);
        let text = |name: &str| var(name).and_then(|value| value.into_string().ok());
        let home = || dir("HOME").or_else(|| dir("USERPROFILE"));
        let caches = || dir("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")));
        let hub =
            || Some(dir("HF_HOME").or_else(|| Some(caches()?.join("huggingface")))?.join("hub"));
        let truth = |value: String| {
            matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
        };
        Self {
            revision: None,
            offline: text("HF_HUB_OFFLINE").is_some_and(truth),
            cache_dir: dir("HF_HUB_CACHE").or_else(hub),
            token: text("HF_TOKEN").map(|token| token.trim().to_owned()),
            endpoint: text("HF_ENDPOINT"),
            bundled_dirs: Vec::new(),
        }
    }
}

/// How far a download is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DownloadProgress<'a> {
    /// Name of the file within the model.
    pub file: &'a str,
    /// Bytes of it on disk.
    pub received: u64,
    /// Its size in bytes, where the hub told it.
    pub total: Option<u64>,
}

/// Receives the progress of a download; [`ControlFlow::Break`] ends it with [`Error::Cancelled`].
pub type OnProgress<'a> = dyn FnMut(DownloadProgress<'_>) -> ControlFlow<()> + 'a;

/// The files of the model that `id_or_path` names.
///
/// In this order: a directory (in the Hugging Face layout, else with one `.gguf` file), a `.gguf` file, [`BUNDLED`], a hub id (`org/name`) in the hub cache,
/// and - with the feature `hf-hub`, unless offline - the hub itself. A complete cached copy is used
/// without asking the network. Weights in safetensors win over pickled ones.
///
/// Errors with [`Error::ModelNotFound`], saying where was looked and what helps; with
/// [`Error::Format`] where a file would lead out of the model's directory.
///
/// ```no_run
/// use dolly_core::source::{SourceOptions, resolve};
/// let files = resolve("databricks/dolly-v2-3b", &SourceOptions::from_env())?;
/// # Ok::<(), dolly_core::Error>(())
/// ```
pub fn resolve(id_or_path: &str, options: &SourceOptions) -> Result<ModelFiles> {
    resolve_with(id_or_path, options, &mut |_| ControlFlow::Continue(()))
}

/// As [`resolve`], reporting the progress of downloads to `on_progress`.
pub fn resolve_with(
    id_or_path: &str,
    options: &SourceOptions,
    on_progress: &mut OnProgress<'_>,
) -> Result<ModelFiles> {
    let path = Path::new(id_or_path);
    if path.is_dir() {
        return files::in_directory(path);
    }
    if path.is_file() {
        return files::gguf(path);
    }
    if id_or_path == BUNDLED {
        return bundled(options);
    }
    let not_found = |reason: String| Error::ModelNotFound { id: cut(id_or_path).into(), reason };
    let Some(repo) = cache::Repo::parse(id_or_path) else {
        let dir = std::env::current_dir().unwrap_or_default();
        return Err(not_found(format!(
            "no such directory or file (from {}), and not a hub id (\"org/name\")",
            dir.display()
        )));
    };
    let revision = options.revision.as_deref().unwrap_or("main");
    cache::check_revision(revision)?;
    let Some(cache_dir) = &options.cache_dir else {
        return Err(not_found("no hub cache: set cache_dir, HF_HUB_CACHE or HF_HOME".into()));
    };
    let repo_dir = cache_dir.join(repo.dir_name());
    let looked = match cache::find(&repo_dir, revision)? {
        cache::Found::Files(files) => return Ok(files),
        cache::Found::Nothing(looked) => looked,
    };
    fetch(&repo, &repo_dir, revision, options, on_progress).map_err(|error| match error {
        None => not_found(format!("{looked}; {}", no_network(options))),
        Some(error) => error,
    })
}

#[cfg(feature = "hf-hub")]
fn fetch(
    repo: &cache::Repo<'_>,
    repo_dir: &Path,
    revision: &str,
    options: &SourceOptions,
    on_progress: &mut OnProgress<'_>,
) -> Result<ModelFiles, Option<Error>> {
    match options.offline {
        true => Err(None),
        false => download::download(repo, repo_dir, revision, options, on_progress).map_err(Some),
    }
}

#[cfg(not(feature = "hf-hub"))]
fn fetch(
    _: &cache::Repo<'_>,
    _: &Path,
    _: &str,
    _: &SourceOptions,
    _: &mut OnProgress<'_>,
) -> Result<ModelFiles, Option<Error>> {
    Err(None)
}

fn no_network(options: &SourceOptions) -> &'static str {
    match (cfg!(feature = "hf-hub"), options.offline) {
        (true, true) => "offline: unset HF_HUB_OFFLINE to download it, or give its directory",
        _ => {
            "this build does not download (feature \"hf-hub\"): download it, or give its directory"
        }
    }
}

/// The bundled model, from the first of the documented places that holds a `config.json`.
fn bundled(options: &SourceOptions) -> Result<ModelFiles> {
    let mut places: Vec<PathBuf> =
        options.bundled_dirs.iter().map(|dir| dir.join(BUNDLED)).collect();
    let executable = std::env::current_exe().and_then(std::fs::canonicalize).ok();
    let programs = executable.as_deref().and_then(Path::parent);
    let current = std::env::current_dir().ok();
    for start in [current.as_deref(), programs].into_iter().flatten() {
        places.extend(start.ancestors().map(|dir| dir.join("models").join(BUNDLED)));
    }
    if let Some(prefix) = programs.and_then(Path::parent) {
        places.push(prefix.join("share").join("dolly").join(BUNDLED));
    }
    match places.iter().find(|place| place.join("config.json").is_file()) {
        Some(place) => files::in_directory(place),
        None => {
            let shown: Vec<String> =
                places.iter().take(8).map(|place| place.display().to_string()).collect();
            let reason = format!(
                "looked in {}{}; give its directory, or name the one above it in bundled_dirs",
                shown.join(", "),
                if places.len() > shown.len() { ", …" } else { "" }
            );
            Err(Error::ModelNotFound { id: BUNDLED.into(), reason })
        }
    }
}

/// The path of file `name` in `dir`, `None` where it is not there; refused where it leads out.
pub(crate) fn file_in(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    files::Root::new(dir)?.file(name)
}

/// A name fit for a message.
fn cut(name: &str) -> &str {
    name.char_indices().nth(200).map_or(name, |(end, _)| &name[..end])
}
