//! One admitted sequence: its cache, how far it has come, and how it ends.

use crate::backend::Backend;
use crate::error::Error;
use crate::generate::FinishReason;
use crate::generate::request::{Event, Request, Work, log_softmax_at};
use crate::generate::sampler::Sampler;
use crate::model::Logits;

/// One admitted sequence.
pub(super) struct Live<B: Backend> {
    pub request: Request,
    pub cache: B::Cache,
    /// Bytes of the cache, given back to the budget when the sequence ends.
    pub cache_bytes: u64,
    /// Tokens in the cache.
    pub cached: usize,
    /// Tokens, from the first on, that are run for their cache rows alone.
    pub rows_alone: usize,
    /// Set when the sequence is over.
    pub ended: Option<Ending>,
}

pub(super) enum Ending {
    /// Its last event was sent.
    Complete,
    /// It stops with what it has.
    Interrupted(FinishReason),
    /// It failed.
    Failed(Error),
}

impl<B: Backend> Live<B> {
    pub fn new(request: Request, cache: B::Cache, cache_bytes: u64) -> Self {
        let rows_alone = request.work.rows_alone(request.ids.len());
        Self { request, cache, cache_bytes, cached: 0, rows_alone, ended: None }
    }

    /// Whether all of the request's own tokens are in the cache.
    pub fn decodes(&self) -> bool {
        self.cached >= self.request.ids.len()
    }

    /// The first tokens, whose rows other sequences may take and give.
    pub fn shared_ids(&self) -> &[u32] {
        self.request.ids.get(..self.rows_alone).unwrap_or_default()
    }

    /// What chooses among its logits; none where all of them are wanted.
    pub fn sampler(&self) -> Option<&Sampler> {
        match &self.request.work {
            Work::Answer(answer) => Some(answer.sampler()),
            Work::Score { .. } | Work::Logits(_) => None,
        }
    }

    /// One row of logits: those after the token `input` at `position`.
    pub fn take_logits(&mut self, position: usize, input: u32, logits: Logits<'_>) {
        if self.ended.is_some() {
            return;
        }
        let Request { ids, work, .. } = &mut self.request;
        let outcome = match (work, logits) {
            (Work::Answer(answer), logits) => {
                let written = answer.token_ids();
                let foretold = written.last().is_none_or(|last| *last == input);
                if position + 1 != ids.len() + written.len() || !foretold {
                    // The row follows a draft that did not hold.
                    return;
                }
                answer.accept(logits, ids).map(Some)
            }
            (Work::Score { logprobs, .. }, Logits::Whole(logits)) => {
                log_softmax_at(logits, ids[position + 1]).map(|p| logprobs.push(p)).map(|()| None)
            }
            (Work::Logits(out), Logits::Whole(logits)) => {
                out.extend_from_slice(logits);
                Ok(None)
            }
            (Work::Score { .. } | Work::Logits(_), Logits::Largest(_)) => {
                Err(Error::Internal("numbers of a row of which a few were read".to_owned()))
            }
        };
        match outcome {
            Ok(Some(step)) => {
                if !step.piece.is_empty() {
                    self.send(Event::Piece(step.piece));
                }
                if let Some(reason) = step.finished {
                    self.finish_answer(reason);
                }
            }
            Ok(None) => {}
            Err(error) => self.ended = Some(Ending::Failed(error)),
        }
    }

    /// After all logits of a step: gives back the rows of drafts that did not hold, and sends the
    /// numbers of a request whose last token was run.
    pub fn settle(&mut self) {
        if self.ended.is_some() || !self.decodes() {
            return;
        }
        let numbers = match &mut self.request.work {
            Work::Answer(answer) => {
                // The last token is known and not yet run.
                let known = self.request.ids.len() + answer.token_ids().len();
                self.cached = self.cached.min(known - 1);
                return;
            }
            Work::Score { logprobs: numbers, .. } | Work::Logits(numbers) => {
                std::mem::take(numbers)
            }
        };
        self.send(Event::Numbers(numbers));
        self.ended = Some(Ending::Complete);
    }

    fn finish_answer(&mut self, reason: FinishReason) {
        let (tokens, submitted) = (self.request.ids.len(), self.request.control.submitted);
        let work = std::mem::replace(&mut self.request.work, Work::Logits(Vec::new()));
        if let Work::Answer(answer) = work {
            self.send(Event::Answer(Box::new(answer.finish(reason, tokens, submitted))));
        }
        self.ended = Some(Ending::Complete);
    }

    fn send(&mut self, event: Event) {
        if self.request.events.send(event).is_err() {
            // Nobody listens: the same as a cancel.
            self.ended = Some(Ending::Complete);
        }
    }
}
