//! The loop that owns the live sequences of one model and shares every step between them.
//!
//! A step takes one row from each sequence that decodes (and one per drafted token) and up to a
//! chunk of rows from those whose prompt is not yet in the cache, so a long prompt never stalls its
//! neighbours for longer than a chunk, and cancels, deadlines and new requests are seen between any
//! two steps.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use smallvec::SmallVec;

use crate::backend::{Backend, Few};
use crate::error::{Error, Result};
use crate::generate::engine::{Held, Limits, Shared};
use crate::generate::live::{Ending, Live};
use crate::generate::plan::{Plan, Wanted};
use crate::generate::prefix::Prefixes;
use crate::generate::request::{Event, Request, Work};
use crate::generate::sampler::Sampler;
use crate::model::{LogitReader, Logits, NeoX, Workspace};

/// Sequences of a step for which nothing is allocated.
const FEW: usize = 64;

/// The live sequences as readers of the rows that are wanted.
struct Readers<'a, B: Backend> {
    wanted: &'a [Wanted],
    live: &'a mut [Live<B>],
}

impl<B: Backend> Readers<'_, B> {
    fn sampler(&self, row: usize) -> Option<&Sampler> {
        self.live.get(self.wanted.get(row)?.member)?.sampler()
    }
}

impl<B: Backend> LogitReader for Readers<'_, B> {
    fn needed(&self, row: usize) -> Option<usize> {
        self.sampler(row)?.needed()
    }

    fn decides(&self, row: usize, few: Few<'_>) -> bool {
        self.sampler(row).is_some_and(|sampler| sampler.decides(few))
    }

    fn take(&mut self, row: usize, logits: Logits<'_>) {
        if let Some(Wanted { member, position, input }) = self.wanted.get(row) {
            self.live[*member].take_logits(*position, *input, logits);
        }
    }
}

/// The scheduler's state; lives on the engine's thread.
pub(super) struct Scheduler<B: Backend> {
    pub(super) model: Arc<NeoX<B>>,
    pub(super) limits: Limits,
    shared: Arc<Shared>,
    waiting: VecDeque<Request>,
    pub(super) live: Vec<Live<B>>,
    pub(super) prefixes: Prefixes<B>,
    work: Workspace<B>,
    host: Vec<f32>,
    /// The last step's, for its memory.
    plan: Plan,
    /// Of the live sequences.
    cache_bytes: u64,
}

impl<B: Backend> Scheduler<B> {
    pub fn new(model: Arc<NeoX<B>>, limits: Limits, shared: Arc<Shared>) -> Self {
        let work = model.workspace();
        Self {
            model,
            prefixes: Prefixes::new(limits.prefix_bytes),
            limits,
            shared,
            waiting: VecDeque::new(),
            live: Vec::new(),
            work,
            host: Vec::new(),
            plan: Plan::default(),
            cache_bytes: 0,
        }
    }

    /// Serves requests until every sender is gone or the engine is closed.
    pub fn run(mut self, requests: &Receiver<Request>) {
        loop {
            if !self.receive(requests) || self.shared.is_closing() {
                break;
            }
            self.drop_interrupted();
            self.admit();
            if !self.live.is_empty() {
                self.guarded_step();
            }
            let workspace = self.model.workspace_bytes(&self.work);
            let (cache, prefixes) = (self.cache_bytes, self.prefixes.bytes());
            self.shared.set_memory(Held { cache, prefixes, workspace });
        }
        self.close(requests);
    }

    /// Takes in new requests, waiting when there is nothing else to do; false when no more come
    /// and none is left.
    fn receive(&mut self, requests: &Receiver<Request>) -> bool {
        if self.live.is_empty() && self.waiting.is_empty() {
            match requests.recv() {
                Ok(request) => self.waiting.push_back(request),
                Err(_) => return false,
            }
        }
        loop {
            match requests.try_recv() {
                Ok(request) => self.waiting.push_back(request),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => {
                    return !(self.live.is_empty() && self.waiting.is_empty());
                }
            }
        }
    }

    fn drop_interrupted(&mut self) {
        let now = Instant::now();
        let interrupted = |request: &Request| request.control.interruption(now);
        for _ in 0..self.waiting.len() {
            let Some(request) = self.waiting.pop_front() else { break };
            match interrupted(&request) {
                Some(reason) => request.interrupt(reason),
                None => self.waiting.push_back(request),
            }
        }
        for live in &mut self.live {
            if let Some(reason) = interrupted(&live.request) {
                live.ended = Some(Ending::Interrupted(reason));
            }
        }
        self.retire();
    }

    /// Moves waiting requests, in order, into the live set while there is room for them.
    fn admit(&mut self) {
        while self.live.len() < self.limits.max_batch {
            let Some(request) = self.waiting.pop_front() else { return };
            let tokens = request.work.tokens(request.ids.len());
            let bytes = self.model.backend().cache_bytes(self.model.config(), tokens);
            let budget = self.limits.cache_bytes.unwrap_or(u64::MAX);
            if bytes > budget {
                let what = format!("the cache of {tokens} tokens");
                request.fail(Error::MemoryLimit { what, needed: bytes, limit: budget });
            } else if self.cache_bytes.saturating_add(bytes) > budget {
                self.waiting.push_front(request);
                return;
            } else {
                self.begin(request, tokens, bytes);
            }
        }
    }

