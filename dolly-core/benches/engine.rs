//! The whole engine on a model of random weights: one measure of one process, as one JSON line.
//!
//! ```sh
//! cargo bench -p dolly-core --bench engine -- make SHAPE DIRECTORY
//! cargo bench -p dolly-core --bench engine -- convert DIRECTORY FILE FORMAT
//! cargo bench -p dolly-core --bench engine -- MODEL FORMAT MEASURE [threads] [repeats]
//! ```
//!
//! SHAPE is `160m`, `410m` (Pythia's), `3b` (dolly-v2-3b's) or `tiny`; MEASURE is one of
//! [`MEASURES`] or of [`OWN`]. `python benches/engine` runs the former beside its peers. What is measured, prompts
//! included, is the same there (`benches/engine/peers.py`): a change here is one there.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use dolly_core::model::Config;
use dolly_core::source::{SourceOptions, resolve};
use dolly_core::tokenizer::train_tokenizer;
use dolly_core::weights::{RowSource, TensorToWrite, write_safetensors_from};
use dolly_core::{FileFormat, GenerateOptions, Pipeline, Prompt, WeightFormat, convert};
use serde_json::{Value, json};

const VOCABULARY: usize = 50_280;
const MEASURES: [&str; 5] = ["prefill", "first", "decode", "batch8", "load"];
/// Measures without a peer: tokens a second of a prompt as long as the context; time to the first
/// token where 600 tokens of a prompt were read before, as a share of that where none were; loading
/// from packed weights, which are kept in the model's directory.
const OWN: [&str; 3] = ["prefill2047", "cached600", "load_packed"];

fn config(shape: &str) -> Value {
    let (hidden, layers, heads) = match shape {
        "tiny" => (128, 2, 4),
        "160m" => (768, 12, 12),
        "410m" => (1024, 24, 16),
        "3b" => (2560, 32, 32),
        other => panic!("shape {other}: tiny, 160m, 410m or 3b"),
    };
    json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox",
        "vocab_size": VOCABULARY, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": 4 * hidden, "hidden_act": "gelu",
        "rotary_pct": 0.25, "rotary_emb_base": 10000, "max_position_embeddings": 2048,
        "initializer_range": 0.02, "layer_norm_eps": 1e-5, "use_cache": true,
        "use_parallel_residual": true, "tie_word_embeddings": false, "torch_dtype": "float16",
        "bos_token_id": 0, "eos_token_id": 0,
    })
}

/// A vocabulary of the right size, Dolly's tokens last; its entries beyond the bytes are never met
/// in text.
fn tokenizer() -> Vec<u8> {
    const SMALLEST: usize = 261;
    let mut json: Value =
        serde_json::from_slice(&train_tokenizer([""].iter(), SMALLEST, 1).unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let (known, fillers) = (vocab.len(), VOCABULARY - SMALLEST);
    for id in known..known + fillers {
        vocab.insert(format!("filler{id}"), id.into());
    }
    for token in json["added_tokens"].as_array_mut().unwrap() {
        let id = token["id"].as_u64().unwrap() as usize;
        token["id"] = if id < known { id } else { id + fillers }.into();
    }
    serde_json::to_vec(&json).unwrap()
}

/// Random weights of deviation about 0.02, norms about 1, without storing them.
struct Noise {
    name: String,
    shape: (usize, usize),
    centre: f32,
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

/// A checkpoint of the shape in f16, as transformers reads it; a few rows are in memory at a time.
fn make(shape: &str, directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    let bytes = serde_json::to_vec(&config(shape)).unwrap();
    let specs = Config::from_json_bytes(&bytes, directory).unwrap().tensors().unwrap();
    let sources: Vec<Noise> = specs
        .iter()
        .map(|spec| {
            let shape = match *spec.shape {
                [rows, columns] => (rows, columns),
                _ => (1, spec.shape[0]),
            };
            let is_norm = spec.name.contains("norm") && spec.name.ends_with("weight");
            Noise { name: spec.name.clone(), shape, centre: f32::from(u8::from(is_norm)) }
        })
        .collect();
    let tensors: Vec<TensorToWrite<'_>> = specs
        .iter()
        .zip(&sources)
        .map(|(spec, source)| TensorToWrite { name: &spec.name, shape: &spec.shape, source })
        .collect();
    let weights = directory.join("model.safetensors");
    write_safetensors_from(&weights, &tensors, WeightFormat::F16).unwrap();
    let end = "<|endoftext|>";
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end,
        "unk_token": end,
    });
    std::fs::write(directory.join("tokenizer.json"), tokenizer()).unwrap();
    std::fs::write(directory.join("tokenizer_config.json"), tokenizer_config.to_string()).unwrap();
    std::fs::write(directory.join("config.json"), bytes).unwrap();
}

/// Prompts nobody has seen before: a cache of prefixes, ours or a peer's, finds nothing.
struct Prompts(u32);

