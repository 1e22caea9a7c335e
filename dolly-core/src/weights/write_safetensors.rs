//! Safetensors files, written tensor after tensor.

use std::path::Path;

use super::atomic::AtomicFile;
use super::checkpoint::Checkpoint;
use super::names::RowOrder;
use super::safetensors::MAX_HEADER;
use super::write::{Progress, TensorToWrite, Watch};
use super::{StoredType, WeightFormat};
use crate::error::{Error, Result, try_vec};

/// Writes every tensor of a checkpoint as `format`, which is `f32`, `f16` or `bf16`.
///
/// The file loads in this library and in transformers. It appears whole or not at all; one piece
/// of one tensor is in memory at a time. Errors: [`Error::InvalidOption`] for another format,
/// [`Error::InvalidInput`] for a weight beyond f16's range, and those of reading and writing.
///
/// ```no_run
/// use dolly_core::WeightFormat;
/// use dolly_core::weights::{Checkpoint, ModelFiles, write_safetensors};
///
/// let files = ModelFiles::Gguf { file: "model.gguf".into(), tokenizer: None };
/// let checkpoint = Checkpoint::open(&files)?;
/// write_safetensors("model.safetensors".as_ref(), &checkpoint, WeightFormat::F16)?;
/// # Ok::<(), dolly_core::Error>(())
/// ```
pub fn write_safetensors(path: &Path, checkpoint: &Checkpoint, format: WeightFormat) -> Result<()> {
    Watch::unwatched(|watch| write_watched(path, checkpoint, format, watch))
}

/// As [`write_safetensors`], telling `watch` of each tensor.
pub(crate) fn write_watched(
    path: &Path,
    checkpoint: &Checkpoint,
    format: WeightFormat,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let mut readers = try_vec(checkpoint.tensors().len(), "tensor readers")?;
    for tensor in checkpoint.tensors().filter(|t| t.stored != StoredType::Other) {
        readers.push(checkpoint.reader(&tensor.name)?);
    }
    let tensors: Vec<TensorToWrite<'_>> = readers
        .iter()
        .map(|r| TensorToWrite { name: &r.info().name, shape: &r.info().shape, source: r })
        .collect();
    write_tensors(path, &tensors, format, watch)
}

/// Writes tensors from any source, in the given order; see [`write_safetensors`].
pub fn write_safetensors_from(
    path: &Path,
    tensors: &[TensorToWrite<'_>],
    format: WeightFormat,
) -> Result<()> {
    Watch::unwatched(|watch| write_tensors(path, tensors, format, watch))
}

pub(super) fn write_tensors(
    path: &Path,
    tensors: &[TensorToWrite<'_>],
    format: WeightFormat,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let (stored, dtype) = match format {
        WeightFormat::F32 => (StoredType::F32, "F32"),
        WeightFormat::F16 => (StoredType::F16, "F16"),
        WeightFormat::Bf16 => (StoredType::Bf16, "BF16"),
        other => return Err(Error::option("format", other, "f32, f16 or bf16")),
    };
    let header = header(tensors, stored, dtype)?;
    let mut file = AtomicFile::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(header.as_bytes())?;
    let mut progress = Progress::new(watch, tensors.iter().map(|tensor| tensor.shape));
    for tensor in tensors {
        tensor.write(&mut file, stored, RowOrder::Stored, &mut progress)?;
    }
    file.commit()
}

/// The JSON header, padded so that the data starts at a multiple of eight.
fn header(tensors: &[TensorToWrite<'_>], stored: StoredType, dtype: &str) -> Result<String> {
    // transformers refuses files without this entry.
    let mut header = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut at = 0u64;
    let mut names = std::collections::HashSet::new();
    for tensor in tensors {
        if !names.insert(tensor.name) {
            return Err(Error::InvalidInput(format!("two tensors {:?}", tensor.name)));
        }
        let end = at.checked_add(tensor.bytes(stored)?);
        let end = end.ok_or_else(|| Error::InvalidInput("the file's size overflows".to_owned()))?;
        let entry = serde_json::json!({
            "dtype": dtype, "shape": tensor.shape, "data_offsets": [at, end],
        });
        let name = serde_json::Value::from(tensor.name);
        header.push_str(&format!(",{name}:{entry}"));
        at = end;
    }
    header.push('}');
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    if header.len() as u64 > MAX_HEADER {
        return Err(Error::InvalidInput(format!("a header of {} bytes", header.len())));
    }
    Ok(header)
}
