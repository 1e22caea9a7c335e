//! Low-rank adapters against PEFT: `tests/golden/adapters`, made by `make_adapters.py`.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use dolly_core::source::{SourceOptions, resolve};
use dolly_core::train::{Adapter, LoraConfig, write_adapter};
use dolly_core::weights::{TensorToWrite, Values};
use dolly_core::{
    ConvertOptions, Error, FileFormat, Pipeline, WeightFormat, convert_with, merge_adapter,
};
use serde_json::{Value, json};
use support::{golden, goldens_in, largest_difference, parity_model, tolerance};

/// Largest difference of a logit that counts as equal.
const TOLERANCE: f32 = 1e-4;
const CASES: [&str; 6] =
    ["all_linear", "defaults", "output_layer", "ours", "patterns_bin", "regex"];

fn adapter_dir(case: &str) -> PathBuf {
    golden().join("adapters").join(case)
}

fn id(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn with_adapter(base: &Path, adapter: &Path, format: WeightFormat) -> dolly_core::Result<Pipeline> {
    support::builder(id(base)).adapter(adapter).weights(format).build()
}

#[test]
fn merged_logits_equal_peft() {
    let base = parity_model("standard");
    for case in CASES {
        let pipe = with_adapter(base.path(), &adapter_dir(case), WeightFormat::F32).unwrap();
        for golden in goldens_in(&adapter_dir(case)) {
            let logits = pipe.logits(&golden.ids).unwrap();
            let difference = largest_difference(&logits, &golden.logits);
            let allowed = TOLERANCE.max(tolerance());
            assert!(difference <= allowed, "{case}: off by {difference}");
        }
    }
}

#[test]
fn settings_are_read_as_peft_reads_them() {
    let adapter = Adapter::read(&adapter_dir("patterns_bin")).unwrap();
    assert_eq!(adapter.base(), Some("parity/standard"));
    assert_eq!((adapter.config().rank, adapter.config().alpha), (4, 8.0));
    let of = |name: &str| adapter.layers().find(|layer| layer.module.ends_with(name)).unwrap();
    // lora_alpha / sqrt(r), by pattern or by default.
    let qkv = of("0.attention.query_key_value");
    assert_eq!((qkv.rank, qkv.scale), (4, 12.0));
    let dense = of("1.attention.dense");
    assert_eq!((dense.rank, dense.scale), (2, (8.0 / 2.0f64.sqrt()) as f32));
    assert_eq!(of("1.mlp.dense_4h_to_h").scale, 1.5);
    assert_eq!((dense.a.len(), dense.b.len()), (2 * 32, 32 * 2));
    assert_eq!(adapter.layers().len(), 8);
}

/// The adapter of `ours`: weights from a formula, so that the files can be made again.
fn write_ours(directory: &Path) {
    let config = LoraConfig { rank: 3, alpha: 4.5, ..LoraConfig::default() };
    let mut tensors = Vec::new();
    for layer in 0..2 {
        for (module, outputs) in [("query_key_value", 96), ("dense", 32)] {
            for (half, rows, cols) in [("A", 3, 32), ("B", outputs, 3)] {
                let name = format!(
                    "base_model.model.gpt_neox.layers.{layer}.attention.{module}.lora_{half}.weight"
                );
                let step = (tensors.len() + 2) as f32;
                let values: Vec<f32> = (0..rows * cols)
                    .map(|i| ((i * 37 % 101) as f32 - 50.0) / 80.0 / step)
                    .collect();
                tensors.push((name, [rows, cols], values));
            }
        }
    }
    let sources: Vec<Values<'_>> =
        tensors.iter().map(|(n, s, v)| Values::of_tensor(n, s, v).unwrap()).collect();
    let to_write: Vec<TensorToWrite<'_>> = tensors
        .iter()
        .zip(&sources)
        .map(|((name, shape, _), source)| TensorToWrite { name, shape, source })
        .collect();
    write_adapter(directory, &config, Some("parity/standard"), &to_write).unwrap();
}

#[test]
fn written_files_are_those_that_peft_was_given() {
    // Kept below target/, for `make_adapters.py --check`.
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("adapters/ours");
    write_ours(&directory);
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let written = std::fs::read(directory.join(name)).unwrap();
        assert!(written == std::fs::read(adapter_dir("ours").join(name)).unwrap(), "{name}");
    }
    // PEFT holds targets as a set; they are written sorted.
    let targets = ["dense", "query_key_value"].map(str::to_owned).to_vec();
    let expected = LoraConfig { rank: 3, alpha: 4.5, dropout: 0.0, targets };
    assert_eq!(Adapter::read(&directory).unwrap().config(), &expected);
}