    fn begin(&mut self, mut request: Request, tokens: usize, cache_bytes: u64) {
        if let Work::Answer(answer) = &mut request.work {
            let step = match answer.start(Instant::now()) {
                Ok(step) => step,
                Err(error) => return request.fail(error),
            };
            if !step.piece.is_empty() && request.events.send(Event::Piece(step.piece)).is_err() {
                return;
            }
            if let Some(reason) = step.finished {
                return request.interrupt(reason);
            }
        }
        // Live sequences come first: kept prefixes go for them, last the one that serves.
        self.prefixes.touch(&request.ids);
        self.prefixes.shrink_to(self.room().saturating_sub(cache_bytes));
        match self.model.backend().new_cache(self.model.config(), tokens) {
            Ok(cache) => {
                self.cache_bytes += cache_bytes;
                self.live.push(Live::new(request, cache, cache_bytes));
            }
            Err(error) => request.fail(error),
        }
    }

    /// Bytes that the live sequences leave to the kept prefixes.
    fn room(&self) -> u64 {
        self.limits.cache_bytes.unwrap_or(u64::MAX).saturating_sub(self.cache_bytes)
    }

    /// One step; whatever goes wrong in it ends the sequences it worked on and nothing else.
    fn guarded_step(&mut self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.step()));
        let error = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(panic) => {
                // Buffers may be half written: start the next step from empty ones.
                self.work = self.model.workspace();
                Some(Error::Internal(panic_text(&*panic)))
            }
        };
        if let Some(error) = error {
            for live in &mut self.live {
                live.ended.get_or_insert_with(|| Ending::Failed(same_error(&error)));
            }
        }
        self.retire();
    }

    /// Runs what is due of all sequences, once. Sequences that decode need no memory beyond their
    /// answers' that an earlier step did not leave.
    fn step(&mut self) -> Result<()> {
        let mut plan = std::mem::take(&mut self.plan);
        self.plan_step(&mut plan);
        let outcome = if plan.members.is_empty() { Ok(()) } else { self.run_plan(&plan) };
        self.plan = plan;
        outcome
    }

    fn run_plan(&mut self, plan: &Plan) -> Result<()> {
        let Plan { ids, members, spans, .. } = plan;
        let mut caches: SmallVec<[&mut B::Cache; FEW]> = SmallVec::new();
        let mut next = members.iter().peekable();
        for (index, live) in self.live.iter_mut().enumerate() {
            if next.next_if_eq(&&index).is_some() {
                caches.push(&mut live.cache);
            }
        }
        let (model, work) = (&self.model, &mut self.work);
        model.backend().install(|| model.forward(ids, spans, &mut caches, work))?;
        drop(caches);
        for (member, span) in members.iter().zip(spans) {
            self.live[*member].cached += span.rows;
        }
        let mut readers = Readers { wanted: &plan.wanted, live: &mut self.live };
        self.model.logits(&plan.wanted_rows, &mut self.work, &mut self.host, &mut readers)?;
        self.live.iter_mut().for_each(Live::settle);
        Ok(())
    }

    /// Removes ended sequences and gives back their memory.
    fn retire(&mut self) {
        let mut index = 0;
        while index < self.live.len() {
            if self.live[index].ended.is_none() {
                index += 1;
                continue;
            }
            // Order matters to `plan_step`, and batches are small.
            let live = self.live.remove(index);
            self.cache_bytes -= live.cache_bytes;
            let Live { request, cache, cache_bytes, cached, rows_alone, ended, .. } = live;
            if cached >= rows_alone && !matches!(ended, Some(Ending::Failed(_))) {
                // While it ran, requests that begin alike took its rows from it.
                let on = (self.model.backend(), self.model.config());
                let shared = request.ids.get(..rows_alone).unwrap_or_default();
                self.prefixes.keep(on, shared, (cache, cache_bytes), self.room());
            }
            match ended {
                Some(Ending::Interrupted(reason)) => request.interrupt(reason),
                Some(Ending::Failed(error)) => request.fail(error),
                Some(Ending::Complete) | None => {}
            }
        }
    }

    fn close(self, requests: &Receiver<Request>) {
        let live = self.live.into_iter().map(|live| live.request);
        for request in live.chain(self.waiting).chain(requests.try_iter()) {
            request.fail(Error::Closed);
        }
    }
}

/// The error of a step for each sequence that took part in it.
fn same_error(error: &Error) -> Error {
    match error {
        Error::OutOfMemory { what, bytes } => {
            Error::OutOfMemory { what: what.clone(), bytes: *bytes }
        }
        Error::InvalidInput(text) => Error::InvalidInput(text.clone()),
        Error::Internal(text) => Error::Internal(text.clone()),
        Error::Device { device, reason } => {
            Error::Device { device: device.clone(), reason: reason.clone() }
        }
        other => Error::Internal(format!("a step failed: {other}")),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests;
