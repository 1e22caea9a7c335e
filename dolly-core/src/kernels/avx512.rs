//! x86-64 with AVX-512 F, BW, DQ and VL: one register is sixteen lanes.

use std::arch::x86_64::*;

use super::avx2::Avx2;
#[cfg(miri)]
use super::avx512_miri::{_mm512_cmp_ps_mask, _mm512_cvtph_ps, _mm512_max_ps, _mm512_min_ps};
use super::vector::{Lanes, Vector};

/// Sixteen lanes in a register.
#[derive(Clone, Copy)]
pub(super) struct Avx512(pub(super) __m512);

/// Runs intrinsics that need only the features every value of [`Avx512`] proves.
macro_rules! proven {
    ($($body:tt)*) => {{
        // SAFETY: register-only intrinsics; an `Avx512` value exists, so the CPU has F and DQ.
        unsafe { $($body)* }
    }};
}

impl Avx512 {
    /// The same lanes in two registers: sums of lanes end in narrow registers anyway.
    #[inline(always)]
    fn halves(self) -> Avx2 {
        proven!(Avx2(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0)))
    }
}

impl Vector for Avx512 {
    // 12 rows of two panels are 24 sums; with both weights and a broadcast, 27 of 32 registers.
    const PANELS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller proves the CPU's features.
        unsafe { Self(_mm512_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller proves the CPU's features and 16 readable floats.
        unsafe { Self(_mm512_loadu_ps(p)) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        // SAFETY: the caller proves the CPU's features and 32 readable bytes.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> (Self, Self) {
        // SAFETY: the caller proves the CPU's features and 64 readable bytes.
        unsafe {
            let both = _mm512_loadu_si512(p.cast());
            let second = _mm512_and_si512(both, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            let first = _mm512_slli_epi32::<16>(both);
            (Self(_mm512_castsi512_ps(first)), Self(_mm512_castsi512_ps(second)))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self {
        // SAFETY: the caller proves the CPU's features and 16 readable bytes.
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller promises 16 writable floats.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn transpose(rows: &[*const f32; 8], to: *mut f32, stride: usize) {
        // SAFETY: the caller's promise; a CPU with AVX-512 has AVX2.
        unsafe { Avx2::transpose(rows, to, stride) }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        self.halves().sum()
    }
}

impl Lanes for Avx512 {
    #[inline(always)]
    fn like(self, x: f32) -> Self {
        proven!(Self(_mm512_set1_ps(x)))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        proven!(Self(_mm512_add_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        proven!(Self(_mm512_sub_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        proven!(Self(_mm512_mul_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        proven!(Self(_mm512_div_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        proven!(Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        proven!(Self(_mm512_max_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        proven!(Self(_mm512_min_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        proven!(Self(_mm512_abs_ps(self.0)))
    }

    #[inline(always)]
    fn select_below(self, limit: Self, yes: Self, no: Self) -> Self {
        proven! {
            let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, limit.0);
            Self(_mm512_mask_blend_ps(below, no.0, yes.0))
        }
    }

    // 1.5 * 2^23 + n holds n in its low bits, which the shift moves into the exponent.
    #[inline(always)]
    fn exp2_integral(self) -> Self {
        let shifted = self.add(self.like(12_582_912.0));
        proven! {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted.0));
            let bias = _mm512_set1_epi32(127 << 23);
            Self(_mm512_castsi512_ps(_mm512_add_epi32(exponent, bias)))
        }
    }
}
