//! Choices that a few of the largest logits decide, exactly as the whole row would.
//!
//! Greedy decoding needs the first of the largest, `top_k` the k largest and all that equal the last
//! of them once divided by the temperature. Whatever else looks at a row (penalties, biases, bans,
//! log-probabilities, `top_p` without `top_k`) looks at all of it.

use super::{Picked, Sampler};
use crate::backend::Few;
use crate::error::{Error, Result};

/// Beyond so many, a row is soon copied whole.
const MOST: usize = 256;

impl Sampler {
    /// How many of the largest logits a choice needs; `None`: all there are.
    pub(crate) fn needed(&self) -> Option<usize> {
        if self.logprobs.is_some() || !self.processors.is_empty() {
            return None;
        }
        match self.filters.top_k {
            _ if !self.do_sample => Some(1),
            k if k > 0 && k < self.vocab_size && k <= MOST => Some(k),
            _ => None,
        }
    }

    /// Whether a choice of these is what the whole row gives: none that is left out could be kept.
    pub(crate) fn decides(&self, few: Few<'_>) -> bool {
        let score = |index: usize| few.pairs.get(index).map(|pair| pair.1);
        let Some(needed) = self.needed() else { return false };
        let (Some(max), Some(kept)) = (score(0), score(needed - 1)) else { return false };
        let Some(last) = few.pairs.last().map(|pair| pair.1) else { return false };
        let alone = needed == 1 && !self.do_sample && few.pairs.len() == 1;
        let apart = self.scaled(last) < self.scaled(kept).max(f32::MIN);
        max.is_finite() && (few.complete || alone || apart)
    }

    /// Chooses as [`pick`](Self::pick) does, of logits that [decide](Self::decides).
    pub(crate) fn pick_of_few(&mut self, few: Few<'_>) -> Result<Picked> {
        let Some((first, max)) = few.pairs.first().copied() else {
            return Err(Error::Internal("a choice among no logits".to_owned()));
        };
        let mut id = first;
        if self.do_sample {
            let uniform = self.uniform();
            // Where the scaling overflows, the likeliest is taken.
            if self.scaled(max).is_finite() {
                let temperature = self.temperature;
                let scaled = few.pairs.iter().map(|(id, logit)| (*id, logit / temperature));
                id = self.selection.draw_of_largest(scaled, &self.filters, uniform)?;
            }
        }
        Ok(Picked { id, logprob: 0.0, top: Vec::new() })
    }

    /// A logit as it is compared: divided by the temperature where tokens are drawn.
    fn scaled(&self, logit: f32) -> f32 {
        if self.do_sample { logit / self.temperature } else { logit }
    }
}
