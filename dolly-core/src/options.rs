//! Options of one request; their defaults are those of Dolly's original pipeline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};

/// What to do with a prompt that is longer than the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PromptOverflow {
    /// Refuse with [`Error::ContextOverflow`].
    #[default]
    Error,
    /// Keep the instruction and the framing; drop tokens from the end of the context passage until
    /// prompt and `max_new_tokens` fit (or the prompt fits half of the model's context, if more).
    TruncateContext,
}

/// How user text meets the framing of the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PromptMode {
    /// User text is data: it can never become a framing token.
    #[default]
    Safe,
    /// The original's behaviour: the rendered string is encoded as a whole, special tokens inside
    /// user text take effect, and the answer follows the first response key.
    Hf,
}

/// Stops a request from any thread; clones share one flag.
///
/// ```
/// let token = dolly_core::CancelToken::new();
/// let elsewhere = token.clone();
/// elsewhere.cancel();
/// assert!(token.is_cancelled());
/// ```
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks every request that holds this token to stop at its next step.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// [`Error::Cancelled`] once [`cancel`](Self::cancel) was called.
    pub(crate) fn check(&self) -> Result<()> {
        match self.is_cancelled() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }
}

/// Options of one generation request.
///
/// Unset fields keep Dolly's defaults: sampling at temperature 1.0 within the top 0.92 of
/// probability, 256 new tokens. Order of work on the logits of each step, that of transformers:
/// `logit_bias`, `repetition_penalty`, `no_repeat_ngram`, `frequency_penalty` and
/// `presence_penalty`, and when sampling `temperature`, `top_k`, `top_p`, `min_p`, `typical_p`, then
/// the draw.
///
/// ```
/// use dolly_core::GenerateOptions;
/// let options = GenerateOptions { max_new_tokens: 64, seed: Some(7), ..Default::default() };
/// options.validate()?;
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Most tokens to generate, 1 or more; less when the context ends first.
    pub max_new_tokens: usize,
    /// Draw from the distribution (`true`) or take the likeliest token (`false`).
    pub do_sample: bool,
    /// Divides the logits; 0 or more, below 1e-5 means greedy.
    pub temperature: f32,
    /// Smallest set of likeliest tokens whose probability reaches this; in (0, 1], 1 is off.
    pub top_p: f32,
    /// The `k` likeliest tokens; 0 is off.
    pub top_k: usize,
    /// Tokens at least this fraction as likely as the likeliest; in [0, 1), 0 is off.
    pub min_p: f32,
    /// Locally typical sampling (Meister et al., 2022); in (0, 1], 1 is off.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer
    /// (Keskar et al., 2019); above 0, 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token already generated; in [-100, 100], 0 is off.
    pub presence_penalty: f32,
    /// Subtracted per occurrence from the logit of tokens already generated; in [-100, 100].
    pub frequency_penalty: f32,
    /// No n-gram of this length occurs twice in prompt and answer; 0 is off.
    pub no_repeat_ngram: usize,
    /// Added to the logits of single tokens: `(id, bias)`, bias finite or negative infinity; biases
    /// of one id add up.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of this request's draws; `None` takes a fresh one, reported in the result.
    pub seed: Option<u64>,
    /// Texts that end the answer; they are not part of it. At most 64, none empty.
    pub stop: Vec<String>,
    /// Generate on past the end token until the length limit.
    pub ignore_end: bool,
    /// Answers per prompt for the `_batch` and `_many` calls, 1 to 1024.
    pub num_return_sequences: usize,
    /// Report the log-probability of each token and of this many likeliest alternatives (0 to 100).
    pub logprobs: Option<usize>,
    /// Guess up to this many tokens of each step from what was read and written before, 1 to 64
    /// (Saxena, "Prompt Lookup Decoding", 2023). The answer is the same, token for token; where it
    /// quotes its prompt it takes fewer steps. See
    /// [`Usage::accepted_tokens`](crate::Usage::accepted_tokens).
    pub prompt_lookup: Option<usize>,
    /// Time allowed from the call on, queueing included; the text so far is returned.
    pub deadline: Option<Duration>,
    /// Stops the request from another thread; the text so far is returned.
    pub cancel: Option<CancelToken>,
    /// Put the instruction and a newline before the answer, as the original's `return_full_text`.
    pub return_full_text: bool,
    /// What to do when the prompt is longer than the context.
    pub prompt_overflow: PromptOverflow,
    /// How user text meets the framing.
    pub prompt_mode: PromptMode,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            do_sample: true,
            temperature: 1.0,
            top_p: 0.92,
            top_k: 0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            no_repeat_ngram: 0,
            logit_bias: Vec::new(),
            seed: None,
            stop: Vec::new(),
            ignore_end: false,
            num_return_sequences: 1,
            logprobs: None,
            prompt_lookup: None,
            deadline: None,
            cancel: None,
            return_full_text: false,
            prompt_overflow: PromptOverflow::Error,
            prompt_mode: PromptMode::Safe,
        }
    }
}

