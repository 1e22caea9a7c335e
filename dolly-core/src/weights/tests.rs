//! The readers against files and numbers made by PyTorch, safetensors and gguf.
//!
//! `tests/golden/make_weights.py` made the golden files and says how.

use std::path::{Path, PathBuf};

use half::{bf16, f16};

use super::*;
use crate::error::{Error, ErrorKind};

mod build;
mod malformed;
mod mutation;
mod quantize_k;
mod writing;

/// A golden file.
pub(super) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/weights").join(name)
}

pub(super) fn directory(weights: &[PathBuf], index: Option<PathBuf>) -> ModelFiles {
    let config = weights.first().map_or("config.json".into(), |w| w.with_file_name("config.json"));
    ModelFiles::Directory { config, tokenizer: None, weights: weights.to_vec(), index }
}

/// Opens a file as the format its extension names.
pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    if path.extension().is_some_and(|e| e == "gguf") {
        return Checkpoint::open(&ModelFiles::Gguf { file: path.to_owned(), tokenizer: None });
    }
    Checkpoint::open(&directory(&[path.to_owned()], None))
}

fn floats(name: &str) -> Vec<f32> {
    let bytes = std::fs::read(golden(name)).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// All weights of a checkpoint, tensors in the order of their names.
fn all(checkpoint: &Checkpoint) -> Vec<f32> {
    let mut values = Vec::new();
    for tensor in checkpoint.tensors() {
        let count = tensor.elements() as usize;
        values.extend(checkpoint.read_vec(&tensor.name, count).unwrap());
    }
    values
}

#[track_caller]
fn assert_bits(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "value {at}: {a} and {b}");
    }
}

#[test]
fn safetensors_gives_the_values_of_pytorch_and_drops_buffers() {
    let checkpoint = open(&golden("model.safetensors")).unwrap();
    assert_bits(&all(&checkpoint), &floats("expected.f32"));
    assert!(!checkpoint.contains("gpt_neox.layers.0.attention.bias"));
    assert!(!checkpoint.contains("gpt_neox.layers.0.attention.rotary_emb.inv_freq"));
    let qkv = checkpoint.tensor("gpt_neox.layers.0.attention.query_key_value.weight").unwrap();
    assert_eq!((qkv.stored, &qkv.shape[..], qkv.bytes), (StoredType::F32, &[96, 32][..], 12288));
    assert_eq!(checkpoint.file_of(qkv), golden("model.safetensors"));
}

#[test]
fn bare_model_names_get_their_prefix_and_bf16_its_value() {
    let checkpoint = open(&golden("bf16.safetensors")).unwrap();
    let expected: Vec<f32> =
        floats("expected.f32").iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    assert_bits(&all(&checkpoint), &expected);
    assert!(checkpoint.contains("gpt_neox.embed_in.weight"));
}

#[test]
fn shards_give_the_same_values_as_one_file() {
    let shard = |n| golden(&format!("sharded/model-0000{n}-of-00002.safetensors"));
    let index = Some(golden("sharded/model.safetensors.index.json"));
    let files = directory(&[shard(1), shard(2)], index.clone());
    assert_bits(&all(&Checkpoint::open(&files).unwrap()), &floats("expected.f32"));

    let error = Checkpoint::open(&directory(&[shard(1)], index)).unwrap_err().to_string();
    assert!(error.contains("is not among the weight files"), "{error}");
    let twice = Checkpoint::open(&directory(&[shard(1), shard(1)], None)).unwrap_err();
    assert!(twice.to_string().contains("is also in"), "{twice}");
}

#[test]
fn torch_file_gives_f16_values_and_tied_weights() {
    let checkpoint = open(&golden("pytorch_model.bin")).unwrap();
    let reference = open(&golden("model.safetensors")).unwrap();
    assert_eq!(checkpoint.tensors().len(), reference.tensors().len());
    for tensor in reference.tensors() {
        let source = match tensor.name.as_str() {
            "embed_out.weight" => "gpt_neox.embed_in.weight",
            name => name,
        };
        let count = tensor.elements() as usize;
        let expected: Vec<f32> = reference
            .read_vec(source, count)
            .unwrap()
            .iter()
            .map(|&x| f16::from_f32(x).to_f32())
            .collect();
        assert_bits(&checkpoint.read_vec(&tensor.name, count).unwrap(), &expected);
    }
    let offset = |name| checkpoint.tensor(name).unwrap().offset;
    assert_eq!(offset("embed_out.weight"), offset("gpt_neox.embed_in.weight"));
}

