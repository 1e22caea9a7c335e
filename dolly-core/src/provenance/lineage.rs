//! The chain back from a result, held against its files, with what its licences ask.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::{FileHash, Manifest, Record, Role, terms};
use crate::error::{Error, Result};
use crate::source;

/// Most warnings that are kept; a hostile manifest could cause one for each of its files.
const MAX_WARNINGS: usize = 1000;

/// Where a result came from, as [`lineage`] found it.
///
/// Its [`Display`](fmt::Display) is a tree, the result first, warnings last.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Lineage {
    /// The result and its ancestors, parents after their children.
    pub nodes: Vec<Node>,
    /// What a reader should know before the result is passed on.
    pub warnings: Vec<Warning>,
    /// SHA-256 of the result's manifest.
    pub manifest: String,
}

/// One result in the chain.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Node {
    /// Steps from the result, which has 0.
    pub depth: usize,
    /// What it gave to its child; `None` for the result itself.
    pub role: Option<Role>,
    /// How it came to be.
    pub record: Record,
}

/// Why a [`Warning`] was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WarningKind {
    /// A file is not the one the manifest speaks of.
    ChangedFile,
    /// A file of the manifest is not there.
    MissingFile,
    /// The record of a parent that had one is not among the ancestors.
    BrokenChain,
    /// A licence excludes or restricts commercial use.
    RestrictsCommercialUse,
    /// A licence demands that adaptations come under the same terms.
    ShareAlike,
    /// A licence forbids to pass on adaptations.
    NoDerivatives,
    /// A licence whose terms are not known here.
    UnknownLicence,
    /// No licence is stated.
    NoLicence,
}

/// Something a reader should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Warning {
    /// Why it was given.
    pub kind: WarningKind,
    /// The file, model or data set it speaks of.
    pub subject: String,
    /// The whole of it in words.
    pub message: String,
}

/// Reads the manifest of a result's directory and of everything it was made from.
///
/// The result's own files are hashed, as far as they are there and have the recorded size.
/// Ancestors are read from the manifest itself: nothing outside the directory is opened.
///
/// # Errors
/// Those of [`Manifest::read`], and [`Error::Io`] for a file that cannot be read.
///
/// ```no_run
/// let lineage = dolly_core::provenance::lineage("my-model".as_ref())?;
/// println!("{lineage}");
/// for warning in &lineage.warnings {
///     eprintln!("{}", warning.message);
/// }
/// # Ok::<(), dolly_core::Error>(())
/// ```
pub fn lineage(directory: &Path) -> Result<Lineage> {
    let (manifest, sha256) = Manifest::read_hashed(directory)?;
    let mut warnings = Warnings::default();
    for file in &manifest.record.files {
        warnings.check(directory, file)?;
    }
    let nodes = chain(manifest, &mut warnings);
    for node in &nodes {
        warnings.licences(&node.record);
    }
    Ok(Lineage { nodes, warnings: warnings.list, manifest: sha256 })
}

/// The result and its ancestors, each once: a record that is its own ancestor ends the walk.
fn chain(manifest: Manifest, warnings: &mut Warnings) -> Vec<Node> {
    let Manifest { record, ancestors, .. } = manifest;
    let mut known: HashMap<String, Record> =
        ancestors.into_iter().map(|one| (one.sha256, one.record)).collect();
    let (mut nodes, mut seen) = (Vec::new(), HashSet::new());
    let mut open = vec![Node { depth: 0, role: None, record }];
    while let Some(node) = open.pop() {
        for parent in node.record.parents.iter().rev() {
            let Some(sha256) = &parent.manifest else { continue };
            match known.remove(sha256) {
                Some(record) => {
                    seen.insert(sha256.clone());
                    open.push(Node { depth: node.depth + 1, role: Some(parent.role), record });
                }
                None if seen.contains(sha256) => {}
                None => warnings.push(
                    WarningKind::BrokenChain,
                    &parent.part.name,
                    format!("{}: its manifest {sha256} is not in the chain", parent.part.name),
                ),
            }
        }
        nodes.push(node);
    }
    nodes
}

#[derive(Default)]
struct Warnings {
    list: Vec<Warning>,
    given: HashSet<(WarningKind, String)>,
}

