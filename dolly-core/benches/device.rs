//! The network on a GPU beside the GPU's own limits, as JSON lines; all in one call, of one program.
//!
//! ```sh
//! target/cuda/dolly-cuda-bench cuda bf16 410m 3b 12b train-410m
//! ```
//!
//! DEVICE is `cuda`, `cuda:N` or `cpu` (candle's tensors there, in training the kernels: only to see
//! that it runs); FORMAT a weight format; SHAPE `tiny`, `410m` (Pythia's), `3b` or `12b` (dolly-v2's),
//! or `train-` before one of them for training it in f32 or bf16. Weights are random and made at run
//! time. Measured are the network's own steps, each with the likeliest token found on the device and
//! read back: what the scheduler and a sampler add is left out.
//!
//! The device tests' program holds it too, so that one file is carried to a machine with a GPU;
//! there `target/cuda/dolly-cuda-bench` calls it.
#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use dolly_core::backend::candle::{CandleBackend, CandleCache, Compute};
use dolly_core::backend::{Backend, Few, Span};
use dolly_core::dataset::{ReadOptions, SplitSize, TextCorpus};
use dolly_core::model::{LogitReader, Logits, NeoX, Workspace};
use dolly_core::train::{Trainer, TrainingOptions};
use dolly_core::{CancelToken, Config, Error, WeightFormat};
use serde_json::{Value, json};

mod support;

const VOCABULARY: usize = 50_280;
const CONTEXT: usize = 2048;
/// Repeats of every measure; the median is printed, and all of them.
const REPEATS: usize = 5;
const BATCHES: [usize; 3] = [1, 8, 32];
/// Tokens of a prompt that is decoded after, and of one whose reading is measured.
const SHORT: usize = 64;
const LONG: usize = 512;
/// Sequences of a training step.
const BATCH: usize = 8;
/// Decoding steps of a sample.
const STEPS: usize = 64;
/// Prompt tokens run in one step: the engine's on a GPU, and half of that.
const CHUNKS: [usize; 2] = [512, 256];

fn config(shape: &str) -> Config {
    let (hidden, layers, heads) = match shape {
        "tiny" => (128, 2, 4),
        "410m" => (1024, 24, 16),
        "3b" => (2560, 32, 32),
        "12b" => (5120, 36, 40),
        other => panic!("shape {other}: tiny, 410m, 3b or 12b"),
    };
    let json = json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox",
        "vocab_size": VOCABULARY, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": 4 * hidden, "hidden_act": "gelu",
        "rotary_pct": 0.25, "rotary_emb_base": 10000, "max_position_embeddings": CONTEXT,
        "layer_norm_eps": 1e-5, "use_parallel_residual": true, "tie_word_embeddings": false,
    });
    Config::from_json_bytes(&serde_json::to_vec(&json).unwrap(), Path::new(shape)).unwrap()
}

/// The median of samples, and the samples themselves.
fn summed_up(mut samples: Vec<f64>) -> (f64, Vec<f64>) {
    let as_taken = samples.clone();
    samples.sort_by(f64::total_cmp);
    (samples[samples.len() / 2], as_taken)
}

/// Seconds of `work`, after it ran once.
fn seconds(device: &Device, mut work: impl FnMut()) -> f64 {
    work();
    device.synchronize().unwrap();
    let samples = (0..REPEATS).map(|_| {
        let start = Instant::now();
        work();
        device.synchronize().unwrap();
        start.elapsed().as_secs_f64()
    });
    summed_up(samples.collect()).0
}

/// What the device can do.
struct Limits {
    /// Bytes a second that a product of one row with a large matrix reads.
    read: f64,
    /// Bytes a second read and written by a copy.
    copy: f64,
    /// Operations a second of large products in f32, f16 and bf16.
    peaks: [(DType, f64); 3],
}

impl Limits {
    fn measure(device: &Device) -> Self {
        let side = if device.is_cpu() { 256 } else { 8192 };
        let square = |dtype| {
            Tensor::rand(-1f32, 1f32, (side, side), device).unwrap().to_dtype(dtype).unwrap()
        };
        let peaks = [DType::F32, DType::F16, DType::BF16].map(|dtype| {
            let (a, b) = (square(dtype), square(dtype));
            let time = seconds(device, || drop(a.matmul(&b).unwrap()));
            (dtype, 2.0 * (side as f64).powi(3) / time)
        });
        // Larger than the caches: 8 squares of f32 are 2 GiB.
        let large = Tensor::cat(&[&square(DType::F32); 8], 0).unwrap();
        let bytes = 4.0 * large.elem_count() as f64;
        let copy = 2.0 * bytes / seconds(device, || drop(large.copy().unwrap()));
        let row = square(DType::F32).narrow(0, 0, 1).unwrap();
        let read = bytes / seconds(device, || drop(row.matmul(&large.t().unwrap()).unwrap()));
        Self { read, copy, peaks }
    }

    fn peak(&self, format: WeightFormat) -> f64 {
        let dtype = match format {
            WeightFormat::F32 => DType::F32,
            WeightFormat::Bf16 => DType::BF16,
            _ => DType::F16,
        };
        self.peaks.iter().find(|peak| peak.0 == dtype).unwrap().1
    }
}

