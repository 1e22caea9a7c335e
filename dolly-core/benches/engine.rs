//! The whole engine on a model of random weights: one measure of one process, as one JSON line.
//!
//! ```sh
//! cargo bench -p dolly-core --bench engine -- make SHAPE DIRECTORY
//! cargo bench -p dolly-core --bench engine -- convert DIRECTORY FILE FORMAT
//! cargo bench -p dolly-core --bench engine -- MODEL FORMAT MEASURE [threads] [repeats]
//! cargo bench -p dolly-core --bench engine -- limits THREADS
//! cargo bench -p dolly-core --bench engine -- bandwidth THREADS
//! ```
//!
//! SHAPE is `160m`, `410m` (Pythia's), `3b` (dolly-v2-3b's) or `tiny`; MEASURE is one of
//! [`MEASURES`] or of [`OWN`]. `python benches/engine` runs the former beside its peers. What is measured, prompts
//! included, is the same there (`benches/engine/peers.py`): a change here is one there.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use dolly_core::source::{SourceOptions, resolve};
use dolly_core::{FileFormat, GenerateOptions, Pipeline, Prompt, WeightFormat, convert};
use serde_json::{Value, json};
use support::limits::{self, Arithmetic};
use support::peak_mb;

mod support;

const MEASURES: [&str; 5] = ["prefill", "first", "decode", "batch8", "load"];
/// Measures without a peer: tokens a second of a prompt as long as the context; time to the first
/// token where 600 tokens of a prompt were read before, as a share of that where none were; loading
/// from packed weights, which are kept beside the model.
const OWN: [&str; 3] = ["prefill2047", "cached600", "load_packed"];

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
            "load_packed" => builder.packed_weights(format!("{model}.packed")),
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

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match *words {
        // `cargo test --benches` runs it so: there is nothing to measure.
        [] => println!("see benches/engine"),
        ["make", shape, directory] => support::write(Path::new(directory), shape),
        ["convert", directory, file, format] => {
            let files = resolve(directory, &SourceOptions::default()).unwrap();
            convert(&files, Path::new(file), FileFormat::Gguf, format.parse().unwrap()).unwrap();
        }
        ["limits", threads] => {
            let threads = threads.parse().unwrap();
            let peak = |of| limits::peak(of, threads).map(|peak| peak / 1e9);
            let read = limits::read_bandwidth(threads) / 1e9;
            let (f32, bf16) = (peak(Arithmetic::F32), peak(Arithmetic::Bf16));
            let int8 = peak(Arithmetic::Int8);
            let found = json!({"read_gb_s": read, "f32": f32, "bf16": bf16, "int8": int8});
            println!("{found}");
        }
        ["bandwidth", threads] => {
            let read = limits::read_bandwidth(threads.parse().unwrap()) / 1e9;
            println!("{}", json!({ "read_gb_s": read }));
        }
        [model, format, measure, ref rest @ ..] => {
            let number = |i: usize, default| rest.get(i).map_or(default, |n| n.parse().unwrap());
            let format = format.parse().unwrap();
            println!("{}", run(model, format, measure, number(0, 2), number(1, 3)));
        }
        _ => panic!("make | convert | limits | bandwidth | MODEL FORMAT MEASURE: see above"),
    }
}
