//! The integer micro-kernels and the rounding of activations under AVX2.
//!
//! `vpmaddubsw` multiplies unsigned by signed bytes and adds pairs in 16 bits, saturating; both
//! uses here stay clear of that. Q8_0: |w| times x with w's sign is at most 2 * 128 * 127 = 32,512.
//! Q4_0: nibbles 0..15 times x, all eight pairs of a block in one lane: 8 * 2 * 15 * 127 = 30,480.

use std::arch::x86_64::*;

use super::avx2::Avx2;
use super::quant::{self, Block, BlockSum, QUANT_BLOCK, QuantRow, QuantTile, beginning, scale_of};
use super::vector::{LANES, Vector};

/// Integer sums of one block for sixteen lanes.
pub(super) type Sums = (__m256i, __m256i);

struct Q8_0;
struct Q4_0;

impl Block for Q8_0 {
    type V = Avx2;
    const BYTES: usize = LANES * (2 + QUANT_BLOCK);
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn dot<const R: usize, const P: usize>(
        t: &QuantTile,
        x: *const i8,
        _at: usize,
        w: *const u8,
    ) -> [[Avx2; P]; R] {
        // SAFETY: reads 32 integers a row and one block a panel, which the caller vouches for.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let zero = _mm256_setzero_si256();
            let mut acc = [[(zero, zero); P]; R];
            for k in 0..t.quads {
                for p in 0..P {
                    let w = w.add(p * t.w_stride + 2 * LANES + k * 4 * LANES).cast::<__m256i>();
                    let (w0, w1) = (_mm256_loadu_si256(w), _mm256_loadu_si256(w.add(1)));
                    let (abs0, abs1) = (_mm256_abs_epi8(w0), _mm256_abs_epi8(w1));
                    for r in 0..R {
                        let x = broadcast(x.add(r * QUANT_BLOCK + 4 * k));
                        let p0 = _mm256_maddubs_epi16(abs0, _mm256_sign_epi8(x, w0));
                        let p1 = _mm256_maddubs_epi16(abs1, _mm256_sign_epi8(x, w1));
                        let acc = &mut acc[r][p];
                        acc.0 = _mm256_add_epi32(acc.0, _mm256_madd_epi16(p0, ones));
                        acc.1 = _mm256_add_epi32(acc.1, _mm256_madd_epi16(p1, ones));
                    }
                }
            }
            floats(acc)
        }
    }
}

impl Block for Q4_0 {
    type V = Avx2;
    const BYTES: usize = LANES * (2 + QUANT_BLOCK / 2);
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn dot<const R: usize, const P: usize>(
        t: &QuantTile,
        x: *const i8,
        at: usize,
        w: *const u8,
    ) -> [[Avx2; P]; R] {
        // SAFETY: reads 32 integers and a sum a row and one block a panel, as the caller vouches.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut start = [_mm256_setzero_si256(); R];
            for r in 0..R {
                start[r] = eights_below(t.sums.add(at + r));
            }
            let mut acc = nibbles::<R, P>(t, start, x, w.add(2 * LANES));
            for r in 0..R {
                for p in 0..P {
                    let acc = &mut acc[r][p];
                    acc.0 = _mm256_madd_epi16(acc.0, ones);
                    acc.1 = _mm256_madd_epi16(acc.1, ones);
                }
            }
            floats(acc)
        }
    }
}

/// -8 times a block's integers, summed as [`nibbles`] sums products: at most 8 * 16 * 127 = 16,256.
///
/// # Safety
/// AVX2, and a readable sum.
#[inline(always)]
pub(super) unsafe fn eights_below(sum: *const BlockSum) -> __m256i {
    // SAFETY: the caller's promise; a sum has four bytes.
    unsafe { _mm256_mullo_epi16(broadcast(sum.cast()), _mm256_set1_epi16(-8)) }
}

/// Sums over 32 of K of the integers in Q4_0's order, `q` in 0..=15, from `start` on: two of 16 bits
/// in every lane of 32, which wrap, but lose nothing where the result fits.
///
/// # Safety
/// AVX2; `x` is valid for one block of `R` rows, `w` for 256 bytes a panel.
#[inline(always)]
pub(super) unsafe fn nibbles<const R: usize, const P: usize>(
    t: &QuantTile,
    start: [__m256i; R],
    x: *const i8,
    w: *const u8,
) -> [[Sums; P]; R] {
    // SAFETY: reads what the caller vouches for.
    unsafe {
        let low = _mm256_set1_epi8(15);
        let mut acc = [[(start[0], start[0]); P]; R];
        for r in 0..R {
            acc[r] = [(start[r], start[r]); P];
        }
        for k in 0..t.quads / 2 {
            for p in 0..P {
                let w = w.add(p * t.w_stride + k * 4 * LANES).cast::<__m256i>();
                let (w0, w1) = (_mm256_loadu_si256(w), _mm256_loadu_si256(w.add(1)));
                let (l0, l1) = (_mm256_and_si256(w0, low), _mm256_and_si256(w1, low));
                let h0 = _mm256_and_si256(_mm256_srli_epi16::<4>(w0), low);
                let h1 = _mm256_and_si256(_mm256_srli_epi16::<4>(w1), low);
                for r in 0..R {
                    let x = x.add(r * QUANT_BLOCK + 4 * k);
                    let (xl, xh) = (broadcast(x), broadcast(x.add(QUANT_BLOCK / 2)));
                    let acc = &mut acc[r][p];
                    acc.0 = _mm256_add_epi16(acc.0, _mm256_maddubs_epi16(l0, xl));
                    acc.1 = _mm256_add_epi16(acc.1, _mm256_maddubs_epi16(l1, xl));
                    acc.0 = _mm256_add_epi16(acc.0, _mm256_maddubs_epi16(h0, xh));
                    acc.1 = _mm256_add_epi16(acc.1, _mm256_maddubs_epi16(h1, xh));
                }
            }
        }
        acc
    }
}

