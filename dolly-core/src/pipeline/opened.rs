//! What is read of a model before its weights: configuration and tokenizer, checked together.

use std::path::Path;

use crate::error::{Error, Result};
use crate::model::{Config, MetadataView};
use crate::tokenizer::Tokenizer;
use crate::weights::{Checkpoint, GgufMetadata, GgufValue, ModelFiles, canonical_gguf_name};

/// A model's configuration and tokenizer.
pub(crate) struct Opened {
    pub config: Config,
    pub tokenizer: Tokenizer,
}

impl Opened {
    pub fn new(files: &ModelFiles, checkpoint: &Checkpoint) -> Result<Self> {
        let (opened, origin) = match files {
            ModelFiles::Directory { config, tokenizer, .. } => {
                let file = tokenizer.as_ref().ok_or_else(|| {
                    Error::tokenizer(config.with_file_name("tokenizer.json"), "no such file")
                })?;
                let tokenizer = Tokenizer::from_file(file)?;
                (Self { config: Config::from_json(config)?, tokenizer }, config)
            }
            ModelFiles::Gguf { file, tokenizer } => {
                (Self::from_gguf(file, tokenizer.as_deref(), checkpoint)?, file)
            }
        };
        let (ids, rows) = (opened.tokenizer.vocab_size(), opened.config.vocab_size);
        match ids > rows {
            true => {
                let reason = format!("{rows} embedding rows for a tokenizer of {ids} ids");
                Err(Error::config(origin, "vocab_size", reason))
            }
            false => Ok(opened),
        }
    }

    fn from_gguf(file: &Path, tokenizer: Option<&Path>, checkpoint: &Checkpoint) -> Result<Self> {
        let metadata = gguf_metadata(checkpoint)?;
        let config = Config::from_gguf(file, &GgufView { metadata, checkpoint })?;
        let tokenizer = match tokenizer {
            Some(tokenizer) => Tokenizer::from_file(tokenizer)?,
            None => {
                let GgufArrays { tokens, types, merges } = GgufArrays::read(metadata, file)?;
                Tokenizer::from_gguf_parts(tokens, &types, &merges, file)?
            }
        };
        Ok(Self { config, tokenizer })
    }
}

/// The metadata of a checkpoint that is a GGUF file.
pub(super) fn gguf_metadata(checkpoint: &Checkpoint) -> Result<&GgufMetadata> {
    let missing = || Error::Internal("a GGUF checkpoint without metadata".to_owned());
    checkpoint.gguf().ok_or_else(missing)
}

/// The tokenizer as GGUF's metadata has it.
pub(super) struct GgufArrays {
    pub tokens: Vec<String>,
    pub types: Vec<i32>,
    pub merges: Vec<String>,
}

impl GgufArrays {
    pub fn read(metadata: &GgufMetadata, file: &Path) -> Result<Self> {
        let missing =
            |key: &str| Error::config(file, key, "is missing, and no tokenizer.json beside");
        let key = "tokenizer.ggml.model";
        match metadata.get_str(key)? {
            Some("gpt2") => {}
            Some(other) => return Err(Error::config(file, key, format!("{other:?} is not gpt2"))),
            None => return Err(missing(key)),
        }
        let strings = |key: &str| -> Result<Vec<String>> {
            let strings = metadata.get_array_of_strings(key)?.ok_or_else(|| missing(key))?;
            Ok(strings.into_iter().map(str::to_owned).collect())
        };
        let types = metadata.get_array_of_integers("tokenizer.ggml.token_type")?;
        // A type beyond 32 bits is no known type: the tokenizer refuses it by number.
        let types = types.unwrap_or_default();
        let types = types.iter().map(|t| i32::try_from(*t).unwrap_or(i32::MAX)).collect();
        let merges = strings("tokenizer.ggml.merges")?;
        Ok(Self { tokens: strings("tokenizer.ggml.tokens")?, types, merges })
    }
}

/// A GGUF file as the configuration reads it.
struct GgufView<'a> {
    metadata: &'a GgufMetadata,
    checkpoint: &'a Checkpoint,
}

impl MetadataView for GgufView<'_> {
    fn get_u32(&self, key: &str) -> Option<u32> {
        self.metadata.get_u32(key).ok().flatten()
    }

    fn get_f32(&self, key: &str) -> Option<f32> {
        self.metadata.get_f32(key).ok().flatten()
    }

    fn get_bool(&self, key: &str) -> Option<bool> {
        self.metadata.get_bool(key).ok().flatten()
    }

    fn get_str(&self, key: &str) -> Option<&str> {
        self.metadata.get_str(key).ok().flatten()
    }

    fn array_len(&self, key: &str) -> Option<usize> {
        match self.metadata.get(key)? {
            GgufValue::Array(elements) => Some(elements.len()),
            _ => None,
        }
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.checkpoint.contains(&canonical_gguf_name(name))
    }
}
