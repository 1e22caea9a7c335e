//! Super-blocks of 256 weights, ggml's Q4_K and Q6_K: their steps in a panel, and the portable
//! products.
//!
//! For every row r, panel p and lane c, block of 32 by block from left to right, with the
//! activations of `quant` (integers x, a scale d_x and a sum a block):
//!
//! ```text
//! Q4_K: acc = acc + (d_x * (d * s[c])) * sum_k q[k][c] x[k]
//!       acc = acc - (d_x * sum_k x[k]) * (dmin * m[c])
//! Q6_K: acc = acc + (d_x * d) * (s0[c] sum_k<16 q[k][c] x[k] + s1[c] sum_k>=16 q[k][c] x[k])
//! ```
//!
//! Sums over k are of integers and exact in any order; those over blocks are f32 in this order.
//! `d * s` and `dmin * m` are exact too: 11 bits times 6. So is Q6_K's integer as f32: its magnitude
//! is at most 2 * 128 * 16 * 32 * 127 = 16,646,144, below 2^24.

use super::portable::f16_to_f32;
use super::quant::{QUANT_BLOCK, QuantTile, dot_q4_0, sums_of};
use super::vector::LANES;
use crate::weights::{SUPER_BLOCK, scale_min};

/// Blocks of activations in a super-block of weights.
pub(super) const BLOCKS: usize = SUPER_BLOCK / QUANT_BLOCK;

/// A step of a Q4_K panel, sixteen columns of 256 weights: 4.625 bits a weight. GGUF's 12 bytes
/// of 6-bit scales and minima are 16 bytes here, which a kernel widens in one instruction.
///
/// From 0: d, 16 f16; dmin, 16 f16; then for each block of 32 its 16 scales; for each its 16
/// minima; for each its 256 bytes of integers in the order of Q4_0 (`pack`).
pub(super) struct Q4K;

impl Q4K {
    pub(super) const DMIN: usize = 2 * LANES;
    pub(super) const SCALES: usize = 4 * LANES;
    pub(super) const MINS: usize = Self::SCALES + BLOCKS * LANES;
    pub(super) const NIBBLES: usize = Self::MINS + BLOCKS * LANES;
    /// Bytes of the integers of a block of 32.
    pub(super) const BLOCK: usize = LANES * QUANT_BLOCK / 2;
    pub(super) const BYTES: usize = Self::NIBBLES + BLOCKS * Self::BLOCK;
}

/// A step of a Q6_K panel: 6.5625 bits a weight, as many as in GGUF. Widened to bytes it would be
/// 8.5625, and one row of activations, as in decoding, takes as long as its weights take to read.
///
/// From 0: d, 16 f16; then for each 16 of K its 16 signed scales; then for each 16 of K, its parts:
/// 64 bytes with the low four bits of K 0..4 in the low and of K 4..8 in the high half, 64 bytes
/// of K 8..12 and 12..16 likewise, 64 bytes with the two high bits of K 0..4, 4..8, 8..12, 12..16
/// from the lowest on; each 64 bytes are 16 columns x 4 of K. Integers are stored with 32 added.
pub(super) struct Q6K;

impl Q6K {
    pub(super) const SCALES: usize = 2 * LANES;
    pub(super) const PARTS: usize = Self::SCALES + 2 * BLOCKS * LANES;
    /// Where a part has its high bits.
    pub(super) const HIGH: usize = 8 * LANES;
    /// Bytes of a part.
    pub(super) const PART: usize = 12 * LANES;
    pub(super) const BYTES: usize = Self::PARTS + 2 * BLOCKS * Self::PART;
}

/// Two little-endian bytes of a file as a panel has them.
pub(super) fn half(bytes: [u8; 2]) -> [u8; 2] {
    u16::from_le_bytes(bytes).to_ne_bytes()
}

/// Puts a column's super-block, as GGUF stores it, into its lane of a zeroed step.
pub(super) fn place_q4_k(block: &[u8; 144], lane: usize, step: &mut [u8; Q4K::BYTES]) {
    step[2 * lane..][..2].copy_from_slice(&half([block[0], block[1]]));
    step[Q4K::DMIN + 2 * lane..][..2].copy_from_slice(&half([block[2], block[3]]));
    for i in 0..BLOCKS {
        let (scale, min) = scale_min(block, i);
        step[Q4K::SCALES + i * LANES + lane] = scale;
        step[Q4K::MINS + i * LANES + lane] = min;
        // The file has block 2j in the low and 2j + 1 in the high half of 32 bytes.
        let file = &block[16 + i / 2 * QUANT_BLOCK..][..QUANT_BLOCK];
        let q = |k: usize| file[k] >> (i % 2 * 4) & 15;
        let nibbles = &mut step[Q4K::NIBBLES + i * Q4K::BLOCK..][..Q4K::BLOCK];
        for k in 0..QUANT_BLOCK / 2 {
            nibbles[(k / 4) * 4 * LANES + 4 * lane + k % 4] = q(k) | q(k + QUANT_BLOCK / 2) << 4;
        }
    }
}

