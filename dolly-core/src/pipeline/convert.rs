//! A model in another file format, or with weights of another type.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::model::Config;
use crate::options::CancelToken;
use crate::pipeline::builder::stored_format;
use crate::pipeline::opened::{GgufArrays, Opened, gguf_metadata};
use crate::tokenizer::Exported;
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
/// [`WeightFormat::Auto`] keeps the stored type as near as the format comes. Each file appears
/// whole or not at all, `config.json` last, so that a directory is a model only once it is complete;
/// files of these names that are there are replaced. Errors: those of reading a model, of
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
    convert_with(source, destination, to, format, &CancelToken::new(), &mut |_| ())
}

/// As [`convert()`], telling `on_progress` of each tensor that was written.
///
/// `cancel` stops it from any thread, or from the callback, within a piece of a tensor:
/// [`Error::Cancelled`], and the file that was being written is not there.
///
/// ```no_run
/// use dolly_core::source::{SourceOptions, resolve};
/// use dolly_core::{CancelToken, FileFormat, WeightFormat, convert_with};
/// let files = resolve("dolly-nano", &SourceOptions::from_env())?;
/// let (to, format) = (FileFormat::Gguf, WeightFormat::Auto);
/// convert_with(&files, "nano.gguf".as_ref(), to, format, &CancelToken::new(), &mut |done| {
///     println!("{}: {} of {} weights", done.tensor, done.written, done.total);
/// })?;
/// # Ok::<(), dolly_core::Error>(())
/// ```
pub fn convert_with(
    source: &ModelFiles,
    destination: &Path,
    to: FileFormat,
    format: WeightFormat,
    cancel: &CancelToken,
    on_progress: &mut dyn FnMut(WriteProgress),
) -> Result<()> {
    refuse_destination(source, destination, to)?;
    let mut watch = Watch { cancel, on_progress };
    let checkpoint = Checkpoint::open(source)?;
    let config = Opened::new(source, &checkpoint)?.config;
    let tokenizer = exported(source, &checkpoint)?;
    let format = match format {
        WeightFormat::Auto => stored_format(&checkpoint)?,
        format => format,
    };
    match to {
        FileFormat::Gguf => {
            let tokenizer = tokenizer.into_gguf()?;
            write_gguf_watched(destination, &checkpoint, &config, &tokenizer, format, &mut watch)
        }
        FileFormat::Safetensors => {
            let parts = Directory { source, checkpoint, config, tokenizer };
            parts.write(destination, format, &mut watch)
        }
    }
}

/// Writing over what is being read would leave neither; a directory is not replaced by a file.
fn refuse_destination(source: &ModelFiles, destination: &Path, to: FileFormat) -> Result<()> {
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

fn exported(source: &ModelFiles, checkpoint: &Checkpoint) -> Result<Exported> {
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
    fn write(&self, directory: &Path, format: WeightFormat, watch: &mut Watch<'_>) -> Result<()> {
        let is_new = !directory.exists();
        std::fs::create_dir_all(directory).map_err(|error| Error::io(directory, error))?;
        let (format, name) = match format {
            WeightFormat::F32 => (format, "float32"),
            WeightFormat::Bf16 => (format, "bfloat16"),
            // Safetensors has no blocks: what was quantized is stored as the nearest plain type.
            _ => (WeightFormat::F16, "float16"),
        };
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
                whole(&tokenizer, &crate::json::read_bounded(file, crate::tokenizer::MAX_BYTES)?)?;
            }
            _ => write_json(&tokenizer, &self.tokenizer.to_json())?,
        }
        write_json(&directory.join("config.json"), &self.config_json(name)?)
    }

    /// The source's own `config.json` where it has one, with the type of the weights.
    fn config_json(&self, dtype: &str) -> Result<Value> {
        let mut fields = match self.source {
            ModelFiles::Directory { config, .. } => {
                let bytes = crate::json::read_bounded(config, MAX_CONFIG)?;
                let fields: Result<Map<String, Value>, _> = serde_json::from_slice(&bytes);
                fields.map_err(|error| Error::format(config, error.to_string()))?
            }
            ModelFiles::Gguf { .. } => fields(&self.config),
        };
        let key = if fields.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        fields.insert(key.to_owned(), dtype.into());
        Ok(Value::Object(fields))
    }
}

/// A `config.json` by the names of transformers' `GPTNeoXConfig`.
fn fields(config: &Config) -> Map<String, Value> {
    let mut fields = json!({
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": config.hidden_act.name(),
        "layer_norm_eps": shortest(config.layer_norm_eps),
        "rotary_pct": rotary_pct(config.rotary_dims, config.head_dim()),
        "rotary_emb_base": shortest(config.rotary_base),
        "max_position_embeddings": config.max_position_embeddings,
        "use_parallel_residual": config.use_parallel_residual,
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids,
    });
    if config.rotary_scale != 1.0 {
        let factor = shortest(config.rotary_scale);
        fields["rope_scaling"] = json!({"type": "linear", "rope_type": "linear", "factor": factor});
    }
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// A share of `head_dim` which gives `dims` when it is multiplied and cut off, as readers do.
fn rotary_pct(dims: usize, head_dim: usize) -> f64 {
    let share = dims as f64 / head_dim as f64;
    match (head_dim as f64 * share) as usize == dims {
        true => share,
        false => (dims as f64 + 0.5) / head_dim as f64,
    }
}

/// Through the shortest decimal, so that 1e-5 in f32 is written as 1e-5.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|e| Error::Internal(e.to_string()))?;
    whole(path, &text)
}

fn whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.commit()
}
