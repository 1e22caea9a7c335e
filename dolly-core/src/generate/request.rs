//! What travels between callers and the engine.

use std::sync::mpsc::Sender;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::generate::answer::Answer;
use crate::generate::{FinishReason, Generation};
use crate::options::CancelToken;

/// One request, complete: the engine needs nothing else from its caller.
pub(crate) struct Request {
    /// Tokens to run through the network first.
    pub ids: Vec<u32>,
    /// What is wanted of their logits.
    pub work: Work,
    /// When to stop early.
    pub control: Control,
    /// Where results go; a closed channel cancels the request.
    pub events: Sender<Event>,
}

/// What a request wants.
pub(crate) enum Work {
    /// Generate after the prompt.
    Answer(Box<Answer>),
    /// Log-probabilities of the ids from index `from` on.
    Score {
        /// First id to score, 1 or more.
        from: usize,
        /// Collected so far.
        logprobs: Vec<f32>,
    },
    /// Logits after every id, `(tokens, vocab)`.
    Logits(Vec<f32>),
}

impl Work {
    /// Most tokens the request's cache must hold, given its prompt.
    pub fn tokens(&self, prompt: usize) -> usize {
        match self {
            // The last token generated is never run through the network.
            Self::Answer(answer) => prompt.saturating_add(answer.max_new_tokens()) - 1,
            Self::Score { .. } | Self::Logits(_) => prompt,
        }
    }

    /// How many ids, from the first on, are run for their cache rows alone: no logits after them
    /// are wanted.
    pub fn rows_alone(&self, prompt: usize) -> usize {
        (0..prompt).take_while(|index| !self.wants(*index, prompt)).count()
    }

    /// Whether logits after the id at `index` of `prompt` ids are wanted.
    pub fn wants(&self, index: usize, prompt: usize) -> bool {
        match self {
            Self::Answer(_) => index + 1 >= prompt,
            Self::Score { from, .. } => index + 1 >= *from && index + 1 < prompt,
            Self::Logits(_) => true,
        }
    }
}

/// When a request stops before its work is done.
#[derive(Clone)]
pub(crate) struct Control {
    /// The caller's token.
    pub cancel: Option<CancelToken>,
    /// Set when the caller's handle was dropped.
    pub dropped: CancelToken,
    /// The moment the deadline passes.
    pub deadline: Option<Instant>,
    /// When the call was made.
    pub submitted: Instant,
}

impl Control {
    /// Why to stop now, if so.
    pub fn interruption(&self, now: Instant) -> Option<FinishReason> {
        let cancelled = self.cancel.as_ref().is_some_and(CancelToken::is_cancelled);
        if cancelled || self.dropped.is_cancelled() {
            return Some(FinishReason::Cancelled);
        }
        self.deadline.filter(|deadline| now >= *deadline).map(|_| FinishReason::Deadline)
    }

    /// Never stops early.
    pub fn none() -> Self {
        let dropped = CancelToken::new();
        Self { cancel: None, dropped, deadline: None, submitted: Instant::now() }
    }
}

/// What the engine tells a caller.
pub(crate) enum Event {
    /// More text of the answer, never empty.
    Piece(String),
    /// The whole answer; the last event of a generation.
    Answer(Box<Generation>),
    /// The numbers asked for by `Score` or `Logits`; the last event.
    Numbers(Vec<f32>),
    /// The request failed; the last event.
    Failed(Error),
}

impl Request {
    /// Ends the request with whatever it has: an answer keeps its text, numbers are all or none.
    pub fn interrupt(self, reason: FinishReason) {
        let submitted = self.control.submitted;
        let last = match (self.work, reason) {
            (Work::Answer(mut answer), reason) => {
                let piece = answer.interrupt();
                if !piece.is_empty() {
                    let _ = self.events.send(Event::Piece(piece));
                }
                Event::Answer(Box::new(answer.finish(reason, self.ids.len(), submitted)))
            }
            (_, FinishReason::Deadline) => Event::Failed(Error::DeadlineExceeded),
            _ => Event::Failed(Error::Cancelled),
        };
        // A caller that is gone needs no result.
        let _ = self.events.send(last);
    }

    /// Ends the request with an error.
    pub fn fail(self, error: Error) {
        let _ = self.events.send(Event::Failed(error));
    }
}

/// Natural log-probability of `id` under `logits`, accumulated in f64.
pub(crate) fn log_softmax_at(logits: &[f32], id: u32) -> Result<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let wanted = logits.get(id as usize).copied();
    let wanted = wanted.ok_or_else(|| Error::Internal(format!("id {id} without a logit")))?;
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    Ok((f64::from(wanted - max) - sum.ln()) as f32)
}
