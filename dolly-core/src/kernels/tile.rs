//! The float micro-kernel: a few rows times a few weight panels.
//!
//! For every row r, panel p and lane c, with w in panel layout (`pack`):
//!
//! ```text
//! acc[r][p][c] = acc[r][p][c] + x[r][0] w[p][0][c] + x[r][1] w[p][1][c] + ...
//! ```
//!
//! from left to right, one step after the other. That order is the contract that makes results
//! independent of how rows and panels are grouped: groupings differ only in which chains advance
//! side by side. Callers may stop after any k and go on later, since `acc` is exact f32.

use super::vector::{CACHE_LINE, LANES, Vector, prefetch};

/// Steps of the loop that are written out: a round.
pub(super) const ROUND: usize = 4;
/// Floats of a row that are asked for ahead of its use: about 200 cycles.
const X_AHEAD: usize = 32;

/// Operands of one micro-kernel call.
pub(super) struct Tile {
    /// Rows of `x`.
    pub rows: usize,
    /// Panels of `w`.
    pub panels: usize,
    /// Steps along K.
    pub k: usize,
    /// The rows' elements, `(k, rows)`.
    pub x: *const f32,
    /// First step of panel 0.
    pub w: *const u8,
    /// Bytes from one panel to the next.
    pub w_stride: usize,
    /// Weights of panel 0 that are asked for, of the others as far from theirs, where there are several
    /// rows: their arithmetic leaves the CPU too little room to run ahead. One row is best left to it.
    pub ask: *const u8,
    /// Cache lines of a panel that are asked for in a round, at most four. Asking for what is there
    /// would cost a twentieth.
    pub lines: usize,
    /// Whether sums begin at zero, whatever `acc` holds.
    pub fresh: bool,
    /// `(rows, panels, 16)`, read and written.
    pub acc: *mut f32,
    /// Floats from one row of `acc` to the next.
    pub acc_stride: usize,
}

/// How sixteen weights of one step lie in memory, and what multiplies them.
pub(super) trait Weight<V: Vector> {
    /// Bytes of one step.
    const BYTES: usize;
    /// Weights in registers.
    type Lanes: Copy;
    /// The weights of step `k`, counted from `w`, of which whole rounds are before it.
    ///
    /// # Safety
    /// As [`Vector::splat`], and the steps of the round up to `k` are readable, in pairs.
    unsafe fn load(w: *const u8, k: usize) -> Self::Lanes;
    /// `x * w + addend`, of a row's element.
    ///
    /// # Safety
    /// As [`Vector::splat`], and `x` is readable.
    unsafe fn multiply(x: *const f32, w: Self::Lanes, addend: V) -> V;
}

/// 8-bit integers, widened without a scale: keys and values of a cache.
pub(super) struct I8;
pub(super) struct F32;
pub(super) struct F16;
/// Pairs of steps in words of 32 bits, each widened.
pub(super) struct Bf16;

/// Weights that are widened to floats.
macro_rules! widened {
    ($name:ident, $bytes:expr, |$p:ident, $k:ident| $load:expr) => {
        impl<V: Vector> Weight<V> for $name {
            const BYTES: usize = $bytes;
            type Lanes = V;
            #[inline(always)]
            unsafe fn load($p: *const u8, $k: usize) -> V {
                // SAFETY: the caller's promise, passed on.
                unsafe { $load }
            }
            #[inline(always)]
            unsafe fn multiply(x: *const f32, w: V, addend: V) -> V {
                // SAFETY: the caller's promise.
                unsafe { V::splat(*x).mul_add(w, addend) }
            }
        }
    };
}

widened!(I8, LANES, |w, k| V::load_i8(w.add(k * LANES)));
widened!(F32, 4 * LANES, |w, k| V::load(w.add(k * 4 * LANES).cast()));
widened!(F16, 2 * LANES, |w, k| V::load_f16(w.add(k * 2 * LANES)));
widened!(Bf16, 2 * LANES, |w, k| {
    let (first, second) = V::load_bf16(w.add(k / 2 * 4 * LANES));
    if k.is_multiple_of(2) { first } else { second }
});

/// Runs one tile; groupings without an instance of their own go element by element.
///
/// # Safety
/// As [`Vector::splat`]; `x`, `w` and `acc` are valid for what [`Tile`] says of them.
#[inline(always)]
pub(super) unsafe fn run<V: Vector, W: Weight<V>>(t: &Tile) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match (t.rows, t.panels) {
            (1, 1) => fixed::<V, W, 1, 1>(t),
            (1, 2) => fixed::<V, W, 1, 2>(t),
            (1, 3) => fixed::<V, W, 1, 3>(t),
            (1, 4) => fixed::<V, W, 1, 4>(t),
            (2, 1) => fixed::<V, W, 2, 1>(t),
            (2, 2) => fixed::<V, W, 2, 2>(t),
            (3, 1) => fixed::<V, W, 3, 1>(t),
            (4, 1) => fixed::<V, W, 4, 1>(t),
            (5, 1) => fixed::<V, W, 5, 1>(t),
            (6, 1) => fixed::<V, W, 6, 1>(t),
            (3..=12, 2) | (7..=12, 1) if V::PANELS == 2 => wide::<V, W>(t),
            _ => singly::<V, W>(t),
        }
    }
}