#[test]
fn every_format_is_packed_from_the_merged_rows() {
    let base = parity_model("standard");
    let files = resolve(&id(base.path()), &SourceOptions::default()).unwrap();
    let (adapter, out) = (adapter_dir("defaults"), tempfile::tempdir().unwrap());
    let merged = out.path().join("merged");
    merge_adapter("parity/standard", &files, &adapter, &merged, WeightFormat::F32).unwrap();
    let ids = &goldens_in(&adapter)[2].ids;
    for format in [
        WeightFormat::F32,
        WeightFormat::F16,
        WeightFormat::Bf16,
        WeightFormat::Q8_0,
        WeightFormat::Q4_0,
    ] {
        let beside = with_adapter(base.path(), &adapter, format).unwrap().logits(ids).unwrap();
        let alone = support::builder(id(&merged)).weights(format).build().unwrap();
        assert_eq!(beside, alone.logits(ids).unwrap(), "{format}");
    }
    let gguf = out.path().join("merged.gguf");
    let (to, format) = (FileFormat::Gguf, WeightFormat::F32);
    let options = ConvertOptions { adapter: Some(&adapter), ..Default::default() };
    convert_with(&files, &gguf, to, format, options).unwrap();
    let pipe = support::builder(id(&gguf)).build().unwrap();
    let alone = support::builder(id(&merged)).build().unwrap();
    assert_eq!(pipe.logits(ids).unwrap(), alone.logits(ids).unwrap());
}

#[test]
fn a_merged_directory_knows_its_parents() {
    let base = parity_model("standard");
    let files = resolve(&id(base.path()), &SourceOptions::default()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let merged = out.path().join("merged");
    let adapter = adapter_dir("defaults");
    merge_adapter("parity/standard", &files, &adapter, &merged, WeightFormat::Auto).unwrap();
    let lineage = dolly_core::provenance::lineage(&merged).unwrap();
    let record = &lineage.nodes[0].record;
    let parents: Vec<&str> = record.parents.iter().map(|one| one.part.name.as_str()).collect();
    assert_eq!((record.name.as_str(), parents), ("merged", vec!["parity/standard", "defaults"]));
    let tokenizer = std::fs::read(base.path().join("tokenizer.json")).unwrap();
    assert_eq!(std::fs::read(merged.join("tokenizer.json")).unwrap(), tokenizer);
    for (destination, word) in [(base.path(), "source"), (&*adapter, "adapter")] {
        let copy = merge_adapter("b", &files, &adapter, destination, WeightFormat::Auto);
        assert!(copy.unwrap_err().to_string().contains(word));
    }
}

#[test]
fn another_base_is_refused_with_the_layer_and_both_shapes() {
    for (name, adapter, words) in [
        ("head_dim_80", "defaults", vec!["attention.dense", "[32, 32]", "[80, 80]"]),
        ("odd_shapes", "defaults", vec!["[32, 32]", "[24, 24]", "parity/standard"]),
        ("tied", "output_layer", vec!["embed_out", "no such layer", "attention.dense"]),
    ] {
        let base = parity_model(name);
        let error = with_adapter(base.path(), &adapter_dir(adapter), WeightFormat::Auto);
        let Err(error @ Error::Tensor { .. }) = error else { panic!("{name}: {error:?}") };
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{name}: {text}");
    }
}

/// A copy of golden adapter `defaults` to be spoilt.
fn copy() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(adapter_dir("defaults").join(name), directory.path().join(name)).unwrap();
    }
    directory
}

