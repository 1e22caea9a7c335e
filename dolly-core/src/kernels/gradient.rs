//! Kernels of the backward pass over one row: norms, activations, softmax, sums.
//!
//! Rows of any length: whole groups of sixteen, then one group filled up. The order of a sum
//! depends on the row's length alone.

use super::math::{activate, activation_slope, exp};
use super::rows::group;
use super::table::Kernels;
use super::vector::{LANES, Lanes, Two, Vector};
use crate::model::Activation;

/// `$to[i] = body(...)` over groups of sixteen of `$to` and of the other slices, which are read as
/// vectors under their own names; lanes beyond the end hold zeros and are not written.
macro_rules! each_group {
    ($vector:ty, $to:ident $(, $from:ident)* => $body:expr) => {{
        let (mut at, len) = (0, $to.len());
        while at + LANES <= len {
            let result: $vector = {
                $(let $from = <$vector>::load($from[at..at + LANES].as_ptr());)*
                let $to = <$vector>::load($to[at..at + LANES].as_ptr());
                $body
            };
            result.store($to[at..at + LANES].as_mut_ptr());
            at += LANES;
        }
        if at < len {
            let result: $vector = {
                $(let $from = <$vector>::load(group(&$from[at..], 0.0).as_ptr());)*
                let $to = <$vector>::load(group(&$to[at..], 0.0).as_ptr());
                $body
            };
            let rest = len - at;
            $to[at..].copy_from_slice(&result.to_array()[..rest]);
        }
    }};
}

/// Sum in lanes over groups of sixteen of the slices, the last one filled with zeros.
macro_rules! sum_groups {
    ($vector:ty, $first:ident $(, $other:ident)*; $sum:ident => $body:expr) => {{
        let (mut at, len) = (0, $first.len());
        let mut $sum = <$vector>::splat(0.0);
        while at + LANES <= len {
            $sum = {
                $(let $other = <$vector>::load($other[at..at + LANES].as_ptr());)*
                let $first = <$vector>::load($first[at..at + LANES].as_ptr());
                $body
            };
            at += LANES;
        }
        if at < len {
            $sum = {
                $(let $other = <$vector>::load(group(&$other[at..], 0.0).as_ptr());)*
                let $first = <$vector>::load(group(&$first[at..], 0.0).as_ptr());
                $body
            };
        }
        $sum.sum()
    }};
}

/// Gradient of a layer norm's input, added to `dx`; returns the row's mean and 1 / deviation.
///
/// With n = (x - mean) / deviation and g = dy w: dx = (g - mean(g) - n mean(g n)) / deviation.
///
/// # Safety
/// As [`Vector::splat`]; all slices have one length.
#[inline(always)]
pub(super) unsafe fn layer_norm<V: Vector>(
    x: &[f32],
    w: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
) -> (f32, f32) {
    // SAFETY: the caller proves the instructions; loads and stores are of whole groups.
    unsafe {
        let count = x.len() as f32;
        let (mean, scale) = statistics::<V>(x, eps);
        let g_mean = sum_groups!(V, dy, w; sum => dy.mul_add(w, sum)) / count;
        // The mean of g n is that of g (x - mean), scaled: mean(g x) would cancel.
        let shift = V::splat(mean);
        let gn = sum_groups!(V, dy, w, x; sum => dy.mul(w).mul_add(x.sub(shift), sum)) / count;
        let (g_mean, gn) = (V::splat(g_mean), V::splat(gn * scale * scale));
        let lanes = V::splat(scale);
        each_group!(V, dx, x, w, dy => {
            let own = dy.mul(w).sub(g_mean).sub(x.sub(shift).mul(gn));
            own.mul_add(lanes, dx)
        });
        (mean, scale)
    }
}

