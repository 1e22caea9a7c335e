//! Training steps of a random model: tokens per second and peak memory, as one JSON line.
//!
//! `cargo bench --bench train -- SHAPE MODE [threads] [steps]`, SHAPE `14m`, `70m` or `160m` (Pythia's,
//! 50,280 rows) or `nano` (dolly-nano's, 8,192 rows), MODE `full`,
//! `checkpointed` or `lora`; batch 4 x 256. `benches/train.py` runs it beside
//! its peers. The first step is not counted; the process ends before the result would be written.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, clippy::exit)]

use std::ops::ControlFlow;
use std::time::Instant;

use dolly_core::dataset::{ReadOptions, SplitSize, TextCorpus};
use dolly_core::train::{LoraConfig, Trainer, TrainingOptions};
use serde_json::json;

mod support;

const BATCH: usize = 4;
const LENGTH: usize = 256;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let word = |i: usize, default: &'static str| words.get(i).map_or(default, String::as_str);
    let (shape, mode) = (word(0, "70m").to_owned(), word(1, "full").to_owned());
    let threads = word(2, "2").parse().unwrap();
    let steps: u64 = word(3, "6").parse().unwrap();
    let directory = std::env::temp_dir().join(format!("dolly-bench-train-{}", std::process::id()));
    support::write(&directory, &shape);
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
            println!("{}", json!({"tokens_per_second": speed, "peak_mb": support::peak_mb()}));
            let _ = std::fs::remove_dir_all(&directory);
            std::process::exit(0);
        }
        ControlFlow::Continue(())
    });
    run.train_text(&corpus, directory.join("out")).unwrap();
}