fn config_of(directory: &Path) -> Value {
    let bytes = std::fs::read(directory.join("adapter_config.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn settings_that_change_the_weights_are_refused_by_name() {
    for (field, value) in [
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("modules_to_save", json!(["embed_out"])),
        ("fan_in_fan_out", json!(true)),
        ("layers_to_transform", json!([0])),
        ("layers_to_transform", json!(1)),
        ("exclude_modules", json!("dense")),
        ("lora_bias", json!(true)),
        ("target_parameters", json!(["x"])),
        ("trainable_token_indices", json!([1])),
        ("layer_replication", json!([[0, 1]])),
        ("alora_invocation_tokens", json!([1])),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("olora")),
        ("use_qalora", json!(true)),
        ("megatron_config", json!({"a": 1})),
        ("a_setting_of_next_year", json!(0.5)),
        ("peft_type", json!("LOHA")),
    ] {
        let directory = copy();
        let mut config = config_of(directory.path());
        config[field] = value.clone();
        std::fs::write(directory.path().join("adapter_config.json"), config.to_string()).unwrap();
        match Adapter::read(directory.path()) {
            Err(Error::Unsupported(text)) => assert!(text.contains(field), "{text}"),
            other => panic!("{field} {value}: {other:?}"),
        }
    }
}

#[test]
fn malformed_settings_are_errors_that_name_the_field() {
    let many: Value = (0..513).map(|i| (i.to_string(), json!(8))).collect();
    for (field, value, words) in [
        ("r", json!(0), "65536"),
        ("r", json!(-1), "65536"),
        ("r", json!(1e300), "65536"),
        ("r", json!("8"), "65536"),
        ("lora_alpha", json!("x"), "expected a number"),
        ("lora_alpha", json!(1e300), "expected a number"),
        ("lora_dropout", json!(1.0), "below 1"),
        ("lora_dropout", json!(-0.5), "below 1"),
        ("use_rslora", json!("yes"), "true or false"),
        ("peft_type", json!(null), "LORA"),
        ("target_modules", json!(null), "names of layers"),
        ("target_modules", json!([]), "names of layers"),
        ("target_modules", json!([1]), "no name"),
        ("target_modules", json!(["dense", "query_key_value", "q_proj"]), "\"q_proj\" matches no"),
        ("target_modules", json!(["dense"]), "no target matches"),
        ("target_modules", json!("(unclosed"), "unclosed"),
        ("target_modules", json!(".{999999999}"), "size"),
        ("rank_pattern", json!([]), "patterns"),
        ("rank_pattern", json!({"dense": 0}), "65536"),
        ("rank_pattern", many, "at most 512"),
        ("rank_pattern", json!({"(": 2}), "pattern"),
        ("alpha_pattern", json!({"dense": 2, "attention.dense": 3}), "both match"),
        ("alpha_pattern", json!({"dense": null}), "expected a number"),
    ] {
        let directory = copy();
        let mut config = config_of(directory.path());
        config[field] = value.clone();
        std::fs::write(directory.path().join("adapter_config.json"), config.to_string()).unwrap();
        match Adapter::read(directory.path()) {
            Err(error @ Error::Config { .. }) => {
                let text = error.to_string();
                assert!(text.contains(field) && text.contains(words), "{field} {value}: {text}");
            }
            other => panic!("{field} {value}: {other:?}"),
        }
    }
}

/// A tensor's name and shape.
type Named<'a> = (&'a str, &'a [usize]);

/// A safetensors file of f32 zeros.
fn zeros(tensors: &[Named<'_>]) -> Vec<u8> {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let end = at + 4 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]});
        header.insert((*name).to_owned(), entry);
        at = end;
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + at, 0);
    file
}

const DENSE: &str = "base_model.model.gpt_neox.layers.0.attention.dense";

#[test]
fn weights_that_lie_are_errors_that_name_the_tensor() {
    let (a, b) = (format!("{DENSE}.lora_A.weight"), format!("{DENSE}.lora_B.weight"));
    let twin = "base_model.model.layers.0.attention.dense.lora_A.weight";
    let embedding = format!("{DENSE}.lora_embedding_A");
    let cases: Vec<(Vec<Named<'_>>, &str)> = vec![
        (vec![(&a, &[8, 32])], "lora_B.weight"),
        (vec![(&b, &[32, 8])], "lora_A.weight"),
        (vec![(&a, &[4, 32]), (&b, &[32, 4])], "rank 8"),
        (vec![(&a, &[8, 32]), (&b, &[32, 4])], "rank 8"),
        (vec![(&a, &[256]), (&b, &[32, 8])], "[rank, inputs]"),
        (vec![(&a, &[8, 32]), (&b, &[8, 8, 4])], "[outputs, rank]"),
        (vec![(&a, &[8, 0]), (&b, &[32, 8])], "holds no weight"),
        (vec![(&a, &[8, 32]), (&b, &[32, 8]), (twin, &[8, 32])], "stands twice"),
        (vec![("gpt_neox.embed_in.weight", &[96, 32])], "base_model.model."),
        (vec![(&embedding, &[8, 32])], "neither lora_A.weight"),
        (vec![], "no layer"),
    ];
    for (tensors, words) in cases {
        let directory = copy();
        let mut config = config_of(directory.path());
        config["target_modules"] = json!(["dense"]);
        std::fs::write(directory.path().join("adapter_config.json"), config.to_string()).unwrap();
        let file = directory.path().join("adapter_model.safetensors");
        std::fs::write(file, zeros(&tensors)).unwrap();
        let error = Adapter::read(directory.path()).unwrap_err();
        let typed = matches!(error, Error::Tensor { .. } | Error::Config { .. });
        assert!(typed && error.to_string().contains(words), "{words}: {error}");
    }
}

#[test]
fn whole_layers_beside_the_adapter_are_refused_by_name() {
    let (a, b) = (format!("{DENSE}.lora_A.weight"), format!("{DENSE}.lora_B.weight"));
    for name in ["base_model.model.lm_head.base_layer.weight", "base_model.model.x.weight"] {
        let directory = copy();
        let file = zeros(&[(&a, &[8, 32]), (&b, &[32, 8]), (name, &[96, 32])]);
        std::fs::write(directory.path().join("adapter_model.safetensors"), file).unwrap();
        match Adapter::read(directory.path()) {
            Err(Error::Unsupported(text)) => assert!(text.contains(name), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_layer_that_the_adapter_lacks_is_an_error() {
    let directory = copy();
    let mut config = config_of(directory.path());
    config["target_modules"] = json!(["dense"]);
    std::fs::write(directory.path().join("adapter_config.json"), config.to_string()).unwrap();
    let (a, b) = (format!("{DENSE}.lora_A.weight"), format!("{DENSE}.lora_B.weight"));
    let file = zeros(&[(&a, &[8, 32]), (&b, &[32, 8])]);
    std::fs::write(directory.path().join("adapter_model.safetensors"), file).unwrap();
    let base = parity_model("standard");
    let error = with_adapter(base.path(), directory.path(), WeightFormat::Auto).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("layers.1.attention.dense") && text.contains("nothing for it"), "{text}");
}

#[test]
fn missing_files_say_what_was_looked_for() {
    let empty = tempfile::tempdir().unwrap();
    let error = Adapter::read(empty.path()).unwrap_err();
    assert!(error.to_string().contains("adapter_config.json"), "{error}");
    let directory = copy();
    std::fs::remove_file(directory.path().join("adapter_model.safetensors")).unwrap();
    let error = Adapter::read(directory.path()).unwrap_err();
    assert!(error.to_string().contains("adapter_model.bin"), "{error}");
    assert!(matches!(error, Error::ModelNotFound { .. }));
    let error = Adapter::read(&empty.path().join("none")).unwrap_err();
    assert!(matches!(error, Error::ModelNotFound { .. }));
}

#[test]
fn spoilt_bytes_never_panic() {
    let config = std::fs::read(adapter_dir("defaults").join("adapter_config.json")).unwrap();
    let weights = std::fs::read(adapter_dir("defaults").join("adapter_model.safetensors")).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(weights[..8].try_into().unwrap())).unwrap();
    let directory = copy();
    let try_with = |name: &str, bytes: &[u8]| {
        std::fs::write(directory.path().join(name), bytes).unwrap();
        Adapter::read(directory.path()).is_ok()
    };
    for (name, bytes, end) in [
        ("adapter_config.json", &config, config.len() - 2),
        ("adapter_model.safetensors", &weights, header),
    ] {
        for at in (0..end).step_by(7) {
            assert!(!try_with(name, &bytes[..at]), "{name} cut at {at}");
            let mut spoilt = bytes.clone();
            spoilt[at] ^= 1 << (at % 8);
            try_with(name, &spoilt);
        }
        assert!(try_with(name, bytes));
    }
}

#[test]
fn a_target_that_matches_nothing_names_the_layers_there_are() {
    let modules = [
        "gpt_neox.layers.0.attention.query_key_value",
        "gpt_neox.layers.0.attention.dense",
        "gpt_neox.layers.1.attention.dense",
        "embed_out",
    ];
    let with = |targets: &[&str]| LoraConfig {
        targets: targets.iter().map(|&target| target.to_owned()).collect(),
        ..LoraConfig::default()
    };
    let lora = with(&["dense", "lm_head"]);
    assert_eq!(lora.select(&modules).unwrap(), &modules[1..]);
    let error = with(&["dense", "q_proj"]).select(&modules).unwrap_err().to_string();
    for word in ["q_proj", "attention.dense", "attention.query_key_value", "embed_out"] {
        assert!(error.contains(word), "{error}");
    }
    assert!(!with(&["ense", ""]).matches(modules[1]));
    assert!(with(&[""]).validate().is_err());
}

#[test]
fn writing_refuses_what_peft_would_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let config = LoraConfig { rank: 2, ..LoraConfig::default() };
    let (a, b) = (format!("{DENSE}.lora_A.weight"), format!("{DENSE}.lora_B.weight"));
    for (name, shape) in [
        ("gpt_neox.layers.0.attention.dense.lora_A.weight", [2, 4]),
        (&*a, [3, 4]),
        (&*b, [4, 3]),
        ("base_model.model.embed_out.weight", [2, 2]),
    ] {
        let values = vec![0.0; shape[0] * shape[1]];
        let source = Values::of_tensor(name, &shape, &values).unwrap();
        let tensor = TensorToWrite { name, shape: &shape, source: &source };
        let result = write_adapter(directory.path(), &config, None, &[tensor]);
        assert!(matches!(result, Err(Error::InvalidInput(_))), "{name}: {result:?}");
    }
    assert!(Values::new("x", (2, 3), &[0.0; 5]).is_err());
}
