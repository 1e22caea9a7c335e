//! Shared by the integration tests: golden files, small models made on the spot, and the device that
//! `DOLLY_TEST_DEVICE` names: `cpu` (the kernels; unless set), `candle` (what a GPU runs, on the CPU),
//! `cuda`, `cuda:N`, or `auto`.
//!
//! On a device other than the kernels models are held in f32 unless a test says otherwise, numbers
//! count as equal within [`tolerance`], and what is about the kernels themselves is left out.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use dolly_core::{CacheFormat, Device, Pipeline, PipelineBuilder, WeightFormat};
use safetensors::SafeTensors;

/// The device where `DOLLY_TEST_DEVICE` says nothing.
pub const DEFAULT_DEVICE: &str = "cpu";

/// Files that the program itself has, unpacked; none.
pub fn unpacked() -> Option<PathBuf> {
    None
}

fn device() -> String {
    // Of the program, which may have another default than this file.
    std::env::var("DOLLY_TEST_DEVICE").unwrap_or_else(|_| crate::support::DEFAULT_DEVICE.to_owned())
}

/// Whether the CPU's kernels are tested: by name, or because `auto` finds no GPU.
pub fn on_kernels() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let found = || FOUND.get_or_init(|| nano(Device::Cuda(0)).build().is_ok());
    match device().as_str() {
        "auto" => !found(),
        name => name == "cpu",
    }
}

fn nano(device: Device) -> PipelineBuilder {
    Pipeline::builder("dolly-nano").bundled_dir(root().join("models")).device(device)
}

/// Whether the kernels are tested; a test that is about them alone says why, and ends if not.
pub fn is_about_kernels(reason: &str) -> bool {
    if !on_kernels() {
        println!("left out on {}: {reason}", device());
    }
    on_kernels()
}

/// Whether the kernels round activations to bf16 where weights are: this CPU multiplies bf16, and no
/// other set of instructions is asked for.
pub fn rounds_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has && std::env::var("DOLLY_FORCE_ISA")
        .map_or(true, |name| name.is_empty() || name.eq_ignore_ascii_case("avx512bf16"))
}

/// Largest difference of numbers of one model in f32 that count as equal: none on the kernels.
pub fn tolerance() -> f32 {
    if on_kernels() { 0.0 } else { 1e-3 }
}

/// A model on the device under test.
pub fn builder(id: impl Into<String>) -> PipelineBuilder {
    let builder = Pipeline::builder(id).bundled_dir(root().join("models"));
    match device().as_str() {
        "cpu" => builder.device(Device::Cpu),
        #[cfg(feature = "candle")]
        "candle" => builder.weights(WeightFormat::F32).as_on_gpu(true),
        "auto" if on_kernels() => builder.device(Device::Auto),
        name => builder.weights(WeightFormat::F32).device(name.parse().unwrap()),
    }
}

/// Whether two lists of numbers are equal: bit for bit on the kernels, else within the tolerance.
pub fn same(a: &[f32], b: &[f32]) -> bool {
    let near = |(a, b): (&f32, &f32)| {
        a.to_bits() == b.to_bits() || (!on_kernels() && (a - b).abs() <= tolerance())
    };
    a.len() == b.len() && a.iter().zip(b).all(near)
}

/// The repository, or what of it the program has itself.
fn root() -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    crate::support::unpacked().unwrap_or(repository)
}

/// The repository's `tests/golden`.
pub fn golden() -> PathBuf {
    root().join("tests/golden")
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
    let builder = builder(id).kv_cache(CacheFormat::F32).reference(reference);
    let builder = match rounds_bf16() && name.ends_with("bf16") {
        true => builder.weights(WeightFormat::F32),
        false => builder,
    };
    builder.build().unwrap()
}

pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
