//! Adapters merged into their base, written as a model of its own.

use std::path::Path;

use crate::error::{Error, Result};
use crate::model::{dtype_name, main_format};
use crate::pipeline::convert::{FileFormat, exported, refuse_destination};
use crate::pipeline::opened::Opened;
use crate::provenance::{Kind, Manifest};
use crate::train::Adapter;
use crate::train::result::{ModelToWrite, SHARD_BYTES, write_model};
use crate::weights::{Checkpoint, ModelFiles, TensorReader, TensorToWrite, WeightFormat};

/// Writes `base` with `adapter` merged in, `W + scale * B A`, as a directory of its own.
///
/// [`WeightFormat::Auto`] keeps the base's type as near as safetensors comes; the sum is formed in
/// f32 and rounded once. The directory holds all that [`write_model`] writes; its manifest names
/// both parents by `base_name` and the adapter's directory.
///
/// # Errors
/// Those of [`Adapter::read`] and [`write_model`]; [`Error::Tensor`] for an adapter that does not
/// fit the base; [`Error::InvalidInput`] for a destination that is the base or the adapter.
///
/// ```no_run
/// use dolly_core::source::{SourceOptions, resolve};
/// use dolly_core::{WeightFormat, merge_adapter};
/// let base = resolve("EleutherAI/pythia-70m", &SourceOptions::from_env())?;
/// let (adapter, out) = ("my-adapter".as_ref(), "merged".as_ref());
/// merge_adapter("EleutherAI/pythia-70m", &base, adapter, out, WeightFormat::Auto)?;
/// # Ok::<(), dolly_core::Error>(())
/// ```
pub fn merge_adapter(
    base_name: &str,
    base: &ModelFiles,
    adapter: &Path,
    directory: &Path,
    format: WeightFormat,
) -> Result<()> {
    refuse_destination(base, directory, FileFormat::Safetensors)?;
    if same(adapter, directory) {
        return Err(Error::InvalidInput(format!("{} is the adapter", directory.display())));
    }
    let mut checkpoint = Checkpoint::open(base)?;
    let config = Opened::new(base, &checkpoint)?.config;
    // As safetensors can have it: what was quantized is stored as the nearest plain type.
    let format = dtype_name(main_format(&checkpoint, &config, format)?).0;
    let manifest = manifest(base_name, base, adapter, directory)?;
    let tokenizer = tokenizer_json(base, &checkpoint)?;
    Adapter::read(adapter)?.attach(&mut checkpoint, &config)?;
    let names: Vec<String> = config.tensors()?.into_iter().map(|spec| spec.name).collect();
    let readers = names.iter().map(|name| checkpoint.reader(name));
    let readers: Vec<TensorReader<'_>> = readers.collect::<Result<_>>()?;
    let tensors: Vec<TensorToWrite<'_>> = readers
        .iter()
        .map(|r| TensorToWrite { name: &r.info().name, shape: &r.info().shape, source: r })
        .collect();
    let (config, tensors, manifest) = (&config, &tensors[..], &manifest);
    let model = ModelToWrite {
        config,
        tensors,
        format,
        tokenizer: &tokenizer,
        manifest,
        shard_bytes: SHARD_BYTES,
    };
    write_model(directory, &model)
}

fn same(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

fn manifest(
    base_name: &str,
    base: &ModelFiles,
    adapter: &Path,
    directory: &Path,
) -> Result<Manifest> {
    let file_name = |path: &Path| {
        path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    };
    let mut manifest = Manifest::new(file_name(directory), Kind::Model);
    manifest.add_base(base_name, base)?;
    manifest.add_adapter(&file_name(adapter), adapter)?;
    manifest.record.options = serde_json::json!({"merged": true});
    Ok(manifest)
}

/// The base's `tokenizer.json` as it is, or the one that its GGUF metadata make.
pub(crate) fn tokenizer_json(base: &ModelFiles, checkpoint: &Checkpoint) -> Result<Vec<u8>> {
    match base {
        ModelFiles::Directory { tokenizer: Some(file), .. }
        | ModelFiles::Gguf { tokenizer: Some(file), .. } => {
            crate::json::read_bounded(file, crate::tokenizer::MAX_BYTES)
        }
        _ => {
            let json = exported(base, checkpoint)?.to_json();
            serde_json::to_vec(&json).map_err(|error| Error::Internal(error.to_string()))
        }
    }
}
