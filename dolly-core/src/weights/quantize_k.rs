//! `f32` to the super-blocks of ggml's Q4_K and Q6_K, by a small deterministic search.
//!
//! Layouts are those of `ggml-common.h` (`block_q4_K`, `block_q6_K`). llama.cpp searches more
//! candidates and weighs errors by the size of the weight or by an importance matrix; what it
//! stores may be somewhat nearer to a model's floats than what these functions give.

use half::f16;

/// Weights of a super-block.
pub(crate) const SUPER_BLOCK: usize = 256;

/// Steps over the range of a sub-block that are tried for Q4_K. Fewer than the fifteen there are
/// give up the outermost weights for finer steps: of normal weights the error falls by 3 % against
/// fifteen alone, and by another 3 % only with fifty candidates.
const STEPS: [f32; 3] = [15.0, 14.25, 13.5];

/// Packs 256 weights as Q4_K: eight sub-blocks of 32, `w = (d s) q - (dmin m)` with q in 0..=15,
/// s and m in 0..=63, d and dmin as f16.
///
/// Of each sub-block, candidates cover its range with 15, 14.25 or 13.5 steps; the least-squares
/// scale and minimum of the best of them are rounded to 6 bits of the largest among the eight. Weights
/// that are not finite make the block's scale so, or count as zero.
///
/// ```
/// use dolly_core::weights::quantize_q4_k;
/// let weights = std::array::from_fn(|i| (i % 16) as f32); // 0 to 15, twice in each sub-block
/// let block = quantize_q4_k(&weights);
/// assert_eq!(block[4] & 63, 63); // the largest scale
/// assert_eq!(block[16..24], [0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77]);
/// ```
pub fn quantize_q4_k(weights: &[f32; 256]) -> [u8; 144] {
    let subs = weights.as_chunks::<32>().0;
    let mut scales = [0.0f32; 8];
    let mut mins = [0.0f32; 8];
    for ((scale, min), sub) in scales.iter_mut().zip(&mut mins).zip(subs) {
        (*scale, *min) = scale_and_min(sub);
    }
    let (d, scales) = six_bits(&scales);
    let (dmin, mins) = six_bits(&mins);
    let mut block = [0; 144];
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..4].copy_from_slice(&dmin.to_le_bytes());
    for i in 0..4 {
        let (scale, min) = (scales[i + 4], mins[i + 4]);
        block[4 + i] = scales[i] | scale >> 4 << 6;
        block[8 + i] = mins[i] | min >> 4 << 6;
        block[12 + i] = scale & 15 | min << 4;
    }
    for (i, sub) in subs.iter().enumerate() {
        let scale = d.to_f32() * f32::from(scales[i]);
        let (inverse, min) = (inverse(scale), dmin.to_f32() * f32::from(mins[i]));
        for (byte, weight) in block[16 + i / 2 * 32..][..32].iter_mut().zip(sub) {
            *byte |= nearest((weight + min) * inverse, 15) << (i % 2 * 4);
        }
    }
    block
}

/// Packs 256 weights as Q6_K: sixteen sub-blocks of 16, `w = (d s) q` with q in -32..=31, s a
/// signed byte, d as f16.
///
/// The weight of largest magnitude in a sub-block becomes -32 steps, before its scale is rounded
/// to 8 bits of the largest among the sixteen.
///
/// ```
/// use dolly_core::weights::quantize_q6_k;
/// let block = quantize_q6_k(&[128.0 * 32.0; 256]);
/// assert_eq!((block[208], block[209]), (0x00, 0x3c)); // 1.0 as f16
/// assert_eq!((block[192] as i8, block[0], block[128]), (-128, 0, 0)); // q = -32 is stored as 0
/// ```
pub fn quantize_q6_k(weights: &[f32; 256]) -> [u8; 210] {
    let subs = weights.as_chunks::<16>().0;
    let mut scales = [0.0f32; 16];
    for (scale, sub) in scales.iter_mut().zip(subs) {
        *scale = extreme(sub) / -32.0;
    }
    let d = f16::from_f32(extreme(&scales) / -128.0);
    let step = inverse(d.to_f32());
    let mut block = [0; 210];
    block[208..].copy_from_slice(&d.to_le_bytes());
    for (i, sub) in subs.iter().enumerate() {
        let scale = (scales[i] * step).round_ties_even() as i8;
        block[192 + i] = scale as u8;
        let inverse = inverse(d.to_f32() * f32::from(scale));
        // A group of 32 has its low bits in half a byte of 32 and its high bits in a quarter.
        let (part, quarter) = (i / 8, i / 2 % 4);
        for (k, weight) in sub.iter().enumerate() {
            let q = nearest(weight * inverse + 32.0, 63);
            let k = i % 2 * 16 + k;
            block[part * 64 + quarter % 2 * 32 + k] |= (q & 15) << (quarter / 2 * 4);
            block[128 + part * 32 + k] |= q >> 4 << (quarter * 2);
        }
    }
    block
}

/// The scale s and minimum m (not negative) that make `s q - m` nearest to the weights, of a few
/// candidates for q.
fn scale_and_min(weights: &[f32; 32]) -> (f32, f32) {
    let low = weights.iter().fold(0.0f32, |low, w| low.min(*w));
    let high = weights.iter().fold(low, |high, w| high.max(*w));
    if high == low {
        // All equal and not above zero: q is 0.
        return (0.0, -low);
    }
    let mut best = ((high - low) / 15.0, -low);
    let mut least = f32::INFINITY;
    for steps in STEPS {
        let inverse = steps / (high - low);
        let q = weights.map(|w| f32::from(nearest((w - low) * inverse, 15)));
        let candidate = least_squares(weights, &q);
        let errors = weights.iter().zip(q).map(|(w, q)| candidate.0 * q - candidate.1 - w);
        let error: f32 = errors.map(|error| error * error).sum();
        if error < least {
            (best, least) = (candidate, error);
        }
    }
    best
}

/// The s and m >= 0 of least `sum (s q - m - w)^2`; q is not zero throughout.
fn least_squares(weights: &[f32; 32], q: &[f32; 32]) -> (f32, f32) {
    let sum = |terms: &dyn Fn(f32, f32) -> f32| -> f32 {
        weights.iter().zip(q).map(|(w, q)| terms(*w, *q)).sum()
    };
    let (sum_q, sum_qq) = (sum(&|_, q| q), sum(&|_, q| q * q));
    let (sum_w, sum_qw) = (sum(&|w, _| w), sum(&|w, q| q * w));
    let determinant = 32.0 * sum_qq - sum_q * sum_q;
    let min = (sum_q * sum_qw - sum_qq * sum_w) / determinant;
    match determinant > 0.0 && min > 0.0 {
        true => ((32.0 * sum_qw - sum_q * sum_w) / determinant, min),
        false => (sum_qw / sum_qq, 0.0),
    }
}

/// Numbers that are not negative as 6-bit multiples of an f16.
fn six_bits(values: &[f32; 8]) -> (f16, [u8; 8]) {
    let largest = values.iter().fold(0.0f32, |most, value| most.max(*value));
    let step = f16::from_f32(largest / 63.0);
    let inverse = inverse(step.to_f32());
    (step, values.map(|value| nearest(value * inverse, 63)))
}

/// The nearest integer of 0 to `most`, halves up; 0 for NaN.
fn nearest(x: f32, most: u8) -> u8 {
    // Casts saturate, and make NaN 0.
    ((x + 0.5) as u8).min(most)
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The first value of largest magnitude; NaN never wins.
fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most: f32, x| if x.abs() > most.abs() { *x } else { most })
}
