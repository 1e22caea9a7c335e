//! The tokens that sampling may choose, and the draw among them.
//!
//! Filters follow transformers 5.23 (`TopK`, `TopP`, `MinP`, `TypicalLogitsWarper`, in the order of
//! `_get_logits_processor`), with f64 probabilities where it has f32. A token's weight is
//! w = e^(score - max); probabilities are weights over their sum, and the likeliest weighs 1.
//!
//! ```text
//! top_k      keep score >= the k-th largest score (ties stay)
//! top_p      descending by (score, id): keep while the mass before a token is < top_p
//! min_p      keep w >= min_p
//! typical_p  ascending by d = |-ln p - H|, H = -sum p ln p: keep d <= the d at which the mass
//!            reaches typical_p (ties stay)
//! ```
//!
//! Equal scores at the border of top_p: transformers leaves the choice to `torch.sort`, whose default
//! order of equals is unspecified; its stable order keeps the higher ids, and so does this.
//!
//! Sorting 50,000 tokens costs more than the rest together, so none is sorted that need not be:
//! tokens of weight below (1 - top_p) * sum / n hold less than 1 - top_p in all, hence none of them
//! survives; among the others, selection narrows down to the one at which the mass is reached.

use crate::error::{Error, Result, try_vec};

/// Limits of the filters; the options' own meanings and off-values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filters {
    pub(super) top_k: usize,
    pub(super) top_p: f64,
    pub(super) min_p: f64,
    pub(super) typical_p: f64,
}

/// Scratch of one request's selections, grown on first use.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// Surviving tokens, ascending by id: see [`key`].
    keys: Vec<u64>,
    /// `(sort key, weight)` of those that compete for a share of the mass.
    order: Vec<(u64, f64)>,
    cumulative: Vec<f64>,
    ranked: Vec<f32>,
}

/// Slack of a cut on logarithms of weights: far above any rounding, and it costs a few candidates.
const CUT_SLACK: f64 = 1e-3;
/// Exponentials computed side by side.
const LANES: usize = 8;
/// Tokens looked at first, in the hope that they hold the mass; chunks grow fourfold from there.
const FIRST_CHUNK: usize = 64;

impl Selection {
    /// Draws a token by inverse transform: the smallest id whose cumulated weight, ids ascending,
    /// is above `uniform` (in [0, 1)) times the whole. `max` is the largest of `scores`, finite.
    pub(super) fn draw(
        &mut self,
        scores: &[f32],
        max: f32,
        filters: &Filters,
        uniform: f64,
    ) -> Result<u32> {
        self.select(scores, max, filters)?;
        self.drawn(f64::from(max), uniform)
    }

    /// As [`draw`](Self::draw) with `top_k` on, of the largest scores alone, in descending order:
    /// of any other it must be known that it is below the `top_k`-th, or negative infinity.
    pub(super) fn draw_of_largest(
        &mut self,
        largest: impl ExactSizeIterator<Item = (u32, f32)> + Clone,
        filters: &Filters,
        uniform: f64,
    ) -> Result<u32> {
        let kth = largest.clone().nth(filters.top_k.saturating_sub(1));
        let (Some((_, max)), Some((_, kth))) = (largest.clone().next(), kth) else {
            return Err(Error::Internal(format!("{} scores for top_k", largest.len())));
        };
        reserve(&mut self.keys, largest.len(), "candidate tokens")?;
        let kept = largest.filter(|(_, score)| *score >= kth.max(f32::MIN));
        self.keys.extend(kept.map(|(id, score)| key(score, id as usize)));
        self.keys.sort_unstable_by_key(|key| id_of(*key));
        self.narrow(f64::from(max), filters, true)?;
        self.drawn(f64::from(max), uniform)
    }

    /// The draw among the surviving tokens.
    fn drawn(&mut self, max: f64, uniform: f64) -> Result<u32> {
        reserve(&mut self.cumulative, self.keys.len(), "cumulated weights")?;
        let mut total = 0.0;
        each_weight(&self.keys, max, |weight| {
            total += weight;
            self.cumulative.push(total);
        });
        let target = uniform * total;
        let drawn = self.cumulative.partition_point(|sum| *sum <= target);
        // The product can round up to the whole; the last token with any weight is meant then.
        let last = self.cumulative.partition_point(|sum| *sum < total);
        match self.keys.get(drawn.min(last)) {
            Some(key) => Ok(id_of(*key)),
            None => Err(Error::Internal("a draw among no tokens".to_owned())),
        }
    }