impl Warnings {
    fn push(&mut self, kind: WarningKind, subject: &str, message: String) {
        if self.list.len() < MAX_WARNINGS && self.given.insert((kind, subject.to_owned())) {
            self.list.push(Warning { kind, subject: subject.to_owned(), message });
        }
    }

    /// Holds one file against its hash.
    fn check(&mut self, directory: &Path, file: &FileHash) -> Result<()> {
        let path = match source::file_in(directory, &file.path) {
            Ok(Some(path)) => path,
            Ok(None) => {
                let message = format!("{} is not there", file.path);
                self.push(WarningKind::MissingFile, &file.path, message);
                return Ok(());
            }
            // A name that leads out of the directory, or a directory in the file's place.
            Err(Error::Format { reason, .. }) => {
                let message = format!("{}: {reason}", file.path);
                self.push(WarningKind::ChangedFile, &file.path, message);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let bytes = std::fs::metadata(&path).map_err(|error| Error::io(&path, error))?.len();
        if bytes != file.bytes {
            let message = format!("{} has {bytes} bytes; it had {}", file.path, file.bytes);
            self.push(WarningKind::ChangedFile, &file.path, message);
        } else if FileHash::of_file("", &path)?.sha256 != file.sha256 {
            let message = format!("{} was changed: its hash is another", file.path);
            self.push(WarningKind::ChangedFile, &file.path, message);
        }
        Ok(())
    }

    /// What the licences of a result's parts ask.
    fn licences(&mut self, record: &Record) {
        for parent in &record.parents {
            self.licence(&parent.part.name, parent.part.licence.as_deref());
        }
        for set in &record.data {
            self.licence(&set.name, set.licence.as_deref());
        }
        if let Some(part) = &record.tokenizer
            && part.licence.is_some()
        {
            self.licence(&part.name, part.licence.as_deref());
        }
        if record.licence.is_some() {
            self.licence(&record.name, record.licence.as_deref());
        }
    }

    fn licence(&mut self, subject: &str, licence: Option<&str>) {
        let Some(licence) = licence else {
            let message = format!("{subject}: no licence is stated; ask before you pass it on");
            return self.push(WarningKind::NoLicence, subject, message);
        };
        let terms = terms(licence);
        let found = [
            (
                terms.restricts_commercial_use,
                WarningKind::RestrictsCommercialUse,
                "excludes or restricts commercial use",
            ),
            (
                terms.share_alike,
                WarningKind::ShareAlike,
                "demands that adaptations come under the same licence",
            ),
            (
                terms.no_derivatives,
                WarningKind::NoDerivatives,
                "does not allow to pass on adaptations",
            ),
            (terms.unknown, WarningKind::UnknownLicence, "is not known here: read its terms"),
        ];
        for (_, kind, what) in found.into_iter().filter(|(holds, ..)| *holds) {
            self.push(kind, subject, format!("{subject}: licence {licence} {what}"));
        }
    }
}

impl Lineage {
    /// Everything as JSON: `nodes`, `warnings`, `manifest`.
    pub fn to_json(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).map_err(|error| Error::Internal(error.to_string()))
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            node.fmt_at(f)?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {}", warning.message)?;
        }
        Ok(())
    }
}

/// A licence in words.
fn shown(licence: &Option<String>) -> &str {
    licence.as_deref().unwrap_or("no licence stated")
}

impl Node {
    fn fmt_at(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { name, licence, tool, .. } = &self.record;
        let pad = "  ".repeat(self.depth);
        let role = match self.role {
            None => "",
            Some(Role::Base) => "base ",
            Some(Role::Adapter) => "adapter ",
        };
        writeln!(f, "{pad}{role}{name} ({}; {} {})", shown(licence), tool.name, tool.version)?;
        if let Some(part) = &self.record.tokenizer {
            writeln!(f, "{pad}  tokenizer {}", part.name)?;
        }
        for set in &self.record.data {
            writeln!(f, "{pad}  data {} ({}; {} rows)", set.name, shown(&set.licence), set.rows)?;
            for step in &set.steps {
                writeln!(f, "{pad}    {step}")?;
            }
        }
        // A parent with a manifest of its own follows as a node.
        for parent in self.record.parents.iter().filter(|parent| parent.manifest.is_none()) {
            let role = if parent.role == Role::Base { "base" } else { "adapter" };
            let part = &parent.part;
            writeln!(f, "{pad}  {role} {} ({})", part.name, shown(&part.licence))?;
        }
        Ok(())
    }
}