/// A network and the sequences it is at.
struct Running {
    model: NeoX<CandleBackend>,
    work: Workspace<CandleBackend>,
    host: Vec<f32>,
}

/// Takes the likeliest token of each row, as greedy decoding does: the device finds it.
struct Likeliest(Vec<u32>);

impl LogitReader for Likeliest {
    fn needed(&self, _: usize) -> Option<usize> {
        Some(1)
    }

    fn decides(&self, _: usize, _: Few<'_>) -> bool {
        true
    }

    fn take(&mut self, _: usize, logits: Logits<'_>) {
        self.0.push(match logits {
            Logits::Largest(few) => few.pairs[0].0,
            Logits::Whole(row) => panic!("{} logits that are no numbers", row.len()),
        });
    }
}

impl Running {
    fn caches(&self, count: usize, tokens: usize) -> Vec<CandleCache> {
        let (backend, config) = (self.model.backend(), self.model.config());
        (0..count).map(|_| backend.new_cache(config, tokens).unwrap()).collect()
    }

    /// Runs spans and gives the likeliest token after the last row of each.
    fn step(&mut self, ids: &[u32], spans: &[Span], caches: &mut [&mut CandleCache]) -> Vec<u32> {
        self.model.forward(ids, spans, caches, &mut self.work).unwrap();
        let rows: Vec<usize> = spans.iter().map(|span| span.first_row + span.rows - 1).collect();
        let mut likeliest = Likeliest(Vec::new());
        self.model.logits(&rows, &mut self.work, &mut self.host, &mut likeliest).unwrap();
        likeliest.0
    }

    /// Reads a prompt of `tokens` tokens into a cache.
    fn read(&mut self, tokens: usize, chunk: usize, seed: usize, cache: &mut CandleCache) {
        let ids: Vec<u32> = (0..tokens).map(|i| ((i * 31 + seed * 977) % 50_000) as u32).collect();
        for (part, ids) in ids.chunks(chunk).enumerate() {
            let span = Span { first_row: 0, rows: ids.len(), position: part * chunk };
            self.step(ids, &[span], &mut [&mut *cache]);
        }
    }

    /// Seconds to read `batch` prompts, one after the other.
    fn prefill(&mut self, batch: usize, chunk: usize) -> f64 {
        let mut caches = self.caches(batch, LONG);
        let start = Instant::now();
        for (seed, cache) in caches.iter_mut().enumerate() {
            self.read(LONG, chunk, seed, cache);
        }
        start.elapsed().as_secs_f64()
    }

    /// Seconds of [`STEPS`] steps of `batch` sequences, whose lengths differ.
    fn decode(&mut self, batch: usize) -> f64 {
        let mut caches = self.caches(batch, SHORT + STEPS + 2);
        let mut lengths: Vec<usize> = (0..batch).map(|n| SHORT - n).collect();
        for (seed, (cache, tokens)) in caches.iter_mut().zip(&lengths).enumerate() {
            self.read(*tokens, CONTEXT, seed, cache);
        }
        let mut ids = vec![1u32; batch];
        let mut start = Instant::now();
        for step in 0..=STEPS {
            // The first step lays the sequences side by side.
            if step == 1 {
                start = Instant::now();
            }
            let span = |(row, position): (usize, &usize)| Span {
                first_row: row,
                rows: 1,
                position: *position,
            };
            let spans: Vec<Span> = lengths.iter().enumerate().map(span).collect();
            let mut own: Vec<&mut CandleCache> = caches.iter_mut().collect();
            ids = self.step(&ids, &spans, &mut own);
            lengths.iter_mut().for_each(|length| *length += 1);
        }
        start.elapsed().as_secs_f64()
    }
}

/// Training steps of [`BATCH`] sequences of [`LONG`] tokens, with and without checkpointing; nothing
/// is written. Operations are counted once: what checkpointing computes again is not work done.
fn train(shape: &str, format: WeightFormat, gpu: Option<usize>, peak: f64) -> Result<(), Error> {
    let config = config(shape);
    let head = 2.0 * (config.hidden_size * config.vocab_size) as f64;
    let operations = 3.0 * (operations(&config) + head);
    for checkpointing in [false, true] {
        let (rate, samples) = summed_up(training_rates(&config, format, gpu, checkpointing)?);
        println!(
            "{}",
            json!({
                "shape": shape, "format": format.name(), "measure": "training",
                "tokens_per_second": rate, "samples": samples, "details": {
                    "batch": BATCH, "length": LONG, "checkpointing": checkpointing,
                    "share_of_peak": rate * operations / peak,
                },
            })
        );
    }
    Ok(())
}

