//! Causal attention of a query over the cached keys and values of one head.
//!
//! ```text
//! s[j] = scale * sum_d q[d] K[j][d]          lanes over d, then the lanes of each s[j]
//! e[j] = exp(s[j] - max s)
//! out[d] = (sum_j e[j] V[j][d]) / sum_j e[j] j in order; the sum of e in lanes of j mod 16
//! ```
//!
//! Everything is ordered by absolute position and dimension, so a row's bits do not depend on the
//! chunk it came in. Heads are padded with zeros to whole groups of sixteen. Two consecutive rows
//! may go together: they share the loads of keys and values, not their sums.

use super::math::exp;
use super::vector::{LANES, Vector};

/// Most rows of one [`Attend`].
pub(super) const ROWS: usize = 2;

/// Operands of one or two consecutive query rows of one head.
pub(super) struct Attend {
    /// The rotated queries, `(rows, width)`.
    pub query: *const f32,
    /// 1 to [`ROWS`].
    pub rows: usize,
    /// `(positions + rows - 1, width)`.
    pub keys: *const f32,
    /// `(positions + rows - 1, width)`.
    pub values: *const f32,
    /// The padded head, a multiple of 16.
    pub width: usize,
    /// Positions that row 0 attends to, its own included, at least 1; each later row one more.
    pub positions: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Room for `(rows, stride)` floats.
    pub scores: *mut f32,
    /// At least the positions of the last row, rounded up to a multiple of 16.
    pub stride: usize,
    /// `(rows, width)`, overwritten.
    pub out: *mut f32,
}

/// # Safety
/// As [`Vector::splat`]; the pointers are valid for what [`Attend`] says of them.
#[inline(always)]
pub(super) unsafe fn run<V: Vector>(a: &Attend) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match a.rows {
            1 => rows::<V, 1, 4>(a),
            _ => rows::<V, 2, 2>(a),
        }
    }
}

/// `R` rows, with `R * K = 4` sums of scores in flight.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn rows<V: Vector, const R: usize, const K: usize>(a: &Attend) {
    // SAFETY: the caller's promise, passed on; the groups of each share exist.
    unsafe {
        scores::<V, R, K>(a);
        let mut sums = [0.0; R];
        for r in 0..R {
            sums[r] = numerators::<V>(a.scores.add(r * a.stride), a.positions + r);
        }
        let groups = a.width / LANES;
        let mut done = 0;
        while done < groups {
            // Even shares of at most six groups over all rows: as many chains as registers hold.
            let share = (groups - done).div_ceil((groups - done).div_ceil(6 / R));
            match share {
                1 => weigh::<V, R, 1>(a, done, &sums),
                2 => weigh::<V, R, 2>(a, done, &sums),
                3 => weigh::<V, R, 3>(a, done, &sums),
                4 => weigh::<V, R, 4>(a, done, &sums),
                5 => weigh::<V, R, 5>(a, done, &sums),
                _ => weigh::<V, R, 6>(a, done, &sums),
            }
            done += share;
        }
    }
}

/// Dot products of the queries with every key, `K` keys at a time.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn scores<V: Vector, const R: usize, const K: usize>(a: &Attend) {
    const { assert!(R * K == 4) };
    // SAFETY: keys are clamped to the last position; scores have room for whole groups.
    unsafe {
        let all = a.positions + R - 1;
        let mut j = 0;
        while j < all {
            let mut key = [a.keys; K];
            for i in 0..K {
                key[i] = a.keys.add((j + i).min(all - 1) * a.width);
            }
            let mut acc = [V::splat(0.0); 4];
            let mut d = 0;
            while d < a.width {
                let mut k = [acc[0]; K];
                for i in 0..K {
                    k[i] = V::load(key[i].add(d));
                }
                for r in 0..R {
                    let q = V::load(a.query.add(r * a.width + d));
                    for i in 0..K {
                        acc[r * K + i] = k[i].mul_add(q, acc[r * K + i]);
                    }
                }
                d += LANES;
            }
            let sums = V::sums(acc);
            for r in 0..R {
                for i in 0..K {
                    *a.scores.add(r * a.stride + j + i) = sums[r * K + i] * a.scale;
                }
            }
            j += K;
        }
    }
}

/// Turns scores into `exp(score - max)` and returns their sum; the padding adds exactly 0.
///
/// # Safety
/// As [`Vector::splat`]; `scores` has room for `positions` rounded up to a multiple of 16.
#[inline(always)]
unsafe fn numerators<V: Vector>(scores: *mut f32, positions: usize) -> f32 {
    // SAFETY: whole groups of scores, for which there is room.
    unsafe {
        let padded = positions.next_multiple_of(LANES);
        for j in positions..padded {
            *scores.add(j) = f32::NEG_INFINITY;
        }
        let mut max = V::load(scores);
        let mut j = LANES;
        while j < padded {
            max = max.max(V::load(scores.add(j)));
            j += LANES;
        }
        let max = V::splat(max.to_array().into_iter().fold(f32::NEG_INFINITY, f32::max));
        let mut sum = V::splat(0.0);
        let mut j = 0;
        while j < padded {
            let e = exp(V::load(scores.add(j)).sub(max));
            e.store(scores.add(j));
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
unsafe fn weigh<V: Vector, const R: usize, const G: usize>(
    a: &Attend,
    first: usize,
    sums: &[f32; R],
) {
    // SAFETY: positions and groups stay within what the caller vouches for.
    unsafe {
        let mut acc = [[V::splat(0.0); G]; R];
        for j in 0..a.positions {
            let value = a.values.add(j * a.width + first * LANES);
            let mut v = [acc[0][0]; G];
            for g in 0..G {
                v[g] = V::load(value.add(g * LANES));
            }
            for r in 0..R {
                let e = V::splat(*a.scores.add(r * a.stride + j));
                for g in 0..G {
                    acc[r][g] = e.mul_add(v[g], acc[r][g]);
                }
            }
        }
        for r in 0..R {
            // What later rows see beyond the first: never multiplied into an earlier row by 0.
            for j in a.positions..a.positions + r {
                let e = V::splat(*a.scores.add(r * a.stride + j));
                for g in 0..G {
                    let v = V::load(a.values.add(j * a.width + (first + g) * LANES));
                    acc[r][g] = e.mul_add(v, acc[r][g]);
                }
            }
            let sum = V::splat(sums[r]);
            for g in 0..G {
                acc[r][g].div(sum).store(a.out.add(r * a.width + (first + g) * LANES));
            }
        }
    }
}
