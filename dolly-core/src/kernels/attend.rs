//! Causal attention of one query over the cached keys and values of one head.
//!
//! ```text
//! s[j] = scale * sum_d q[d] K[j][d]          lanes over d, then the lanes of each s[j]
//! e[j] = exp(s[j] - max s)
//! out[d] = (sum_j e[j] V[j][d]) / sum_j e[j] j in order; the sum of e in lanes of j mod 16
//! ```
//!
//! Everything is ordered by absolute position and dimension, so a row's bits do not depend on the
//! chunk it came in. Heads are padded with zeros to whole groups of sixteen.

use super::math::exp;
use super::vector::{LANES, Vector};

/// Operands of one query row and head; `width` is the padded head.
pub(super) struct Attend {
    /// The rotated query, `width` floats.
    pub query: *const f32,
    /// `(positions, width)`.
    pub keys: *const f32,
    /// `(positions, width)`.
    pub values: *const f32,
    /// A multiple of 16.
    pub width: usize,
    /// Positions attended to, the query's own included; at least 1.
    pub positions: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Room for `positions` floats, rounded up to a multiple of 16.
    pub scores: *mut f32,
    /// `width` floats, overwritten.
    pub out: *mut f32,
}

/// # Safety
/// As [`Vector::splat`]; the pointers are valid for what [`Attend`] says of them.
#[inline(always)]
pub(super) unsafe fn run<V: Vector>(a: &Attend) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        scores::<V>(a);
        let sum = softmax_numerators::<V>(a);
        let groups = a.width / LANES;
        let mut done = 0;
        while done < groups {
            // Even shares of at most six groups: as many chains as registers hold.
            let share = (groups - done).div_ceil((groups - done).div_ceil(6));
            match share {
                1 => weigh::<V, 1>(a, done, sum),
                2 => weigh::<V, 2>(a, done, sum),
                3 => weigh::<V, 3>(a, done, sum),
                4 => weigh::<V, 4>(a, done, sum),
                5 => weigh::<V, 5>(a, done, sum),
                _ => weigh::<V, 6>(a, done, sum),
            }
            done += share;
        }
    }
}

/// Dot products of the query with every key, four keys at a time.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn scores<V: Vector>(a: &Attend) {
    // SAFETY: keys are clamped to the last position; scores have room for whole groups.
    unsafe {
        let last = a.positions - 1;
        let mut j = 0;
        while j < a.positions {
            let mut key = [a.keys; 4];
            for i in 0..4 {
                key[i] = a.keys.add((j + i).min(last) * a.width);
            }
            let mut acc = [V::splat(0.0); 4];
            let mut d = 0;
            while d < a.width {
                let q = V::load(a.query.add(d));
                for i in 0..4 {
                    acc[i] = V::load(key[i].add(d)).mul_add(q, acc[i]);
                }
                d += LANES;
            }
            let sums = V::sums(acc);
            for i in 0..4 {
                *a.scores.add(j + i) = sums[i] * a.scale;
            }
            j += 4;
        }
        for j in a.positions..a.positions.next_multiple_of(LANES) {
            *a.scores.add(j) = f32::NEG_INFINITY;
        }
    }
}

/// Turns scores into `exp(score - max)` and returns their sum; the padding adds exactly 0.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn softmax_numerators<V: Vector>(a: &Attend) -> f32 {
    // SAFETY: whole groups of scores, for which there is room.
    unsafe {
        let padded = a.positions.next_multiple_of(LANES);
        let mut max = V::load(a.scores);
        let mut j = LANES;
        while j < padded {
            max = max.max(V::load(a.scores.add(j)));
            j += LANES;
        }
        let max = V::splat(max.to_array().into_iter().fold(f32::NEG_INFINITY, f32::max));
        let mut sum = V::splat(0.0);
        let mut j = 0;
        while j < padded {
            let e = exp(V::load(a.scores.add(j)).sub(max));
            e.store(a.scores.add(j));
            sum = sum.add(e);
            j += LANES;
        }
        sum.sum()
    }
}

/// `G` groups of output dimensions from group `first` on.
///
/// # Safety
/// As [`run`], and `first + G` groups exist.
#[inline(always)]
unsafe fn weigh<V: Vector, const G: usize>(a: &Attend, first: usize, sum: f32) {
    // SAFETY: positions and groups stay within what the caller vouches for.
    unsafe {
        let mut acc = [V::splat(0.0); G];
        for j in 0..a.positions {
            let e = V::splat(*a.scores.add(j));
            let value = a.values.add(j * a.width + first * LANES);
            for g in 0..G {
                acc[g] = e.mul_add(V::load(value.add(g * LANES)), acc[g]);
            }
        }
        let sum = V::splat(sum);
        for g in 0..G {
            acc[g].div(sum).store(a.out.add((first + g) * LANES));
        }
    }
}
