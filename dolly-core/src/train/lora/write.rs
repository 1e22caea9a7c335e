//! Adapters written as PEFT reads them.

use std::path::Path;

use serde_json::json;

use super::{LoraConfig, PREFIX};
use crate::error::{Error, Result};
use crate::json::{shortest, write_pretty};
use crate::weights::{TensorToWrite, WeightFormat, write_safetensors_from};

/// Writes `adapter_model.safetensors` (f32) and `adapter_config.json` to `dir`, which is made.
///
/// `tensors` are named as PEFT names them, `base_model.model.LAYER.lora_A.weight` `(rank, inputs)`
/// and `.lora_B.weight` `(outputs, rank)`, all of the configuration's rank. `base` is what users
/// load the adapter onto. Each file appears whole or not at all, the configuration last.
///
/// # Errors
/// [`Error::InvalidInput`] for other names or ranks, [`Error::InvalidOption`] for a configuration
/// out of range, and [`Error::Io`].
pub fn write_adapter(
    dir: &Path,
    config: &LoraConfig,
    base: Option<&str>,
    tensors: &[TensorToWrite<'_>],
) -> Result<()> {
    config.validate()?;
    tensors.iter().try_for_each(|tensor| check(config, tensor))?;
    std::fs::create_dir_all(dir).map_err(|error| Error::io(dir, error))?;
    let weights = dir.join("adapter_model.safetensors");
    write_safetensors_from(&weights, tensors, WeightFormat::F32)?;
    write_pretty(&dir.join("adapter_config.json"), &fields(config, base))
}

fn check(config: &LoraConfig, tensor: &TensorToWrite<'_>) -> Result<()> {
    let name = tensor.name.strip_prefix(PREFIX);
    let rank = match (tensor.shape, name) {
        ([rank, _], Some(name)) if name.ends_with(".lora_A.weight") => Some(*rank),
        ([_, rank], Some(name)) if name.ends_with(".lora_B.weight") => Some(*rank),
        _ => None,
    };
    match rank == Some(config.rank) {
        true => Ok(()),
        false => Err(Error::InvalidInput(format!(
            "tensor {:?} of shape {:?} is no half of an adapter of rank {}",
            tensor.name, tensor.shape, config.rank
        ))),
    }
}

/// The fields PEFT has had since its first versions; it fills in newer ones.
fn fields(config: &LoraConfig, base: Option<&str>) -> serde_json::Value {
    let mut targets = config.targets.clone();
    targets.sort();
    json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        // Through the shortest decimal: 0.1 in f32 is written as 0.1.
        "lora_alpha": shortest(config.alpha),
        "lora_dropout": shortest(config.dropout),
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": config.rank,
        "rank_pattern": {},
        "revision": null,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_rslora": false,
    })
}