/// Mean and 1 / sqrt(variance + eps) of a row, in the order of the forward pass.
///
/// # Safety
/// As [`Vector::splat`].
#[inline(always)]
unsafe fn statistics<V: Vector>(x: &[f32], eps: f32) -> (f32, f32) {
    // SAFETY: the caller proves the instructions; loads are of whole groups.
    unsafe {
        let count = x.len() as f32;
        let mean = sum_groups!(V, x; sum => sum.add(x)) / count;
        let shift = V::splat(mean);
        let whole = x.len() - x.len() % LANES;
        let (head, tail) = x.split_at(whole);
        let mut square = sum_groups!(V, head; sum => {
            let d = head.sub(shift);
            d.mul_add(d, sum)
        });
        for x in tail {
            square += (x - mean) * (x - mean);
        }
        (mean, 1.0 / (square / count + eps).sqrt())
    }
}

/// Adds a row's share to the gradients of a layer norm's weight and bias.
///
/// # Safety
/// As [`Vector::splat`]; all slices have one length.
#[inline(always)]
pub(super) unsafe fn layer_norm_weights<V: Vector>(
    x: &[f32],
    dy: &[f32],
    (mean, scale): (f32, f32),
    dw: &mut [f32],
    db: &mut [f32],
) {
    // SAFETY: the caller proves the instructions; loads and stores are of whole groups.
    unsafe {
        let (mean, scale) = (V::splat(mean), V::splat(scale));
        each_group!(V, dw, x, dy => x.sub(mean).mul(scale).mul_add(dy, dw));
        each_group!(V, db, dy => db.add(dy));
    }
}

/// `out = act(x)`.
///
/// # Safety
/// As [`Vector::splat`]; both slices have one length.
#[inline(always)]
pub(super) unsafe fn activate_row<V: Vector>(act: Activation, x: &[f32], out: &mut [f32]) {
    // SAFETY: the caller proves the instructions; loads and stores are of whole groups.
    unsafe { each_group!(V, out, x => { let _ = out; activate(x, act) }) }
}

/// `d *= act'(x)`.
///
/// # Safety
/// As [`Vector::splat`]; both slices have one length.
#[inline(always)]
pub(super) unsafe fn activation<V: Vector>(act: Activation, x: &[f32], d: &mut [f32]) {
    // SAFETY: the caller proves the instructions; loads and stores are of whole groups.
    unsafe { each_group!(V, d, x => d.mul(activation_slope(x, act))) }
}

/// `x = exp(x scale - shift)`; returns the sum.
///
/// # Safety
/// As [`Vector::splat`].
#[inline(always)]
pub(super) unsafe fn exp_minus<V: Vector>(scale: f32, shift: f32, x: &mut [f32]) -> f32 {
    // SAFETY: the caller proves the instructions; loads and stores are of whole groups.
    unsafe {
        let (by, minus) = (V::splat(scale), V::splat(-shift));
        let (pairs, rest) = x.as_chunks_mut::<{ 2 * LANES }>();
        for pair in pairs {
            let (first, second) = pair.split_at_mut(LANES);
            let both = Two(V::load(first.as_ptr()), V::load(second.as_ptr()));
            let both = exp(both.mul_add(Two(by, by), Two(minus, minus)));
            both.0.store(first.as_mut_ptr());
            both.1.store(second.as_mut_ptr());
        }
        each_group!(V, rest => exp(rest.mul_add(by, minus)));
        sum_groups!(V, x; sum => sum.add(x))
    }
}