#[test]
fn torch_parameters_views_and_other_types() {
    let checkpoint = open(&golden("parameters.bin")).unwrap();
    let range = |from: u32, to: u32| (from..to).map(|x| x as f32).collect::<Vec<_>>();
    assert_eq!(checkpoint.read_vec("whole", 24).unwrap(), range(0, 24));
    assert_eq!(checkpoint.read_vec("view", 12).unwrap(), range(6, 18));
    assert_eq!(checkpoint.read_vec("double", 3).unwrap(), [1.5, -2.25, 0.0]);
    assert_eq!(checkpoint.read_vec("bf16", 2).unwrap(), [1.0, -3.0]);
    let count = checkpoint.read_vec("count", 1).unwrap_err().to_string();
    assert!(count.contains("no floating-point"), "{count}");
    let empty = checkpoint.read_vec("empty", 0).unwrap_err().to_string();
    assert!(empty.contains("holds no weight"), "{empty}");
}

#[test]
fn old_and_strided_torch_files_are_refused_with_advice() {
    let legacy = open(&golden("legacy.bin")).unwrap_err().to_string();
    assert!(legacy.contains("PyTorch before 1.6") && legacy.contains("safetensors"), "{legacy}");
    let strided = open(&golden("transposed.bin")).unwrap_err().to_string();
    assert!(strided.contains("not contiguous") && strided.contains("[6, 4]"), "{strided}");
}

#[test]
fn gguf_gives_canonical_names_row_order_and_metadata() {
    let checkpoint = open(&golden("model.gguf")).unwrap();
    assert_bits(&all(&checkpoint), &floats("expected_gguf.f32"));
    let names: Vec<&str> = checkpoint.tensors().map(|t| t.name.as_str()).collect();
    let reference = open(&golden("model.safetensors")).unwrap();
    assert_eq!(names, reference.tensors().map(|t| t.name.as_str()).collect::<Vec<_>>());

    let metadata = checkpoint.gguf().unwrap();
    assert_eq!(metadata.get_u32("gptneox.attention.head_count").unwrap(), Some(4));
    assert_eq!(metadata.get_bool("test.flag").unwrap(), Some(true));
    assert_eq!(metadata.get("test.negative"), Some(&GgufValue::Signed(-5)));
    let epsilon = metadata.get_f32("gptneox.attention.layer_norm_epsilon").unwrap();
    assert_eq!(epsilon, Some(1e-5));
    let tokens = metadata.get_array_of_strings("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!((tokens.len(), tokens[39]), (40, "t39"));
    let types = metadata.get_array_of_integers("tokenizer.ggml.token_type").unwrap().unwrap();
    assert_eq!(types, [1; 40]);
    assert!(matches!(metadata.get("test.nested"), Some(GgufValue::Array(a)) if a.len() == 2));
    assert_eq!(metadata.get_str("no.such.key").unwrap(), None);
    let error = metadata.get_u32("test.negative").unwrap_err();
    assert!(matches!(&error, Error::Config { field, .. } if field == "test.negative"), "{error}");
    let alone = GgufMetadata::open(&golden("model.gguf")).unwrap();
    assert_eq!(alone.keys().len(), metadata.keys().len());
}

#[test]
fn every_block_type_matches_the_reference() {
    let checkpoint = open(&golden("quants.gguf")).unwrap();
    let expected = floats("quants.f32");
    let kinds = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"];
    assert_eq!(expected.len(), kinds.len() * 1024);
    for (kind, expected) in kinds.iter().zip(expected.chunks(1024)) {
        assert_bits(&checkpoint.read_vec(kind, 1024).unwrap(), expected);
    }
}

/// Of every type, and in the order of the rows that are asked for: query, key and value rows are
/// stored in another.
#[test]
fn blocks_are_those_of_the_rows() {
    let kinds = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"];
    let qkv = "gpt_neox.layers.0.attention.query_key_value.weight";
    let plain = [("model.gguf", qkv), ("model.safetensors", qkv), ("pytorch_model.bin", qkv)];
    for (file, name) in kinds.map(|kind| ("quants.gguf", kind)).into_iter().chain(plain) {
        let checkpoint = open(&golden(file)).unwrap();
        let reader = checkpoint.reader(name).unwrap();
        let (rows, cols) = reader.shape();
        let stored = reader.blocks().unwrap();
        let row = cols / stored.block().0 * stored.block().1;
        let expected = checkpoint.read_vec(name, rows * cols).unwrap();
        for step in [1, 2, 7, rows] {
            for first in (0..rows).step_by(step) {
                let count = step.min(rows - first);
                let (mut bytes, mut out) = (vec![0; count * row], vec![0.0; count * cols]);
                reader.read_blocks(first, &mut bytes).unwrap();
                dequantize(stored, &bytes, &mut out);
                assert_bits(&out, &expected[first * cols..][..count * cols]);
            }
        }
        let mut bytes = vec![0; row];
        assert!(reader.read_blocks(rows, &mut bytes).is_err());
        assert!(reader.read_blocks(usize::MAX, &mut bytes).is_err());
        assert!(reader.read_blocks(0, &mut bytes[1..]).is_err());
    }
    // Of a vector of query, key and value, single weights move.
    let file = open(&golden("model.gguf")).unwrap();
    let bias = qkv.replace("weight", "bias");
    let reader = file.reader(&bias).unwrap();
    assert_eq!(reader.blocks(), None);
    assert!(reader.read_blocks(0, &mut [0; 4]).is_err());
}

/// What is added to is no longer what is stored.
#[test]
fn a_matrix_with_an_addition_has_no_blocks() {
    let mut checkpoint = open(&golden("quants.gguf")).unwrap();
    let (rows, cols) = checkpoint.reader("Q4_K").unwrap().shape();
    let addition = LowRank::new(1, vec![1.0; cols], vec![1.0; rows], 1.0).unwrap();
    checkpoint.add("Q4_K", addition).unwrap();
    let reader = checkpoint.reader("Q4_K").unwrap();
    assert_eq!(reader.blocks(), None);
    assert!(reader.read_blocks(0, &mut vec![0; cols / 256 * 144]).is_err());
    assert_eq!(checkpoint.reader("Q6_K").unwrap().blocks(), Some(StoredType::Q6K));
}

#[test]
fn rows_read_alone_or_together_are_the_same() {
    for file in ["model.safetensors", "pytorch_model.bin", "model.gguf"] {
        let checkpoint = open(&golden(file)).unwrap();
        for name in [
            "gpt_neox.layers.0.attention.query_key_value.weight",
            "gpt_neox.layers.0.attention.query_key_value.bias",
            "gpt_neox.layers.0.mlp.dense_4h_to_h.weight",
        ] {
            let reader = checkpoint.reader(name).unwrap();
            let (rows, cols) = reader.shape();
            let whole = checkpoint.read_vec(name, rows * cols).unwrap();
            for step in [1, 3, 7, rows] {
                for first in (0..rows).step_by(step) {
                    let count = step.min(rows - first);
                    let mut out = vec![0.0; count * cols];
                    reader.read_rows(first, &mut out).unwrap();
                    assert_bits(&out, &whole[first * cols..][..count * cols]);
                }
            }
            let mut outside = vec![0.0; cols];
            assert!(reader.read_rows(rows, &mut outside).is_err());
            assert!(reader.read_rows(usize::MAX, &mut outside).is_err());
        }
    }
}

#[test]
fn threads_share_a_checkpoint() {
    let checkpoint = open(&golden("model.gguf")).unwrap();
    let expected = all(&checkpoint);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_bits(&all(&checkpoint), &expected));
        }
    });
}

