//! The integer micro-kernels under AVX-512 with VNNI.
//!
//! `vpdpbusd` adds four products of unsigned by signed bytes to each lane of 32 bits, without
//! saturation. The weights are the unsigned operand, so that only they need preparing, once for all
//! rows: Q8_0 as w + 128, Q4_0 as the nibbles, which are w + 8. What that adds, 128 or 8 times the
//! sum of the row's integers, is taken off where the sums begin ([`offset`]). Magnitudes stay below
//! 32 * 255 * 127 + 128 * 32 * 127 < 2^21. The loops over a block may be unrolled: 32 registers
//! hold what that needs.

use std::arch::x86_64::*;

use super::avx512::Avx512;
#[cfg(miri)]
use super::avx512_miri::_mm512_fpclass_ps_mask;
use super::pack::Layout;
use super::quant::{self, Block, QUADS, QUANT_BLOCK, QuantTile};
use super::vector::{LANES, Lanes, Vector};

/// What the tiles add to the integers of a format's weights.
pub(super) fn offset(layout: Layout) -> i32 {
    match layout {
        Layout::Q8_0 => 128,
        Layout::Q4_0 => 8,
        _ => 0,
    }
}

struct Q8_0;
struct Q4_0;

impl Block for Q8_0 {
    type V = Avx512;
    const BYTES: usize = LANES * (2 + QUANT_BLOCK);
    const ROWS: usize = 8;

    #[inline(always)]
    unsafe fn dot<const R: usize, const P: usize>(
        t: &QuantTile,
        x: *const i8,
        at: usize,
        w: *const u8,
    ) -> [[Avx512; P]; R] {
        // SAFETY: reads 32 integers and a start a row and one block a panel, as the caller vouches.
        unsafe {
            let offset = _mm512_set1_epi8(-128);
            let mut acc = start::<R, P>(t.starts.add(at));
            for k in 0..QUADS {
                for p in 0..P {
                    let w = w.add(p * t.w_stride + 2 * LANES + k * 4 * LANES);
                    let w = _mm512_xor_si512(_mm512_loadu_si512(w.cast()), offset);
                    for r in 0..R {
                        let x = broadcast(x.add(r * QUANT_BLOCK + 4 * k));
                        acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], w, x);
                        as_written(&mut acc[r][p]);
                    }
                }
            }
            floats(acc)
        }
    }

    #[inline(always)]
    unsafe fn scales<const R: usize>(x: *const f32, w: Avx512) -> [Avx512; R] {
        // SAFETY: the caller's promise.
        unsafe { scales(x, w) }
    }
}

impl Block for Q4_0 {
    type V = Avx512;
    const BYTES: usize = LANES * (2 + QUANT_BLOCK / 2);
    const ROWS: usize = 8;

    #[inline(always)]
    unsafe fn dot<const R: usize, const P: usize>(
        t: &QuantTile,
        x: *const i8,
        at: usize,
        w: *const u8,
    ) -> [[Avx512; P]; R] {
        // SAFETY: reads 32 integers and a start a row and one block a panel, as the caller vouches.
        unsafe {
            let nibble = _mm512_set1_epi8(15);
            let mut acc = start::<R, P>(t.starts.add(at));
            for k in 0..QUADS / 2 {
                for p in 0..P {
                    let w = w.add(p * t.w_stride + 2 * LANES + k * 4 * LANES);
                    let w = _mm512_loadu_si512(w.cast());
                    let low = _mm512_and_si512(w, nibble);
                    let high = _mm512_and_si512(_mm512_srli_epi16::<4>(w), nibble);
                    for r in 0..R {
                        let x = x.add(r * QUANT_BLOCK + 4 * k);
                        let sum = _mm512_dpbusd_epi32(acc[r][p], low, broadcast(x));
                        let x = broadcast(x.add(QUANT_BLOCK / 2));
                        acc[r][p] = _mm512_dpbusd_epi32(sum, high, x);
                        as_written(&mut acc[r][p]);
                    }
                }
            }
            floats(acc)
        }
    }

    #[inline(always)]
    unsafe fn scales<const R: usize>(x: *const f32, w: Avx512) -> [Avx512; R] {
        // SAFETY: the caller's promise.
        unsafe { scales(x, w) }
    }
}

/// What the sums of a block begin with, which its caller formed once for all panels.
///
/// # Safety
/// AVX-512 F; a start of each row.
#[inline(always)]
unsafe fn start<const R: usize, const P: usize>(starts: *const i32) -> [[__m512i; P]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[_mm512_setzero_si512(); P]; R];
        for r in 0..R {
            acc[r] = [_mm512_set1_epi32(*starts.add(r)); P];
        }
        acc
    }
}

/// # Safety
/// AVX-512 F.
#[inline(always)]
unsafe fn floats<const R: usize, const P: usize>(acc: [[__m512i; P]; R]) -> [[Avx512; P]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut out = [[Avx512::splat(0.0); P]; R];
        for r in 0..R {
            for p in 0..P {
                out[r][p] = Avx512(_mm512_cvtepi32_ps(acc[r][p]));
            }
        }
        out
    }
}

/// `x[r] * w`, by adding the exponents of `x`, powers of two: the ports that multiply are busy enough. What
/// has no exponent to add to (zero, infinity, NaN) is multiplied.
///
/// # Safety
/// AVX-512 F and DQ; `x` as [`Block::scales`] has it.
#[inline(always)]
unsafe fn scales<const R: usize>(x: *const f32, w: Avx512) -> [Avx512; R] {
    const ZERO_INFINITY_OR_NAN: i32 = 0x9f;
    // SAFETY: the caller's promise.
    unsafe {
        let mut scales = [w; R];
        if _mm512_fpclass_ps_mask::<ZERO_INFINITY_OR_NAN>(w.0) == 0 {
            let one = _mm512_set1_epi32(1.0_f32.to_bits() as i32);
            let mut w = _mm512_sub_epi32(_mm512_castps_si512(w.0), one);
            as_written(&mut w);
            for r in 0..R {
                let x = _mm512_set1_epi32(x.add(r).cast::<i32>().read());
                scales[r] = Avx512(_mm512_castsi512_ps(_mm512_add_epi32(w, x)));
            }
        } else {
            for r in 0..R {
                scales[r] = Avx512::splat(*x.add(r)).mul(w);
            }
        }
        scales
    }
}

/// Keeps the compiler from rearranging what a value is part of. It would take all products of a row
/// first, eight instructions that wait for one another, and add to every row's scale what is added to
/// the weights' once.
///
/// # Safety
/// AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn as_written(value: &mut __m512i) {
    // An interpreter has no order to keep, and takes no assembly.
    #[cfg(not(miri))]
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!(
            "/* {0} */",
            inout(zmm_reg) * value,
            options(nomem, nostack, preserves_flags)
        );
    }
    #[cfg(miri)]
    let _ = value;
}

/// Four consecutive integers in every lane of 32 bits.
///
/// # Safety
/// AVX-512 F, and four readable bytes.
#[inline(always)]
unsafe fn broadcast(x: *const i8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

/// # Safety
/// AVX-512 F, BW, DQ, VL and VNNI; the pointers are valid for what [`QuantTile`] says of them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn tile_q8_0(t: &QuantTile) {
    // SAFETY: the caller's promise, passed on.
    unsafe { quant::run::<Q8_0>(t) }
}

/// # Safety
/// AVX-512 F, BW, DQ, VL and VNNI; the pointers are valid for what [`QuantTile`] says of them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn tile_q4_0(t: &QuantTile) {
    // SAFETY: the caller's promise, passed on.
    unsafe { quant::run::<Q4_0>(t) }
}