impl GenerateOptions {
    /// Greedy decoding: the likeliest token at every step, no draws.
    pub fn greedy() -> Self {
        Self { do_sample: false, ..Self::default() }
    }

    /// Checks every field against its range; [`Error::InvalidOption`] names the first that fails.
    pub fn validate(&self) -> Result<()> {
        self.validate_counts()?;
        let in_range = |name, value: f32, ok: bool, allowed| match value.is_finite() && ok {
            true => Ok(()),
            false => Err(Error::option(name, value, allowed)),
        };
        let t = self.temperature;
        in_range("temperature", t, (0.0..=100.0).contains(&t), "a number in [0, 100]")?;
        let p = self.top_p;
        in_range("top_p", p, p > 0.0 && p <= 1.0, "a number in (0, 1]")?;
        in_range("min_p", self.min_p, (0.0..1.0).contains(&self.min_p), "a number in [0, 1)")?;
        let p = self.typical_p;
        in_range("typical_p", p, p > 0.0 && p <= 1.0, "a number in (0, 1]")?;
        let r = self.repetition_penalty;
        in_range("repetition_penalty", r, r > 0.0 && r <= 100.0, "a number in (0, 100]")?;
        let range = "a number in [-100, 100]";
        in_range(
            "presence_penalty",
            self.presence_penalty,
            self.presence_penalty.abs() <= 100.0,
            range,
        )?;
        in_range(
            "frequency_penalty",
            self.frequency_penalty,
            self.frequency_penalty.abs() <= 100.0,
            range,
        )
    }

    fn validate_counts(&self) -> Result<()> {
        if self.max_new_tokens == 0 {
            return Err(Error::option("max_new_tokens", 0, "1 or more"));
        }
        if !(1..=1024).contains(&self.num_return_sequences) {
            return Err(Error::option(
                "num_return_sequences",
                self.num_return_sequences,
                "1 to 1024",
            ));
        }
        if let Some(n) = self.logprobs.filter(|n| *n > 100) {
            return Err(Error::option("logprobs", n, "0 to 100"));
        }
        if let Some(n) = self.prompt_lookup.filter(|n| !(1..=64).contains(n)) {
            return Err(Error::option("prompt_lookup", n, "1 to 64"));
        }
        if self.stop.len() > 64 {
            return Err(Error::option(
                "stop",
                format!("{} texts", self.stop.len()),
                "at most 64 texts",
            ));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::option("stop", "\"\"", "texts that are not empty"));
        }
        let valid = |bias: f32| bias.is_finite() || bias == f32::NEG_INFINITY;
        match self.logit_bias.iter().find(|(_, bias)| !valid(*bias)) {
            Some((id, bias)) => Err(Error::option(
                "logit_bias",
                format!("{bias} for id {id}"),
                "finite numbers or negative infinity",
            )),
            None => Ok(()),
        }
    }
}
