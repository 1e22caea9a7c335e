//! What Miri does not interpret of AVX-512, written from the instructions' descriptions (Intel,
//! Software Developer's Manual, volume 2), so that it can run everything around them.
//!
//! Not part of any build: under `cfg(miri)` these names stand before those of the standard library.

use std::arch::x86_64::{__m256i, __m512, __mmask16, _CMP_LT_OQ};
use std::array::from_fn;
use std::mem::transmute;

use super::vector::LANES;

fn lanes(x: __m512) -> [f32; LANES] {
    // SAFETY: both are sixteen floats.
    unsafe { transmute(x) }
}

fn register(x: [f32; LANES]) -> __m512 {
    // SAFETY: both are sixteen floats.
    unsafe { transmute(x) }
}

/// VMAXPS: the second operand where the lanes are unordered or both zero.
pub(super) fn _mm512_max_ps(a: __m512, b: __m512) -> __m512 {
    let (a, b) = (lanes(a), lanes(b));
    register(from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] }))
}

/// VMINPS: the second operand where the lanes are unordered or both zero.
pub(super) fn _mm512_min_ps(a: __m512, b: __m512) -> __m512 {
    let (a, b) = (lanes(a), lanes(b));
    register(from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] }))
}

/// VCMPPS with the one predicate in use: ordered and below.
pub(super) fn _mm512_cmp_ps_mask<const PREDICATE: i32>(a: __m512, b: __m512) -> __mmask16 {
    const { assert!(PREDICATE == _CMP_LT_OQ) };
    let (a, b) = (lanes(a), lanes(b));
    (0..LANES).fold(0, |mask, i| mask | __mmask16::from(a[i] < b[i]) << i)
}

/// VCVTPH2PS.
pub(super) fn _mm512_cvtph_ps(a: __m256i) -> __m512 {
    // SAFETY: both are 32 bytes.
    let a: [u16; LANES] = unsafe { transmute(a) };
    register(a.map(|bits| half::f16::from_bits(bits).to_f32_const()))
}

/// VFPCLASSPS with the one choice of classes in use: zeros, infinities and NaN.
pub(super) fn _mm512_fpclass_ps_mask<const CLASSES: i32>(a: __m512) -> __mmask16 {
    const { assert!(CLASSES == 0x9f) };
    let special = |x: f32| x == 0.0 || !x.is_finite();
    let a = lanes(a);
    (0..LANES).fold(0, |mask, i| mask | __mmask16::from(special(a[i])) << i)
}
