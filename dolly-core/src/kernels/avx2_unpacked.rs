//! Integer products of many rows under AVX2, with weights unpacked once for all of them.
//!
//! The tiles of `avx2_quant` take weights apart as they read them, for at most four rows. Where more
//! rows follow, a slice of a panel is unpacked into the first cache, and tiles of up to six rows do
//! nothing but multiply and add:
//!
//! | format | a block of 32 of K, unpacked | multiplications for 32 products |
//! |---|---|---|
//! | Q8_0, Q6_K | 16 f32 scales; for each 2 of K, 16 columns x 2 words of 16 bits | 2 (`vpmaddwd`) |
//! | Q4_0 | 16 f32 scales; for each 4 of K, 16 columns x 4 bytes | 1 (`vpmaddubsw`) |
//! | Q4_K | 16 f32 scales, 16 f32 minima; then as Q4_0 | 1 |
//!
//! Taken apart, bytes of Q8_0 cost three multiplications or changes of sign, which share two of the
//! CPU's ports; additions have ports of their own. Q6_K's words are its integers times their scale, at
//! most 32 * 128. All sums of integers are exact: 32 * 4096 * 127 is far below 2^31, and sixteen bits
//! hold the nibbles' (`avx2_quant`). Floats are added as there, so results are the same bits.

use std::arch::x86_64::*;
use std::hint::black_box;

use super::avx2::Avx2;
use super::avx2_k_quant::{pairs, widen};
use super::avx2_quant::{Sums, broadcast, eights_below};
use super::k_quant::{BLOCKS, Q4K, Q6K};
use super::pack::Layout;
use super::quant::{QUANT_BLOCK, QuantTile, Unpacking, ask_ahead};
use super::vector::{LANES, Lanes, Vector};

/// Bytes of sixteen floats.
const FLOATS: usize = 4 * LANES;
/// Bytes of a block as words, with scales.
const WORDS_BLOCK: usize = FLOATS + 2 * LANES * QUANT_BLOCK;
/// Bytes of a block of Q4_0's nibbles, with scales.
const NIBBLES_BLOCK: usize = FLOATS + LANES * QUANT_BLOCK;
/// Bytes of a block of Q4_K's nibbles, with scales and minima.
const Q4K_BLOCK: usize = FLOATS + NIBBLES_BLOCK;

/// Most rows of a tile: twelve sums leave four registers.
const ROWS: usize = 6;

/// How a format's weights are unpacked.
pub(super) fn unpacking(layout: Layout) -> Option<&'static Unpacking> {
    static Q8_0: Unpacking = Unpacking {
        from: 13,
        rows: ROWS,
        block: WORDS_BLOCK,
        words: true,
        unpack: unpack_q8_0,
        tile: tile_words,
    };
    static Q6_K: Unpacking = Unpacking { unpack: unpack_q6_k, ..Q8_0 };
    static Q4_0: Unpacking = Unpacking {
        from: 5,
        block: NIBBLES_BLOCK,
        words: false,
        unpack: unpack_q4_0,
        tile: tile_q4_0,
        ..Q8_0
    };
    static Q4_K: Unpacking =
        Unpacking { block: Q4K_BLOCK, unpack: unpack_q4_k, tile: tile_q4_k, ..Q4_0 };
    match layout {
        Layout::Q8_0 => Some(&Q8_0),
        Layout::Q4_0 => Some(&Q4_0),
        Layout::Q4K => Some(&Q4_K),
        Layout::Q6K => Some(&Q6_K),
        Layout::F32 | Layout::F16 | Layout::Bf16 => None,
    }
}

/// # Safety
/// AVX2 and F16C; `from` holds `blocks` blocks of a Q8_0 panel, `to` takes as many unpacked.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_q8_0(from: *const u8, to: *mut u8, blocks: usize) {
    for b in 0..blocks {
        // SAFETY: the caller's promise: block `b` of both, quads below 8.
        unsafe {
            let (from, to) = (from.add(b * Layout::Q8_0.step_bytes()), to.add(b * WORDS_BLOCK));
            Avx2::load_f16(from).store(to.cast());
            for quad in 0..QUANT_BLOCK / 4 {
                let bytes = load(from.add(2 * LANES + quad * 4 * LANES));
                store_words(bytes, None, to.add(FLOATS + quad * 8 * LANES));
            }
        }
    }
}

