//! Products of bf16 under AVX-512 with BF16.
//!
//! `vdpbf16ps` adds the products of two pairs to each lane of 32 bits: twice the multiplications of an
//! f32 instruction. Both operands are bf16, so activations are rounded too, to the nearest, ties to
//! even; sums are f32. Of weights and activations below 2^-126 it makes zero (Intel, Software
//! Developer's Manual, volume 2, VDPBF16PS and VCVTNE2PS2BF16).

use std::arch::x86_64::*;

use super::avx512::Avx512;
use super::rows::group;
use super::tile::{self, Tile, Weight};
use super::vector::LANES;

/// Pairs of steps, multiplied as they are: a row's element is a pair too.
struct Pairs;

impl Weight<Avx512> for Pairs {
    const BYTES: usize = 4 * LANES;
    type Lanes = __m512i;

    #[inline(always)]
    unsafe fn load(w: *const u8, k: usize) -> __m512i {
        // SAFETY: the caller proves the CPU's features and 64 readable bytes.
        unsafe { _mm512_loadu_si512(w.add(k * Self::BYTES).cast()) }
    }

    #[inline(always)]
    unsafe fn multiply(x: *const f32, w: __m512i, addend: Avx512) -> Avx512 {
        // SAFETY: the caller proves the CPU's features and a readable pair; the casts keep all bits.
        unsafe {
            let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
            Avx512(_mm512_dpbf16_ps(addend.0, bf16(w), bf16(x)))
        }
    }
}

#[inline(always)]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of numbers.
    unsafe { std::mem::transmute(bits) }
}

/// # Safety
/// AVX-512 F, BW, DQ, VL and BF16; the pointers are valid for what [`Tile`] says of them, with pairs of
/// K in place of K.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn tile_bf16(t: &Tile) {
    // SAFETY: the caller's promise, passed on.
    unsafe { tile::run::<Avx512, Pairs>(t) }
}

/// Rounds a row to pairs of bf16, with a zero behind an odd last one.
///
/// # Safety
/// AVX-512 F and BF16; `pairs` has half the length of `x`, rounded up.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn round_row(x: &[f32], pairs: &mut [f32]) {
    // SAFETY: loads and stores are of 32 floats and 16 pairs of both slices, or of copies.
    unsafe {
        let round = |x: *const f32| -> __m512i {
            let (low, high) = (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(LANES)));
            std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
        };
        let (blocks, tail) = x.as_chunks::<{ 2 * LANES }>();
        let (outputs, last) = pairs.split_at_mut(blocks.len() * LANES);
        for (x, out) in blocks.iter().zip(outputs.as_chunks_mut::<LANES>().0) {
            _mm512_storeu_si512(out.as_mut_ptr().cast(), round(x.as_ptr()));
        }
        let (low, high) = tail.split_at(tail.len().min(LANES));
        let filled = [group(low, 0.0), group(high, 0.0)];
        let mut rounded = [0.0; LANES];
        _mm512_storeu_si512(rounded.as_mut_ptr().cast(), round(filled.as_flattened().as_ptr()));
        last.iter_mut().zip(rounded).for_each(|(to, pair)| *to = pair);
    }
}
