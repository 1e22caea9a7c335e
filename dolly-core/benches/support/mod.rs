//! Checkpoints of random weights in the shapes of published models, and what a process has used.
#![allow(dead_code, reason = "every bench uses a part")]

use std::path::Path;

use dolly_core::model::Config;
use dolly_core::tokenizer::train_tokenizer;
use dolly_core::weights::{RowSource, TensorToWrite, WeightFormat, write_safetensors_from};
use serde_json::{Value, json};

pub mod limits;

/// The smallest vocabulary of the tokenizer's trainer: bytes and Dolly's tokens.
const SMALLEST: usize = 261;

/// The configuration of Pythia's `14m`, `70m`, `160m` and `410m`, of dolly-v2-3b (`3b`), of dolly-nano
/// (`nano`), and of a `tiny` model.
pub fn config(shape: &str) -> Value {
    let (hidden, layers, heads) = match shape {
        "tiny" => (128, 2, 4),
        "nano" => (192, 4, 3),
        "14m" => (128, 6, 4),
        "70m" => (512, 6, 8),
        "160m" => (768, 12, 12),
        "410m" => (1024, 24, 16),
        "3b" => (2560, 32, 32),
        other => panic!("shape {other}: tiny, nano, 14m, 70m, 160m, 410m or 3b"),
    };
    json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox",
        "vocab_size": if shape == "nano" { 8192 } else { 50_280 }, "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 4 * hidden, "hidden_act": "gelu", "rotary_pct": 0.25,
        "rotary_emb_base": 10000, "max_position_embeddings": 2048, "initializer_range": 0.02,
        "layer_norm_eps": 1e-5, "use_cache": true, "use_parallel_residual": true,
        "tie_word_embeddings": false, "torch_dtype": "float16", "bos_token_id": 0,
        "eos_token_id": 0,
    })
}

/// A vocabulary of `ids` entries, Dolly's tokens last; those beyond the bytes are never met in text.
pub fn tokenizer(ids: usize) -> Vec<u8> {
    let mut json: Value =
        serde_json::from_slice(&train_tokenizer([""].iter(), SMALLEST, 1).unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let (known, fillers) = (vocab.len(), ids - SMALLEST);
    for id in known..known + fillers {
        vocab.insert(format!("filler{id}"), id.into());
    }
    for token in json["added_tokens"].as_array_mut().unwrap() {
        let id = token["id"].as_u64().unwrap() as usize;
        token["id"] = if id < known { id } else { id + fillers }.into();
    }
    serde_json::to_vec(&json).unwrap()
}

/// Random weights of deviation about 0.02 around a centre, without storing them.
pub struct Noise {
    pub name: String,
    pub shape: (usize, usize),
    pub centre: f32,
}

impl RowSource for Noise {
    fn name(&self) -> &str {
        &self.name
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) -> dolly_core::Result<()> {
        let seed = self.name.bytes().fold(0_u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        for (i, x) in out.iter_mut().enumerate() {
            // The finalizer of SplitMix64 (Steele et al., 2014): neighbours must not correlate.
            let mut n = seed.wrapping_add((first * self.shape.1 + i) as u64);
            n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *x = self.centre + ((n >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.07;
        }
        Ok(())
    }
}

/// A checkpoint of a shape in f16, as transformers reads it; a few rows are in memory at a time.
pub fn write(directory: &Path, shape: &str) {
    write_from(directory, shape, |noise| Box::new(noise));
}

/// As [`write`], of tensors that `replace` makes of the random ones.
pub fn write_from(directory: &Path, shape: &str, replace: impl Fn(Noise) -> Box<dyn RowSource>) {
    std::fs::create_dir_all(directory).unwrap();
    let config = config(shape);
    let bytes = serde_json::to_vec(&config).unwrap();
    let specs = Config::from_json_bytes(&bytes, directory).unwrap().tensors().unwrap();
    let sources: Vec<Box<dyn RowSource>> = specs
        .iter()
        .map(|spec| {
            let shape = match *spec.shape {
                [rows, columns] => (rows, columns),
                _ => (1, spec.shape[0]),
            };
            let is_norm = spec.name.contains("norm") && spec.name.ends_with("weight");
            let centre = f32::from(u8::from(is_norm));
            replace(Noise { name: spec.name.clone(), shape, centre })
        })
        .collect();
    let tensors: Vec<TensorToWrite<'_>> = specs
        .iter()
        .zip(&sources)
        .map(|(spec, source)| TensorToWrite {
            name: &spec.name,
            shape: &spec.shape,
            source: &**source,
        })
        .collect();
    let weights = directory.join("model.safetensors");
    write_safetensors_from(&weights, &tensors, WeightFormat::F16).unwrap();
    let end = "<|endoftext|>";
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end,
        "unk_token": end,
    });
    let ids = config["vocab_size"].as_u64().unwrap() as usize;
    std::fs::write(directory.join("tokenizer.json"), tokenizer(ids)).unwrap();
    std::fs::write(directory.join("tokenizer_config.json"), tokenizer_config.to_string()).unwrap();
    std::fs::write(directory.join("config.json"), bytes).unwrap();
}

/// The largest resident set of this process so far, in MB of 10^6 bytes; Linux only.
pub fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
