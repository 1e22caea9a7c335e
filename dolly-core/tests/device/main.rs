//! The network as a GPU runs it, against the CPU's kernels and transformers' golden values.
//!
//! `DOLLY_TEST_DEVICE=cuda` (or `cuda:N`) runs it on a GPU, `auto` on whatever the library takes;
//! unset, the same code runs on candle's CPU tensors. The suites of what a caller may rely on, which
//! else run on the kernels, are in it and run on the same device. All files are in the program: it
//! can be copied to a machine with a GPU and run there.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]
#![allow(
    clippy::duplicate_mod,
    reason = "the suites are programs of their own, with their support"
)]

mod attention;
#[path = "../behaviour.rs"]
mod behaviour;
#[path = "../../benches/device.rs"]
#[allow(dead_code, reason = "its `main` is the bench target's")]
mod bench;
mod choice;
#[path = "../k_quants.rs"]
mod k_quants;
#[path = "../less_work.rs"]
mod less_work;
#[path = "../parity.rs"]
mod parity;
mod support;
mod train;

use dolly_core::{
    CacheFormat, Device, Error, GenerateOptions, Pipeline, PipelineBuilder, Prompt, WeightFormat,
};
use safetensors::SafeTensors;

/// A golden configuration: its files, and for some prompts the logits and greedy tokens of
/// transformers in f32.
struct Model {
    name: &'static str,
    config: &'static [u8],
    weights: &'static [u8],
    golden: &'static [u8],
}

macro_rules! models {
    ($($name:literal)*) => {
        [$(Model {
            name: $name,
            config: include_bytes!(concat!("../../../tests/golden/parity/", $name, "/config.json")),
            weights: include_bytes!(concat!("../../../tests/golden/parity/", $name, "/model.safetensors")),
            golden: include_bytes!(concat!("../../../tests/golden/parity/", $name, "/golden.safetensors")),
        }),*]
    };
}

static MODELS: [Model; 12] = models! {
    "standard" "head_dim_80" "odd_shapes" "sequential" "tied" "no_attention_bias" "rope_linear"
    "rotary_full" "rotary_half_base_5000" "act_relu" "act_silu" "act_quick_gelu"
};

/// A configuration that is refused.
static REFUSED: [Model; 1] = models! { "rope_dynamic" };

static KQUANTS: [(&str, &[u8]); 3] = [
    ("model.gguf", include_bytes!("../../../tests/golden/kquants/model.gguf")),
    ("ids.json", include_bytes!("../../../tests/golden/kquants/ids.json")),
    ("logits.f32", include_bytes!("../../../tests/golden/kquants/logits.f32")),
];

static NANO: [(&str, &[u8]); 3] = [
    ("config.json", include_bytes!("../../../models/dolly-nano/config.json")),
    ("tokenizer.json", include_bytes!("../../../models/dolly-nano/tokenizer.json")),
    ("model.safetensors", include_bytes!("../../../models/dolly-nano/model.safetensors")),
];

/// Largest difference of a logit in f32: on the CPU as for the kernels, on a GPU with other sums.
fn tolerance() -> f32 {
    if gpu().is_some() { 1e-3 } else { 1e-4 }
}

/// The GPU to run on, if any.
fn gpu() -> Option<Device> {
    let name = std::env::var("DOLLY_TEST_DEVICE").ok().filter(|name| name != "candle")?;
    Some(name.parse().unwrap()).filter(|device| *device != Device::Cpu)
}

/// The model on the device under test.
fn on_device(id: &str) -> PipelineBuilder {
    match gpu() {
        Some(device) => Pipeline::builder(id).device(device),
        None => Pipeline::builder(id).as_on_gpu(true),
    }
}

fn on_cpu(id: &str) -> PipelineBuilder {
    Pipeline::builder(id).device(Device::Cpu)
}

/// A directory with these files.
fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

