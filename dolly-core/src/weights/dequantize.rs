//! Stored bytes to `f32`, exactly: every stored type is a finite sum and product of small numbers,
//! formed in the order the reference (`gguf.quants`, ggml's `dequantize_row_*`) forms it.
//!
//! Layouts are those of `ggml-common.h`; all numbers are little-endian.

use half::{bf16, f16};

use super::StoredType;

/// Converts `bytes`, whole blocks of `stored`, into `out`.
///
/// `bytes` holds exactly the blocks of `out.len()` weights; [`StoredType::Other`] writes nothing.
pub(crate) fn dequantize(stored: StoredType, bytes: &[u8], out: &mut [f32]) {
    match stored {
        StoredType::F64 => plain(bytes, out, |b: [u8; 8]| f64::from_le_bytes(b) as f32),
        StoredType::F32 => plain(bytes, out, f32::from_le_bytes),
        StoredType::F16 => plain(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        StoredType::Bf16 => plain(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        StoredType::Q4_0 => blocks(bytes, out, q4_0),
        StoredType::Q4_1 => blocks(bytes, out, q4_1),
        StoredType::Q5_0 => blocks(bytes, out, q5_0),
        StoredType::Q5_1 => blocks(bytes, out, q5_1),
        StoredType::Q8_0 => blocks(bytes, out, q8_0),
        StoredType::Q4K => blocks(bytes, out, q4_k),
        StoredType::Q5K => blocks(bytes, out, q5_k),
        StoredType::Q6K => blocks(bytes, out, q6_k),
        StoredType::Other => {}
    }
}

fn plain<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    let (values, _) = bytes.as_chunks::<N>();
    for (value, out) in values.iter().zip(out) {
        *out = convert(*value);
    }
}

fn blocks<const B: usize, const W: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; B], &mut [f32; W]),
) {
    let (packed, _) = bytes.as_chunks::<B>();
    let (unpacked, _) = out.as_chunks_mut::<W>();
    for (packed, unpacked) in packed.iter().zip(unpacked) {
        block(packed, unpacked);
    }
}

/// The f16 at `at` of a block.
fn half_at<const B: usize>(block: &[u8; B], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `w = d (q - 8)`; the low nibbles are the first half of the block.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (i, &q) in block[2..].iter().enumerate() {
        out[i] = d * f32::from((q & 15) as i8 - 8);
        out[i + 16] = d * f32::from((q >> 4) as i8 - 8);
    }
}

/// `w = d q + m`.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, &q) in block[4..].iter().enumerate() {
        out[i] = d * f32::from(q & 15) + m;
        out[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// Bit `i` of the four bytes `high`, as the fifth bit of a quant.
fn fifth(high: [u8; 4], i: usize) -> u8 {
    ((u32::from_le_bytes(high) >> i) as u8 & 1) << 4
}

/// `w = d (q - 16)`, the fifth bits in four bytes before the nibbles.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let high = [block[2], block[3], block[4], block[5]];
    for (i, &q) in block[6..].iter().enumerate() {
        out[i] = d * f32::from((q & 15 | fifth(high, i)) as i8 - 16);
        out[i + 16] = d * f32::from((q >> 4 | fifth(high, i + 16)) as i8 - 16);
    }
}

/// `w = d q + m`, the fifth bits in four bytes before the nibbles.
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let high = [block[4], block[5], block[6], block[7]];
    for (i, &q) in block[8..].iter().enumerate() {
        out[i] = d * f32::from(q & 15 | fifth(high, i)) + m;
        out[i + 16] = d * f32::from(q >> 4 | fifth(high, i + 16)) + m;
    }
}

/// `w = d q`.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = d * f32::from(q as i8);
    }
}

/// Scale and minimum of sub-block `i` of Q4_K or Q5_K: 6 bits each, packed into the 12 bytes at 4.
pub(crate) fn scale_min<const B: usize>(block: &[u8; B], i: usize) -> (u8, u8) {
    let at = |j: usize| block[4 + j];
    if i < 4 {
        (at(i) & 63, at(i + 4) & 63)
    } else {
        (at(i + 4) & 15 | at(i - 4) >> 6 << 4, at(i + 4) >> 4 | at(i) >> 6 << 4)
    }
}

/// `w = (d s_i) q - (dmin m_i)` in eight sub-blocks of 32.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for i in 0..8 {
        let (scale, min) = scale_min(block, i);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let quants = &block[16 + i / 2 * 32..][..32];
        for (out, &q) in out[i * 32..][..32].iter_mut().zip(quants) {
            *out = scale * f32::from(q >> (i % 2 * 4) & 15) - min;
        }
    }
}

/// As [`q4_k`], the fifth bit of sub-block `i` in bit `i` of 32 bytes before the nibbles.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let high = &block[16..48];
    for i in 0..8 {
        let (scale, min) = scale_min(block, i);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let quants = &block[48 + i / 2 * 32..][..32];
        for ((out, &q), &h) in out[i * 32..][..32].iter_mut().zip(quants).zip(high) {
            *out = scale * f32::from(q >> (i % 2 * 4) & 15 | (h >> i & 1) << 4) - min;
        }
    }
}

/// `w = (d s_j) (q - 32)`: eight groups of 32 with two signed 8-bit scales each, four low bits in
/// 128 bytes, two high bits in 64.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for group in 0..8 {
        let (part, quarter) = (group / 4, group % 4);
        for i in 0..32 {
            let low = block[part * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
            let high = block[128 + part * 32 + i] >> (quarter * 2) & 3;
            let scale = d * f32::from(block[192 + group * 2 + i / 16] as i8);
            out[group * 32 + i] = scale * f32::from((low | high << 4) as i8 - 32);
        }
    }
}