/// As [`place_q4_k`].
pub(super) fn place_q6_k(block: &[u8; 210], lane: usize, step: &mut [u8; Q6K::BYTES]) {
    step[2 * lane..][..2].copy_from_slice(&half([block[208], block[209]]));
    for i in 0..2 * BLOCKS {
        step[Q6K::SCALES + i * LANES + lane] = block[192 + i];
        // The file's groups of 32: four share 64 bytes of low and 32 of high bits.
        let (share, group) = (i / 8, i / 2 % 4);
        let low = &block[share * 64 + group % 2 * 32 + i % 2 * 16..][..16];
        let high = &block[128 + share * 32 + i % 2 * 16..][..16];
        let part = &mut step[Q6K::PARTS + i * Q6K::PART..][..Q6K::PART];
        for k in 0..16 {
            let (quad, at) = (k / 4, 4 * lane + k % 4);
            let nibble = low[k] >> (group / 2 * 4) & 15;
            part[quad / 2 * 4 * LANES + at] |= nibble << (quad % 2 * 4);
            part[Q6K::HIGH + at] |= (high[k] >> (group * 2) & 3) << (quad * 2);
        }
    }
}

/// Sixteen f16 of a step.
#[inline(always)]
fn halves(bytes: &[u8]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = f16_to_f32(u16::from_ne_bytes(*bytes));
    }
    out
}

/// Activations of one row and block.
struct Block<'a> {
    x: &'a [i8; QUANT_BLOCK],
    scale: f32,
    sum: i32,
}

/// Calls `step(its sums, its bytes, its blocks of x)` for every row, panel and step.
///
/// # Safety
/// The pointers are valid for what [`QuantTile`] says of them, in steps of `BYTES` bytes.
#[inline(always)]
unsafe fn for_each_step<const BYTES: usize>(
    t: &QuantTile,
    step: impl Fn(&mut [f32; LANES], &[u8; BYTES], [Block<'_>; BLOCKS]),
) {
    for r in 0..t.rows {
        for p in 0..t.panels {
            // SAFETY: rows, panels and blocks stay below the numbers the caller vouches for.
            unsafe {
                let acc = &mut *sums_of(t, r, p);
                for s in 0..t.blocks / BLOCKS {
                    let w = &*t.w.add(p * t.w_stride + s * BYTES).cast::<[u8; BYTES]>();
                    let blocks = std::array::from_fn(|i| {
                        let at = (s * BLOCKS + i) * t.group + r;
                        let x = &*t.x.add(at * QUANT_BLOCK).cast::<[i8; QUANT_BLOCK]>();
                        Block { x, scale: *t.scales.add(at), sum: (*t.sums.add(at)).total() }
                    });
                    step(acc, w, blocks);
                }
            }
        }
    }
}

/// # Safety
/// The pointers are valid for what [`QuantTile`] says of them, and its blocks are whole steps.
pub(super) unsafe fn tile_q4_k(t: &QuantTile) {
    let step = |acc: &mut [f32; LANES], w: &[u8; Q4K::BYTES], blocks: [Block<'_>; BLOCKS]| {
        let (d, dmin) = (halves(&w[..Q4K::DMIN]), halves(&w[Q4K::DMIN..Q4K::SCALES]));
        for (i, block) in blocks.iter().enumerate() {
            let dots = dot_q4_0(&w[Q4K::NIBBLES + i * Q4K::BLOCK..][..Q4K::BLOCK], block.x, 0);
            let below = block.scale * block.sum as f32;
            for c in 0..LANES {
                let scale = d[c] * f32::from(w[Q4K::SCALES + i * LANES + c]);
                acc[c] += block.scale * scale * dots[c] as f32;
                acc[c] -= below * (dmin[c] * f32::from(w[Q4K::MINS + i * LANES + c]));
            }
        }
    };
    // SAFETY: the caller's promise, passed on.
    unsafe { for_each_step(t, step) }
}

/// # Safety
/// As [`tile_q4_k`].
pub(super) unsafe fn tile_q6_k(t: &QuantTile) {
    let step = |acc: &mut [f32; LANES], w: &[u8; Q6K::BYTES], blocks: [Block<'_>; BLOCKS]| {
        let d = halves(&w[..Q6K::SCALES]);
        for (i, block) in blocks.iter().enumerate() {
            let mut sums = [0; LANES];
            for (i, x) in (2 * i..).zip(block.x.as_chunks::<16>().0) {
                let dots = dot_part(&w[Q6K::PARTS + i * Q6K::PART..][..Q6K::PART], x);
                for c in 0..LANES {
                    sums[c] += i32::from(w[Q6K::SCALES + i * LANES + c] as i8) * dots[c];
                }
            }
            for c in 0..LANES {
                acc[c] += block.scale * d[c] * sums[c] as f32;
            }
        }
    };
    // SAFETY: the caller's promise, passed on.
    unsafe { for_each_step(t, step) }
}

/// Sums over 16 of K of a Q6_K part.
#[inline(always)]
fn dot_part(part: &[u8], x: &[i8; 16]) -> [i32; LANES] {
    let (low, high) = part.split_at(Q6K::HIGH);
    let mut out = [0; LANES];
    for (quad, x) in x.as_chunks::<4>().0.iter().enumerate() {
        let low = &low[quad / 2 * 4 * LANES..][..4 * LANES];
        for (c, out) in out.iter_mut().enumerate() {
            for (k, x) in x.iter().enumerate() {
                let (low, high) = (low[4 * c + k], high[4 * c + k]);
                let q = low >> (quad % 2 * 4) & 15 | (high >> (quad * 2) & 3) << 4;
                *out += (i32::from(q) - 32) * i32::from(*x);
            }
        }
    }
    out
}
