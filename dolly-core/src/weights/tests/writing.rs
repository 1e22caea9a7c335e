//! The writers and quantisers against gguf, the safetensors crate, and the readers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::CancelToken;
use crate::model::{Activation, Config};
use crate::weights::dequantize::dequantize;
use crate::weights::quantize::encode;
use crate::weights::write_safetensors::write_tensors;

/// The configuration of the golden model.
fn config() -> Config {
    Config {
        vocab_size: 40,
        hidden_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 4,
        intermediate_size: 64,
        hidden_act: Activation::Gelu,
        layer_norm_eps: 1e-5,
        rotary_dims: 2,
        rotary_base: 10000.0,
        rotary_scale: 1.0,
        max_position_embeddings: 64,
        use_parallel_residual: true,
        attention_bias: true,
        tie_word_embeddings: false,
        bos_token_id: Some(0),
        eos_token_ids: vec![0],
        stored_format: WeightFormat::F32,
    }
}

fn tokenizer(tokens: usize) -> GgufTokenizer {
    GgufTokenizer {
        tokens: (0..tokens).map(|i| format!("t{i}")).collect(),
        token_types: vec![GgufTokenType::Normal; tokens],
        merges: vec!["t 0".to_owned()],
        ..GgufTokenizer::default()
    }
}

#[test]
fn quantisers_give_the_bytes_of_the_reference() {
    let bytes = std::fs::read(golden("quantized.bin")).unwrap();
    let (inputs, mut rest) = bytes.split_at(10 * 32 * 4);
    let inputs: Vec<f32> =
        inputs.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    for stored in [StoredType::Q8_0, StoredType::Q4_0, StoredType::F16, StoredType::Bf16] {
        let mut packed = Vec::new();
        encode(stored, &inputs, &mut packed).unwrap();
        let expected;
        (expected, rest) = rest.split_at(packed.len());
        assert!(packed == expected, "{stored:?}");
    }
    assert!(rest.is_empty());
}

#[test]
fn weights_a_type_cannot_hold_are_refused() {
    let refused = |stored, weight: f32| encode(stored, &[weight; 32], &mut Vec::new()).is_err();
    assert!(refused(StoredType::F16, 65520.0) && !refused(StoredType::F16, 65519.0));
    assert!(!refused(StoredType::F16, f32::INFINITY) && !refused(StoredType::F16, f32::NAN));
    for stored in [StoredType::Q8_0, StoredType::Q4_0] {
        assert!(refused(stored, f32::NAN) && refused(stored, f32::NEG_INFINITY));
        assert!(refused(stored, 1e7) && !refused(stored, 5e5));
    }
    assert!(!refused(StoredType::Bf16, 1e38) && !refused(StoredType::F32, f32::NAN));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// The scale is rounded to f16: relative error 2^-11, or 2^-25 absolute among subnormals.
    #[test]
    fn quantisation_errors_are_bounded(
        weights in proptest::collection::vec(-1.0f32..1.0, 32),
        exponent in -20i32..14,
    ) {
        let weights: Vec<f32> = weights.iter().map(|w| w * 2f32.powi(exponent)).collect();
        let largest = weights.iter().fold(0.0f64, |m, w| m.max(f64::from(w.abs())));
        for (stored, steps, quotient) in
            [(StoredType::Q8_0, 0.5, 127.0), (StoredType::Q4_0, 1.0, 8.0)]
        {
            let (mut packed, mut back) = (Vec::new(), [0.0; 32]);
            encode(stored, &weights, &mut packed).unwrap();
            dequantize(stored, &packed, &mut back);
            let scale = largest / quotient;
            let rounding = quotient * (scale * 2f64.powi(-11)).max(2f64.powi(-25));
            let bound = (steps * scale + rounding) * 1.0001;
            for (weight, back) in weights.iter().zip(back) {
                let error = (f64::from(*weight) - f64::from(back)).abs();
                prop_assert!(error <= bound, "{stored:?}: {weight} became {back}, bound {bound}");
            }
        }
    }
}

