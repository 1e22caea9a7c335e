//! Training steps of a random model: tokens per second and peak memory, as one JSON line.
//!
//! `cargo bench --bench train -- SHAPE MODE [threads] [steps]`, SHAPE `14m`, `70m` or `160m` (Pythia's,
//! 50,280 rows) or `nano` (dolly-nano's, 8,192 rows), MODE `full`,
//! `checkpointed` or `lora`; batch 4 x 256. `benches/train.py` runs it beside
//! its peers. The first step is not counted; the process ends before the result would be written.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, clippy::exit)]

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use dolly_core::dataset::{ReadOptions, SplitSize, TextCorpus};
use dolly_core::model::Config;
use dolly_core::tokenizer::train_tokenizer;
use dolly_core::train::{LoraConfig, Trainer, TrainingOptions};
use dolly_core::weights::{RowSource, TensorToWrite, WeightFormat, write_safetensors_from};
use serde_json::json;

const BATCH: usize = 4;
const LENGTH: usize = 256;

fn vocabulary(shape: &str) -> usize {
    if shape == "nano" { 8192 } else { 50_280 }
}

fn config(shape: &str) -> serde_json::Value {
    let (hidden, layers, heads) = match shape {
        "nano" => (192, 4, 3),
        "14m" => (128, 6, 4),
        "70m" => (512, 6, 8),
        "160m" => (768, 12, 12),
        other => panic!("shape {other}: nano, 14m, 70m or 160m"),
    };
    json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox",
        "vocab_size": vocabulary(shape), "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": 4 * hidden, "hidden_act": "gelu",
        "rotary_pct": 0.25, "rotary_emb_base": 10000, "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5, "use_parallel_residual": true, "tie_word_embeddings": false,
        "bos_token_id": 0, "eos_token_id": 0,
    })
}

/// A vocabulary of the right size; its entries beyond the bytes are never met.
fn tokenizer(ids: usize) -> Vec<u8> {
    let mut json: serde_json::Value =
        serde_json::from_slice(&train_tokenizer([""].iter(), 261, 1).unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let known = vocab.len();
    for id in known..ids {
        vocab.insert(format!("filler{id}"), id.into());
    }
    serde_json::to_vec(&json).unwrap()
}

/// Random weights of deviation about 0.02, without storing them.
struct Noise {
    name: String,
    shape: (usize, usize),
}

impl RowSource for Noise {
    fn name(&self) -> &str {
        &self.name
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) -> dolly_core::Result<()> {
        for (i, x) in out.iter_mut().enumerate() {
            let place = (first * self.shape.1 + i) as u64 + self.name.len() as u64;
            let n = place.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_mul(place | 1) >> 40;
            *x = (n as f32 / (1 << 24) as f32 - 0.5) * 0.07;
        }
        Ok(())
    }
}

/// A checkpoint of the shape.
fn write_model(directory: &Path, shape: &str) {
    std::fs::create_dir_all(directory).unwrap();
    let bytes = serde_json::to_vec(&config(shape)).unwrap();
    let specs = Config::from_json_bytes(&bytes, directory).unwrap().tensors().unwrap();
    let sources: Vec<Noise> = specs
        .iter()
        .map(|spec| {
            let (rows, columns) = match *spec.shape {
                [rows, columns] => (rows, columns),
                _ => (1, spec.shape[0]),
            };
            Noise { name: spec.name.clone(), shape: (rows, columns) }
        })
        .collect();
    let tensors: Vec<TensorToWrite<'_>> = specs
        .iter()
        .zip(&sources)
        .map(|(spec, source)| TensorToWrite { name: &spec.name, shape: &spec.shape, source })
        .collect();
    let weights = directory.join("model.safetensors");
    write_safetensors_from(&weights, &tensors, WeightFormat::F16).unwrap();
    std::fs::write(directory.join("config.json"), bytes).unwrap();
    std::fs::write(directory.join("tokenizer.json"), tokenizer(vocabulary(shape))).unwrap();
}

fn peak_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kb = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kb.unwrap_or(0) >> 10
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let word = |i: usize, default: &'static str| words.get(i).map_or(default, String::as_str);
    let (shape, mode) = (word(0, "70m").to_owned(), word(1, "full").to_owned());
    let threads = word(2, "2").parse().unwrap();
    let steps: u64 = word(3, "6").parse().unwrap();
    let directory = std::env::temp_dir().join(format!("dolly-bench-train-{}", std::process::id()));
    write_model(&directory, &shape);
    let options = TrainingOptions {
        lora: (mode == "lora").then(LoraConfig::default),
        max_steps: Some(steps),
        batch_size: BATCH,
        learning_rate: 1e-4,
        max_length: Some(LENGTH),
        eval_size: SplitSize::Rows(0),
        save_steps: 0,
        gradient_checkpointing: mode == "checkpointed",
        threads: Some(threads),
        ..Default::default()
    };
    let text: String = (0..20_000_u32).map(|i| char::from(b'a' + (i * i % 23) as u8)).collect();
    let corpus = TextCorpus::from_texts([text], "letters", &ReadOptions::default()).unwrap();
    let trainer = Trainer::new(directory.to_str().unwrap(), options).unwrap();
    let mut last = Instant::now();
    let mut times = Vec::new();
    let run = trainer.on_step(|report| {
        times.push(last.elapsed().as_secs_f64());
        last = Instant::now();
        if report.row.step >= steps {
            let mut counted = times[1..].to_vec();
            counted.sort_by(f64::total_cmp);
            let speed = (BATCH * LENGTH) as f64 / counted[counted.len() / 2];
            println!("{}", json!({"tokens_per_second": speed, "peak_mb": peak_mb()}));
            let _ = std::fs::remove_dir_all(&directory);
            std::process::exit(0);
        }
        ControlFlow::Continue(())
    });
    run.train_text(&corpus, directory.join("out")).unwrap();
}
