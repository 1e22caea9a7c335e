//! A GGUF file of Q4_K, Q5_K and Q6_K, as llama.cpp's Q4_K_M mixes them, against transformers:
//! `tests/golden/kquants`, made by `make_kquants.py`.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use dolly_core::source::{SourceOptions, resolve};
use dolly_core::weights::{Checkpoint, ModelFiles, StoredType, TensorReader};
use dolly_core::weights::{RowSource, WeightFormat};
use dolly_core::{FileFormat, GenerateOptions, Pipeline, Prompt, convert};
use support::{golden, is_about_kernels, largest_difference, on_kernels, same, tolerance};

const HIDDEN: u64 = 256;
const WIDE: u64 = 768;
const VOCAB: u64 = 72;

fn file() -> PathBuf {
    golden().join("kquants/model.gguf")
}

fn load(path: &Path, format: WeightFormat) -> Pipeline {
    support::builder(path.to_str().unwrap()).weights(format).build().unwrap()
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(&files(path)).unwrap()
}

fn files(path: &Path) -> ModelFiles {
    resolve(path.to_str().unwrap(), &SourceOptions::default()).unwrap()
}

/// The prompt and the greedy tokens after it.
fn ids() -> (Vec<u32>, Vec<u32>) {
    let text = std::fs::read_to_string(golden().join("kquants/ids.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let list = |key: &str| serde_json::from_value(value[key].clone()).unwrap();
    (list("prompt"), list("greedy"))
}

fn expected() -> Vec<f32> {
    let bytes = std::fs::read(golden().join("kquants/logits.f32")).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Root mean square of the difference as a share of the expected numbers'.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let squares: f32 = found.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum();
    (squares / expected.iter().map(|x| x * x).sum::<f32>()).sqrt()
}

fn greedy(tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens: tokens, ignore_end: true, ..GenerateOptions::greedy() }
}

/// Bytes of the vectors and the rotary table.
fn vectors() -> u64 {
    let biases = 3 * HIDDEN + HIDDEN + WIDE + HIDDEN;
    4 * (biases + 6 * HIDDEN + 64 * 16)
}

#[test]
fn widened_to_f32_the_file_is_what_transformers_computes() {
    let (prompt, expected_ids) = ids();
    let pipe = load(&file(), WeightFormat::F32);
    let difference = largest_difference(&pipe.logits(&prompt).unwrap(), &expected());
    assert!(difference <= tolerance().max(1e-4), "{difference}");
    let answer = pipe.complete(Prompt::Ids(&prompt), &greedy(32)).unwrap();
    assert_eq!(answer.token_ids, expected_ids);
}

/// Only activations are rounded, to 8 bits, and Q5_K's matrix to Q8_0: measured 0.012 of the
/// logits, with a margin of about two.
#[test]
fn stored_blocks_are_kept() {
    if !is_about_kernels("its bytes are those of the kernels' panels") {
        return;
    }
    let (prompt, _) = ids();
    let pipe = load(&file(), WeightFormat::Auto);
    assert_eq!(pipe.weight_format(), WeightFormat::Q4K);
    // Panels of sixteen columns: a head of 72 has five.
    let bits = [
        (VOCAB * HIDDEN, 144 * 8),
        (3 * HIDDEN * HIDDEN, 34 * 8 * 8),
        (HIDDEN * HIDDEN + WIDE * HIDDEN, 148 * 8),
        (HIDDEN * WIDE + 80 * HIDDEN, 210 * 8),
    ];
    let matrices: u64 = bits.iter().map(|(weights, bits)| weights * bits / 256 / 8).sum();
    assert_eq!(pipe.memory().weights, matrices + vectors());
    let found = error(&pipe.logits(&prompt).unwrap(), &expected());
    println!("as stored: {found:.2e} of the logits");
    assert!(found > 0.0 && found <= 2.5e-2, "{found}");
}

/// One row or many, one thread or two.
#[test]
fn chunks_and_threads_change_no_bit() {
    let (prompt, _) = ids();
    let of = |threads| {
        let pipe = support::builder(file().to_str().unwrap()).weights(WeightFormat::Auto);
        let pipe = pipe.threads(threads).prefix_cache(0).build().unwrap();
        let whole = pipe.logits(&prompt).unwrap();
        for length in 1..prompt.len() {
            let part = pipe.logits(&prompt[..length]).unwrap();
            assert!(alike(&part, &whole[..part.len()]), "{length}");
        }
        whole
    };
    assert!(alike(&of(1), &of(2)));
}

/// The same bits; on a device within the rounding of activations to 8 bits, which may differ between
/// products of one row and of many.
fn alike(a: &[f32], b: &[f32]) -> bool {
    match on_kernels() {
        true => same(a, b),
        false => error(a, b) <= 2e-2,
    }
}

#[test]
fn memory_is_planned_before_it_is_taken() {
    let memory = load(&file(), WeightFormat::Auto).memory();
    let kept = memory.weights;
    let within = |bytes| {
        let builder = support::builder(file().to_str().unwrap()).weights(WeightFormat::Auto);
        builder.memory_limit(bytes).build().map(|_| ())
    };
    let error = within(kept).unwrap_err().to_string();
    assert!(error.contains("as stored"), "{error}");
    // A cache has room for sixteen tokens at least, on a device for 64.
    let least = if on_kernels() { 16 } else { 64 };
    within(kept + least * memory.cache_per_token).unwrap();
}

/// The reference computes in f32 with the very weights of the file.
#[cfg(feature = "candle")]
#[test]
fn the_reference_backend_says_the_same() {
    let (prompt, expected_ids) = ids();
    let reference = support::builder(file().to_str().unwrap()).reference(true).build().unwrap();
    // Q5_K's matrix alone is rounded, to Q8_0: measured 0.007.
    let found = error(&reference.logits(&prompt).unwrap(), &expected());
    assert!(found < 1.5e-2, "{found}");
    let pipe = load(&file(), WeightFormat::Auto);
    for pipe in [&reference, &pipe] {
        let answer = pipe.complete(Prompt::Ids(&prompt), &greedy(32)).unwrap();
        assert_eq!(answer.token_ids, expected_ids);
    }
    for format in [WeightFormat::Auto, WeightFormat::Q4K, WeightFormat::Q6K] {
        let builder = support::builder(file().to_str().unwrap()).weights(format);
        let theirs = builder.reference(true).build().unwrap().logits(&prompt).unwrap();
        let found = error(&load(&file(), format).logits(&prompt).unwrap(), &theirs);
        println!("{format}: {found:.2e} from the reference");
        assert!(found <= 2e-2, "{format}: {found}");
    }
}

/// A GGUF file of a GGUF file copies what it can, bit for bit, and rounds nothing twice.
#[test]
fn conversion_copies_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("copy.gguf");
    convert(&files(&file()), &path, FileFormat::Gguf, WeightFormat::Auto).unwrap();
    let (source, copy) = (open(&file()), open(&path));
    let bytes = |reader: TensorReader<'_>| {
        let mut bytes = vec![0; reader.info().bytes as usize];
        reader.read_blocks(0, &mut bytes).unwrap();
        bytes
    };
    let mut kept = 0;
    for tensor in source.tensors() {
        let written = copy.tensor(&tensor.name).unwrap();
        match tensor.stored {
            StoredType::Q5K => assert_eq!(written.stored, StoredType::Q8_0),
            stored => assert_eq!(written.stored, stored, "{}", tensor.name),
        }
        if let StoredType::Q4K | StoredType::Q6K = tensor.stored {
            let of = |checkpoint: &Checkpoint| bytes(checkpoint.reader(&tensor.name).unwrap());
            assert_eq!(of(&source), of(&copy), "{}", tensor.name);
            kept += 1;
        }
    }
    assert_eq!(kept, 5);
    let logits = |path: &Path| load(path, WeightFormat::Auto).logits(&ids().0).unwrap();
    assert_eq!(logits(&path), logits(&file()));
}

