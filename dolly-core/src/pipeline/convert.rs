//! A model in another file format, or with weights of another type.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json::{read_bounded, write_pretty};
use crate::model::{Config, dtype_name, main_format};
use crate::options::CancelToken;
use crate::pipeline::opened::{GgufArrays, Opened, gguf_metadata};
use crate::provenance::{self, FileHash, Kind, Manifest};
use crate::source;
use crate::tokenizer::Exported;
use crate::train::Adapter;
use crate::weights::{
    AtomicFile, Checkpoint, ModelFiles, Watch, WeightFormat, WriteProgress, write_gguf_watched,
    write_safetensors_watched,
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
/// [`WeightFormat::Auto`] keeps the stored types as near as the format comes. Each file appears
/// whole or not at all, `config.json` last, so that a directory is a model only once it is complete;
/// files of these names that are there are replaced. A directory's settings for transformers are
/// copied, and its manifest is the parent of the new directory's. Errors: those of reading a model, of
/// [`write_gguf`](crate::weights::write_gguf) and
/// [`write_safetensors`](crate::weights::write_safetensors), and [`Error::InvalidInput`] for a
/// destination that is (part of) the source, or a directory where a file is to be written.
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
    convert_with(source, destination, to, format, ConvertOptions::default())
}

/// What a conversion does besides converting.
#[derive(Default)]
pub struct ConvertOptions<'a> {
    /// A directory with a low-rank adapter to merge into the weights that are written.
    pub adapter: Option<&'a Path>,
    /// Stops the conversion from any thread, or from the callback, within a piece of a tensor.
    pub cancel: CancelToken,
    /// Told of each tensor that was written.
    pub on_progress: Option<&'a mut dyn FnMut(WriteProgress)>,
}

/// As [`convert()`], with an adapter merged, progress told, or a way to stop.
///
/// Errors are also those of [`Adapter::read`] and of an adapter that does not fit, and
/// [`Error::Cancelled`]: the file that was being written is then not there.
///
/// ```no_run
/// use dolly_core::source::{SourceOptions, resolve};
/// use dolly_core::{ConvertOptions, FileFormat, WeightFormat, convert_with};
/// let files = resolve("dolly-nano", &SourceOptions::from_env())?;
/// let mut report = |done: dolly_core::weights::WriteProgress| {
///     println!("{}: {} of {} weights", done.tensor, done.written, done.total);
/// };
/// let options = ConvertOptions { on_progress: Some(&mut report), ..Default::default() };
/// convert_with(&files, "nano.gguf".as_ref(), FileFormat::Gguf, WeightFormat::Auto, options)?;
/// # Ok::<(), dolly_core::Error>(())
/// ```
pub fn convert_with(
    source: &ModelFiles,
    destination: &Path,
    to: FileFormat,
    format: WeightFormat,
    options: ConvertOptions<'_>,
) -> Result<()> {
    refuse_destination(source, destination, to)?;
    let mut silent = |_: WriteProgress| ();
    let on_progress: &mut dyn FnMut(WriteProgress) = match options.on_progress {
        Some(on_progress) => on_progress,
        None => &mut silent,
    };
    let mut watch = Watch { cancel: &options.cancel, on_progress };
    let mut checkpoint = Checkpoint::open(source)?;
    let config = Opened::new(source, &checkpoint)?.config;
    if let Some(directory) = options.adapter {
        Adapter::read(directory)?.attach(&mut checkpoint, &config)?;
    }
    let tokenizer = exported(source, &checkpoint)?;
    match to {
        FileFormat::Gguf => {
            let tokenizer = tokenizer.into_gguf()?;
            write_gguf_watched(destination, &checkpoint, &config, &tokenizer, format, &mut watch)
        }
        FileFormat::Safetensors => {
            let adapter = options.adapter;
            let format = main_format(&checkpoint, &config, format)?;
            let parts = Directory { source, checkpoint, config, tokenizer, adapter };
            parts.write(destination, format, &mut watch)
        }
    }
}

