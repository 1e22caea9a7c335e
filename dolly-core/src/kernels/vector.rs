//! What an instruction set must offer: sixteen f32 lanes and the operations on them.
//!
//! Sixteen whatever the register width (two registers under AVX2, one under AVX-512), so that the
//! order of every sum, and therefore every result bit, is a property of the kernel's source and
//! not of the machine's registers. The only licence an instruction set takes is whether
//! [`Vector::mul_add`] rounds once or twice.

/// Lanes of a [`Vector`], columns of a weight panel, and the padding of a cached head.
pub(crate) const LANES: usize = 16;

/// Arithmetic on f32 lanes, sixteen or a few times as many.
///
/// A value of an implementing type exists only where its instructions do, so operations are safe.
pub(crate) trait Lanes: Copy {
    /// All lanes `x`; the receiver proves the instructions.
    fn like(self, x: f32) -> Self;
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self * other`.
    fn mul(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once where the instruction set can.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `self > other ? self : other`: `other` where unordered.
    fn max(self, other: Self) -> Self;
    /// `self < other ? self : other`: `other` where unordered.
    fn min(self, other: Self) -> Self;
    /// `|self|`.
    fn abs(self) -> Self;
    /// `self < limit ? yes : no`: `no` where unordered.
    fn select_below(self, limit: Self, yes: Self, no: Self) -> Self;
    /// `2^self` for integral lanes in [-126, 127]; anything, but defined, otherwise.
    fn exp2_integral(self) -> Self;
}

/// Two times as many lanes: chains of dependent operations that the CPU starts side by side.
#[derive(Clone, Copy)]
pub(super) struct Two<V>(pub V, pub V);

impl<V: Lanes> Lanes for Two<V> {
    #[inline(always)]
    fn like(self, x: f32) -> Self {
        let x = self.0.like(x);
        Self(x, x)
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(self.0.add(other.0), self.1.add(other.1))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(self.0.sub(other.0), self.1.sub(other.1))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(self.0.mul(other.0), self.1.mul(other.1))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(self.0.div(other.0), self.1.div(other.1))
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(self.0.mul_add(factor.0, addend.0), self.1.mul_add(factor.1, addend.1))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0), self.1.max(other.1))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0), self.1.min(other.1))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.abs(), self.1.abs())
    }

    #[inline(always)]
    fn select_below(self, limit: Self, yes: Self, no: Self) -> Self {
        Self(self.0.select_below(limit.0, yes.0, no.0), self.1.select_below(limit.1, yes.1, no.1))
    }

    #[inline(always)]
    fn exp2_integral(self) -> Self {
        Self(self.0.exp2_integral(), self.1.exp2_integral())
    }
}

/// Sixteen f32 lanes.
///
/// A value of an implementing type exists only where its instructions do: the constructors
/// [`load`](Self::load), [`load_f16`](Self::load_f16), [`load_bf16`](Self::load_bf16) and
/// [`splat`](Self::splat) are unsafe and carry that proof, operations on values are safe. All are
/// `#[inline(always)]`, which is what compiles them with the features of the kernel they land in.
///
/// Sums of lanes add the upper half to the lower, halving 16 → 8 → 4 → 2 → 1.
pub(crate) trait Vector: Lanes {
    /// Weight panels, 1 or 2, that a tile of many rows takes side by side: what the registers hold.
    const PANELS: usize = 1;

    /// All lanes `x`.
    ///
    /// # Safety
    /// The CPU has the instructions of the implementing type.
    unsafe fn splat(x: f32) -> Self;
    /// Lanes from 16 consecutive floats, any alignment.
    ///
    /// # Safety
    /// As [`splat`](Self::splat), and `p` is readable for 16 floats.
    unsafe fn load(p: *const f32) -> Self;
    /// Lanes from 16 consecutive f16, any alignment.
    ///
    /// # Safety
    /// As [`splat`](Self::splat), and `p` is readable for 32 bytes.
    unsafe fn load_f16(p: *const u8) -> Self;
    /// Lanes from the first and the second of 16 pairs of bf16 (see `pack`), any alignment.
    ///
    /// # Safety
    /// As [`splat`](Self::splat), and `p` is readable for 64 bytes.
    unsafe fn load_bf16(p: *const u8) -> (Self, Self);
    /// Lanes from 16 consecutive 8-bit integers, any alignment.
    ///
    /// # Safety
    /// As [`splat`](Self::splat), and `p` is readable for 16 bytes.
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self {
        // SAFETY: the caller's promise; `wide` holds 16 floats.
        unsafe {
            let wide = (*p.cast::<[i8; LANES]>()).map(f32::from);
            Self::load(wide.as_ptr())
        }
    }
    /// Writes the lanes to 16 consecutive floats, any alignment.
    ///
    /// # Safety
    /// `p` is writable for 16 floats.
    unsafe fn store(self, p: *mut f32);
    /// Turns 8 rows of 8 floats into columns: writes `rows[0][s], ..., rows[7][s]` to
    /// `to + s * stride`, for `s` from 0 to 7 in this order.
    ///
    /// # Safety
    /// As [`splat`](Self::splat), every row is readable for 8 floats, and `to + s * stride` is
    /// writable for 8.
    #[inline(always)]
    unsafe fn transpose(rows: &[*const f32; 8], to: *mut f32, stride: usize) {
        for s in 0..8 {
            for (r, row) in rows.iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { *to.add(s * stride + r) = *row.add(s) };
            }
        }
    }

    /// Sum of the lanes.
    fn sum(self) -> f32;

    /// The lanes as an array.
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: `out` holds 16 floats.
        unsafe { self.store(out.as_mut_ptr()) };
        out
    }
}

/// Bytes of a cache line, where it matters for speed.
pub(super) const CACHE_LINE: usize = 64;

/// Asks for the cache line at `p`; any address is allowed.
#[inline(always)]
pub(super) fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}
