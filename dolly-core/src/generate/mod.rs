//! From logits to text: sampling, stopping, and the engine that shares steps between requests.

pub(crate) mod answer;
mod draft;
pub(crate) mod engine;
mod live;
mod plan;
mod prefix;
mod processors;
pub(crate) mod request;
pub mod sampler;
mod scheduler;
mod select;
pub mod stop;

use std::time::Duration;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model wrote its end token.
    End,
    /// `max_new_tokens` or the context was used up.
    Length,
    /// A stop text was found.
    Stop,
    /// The caller cancelled.
    Cancelled,
    /// The deadline passed.
    Deadline,
}

impl FinishReason {
    /// The name used by Python and C: `end length stop cancelled deadline`.
    pub fn name(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Length => "length",
            Self::Stop => "stop",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline",
        }
    }
}

/// Tokens of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the rendered prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, the end token included.
    pub completion_tokens: usize,
    /// Prompt tokens that were not run: an earlier request, or one of the same batch, began with
    /// them. Depends on what else the pipeline does; the answer does not.
    pub cached_tokens: usize,
    /// Tokens that [`prompt_lookup`](crate::GenerateOptions::prompt_lookup) guessed.
    pub drafted_tokens: usize,
    /// Those of them that were right and saved a step: the answer took
    /// `completion_tokens - accepted_tokens` steps.
    pub accepted_tokens: usize,
}

/// Where the time of one request went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Timings {
    /// From the call to the first step that worked on it.
    pub queue: Duration,
    /// From there to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// From the call to the result.
    pub total: Duration,
    /// Time of each generated token since the call; one entry per token.
    pub tokens: Vec<Duration>,
}

/// The log-probability of one generated token, under the model's own distribution (before any
/// option changed the logits).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Its natural log-probability.
    pub logprob: f32,
    /// The likeliest tokens with theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Generation {
    /// The answer, without surrounding whitespace (raw for `complete`).
    pub text: String,
    /// Every generated id, the end token included.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Token counts.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// One entry per generated token when `logprobs` was asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// The seed that reproduces this answer.
    pub seed: u64,
}

/// Log-probabilities of a given response.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Score {
    /// The response's ids, its end token included where the model has one.
    pub token_ids: Vec<u32>,
    /// Natural log-probability of each of them, given all before.
    pub logprobs: Vec<f32>,
    /// Their sum.
    pub sum: f64,
    /// exp(-sum / tokens).
    pub perplexity: f64,
}

impl Score {
    pub(crate) fn new(token_ids: Vec<u32>, logprobs: Vec<f32>) -> Self {
        let sum: f64 = logprobs.iter().map(|p| f64::from(*p)).sum();
        let perplexity = (-sum / logprobs.len().max(1) as f64).exp();
        Self { token_ids, logprobs, sum, perplexity }
    }
}

/// The probability of one of the answers given to `classify`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ClassProbability {
    /// The answer as given.
    pub answer: String,
    /// Its probability among the given answers; they add up to 1.
    pub probability: f64,
    /// Its natural log-probability as a whole response.
    pub logprob: f64,
}
