//! The choice of the next token: penalties, filters, and a draw that a seed repeats.
//!
//! One [`Sampler`] serves one answer. The same options, seed, logits and history give the same
//! tokens on every machine; one number is taken from the generator per drawn token, whatever the
//! filters, so answers of equal seed stay aligned.

use std::hash::{BuildHasher, RandomState};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::processors::Processors;
use super::select::{Filters, Selection, total_weight};
use crate::GenerateOptions;
use crate::error::{Error, Result, try_vec};

/// Below this temperature the likeliest token is taken: its rivals have no weight left, and the
/// division could overflow.
const GREEDY_TEMPERATURE: f32 = 1e-5;

/// A chosen token, and what was asked to be reported about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Picked {
    /// The token's id.
    pub id: u32,
    /// Natural logarithm of its probability under the model's own logits, before any option
    /// changed them; 0 unless log-probabilities were asked for.
    pub logprob: f32,
    /// The likeliest tokens and their log-probabilities, likeliest first, then by id; as many as
    /// [`GenerateOptions::logprobs`] asks for, less where fewer have any probability.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one answer.
///
/// ```
/// use dolly_core::GenerateOptions;
/// use dolly_core::generate::sampler::Sampler;
/// let mut sampler = Sampler::new(&GenerateOptions::greedy(), 7, 4)?;
/// assert_eq!(sampler.pick(&[0.5, 2.0, -1.0, 2.0], &[0], &[])?.id, 1);
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Sampler {
    vocab_size: usize,
    do_sample: bool,
    temperature: f32,
    logprobs: Option<usize>,
    filters: Filters,
    processors: Processors,
    selection: Selection,
    scores: Vec<f32>,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler for logits of `vocab_size` values, with the draws of `seed`
    /// ([`GenerateOptions::seed`] itself is not read).
    ///
    /// Fails with [`Error::InvalidOption`] on an option out of range or a bias for an id outside
    /// the vocabulary, and with [`Error::InvalidInput`] on a vocabulary that ids cannot count.
    pub fn new(options: &GenerateOptions, seed: u64, vocab_size: usize) -> Result<Self> {
        options.validate()?;
        if vocab_size == 0 || u32::try_from(vocab_size).is_err() {
            return Err(Error::InvalidInput(format!(
                "a vocabulary of {vocab_size} tokens; ids need 1 to {}",
                u32::MAX
            )));
        }
        if let Some((id, _)) = options.logit_bias.iter().find(|(id, _)| *id as usize >= vocab_size)
        {
            return Err(Error::option(
                "logit_bias",
                format!("id {id} of {vocab_size} tokens"),
                "ids within the vocabulary",
            ));
        }
        Ok(Self {
            vocab_size,
            do_sample: options.do_sample && options.temperature >= GREEDY_TEMPERATURE,
            temperature: options.temperature,
            logprobs: options.logprobs,
            filters: Filters {
                top_k: options.top_k,
                top_p: as_written(options.top_p),
                min_p: as_written(options.min_p),
                typical_p: as_written(options.typical_p),
            },
            processors: Processors::new(options, vocab_size)?,
            selection: Selection::default(),
            scores: Vec::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    /// Chooses the token that follows `prompt_ids` and then `generated`, given its `logits`
    /// `(vocab,)`. Of equally likely tokens, greedy decoding takes the lowest id.
    ///
    /// Fails with [`Error::InvalidInput`] where the logits hold NaN or infinity or no finite value,
    /// and where the options leave no token; the message names the step, counted from 0.
    pub fn pick(
        &mut self,
        logits: &[f32],
        prompt_ids: &[u32],
        generated: &[u32],
    ) -> Result<Picked> {
        let step = generated.len();
        if logits.len() != self.vocab_size {
            return Err(Error::Internal(format!(
                "step {step}: {} logits for a vocabulary of {}",
                logits.len(),
                self.vocab_size
            )));
        }
        let raw_max = finite_max(logits, step, "the model's logits")?;
        let id = self.choose(logits, raw_max, prompt_ids, generated)?;
        let Some(count) = self.logprobs else {
            return Ok(Picked { id, logprob: 0.0, top: Vec::new() });
        };
        let log_total = f64::from(raw_max) + total_weight(logits, raw_max).ln();
        let logprob = |logit: f32| (f64::from(logit) - log_total) as f32;
        let mut top = likeliest(logits, count)?;
        top.iter_mut().for_each(|(_, value)| *value = logprob(*value));
        let chosen = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        Ok(Picked { id, logprob: logprob(chosen), top })
    }

    fn choose(
        &mut self,
        logits: &[f32],
        raw_max: f32,
        prompt_ids: &[u32],
        generated: &[u32],
    ) -> Result<u32> {
        let warm = self.do_sample && self.temperature != 1.0;
        if self.processors.is_empty() && !warm {
            return self.settle(logits, raw_max, false);
        }
        let mut scores = std::mem::take(&mut self.scores);
        if scores.capacity() < logits.len() {
            scores = try_vec(logits.len(), "logits of a step")?;
        }
        scores.clear();
        scores.extend_from_slice(logits);
        self.processors.apply(&mut scores, prompt_ids, generated)?;
        let mut max = finite_max(&scores, generated.len(), "the logits after the options")?;
        let scaled = max / self.temperature;
        let overflow = warm && !scaled.is_finite();
        if warm && !overflow {
            scores.iter_mut().for_each(|score| *score /= self.temperature);
            max = scaled;
        }
        let id = self.settle(&scores, max, overflow);
        self.scores = scores;
        id
    }

    /// The draw, or the likeliest token where nothing is to be drawn or the scaling overflowed.
    fn settle(&mut self, scores: &[f32], max: f32, overflow: bool) -> Result<u32> {
        if !self.do_sample {
            return first_of(scores, max);
        }
        let uniform = self.uniform();
        if overflow {
            return first_of(scores, max);
        }
        self.selection.draw(scores, max, &self.filters, uniform)
    }

    /// The next number of the generator, in [0, 1).
    fn uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A seed that differs from call to call, for requests that name none.
pub fn fresh_seed() -> u64 {
    let time = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    RandomState::new().hash_one(time)
}

/// The seed of answer `index` of a request with `seed`: the first answer has the seed itself, the
/// others SplitMix64 of it (Steele et al., 2014).
///
/// ```
/// use dolly_core::generate::sampler::derive_seed;
/// assert_eq!(derive_seed(7, 0), 7);
/// assert_ne!(derive_seed(7, 1), derive_seed(7, 2));
/// ```
pub fn derive_seed(seed: u64, index: usize) -> u64 {
    if index == 0 {
        return seed;
    }
    let mut z = seed.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The f64 nearest to the shortest decimal that is `value`: a limit of 0.8 means 0.8, so that a
/// mass of exactly 0.8 reaches it.
fn as_written(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// The largest score; an error that names `what` unless it is finite and no score is NaN.
fn finite_max(scores: &[f32], step: usize, what: &str) -> Result<f32> {
    let (mut maxima, mut bad) = ([f32::NEG_INFINITY; 16], [false; 16]);
    let chunks = scores.chunks(16);
    for chunk in chunks {
        for ((max, bad), score) in maxima.iter_mut().zip(&mut bad).zip(chunk) {
            *max = if *score > *max { *score } else { *max };
            *bad |= score.is_nan();
        }
    }
    let max = maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !bad.contains(&true) && max.is_finite() {
        return Ok(max);
    }
    let reason = match scores.iter().position(|score| score.is_nan() || *score == f32::INFINITY) {
        Some(id) => format!("hold {} at token {id}", scores.get(id).unwrap_or(&f32::NAN)),
        None => "leave no token: every one is negative infinity".to_owned(),
    };
    Err(Error::InvalidInput(format!("step {step}: {what} {reason}")))
}

/// The first token of score `max`.
fn first_of(scores: &[f32], max: f32) -> Result<u32> {
    let found = scores.iter().position(|score| *score == max);
    match found.and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok(id),
        None => Err(Error::Internal("no logit equals the largest".to_owned())),
    }
}

/// The `count` largest logits with their ids, largest first, then by id; none that is -infinity.
fn likeliest(logits: &[f32], count: usize) -> Result<Vec<(u32, f32)>> {
    let mut top: Vec<(u32, f32)> = try_vec(count.min(logits.len()), "likeliest tokens")?;
    if count == 0 {
        return Ok(top);
    }
    let mut least = f32::NEG_INFINITY;
    for (id, logit) in (0u32..).zip(logits.iter().copied()) {
        if logit > least {
            top.truncate(count - 1);
            top.insert(top.partition_point(|(_, value)| *value >= logit), (id, logit));
            if top.len() == count {
                least = top.last().map_or(least, |(_, value)| *value);
            }
        }
    }
    Ok(top)
}

mod few;
#[cfg(test)]
mod tests;
