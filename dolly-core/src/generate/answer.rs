//! The state of one answer while it grows: draw, stop, text.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::generate::draft::Drafter;
use crate::generate::sampler::Sampler;
use crate::generate::stop::{StopStrings, Trim};
use crate::generate::{FinishReason, Generation, Timings, TokenLogprob, Usage};
use crate::model::Logits;
use crate::options::GenerateOptions;
use crate::tokenizer::{TextStream, Tokenizer};

/// How an answer begins and ends, beyond the caller's options.
pub(crate) struct AnswerPlan {
    /// Ids that end the answer.
    pub end_ids: Vec<u32>,
    /// Texts that end it where the checkpoint has no end token.
    pub end_texts: Vec<String>,
    /// Ids of the prompt that belong to the answer's text (`PromptMode::Hf` only).
    pub prefix: Vec<u32>,
    /// Text put before the answer (`return_full_text`).
    pub lead: String,
    /// Whether surrounding whitespace is dropped.
    pub trim: bool,
    /// Most tokens to generate, the context considered.
    pub max_new_tokens: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// One answer while it grows.
pub(crate) struct Answer {
    plan: AnswerPlan,
    ignore_end: bool,
    wants_logprobs: bool,
    sampler: Sampler,
    drafter: Option<Drafter>,
    /// Prompt tokens whose rows were copied.
    cached_tokens: usize,
    stream: TextStream,
    /// Ids the tokenizer has; the output layer may have more rows.
    tokenizer_ids: usize,
    stop: StopStrings,
    /// How many of the stop texts, the last ones, are the checkpoint's own end.
    own_stops: usize,
    stop_count: usize,
    trim: Option<Trim>,
    text: String,
    token_ids: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    times: Vec<Instant>,
    started: Option<Instant>,
    /// An end was found: no further text belongs to the answer.
    ended: bool,
}

/// What one more token did.
pub(crate) struct Step {
    /// Text that became certain, perhaps empty.
    pub piece: String,
    /// Set when the answer is complete.
    pub finished: Option<FinishReason>,
}

impl Answer {
    /// An answer of no tokens to a prompt of `prompt` tokens; `options` are valid.
    pub fn new(
        options: &GenerateOptions,
        plan: AnswerPlan,
        prompt: usize,
        tokenizer: &Tokenizer,
        vocab_size: usize,
    ) -> Result<Self> {
        let tokens = prompt.saturating_add(plan.max_new_tokens);
        let drafter = options.prompt_lookup.map(|most| Drafter::new(most, tokens)).transpose()?;
        let mut stops = options.stop.clone();
        if !options.ignore_end {
            stops.extend(plan.end_texts.iter().cloned());
        }
        Ok(Self {
            ignore_end: options.ignore_end,
            wants_logprobs: options.logprobs.is_some(),
            sampler: Sampler::new(options, plan.seed, vocab_size)?,
            drafter,
            cached_tokens: 0,
            stream: tokenizer.stream(true),
            tokenizer_ids: tokenizer.vocab_size(),
            own_stops: stops.len() - options.stop.len(),
            stop_count: stops.len(),
            stop: StopStrings::new(&stops)?,
            trim: plan.trim.then(Trim::new),
            text: String::new(),
            token_ids: Vec::new(),
            logprobs: Vec::new(),
            times: Vec::new(),
            started: None,
            ended: false,
            plan,
        })
    }

    pub fn max_new_tokens(&self) -> usize {
        self.plan.max_new_tokens
    }

    /// What chooses its tokens.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// The ids generated so far.
    pub fn token_ids(&self) -> &[u32] {
        &self.token_ids
    }

    /// Notes that the rows of so many prompt tokens were copied, not computed.
    pub fn note_cached(&mut self, tokens: usize) {
        self.cached_tokens = tokens;
    }

    /// A guess of at most `room` tokens at what comes next, to be run with the last token.
    pub fn draft(&mut self, prompt: &[u32], room: usize) -> &[u32] {
        // The step gives one token more than it has drafts, and the cache ends with the answer.
        let left = self.plan.max_new_tokens.saturating_sub(self.token_ids.len() + 1);
        match &mut self.drafter {
            Some(drafter) => drafter.draft(prompt, &self.token_ids, room.min(left)),
            None => &[],
        }
    }