#[test]
fn gguf_written_holds_the_bytes_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let source = open(&golden("model.safetensors")).unwrap();
    write_gguf(&path, &source, &config(), &tokenizer(38), WeightFormat::Q8_0).unwrap();
    let (written, reference) = (open(&path).unwrap(), open(&golden("model.gguf")).unwrap());
    let raw = |checkpoint: &Checkpoint| -> HashMap<String, (StoredType, Vec<usize>, Vec<u8>)> {
        let file = std::fs::read(checkpoint.path()).unwrap();
        checkpoint
            .tensors()
            .map(|t| {
                let bytes = file[t.offset as usize..][..t.bytes as usize].to_vec();
                (t.name.clone(), (t.stored, t.shape.clone(), bytes))
            })
            .collect()
    };
    assert!(raw(&written) == raw(&reference));

    let (found, wanted) = (written.gguf().unwrap(), reference.gguf().unwrap());
    for key in wanted.keys().filter(|key| key.starts_with("gptneox.")) {
        assert_eq!(found.get(key), wanted.get(key), "{key}");
    }
    let tokens = found.get_array_of_strings("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(tokens[37..], ["t37", "[PAD38]", "[PAD39]"]);
    let types = found.get_array_of_integers("tokenizer.ggml.token_type").unwrap().unwrap();
    assert_eq!(types[37..], [1, 5, 5]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a partial file is left");
}

#[test]
fn every_format_survives_gguf_and_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let source = open(&golden("model.safetensors")).unwrap();
    for format in [WeightFormat::Auto, WeightFormat::F16, WeightFormat::Bf16, WeightFormat::Q4_0] {
        let path = folder.path().join("out.gguf");
        write_gguf(&path, &source, &config(), &tokenizer(40), format).unwrap();
        let written = open(&path).unwrap();
        let stored = written.tensor("gpt_neox.layers.0.attention.query_key_value.weight").unwrap();
        let expected = match format {
            WeightFormat::Auto => StoredType::F32,
            WeightFormat::F16 => StoredType::F16,
            WeightFormat::Bf16 => StoredType::Bf16,
            _ => StoredType::Q4_0,
        };
        assert_eq!(stored.stored, expected);
        for tensor in source.tensors() {
            let count = tensor.elements() as usize;
            let (mut packed, mut back) = (Vec::new(), vec![0.0; count]);
            let stored = written.tensor(&tensor.name).unwrap().stored;
            encode(stored, &source.read_vec(&tensor.name, count).unwrap(), &mut packed).unwrap();
            dequantize(stored, &packed, &mut back);
            assert_bits(&written.read_vec(&tensor.name, count).unwrap(), &back);
        }
        let again = folder.path().join("again.safetensors");
        write_safetensors(&again, &written, WeightFormat::F32).unwrap();
        assert_bits(&all(&open(&again).unwrap()), &all(&written));
    }
}