/// # Safety
/// As [`unpack_q8_0`], for Q6_K; blocks are whole steps.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_q6_k(from: *const u8, to: *mut u8, blocks: usize) {
    for part in 0..2 * blocks {
        // SAFETY: the caller's promise: each half of block `b` is a part of its step.
        unsafe {
            let (step, i) = (from.add(part / (2 * BLOCKS) * Q6K::BYTES), part % (2 * BLOCKS));
            let to = to.add(part / 2 * WORDS_BLOCK);
            Avx2::load_f16(step).store(to.cast());
            let scales = pairs(step.add(Q6K::SCALES + i * LANES));
            let from = step.add(Q6K::PARTS + i * Q6K::PART);
            let bits = load(from.add(Q6K::HIGH));
            let to = to.add(FLOATS + part % 2 * 32 * LANES);
            for quad in 0..4_i32 {
                let shift = _mm_cvtsi32_si128(quad % 2 * 4);
                let two = _mm_cvtsi32_si128(quad * 2);
                let nibbles = load(from.add(quad as usize / 2 * 4 * LANES));
                let byte = |nibbles, bits| {
                    let low = masked(_mm256_srl_epi16(nibbles, shift), 15);
                    let high = _mm256_slli_epi16::<4>(masked(_mm256_srl_epi16(bits, two), 3));
                    _mm256_sub_epi8(_mm256_or_si256(low, high), _mm256_set1_epi8(32))
                };
                let q = (byte(nibbles.0, bits.0), byte(nibbles.1, bits.1));
                store_words(q, Some(scales), to.add(quad as usize * 8 * LANES));
            }
        }
    }
}

/// # Safety
/// As [`unpack_q8_0`], for Q4_0.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_q4_0(from: *const u8, to: *mut u8, blocks: usize) {
    for b in 0..blocks {
        // SAFETY: the caller's promise.
        unsafe {
            let (from, to) = (from.add(b * Layout::Q4_0.step_bytes()), to.add(b * NIBBLES_BLOCK));
            Avx2::load_f16(from).store(to.cast());
            store_nibbles(from.add(2 * LANES), to.add(FLOATS));
        }
    }
}

/// # Safety
/// As [`unpack_q8_0`], for Q4_K; blocks are whole steps.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_q4_k(from: *const u8, to: *mut u8, blocks: usize) {
    for b in 0..blocks {
        // SAFETY: the caller's promise.
        unsafe {
            let (step, i) = (from.add(b / BLOCKS * Q4K::BYTES), b % BLOCKS);
            let to = to.add(b * Q4K_BLOCK);
            let scale = widen(step.add(Q4K::SCALES + i * LANES));
            let min = widen(step.add(Q4K::MINS + i * LANES));
            Avx2::load_f16(step).mul(scale).store(to.cast());
            Avx2::load_f16(step.add(Q4K::DMIN)).mul(min).store(to.add(FLOATS).cast());
            store_nibbles(step.add(Q4K::NIBBLES + i * Q4K::BLOCK), to.add(2 * FLOATS));
        }
    }
}

/// # Safety
/// AVX2, and 64 readable bytes.
#[inline(always)]
unsafe fn load(p: *const u8) -> Sums {
    // SAFETY: the caller's promise.
    unsafe { (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.cast::<__m256i>().add(1))) }
}

/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn masked(x: __m256i, mask: i8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_and_si256(x, _mm256_set1_epi8(mask)) }
}

/// Writes sixteen columns of four signed bytes as words, times those of `scales`: first all columns'
/// first two, then their last two.
///
/// # Safety
/// AVX2, and 128 writable bytes.
#[inline(always)]
unsafe fn store_words(bytes: Sums, scales: Option<Sums>, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        // Each wanted byte goes to the upper half of a word, and down again with its sign.
        let first = _mm256_setr_epi8(
            -1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, //
            -1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13,
        );
        let last = _mm256_add_epi8(first, _mm256_set1_epi16(0x0200));
        let to = to.cast::<__m256i>();
        for (i, order) in [first, last].into_iter().enumerate() {
            let word = |bytes| _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(bytes, order));
            let (mut low, mut high) = (word(bytes.0), word(bytes.1));
            if let Some(scales) = scales {
                low = _mm256_mullo_epi16(low, scales.0);
                high = _mm256_mullo_epi16(high, scales.1);
            }
            _mm256_storeu_si256(to.add(2 * i), low);
            _mm256_storeu_si256(to.add(2 * i + 1), high);
        }
    }
}