impl Model {
    fn named(name: &str) -> &'static Self {
        MODELS.iter().find(|model| model.name == name).unwrap()
    }

    fn directory(&self) -> tempfile::TempDir {
        directory(&[
            ("config.json", self.config),
            ("model.safetensors", self.weights),
            ("tokenizer.json", support::tiny_tokenizer().as_bytes()),
        ])
    }

    /// `(ids, logits, greedy tokens)` of each prompt.
    fn goldens(&self) -> Vec<(Vec<u32>, Vec<f32>, Vec<u32>)> {
        let file = SafeTensors::deserialize(self.golden).unwrap();
        let ids = |name: &str| -> Vec<u32> {
            let data = file.tensor(name).map_or(Vec::new(), |tensor| tensor.data().to_vec());
            data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
        };
        let floats = |name: &str| -> Vec<f32> {
            let data = file.tensor(name).unwrap().data().to_vec();
            data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let count = file.names().iter().filter(|name| name.starts_with("input_ids")).count();
        let one = |n| {
            let part = |of: &str| format!("{of}.{n}");
            (ids(&part("input_ids")), floats(&part("logits")), ids(&part("greedy")))
        };
        (0..count).map(one).collect()
    }
}

fn path(directory: &tempfile::TempDir) -> &str {
    directory.path().to_str().unwrap()
}

fn greedy(tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens: tokens, ignore_end: true, ..GenerateOptions::greedy() }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let difference = |(a, b): (&f32, &f32)| if a.is_nan() { f32::NAN } else { (a - b).abs() };
    a.iter().zip(b).map(difference).fold(0.0, |max, x| if x > max || x.is_nan() { x } else { max })
}

/// Root mean square of the difference as a share of the expected numbers'.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let squares: f32 = found.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum();
    (squares / expected.iter().map(|x| x * x).sum::<f32>()).sqrt()
}

#[test]
fn f32_equals_transformers() {
    for model in &MODELS {
        let directory = model.directory();
        let pipe = on_device(path(&directory)).weights(WeightFormat::F32).build().unwrap();
        for (ids, logits, tokens) in model.goldens() {
            let off = largest_difference(&pipe.logits(&ids).unwrap(), &logits);
            let (name, length) = (model.name, ids.len());
            assert!(off <= tolerance(), "{name}, {length} ids: off by {off}");
            if !tokens.is_empty() {
                let answer = pipe.complete(Prompt::Ids(&ids), &greedy(tokens.len())).unwrap();
                assert_eq!(answer.token_ids, tokens, "{name}, {length} ids");
            }
        }
    }
}

/// Largest error of each float format against the same weights with activations in f32, as a share of
/// the logits: a device rounds activations to the weights' type, and so do kernels whose CPU multiplies
/// bf16.
const FLOATS: [(WeightFormat, f32); 2] = [(WeightFormat::F16, 4e-3), (WeightFormat::Bf16, 2e-2)];

#[test]
fn float_formats_err_as_their_type_rounds() {
    for name in ["standard", "head_dim_80", "odd_shapes"] {
        let model = Model::named(name);
        let directory = model.directory();
        let (ids, exact, _) = model.goldens().pop().unwrap();
        for (format, budget) in FLOATS {
            let load = |builder: PipelineBuilder| {
                let builder = builder.weights(format).kv_cache(CacheFormat::F32);
                builder.build().unwrap().logits(&ids).unwrap()
            };
            let expected = load(on_cpu(path(&directory)).reference(true));
            for (on, found) in [
                ("kernels", load(on_cpu(path(&directory)))),
                ("device", load(on_device(path(&directory)))),
            ] {
                let off = error(&found, &expected);
                println!("{name} {format}, {on}: {off:.1e}");
                assert!(off <= budget, "{name} {format}, {on}: {off}");
                assert!(error(&found, &exact) > 1e-5, "{name} {format}, {on}: changed nothing");
            }
        }
    }
}

/// Products of blocks round their inputs to 8 bits: the CPU's kernels in groups of 32, candle with
/// Q4_K and Q6_K on the CPU in groups of 256. Against the same weights with exact inputs a device may
/// err so many times as much as the kernels do.
const TIMES_THE_KERNELS: f32 = 3.0;

/// Compares a device and the kernels with the reference for the same weights.
fn check_blocks(id: &str, ids: &[u32], format: WeightFormat) {
    let load = |builder: PipelineBuilder| {
        let builder = builder.weights(format).kv_cache(CacheFormat::F32);
        builder.build().unwrap().logits(ids).unwrap()
    };
    let exact = load(on_cpu(id).reference(true));
    let kernels = error(&load(on_cpu(id)), &exact);
    let device = error(&load(on_device(id)), &exact);
    println!("{format}: {device:.1e}, kernels {kernels:.1e}");
    assert!(device <= TIMES_THE_KERNELS * kernels, "{format}: {device}, kernels {kernels}");
    assert!(device > 1e-4, "{format}: multiplied as floats");
}

