//! A model in another file format, or with weights of another type.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json::{read_bounded, write_pretty};
use crate::model::{Config, dtype_name};
use crate::pipeline::builder::stored_format;
use crate::pipeline::opened::{GgufArrays, Opened, gguf_metadata};
use crate::tokenizer::Exported;
use crate::train::Adapter;
use crate::weights::{
    AtomicFile, Checkpoint, ModelFiles, WeightFormat, write_gguf, write_safetensors,
};

const MAX_CONFIG: u64 = 16 << 20;

/// A file format this library writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileFormat {
    /// One GGUF file of architecture `gptneox`, for llama.cpp and its relatives.
    Gguf,
    /// A directory of `model.safetensors`, `tokenizer.json` and `config.json`, as transformers
    /// reads it.
    Safetensors,
}

impl std::str::FromStr for FileFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "gguf" => Ok(Self::Gguf),
            "safetensors" => Ok(Self::Safetensors),
            _ => Err(Error::option("format", name, "gguf or safetensors")),
        }
    }
}

/// Writes a model to `destination`, a file or a directory by its format.
///
/// [`WeightFormat::Auto`] keeps the stored type as near as the format comes. Each file appears
/// whole or not at all, `config.json` last, so that a directory is a model only once it is complete.
/// Errors: those of reading a model, of [`write_gguf`] and [`write_safetensors`], and
/// [`Error::InvalidInput`] for a destination that is the source.
///
/// ```no_run
/// use dolly_core::source::{SourceOptions, resolve};
/// use dolly_core::{FileFormat, WeightFormat, convert};
/// let files = resolve("dolly-nano", &SourceOptions::from_env())?;
/// convert(&files, "dolly-nano.gguf".as_ref(), FileFormat::Gguf, WeightFormat::Q8_0)?;
/// # Ok::<(), dolly_core::Error>(())
/// ```
pub fn convert(
    source: &ModelFiles,
    destination: &Path,
    to: FileFormat,
    format: WeightFormat,
) -> Result<()> {
    convert_with_adapter(source, None, destination, to, format)
}

/// As [`convert()`], merging the low-rank adapter in a directory, where one is given, into the
/// weights that are written; errors are also those of [`Adapter::read`] and of an adapter that
/// does not fit.
pub fn convert_with_adapter(
    source: &ModelFiles,
    adapter: Option<&Path>,
    destination: &Path,
    to: FileFormat,
    format: WeightFormat,
) -> Result<()> {
    refuse_source(source, destination)?;
    let mut checkpoint = Checkpoint::open(source)?;
    let config = Opened::new(source, &checkpoint)?.config;
    if let Some(directory) = adapter {
        Adapter::read(directory)?.attach(&mut checkpoint, &config)?;
    }
    let tokenizer = exported(source, &checkpoint)?;
    let format = match format {
        WeightFormat::Auto => stored_format(&checkpoint)?,
        format => format,
    };
    match to {
        FileFormat::Gguf => {
            write_gguf(destination, &checkpoint, &config, &tokenizer.into_gguf()?, format)
        }
        FileFormat::Safetensors => {
            let parts = Directory { source, checkpoint, config, tokenizer };
            parts.write(destination, format)
        }
    }
}

/// Writing over what is being read would leave neither.
pub(super) fn refuse_source(source: &ModelFiles, destination: &Path) -> Result<()> {
    let original: Option<PathBuf> = match source {
        ModelFiles::Directory { config, .. } => config.parent().map(Path::to_owned),
        ModelFiles::Gguf { file, .. } => Some(file.clone()),
    };
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    match original.is_some_and(|original| same(&original, destination)) {
        true => Err(Error::InvalidInput(format!("{} is the source", destination.display()))),
        false => Ok(()),
    }
}

pub(super) fn exported(source: &ModelFiles, checkpoint: &Checkpoint) -> Result<Exported> {
    match source {
        ModelFiles::Directory { tokenizer: Some(file), .. }
        | ModelFiles::Gguf { tokenizer: Some(file), .. } => Exported::from_file(file),
        ModelFiles::Directory { config, .. } => {
            Err(Error::tokenizer(config.with_file_name("tokenizer.json"), "no such file"))
        }
        ModelFiles::Gguf { file, .. } => {
            let arrays = GgufArrays::read(gguf_metadata(checkpoint)?, file)?;
            Exported::from_gguf_parts(arrays.tokens, &arrays.types, &arrays.merges, file)
        }
    }
}

/// What a directory is written from.
struct Directory<'a> {
    source: &'a ModelFiles,
    checkpoint: Checkpoint,
    config: Config,
    tokenizer: Exported,
}

impl Directory<'_> {
    fn write(&self, directory: &Path, format: WeightFormat) -> Result<()> {
        std::fs::create_dir_all(directory).map_err(|error| Error::io(directory, error))?;
        let (format, name) = dtype_name(format);
        write_safetensors(&directory.join("model.safetensors"), &self.checkpoint, format)?;
        let tokenizer = directory.join("tokenizer.json");
        match self.source {
            ModelFiles::Directory { tokenizer: Some(file), .. } => {
                let bytes = read_bounded(file, crate::tokenizer::MAX_BYTES)?;
                AtomicFile::write_whole(&tokenizer, &bytes)?;
            }
            _ => write_pretty(&tokenizer, &self.tokenizer.to_json())?,
        }
        write_pretty(&directory.join("config.json"), &self.config_json(name)?)
    }

    /// The source's own `config.json` where it has one, with the type of the weights.
    fn config_json(&self, dtype: &str) -> Result<Value> {
        let mut fields = match self.source {
            ModelFiles::Directory { config, .. } => {
                let bytes = read_bounded(config, MAX_CONFIG)?;
                let fields: Result<Map<String, Value>, _> = serde_json::from_slice(&bytes);
                fields.map_err(|error| Error::format(config, error.to_string()))?
            }
            ModelFiles::Gguf { .. } => self.config.to_json(),
        };
        let key = if fields.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        fields.insert(key.to_owned(), dtype.into());
        Ok(Value::Object(fields))
    }
}
