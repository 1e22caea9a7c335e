//! Log-probabilities: of a response, among given answers, of every token.

use std::time::{Duration, Instant};

use crate::error::{Error, Result, try_vec};
use crate::generate::engine::Ticket;
use crate::generate::request::{Control, Event, Work};
use crate::generate::{ClassProbability, Score};
use crate::options::{CancelToken, PromptMode, PromptOverflow};
use crate::pipeline::Pipeline;
use crate::prompt::Instruction;

/// When a call that gives numbers stops early; it then gives [`Error::Cancelled`] or
/// [`Error::DeadlineExceeded`].
#[derive(Debug, Clone, Default)]
pub struct RequestOptions {
    /// Time allowed from the call on, queueing included.
    pub deadline: Option<Duration>,
    /// Stops the request from another thread.
    pub cancel: Option<CancelToken>,
}

impl RequestOptions {
    fn control(&self) -> Control {
        let submitted = Instant::now();
        Control {
            cancel: self.cancel.clone(),
            dropped: CancelToken::new(),
            deadline: self.deadline.and_then(|time| submitted.checked_add(time)),
            submitted,
        }
    }
}

impl Pipeline {
    /// How likely the model finds `response` as the answer to `instruction`, token by token.
    ///
    /// The response is scored as Dolly was trained: followed by a blank line and `### End`, which
    /// are part of the result, where the checkpoint has that token.
    pub fn score(&self, instruction: impl Into<Instruction>, response: &str) -> Result<Score> {
        self.score_with(instruction, response, &RequestOptions::default())
    }

    /// [`score`](Self::score) with a deadline or a cancel token.
    pub fn score_with(
        &self,
        instruction: impl Into<Instruction>,
        response: &str,
        options: &RequestOptions,
    ) -> Result<Score> {
        let (prompt, answer) = self.score_ids(&instruction.into(), response)?;
        let ticket = self.submit_score(&prompt, &answer, options)?;
        Ok(Score::new(answer, numbers(&ticket)?))
    }

    /// The probability of each of the given answers, as whole responses to `instruction`.
    ///
    /// Results stand in the order of `answers`; at least one is needed.
    pub fn classify(
        &self,
        instruction: impl Into<Instruction>,
        answers: &[impl AsRef<str>],
    ) -> Result<Vec<ClassProbability>> {
        self.classify_with(instruction, answers, &RequestOptions::default())
    }

    /// [`classify`](Self::classify) with a deadline or a cancel token.
    pub fn classify_with(
        &self,
        instruction: impl Into<Instruction>,
        answers: &[impl AsRef<str>],
        options: &RequestOptions,
    ) -> Result<Vec<ClassProbability>> {
        if answers.is_empty() {
            return Err(Error::InvalidInput("classify needs at least one answer".to_owned()));
        }
        let instruction = instruction.into();
        let mut tickets = Vec::with_capacity(answers.len());
        for answer in answers {
            let (prompt, ids) = self.score_ids(&instruction, answer.as_ref())?;
            tickets.push(self.submit_score(&prompt, &ids, options)?);
        }
        let sums: Result<Vec<f64>> = tickets
            .iter()
            .map(|ticket| Ok(numbers(ticket)?.iter().map(|p| f64::from(*p)).sum()))
            .collect();
        Ok(normalise(answers, &sums?))
    }

    /// Logits after each of `token_ids`, `(tokens, vocab)` row-major f32.
    pub fn logits(&self, token_ids: &[u32]) -> Result<Vec<f32>> {
        self.logits_with(token_ids, &RequestOptions::default())
    }

    /// [`logits`](Self::logits) with a deadline or a cancel token.
    pub fn logits_with(&self, token_ids: &[u32], options: &RequestOptions) -> Result<Vec<f32>> {
        self.check_ids(token_ids, self.context_length())?;
        let len = token_ids.len().saturating_mul(self.config().vocab_size);
        let work = Work::Logits(try_vec(len, "logits")?);
        let engine = &self.inner.engine;
        numbers(&engine.submit(token_ids.to_vec(), work, options.control())?)
    }

    fn score_ids(&self, instruction: &Instruction, response: &str) -> Result<(Vec<u32>, Vec<u32>)> {
        let parts = &self.inner.parts;
        let answer = parts.prompt.encode_response(&parts.tokenizer, response)?;
        if answer.is_empty() {
            return Err(Error::InvalidInput("a response of no tokens".to_owned()));
        }
        let room = parts.context_length.saturating_sub(answer.len());
        let (mode, overflow) = (PromptMode::Safe, PromptOverflow::Error);
        let prompt =
            parts.prompt.encode_to_fit(&parts.tokenizer, instruction, mode, overflow, room)?;
        Ok((prompt, answer))
    }

    fn submit_score(
        &self,
        prompt: &[u32],
        answer: &[u32],
        options: &RequestOptions,
    ) -> Result<Ticket> {
        let work = Work::Score { from: prompt.len(), logprobs: Vec::new() };
        self.inner.engine.submit([prompt, answer].concat(), work, options.control())
    }
}

fn numbers(ticket: &Ticket) -> Result<Vec<f32>> {
    match ticket.next() {
        Event::Numbers(numbers) => Ok(numbers),
        Event::Failed(error) => Err(error),
        Event::Piece(_) | Event::Answer(_) => {
            Err(Error::Internal("text where numbers were asked for".to_owned()))
        }
    }
}

/// Softmax over whole-answer log-probabilities.
fn normalise(answers: &[impl AsRef<str>], sums: &[f64]) -> Vec<ClassProbability> {
    let max = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = sums.iter().map(|sum| (sum - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    let rows = answers.iter().zip(sums).zip(weights);
    rows.map(|((answer, logprob), weight)| ClassProbability {
        answer: answer.as_ref().to_owned(),
        probability: weight / total,
        logprob: *logprob,
    })
    .collect()
}
