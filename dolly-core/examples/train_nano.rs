//! Trains `models/dolly-nano` from nothing: a tokenizer, plain text, then instructions.
//!
//! ```sh
//! python3 tests/nano/make_data.py --dolly databricks-dolly-15k.jsonl --corpora CORPORA --out NANO_DATA
//! cargo run --release --example train_nano -- NANO_DATA OUT
//! ```
//!
//! `OUT/dolly-nano` is the result in f16. A run that was interrupted goes on where it stopped, bit for bit.
#![allow(clippy::print_stderr, reason = "a command line program reports on stderr")]

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Parser;
use dolly_core::dataset::{Dataset, ReadOptions, SplitSize, TextCorpus};
use dolly_core::source::{SourceOptions, resolve};
use dolly_core::tokenizer::train_tokenizer;
use dolly_core::train::{Schedule, StepReport, Trainer, TrainingOptions, TrainingRun};
use dolly_core::{Config, FileFormat, WeightFormat, convert};
use serde_json::json;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Tokens of a plain-text sequence.
const TEXT_LENGTH: usize = 256;
/// Instructions of this many tokens or more are dropped.
const INSTRUCTION_LENGTH: usize = 448;

#[derive(Parser)]
struct Arguments {
    /// Folder that `tests/nano/make_data.py` wrote.
    data: PathBuf,
    /// Folder for the tokenizer, the stages' runs and the result.
    out: PathBuf,
    /// Ids of the vocabulary.
    #[arg(long, default_value_t = 8192)]
    vocabulary: usize,
    #[arg(long, default_value_t = 192)]
    hidden: usize,
    #[arg(long, default_value_t = 4)]
    layers: usize,
    #[arg(long, default_value_t = 3)]
    heads: usize,
    /// Steps of 8 blocks of plain text.
    #[arg(long, default_value_t = 9000)]
    text_steps: u64,
    /// Times each instruction is seen.
    #[arg(long, default_value_t = 2)]
    epochs: usize,
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f64,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.out)?;
    let corpus = read_corpus(&arguments.data)?;
    let tokenizer = tokenizer(&corpus, &arguments)?;
    let text = arguments.out.join("text");
    if !text.join("model.safetensors").is_file() {
        let options = text_options(&arguments);
        let trainer = Trainer::from_config(config(&arguments)?, tokenizer, options)?;
        watched(trainer, |trainer| trainer.train_text(&corpus, &text))?;
    }
    let instructions = arguments.out.join("instructions");
    if !instructions.join("model.safetensors").is_file() {
        let base = text.to_str().ok_or("the folder's name is not UTF-8")?;
        let trainer = Trainer::new(base, instruction_options(&arguments))?;
        let data = read_instructions(&arguments.data)?;
        watched(trainer, |trainer| trainer.train(&data, &instructions))?;
    }
    let trained = instructions.to_str().ok_or("the folder's name is not UTF-8")?;
    let files = resolve(trained, &SourceOptions::from_env())?;
    convert(&files, &arguments.out.join("dolly-nano"), FileFormat::Safetensors, WeightFormat::F16)?;
    Ok(())
}

/// A set of `make_data.py` with what its makers ask to be said.
fn set(name: &str, source: &str, licence: &str) -> ReadOptions {
    ReadOptions {
        name: Some(name.to_owned()),
        source: Some(source.to_owned()),
        licence: Some(licence.to_owned()),
        ..Default::default()
    }
}

fn wikipedia() -> ReadOptions {
    let source = "openings of articles of the English Wikipedia, 2015, by its contributors";
    set("enwiki-2015-leads", source, "CC-BY-SA-3.0")
}

fn dolly() -> ReadOptions {
    let source = "https://huggingface.co/datasets/databricks/databricks-dolly-15k";
    set("databricks-dolly-15k", source, "CC-BY-SA-3.0")
}

fn induction() -> ReadOptions {
    let source = "https://github.com/orhonovich/instruction-induction";
    set("instruction-induction", source, "Apache-2.0")
}