#[test]
fn safetensors_written_is_read_by_the_reference_crate() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.safetensors");
    let source = open(&golden("model.gguf")).unwrap();
    for (format, dtype) in [
        (WeightFormat::F32, ::safetensors::Dtype::F32),
        (WeightFormat::F16, ::safetensors::Dtype::F16),
        (WeightFormat::Bf16, ::safetensors::Dtype::BF16),
    ] {
        write_safetensors(&path, &source, format).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = ::safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        let read = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), source.tensors().len());
        for tensor in source.tensors() {
            let view = read.tensor(&tensor.name).unwrap();
            assert_eq!((view.dtype(), view.shape()), (dtype, &tensor.shape[..]));
            let weights = source.read_vec(&tensor.name, tensor.elements() as usize).unwrap();
            let expected: Vec<u8> = match format {
                WeightFormat::F32 => weights.iter().flat_map(|w| w.to_le_bytes()).collect(),
                WeightFormat::F16 => {
                    weights.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes()).collect()
                }
                _ => weights.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect(),
            };
            assert!(view.data() == expected, "{} as {format}", tensor.name);
        }
    }
    let error = write_safetensors(&path, &source, WeightFormat::Q8_0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn gguf_fills_in_biases_and_a_tied_output() {
    let source = open(&golden("model.safetensors")).unwrap();
    let kept: Vec<_> = source
        .tensors()
        .filter(|t| !t.name.contains(".attention.") || t.name.ends_with("weight"))
        .filter(|t| t.name != "embed_out.weight")
        .map(|t| source.reader(&t.name).unwrap())
        .collect();
    let tensors: Vec<_> = kept
        .iter()
        .map(|r| TensorToWrite { name: &r.info().name, shape: &r.info().shape, source: r })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let (bare, out) = (folder.path().join("bare.safetensors"), folder.path().join("out.gguf"));
    write_safetensors_from(&bare, &tensors, WeightFormat::F32).unwrap();
    let mut config = config();
    (config.attention_bias, config.tie_word_embeddings) = (false, true);
    write_gguf(&out, &open(&bare).unwrap(), &config, &tokenizer(40), WeightFormat::F32).unwrap();
    let written = open(&out).unwrap();
    let bias = "gpt_neox.layers.0.attention.query_key_value.bias";
    assert_bits(&written.read_vec(bias, 96).unwrap(), &[0.0; 96]);
    let embedding = source.read_vec("gpt_neox.embed_in.weight", 40 * 32).unwrap();
    assert_bits(&written.read_vec("embed_out.weight", 40 * 32).unwrap(), &embedding);
}

#[test]
fn a_failed_write_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    std::fs::write(&path, b"before").unwrap();
    let source = open(&golden("model.safetensors")).unwrap();
    let mut wrong = config();
    wrong.intermediate_size = 128;
    let error = write_gguf(&path, &source, &wrong, &tokenizer(40), WeightFormat::F16).unwrap_err();
    assert!(error.to_string().contains("[64, 32]"), "{error}");
    let mut wrong = config();
    wrong.num_attention_heads = 0;
    assert!(write_gguf(&path, &source, &wrong, &tokenizer(40), WeightFormat::F16).is_err());
    let mut wrong = config();
    wrong.hidden_act = Activation::Relu;
    let error = write_gguf(&path, &source, &wrong, &tokenizer(40), WeightFormat::F16).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let error = write_gguf(&path, &source, &config(), &tokenizer(41), WeightFormat::F16);
    assert!(error.unwrap_err().to_string().contains("41 tokens"));

    // The weight that does not fit stands in the middle of the file.
    let nan = build::safetensors(
        r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#,
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x4f, 0, 0, 0, 0],
    );
    let large = folder.path().join("large.safetensors");
    std::fs::write(&large, nan).unwrap();
    let error = write_safetensors(&path, &open(&large).unwrap(), WeightFormat::F16).unwrap_err();
    assert!(error.to_string().contains("4294967300 cannot be stored"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"before");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "a partial file is left");
    let nowhere = folder.path().join("no/such/out.safetensors");
    let error = write_safetensors(&nowhere, &source, WeightFormat::F32).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

/// Writes the golden model in every format of GGUF for `tests/golden/check_gguf.py`, which loads
/// it in llama.cpp.
#[test]
#[ignore = "writes files for tests/golden/check_gguf.py; needs DOLLY_CHECK_DIR"]
fn export_for_llama_cpp() {
    let folder = PathBuf::from(std::env::var_os("DOLLY_CHECK_DIR").unwrap());
    let source = open(&golden("model.safetensors")).unwrap();
    for format in WeightFormat::ALL.into_iter().skip(1) {
        let path = folder.join(format!("{format}.gguf"));
        write_gguf(&path, &source, &config(), &tokenizer(40), format).unwrap();
    }
}

/// Rows that cancel when the second piece of them is read.
struct Cancelling(CancelToken, AtomicUsize);

impl RowSource for Cancelling {
    fn name(&self) -> &str {
        "wide"
    }

    fn shape(&self) -> (usize, usize) {
        (64, 1 << 16)
    }

    fn read_rows(&self, _first: usize, out: &mut [f32]) -> Result<()> {
        if self.1.fetch_add(1, Ordering::Relaxed) == 1 {
            self.0.cancel();
        }
        out.fill(0.0);
        Ok(())
    }
}

#[test]
fn a_cancel_is_heard_within_a_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let cancel = CancelToken::new();
    let source = Cancelling(cancel.clone(), AtomicUsize::new(0));
    let tensor = TensorToWrite { name: "wide", shape: &[64, 1 << 16], source: &source };
    let mut told = 0;
    let mut watch = Watch { cancel: &cancel, on_progress: &mut |_| told += 1 };
    let path = dir.path().join("m.safetensors");
    let written = write_tensors(&path, &[tensor], WeightFormat::F16, &mut watch);
    assert!(matches!(written, Err(crate::Error::Cancelled)), "{written:?}");
    assert_eq!((source.1.into_inner(), told), (2, 0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