/// The largest element, -inf of none; elements that are NaN may be passed over.
///
/// # Safety
/// As [`Vector::splat`].
#[inline(always)]
pub(super) unsafe fn max<V: Vector>(x: &[f32]) -> f32 {
    let (groups, tail) = x.as_chunks::<LANES>();
    // SAFETY: the caller proves the instructions; loads are of whole groups.
    unsafe {
        let mut most = V::splat(f32::NEG_INFINITY);
        for g in groups {
            most = V::load(g.as_ptr()).max(most);
        }
        let most = V::load(group(tail, f32::NEG_INFINITY).as_ptr()).max(most);
        most.to_array().into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// `x *= by`.
///
/// # Safety
/// As [`Vector::splat`].
#[inline(always)]
pub(super) unsafe fn scale<V: Vector>(by: f32, x: &mut [f32]) {
    // SAFETY: the caller proves the instructions; loads and stores are of whole groups.
    unsafe {
        let by = V::splat(by);
        each_group!(V, x => x.mul(by));
    }
}

/// The sum of `x y`.
///
/// # Safety
/// As [`Vector::splat`]; both slices have one length.
#[inline(always)]
pub(super) unsafe fn dot<V: Vector>(x: &[f32], y: &[f32]) -> f32 {
    // SAFETY: the caller proves the instructions; loads are of whole groups.
    unsafe { sum_groups!(V, x, y; sum => x.mul_add(y, sum)) }
}

/// `d = p (d - dot) by`: from the gradient of a softmax's outputs `p` to that of its inputs.
///
/// # Safety
/// As [`Vector::splat`]; both slices have one length.
#[inline(always)]
pub(super) unsafe fn softmax<V: Vector>(p: &[f32], dot: f32, by: f32, d: &mut [f32]) {
    // SAFETY: the caller proves the instructions; loads and stores are of whole groups.
    unsafe {
        let (dot, by) = (V::splat(dot), V::splat(by));
        each_group!(V, d, p => p.mul(d.sub(dot)).mul(by));
    }
}

impl Kernels {
    /// Adds the gradient of a layer norm's input to `dx`; the row's mean and 1 / deviation.
    pub(crate) fn layer_norm_backward(
        self,
        x: &[f32],
        w: &[f32],
        eps: f32,
        dy: &[f32],
        dx: &mut [f32],
    ) -> (f32, f32) {
        assert!(w.len() == x.len() && dy.len() == x.len() && dx.len() == x.len());
        // SAFETY: the table's instructions are there; the lengths agree.
        unsafe { (self.table().layer_norm_backward)(x, w, eps, dy, dx) }
    }

    /// Adds a row's share to the gradients of a layer norm's weight and bias.
    pub(crate) fn layer_norm_weights(
        self,
        x: &[f32],
        dy: &[f32],
        statistics: (f32, f32),
        dw: &mut [f32],
        db: &mut [f32],
    ) {
        assert!(dy.len() == x.len() && dw.len() == x.len() && db.len() == x.len());
        // SAFETY: the table's instructions are there; the lengths agree.
        unsafe { (self.table().layer_norm_weights)(x, dy, statistics, dw, db) }
    }

    /// `out = act(x)`.
    pub(crate) fn activate(self, act: Activation, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len());
        // SAFETY: the table's instructions are there; the lengths agree.
        unsafe { (self.table().activate)(act, x, out) }
    }

    /// `d *= act'(x)`.
    pub(crate) fn activation_backward(self, act: Activation, x: &[f32], d: &mut [f32]) {
        assert_eq!(x.len(), d.len());
        // SAFETY: the table's instructions are there; the lengths agree.
        unsafe { (self.table().activation_backward)(act, x, d) }
    }

    /// `x = exp(x scale - shift)`; returns the sum.
    pub(crate) fn exp_minus(self, scale: f32, shift: f32, x: &mut [f32]) -> f32 {
        // SAFETY: the table's instructions are there.
        unsafe { (self.table().exp_minus)(scale, shift, x) }
    }

    /// The largest element, -inf of none; elements that are NaN may be passed over.
    pub(crate) fn max(self, x: &[f32]) -> f32 {
        // SAFETY: the table's instructions are there.
        unsafe { (self.table().max)(x) }
    }

    /// `x *= by`.
    pub(crate) fn scale(self, by: f32, x: &mut [f32]) {
        // SAFETY: the table's instructions are there.
        unsafe { (self.table().scale)(by, x) }
    }

    /// The sum of `x y`.
    pub(crate) fn dot(self, x: &[f32], y: &[f32]) -> f32 {
        assert_eq!(x.len(), y.len());
        // SAFETY: the table's instructions are there; the lengths agree.
        unsafe { (self.table().dot)(x, y) }
    }

    /// `d = p (d - dot) by`: from the gradient of a softmax's outputs `p` to that of its inputs.
    pub(crate) fn softmax_backward(self, p: &[f32], dot: f32, by: f32, d: &mut [f32]) {
        assert_eq!(p.len(), d.len());
        // SAFETY: the table's instructions are there; the lengths agree.
        unsafe { (self.table().softmax_backward)(p, dot, by, d) }
    }
}
