//! Memory while loading, against the promise: the size afterwards and 1.2 times the largest tensor.
//!
//! Writes a random checkpoint of Pythia 410M's shape in every format this library writes, and loads
//! each in a process of its own, which tells its largest resident set (Linux only). Arguments are
//! further models to load.
//!
//! ```sh
//! cargo bench -p dolly-core --bench load -- [DIR|FILE]...
//! ```
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;

use dolly_core::source::{SourceOptions, resolve};
use dolly_core::weights::{Checkpoint, RowSource, TensorToWrite, write_safetensors_from};
use dolly_core::{Config, FileFormat, Pipeline, Result, WeightFormat, convert};

const CONFIG: &str = r#"{"model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 1024,
    "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "hidden_act": "gelu", "max_position_embeddings": 2048, "rotary_pct": 0.25,
    "use_parallel_residual": true, "tie_word_embeddings": false, "torch_dtype": "float32"}"#;

/// Weights in about -0.04..0.04, another sequence for each tensor and row.
struct Noise<'a> {
    name: &'a str,
    shape: (usize, usize),
}

impl RowSource for Noise<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) -> Result<()> {
        let seed = self.name.bytes().fold(first as u32, |h, b| h.wrapping_mul(31) ^ u32::from(b));
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        for weight in out {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *weight = ((state >> 8) as f32 / (1u32 << 24) as f32 - 0.5) * 0.08;
        }
        Ok(())
    }
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    arguments.retain(|argument| argument != "--bench");
    match arguments.iter().position(|argument| argument == "--child") {
        Some(at) => child(&arguments[at + 1], arguments[at + 2].parse().unwrap()),
        None => parent(&arguments),
    }
}

fn parent(others: &[String]) {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let f32s = place("f32");
    checkpoint(&f32s);
    println!(
        "| model | held as | final MB | peak - baseline MB | largest tensor MB | over / largest |"
    );
    println!("|---|---|---|---|---|---|");
    measure(&f32s, "safetensors f32", WeightFormat::Auto);
    measure(&f32s, "safetensors f32", WeightFormat::Q8_0);
    measure(&f32s, "safetensors f32", WeightFormat::Q4_0);
    let files = resolve(f32s.to_str().unwrap(), &SourceOptions::default()).unwrap();
    let f16s = place("f16");
    convert(&files, &f16s, FileFormat::Safetensors, WeightFormat::F16).unwrap();
    measure(&f16s, "safetensors f16", WeightFormat::Auto);
    for format in [WeightFormat::Q8_0, WeightFormat::Q4_0] {
        let gguf = place(&format!("{format}.gguf"));
        convert(&files, &gguf, FileFormat::Gguf, format).unwrap();
        measure(&gguf, &format!("GGUF {format}"), WeightFormat::Auto);
    }
    for other in others {
        measure(Path::new(other), other, WeightFormat::Auto);
    }
}

fn checkpoint(directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    let config = Config::from_json_bytes(CONFIG.as_bytes(), directory).unwrap();
    let specs = config.tensors().unwrap();
    let sources: Vec<Noise<'_>> = specs
        .iter()
        .map(|spec| Noise {
            name: &spec.name,
            shape: match spec.shape[..] {
                [rows, cols] => (rows, cols),
                _ => (1, spec.shape[0]),
            },
        })
        .collect();
    let tensors: Vec<TensorToWrite<'_>> = specs
        .iter()
        .zip(&sources)
        .map(|(spec, source)| TensorToWrite { name: &spec.name, shape: &spec.shape, source })
        .collect();
    write_safetensors_from(&directory.join("model.safetensors"), &tensors, WeightFormat::F32)
        .unwrap();
    std::fs::write(directory.join("tokenizer.json"), support::tiny_tokenizer()).unwrap();
    std::fs::write(directory.join("config.json"), CONFIG).unwrap();
}

/// Loads a model in a child, which prints its row of the table.
fn measure(model: &Path, title: &str, format: WeightFormat) {
    print!("| {title} | {format} ");
    std::io::Write::flush(&mut std::io::stdout()).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let status = command.arg("--child").arg(model).arg(format.name()).status().unwrap();
    assert!(status.success(), "{status}");
}

fn child(model: &str, format: WeightFormat) {
    let files = resolve(model, &SourceOptions::default()).unwrap();
    let largest = Checkpoint::open(&files).unwrap().tensors().map(|t| t.bytes).max().unwrap();
    let before = peak();
    let pipe = Pipeline::builder(model).weights(format).build().unwrap();
    let (peak, memory) = (peak() - before, pipe.memory());
    let held = memory.weights + memory.cache + memory.workspace;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let over = (peak as f64 - held as f64) / largest as f64;
    println!(
        "| {:.1} | {:.1} | {:.1} | {over:.2} |",
        megabytes(held),
        megabytes(peak),
        megabytes(largest)
    );
}

/// The process's largest resident set so far, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
