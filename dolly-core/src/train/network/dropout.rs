//! Dropout whose mask is a function of seed, place and element: formed again in the backward pass
//! and after a resume, never stored.

use crate::kernels::pool::{Pool, rows as for_rows};

/// The place after the embedding.
pub(super) const EMBEDDING: u64 = 0;
/// The first place of layers: two each, attention and feed-forward.
pub(super) const LAYERS: u64 = 1;
/// The first place of adapters.
pub(super) const ADAPTERS: u64 = 1 << 32;

/// The noise of one batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noise {
    seed: u64,
    rate: f32,
}

impl Noise {
    /// Drops the share `rate` of the elements.
    pub(super) fn new(seed: u64, rate: f32) -> Self {
        Self { seed, rate }
    }

    /// No dropout anywhere, adapters included.
    pub(super) fn off() -> Self {
        Self { seed: 0, rate: f32::NAN }
    }

    /// The same noise at another rate; off stays off.
    pub(super) fn with_rate(self, rate: f32) -> Self {
        Self { rate: if self.rate.is_nan() { self.rate } else { rate }, ..self }
    }

    /// Whether anything is dropped.
    pub(super) fn is_on(self) -> bool {
        self.rate > 0.0
    }

    /// Zeroes elements and scales the others by `1 / (1 - rate)`.
    pub(super) fn apply(self, pool: &Pool, site: u64, width: usize, values: &mut [f32]) {
        if !self.is_on() {
            return;
        }
        let key = mix(self.seed ^ mix(site.wrapping_add(1)));
        let threshold = (f64::from(self.rate) * (1_u64 << 32) as f64) as u64;
        let scale = 1.0 / (1.0 - self.rate);
        let rows = values.len() / width.max(1);
        for_rows(pool, values, rows, width, true, |first, values| {
            for (i, x) in values.iter_mut().enumerate() {
                let number = mix(key.wrapping_add((first * width + i) as u64)) >> 32;
                *x = if number < threshold { 0.0 } else { *x * scale };
            }
        });
    }
}

/// SplitMix64's output function (Steele et al., 2014).
fn mix(x: u64) -> u64 {
    let z = x.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
