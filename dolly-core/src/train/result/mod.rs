//! Finished models and adapters as directories that this library, transformers and PEFT load.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result, try_vec};
use crate::json::write_pretty;
use crate::model::{Config, dtype_name};
use crate::options::GenerateOptions;
use crate::prompt::DollyPrompt;
use crate::provenance::{FileHash, Kind, Manifest};
use crate::tokenizer::Tokenizer;
use crate::train::lora::{LoraConfig, write_adapter};
use crate::weights::{
    AtomicFile, StoredType, TensorToWrite, WeightFormat, stored_type, write_safetensors_from,
};

mod card;

/// Bytes of weights in one file, as transformers cuts them.
pub const SHARD_BYTES: u64 = 5_000_000_000;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";
/// Files beside the weights and `config.json`.
const SETTINGS: [&str; 4] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
];

/// A finished model, to be written.
#[derive(Clone)]
pub struct ModelToWrite<'a> {
    /// Its hyper-parameters.
    pub config: &'a Config,
    /// Every tensor that [`Config::tensors`] names, in any order.
    pub tensors: &'a [TensorToWrite<'a>],
    /// Type of the weights: `F32`, `F16` or `Bf16`.
    pub format: WeightFormat,
    /// The bytes of its `tokenizer.json`, written as they are.
    pub tokenizer: &'a [u8],
    /// Where it came from; the hashes of its files are filled in.
    pub manifest: &'a Manifest,
    /// Most bytes of weights in one file, [`SHARD_BYTES`] unless there is a reason.
    pub shard_bytes: u64,
}

/// A finished adapter, to be written.
#[derive(Clone)]
pub struct AdapterToWrite<'a> {
    /// Rank, alpha, dropout and targets.
    pub config: &'a LoraConfig,
    /// What users load it onto, a hub id or a path.
    pub base: &'a str,
    /// A and B of every layer, by PEFT's names.
    pub tensors: &'a [TensorToWrite<'a>],
    /// The bytes of the base's `tokenizer.json`, where they are to stand beside it.
    pub tokenizer: Option<&'a [u8]>,
    /// Where it came from; the hashes of its files are filled in.
    pub manifest: &'a Manifest,
}

/// Writes a model as a directory in the Hugging Face layout, with a model card and its manifest.
///
/// `directory` is made where it is not there. Weights go to `model.safetensors`, or to numbered
/// files and an index beyond `shard_bytes`. Each file appears whole or not at all, `config.json`
/// and the manifest last; a model that was there before is replaced.
///
/// # Errors
/// [`Error::InvalidInput`] for tensors that are not those of the configuration or a weight that the
/// type cannot hold, [`Error::Tokenizer`] for a tokenizer that this library does not read,
/// [`Error::InvalidOption`] for a format of blocks, and [`Error::Io`].
pub fn write_model(directory: &Path, model: &ModelToWrite<'_>) -> Result<()> {
    let order = check_tensors(model)?;
    let tokenizer = Tokenizer::from_bytes(model.tokenizer, &directory.join("tokenizer.json"))?;
    let (format, dtype) = match model.format {
        WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16 => dtype_name(model.format),
        other => return Err(Error::option("format", other, "f32, f16 or bf16")),
    };
    make_directory(directory)?;
    let mut files = write_weights(directory, &order, format, model.shard_bytes)?;
    let config = model.config;
    AtomicFile::write_whole(&directory.join("tokenizer.json"), model.tokenizer)?;
    let special = special_tokens(config, &tokenizer);
    let mut settings = special.clone();
    settings.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    settings.insert("model_max_length".into(), config.max_position_embeddings.into());
    settings.insert("clean_up_tokenization_spaces".into(), false.into());
    write_pretty(&directory.join("tokenizer_config.json"), &settings)?;
    write_pretty(&directory.join("special_tokens_map.json"), &special)?;
    let generation = generation_config(config, &tokenizer);
    write_pretty(&directory.join("generation_config.json"), &generation)?;
    write_card(directory, model.manifest, None)?;
    let mut fields = config.to_json();
    fields.insert("dtype".into(), dtype.into());
    fields.insert("torch_dtype".into(), dtype.into());
    fields.insert("use_cache".into(), true.into());
    write_pretty(&directory.join(CONFIG), &fields)?;
    files.push(CONFIG.to_owned());
    files.extend(SETTINGS.map(str::to_owned));
    write_manifest(directory, model.manifest, Kind::Model, &files)
}

/// Writes an adapter as a directory in PEFT's layout, with a card and its manifest.
///
/// # Errors
/// Those of [`write_adapter`], and [`Error::Io`].
pub fn write_adapter_result(directory: &Path, adapter: &AdapterToWrite<'_>) -> Result<()> {
    let AdapterToWrite { config, base, tensors, tokenizer, manifest } = adapter;
    write_adapter(directory, config, Some(base), tensors)?;
    let mut files = vec!["adapter_config.json".to_owned(), "adapter_model.safetensors".to_owned()];
    if let Some(bytes) = tokenizer {
        AtomicFile::write_whole(&directory.join("tokenizer.json"), bytes)?;
        files.push("tokenizer.json".to_owned());
    }
    write_card(directory, manifest, Some(base))?;
    write_manifest(directory, manifest, Kind::Adapter, &files)
}

fn make_directory(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).map_err(|error| Error::io(directory, error))
}

/// Files that are not listed (the card) may be edited without a warning.
fn write_manifest(
    directory: &Path,
    manifest: &Manifest,
    kind: Kind,
    files: &[String],
) -> Result<()> {
    let mut manifest = manifest.clone();
    manifest.record.kind = kind;
    let one = |name: &String| FileHash::of_file(name, &directory.join(name));
    manifest.record.files = files.iter().map(one).collect::<Result<_>>()?;
    manifest.write(directory)
}

