//! A model in another file format, or with weights of another type.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::model::{Activation, Config};
use crate::pipeline::builder::stored_format;
use crate::pipeline::opened::{GgufArrays, Opened, gguf_metadata};
use crate::tokenizer::Exported;
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
    refuse_source(source, destination)?;
    let checkpoint = Checkpoint::open(source)?;
    let config = Opened::new(source, &checkpoint)?.config;
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
fn refuse_source(source: &ModelFiles, destination: &Path) -> Result<()> {
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
    fn write(&self, directory: &Path, format: WeightFormat) -> Result<()> {
        std::fs::create_dir_all(directory).map_err(|error| Error::io(directory, error))?;
        let (format, name) = match format {
            WeightFormat::F32 => (format, "float32"),
            WeightFormat::Bf16 => (format, "bfloat16"),
            // Safetensors has no blocks: what was quantized is stored as the nearest plain type.
            _ => (WeightFormat::F16, "float16"),
        };
        write_safetensors(&directory.join("model.safetensors"), &self.checkpoint, format)?;
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
    let activation = match config.hidden_act {
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_new",
        Activation::QuickGelu => "quick_gelu",
        Activation::Relu => "relu",
        Activation::Silu => "silu",
    };
    let mut fields = json!({
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": activation,
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
