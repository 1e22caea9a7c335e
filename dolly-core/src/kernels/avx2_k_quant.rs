//! The micro-kernels of Q4_K and Q6_K under AVX2; layouts and formulas stand in `k_quant`.
//!
//! `vpmaddubsw` adds pairs of products in 16 bits, saturating; both uses here stay clear of that,
//! with |x| <= 127. Q4_K: as Q4_0, at most 8 * 2 * 15 * 127 = 30,480. Q6_K multiplies q + 32, from
//! 0 to 63: at most 2 * 63 * 127 = 16,002. Its sums wrap, which loses nothing: less 32 times x they
//! are those of q x, at most 4 * 2 * 32 * 127 = 32,512 over 16 of K. `vpmaddwd` then multiplies with
//! the scale in place of one: 2 * 32,512 * 128, far below 2^31.

use std::arch::x86_64::*;

use super::avx2::Avx2;
use super::avx2_quant::{Sums, broadcast, nibbles};
use super::k_quant::{BLOCKS, Q4K, Q6K};
use super::quant::{Format, QUANT_BLOCK, QuantTile, load_sums, run, store_sums};
use super::vector::{LANES, Lanes, Vector};

/// Sixteen unsigned bytes as floats.
///
/// # Safety
/// AVX2, and 16 readable bytes.
#[inline(always)]
pub(super) unsafe fn widen(p: *const u8) -> Avx2 {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = _mm_loadu_si128(p.cast());
        let low = _mm256_cvtepu8_epi32(bytes);
        let high = _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes));
        Avx2(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
    }
}

/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn floats(sums: Sums) -> Avx2 {
    // SAFETY: the caller's promise.
    unsafe { Avx2(_mm256_cvtepi32_ps(sums.0), _mm256_cvtepi32_ps(sums.1)) }
}

impl Format for Q4K {
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn fixed<const R: usize, const P: usize>(t: &QuantTile) {
        // SAFETY: every offset stays within the rows, panels and steps the caller vouches for.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut acc = load_sums::<Avx2, R, P>(t);
            for s in 0..t.blocks / BLOCKS {
                let step = t.w.add(s * Self::BYTES);
                let mut d = [(Avx2::splat(0.0), Avx2::splat(0.0)); P];
                for p in 0..P {
                    let step = step.add(p * t.w_stride);
                    d[p] = (Avx2::load_f16(step), Avx2::load_f16(step.add(Self::DMIN)));
                }
                for i in 0..BLOCKS {
                    let b = s * BLOCKS + i;
                    let w = step.add(Self::NIBBLES + i * Self::BLOCK);
                    let x = t.x.add(b * t.group * QUANT_BLOCK);
                    let dots = nibbles::<R, P>(t, [_mm256_setzero_si256(); R], x, w);
                    for p in 0..P {
                        let step = step.add(p * t.w_stride + i * LANES);
                        let scale = d[p].0.mul(widen(step.add(Self::SCALES)));
                        let min = d[p].1.mul(widen(step.add(Self::MINS)));
                        for r in 0..R {
                            let at = b * t.group + r;
                            let x_scale = *t.scales.add(at);
                            let below = Avx2::splat(-(x_scale * (*t.sums.add(at)).total() as f32));
                            let (low, high) = dots[r][p];
                            let dot = (_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
                            let scale = Avx2::splat(x_scale).mul(scale);
                            acc[r][p] = scale.mul_add(floats(dot), acc[r][p]);
                            acc[r][p] = below.mul_add(min, acc[r][p]);
                        }
                    }
                }
            }
            store_sums::<Avx2, R, P>(t, &acc);
        }
    }
}

impl Format for Q6K {
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn fixed<const R: usize, const P: usize>(t: &QuantTile) {
        // SAFETY: every offset stays within the rows, panels and steps the caller vouches for.
        unsafe {
            let mut acc = load_sums::<Avx2, R, P>(t);
            for s in 0..t.blocks / BLOCKS {
                let step = t.w.add(s * Self::BYTES);
                let mut d = [Avx2::splat(0.0); P];
                for p in 0..P {
                    d[p] = Avx2::load_f16(step.add(p * t.w_stride));
                }
                for i in 0..BLOCKS {
                    let b = s * BLOCKS + i;
                    let sums = six_bits::<R, P>(t, t.x.add(b * t.group * QUANT_BLOCK), step, 2 * i);
                    for p in 0..P {
                        for r in 0..R {
                            let x_scale = Avx2::splat(*t.scales.add(b * t.group + r));
                            acc[r][p] = x_scale.mul(d[p]).mul_add(floats(sums[r][p]), acc[r][p]);
                        }
                    }
                }
            }
            store_sums::<Avx2, R, P>(t, &acc);
        }
    }
}