#[test]
fn blocks_err_about_as_much_as_the_kernels() {
    for name in ["standard", "head_dim_80"] {
        let model = Model::named(name);
        let directory = model.directory();
        let (ids, ..) = model.goldens().pop().unwrap();
        check_blocks(path(&directory), &ids, WeightFormat::Q8_0);
        check_blocks(path(&directory), &ids, WeightFormat::Q4_0);
    }
    let directory = directory(&KQUANTS);
    let file = directory.path().join("model.gguf");
    let ids: Vec<u32> = (0..40).map(|i| 1 + (i * 7) % 60).collect();
    for format in [WeightFormat::Auto, WeightFormat::Q4K, WeightFormat::Q6K] {
        check_blocks(file.to_str().unwrap(), &ids, format);
    }
}

#[test]
fn the_bundled_model_writes_the_same_tokens() {
    let directory = directory(&NANO);
    let load = |builder: PipelineBuilder| builder.weights(WeightFormat::F32).build().unwrap();
    let (cpu, device) = (load(on_cpu(path(&directory))), load(on_device(path(&directory))));
    for instruction in ["Name three colours.", "Write a short story about a dog.", "What is rain?"]
    {
        let options = GenerateOptions { ignore_end: true, ..greedy(48) };
        let (a, b) = (cpu.generate(instruction, &options), device.generate(instruction, &options));
        assert_eq!(a.unwrap().token_ids, b.unwrap().token_ids, "{instruction}");
    }
}

/// Prompts of different lengths, some of which begin alike.
fn prompts(count: usize) -> Vec<Vec<u32>> {
    (0..count)
        .map(|n| (0..3 + 11 * n).map(|i| (1 + (i * (5 + n % 2)) % 60) as u32).collect())
        .collect()
}

/// Tokens and their logits' logarithms of requests that run together.
fn together(
    pipe: &Pipeline,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
) -> Vec<Vec<(u32, f32)>> {
    let streams =
        prompts.iter().map(|ids| pipe.complete_stream(Prompt::Ids(ids), options).unwrap());
    let streams: Vec<_> = streams.collect();
    let answers = streams.into_iter().map(|stream| stream.finish().unwrap());
    answers
        .map(|answer| {
            let tokens = answer.logprobs.unwrap();
            tokens.iter().map(|token| (token.id, token.logprob)).collect()
        })
        .collect()
}

#[test]
fn a_batch_gives_what_each_alone_gives() {
    let directory = Model::named("standard").directory();
    let load = || on_device(path(&directory)).weights(WeightFormat::F32).build().unwrap();
    let prompts = prompts(9);
    for lookup in [None, Some(4)] {
        // Ends at different steps: the batch is laid out anew each time.
        let options = |n: usize| GenerateOptions {
            logprobs: Some(1),
            prompt_lookup: lookup,
            ..greedy(10 + 5 * n)
        };
        let pipe = load();
        let streams: Vec<_> = prompts
            .iter()
            .enumerate()
            .map(|(n, ids)| pipe.complete_stream(Prompt::Ids(ids), &options(n)).unwrap())
            .collect();
        let answers: Vec<_> = streams.into_iter().map(|stream| stream.finish().unwrap()).collect();
        let alone = load();
        for (n, (ids, answer)) in prompts.iter().zip(&answers).enumerate() {
            let expected = alone.complete(Prompt::Ids(ids), &options(n)).unwrap();
            assert_eq!(answer.token_ids, expected.token_ids, "prompt {n}, lookup {lookup:?}");
            let (a, b) = (answer.logprobs.as_ref().unwrap(), expected.logprobs.as_ref().unwrap());
            for (a, b) in a.iter().zip(b) {
                assert!((a.logprob - b.logprob).abs() <= tolerance(), "{a:?} {b:?}");
            }
        }
    }
}