fn training_rates(
    config: &Config,
    format: WeightFormat,
    gpu: Option<usize>,
    gradient_checkpointing: bool,
) -> Result<Vec<f64>, Error> {
    let letter = |i: usize| char::from(b'a' + (i * i % 23) as u8);
    let words: String = (0..LONG * BATCH * 4).map(letter).collect();
    let corpus = TextCorpus::from_texts([words], "letters", &ReadOptions::default())?;
    let cancel = CancelToken::new();
    let options = TrainingOptions {
        device: gpu.map_or(dolly_core::Device::Cpu, dolly_core::Device::Cuda),
        precision: format.name().parse()?,
        max_steps: Some(1000),
        batch_size: BATCH,
        max_length: Some(LONG),
        eval_size: SplitSize::Rows(0),
        save_steps: 0,
        gradient_checkpointing,
        cancel: Some(cancel.clone()),
        ..Default::default()
    };
    let (mut rates, out) = (Vec::new(), std::env::temp_dir().join("dolly-bench-device"));
    let trainer = Trainer::from_config(config.clone(), support::tokenizer(VOCABULARY), options)?;
    let trainer = trainer.on_step(|report| {
        // The first step allocates.
        if report.row.step > 1 {
            rates.push(report.row.tokens_per_second);
        }
        if rates.len() == REPEATS {
            // Ends before anything is saved.
            cancel.cancel();
        }
        ControlFlow::Continue(())
    });
    let run = trainer.train_text(&corpus, &out);
    let _ = std::fs::remove_dir_all(&out);
    match run {
        Ok(_) | Err(Error::Cancelled) => Ok(rates),
        Err(error) => Err(error),
    }
}

/// Operations of a row in the matrices: two a weight, embedding aside.
fn operations(config: &Config) -> f64 {
    let (hidden, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
    let layer = 4.0 * hidden * hidden + 2.0 * hidden * inner;
    2.0 * config.num_hidden_layers as f64 * layer
}

fn measure(shape: &str, format: WeightFormat, gpu: Option<usize>, limits: &Limits) {
    let config = config(shape);
    let compute = Compute::with_weights(format);
    let backend = match gpu {
        Some(index) => CandleBackend::on_gpu(index, compute).unwrap(),
        None => CandleBackend::on_cpu(compute),
    };
    let start = Instant::now();
    let model = NeoX::random(backend, config, format, CONTEXT).unwrap();
    let made = start.elapsed().as_secs_f64();
    let (config, work) = (model.config().clone(), model.workspace());
    let table = model.backend().embedding_bytes(config.vocab_size, config.hidden_size, format);
    // Of the table a step reads a row for each token.
    let read = (model.weight_bytes() - table) as f64;
    let mut running = Running { model, work, host: Vec::new() };
    let line = |measure: &str, rates: Vec<f64>, more: Value| {
        let (rate, samples) = summed_up(rates);
        println!(
            "{}",
            json!({
                "shape": shape, "format": format.name(), "measure": measure,
                "tokens_per_second": rate, "samples": samples, "details": more,
            })
        );
        rate
    };
    println!(
        "{}",
        json!({"shape": shape, "format": format.name(), "weights": running.model.weight_bytes(), "seconds_to_make": made})
    );
    for batch in BATCHES {
        running.decode(batch);
        let rates = (0..REPEATS).map(|_| (STEPS * batch) as f64 / running.decode(batch));
        let rates: Vec<f64> = rates.collect();
        let steps = summed_up(rates.clone()).0 / batch as f64;
        let share = steps * read / limits.read;
        line("decode", rates, json!({"batch": batch, "share_of_read_bandwidth": share}));
        for chunk in CHUNKS {
            running.prefill(1, chunk);
            let rates = (0..REPEATS).map(|_| (LONG * batch) as f64 / running.prefill(batch, chunk));
            let rates: Vec<f64> = rates.collect();
            let share = summed_up(rates.clone()).0 * operations(&config) / limits.peak(format);
            let more = json!({"batch": batch, "chunk": chunk, "share_of_peak": share});
            line("prefill", rates, more);
        }
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures what DEVICE, FORMAT and SHAPEs say.
pub fn run(words: &[String]) -> Result<(), Error> {
    let [device, format, shapes @ ..] = words else {
        // `cargo test --benches` runs it so: there is nothing to measure.
        println!("DEVICE FORMAT SHAPE...");
        return Ok(());
    };
    let gpu = match device.parse()? {
        dolly_core::Device::Cuda(index) => Some(index),
        _ => None,
    };
    let format: WeightFormat = format.parse()?;
    let device = match gpu {
        Some(index) => {
            // Says what is missing, where something is.
            CandleBackend::on_gpu(index, Compute::F32)?;
            Device::new_cuda(index)?
        }
        None => Device::Cpu,
    };
    for shape in shapes {
        // Before each shape anew: what a machine can do swings.
        let limits = Limits::measure(&device);
        let peaks: Vec<Value> =
            limits.peaks.iter().map(|(dtype, peak)| json!([dtype.as_str(), peak])).collect();
        println!(
            "{}",
            json!({"read_bytes_per_second": limits.read, "copy_bytes_per_second": limits.copy, "peaks": peaks})
        );
        match shape.strip_prefix("train-") {
            Some(shape) => train(shape, format, gpu, limits.peak(format))?,
            None => measure(shape, format, gpu, &limits),
        }
    }
    Ok(())
}