/// Asked for by name, weights of any type are rounded, in memory as in a file: measured 0.037 and
/// 0.024.
#[test]
fn other_weights_are_rounded_when_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let (prompt, _) = ids();
    for (format, stored, bound) in
        [(WeightFormat::Q4K, StoredType::Q4K, 0.08), (WeightFormat::Q6K, StoredType::Q6K, 0.05)]
    {
        let floats = directory.path().join(format!("{format}-floats"));
        convert(&files(&file()), &floats, FileFormat::Safetensors, WeightFormat::F32).unwrap();
        let pipe = load(&floats, format);
        assert_eq!(pipe.weight_format(), format);
        let logits = pipe.logits(&prompt).unwrap();
        let found = error(&logits, &expected());
        println!("{format}: {found:.2e} of the logits");
        assert!(found <= bound, "{format}: {found}");
        let path = directory.path().join(format!("{format}.gguf"));
        convert(&files(&floats), &path, FileFormat::Gguf, format).unwrap();
        let checkpoint = open(&path);
        let of = |name: &str| checkpoint.tensor(name).unwrap().stored;
        assert_eq!(of("gpt_neox.layers.0.attention.query_key_value.weight"), stored);
        assert_eq!(of("embed_out.weight"), StoredType::Q6K);
        assert_eq!(of("gpt_neox.embed_in.weight"), StoredType::Q6K);
        for asked in [format, WeightFormat::Auto] {
            let pipe = load(&path, asked);
            assert_eq!(pipe.weight_format(), format);
            let same = pipe.logits(&prompt).unwrap();
            // A device holds the embedding as floats, which are rounded in the file alone.
            let near = if on_kernels() { same == logits } else { error(&same, &logits) <= bound };
            assert!(near, "{format} as {asked}");
        }
    }
}

/// Rows of 32 and 64: no super-blocks, so Q8_0.
#[test]
fn rows_without_super_blocks_are_held_as_q8_0() {
    let directory = support::parity_model("standard");
    let golden = &support::goldens("standard")[0].ids;
    let q8_0 = load(directory.path(), WeightFormat::Q8_0);
    for format in [WeightFormat::Q4K, WeightFormat::Q6K] {
        let pipe = load(directory.path(), format);
        assert_eq!(pipe.weight_format(), WeightFormat::Q8_0);
        assert_eq!(pipe.memory().weights, q8_0.memory().weights);
        assert_eq!(pipe.logits(golden).unwrap(), q8_0.logits(golden).unwrap());
    }
}

/// A file that ends within its blocks is refused before anything is loaded.
#[test]
fn a_file_cut_short_is_a_typed_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let bytes = std::fs::read(file()).unwrap();
    for length in [bytes.len() - 1, bytes.len() - 100_000, bytes.len() / 2] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = support::builder(path.to_str().unwrap()).build().unwrap_err();
        assert!(matches!(error.kind(), dolly_core::ErrorKind::Format), "{length}: {error}");
        assert!(error.to_string().contains("model.gguf"), "{error}");
    }
}