    /// Fills the surviving tokens; never none, as `max` is finite.
    pub(super) fn select(&mut self, scores: &[f32], max: f32, filters: &Filters) -> Result<()> {
        let top_k = filters.top_k > 0 && filters.top_k < scores.len();
        let top_p = filters.top_p < 1.0;
        let top = f64::from(max);
        let min_cut = filters.min_p.ln() - CUT_SLACK;
        if top_k {
            let threshold = self.kth_largest(scores, filters.top_k)?;
            self.gather(scores, threshold)?;
        } else if top_p {
            let total = total_weight(scores, max);
            self.gather(scores, floor(top, mass_cut(filters.top_p, total, scores.len())))?;
            self.keep_top_mass(filters.top_p * total, top)?;
        } else {
            self.gather(scores, floor(top, min_cut))?;
        }
        self.narrow(top, filters, top_k)
    }

    /// The filters that follow the first one, `top_k` where that was on.
    fn narrow(&mut self, top: f64, filters: &Filters, top_k: bool) -> Result<()> {
        if top_k && filters.top_p < 1.0 {
            let total: f64 = self.keys.iter().map(|key| weight(*key, top)).sum();
            self.keep_top_mass(filters.top_p * total, top)?;
        }
        if filters.min_p > 0.0 {
            self.keys.retain(|key| weight(*key, top) >= filters.min_p);
        }
        if filters.typical_p < 1.0 {
            self.keep_typical(filters.typical_p, top)?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> &Vec<u64> {
        &self.keys
    }

    /// Ids of the surviving tokens, ascending.
    #[cfg(test)]
    pub(super) fn ids(&self) -> Vec<u32> {
        self.keys.iter().map(|key| id_of(*key)).collect()
    }

    /// The `k`-th largest of `scores`, `0 < k <= scores.len()`.
    fn kth_largest(&mut self, scores: &[f32], k: usize) -> Result<f32> {
        reserve(&mut self.ranked, scores.len(), "ranked logits")?;
        self.ranked.extend_from_slice(scores);
        let at = scores.len().saturating_sub(k);
        Ok(*self.ranked.select_nth_unstable_by(at, f32::total_cmp).1)
    }

    /// Collects the tokens of a score of at least `threshold`, and never those of negative infinity.
    fn gather(&mut self, scores: &[f32], threshold: f32) -> Result<()> {
        let threshold = threshold.max(f32::MIN);
        let count = scores.iter().map(|score| u32::from(*score >= threshold)).sum::<u32>();
        reserve(&mut self.keys, count as usize, "candidate tokens")?;
        for (id, score) in scores.iter().enumerate() {
            if *score >= threshold {
                self.keys.push(key(*score, id));
            }
        }
        Ok(())
    }

    fn keep_top_mass(&mut self, mass: f64, max: f64) -> Result<()> {
        reserve(&mut self.order, self.keys.len(), "ranked tokens")?;
        let mut keys = self.keys.iter();
        let order = &mut self.order;
        each_weight(&self.keys, max, |weight| order.extend(keys.next().map(|key| (!key, weight))));
        let boundary = !boundary(&mut self.order, mass);
        self.keys.retain(|key| *key >= boundary);
        Ok(())
    }

    fn keep_typical(&mut self, typical_p: f64, max: f64) -> Result<()> {
        let total: f64 = self.keys.iter().map(|key| weight(*key, max)).sum();
        let log_total = total.ln();
        let surprise = |key: u64| log_total - (f64::from(score_of(key)) - max);
        let entropy: f64 =
            self.keys.iter().map(|key| surprise(*key) * weight(*key, max) / total).sum();
        // Bits of a float that is not negative sort as the float does.
        let distance = |key: u64| (surprise(key) - entropy).abs().to_bits();
        reserve(&mut self.order, self.keys.len(), "ranked tokens")?;
        self.order.extend(self.keys.iter().map(|key| (distance(*key), weight(*key, max))));
        let boundary = boundary(&mut self.order, typical_p * total);
        self.keys.retain(|key| distance(*key) <= boundary);
        Ok(())
    }
}

/// The first sort key, ascending, at which the weights add up to `mass`; the last one where they
/// never do. Narrows down to it by selection, in time linear in the length.
fn boundary(order: &mut [(u64, f64)], mass: f64) -> u64 {
    let (mut rest, mut sum, mut chunk) = (order, 0.0, FIRST_CHUNK);
    while rest.len() > FIRST_CHUNK {
        let at = chunk.min(rest.len() / 2);
        rest.select_nth_unstable_by_key(at, |item| item.0);
        let (head, tail) = rest.split_at_mut(at);
        let reached = sum + head.iter().map(|item| item.1).sum::<f64>();
        if reached >= mass {
            rest = head;
        } else {
            (rest, sum, chunk) = (tail, reached, chunk.saturating_mul(4));
        }
    }
    rest.sort_unstable_by_key(|item| item.0);
    let mut last = 0;
    for (sort_key, weight) in rest.iter() {
        sum += weight;
        last = *sort_key;
        if sum >= mass {
            break;
        }
    }
    last
}

/// Logarithm of the weight below which `count` tokens together miss the top `top_p` of `total`.
fn mass_cut(top_p: f64, total: f64, count: usize) -> f64 {
    ((1.0 - top_p) * total / count as f64).ln() - CUT_SLACK
}

/// The score of a token whose weight is `e^cut`, rounded down.
fn floor(max: f64, cut: f64) -> f32 {
    ((max + cut) as f32).next_down()
}

/// A token as one number that sorts by score, then by id.
fn key(score: f32, id: usize) -> u64 {
    // Adding zero makes negative zero positive: the two are equal scores.
    let bits = (score + 0.0).to_bits();
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | id as u64
}

fn id_of(key: u64) -> u32 {
    (key & u64::from(u32::MAX)) as u32
}

fn score_of(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
}

fn weight(key: u64, max: f64) -> f64 {
    exp([f64::from(score_of(key)) - max])[0]
}

/// Calls `take` with the weight of each of `keys`, in order.
fn each_weight(keys: &[u64], max: f64, mut take: impl FnMut(f64)) {
    let (chunks, rest) = keys.as_chunks::<LANES>();
    for chunk in chunks {
        exp(chunk.map(|key| f64::from(score_of(key)) - max)).into_iter().for_each(&mut take);
    }
    rest.iter().for_each(|key| take(weight(*key, max)));
}

/// Sum over i of `e^(scores[i] - max)`, in interleaved sums: a fixed order that vectorises.
pub(super) fn total_weight(scores: &[f32], max: f32) -> f64 {
    let max = f64::from(max);
    let mut sums = [0.0; LANES];
    let (chunks, rest) = scores.as_chunks::<LANES>();
    for chunk in chunks {
        let weights = exp(chunk.map(|score| f64::from(score) - max));
        sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += weight);
    }
    let rest = rest.iter().map(|score| exp([f64::from(*score) - max])[0]);
    sums.iter().sum::<f64>() + rest.sum::<f64>()
}

/// e^x for each x <= 0, within 2 ulp; 0 below -708, where it is under 4e-308.
///
/// x = k ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor polynomial of degree 13 (remainder
/// below 5e-18). Free of branches and of the platform's libm: it vectorises, for which each step
/// runs over all lanes, and gives the same bits on every machine and for any `N`.
#[inline(always)]
pub(super) fn exp<const N: usize>(x: [f64; N]) -> [f64; N] {
    // Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    // ln 2 in two parts; the first has trailing zeros enough for k times it to be exact (fdlibm).
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const INVERSE_FACTORIALS: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let clamped = x.map(|x| if x > -708.0 { x } else { -708.0 });
    let rounded = clamped.map(|x| x * std::f64::consts::LOG2_E + ROUND);
    let mut remainder = clamped;
    for (r, rounded) in remainder.iter_mut().zip(rounded) {
        let k = rounded - ROUND;
        *r = (*r - k * LN2_HIGH) - k * LN2_LOW;
    }
    let mut power = [0.0; N];
    for coefficient in INVERSE_FACTORIALS {
        power.iter_mut().zip(remainder).for_each(|(power, r)| *power = *power * r + coefficient);
    }
    for ((power, x), rounded) in power.iter_mut().zip(x).zip(rounded) {
        let scale = f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52);
        *power = if x < -708.0 { 0.0 } else { *power * scale };
    }
    power
}

/// Empties `vec` and makes room for `len` elements.
fn reserve<T>(vec: &mut Vec<T>, len: usize, what: &str) -> Result<()> {
    vec.clear();
    if vec.capacity() < len {
        // Some room to spare, so that a slowly growing need does not allocate at every step.
        *vec = try_vec(len.saturating_add(len / 2), what)?;
    }
    Ok(())
}