/// Writes a block's nibbles, in Q4_0's order, as bytes in the order of K.
///
/// # Safety
/// AVX2, 256 readable and 512 writable bytes.
#[inline(always)]
unsafe fn store_nibbles(from: *const u8, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        for part in 0..QUANT_BLOCK * LANES / 2 / 32 {
            let bytes = _mm256_loadu_si256(from.add(part * 32).cast());
            let to = to.add(part * 32).cast();
            _mm256_storeu_si256(to, masked(bytes, 15));
            let high = masked(_mm256_srli_epi16::<4>(bytes), 15);
            _mm256_storeu_si256(to.byte_add(QUANT_BLOCK / 2 * LANES), high);
        }
    }
}

/// Sums over 32 of K of words times activations, themselves words.
///
/// # Safety
/// AVX2; `x` is valid for 32 words of `R` rows, `w` for those of a block.
#[inline(always)]
unsafe fn dot_words<const R: usize>(t: &QuantTile, x: *const i16, w: *const u8) -> [Sums; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = _mm256_setzero_si256();
        let mut acc = [(zero, zero); R];
        let mut pair = 0;
        loop {
            let w = load(w.add(pair * 4 * LANES));
            for r in 0..R {
                let x = broadcast(x.add(r * QUANT_BLOCK + 2 * pair).cast());
                acc[r].0 = _mm256_add_epi32(acc[r].0, _mm256_madd_epi16(x, w.0));
                acc[r].1 = _mm256_add_epi32(acc[r].1, _mm256_madd_epi16(x, w.1));
            }
            pair += 1;
            if pair >= 2 * t.quads {
                break;
            }
        }
        acc
    }
}

/// Sums over 32 of K of nibbles times activations.
///
/// # Safety
/// AVX2; `x` is valid for 32 integers of `R` rows, `w` for the nibbles of a block.
#[inline(always)]
unsafe fn dot_nibbles<const R: usize>(
    t: &QuantTile,
    start: [__m256i; R],
    x: *const i8,
    w: *const u8,
) -> [Sums; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [(start[0], start[0]); R];
        for r in 0..R {
            acc[r] = (start[r], start[r]);
        }
        let mut quad = 0;
        loop {
            let w = load(w.add(quad * 4 * LANES));
            for r in 0..R {
                let x = broadcast(x.add(r * QUANT_BLOCK + 4 * quad));
                acc[r].0 = _mm256_add_epi16(acc[r].0, _mm256_maddubs_epi16(w.0, x));
                acc[r].1 = _mm256_add_epi16(acc[r].1, _mm256_maddubs_epi16(w.1, x));
            }
            quad += 1;
            if quad >= t.quads {
                break;
            }
        }
        let ones = _mm256_set1_epi16(1);
        for r in 0..R {
            acc[r].0 = _mm256_madd_epi16(acc[r].0, ones);
            acc[r].1 = _mm256_madd_epi16(acc[r].1, ones);
        }
        acc
    }
}

/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn floats(sums: Sums) -> Avx2 {
    // SAFETY: the caller's promise.
    unsafe { Avx2(_mm256_cvtepi32_ps(sums.0), _mm256_cvtepi32_ps(sums.1)) }
}

/// # Safety
/// As [`QuantTile`] says, with `R` rows of words and one panel of blocks as [`unpack_q8_0`] makes them.
#[inline(always)]
unsafe fn words<const R: usize>(t: &QuantTile) {
    // SAFETY: every offset stays within the rows and blocks the caller vouches for.
    unsafe {
        for b in 0..t.blocks {
            ask_ahead::<1>(t, b);
            let (w, at) = (t.w.add(b * WORDS_BLOCK), b * R);
            let x = t.x.cast::<i16>().add(at * QUANT_BLOCK);
            let dots = dot_words::<R>(t, x, w.add(FLOATS));
            let w_scale = Avx2::load(w.cast());
            let sums = black_box(t.acc);
            for r in 0..R {
                let acc = sums.add(r * LANES);
                let scale = Avx2::splat(*t.scales.add(at + r)).mul(w_scale);
                scale.mul_add(floats(dots[r]), Avx2::load(acc)).store(acc);
            }
        }
    }
}

