//! The checkpoint's tensors: safetensors files of f32.

use std::path::Path;

use super::disk::HashedFile;
use crate::error::{Error, Result, try_vec};
use crate::weights::{Checkpoint, ModelFiles, RowSource, StoredType};

/// Writes tensors of the given names, shapes and values, in this order.
pub(super) fn write(file: &mut HashedFile, tensors: &[(String, &[usize], &[f32])]) -> Result<()> {
    let mut header = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut at = 0u64;
    for (name, shape, values) in tensors {
        let end = at.saturating_add(4 * values.len() as u64);
        let name = serde_json::Value::from(name.as_str());
        let entry = serde_json::json!({
            "dtype": "F32", "shape": shape, "data_offsets": [at, end],
        });
        header.push_str(&format!(",{name}:{entry}"));
        at = end;
    }
    header.push('}');
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(header.as_bytes())?;
    tensors.iter().try_for_each(|(_, _, values)| file.floats(values))
}

/// Fills each target from the tensor of its name; the file must hold these and no others.
pub(super) fn read(path: &Path, targets: &mut [(String, &[usize], &mut [f32])]) -> Result<()> {
    let mut weights = try_vec(1, "a path")?;
    weights.push(path.to_owned());
    let files =
        ModelFiles::Directory { config: path.to_owned(), tokenizer: None, weights, index: None };
    let checkpoint = Checkpoint::open(&files)?;
    if checkpoint.tensors().len() != targets.len() {
        let (found, wanted) = (checkpoint.tensors().len(), targets.len());
        return Err(Error::format(path, format!("{found} tensors; the model trains {wanted}")));
    }
    for (name, shape, values) in targets {
        let info = checkpoint.tensor(name)?;
        if info.shape != *shape || info.stored != StoredType::F32 {
            let reason = format!(
                "{:?} of shape {:?}; the model trains F32 of shape {shape:?}",
                info.stored, info.shape
            );
            return Err(Error::tensor(path, name.as_str(), reason));
        }
        checkpoint.reader(name)?.read_rows(0, values)?;
    }
    Ok(())
}
