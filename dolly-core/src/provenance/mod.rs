//! What a model was made of: hashes and licences of weights, tokenizer and data, and the chain back.
//!
//! Every result of this library carries a [`Manifest`] in the file [`FILE`]. It holds the records
//! of all ancestors as well, so that the chain can be read where nothing but the result is at
//! hand. [`lineage`] reads it back, holds the files against their hashes and warns of licences;
//! [`Lineage::cyclonedx`] exports it as a CycloneDX ML-BOM.
//!
//! A manifest is a claim of whoever wrote it: hashes show that files are those it speaks of, they
//! do not show that it tells the truth.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::dataset::SetInfo;
use crate::error::{Error, Result};
use crate::json::{parse_strict, read_bounded, write_pretty};
use crate::source;
use crate::weights::ModelFiles;

mod cyclonedx;
mod hash;
mod licence;
mod lineage;
mod origin;

pub use hash::FileHash;
pub use licence::{Terms, terms};
pub use lineage::{Lineage, Node, Warning, WarningKind, lineage};

/// Name of the manifest in a result's directory.
pub const FILE: &str = "dolly_provenance.json";
/// Version of the manifest's form.
const FORMAT: u32 = 1;
/// Longest manifest that is read.
const MAX_BYTES: u64 = 16 << 20;
/// Most values in a manifest.
const MAX_VALUES: usize = 400_000;
/// Most ancestors of a result.
const MAX_ANCESTORS: usize = 64;

/// What a result is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// A whole model.
    Model,
    /// A low-rank adapter, which needs its base.
    Adapter,
}

/// What a parent gave to a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// The weights it started from.
    Base,
    /// An adapter that was merged into it.
    Adapter,
}

/// Something that went into a result: its name, where it came from, its files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Part {
    /// Its name: a hub id, or what its maker calls it.
    pub name: String,
    /// Where it was had from.
    pub source: Option<String>,
    /// Its licence, as an SPDX expression where one exists.
    pub licence: Option<String>,
    /// Its files.
    pub files: Vec<FileHash>,
}

impl Part {
    /// A part of which only the name is known.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
}

/// A model or adapter that a result was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Parent {
    /// What it gave.
    pub role: Role,
    /// What it is.
    pub part: Part,
    /// SHA-256 of its manifest's file, where it had one: the key of its record among the
    /// manifest's ancestors.
    pub manifest: Option<String>,
}

/// A program and its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// How one result came to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// Name of the result.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The licence its maker gives it.
    pub licence: Option<String>,
    /// When it was made, RFC 3339; left out where the same run must give the same bytes.
    pub created: Option<String>,
    /// The program that made it.
    pub tool: Tool,
    /// What it was made from; empty for weights drawn at random.
    pub parents: Vec<Parent>,
    /// Its tokenizer.
    pub tokenizer: Option<Part>,
    /// What it was trained on, with the filters applied.
    pub data: Vec<SetInfo>,
    /// The options of the run.
    pub options: Value,
    /// What was measured at its end.
    pub metrics: BTreeMap<String, f64>,
    /// Its own files.
    pub files: Vec<FileHash>,
}

/// The record of an ancestor, by the hash of the manifest it stood in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ancestor {
    /// SHA-256 of the manifest's file, in hexadecimal.
    pub sha256: String,
    /// What stood there.
    pub record: Record,
}

/// The record of a result and those of all its ancestors.
///
/// ```
/// use dolly_core::provenance::{Kind, Manifest};
/// let directory = std::env::temp_dir().join("dolly-manifest-example");
/// std::fs::create_dir_all(&directory)?;
/// let mut manifest = Manifest::new("my-model", Kind::Model);
/// manifest.record.licence = Some("CC-BY-SA-3.0".to_owned());
/// manifest.write(&directory)?;
/// assert_eq!(Manifest::read(&directory)?, manifest);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// Version of the form, 1.
    pub format: u32,
    /// How the result came to be.
    pub record: Record,
    /// How its ancestors did, each once, in no order.
    pub ancestors: Vec<Ancestor>,
}

