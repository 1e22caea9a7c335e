//! Which files of a directory are the model, every one of them inside it.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::{parse_strict, read_bounded};
use crate::weights::ModelFiles;

/// Longest index that is read; dolly-v2-12b's has 50 KB.
pub(super) const MAX_INDEX_BYTES: u64 = 16 << 20;
/// Most names of files in a message.
const MOST_SHOWN: usize = 16;
/// Most shards of one model.
const MAX_SHARDS: usize = 4096;

/// A kind of weight files: all in one, or an index and shards.
pub(super) struct Family {
    pub single: &'static str,
    pub index: &'static str,
    pub extension: &'static str,
}

/// The kinds in the order of preference: safetensors hold nothing but tensors.
pub(super) const FAMILIES: [Family; 2] = [
    Family {
        single: "model.safetensors",
        index: "model.safetensors.index.json",
        extension: ".safetensors",
    },
    Family {
        single: "pytorch_model.bin",
        index: "pytorch_model.bin.index.json",
        extension: ".bin",
    },
];

/// The model in a directory of the Hugging Face layout.
pub(super) fn in_directory(dir: &Path) -> Result<ModelFiles> {
    let root = Root::new(dir)?;
    let Some(config) = root.file("config.json")? else {
        return only_gguf(&root, "config.json");
    };
    let tokenizer = root.file("tokenizer.json")?;
    for family in &FAMILIES {
        if let Some(weights) = root.file(family.single)? {
            return Ok(ModelFiles::Directory {
                config,
                tokenizer,
                weights: vec![weights],
                index: None,
            });
        }
        let Some(index) = root.file(family.index)? else { continue };
        let mut weights = Vec::new();
        for name in shards(&read_bounded(&index, MAX_INDEX_BYTES)?, family, &index)? {
            match root.file(&name)? {
                Some(shard) => weights.push(shard),
                None => return Err(not_found(dir, &format!("shard {name:?} is not there"))),
            }
        }
        return Ok(ModelFiles::Directory { config, tokenizer, weights, index: Some(index) });
    }
    let [first, second] = FAMILIES;
    let names = [first.single, first.index, second.single, second.index].join(", ");
    only_gguf(&root, &format!("weights ({names})"))
}

/// The one `.gguf` file of a directory that lacks what the Hugging Face layout has.
fn only_gguf(root: &Root, missing: &str) -> Result<ModelFiles> {
    let io = |error| Error::io(&root.dir, error);
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(&root.dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if is_gguf(Path::new(&name)) && names.len() <= MOST_SHOWN {
            names.extend(name.into_string());
        }
    }
    let mut found = names.iter();
    match (found.next(), found.next()) {
        (None, _) => Err(not_found(&root.dir, &format!("it holds no {missing} and no .gguf file"))),
        (Some(name), None) => match root.file(name)? {
            Some(file) => gguf(&file),
            None => Err(not_found(&root.dir, &format!("{name:?} leads nowhere"))),
        },
        _ => {
            let shown: Vec<&str> = names.iter().take(MOST_SHOWN).map(String::as_str).collect();
            let more = if names.len() > MOST_SHOWN { ", …" } else { "" };
            let reason =
                format!("it holds several models: give the path of one of {}", shown.join(", "));
            Err(not_found(&root.dir, &(reason + more)))
        }
    }
}

fn is_gguf(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// One GGUF file and the tokenizer beside it.
pub(super) fn gguf(file: &Path) -> Result<ModelFiles> {
    if !is_gguf(file) {
        return Err(not_found(file, "a file that is not .gguf; give the directory that holds it"));
    }
    let beside = file.with_file_name("tokenizer.json");
    let tokenizer = Some(beside).filter(|tokenizer| tokenizer.is_file());
    Ok(ModelFiles::Gguf { file: file.to_owned(), tokenizer })
}

fn not_found(path: &Path, reason: &str) -> Error {
    Error::ModelNotFound { id: path.display().to_string(), reason: reason.into() }
}

/// The names of the shards in an index, sorted, each once, each safe to join to a directory.
pub(super) fn shards(bytes: &[u8], family: &Family, index: &Path) -> Result<Vec<String>> {
    let refuse = |reason: String| Error::format(index, reason);
    let value = parse_strict(bytes, 400_000).map_err(refuse)?;
    let Some(Value::Object(map)) = value.get("weight_map") else {
        return Err(refuse("no object \"weight_map\"".into()));
    };
    let mut names = BTreeSet::new();
    for (tensor, name) in map {
        let Some(name) = name.as_str() else {
            return Err(refuse(format!("weight_map: the file of {tensor:?} is no text")));
        };
        if !is_safe_name(name) || !name.ends_with(family.extension) {
            let shown = super::cut(name);
            return Err(refuse(format!("weight_map: {shown:?} is no {} file", family.extension)));
        }
        names.insert(name);
    }
    if names.is_empty() || names.len() > MAX_SHARDS {
        return Err(refuse(format!("{} shards; expected 1 to {MAX_SHARDS}", names.len())));
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// Whether `name` stays below the directory it is joined to: plain components only, no character
/// that any system reads as a separator, a drive or an end.
pub(super) fn is_safe_name(name: &str) -> bool {
    let plain = |c: char| !c.is_control() && !matches!(c, '\\' | ':');
    !name.is_empty()
        && name.len() <= 255
        && name.chars().all(plain)
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// A model's directory, and where its files may lie.
pub(super) struct Root {
    dir: PathBuf,
    /// The directory itself and, for a snapshot of the hub cache, the blobs it links to.
    allowed: Vec<PathBuf>,
}

impl Root {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let real = std::fs::canonicalize(dir).map_err(|error| Error::io(dir, error))?;
        let mut allowed = vec![real.clone()];
        let snapshots = real.parent().filter(|up| up.file_name().is_some_and(|n| n == "snapshots"));
        let blobs = snapshots.and_then(Path::parent).map(|repo| repo.join("blobs"));
        // The link must end in the real blobs of this repository, not where a link named so leads.
        let is_real = |blobs: &PathBuf| std::fs::canonicalize(blobs).is_ok_and(|it| it == *blobs);
        allowed.extend(blobs.filter(is_real));
        Ok(Self { dir: dir.to_owned(), allowed })
    }

    /// The path of a file, `None` where it is not there; refused where it leads out.
    pub(super) fn file(&self, name: &str) -> Result<Option<PathBuf>> {
        let path = self.dir.join(name);
        if !is_safe_name(name) {
            return Err(Error::format(&path, "a name that leads out of the model's directory"));
        }
        let real = match std::fs::canonicalize(&path) {
            Ok(real) => real,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(path, error)),
        };
        if !self.allowed.iter().any(|dir| real.starts_with(dir)) {
            let reason = format!("leads out of the model's directory, to {}", real.display());
            return Err(Error::format(&path, reason));
        }
        match real.is_file() {
            true => Ok(Some(path)),
            false => Err(Error::format(&path, "not a regular file")),
        }
    }
}
