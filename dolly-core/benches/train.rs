//! Training steps of a random model: tokens per second and peak memory, as one JSON line.
//!
//! `cargo bench --bench train -- SHAPE MODE [threads] [steps]`, SHAPE `14m`, `70m` or `160m` (Pythia's,
//! 50,280 rows), MODE `full`, `checkpointed` or `lora`; batch 4 x 256. `benches/train.py` runs it beside
//! its peers. The first step is not counted; the process ends before the result would be written.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, clippy::exit)]

use std::ops::ControlFlow;
use std::time::Instant;

use dolly_core::Config;
use dolly_core::dataset::{SplitSize, TextCorpus};
use dolly_core::train::{LoraConfig, Trainer, TrainingOptions};
use serde_json::json;

const VOCABULARY: usize = 50_280;
const BATCH: usize = 4;
const LENGTH: usize = 256;

fn config(shape: &str) -> serde_json::Value {
    let (hidden, layers, heads) = match shape {
        "14m" => (128, 6, 4),
        "70m" => (512, 6, 8),
        "160m" => (768, 12, 12),
        other => panic!("shape {other}: 14m, 70m or 160m"),
    };
    json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox",
        "vocab_size": VOCABULARY, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": 4 * hidden, "hidden_act": "gelu",
        "rotary_pct": 0.25, "rotary_emb_base": 10000, "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5, "use_parallel_residual": true, "tie_word_embeddings": false,
        "bos_token_id": 0, "eos_token_id": 0,
    })
}

/// A vocabulary of the right size; its entries beyond the bytes are never met.
fn tokenizer() -> Vec<u8> {
    let mut json: serde_json::Value = serde_json::from_slice(
        &dolly_core::tokenizer::train_tokenizer([""].iter(), 261, 1).unwrap(),
    )
    .unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let known = vocab.len();
    for id in known..VOCABULARY {
        vocab.insert(format!("filler{id}"), id.into());
    }
    serde_json::to_vec(&json).unwrap()
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
    let out = directory.join("out");
    let config = config(&shape);
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
    let corpus = TextCorpus::from_texts([text], "letters", None, None).unwrap();
    let trainer = trainer(&directory, &config, options);
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
    run.train_text(&corpus, out).unwrap();
}