fn read_corpus(data: &Path) -> Outcome<TextCorpus> {
    let wordnet = set("wordnet-3.0-glosses", "WordNet 3.0, Princeton University", "WordNet-3.0");
    let novels = set("novels", "38 English novels, 1839 to 1921", "Public-Domain");
    let files = [
        ("text-wikipedia.jsonl", wikipedia()),
        ("text-wordnet.jsonl", wordnet),
        ("text-novels.jsonl", novels),
        ("text-dolly.jsonl", dolly()),
    ];
    let mut corpus = TextCorpus::default();
    for (file, options) in files {
        corpus = corpus.concat(&TextCorpus::from_files([data.join(file)], "text", &options)?);
    }
    Ok(corpus.shuffle(42)?)
}

fn read_instructions(data: &Path) -> Outcome<Dataset> {
    let dolly = Dataset::from_file(data.join("train-dolly.jsonl"), &dolly())?;
    let induction = Dataset::from_file(data.join("train-induction.jsonl"), &induction())?;
    Ok(dolly.concat(&induction)?)
}

/// The vocabulary is learned from every second document.
fn tokenizer(corpus: &TextCorpus, arguments: &Arguments) -> Outcome<Vec<u8>> {
    let path = arguments.out.join("tokenizer.json");
    if let Ok(bytes) = std::fs::read(&path) {
        return Ok(bytes);
    }
    let texts = corpus.iter().step_by(2);
    let bytes = train_tokenizer(texts, arguments.vocabulary, arguments.threads)?;
    std::fs::write(&path, &bytes)?;
    Ok(bytes)
}

fn config(arguments: &Arguments) -> Outcome<Config> {
    let json = json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox",
        "vocab_size": arguments.vocabulary, "hidden_size": arguments.hidden,
        "num_hidden_layers": arguments.layers, "num_attention_heads": arguments.heads,
        "intermediate_size": 4 * arguments.hidden, "hidden_act": "gelu", "rotary_pct": 0.25,
        "rotary_emb_base": 10000, "max_position_embeddings": 1024, "layer_norm_eps": 1e-5,
        "use_parallel_residual": true, "tie_word_embeddings": false, "initializer_range": 0.02,
        "bos_token_id": 0, "eos_token_id": 0,
    });
    Ok(Config::from_json_bytes(&serde_json::to_vec(&json)?, Path::new("config.json"))?)
}

/// Constant after the warm-up: the instructions' stage takes the rate down.
fn text_options(arguments: &Arguments) -> TrainingOptions {
    TrainingOptions {
        max_steps: Some(arguments.text_steps),
        batch_size: 8,
        learning_rate: arguments.learning_rate,
        warmup_steps: 100,
        max_length: Some(TEXT_LENGTH),
        ..shared_options(arguments)
    }
}

fn instruction_options(arguments: &Arguments) -> TrainingOptions {
    TrainingOptions {
        epochs: arguments.epochs,
        batch_size: 16,
        learning_rate: arguments.learning_rate,
        warmup_steps: 50,
        schedule: Schedule::Linear,
        max_length: Some(INSTRUCTION_LENGTH),
        ..shared_options(arguments)
    }
}

fn shared_options(arguments: &Arguments) -> TrainingOptions {
    TrainingOptions {
        eval_size: SplitSize::Rows(64),
        eval_steps: 500,
        save_steps: 500,
        save_total_limit: 2,
        logging_steps: 50,
        gradient_checkpointing: false,
        weight_decay: 0.1,
        adam_beta2: 0.95,
        resume: true,
        threads: Some(arguments.threads),
        ..Default::default()
    }
}

/// Runs a stage and tells how it goes on stderr.
fn watched<'a>(
    trainer: Trainer<'a>,
    run: impl FnOnce(Trainer<'a>) -> dolly_core::Result<TrainingRun>,
) -> Outcome<()> {
    let report = |report: &StepReport| {
        let row = &report.row;
        if row.step.is_multiple_of(50) {
            let speed = row.tokens_per_second;
            eprintln!("step {}: loss {:.4}, {speed:.0} tokens/s", row.step, row.loss);
        }
        ControlFlow::Continue(())
    };
    run(trainer.on_step(report))?;
    Ok(())
}