/// Scaled integer sums over 32 of K: parts `first` and `first + 1` of a step.
///
/// # Safety
/// AVX2; `x` is valid for 32 integers of each row, `step` for a step a panel.
#[inline(always)]
unsafe fn six_bits<const R: usize, const P: usize>(
    t: &QuantTile,
    x: *const i8,
    step: *const u8,
    first: usize,
) -> [[Sums; P]; R] {
    // SAFETY: reads a part and its scales a panel, and 16 integers a row, twice.
    unsafe {
        let zero = _mm256_setzero_si256();
        let mut sums = [[(zero, zero); P]; R];
        // As many times as a block has halves, which the compiler is not to know: see `quads`.
        for half in 0..t.quads / 4 {
            let x = x.add(half * 16);
            let mut offsets = [(zero, zero); R];
            for r in 0..R {
                let offset = offset(x.add(r * QUANT_BLOCK));
                offsets[r] = (offset, offset);
            }
            for p in 0..P {
                let step = step.add(p * t.w_stride);
                let part = step.add(Q6K::PARTS + (first + half) * Q6K::PART);
                let scales = pairs(step.add(Q6K::SCALES + (first + half) * LANES));
                let dots = dot_part(x, part, offsets);
                for r in 0..R {
                    let low = _mm256_madd_epi16(dots[r].0, scales.0);
                    let high = _mm256_madd_epi16(dots[r].1, scales.1);
                    let sums = &mut sums[r][p];
                    *sums = (_mm256_add_epi32(sums.0, low), _mm256_add_epi32(sums.1, high));
                }
            }
        }
        sums
    }
}

/// Adds the sums over 16 of K to `acc`, two of 16 bits in every lane of 32.
///
/// # Safety
/// AVX2; `x` is valid for 16 integers of each row, `part` for a part.
#[inline(always)]
unsafe fn dot_part<const R: usize>(x: *const i8, part: *const u8, mut acc: [Sums; R]) -> [Sums; R] {
    // SAFETY: reads the 192 bytes of a part, and 16 integers a row.
    unsafe {
        let load = |at: usize| {
            let p = part.add(at).cast::<__m256i>();
            (_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1)))
        };
        // The two bits of each four of K go to where they belong, above a nibble.
        let (nibbles, bits) = (load(0), load(Q6K::HIGH));
        dot_quad(x, nibbles, both(bits, |x| _mm256_slli_epi16::<4>(x)), &mut acc);
        let nibbles = both(nibbles, |x| _mm256_srli_epi16::<4>(x));
        dot_quad(x.add(4), nibbles, both(bits, |x| _mm256_slli_epi16::<2>(x)), &mut acc);
        let nibbles = load(4 * LANES);
        dot_quad(x.add(8), nibbles, bits, &mut acc);
        let nibbles = both(nibbles, |x| _mm256_srli_epi16::<4>(x));
        dot_quad(x.add(12), nibbles, both(bits, |x| _mm256_srli_epi16::<2>(x)), &mut acc);
        acc
    }
}

#[inline(always)]
fn both(x: Sums, f: impl Fn(__m256i) -> __m256i) -> Sums {
    (f(x.0), f(x.1))
}

/// -32 times 16 integers, summed as [`dot_part`] sums products.
///
/// # Safety
/// AVX2, and 16 readable bytes.
#[inline(always)]
unsafe fn offset(x: *const i8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let x = _mm256_broadcastsi128_si256(_mm_loadu_si128(x.cast()));
        let quads = _mm256_maddubs_epi16(_mm256_set1_epi8(32), x);
        let pairs = _mm256_add_epi16(quads, _mm256_shuffle_epi32::<0b01_00_11_10>(quads));
        let all = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b10_11_00_01>(pairs));
        _mm256_sub_epi16(_mm256_setzero_si256(), all)
    }
}

/// Adds the products of four of K: integers with bits 0..4 of `nibbles` and bits 4..6 of `bits`.
///
/// # Safety
/// AVX2; `x` is valid for 4 integers of each row.
#[inline(always)]
unsafe fn dot_quad<const R: usize>(x: *const i8, nibbles: Sums, bits: Sums, acc: &mut [Sums; R]) {
    // SAFETY: reads 4 integers a row.
    unsafe {
        let low = both(nibbles, |x| _mm256_and_si256(x, _mm256_set1_epi8(15)));
        let high = both(bits, |x| _mm256_and_si256(x, _mm256_set1_epi8(0x30)));
        let q = (_mm256_or_si256(low.0, high.0), _mm256_or_si256(low.1, high.1));
        for r in 0..R {
            let x = broadcast(x.add(r * QUANT_BLOCK));
            let acc = &mut acc[r];
            acc.0 = _mm256_add_epi16(acc.0, _mm256_maddubs_epi16(q.0, x));
            acc.1 = _mm256_add_epi16(acc.1, _mm256_maddubs_epi16(q.1, x));
        }
    }
}

/// Sixteen signed bytes, each as two equal numbers of 16 bits in a lane of 32.
///
/// # Safety
/// AVX2, and 16 readable bytes.
#[inline(always)]
pub(super) unsafe fn pairs(p: *const u8) -> Sums {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = _mm_loadu_si128(p.cast());
        let twice = |bytes: __m128i| _mm256_cvtepi8_epi16(bytes);
        (twice(_mm_unpacklo_epi8(bytes, bytes)), twice(_mm_unpackhi_epi8(bytes, bytes)))
    }
}

/// # Safety
/// AVX2, FMA and F16C; the pointers are valid for what [`QuantTile`] says of them, and its blocks
/// are whole steps.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile_q4_k(t: &QuantTile) {
    // SAFETY: the caller's promise, passed on.
    unsafe { run::<Q4K>(t) }
}

/// # Safety
/// As [`tile_q4_k`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile_q6_k(t: &QuantTile) {
    // SAFETY: the caller's promise, passed on.
    unsafe { run::<Q6K>(t) }
}