impl Prompts {
    fn next(&mut self, tokens: usize) -> Vec<u32> {
        self.0 += 1;
        let mut state = self.0.wrapping_mul(2_654_435_761);
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            5 + (state >> 8) % 50_000
        };
        (0..tokens).map(|_| draw()).collect()
    }
}

/// Seconds from the call until every one of the sequences has its `new` tokens.
///
/// The wall clock around the public call, as for every peer: [`Generation::timings`] would leave
/// out handing the request over and the answer back.
///
/// [`Generation::timings`]: dolly_core::Generation::timings
fn seconds(pipe: &Pipeline, prompts: &[Vec<u32>], new: usize) -> f64 {
    let options =
        GenerateOptions { max_new_tokens: new, ignore_end: true, ..GenerateOptions::greedy() };
    let start = Instant::now();
    let submit = |ids: &Vec<u32>| pipe.complete_stream(Prompt::Ids(ids), &options).unwrap();
    let streams: Vec<_> = prompts.iter().map(submit).collect();
    let answers: Vec<_> = streams.into_iter().map(|stream| stream.finish().unwrap()).collect();
    let time = start.elapsed().as_secs_f64();
    assert!(answers.iter().all(|answer| answer.token_ids.len() == new), "fewer tokens than asked");
    time
}

/// Tokens a second after the first token, all sequences together: the time of a whole call less
/// that of a call which ends with the first token.
fn decode_rate(pipe: &Pipeline, prompts: &mut Prompts, sequences: usize, new: usize) -> f64 {
    let mut time = |new| {
        let ids: Vec<Vec<u32>> = (0..sequences).map(|_| prompts.next(64)).collect();
        seconds(pipe, &ids, new)
    };
    let first = time(1);
    (sequences * new) as f64 / (time(new + 1) - first)
}

/// One sample: tokens a second, or for `first` milliseconds.
fn sample(pipe: &Pipeline, prompts: &mut Prompts, measure: &str) -> f64 {
    match measure {
        "prefill" => 512.0 / seconds(pipe, &[prompts.next(512)], 1),
        "first" => 1e3 * seconds(pipe, &[prompts.next(64)], 1),
        "decode" => decode_rate(pipe, prompts, 1, 128),
        "batch8" => decode_rate(pipe, prompts, 8, 64),
        "prefill2047" => 2047.0 / seconds(pipe, &[prompts.next(2047)], 1),
        "cached600" => {
            let [shared, first, second] = [600, 10, 10].map(|tokens| prompts.next(tokens));
            let cold = seconds(pipe, &[[shared.clone(), first].concat()], 1);
            seconds(pipe, &[[shared, second].concat()], 1) / cold
        }
        other => panic!("measure {other}: one of {MEASURES:?} or {OWN:?}"),
    }
}

fn run(model: &str, format: WeightFormat, measure: &str, threads: usize, repeats: usize) -> Value {
    let known = MEASURES.contains(&measure) || OWN.contains(&measure);
    assert!(known, "measure {measure}: one of {MEASURES:?} or {OWN:?}");
    let mut prompts = Prompts(0);
    let builder = || {
        let builder = Pipeline::builder(model).weights(format).threads(threads);
        match measure {
            "load_packed" => builder.packed_weights(Path::new(model).join("packed")),
            // Room for the prompts of all repeats: what is measured is not what to keep.
            "cached600" => builder.prefix_cache(1 << 30),
            _ => builder,
        }
    };
    if measure == "load_packed" {
        drop(builder().build().unwrap());
    }
    let start = Instant::now();
    let pipe = builder().build().unwrap();
    let samples: Vec<f64> = if measure.starts_with("load") {
        seconds(&pipe, &[prompts.next(64)], 1);
        let loaded = start.elapsed().as_secs_f64();
        // What a short answer adds to the peak.
        seconds(&pipe, &[prompts.next(64)], 17);
        vec![loaded]
    } else {
        sample(&pipe, &mut prompts, measure);
        (0..repeats).map(|_| sample(&pipe, &mut prompts, measure)).collect()
    };
    json!({"samples": samples, "peak_mb": peak_mb(), "version": env!("CARGO_PKG_VERSION")})
}

fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match *words {
        // `cargo test --benches` runs it so: there is nothing to measure.
        [] => println!("see benches/engine"),
        ["make", shape, directory] => make(shape, Path::new(directory)),
        ["convert", directory, file, format] => {
            let files = resolve(directory, &SourceOptions::default()).unwrap();
            convert(&files, Path::new(file), FileFormat::Gguf, format.parse().unwrap()).unwrap();
        }
        [model, format, measure, ref rest @ ..] => {
            let number = |i: usize, default| rest.get(i).map_or(default, |n| n.parse().unwrap());
            let format = format.parse().unwrap();
            println!("{}", run(model, format, measure, number(0, 2), number(1, 3)));
        }
        _ => panic!("make SHAPE DIRECTORY | convert DIRECTORY FILE FORMAT | MODEL FORMAT MEASURE"),
    }
}