/// Four consecutive integers in every lane of 32 bits.
///
/// # Safety
/// AVX2, and four readable bytes.
#[inline(always)]
pub(super) unsafe fn broadcast(x: *const i8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn floats<const R: usize, const P: usize>(acc: [[Sums; P]; R]) -> [[Avx2; P]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut out = [[Avx2::splat(0.0); P]; R];
        for r in 0..R {
            for p in 0..P {
                let (low, high) = acc[r][p];
                out[r][p] = Avx2(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high));
            }
        }
        out
    }
}

/// # Safety
/// AVX2, FMA and F16C; the pointers are valid for what [`QuantTile`] says of them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile_q8_0(t: &QuantTile) {
    // SAFETY: the caller's promise, passed on.
    unsafe { quant::run::<Q8_0>(t) }
}

/// # Safety
/// AVX2, FMA and F16C; the pointers are valid for what [`QuantTile`] says of them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile_q4_0(t: &QuantTile) {
    // SAFETY: the caller's promise, passed on.
    unsafe { quant::run::<Q4_0>(t) }
}

/// Rounds a row as `quant::quantize_row` does.
///
/// # Safety
/// AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn quantize_row(x: &[f32], row: QuantRow<'_>) -> f32 {
    let mut largest = 0;
    let blocks = row.integers.as_chunks_mut::<QUANT_BLOCK>().0;
    let outputs = blocks.iter_mut().zip(row.scales).zip(row.sums).step_by(row.group);
    let mut filled = [0.0; QUANT_BLOCK];
    for (part, ((q, scale), sum)) in x.chunks(QUANT_BLOCK).zip(outputs) {
        let block = match part.first_chunk::<QUANT_BLOCK>() {
            Some(block) => block,
            None => {
                filled[..part.len()].copy_from_slice(part);
                &filled
            }
        };
        // SAFETY: AVX2 as the caller proves; a block of 32 floats in, one of 32 integers out.
        let (found, total, most) = unsafe { quantize_block(block, q) };
        (*scale, *sum, largest) = (found, total, largest.max(most.to_bits()));
    }
    beginning(f32::from_bits(largest))
}

/// The block's scale, the sum of its integers, and its largest magnitude.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn quantize_block(
    x: &[f32; QUANT_BLOCK],
    out: &mut [i8; QUANT_BLOCK],
) -> (f32, BlockSum, f32) {
    // SAFETY: AVX2 as the caller proves; loads and the store stay within both arrays.
    unsafe {
        let p = x.as_ptr();
        let mask = _mm256_set1_epi32(0x7fff_ffff);
        let v = [
            _mm256_loadu_ps(p),
            _mm256_loadu_ps(p.add(8)),
            _mm256_loadu_ps(p.add(16)),
            _mm256_loadu_ps(p.add(24)),
        ];
        // Magnitudes compare as integers, NaN above infinity above all numbers.
        let mut most = _mm256_setzero_si256();
        for x in v {
            most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(x), mask));
        }
        let most = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
        let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b01_00_11_10>(most));
        let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b10_11_00_01>(most));
        let most = f32::from_bits(_mm_cvtsi128_si32(most) as u32);
        let Some(scale) = scale_of(most) else {
            *out = [0; QUANT_BLOCK];
            return (1.0, BlockSum::default(), most);
        };
        let inverse = _mm256_set1_ps(1.0 / scale);
        let [a, b, c, d] = v;
        let (a, b) = (_mm256_mul_ps(a, inverse), _mm256_mul_ps(b, inverse));
        let (c, d) = (_mm256_mul_ps(c, inverse), _mm256_mul_ps(d, inverse));
        let ab = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
        let cd = _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d));
        // Packing works in halves of a register; the permutation puts groups of four in order.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let q = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd), order);
        _mm256_storeu_si256(out.as_mut_ptr().cast(), q);
        // Before the permutation too, a word's place says what K leaves, divided by 4.
        let words = _mm256_add_epi16(ab, cd);
        let words =
            _mm_add_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        let words = _mm_add_epi16(words, _mm_shuffle_epi32::<0b01_00_11_10>(words));
        let pairs = _mm_cvtsi128_si64(_mm_madd_epi16(words, _mm_set1_epi16(1)));
        (scale, BlockSum { first: pairs as i16, last: (pairs >> 32) as i16 }, most)
    }
}