/// Groupings for twice the registers: up to 12 rows of two panels, or of the odd one at the end.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn wide<V: Vector, W: Weight<V>>(t: &Tile) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match (t.rows, t.panels) {
            (3, 2) => fixed::<V, W, 3, 2>(t),
            (4, 2) => fixed::<V, W, 4, 2>(t),
            (5, 2) => fixed::<V, W, 5, 2>(t),
            (6, 2) => fixed::<V, W, 6, 2>(t),
            (7, 2) => fixed::<V, W, 7, 2>(t),
            (8, 2) => fixed::<V, W, 8, 2>(t),
            (9, 2) => fixed::<V, W, 9, 2>(t),
            (10, 2) => fixed::<V, W, 10, 2>(t),
            (11, 2) => fixed::<V, W, 11, 2>(t),
            (12, 2) => fixed::<V, W, 12, 2>(t),
            (7, _) => fixed::<V, W, 7, 1>(t),
            (8, _) => fixed::<V, W, 8, 1>(t),
            (9, _) => fixed::<V, W, 9, 1>(t),
            (10, _) => fixed::<V, W, 10, 1>(t),
            (11, _) => fixed::<V, W, 11, 1>(t),
            _ => fixed::<V, W, 12, 1>(t),
        }
    }
}

/// # Safety
/// As [`run`].
#[cold]
unsafe fn singly<V: Vector, W: Weight<V>>(t: &Tile) {
    for (r, p) in (0..t.rows).flat_map(|r| (0..t.panels).map(move |p| (r, p))) {
        // SAFETY: row `r` and panel `p` of the tile the caller vouches for.
        unsafe {
            let acc = t.acc.add(r * t.acc_stride + p * LANES);
            let mut sum = if t.fresh { V::splat(0.0) } else { V::load(acc) };
            for k in 0..t.k {
                let w = W::load(t.w.add(p * t.w_stride), k);
                sum = W::multiply(t.x.add(k * t.rows + r), w, sum);
            }
            sum.store(acc);
        }
    }
}

/// # Safety
/// As [`run`], with `R` rows and `P` panels.
#[inline(always)]
unsafe fn fixed<V: Vector, W: Weight<V>, const R: usize, const P: usize>(t: &Tile) {
    // SAFETY: every offset stays within the rows, panels and steps that the caller vouches for.
    unsafe {
        let mut acc = [[V::splat(0.0); P]; R];
        if !t.fresh {
            for r in 0..R {
                for p in 0..P {
                    acc[r][p] = V::load(t.acc.add(r * t.acc_stride + p * LANES));
                }
            }
        }
        let whole = t.k - t.k % ROUND;
        for k in (0..whole).step_by(ROUND) {
            if R > 1 && t.lines > 0 {
                ask_ahead::<R, P>(t, k);
            }
            for i in 0..ROUND {
                step::<V, W, R, P>(t, k, i, &mut acc);
            }
        }
        for i in 0..t.k - whole {
            step::<V, W, R, P>(t, whole, i, &mut acc);
        }
        for r in 0..R {
            for p in 0..P {
                acc[r][p].store(t.acc.add(r * t.acc_stride + p * LANES));
            }
        }
    }
}

/// Asks for some later steps of the rows, and for a round's lines of weights.
#[inline(always)]
fn ask_ahead<const R: usize, const P: usize>(t: &Tile, k: usize) {
    for line in (0..ROUND * R * 4).step_by(CACHE_LINE) {
        prefetch(t.x.wrapping_add((k + X_AHEAD) * R).cast::<u8>().wrapping_add(line));
    }
    let asked = k / ROUND * t.lines;
    for p in 0..P {
        for line in (0..ROUND).filter(|line| *line < t.lines) {
            prefetch(t.ask.wrapping_add(p * t.w_stride + (asked + line) * CACHE_LINE));
        }
    }
}

/// `acc[r][p] += x[r][k + i] * w[p][k + i]`.
///
/// # Safety
/// As [`run`], with `R` rows and `P` panels; the tile has a step `k + i`, of the round that begins at `k`.
#[inline(always)]
unsafe fn step<V: Vector, W: Weight<V>, const R: usize, const P: usize>(
    t: &Tile,
    k: usize,
    i: usize,
    acc: &mut [[V; P]; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let first = t.w.add(k * W::BYTES);
        let mut w = [W::load(first, i); P];
        for p in 1..P {
            w[p] = W::load(first.add(p * t.w_stride), i);
        }
        for r in 0..R {
            let x = t.x.add((k + i) * R + r);
            for p in 0..P {
                acc[r][p] = W::multiply(x, w[p], acc[r][p]);
            }
        }
    }
}

/// Widens `steps` steps of a 16-bit panel to f32, exactly.
///
/// # Safety
/// As [`Vector::splat`]; `from` is readable for `steps * W::BYTES` bytes, in pairs of steps, and `to`
/// writable for `steps * 16` floats.
#[inline(always)]
pub(super) unsafe fn widen<V: Vector, W: Weight<V, Lanes = V>>(
    from: *const u8,
    to: *mut f32,
    steps: usize,
) {
    // SAFETY: the caller's promise; offsets stay below `steps`.
    unsafe {
        for k in (0..steps - steps % 2).step_by(2) {
            let from = from.add(k * W::BYTES);
            W::load(from, 0).store(to.add(k * LANES));
            W::load(from, 1).store(to.add((k + 1) * LANES));
        }
        if !steps.is_multiple_of(2) {
            W::load(from, steps - 1).store(to.add((steps - 1) * LANES));
        }
    }
}
