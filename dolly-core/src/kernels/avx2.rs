//! x86-64 with AVX2, FMA and F16C: two registers make sixteen lanes.

use super::vector::{Lanes, Vector};
use std::arch::x86_64::*;

/// Sixteen lanes in two registers, low lanes first.
#[derive(Clone, Copy)]
pub(super) struct Avx2(pub(super) __m256, pub(super) __m256);

/// Turns four rows of 8 floats into columns: 0 to 3 in the lower halves, 4 to 7 in the upper. Not a
/// closure: those may end up in a function without the features.
///
/// # Safety
/// AVX2, and every row is readable for 8 floats.
#[inline(always)]
unsafe fn four(rows: [*const f32; 4]) -> [__m256; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let (r0, r1) = (_mm256_loadu_ps(rows[0]), _mm256_loadu_ps(rows[1]));
        let (r2, r3) = (_mm256_loadu_ps(rows[2]), _mm256_loadu_ps(rows[3]));
        let (a, b) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
        let (c, d) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
        [
            _mm256_shuffle_ps::<0x44>(a, c),
            _mm256_shuffle_ps::<0xee>(a, c),
            _mm256_shuffle_ps::<0x44>(b, d),
            _mm256_shuffle_ps::<0xee>(b, d),
        ]
    }
}

/// Runs intrinsics that need only the features every value of [`Avx2`] proves.
macro_rules! proven {
    ($($body:tt)*) => {{
        // SAFETY: register-only intrinsics; an `Avx2` value exists, so the CPU has AVX2 and FMA.
        unsafe { $($body)* }
    }};
}

impl Avx2 {
    /// Lanes summed in pairs (i, i + 8), then (i, i + 4).
    #[inline(always)]
    fn quarter(self) -> __m128 {
        proven! {
            let eight = _mm256_add_ps(self.0, self.1);
            _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight))
        }
    }
}

impl Vector for Avx2 {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller proves the CPU's features.
        unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller proves the CPU's features and 16 readable floats.
        unsafe { Self(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        // SAFETY: the caller proves the CPU's features and 32 readable bytes.
        unsafe {
            let low = _mm_loadu_si128(p.cast());
            let high = _mm_loadu_si128(p.add(16).cast());
            Self(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> (Self, Self) {
        // SAFETY: the caller proves the CPU's features and 64 readable bytes.
        unsafe {
            let (low, high) = (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast()));
            let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let first = Self(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            );
            let second = Self(
                _mm256_castsi256_ps(_mm256_and_si256(low, mask)),
                _mm256_castsi256_ps(_mm256_and_si256(high, mask)),
            );
            (first, second)
        }
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self {
        // SAFETY: the caller proves the CPU's features and 16 readable bytes.
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()));
            Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller promises 16 writable floats.
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn transpose(rows: &[*const f32; 8], to: *mut f32, stride: usize) {
        // SAFETY: the caller proves the CPU's features, the rows and the room.
        unsafe {
            let [a, b, c, d, e, f, g, h] = *rows;
            let (upper, lower) = (four([a, b, c, d]), four([e, f, g, h]));
            for s in 0..4 {
                let column = _mm256_permute2f128_ps::<0x20>(upper[s], lower[s]);
                _mm256_storeu_ps(to.add(s * stride), column);
            }
            for s in 0..4 {
                let column = _mm256_permute2f128_ps::<0x31>(upper[s], lower[s]);
                _mm256_storeu_ps(to.add((s + 4) * stride), column);
            }
        }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let four = self.quarter();
        proven! {
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

impl Lanes for Avx2 {
    #[inline(always)]
    fn like(self, x: f32) -> Self {
        proven!(Self(_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        proven!(Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        proven!(Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        proven!(Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        proven!(Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)))
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        proven!(Self(
            _mm256_fmadd_ps(self.0, factor.0, addend.0),
            _mm256_fmadd_ps(self.1, factor.1, addend.1),
        ))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        proven!(Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        proven!(Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        proven! {
            let sign = _mm256_set1_ps(-0.0);
            Self(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1))
        }
    }

    #[inline(always)]
    fn select_below(self, limit: Self, yes: Self, no: Self) -> Self {
        proven! {
            let low = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, limit.0);
            let high = _mm256_cmp_ps::<_CMP_LT_OQ>(self.1, limit.1);
            Self(_mm256_blendv_ps(no.0, yes.0, low), _mm256_blendv_ps(no.1, yes.1, high))
        }
    }

    // 1.5 * 2^23 + n holds n in its low bits, which the shift moves into the exponent.
    #[inline(always)]
    fn exp2_integral(self) -> Self {
        let shifted = self.add(self.like(12_582_912.0));
        proven! {
            let bias = _mm256_set1_epi32(127 << 23);
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted.0));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted.1));
            Self(
                _mm256_castsi256_ps(_mm256_add_epi32(low, bias)),
                _mm256_castsi256_ps(_mm256_add_epi32(high, bias)),
            )
        }
    }
}
