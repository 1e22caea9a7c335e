//! Models that are not what they claim: typed errors, nothing else.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;

use dolly_core::{Error, Pipeline, Result};
use support::{parity_model, tiny_tokenizer};

fn load(directory: &Path) -> Result<Pipeline> {
    support::builder(directory.to_str().unwrap()).build()
}

fn edit_config(directory: &Path, key: &str, value: serde_json::Value) {
    let file = directory.join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(file, config.to_string()).unwrap();
}

#[test]
fn the_untouched_model_loads() {
    assert!(load(parity_model("standard").path()).is_ok());
}

#[test]
fn missing_files_are_named() {
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let directory = parity_model("standard");
        std::fs::remove_file(directory.path().join(file)).unwrap();
        let error = load(directory.path()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(file.split('.').next().unwrap()), "{file}: {text}");
    }
    let nowhere = support::builder("no/such-model-anywhere").offline(true).build();
    assert!(matches!(nowhere, Err(Error::ModelNotFound { .. })), "{nowhere:?}");
}

#[test]
fn a_configuration_that_does_not_fit_the_weights_is_refused() {
    let cases = [
        ("hidden_size", 64.into()),
        ("num_hidden_layers", 5.into()),
        ("intermediate_size", 100.into()),
        ("vocab_size", 97.into()),
        ("num_attention_heads", 5.into()),
    ];
    for (key, value) in cases {
        let directory = parity_model("standard");
        edit_config(directory.path(), key, value);
        let error = load(directory.path()).unwrap_err();
        assert!(matches!(error, Error::Tensor { .. } | Error::Config { .. }), "{key}: {error}");
    }
}

#[test]
fn a_configuration_from_hell_allocates_nothing() {
    let cases = [
        ("vocab_size", u64::MAX),
        ("hidden_size", u64::MAX / 2),
        ("num_hidden_layers", u64::MAX),
        ("max_position_embeddings", u64::MAX),
        ("intermediate_size", 1 << 62),
    ];
    for (key, value) in cases {
        let directory = parity_model("standard");
        edit_config(directory.path(), key, value.into());
        let error = load(directory.path()).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{key}: {error}");
    }
}

#[test]
fn a_vocabulary_larger_than_the_embedding_is_refused() {
    let directory = parity_model("standard");
    let mut tokenizer: serde_json::Value = serde_json::from_str(&tiny_tokenizer()).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let first = vocab.len();
    for id in first..first + 60 {
        vocab.insert(format!("a{id}"), id.into());
    }
    std::fs::write(directory.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    match load(directory.path()) {
        Err(Error::Config { field, reason, .. }) => {
            assert_eq!(field, "vocab_size");
            assert!(reason.contains("96"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_truncation_of_the_weights_is_a_typed_error() {
    let directory = parity_model("standard");
    let file = directory.path().join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    let step = (whole.len() / 97).max(1);
    for length in (0..whole.len()).step_by(step) {
        std::fs::write(&file, &whole[..length]).unwrap();
        let error = load(directory.path()).unwrap_err();
        assert!(matches!(error, Error::Format { .. } | Error::Tensor { .. }), "{length}: {error}");
    }
}

#[test]
fn all_layouts_of_one_model_load() {
    for name in ["standard", "bin", "bin_sharded", "sharded_safetensors", "bin_f16", "bin_bf16"] {
        let directory = parity_model(name);
        let pipe = load(directory.path());
        assert!(pipe.is_ok(), "{name}: {pipe:?}");
    }
}