#[test]
fn kept_prefixes_change_nothing() {
    let directory = Model::named("standard").directory();
    let load = |bytes| {
        on_device(path(&directory)).weights(WeightFormat::F32).prefix_cache(bytes).build().unwrap()
    };
    let (kept, off) = (load(1 << 24), load(0));
    let shared: Vec<u32> = (0..50).map(|i| 1 + (i * 13) % 60).collect();
    let options = GenerateOptions { logprobs: Some(1), ..greedy(8) };
    for tail in 0..4u32 {
        let ids = [&*shared, &[1 + tail, 2]].concat();
        let [a, b] =
            [&kept, &off].map(|pipe| together(pipe, &[ids.clone(), ids.clone()], &options));
        for (a, b) in a.concat().iter().zip(b.concat()) {
            assert_eq!(a.0, b.0);
            assert!((a.1 - b.1).abs() <= tolerance(), "{a:?} {b:?}");
        }
    }
    let prefix_bytes = kept.memory().prefix_cache;
    assert!(prefix_bytes > 0 && off.memory().prefix_cache == 0, "{prefix_bytes}");
}

#[test]
fn what_does_not_fit_is_refused_and_the_rest_goes_on() {
    let directory = Model::named("standard").directory();
    let load =
        |limit| on_device(path(&directory)).weights(WeightFormat::Bf16).memory_limit(limit).build();
    let free = on_device(path(&directory)).weights(WeightFormat::Bf16).build().unwrap();
    let weights = free.memory().weights;
    assert!(matches!(load(weights / 2), Err(Error::MemoryLimit { .. })));
    // Room for the shorter request's cache alone: both are rounded up to 64 tokens.
    let token = free.memory().cache_per_token;
    let pipe = load(weights + 64 * token).unwrap();
    let (short, long) = (vec![1; 8], vec![1; 80]);
    let refused = pipe.complete(Prompt::Ids(&long), &greedy(8));
    assert!(matches!(refused, Err(Error::MemoryLimit { .. })), "{refused:?}");
    assert_eq!(pipe.complete(Prompt::Ids(&short), &greedy(8)).unwrap().token_ids.len(), 8);
}

#[test]
fn planned_bytes_follow_the_formats() {
    let directory = Model::named("standard").directory();
    let bytes = |format| {
        let pipe = on_device(path(&directory)).weights(format).build().unwrap();
        (pipe.memory().weights, pipe.memory().cache_per_token)
    };
    let (wide, halves, blocks) =
        (bytes(WeightFormat::F32), bytes(WeightFormat::Bf16), bytes(WeightFormat::Q4_0));
    assert_eq!(bytes(WeightFormat::F16), halves);
    assert_eq!(wide.1, 2 * halves.1);
    assert!(
        2 * halves.0 > wide.0 && halves.0 < wide.0 && blocks.0 < halves.0,
        "{wide:?} {halves:?}"
    );
}

#[test]
fn other_caches_are_taken_or_refused_by_name() {
    let directory = Model::named("standard").directory();
    let load =
        |format| on_device(path(&directory)).weights(WeightFormat::Q8_0).kv_cache(format).build();
    let per_token = |format| load(format).unwrap().memory().cache_per_token;
    assert_eq!(per_token(CacheFormat::F32), 2 * per_token(CacheFormat::F16));
    if gpu() != Some(Device::Auto) {
        assert!(matches!(load(CacheFormat::Q8_0), Err(Error::Unsupported(_))));
    }
}

#[test]
fn a_gpu_that_is_not_there_is_named() {
    let directory = Model::named("standard").directory();
    match Pipeline::builder(path(&directory)).device(Device::Cuda(4711)).build() {
        Err(Error::Device { device, reason }) => {
            assert_eq!(device, "cuda:4711");
            println!("{reason}");
        }
        other => panic!("{other:?}"),
    }
    // Any device will do: there is always one.
    let pipe = Pipeline::builder(path(&directory)).device(Device::Auto).build().unwrap();
    assert_eq!(pipe.complete(Prompt::Ids(&[1, 2, 3]), &greedy(4)).unwrap().token_ids.len(), 4);
}

/// The bench: `DOLLY_BENCH="cuda bf16 410m"` says what of.
#[test]
#[ignore = "measures, and takes minutes"]
fn measure() -> Result<(), Error> {
    let words = std::env::var("DOLLY_BENCH").unwrap_or_default();
    let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    // The harness leaves its line open.
    println!();
    bench::run(&words)
}
