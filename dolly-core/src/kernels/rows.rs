//! Kernels over one row of activations: layer norm, sum, epilogue of a linear layer.
//!
//! Rows of any length: whole groups of sixteen, then one group filled up so that the filling
//! changes nothing. The order of a sum depends on the row's length alone.

use std::slice::from_raw_parts_mut;

use super::linear::Epilogue;
use super::math::activate;
use super::table::Norm;
use super::vector::{LANES, Lanes, Two, Vector};

/// Copies up to sixteen values into a group whose other lanes are `fill`.
#[inline(always)]
pub(super) fn group(values: &[f32], fill: f32) -> [f32; LANES] {
    let mut out = [fill; LANES];
    for (to, from) in out.iter_mut().zip(values) {
        *to = *from;
    }
    out
}

/// `out = (x - mean) / sqrt(variance + eps) * weight + bias`, mean first, then the mean square
/// deviation (two passes: the one-pass formula cancels).
///
/// # Safety
/// As [`Vector::splat`]. All slices have the length of `x` (else the shortest counts).
#[inline(always)]
pub(super) unsafe fn layer_norm<V: Vector>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    // SAFETY: the caller's promise, passed on.
    unsafe { normalise::<V>(x, statistics::<V>(x, eps), (weight, bias), out) }
}

/// As [`layer_norm`], of one row by two norms: `(weight, bias)` each.
///
/// # Safety
/// As [`layer_norm`].
#[inline(always)]
pub(super) unsafe fn layer_norm_pair<V: Vector>(
    x: &[f32],
    norms: (Norm<'_>, Norm<'_>),
    eps: f32,
    out: (&mut [f32], &mut [f32]),
) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        let statistics = statistics::<V>(x, eps);
        normalise::<V>(x, statistics, norms.0, out.0);
        normalise::<V>(x, statistics, norms.1, out.1);
    }
}

/// Mean of a row, and one over its standard deviation.
///
/// # Safety
/// As [`Vector::splat`].
#[inline(always)]
unsafe fn statistics<V: Vector>(x: &[f32], eps: f32) -> (f32, f32) {
    let (groups, tail) = x.as_chunks::<LANES>();
    let count = x.len() as f32;
    // SAFETY: the caller proves the instructions; loads and stores are of arrays of sixteen.
    unsafe {
        let mut sum = V::splat(0.0);
        for g in groups {
            sum = sum.add(V::load(g.as_ptr()));
        }
        let mean = sum.add(V::load(group(tail, 0.0).as_ptr())).sum() / count;
        let mean_lanes = V::splat(mean);
        let mut square = V::splat(0.0);
        for g in groups {
            let d = V::load(g.as_ptr()).sub(mean_lanes);
            square = d.mul_add(d, square);
        }
        let d = V::load(group(tail, mean).as_ptr()).sub(mean_lanes);
        // An empty tail must not meet `inf - inf`.
        let square = if tail.is_empty() { square } else { d.mul_add(d, square) };
        (mean, 1.0 / (square.sum() / count + eps).sqrt())
    }
}

/// `out = (x - mean) * scale * weight + bias`.
///
/// # Safety
/// As [`layer_norm`].
#[inline(always)]
unsafe fn normalise<V: Vector>(
    x: &[f32],
    (mean, scale): (f32, f32),
    (weight, bias): (&[f32], &[f32]),
    out: &mut [f32],
) {
    let (groups, tail) = x.as_chunks::<LANES>();
    // SAFETY: the caller proves the instructions; loads and stores are of arrays of sixteen.
    unsafe {
        let (mean_lanes, scale) = (V::splat(mean), V::splat(scale));
        let normalise = |x: V, w: V, b: V| x.sub(mean_lanes).mul(scale).mul_add(w, b);
        let ((w_groups, w_tail), (b_groups, b_tail)) =
            (weight.as_chunks::<LANES>(), bias.as_chunks::<LANES>());
        let (out_groups, out_tail) = out.as_chunks_mut::<LANES>();
        for (((o, x), w), b) in out_groups.iter_mut().zip(groups).zip(w_groups).zip(b_groups) {
            normalise(V::load(x.as_ptr()), V::load(w.as_ptr()), V::load(b.as_ptr()))
                .store(o.as_mut_ptr());
        }
        let last = normalise(
            V::load(group(tail, 0.0).as_ptr()),
            V::load(group(w_tail, 0.0).as_ptr()),
            V::load(group(b_tail, 0.0).as_ptr()),
        );
        copy(out_tail, &last.to_array());
    }
}