#[test]
fn a_missing_tensor_names_the_nearest() {
    let checkpoint = open(&golden("model.gguf")).unwrap();
    let error = checkpoint.tensor("model.layers.0.mlp.dense_h_to_4h.weight").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format);
    let text = error.to_string();
    assert!(text.contains("model.gguf"), "{text}");
    assert!(text.contains("gpt_neox.layers.0.mlp.dense_h_to_4h.weight"), "{text}");
    let wrong = checkpoint.read_vec("embed_out.weight", 7).unwrap_err().to_string();
    assert!(wrong.contains("[40, 32]") && wrong.contains('7'), "{wrong}");
}

#[test]
fn a_file_cut_short_after_opening_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::copy(golden("model.safetensors"), &path).unwrap();
    let checkpoint = open(&path).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(9000).unwrap();
    let error = checkpoint.read_vec("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", 2048);
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Format { .. }), "{error}");
    assert!(error.to_string().contains("when it was opened"), "{error}");
}

#[test]
fn non_finite_weights_are_passed_on() {
    let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let header = r#"{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    std::fs::write(&path, build::safetensors(header, &data)).unwrap();
    assert_bits(&open(&path).unwrap().read_vec("x", 4).unwrap(), &values);
}

#[test]
fn names_map_both_ways() {
    let checkpoint = open(&golden("model.safetensors")).unwrap();
    for tensor in checkpoint.tensors() {
        let gguf = names::to_gguf(&tensor.name).unwrap();
        assert_eq!(names::from_gguf(&gguf), tensor.name);
    }
    assert_eq!(
        names::to_gguf("gpt_neox.layers.31.attention.dense.bias").unwrap(),
        "blk.31.attn_output.bias"
    );
    assert_eq!(names::canonical("lm_head.weight").unwrap(), "embed_out.weight");
    assert_eq!(names::from_gguf("blk.07.ffn_up.weight"), "blk.07.ffn_up.weight");
    assert_eq!(names::from_gguf("rope_freqs.weight"), "rope_freqs.weight");
    assert_eq!(names::to_gguf("gpt_neox.layers.+1.attention.dense.bias"), None);
}

#[test]
fn shard_names_stay_in_their_directory() {
    for good in ["model-00001-of-00002.safetensors", "a", "..a", "модель.bin"] {
        assert!(index::safe_file_name(good), "{good}");
    }
    for bad in ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "C:x", "a\0b", "a\nb"] {
        assert!(!index::safe_file_name(bad), "{bad}");
    }
    assert!(!index::safe_file_name(&"x".repeat(256)));
}