    /// Marks the first step that works on the answer; gives the text known before any token.
    pub fn start(&mut self, now: Instant) -> Result<Step> {
        self.started = Some(now);
        let mut piece = std::mem::take(&mut self.plan.lead);
        let mut finished = None;
        for id in std::mem::take(&mut self.plan.prefix) {
            if finished.is_none() {
                finished = self.push_text(id, &mut piece)?;
            }
        }
        self.text.push_str(&piece);
        Ok(Step { piece, finished })
    }

    /// Draws the next token from `logits`, the network's output after everything so far.
    pub fn accept(&mut self, logits: Logits<'_>, prompt: &[u32]) -> Result<Step> {
        let picked = match logits {
            Logits::Whole(logits) => self.sampler.pick(logits, prompt, &self.token_ids)?,
            Logits::Largest(few) => self.sampler.pick_of_few(few)?,
        };
        self.token_ids.push(picked.id);
        if let Some(drafter) = &mut self.drafter {
            drafter.note_token();
        }
        self.times.push(Instant::now());
        if self.wants_logprobs {
            let (id, logprob, top) = (picked.id, picked.logprob, picked.top);
            self.logprobs.push(TokenLogprob { id, logprob, top });
        }
        let mut piece = String::new();
        let mut finished = self.push_text(picked.id, &mut piece)?;
        if finished.is_none() && self.token_ids.len() >= self.plan.max_new_tokens {
            self.flush(&mut piece);
            finished = Some(FinishReason::Length);
        }
        self.text.push_str(&piece);
        Ok(Step { piece, finished })
    }

    /// Gives up what was held back; for answers that end from outside.
    pub fn interrupt(&mut self) -> String {
        let mut piece = String::new();
        if !self.ended {
            self.flush(&mut piece);
        }
        self.text.push_str(&piece);
        piece
    }

    /// The result; `prompt_tokens` and `submitted` are the request's.
    pub fn finish(
        self,
        finish_reason: FinishReason,
        prompt_tokens: usize,
        submitted: Instant,
    ) -> Generation {
        let timings = self.timings(submitted);
        let drafts = self.drafter.map_or((0, 0), |drafter| (drafter.drafted, drafter.accepted));
        Generation {
            text: self.text,
            finish_reason,
            usage: Usage {
                prompt_tokens,
                completion_tokens: self.token_ids.len(),
                cached_tokens: self.cached_tokens,
                drafted_tokens: drafts.0,
                accepted_tokens: drafts.1,
            },
            token_ids: self.token_ids,
            timings,
            logprobs: self.wants_logprobs.then_some(self.logprobs),
            seed: self.plan.seed,
        }
    }

    fn push_text(&mut self, id: u32, piece: &mut String) -> Result<Option<FinishReason>> {
        let finished = self.push_id(id, piece)?;
        self.ended = finished.is_some();
        Ok(finished)
    }

    fn push_id(&mut self, id: u32, piece: &mut String) -> Result<Option<FinishReason>> {
        if self.plan.end_ids.contains(&id) && !self.ignore_end {
            self.flush(piece);
            return Ok(Some(FinishReason::End));
        }
        if id as usize >= self.tokenizer_ids {
            // A padding row of the output layer: an id without text.
            return Ok(None);
        }
        let Some(text) = self.stream.push(id)? else { return Ok(None) };
        let outcome = self.stop.push(&text);
        self.emit(&outcome.emit, piece);
        // The checkpoint's own end texts stand after the caller's stop texts.
        Ok(outcome.matched.map(|index| match index + self.own_stops >= self.stop_count {
            true => FinishReason::End,
            false => FinishReason::Stop,
        }))
    }

    fn emit(&mut self, text: &str, piece: &mut String) {
        match &mut self.trim {
            Some(trim) => piece.push_str(&trim.push(text)),
            None => piece.push_str(text),
        }
    }

    fn flush(&mut self, piece: &mut String) {
        let rest = self.stream.finish().unwrap_or_default();
        let outcome = self.stop.push(&rest);
        self.emit(&outcome.emit, piece);
        if outcome.matched.is_none() {
            let held = self.stop.finish();
            self.emit(&held, piece);
        }
    }

    fn timings(&self, submitted: Instant) -> Timings {
        let now = Instant::now();
        let since = |start: Instant, end: Instant| end.saturating_duration_since(start);
        let started = self.started.unwrap_or(now);
        let first = self.times.first().copied().unwrap_or(now);
        let last = self.times.last().copied();
        Timings {
            queue: since(submitted, started),
            prefill: since(started, first),
            decode: last.map_or(Duration::ZERO, |last| since(first, last)),
            total: since(submitted, now),
            tokens: self.times.iter().map(|time| since(submitted, *time)).collect(),
        }
    }
}
