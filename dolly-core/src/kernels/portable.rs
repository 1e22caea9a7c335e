//! Plain Rust lanes: every machine has them, and the compiler vectorises what it can.

use super::vector::{LANES, Lanes, Vector};
use half::f16;

/// Sixteen lanes in an array.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i])))
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Vector for Portable {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller promises 16 readable floats.
        Self(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        // SAFETY: the caller promises 32 readable bytes.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        Self(bits.map(f16_to_f32))
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> (Self, Self) {
        // SAFETY: the caller promises 64 readable bytes.
        let pairs = unsafe { p.cast::<[[u16; 2]; LANES]>().read_unaligned() };
        let lanes = |i: usize| Self(pairs.map(|pair| f32::from_bits(u32::from(pair[i]) << 16)));
        (lanes(0), lanes(1))
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller promises 16 writable floats.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = self.0;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }
}

impl Lanes for Portable {
    #[inline(always)]
    fn like(self, x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    // Not `f32::mul_add`: without the instruction that is a library call per lane.
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * factor.0[i] + addend.0[i]))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.map(f32::abs)
    }

    #[inline(always)]
    fn select_below(self, limit: Self, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] < limit.0[i] { yes.0[i] } else { no.0[i] }))
    }

    // 1.5 * 2^23 + n holds n in its low bits, which the shift moves into the exponent.
    #[inline(always)]
    fn exp2_integral(self) -> Self {
        self.map(|n| f32::from_bits(((n + 12_582_912.0).to_bits() << 23).wrapping_add(127 << 23)))
    }
}

/// Exact widening without branches, so that the loop over lanes vectorises.
///
/// The 15 magnitude bits, moved to where f32 keeps them, read as the number times 2^-112; the
/// product restores it and normalises subnormals. Infinities and NaN get the full exponent.
#[inline(always)]
pub(super) fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled | special | (u32::from(bits & 0x8000) << 16))
}

/// Rounds to the nearest, ties to even; Miri does not know the instruction that `half` takes.
pub(super) fn f32_to_f16(x: f32) -> f16 {
    if cfg!(miri) { f16::from_f32_const(x) } else { f16::from_f32(x) }
}

const _: () = assert!(size_of::<Portable>() == 64 && size_of::<f16>() == 2);
