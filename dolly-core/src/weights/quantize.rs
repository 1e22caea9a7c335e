//! `f32` to stored bytes: rounding to nearest even for half types, ggml's reference quantisers for
//! blocks.

use half::{bf16, f16};

use super::StoredType;
use super::quantize_k::{quantize_q4_k, quantize_q6_k};

/// Packs 32 weights as Q8_0: scale `d = max|w| / 127` as f16, then `round(w / d)` as signed bytes.
///
/// As ggml's `quantize_row_q8_0_ref`: the quotient uses the unrounded scale, halves round away from
/// zero. The error of a weight is at most `d / 2`, and `127 |d - f16(d)|` for the scale's rounding.
///
/// ```
/// use dolly_core::weights::quantize_q8_0;
/// let mut weights = [0.0; 32];
/// weights[0] = -127.0;
/// let block = quantize_q8_0(&weights);
/// assert_eq!((block[0], block[1], block[2] as i8), (0x00, 0x3c, -127)); // 1.0 as f16
/// ```
pub fn quantize_q8_0(weights: &[f32; 32]) -> [u8; 34] {
    let largest = weights.iter().fold(0.0f32, |max, w| max.max(w.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut block = [0; 34];
    let (head, quants) = block.split_at_mut(2);
    head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (quant, weight) in quants.iter_mut().zip(weights) {
        *quant = (weight * inverse).round() as i8 as u8;
    }
    block
}

/// Packs 32 weights as Q4_0: scale `d = w_max / -8` as f16, where `w_max` is the first weight of
/// largest magnitude, then `trunc(w / d + 8.5)` limited to 15, first half in the low nibbles.
///
/// As ggml's `quantize_row_q4_0_ref`. The error of a weight is at most `|d|`: the weight opposite
/// to `w_max` is limited to 7 steps.
///
/// ```
/// use dolly_core::weights::quantize_q4_0;
/// let mut weights = [0.0; 32];
/// weights[0] = -8.0;
/// let block = quantize_q4_0(&weights);
/// assert_eq!(block[..3], [0x00, 0x3c, 0x80]); // 1.0 as f16; -8 and 0
/// ```
pub fn quantize_q4_0(weights: &[f32; 32]) -> [u8; 18] {
    let mut extreme = 0.0f32;
    for &weight in weights {
        if weight.abs() > extreme.abs() {
            extreme = weight;
        }
    }
    let scale = extreme / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let quant = |weight: f32| ((weight * inverse + 8.5) as i8).clamp(0, 15) as u8;
    let mut block = [0; 18];
    let (head, nibbles) = block.split_at_mut(2);
    head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    let (low, high) = weights.split_at(16);
    for ((nibble, &low), &high) in nibbles.iter_mut().zip(low).zip(high) {
        *nibble = quant(low) | quant(high) << 4;
    }
    block
}

/// Appends `weights` as `stored` to `out`; whole blocks only, a rest is left out.
///
/// `Err` is the first weight that the type cannot hold: beyond f16's range, or not finite where
/// a whole block would be lost to it.
pub(crate) fn encode(
    stored: StoredType,
    weights: &[f32],
    out: &mut Vec<u8>,
) -> std::result::Result<(), f32> {
    match stored {
        StoredType::F16 => {
            for &weight in weights {
                let value = f16::from_f32(weight);
                if value.is_infinite() && weight.is_finite() {
                    return Err(weight);
                }
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
        StoredType::Bf16 => {
            out.extend(weights.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()));
        }
        StoredType::Q8_0 | StoredType::Q4_0 => {
            // Beyond this the scale is no finite f16.
            let limit = if stored == StoredType::Q8_0 { 65504.0 * 127.0 } else { 65504.0 * 8.0 };
            if let Some(&bad) = weights.iter().find(|w| w.abs() > limit || w.is_nan()) {
                return Err(bad);
            }
            for block in weights.as_chunks::<32>().0 {
                match stored {
                    StoredType::Q8_0 => out.extend_from_slice(&quantize_q8_0(block)),
                    _ => out.extend_from_slice(&quantize_q4_0(block)),
                }
            }
        }
        StoredType::Q4K | StoredType::Q6K => {
            // Half of what keeps every f16 finite: 63 steps of a minimum bind first.
            if let Some(&bad) = weights.iter().find(|w| w.abs() > 65504.0 * 32.0 || w.is_nan()) {
                return Err(bad);
            }
            for block in weights.as_chunks::<256>().0 {
                match stored {
                    StoredType::Q4K => out.extend_from_slice(&quantize_q4_k(block)),
                    _ => out.extend_from_slice(&quantize_q6_k(block)),
                }
            }
        }
        _ => out.extend(weights.iter().flat_map(|w| w.to_le_bytes())),
    }
    Ok(())
}