/// `x += y`, over the shorter of both.
///
/// # Safety
/// As [`Vector::splat`].
#[inline(always)]
pub(super) unsafe fn add<V: Vector>(x: &mut [f32], y: &[f32]) {
    let (groups, tail) = x.as_chunks_mut::<LANES>();
    let (y_groups, y_tail) = y.as_chunks::<LANES>();
    // SAFETY: the caller proves the instructions; loads and stores are of arrays of sixteen.
    unsafe {
        for (x, y) in groups.iter_mut().zip(y_groups) {
            V::load(x.as_ptr()).add(V::load(y.as_ptr())).store(x.as_mut_ptr());
        }
    }
    for (x, y) in tail.iter_mut().zip(y_tail) {
        *x += y;
    }
}

/// The sums of some rows and panels on their way out.
pub(crate) struct Sums<'a> {
    /// `(panels / together, rows, together, 16)`; the last of the first may have fewer panels.
    pub acc: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Panels that lie side by side in `acc`: 1, 2 or 4.
    pub together: usize,
    /// One for each column, filled up to whole panels.
    pub bias: &'a [[f32; LANES]],
    /// What is done to them.
    pub epilogue: Epilogue,
    /// Where the first row's first column goes.
    pub out: *mut f32,
    /// Columns that exist: all of the panels but the last, of which some.
    pub columns: usize,
    /// Floats from one row of `out` to the next.
    pub stride: usize,
}

/// `out = act(acc + bias)`, or that added to `out`. A row's panels lie side by side in `out`: written
/// together they meet a page once.
///
/// # Safety
/// As [`Vector::splat`]; `out` is writable for the columns of each row, and `acc` and `bias` have what
/// their descriptions say.
#[inline(always)]
pub(super) unsafe fn finish<V: Vector>(sums: &Sums<'_>) {
    let (whole, last) = (sums.columns / LANES, sums.columns % LANES);
    for r in 0..sums.rows {
        // SAFETY: the caller's promise: row and panels are of `acc`, and the columns of `out`.
        unsafe {
            let to = sums.out.add(r * sums.stride);
            for p in (0..whole - whole % 2).step_by(2) {
                let (first, second) = (to.add(p * LANES), to.add((p + 1) * LANES));
                let y = activated(sums, Two(sum::<V>(sums, r, p), sum(sums, r, p + 1)));
                added(sums, y.0, first).store(first);
                added(sums, y.1, second).store(second);
            }
            if !whole.is_multiple_of(2) {
                let to = to.add((whole - 1) * LANES);
                added(sums, activated(sums, sum::<V>(sums, r, whole - 1)), to).store(to);
            }
            if last > 0 {
                let out = from_raw_parts_mut(to.add(whole * LANES), last);
                let y = activated(sums, sum::<V>(sums, r, whole));
                let y = added(sums, y, group(out, 0.0).as_ptr());
                copy(out, &y.to_array());
            }
        }
    }
}

/// The sums of row `r` and panel `p`, with their bias.
///
/// # Safety
/// As [`finish`]; row and panel exist.
#[inline(always)]
unsafe fn sum<V: Vector>(sums: &Sums<'_>, r: usize, p: usize) -> V {
    // A tile takes one, two or four panels: none divides by zero, and shifts do for a division.
    let first = p & !(sums.together - 1);
    let together = sums.together.min(sums.columns.div_ceil(LANES) - first);
    // SAFETY: the caller's promise.
    unsafe {
        let at = first * sums.rows + r * together + p - first;
        let bias = V::load(sums.bias.get_unchecked(p).as_ptr());
        V::load(sums.acc.as_ptr().add(at * LANES)).add(bias)
    }
}

#[inline(always)]
fn activated<L: Lanes>(sums: &Sums<'_>, y: L) -> L {
    match sums.epilogue.activation {
        Some(activation) => activate(y, activation),
        None => y,
    }
}

/// `y`, added to what is there if that is wanted.
///
/// # Safety
/// As [`Vector::load`].
#[inline(always)]
unsafe fn added<V: Vector>(sums: &Sums<'_>, y: V, there: *const f32) -> V {
    // SAFETY: the caller's promise.
    if sums.epilogue.add { unsafe { V::load(there).add(y) } } else { y }
}

#[inline(always)]
fn copy(to: &mut [f32], from: &[f32; LANES]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}