impl Manifest {
    /// A manifest of a result without parents, made by this version of the library.
    pub fn new(name: impl Into<String>, kind: Kind) -> Self {
        let tool = Tool {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let record = Record {
            name: name.into(),
            kind,
            licence: None,
            created: None,
            tool,
            parents: Vec::new(),
            tokenizer: None,
            data: Vec::new(),
            options: Value::Null,
            metrics: BTreeMap::new(),
            files: Vec::new(),
        };
        Self { format: FORMAT, record, ancestors: Vec::new() }
    }

    /// Adds the model that training starts from, or that an adapter is merged into: hashes its
    /// weights, takes over its manifest where it has one, and its licence from there, from its
    /// card, or from the list of known models.
    ///
    /// `name` is what the user called it. Reads every weight file once.
    pub fn add_base(&mut self, name: &str, files: &ModelFiles) -> Result<()> {
        let (directory, paths) = match files {
            ModelFiles::Directory { config, weights, .. } => {
                let own = std::iter::once(config).chain(weights);
                (config.parent(), own.cloned().collect())
            }
            ModelFiles::Gguf { file, .. } => (file.parent(), vec![file.clone()]),
        };
        let manifest = match files {
            ModelFiles::Directory { .. } => directory,
            // A manifest beside a GGUF file may be that of another model in the same place.
            ModelFiles::Gguf { .. } => None,
        };
        self.add_parent(Role::Base, name, manifest, &paths)
    }

    /// Adds an adapter that is merged in, from its directory.
    pub fn add_adapter(&mut self, name: &str, directory: &Path) -> Result<()> {
        let mut paths = Vec::new();
        let names = ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"];
        for name in names {
            paths.extend(source::file_in(directory, name)?);
        }
        self.add_parent(Role::Adapter, name, Some(directory), &paths)
    }

    /// Sets the tokenizer to these bytes of a `tokenizer.json`.
    pub fn set_tokenizer(&mut self, name: &str, bytes: &[u8]) {
        let part = self.record.tokenizer.get_or_insert_with(Part::default);
        part.name = name.to_owned();
        part.files = vec![FileHash::of_bytes("tokenizer.json", bytes)];
    }

    /// Reads the manifest of a result's directory.
    ///
    /// # Errors
    /// [`Error::ModelNotFound`] where there is none, [`Error::Format`] for one that is malformed,
    /// of another version, or has more than 64 ancestors.
    pub fn read(directory: &Path) -> Result<Self> {
        Self::read_hashed(directory).map(|(manifest, _)| manifest)
    }

    fn read_hashed(directory: &Path) -> Result<(Self, String)> {
        Self::read_if_there(directory)?.ok_or_else(|| Error::ModelNotFound {
            id: directory.display().to_string(),
            reason: format!("it holds no {FILE}"),
        })
    }

    /// The manifest and the hash of its bytes.
    fn read_if_there(directory: &Path) -> Result<Option<(Self, String)>> {
        let Some(file) = source::file_in(directory, FILE)? else { return Ok(None) };
        let bytes = read_bounded(&file, MAX_BYTES)?;
        let fail = |reason: String| Error::format(&file, reason);
        let value = parse_strict(&bytes, MAX_VALUES).map_err(fail)?;
        match value.get("format").and_then(Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            other => return Err(fail(format!("format {other:?}; this library reads {FORMAT}"))),
        }
        let manifest: Self = serde_json::from_value(value).map_err(|e| fail(e.to_string()))?;
        match manifest.ancestors.len() > MAX_ANCESTORS {
            true => Err(fail(format!(
                "{} ancestors; at most {MAX_ANCESTORS}",
                manifest.ancestors.len()
            ))),
            false => Ok(Some((manifest, hash::of_bytes(&bytes)))),
        }
    }

    /// Writes the manifest to a result's directory, whole or not at all.
    pub fn write(&self, directory: &Path) -> Result<()> {
        write_pretty(&directory.join(FILE), self)
    }
}

/// A time as RFC 3339 in UTC, to the second; times before 1970 are 1970.
///
/// ```
/// use std::time::{Duration, UNIX_EPOCH};
/// let time = UNIX_EPOCH + Duration::from_secs(951_782_400);
/// assert_eq!(dolly_core::provenance::timestamp(time), "2000-02-29T00:00:00Z");
/// ```
pub fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date, years starting in March (Hinnant, "chrono-compatible low-level date
    // algorithms"): leap days come last, 400 years have 146,097 days.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + later;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}
