//! What a request's history and biases do to the logits of a step, before any sampling.
//!
//! Arithmetic is f32 as in transformers 5.23 (`generation/logits_process.py`), which applies
//! `sequence_bias`, `repetition_penalty` and `no_repeat_ngram_size` in this order and any custom
//! processor after them. Presence and frequency penalties are vLLM's, in its order. The n-gram ban
//! sets negative infinity, so it commutes with the subtractions that follow it.

use crate::GenerateOptions;
use crate::error::{Result, try_vec, try_zeroed};

/// The processors of one request, with scratch that is allocated once.
#[derive(Debug)]
pub(super) struct Processors {
    bias: Vec<(u32, f32)>,
    repetition: f32,
    presence: f32,
    frequency: f32,
    ngram: usize,
    /// Occurrences per token id; all zero between calls, empty where no penalty needs it.
    counts: Vec<u32>,
    /// Prompt and answer in one piece, for the n-gram windows.
    history: Vec<u32>,
}

impl Processors {
    /// The processors `options` ask for; the options were validated for `vocab_size`.
    pub(super) fn new(options: &GenerateOptions, vocab_size: usize) -> Result<Self> {
        let mut bias = try_vec(options.logit_bias.len(), "logit biases")?;
        bias.extend_from_slice(&options.logit_bias);
        let counted = options.repetition_penalty != 1.0
            || options.presence_penalty != 0.0
            || options.frequency_penalty != 0.0;
        Ok(Self {
            bias,
            repetition: options.repetition_penalty,
            presence: options.presence_penalty,
            frequency: options.frequency_penalty,
            ngram: options.no_repeat_ngram,
            counts: try_zeroed(if counted { vocab_size } else { 0 }, "token counts")?,
            history: Vec::new(),
        })
    }

    /// Whether [`apply`](Self::apply) leaves every score as it is.
    pub(super) fn is_empty(&self) -> bool {
        self.bias.is_empty() && self.counts.is_empty() && self.ngram == 0
    }

    /// Changes `scores` (one per token id) in place. Ids outside the vocabulary have no effect.
    pub(super) fn apply(
        &mut self,
        scores: &mut [f32],
        prompt: &[u32],
        generated: &[u32],
    ) -> Result<()> {
        for (id, bias) in &self.bias {
            if let Some(score) = scores.get_mut(*id as usize) {
                *score += bias;
            }
        }
        if self.repetition != 1.0 {
            let penalty = self.repetition;
            for_each_counted(&mut self.counts, scores, &[prompt, generated], |score, _| {
                *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
            });
        }
        if self.ngram > 0 {
            self.ban_ngrams(scores, prompt, generated)?;
        }
        let (presence, frequency) = (self.presence, self.frequency);
        if presence != 0.0 || frequency != 0.0 {
            for_each_counted(&mut self.counts, scores, &[generated], |score, count| {
                *score -= frequency * count as f32;
                *score -= presence;
            });
        }
        Ok(())
    }

    /// Bans every token that would complete an n-gram that the history already holds.
    fn ban_ngrams(&mut self, scores: &mut [f32], prompt: &[u32], generated: &[u32]) -> Result<()> {
        self.history.clear();
        let len = prompt.len().saturating_add(generated.len());
        if self.history.capacity() < len {
            self.history = try_vec(len.saturating_mul(2), "token history")?;
        }
        self.history.extend_from_slice(prompt);
        self.history.extend_from_slice(generated);
        // A history shorter than one n-gram has no tail, and nothing to ban.
        let Some(tail) = (len + 1).checked_sub(self.ngram).and_then(|at| self.history.get(at..))
        else {
            return Ok(());
        };
        for window in self.history.windows(self.ngram) {
            if let Some((last, head)) = window.split_last()
                && head == tail
                && let Some(score) = scores.get_mut(*last as usize)
            {
                *score = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }
}

/// Calls `change(score, occurrences)` once for each distinct id of `texts`, in time linear in their
/// length; `counts` is all zero before and after.
fn for_each_counted(
    counts: &mut [u32],
    scores: &mut [f32],
    texts: &[&[u32]],
    change: impl Fn(&mut f32, u32),
) {
    let ids = || texts.iter().copied().flatten().map(|id| *id as usize);
    for id in ids() {
        if let Some(count) = counts.get_mut(id) {
            *count = count.saturating_add(1);
        }
    }
    for id in ids() {
        if let (Some(count), Some(score)) = (counts.get_mut(id), scores.get_mut(id))
            && *count > 0
        {
            change(score, *count);
            *count = 0;
        }
    }
}