/// # Safety
/// As [`QuantTile`] says, with `R` rows and one panel of blocks as [`unpack_q4_0`] makes them.
#[inline(always)]
unsafe fn q4_0<const R: usize>(t: &QuantTile) {
    // SAFETY: every offset stays within the rows and blocks the caller vouches for.
    unsafe {
        for b in 0..t.blocks {
            ask_ahead::<1>(t, b);
            let (w, at) = (t.w.add(b * NIBBLES_BLOCK), b * R);
            let mut start = [_mm256_setzero_si256(); R];
            for r in 0..R {
                start[r] = eights_below(t.sums.add(at + r));
            }
            let dots = dot_nibbles::<R>(t, start, t.x.add(at * QUANT_BLOCK), w.add(FLOATS));
            let w_scale = Avx2::load(w.cast());
            let sums = black_box(t.acc);
            for r in 0..R {
                let acc = sums.add(r * LANES);
                let scale = Avx2::splat(*t.scales.add(at + r)).mul(w_scale);
                scale.mul_add(floats(dots[r]), Avx2::load(acc)).store(acc);
            }
        }
    }
}

/// # Safety
/// As [`QuantTile`] says, with `R` rows and one panel of blocks as [`unpack_q4_k`] makes them.
#[inline(always)]
unsafe fn q4_k<const R: usize>(t: &QuantTile) {
    // SAFETY: every offset stays within the rows and blocks the caller vouches for.
    unsafe {
        for b in 0..t.blocks {
            ask_ahead::<1>(t, b);
            let (w, at) = (t.w.add(b * Q4K_BLOCK), b * R);
            let zero = [_mm256_setzero_si256(); R];
            let dots = dot_nibbles::<R>(t, zero, t.x.add(at * QUANT_BLOCK), w.add(2 * FLOATS));
            let (w_scale, min) = (Avx2::load(w.cast()), Avx2::load(w.add(FLOATS).cast()));
            let sums = black_box(t.acc);
            for r in 0..R {
                let acc = sums.add(r * LANES);
                let x_scale = *t.scales.add(at + r);
                let below = Avx2::splat(-(x_scale * (*t.sums.add(at + r)).total() as f32));
                let scale = Avx2::splat(x_scale).mul(w_scale);
                let sum = scale.mul_add(floats(dots[r]), Avx2::load(acc));
                below.mul_add(min, sum).store(acc);
            }
        }
    }
}

/// Writes what sums begin with where they do: these tiles keep them in memory.
///
/// # Safety
/// As [`QuantTile`] says, with one panel.
#[inline(always)]
unsafe fn begin(t: &QuantTile) {
    if t.fresh {
        for r in 0..t.rows {
            // SAFETY: the caller's promise.
            unsafe { t.acc.add(r * LANES).cast::<[f32; LANES]>().write([*t.begin.add(r); LANES]) };
        }
    }
}

/// Calls a tile with its number of rows, 1 to [`ROWS`], as a constant.
macro_rules! by_rows {
    ($t:expr, $body:ident) => {
        match $t.rows {
            1 => $body::<1>($t),
            2 => $body::<2>($t),
            3 => $body::<3>($t),
            4 => $body::<4>($t),
            5 => $body::<5>($t),
            _ => $body::<6>($t),
        }
    };
}

/// # Safety
/// AVX2, FMA and F16C; the pointers are valid for what [`QuantTile`] says of them, with 1 to 6 rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_words(t: &QuantTile) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        begin(t);
        by_rows!(t, words)
    }
}

/// # Safety
/// As [`tile_words`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_q4_0(t: &QuantTile) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        begin(t);
        by_rows!(t, q4_0)
    }
}

/// # Safety
/// As [`tile_words`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_q4_k(t: &QuantTile) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        begin(t);
        by_rows!(t, q4_k)
    }
}