fn write_card(directory: &Path, manifest: &Manifest, adapter_of: Option<&str>) -> Result<()> {
    let text = card::card(&manifest.record, adapter_of);
    AtomicFile::write_whole(&directory.join("README.md"), text.as_bytes())
}

/// The tensors in the order of the configuration, which must be all there are.
fn check_tensors<'a>(model: &ModelToWrite<'a>) -> Result<Vec<TensorToWrite<'a>>> {
    let specs = model.config.tensors()?;
    let mut order = try_vec(specs.len(), "the list of tensors")?;
    for spec in &specs {
        let Some(tensor) = model.tensors.iter().find(|tensor| tensor.name == spec.name) else {
            return Err(Error::InvalidInput(format!("tensor {:?} is missing", spec.name)));
        };
        if tensor.shape != spec.shape {
            return Err(Error::InvalidInput(format!(
                "tensor {:?} has shape {:?}; the configuration says {:?}",
                spec.name, tensor.shape, spec.shape
            )));
        }
        order.push(*tensor);
    }
    match model.tensors.iter().find(|tensor| !specs.iter().any(|spec| spec.name == tensor.name)) {
        Some(tensor) => {
            let reason = format!("tensor {:?} is not one of the configuration's", tensor.name);
            Err(Error::InvalidInput(reason))
        }
        None => Ok(order),
    }
}

/// Writes the weights and removes what was left of another cut; gives the names of the files.
fn write_weights(
    directory: &Path,
    tensors: &[TensorToWrite<'_>],
    format: WeightFormat,
    shard_bytes: u64,
) -> Result<Vec<String>> {
    let shards = cut(tensors, format, shard_bytes)?;
    if let [all] = &shards[..] {
        write_safetensors_from(&directory.join(SINGLE), all, format)?;
        remove_stale(directory, &[SINGLE.to_owned()])?;
        return Ok(vec![SINGLE.to_owned()]);
    }
    // Until the last file is there, the directory must not look like a model: old and new shards
    // have the same names.
    remove(&directory.join(CONFIG))?;
    remove(&directory.join(SINGLE))?;
    let (mut names, mut map, mut total) = (Vec::new(), Map::new(), 0u64);
    for (number, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        write_safetensors_from(&directory.join(&name), shard, format)?;
        for tensor in shard {
            map.insert(tensor.name.to_owned(), name.clone().into());
            total = total.saturating_add(bytes(tensor, format)?);
        }
        names.push(name);
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    write_pretty(&directory.join(INDEX), &index)?;
    names.push(INDEX.to_owned());
    remove_stale(directory, &names)?;
    Ok(names)
}

fn bytes(tensor: &TensorToWrite<'_>, format: WeightFormat) -> Result<u64> {
    tensor.bytes(stored_type(format).unwrap_or(StoredType::F32))
}

/// Runs of tensors of at most `limit` bytes, at least one tensor each.
fn cut<'a>(
    tensors: &[TensorToWrite<'a>],
    format: WeightFormat,
    limit: u64,
) -> Result<Vec<Vec<TensorToWrite<'a>>>> {
    let (mut shards, mut held) = (vec![Vec::new()], 0u64);
    for tensor in tensors {
        let bytes = bytes(tensor, format)?;
        if held > 0 && held.saturating_add(bytes) > limit {
            shards.push(Vec::new());
            held = 0;
        }
        held = held.saturating_add(bytes);
        if let Some(shard) = shards.last_mut() {
            shard.push(*tensor);
        }
    }
    Ok(shards)
}

/// Removes weight files of the Hugging Face layout that are not among `names`: a reader could
/// prefer them.
fn remove_stale(directory: &Path, names: &[String]) -> Result<()> {
    let io = |error| Error::io(directory, error);
    for entry in std::fs::read_dir(directory).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let shard = name.starts_with("model-") && name.ends_with(".safetensors");
        let weights = shard || [SINGLE, INDEX].contains(&name);
        if weights && !names.iter().any(|kept| kept == name) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

/// The tokens that play a part, as transformers names the parts.
fn special_tokens(config: &Config, tokenizer: &Tokenizer) -> Map<String, Value> {
    let special = |id: Option<u32>| {
        let found = tokenizer.special_tokens().find(|(other, _)| Some(*other) == id);
        found.map(|(_, text)| Value::from(text))
    };
    let eos = special(config.eos_token_ids.first().copied());
    let padding = tokenizer.id_of("<|padding|>");
    let prompt = DollyPrompt::new(tokenizer);
    let framing = [prompt.end_id(), prompt.instruction_id(), prompt.response_id()];
    let framing: Vec<Value> = framing.into_iter().filter_map(special).collect();
    let parts = [
        ("bos_token", special(config.bos_token_id)),
        ("eos_token", eos.clone()),
        ("unk_token", eos.clone()),
        ("pad_token", special(padding).or(eos)),
        ("additional_special_tokens", (!framing.is_empty()).then_some(framing.into())),
    ];
    parts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// Dolly's defaults by transformers' names; generation ends at Dolly's own end as well.
fn generation_config(config: &Config, tokenizer: &Tokenizer) -> Value {
    let prompt = DollyPrompt::new(tokenizer);
    let mut ends = config.eos_token_ids.clone();
    ends.extend(prompt.end_id().filter(|end| !config.eos_token_ids.contains(end)));
    let padding = tokenizer.id_of("<|padding|>").or(ends.first().copied());
    let options = GenerateOptions::default();
    json!({
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends,
        "pad_token_id": padding,
        "do_sample": options.do_sample,
        "top_p": crate::json::shortest(options.top_p),
        "top_k": options.top_k,
        "max_new_tokens": options.max_new_tokens,
    })
}
