//! Parents of a result: their files, their manifests, their licences.

use std::path::{Path, PathBuf};

use super::{Ancestor, FileHash, Manifest, Parent, Part, Role};
use crate::error::{Error, Result};
use crate::json::read_bounded;
use crate::source;

/// Longest model card that is searched for a licence.
const MAX_CARD: u64 = 1 << 20;

/// Models whose cards state a licence, by the start of their hub ids; a cache of the hub may hold
/// no card.
const KNOWN: [(&str, &str); 3] = [
    ("EleutherAI/pythia-", "Apache-2.0"),
    ("EleutherAI/gpt-neox-20b", "Apache-2.0"),
    ("databricks/dolly-v2-", "MIT"),
];

impl Manifest {
    pub(super) fn add_parent(
        &mut self,
        role: Role,
        name: &str,
        directory: Option<&Path>,
        paths: &[PathBuf],
    ) -> Result<()> {
        let mut part = Part::new(name);
        for path in paths {
            let file = path.file_name().map(|name| name.to_string_lossy().into_owned());
            part.files.push(FileHash::of_file(file.unwrap_or_default(), path)?);
        }
        let directory = directory.map(|dir| match dir.as_os_str().is_empty() {
            true => Path::new("."),
            false => dir,
        });
        let found = directory.map(Self::read_if_there).transpose()?.flatten();
        let mut hash = None;
        if let Some((manifest, sha256)) = found {
            part.licence = manifest.record.licence.clone();
            self.adopt(manifest, &sha256);
            hash = Some(sha256);
        }
        if part.licence.is_none() {
            part.licence = match directory {
                Some(directory) => licence_of_card(directory)?,
                None => None,
            };
        }
        let known = || KNOWN.iter().find(|(start, _)| name.starts_with(start));
        part.licence = part.licence.or_else(|| known().map(|(_, licence)| (*licence).to_owned()));
        self.record.parents.push(Parent { role, part, manifest: hash });
        match self.ancestors.len() > super::MAX_ANCESTORS {
            true => {
                Err(Error::Unsupported(format!("a chain of {} ancestors", self.ancestors.len())))
            }
            false => Ok(()),
        }
    }

    /// Takes a parent's record and those of its ancestors among one's own.
    fn adopt(&mut self, parent: Manifest, sha256: &str) {
        let own = Ancestor { sha256: sha256.to_owned(), record: parent.record };
        for ancestor in std::iter::once(own).chain(parent.ancestors) {
            if !self.ancestors.iter().any(|known| known.sha256 == ancestor.sha256) {
                self.ancestors.push(ancestor);
            }
        }
    }
}

/// The `license` in the front matter of a model card, where there is one.
fn licence_of_card(directory: &Path) -> Result<Option<String>> {
    let Some(card) = source::file_in(directory, "README.md")? else { return Ok(None) };
    let Ok(bytes) = read_bounded(&card, MAX_CARD) else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    if lines.next() != Some("---") {
        return Ok(None);
    }
    let found = lines
        .take_while(|line| *line != "---")
        .find_map(|line| line.strip_prefix("license:"))
        .map(|licence| licence.trim().trim_matches(['"', '\'']).to_owned());
    Ok(found.filter(|licence| !licence.is_empty() && licence.len() <= 200))
}