/// Writing over what is being read would leave neither; a directory is not replaced by a file.
pub(super) fn refuse_destination(
    source: &ModelFiles,
    destination: &Path,
    to: FileFormat,
) -> Result<()> {
    let mut originals: Vec<PathBuf> = Vec::new();
    match source {
        ModelFiles::Directory { config, tokenizer, weights, index } => {
            originals.extend(config.parent().map(Path::to_owned));
            originals.push(config.clone());
            originals.extend(tokenizer.iter().chain(weights).chain(index).cloned());
        }
        ModelFiles::Gguf { file, tokenizer } => {
            originals.push(file.clone());
            originals.extend(tokenizer.clone());
        }
    }
    // A destination that cannot be resolved is not there yet.
    let Ok(real) = destination.canonicalize() else { return Ok(()) };
    let shown = destination.display();
    if originals.iter().any(|original| original.canonicalize().is_ok_and(|it| it == real)) {
        return Err(Error::InvalidInput(format!("{shown} is the source")));
    }
    match (to, real.is_dir()) {
        (FileFormat::Gguf, true) => Err(Error::InvalidInput(format!(
            "{shown} is a directory; a .gguf file is to be written"
        ))),
        (FileFormat::Safetensors, false) => Err(Error::InvalidInput(format!(
            "{shown} is a file; a directory of safetensors is to be written"
        ))),
        _ => Ok(()),
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
    adapter: Option<&'a Path>,
}

/// Settings of transformers that say nothing about the weights.
const SETTINGS: [&str; 3] =
    ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"];

impl Directory<'_> {
    fn write(&self, directory: &Path, format: WeightFormat, watch: &mut Watch<'_>) -> Result<()> {
        let is_new = !directory.exists();
        std::fs::create_dir_all(directory).map_err(|error| Error::io(directory, error))?;
        let (format, name) = dtype_name(format);
        let weights = directory.join("model.safetensors");
        let written = write_safetensors_watched(&weights, &self.checkpoint, format, watch);
        if written.is_err() && is_new {
            // Removes an empty directory only; the error to tell is the one that led here.
            drop(std::fs::remove_dir(directory));
        }
        written?;
        let tokenizer = directory.join("tokenizer.json");
        match self.source {
            ModelFiles::Directory { tokenizer: Some(file), .. } => {
                let bytes = read_bounded(file, crate::tokenizer::MAX_BYTES)?;
                AtomicFile::write_whole(&tokenizer, &bytes)?;
            }
            _ => write_pretty(&tokenizer, &self.tokenizer.to_json())?,
        }
        let parent = match self.source {
            ModelFiles::Directory { config, .. } => config.parent(),
            ModelFiles::Gguf { .. } => None,
        };
        for name in SETTINGS {
            let file = parent.map(|parent| source::file_in(parent, name)).transpose()?.flatten();
            if let Some(file) = file {
                let bytes = read_bounded(&file, MAX_CONFIG)?;
                AtomicFile::write_whole(&directory.join(name), &bytes)?;
            }
        }
        write_pretty(&directory.join("config.json"), &self.config_json(name)?)?;
        parent.map_or(Ok(()), |parent| self.hand_on(parent, directory, name))
    }

    /// A source with a manifest is the parent in the result's.
    fn hand_on(&self, parent: &Path, directory: &Path, dtype: &str) -> Result<()> {
        if source::file_in(parent, provenance::FILE)?.is_none() {
            return Ok(());
        }
        let name = |path: &Path| {
            path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
        };
        let mut manifest = Manifest::new(name(directory), Kind::Model);
        manifest.add_base(&name(parent), self.source)?;
        if let Some(adapter) = self.adapter {
            manifest.add_adapter(&name(adapter), adapter)?;
        }
        manifest.record.options = serde_json::json!({"converted": dtype});
        for file in ["model.safetensors", "tokenizer.json", "config.json"] {
            manifest.record.files.push(FileHash::of_file(file, &directory.join(file))?);
        }
        manifest.write(directory)
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
        // transformers reads one or the other by its version; a source may have both.
        let keys = ["dtype", "torch_dtype"];
        if !keys.iter().any(|key| fields.contains_key(*key)) {
            fields.insert(keys[1].to_owned(), dtype.into());
        }
        for key in keys {
            fields.entry(key).and_modify(|value| *value = dtype.into());
        }
        Ok(Value::Object(fields))
    }
}
