//! Answers one instruction: the answer goes to stdout as it is written, timings to stderr.
//!
//! ```sh
//! cargo run --release --example generate -- "Why can camels survive for long without water?"
//! ```

#![allow(clippy::print_stderr, reason = "a command line program reports on stderr")]

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use dolly_core::source::DownloadProgress;
use dolly_core::{
    CacheFormat, Device, Error, GenerateOptions, Generation, Instruction, Pipeline, PromptMode,
    PromptOverflow, WeightFormat,
};

/// Answer an instruction with a Dolly / GPT-NeoX model.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The instruction.
    instruction: String,
    /// A passage the instruction refers to.
    #[arg(long)]
    context: Option<String>,
    /// Model: a directory, a .gguf file, a hub id, or the bundled dolly-nano.
    #[arg(long, default_value = "dolly-nano")]
    model: String,
    /// Format of the weights in memory: auto, f32, f16, bf16, q8_0, q4_0, q4_k, q6_k.
    #[arg(long, default_value_t = WeightFormat::Auto)]
    format: WeightFormat,
    /// Device: auto, cpu, cuda, cuda:N.
    #[arg(long, default_value_t = Device::Auto)]
    device: Device,
    /// Threads; one per core unless given.
    #[arg(long)]
    threads: Option<usize>,
    /// Longest sequence in tokens.
    #[arg(long)]
    context_length: Option<usize>,
    /// Bytes that weights and caches may take.
    #[arg(long)]
    memory_limit: Option<u64>,
    /// Directory to keep packed weights in, for the next start.
    #[arg(long)]
    packed_weights: Option<PathBuf>,
    /// How keys and values are held: f32, f16, bf16 or q8_0.
    #[arg(long)]
    kv_cache: Option<CacheFormat>,
    /// Bytes for the cache rows of prompts that were read; 0 is off.
    #[arg(long)]
    prefix_cache: Option<u64>,
    #[command(flatten)]
    sampling: Sampling,
}

/// Options of the request; defaults are Dolly's.
#[derive(Debug, clap::Args)]
struct Sampling {
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// Take the likeliest token at every step.
    #[arg(long)]
    greedy: bool,
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    #[arg(long, default_value_t = 0.92)]
    top_p: f32,
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    #[arg(long, default_value_t = 1.0)]
    typical_p: f32,
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    #[arg(long, default_value_t = 0)]
    no_repeat_ngram: usize,
    /// Add a bias to the logit of an id: ID=BIAS, repeatable.
    #[arg(long, value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    #[arg(long)]
    seed: Option<u64>,
    /// A text that ends the answer, repeatable.
    #[arg(long)]
    stop: Vec<String>,
    /// Generate on past the end token.
    #[arg(long)]
    ignore_end: bool,
    /// Number of answers.
    #[arg(long, default_value_t = 1)]
    num_return_sequences: usize,
    /// Guess up to so many tokens of each step from prompt and answer.
    #[arg(long)]
    prompt_lookup: Option<usize>,
    /// Seconds allowed for the answer.
    #[arg(long)]
    deadline: Option<f64>,
    /// Put the instruction before the answer.
    #[arg(long)]
    return_full_text: bool,
    /// Drop the end of a context that is too long, instead of refusing it.
    #[arg(long)]
    truncate_context: bool,
    /// Let special tokens in the instruction take effect, as the original pipeline does.
    #[arg(long)]
    hf_prompt: bool,
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("expected ID=BIAS")?;
    let id = id.parse().map_err(|error| format!("id {id:?}: {error}"))?;
    Ok((id, bias.parse().map_err(|error| format!("bias {bias:?}: {error}"))?))
}

impl Sampling {
    fn options(self) -> Result<GenerateOptions, Error> {
        let deadline = self.deadline.map(Duration::try_from_secs_f64).transpose();
        let deadline =
            deadline.map_err(|error| Error::InvalidInput(format!("deadline: {error}")))?;
        Ok(GenerateOptions {
            max_new_tokens: self.max_new_tokens,
            do_sample: !self.greedy,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            no_repeat_ngram: self.no_repeat_ngram,
            logit_bias: self.logit_bias,
            seed: self.seed,
            stop: self.stop,
            ignore_end: self.ignore_end,
            num_return_sequences: self.num_return_sequences,
            logprobs: None,
            prompt_lookup: self.prompt_lookup,
            deadline,
            cancel: None,
            return_full_text: self.return_full_text,
            prompt_overflow: match self.truncate_context {
                true => PromptOverflow::TruncateContext,
                false => PromptOverflow::Error,
            },
            prompt_mode: if self.hf_prompt { PromptMode::Hf } else { PromptMode::Safe },
        })
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Error> {
    let mut builder =
        Pipeline::builder(&arguments.model).weights(arguments.format).device(arguments.device);
    if let Some(threads) = arguments.threads {
        builder = builder.threads(threads);
    }
    if let Some(tokens) = arguments.context_length {
        builder = builder.context_length(tokens);
    }
    if let Some(bytes) = arguments.memory_limit {
        builder = builder.memory_limit(bytes);
    }
    if let Some(directory) = &arguments.packed_weights {
        builder = builder.packed_weights(directory);
    }
    if let Some(format) = arguments.kv_cache {
        builder = builder.kv_cache(format);
    }
    if let Some(bytes) = arguments.prefix_cache {
        builder = builder.prefix_cache(bytes);
    }
    if std::io::stderr().is_terminal() {
        builder = builder.on_download(show_download());
    }
    let pipe = builder.build()?;
    let mut instruction = Instruction::new(arguments.instruction);
    if let Some(context) = arguments.context {
        instruction = instruction.context(context);
    }
    let options = arguments.sampling.options()?;
    if options.num_return_sequences > 1 {
        for (index, answer) in pipe.generate_many(instruction, &options)?.iter().enumerate() {
            write(&format!("[{}] {}\n", index + 1, answer.text))?;
            report(answer);
        }
        return Ok(());
    }
    let mut stream = pipe.stream(instruction, &options)?;
    for piece in stream.by_ref() {
        write(&piece?)?;
    }
    write("\n")?;
    report(&stream.finish()?);
    Ok(())
}

/// One line on the terminal, written anew ten times a second and taken away when a file is there.
fn show_download() -> impl FnMut(DownloadProgress<'_>) + Send {
    const CLEAR: &str = "\r\x1b[K";
    let mut shown = Instant::now();
    move |DownloadProgress { file, received, total, .. }| {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        if total == Some(received) {
            eprint!("{CLEAR}");
        } else if shown.elapsed() >= Duration::from_millis(100) {
            shown = Instant::now();
            let total = total.map(|bytes| format!(" of {:.1}", megabytes(bytes)));
            let (received, total) = (megabytes(received), total.unwrap_or_default());
            eprint!("{CLEAR}{file}: {received:.1}{total} MB");
        }
    }
}

fn write(text: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|source| Error::Io { path: "stdout".into(), source })
}

fn report(answer: &Generation) {
    let (usage, timings) = (answer.usage, &answer.timings);
    let decoded = usage.completion_tokens.saturating_sub(1) as f64;
    eprintln!(
        "prompt {} tokens in {:.0} ms, answer {} tokens at {:.1} tokens/s, ended by {}, seed {}",
        usage.prompt_tokens,
        timings.prefill.as_secs_f64() * 1e3,
        usage.completion_tokens,
        decoded / timings.decode.as_secs_f64().max(1e-9),
        answer.finish_reason.name(),
        answer.seed,
    );
}
