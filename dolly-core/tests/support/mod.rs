//! Shared by the integration tests: golden files, and small models made on the spot.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use dolly_core::{CacheFormat, Pipeline};
use safetensors::SafeTensors;

/// The repository's `tests/golden`.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

/// The names of all golden configurations, sorted.
pub fn parity_names() -> Vec<String> {
    let entries = std::fs::read_dir(golden().join("parity")).unwrap();
    let directories = entries.flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> =
        directories.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 10, "only {} golden configurations", names.len());
    names
}

/// A byte-level BPE of single characters, few enough for the golden models' vocabularies.
pub fn tiny_tokenizer() -> String {
    let characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:!?#'ĠĊ-";
    let words =
        characters.chars().enumerate().map(|(index, c)| (c.to_string(), (index + 1).into()));
    let mut vocab: serde_json::Map<String, serde_json::Value> = words.collect();
    vocab.insert("<|endoftext|>".to_owned(), 0.into());
    let byte_level = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
    });
    serde_json::json!({
        "version": "1.0",
        "added_tokens": [{
            "id": 0, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true
        }],
        "normalizer": { "type": "NFC" },
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] }
    })
    .to_string()
}

/// A directory with the files of golden configuration `name` and a tokenizer.
pub fn parity_model(name: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden().join("parity").join(name)).unwrap().flatten() {
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    std::fs::write(directory.path().join("tokenizer.json"), tiny_tokenizer()).unwrap();
    directory
}

/// The golden values of one prompt.
pub struct Golden {
    pub ids: Vec<u32>,
    /// `(tokens, vocab)`.
    pub logits: Vec<f32>,
    pub greedy: Vec<u32>,
}

pub fn goldens(name: &str) -> Vec<Golden> {
    goldens_in(&golden().join("parity").join(name))
}

/// The golden values in a directory; not all have greedy continuations.
pub fn goldens_in(directory: &Path) -> Vec<Golden> {
    let bytes = std::fs::read(directory.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = |name: &str| -> Vec<u32> {
        let data = file.tensor(name).map_or(Vec::new(), |tensor| tensor.data().to_vec());
        data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
    };
    let floats = |name: &str| -> Vec<f32> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let count = file.names().iter().filter(|name| name.starts_with("input_ids")).count();
    (0..count)
        .map(|n| Golden {
            ids: ids(&format!("input_ids.{n}")),
            logits: floats(&format!("logits.{n}")),
            greedy: ids(&format!("greedy.{n}")),
        })
        .collect()
}

/// Loads golden configuration `name`; on the candle reference when asked.
/// Keys and values in f32, as the golden files have them.
pub fn parity_pipeline(name: &str, reference: bool) -> Pipeline {
    let directory = parity_model(name);
    let id = directory.path().to_str().unwrap().to_owned();
    Pipeline::builder(id).kv_cache(CacheFormat::F32).reference(reference).build().unwrap()
}

pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
