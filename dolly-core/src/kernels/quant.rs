//! Blocks of 32 integers with one scale: how weights and activations are rounded, and the portable
//! product of both.
//!
//! For every row r, panel p and lane c, block by block from left to right:
//!
//! ```text
//! acc[r][p][c] = acc[r][p][c] + (d_x[r][b] * d_w[p][b][c]) * sum_k x[r][b][k] w[p][b][k][c]
//! ```
//!
//! The sum over k is of integers and exact in any order; the sum over blocks is f32 in order. Scales of
//! activations are powers of two, so the product of both scales is exact too. That costs up to a bit of
//! an activation's eight, on average half of one.

use half::f16;

use super::portable::{f16_to_f32, f32_to_f16};
use super::vector::{CACHE_LINE, LANES, Lanes, Vector, prefetch};

/// Elements along K that share a scale.
pub(crate) const QUANT_BLOCK: usize = 32;

/// Groups of four elements in a block.
pub(super) const QUADS: usize = QUANT_BLOCK / 4;

/// Largest magnitude and the value that has it; NaN never wins.
fn extreme(block: &[f32; QUANT_BLOCK]) -> (f32, f32) {
    block.iter().fold(
        (0.0, 0.0),
        |(most, value), &x| {
            if x.abs() > most { (x.abs(), x) } else { (most, value) }
        },
    )
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// One Q8_0 block as ggml rounds it (`quantize_row_q8_0_ref`): d = max|x| / 127 kept in f16, ties
/// away from zero.
pub(crate) fn quantize_q8_0(block: &[f32; QUANT_BLOCK]) -> (f16, [i8; QUANT_BLOCK]) {
    let scale = extreme(block).0 / 127.0;
    let inverse = inverse(scale);
    // Casts saturate, and make NaN 0.
    (f32_to_f16(scale), block.map(|x| (x * inverse).round() as i8))
}

/// One Q4_0 block as ggml rounds it (`quantize_row_q4_0_ref`): d = (the x of largest |x|) / -8, so
/// that one end of [-8, 7] is met exactly; stored with 8 added.
pub(crate) fn quantize_q4_0(block: &[f32; QUANT_BLOCK]) -> (f16, [u8; QUANT_BLOCK]) {
    let scale = extreme(block).1 / -8.0;
    let inverse = inverse(scale);
    (f32_to_f16(scale), block.map(|x| ((x * inverse + 8.5) as u8).min(15)))
}

/// Sum of a block's integers, in the two parts that a lane of 32 bits adds up as 16 bits each from
/// products of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub(crate) struct BlockSum {
    /// Of those whose K, divided by 4, leaves 0 or 1.
    pub first: i16,
    /// Of the others.
    pub last: i16,
}

impl BlockSum {
    /// Of integers from -127 to 127.
    pub(super) fn of(integers: &[i8; QUANT_BLOCK]) -> Self {
        integers.as_chunks::<4>().0.iter().fold(Self::default(), |sum, x| Self {
            first: sum.first + i16::from(x[0]) + i16::from(x[1]),
            last: sum.last + i16::from(x[2]) + i16::from(x[3]),
        })
    }

    /// Both parts.
    #[inline(always)]
    pub(super) fn total(self) -> i32 {
        i32::from(self.first) + i32::from(self.last)
    }
}

/// One row of activations as integers, with a scale and a sum for each block of 32: the first of
/// every `group` blocks.
pub(super) struct QuantRow<'a> {
    /// In [-127, 127]; the last block is filled up with zeros.
    pub integers: &'a mut [i8],
    /// [`scale_of`] each block.
    pub scales: &'a mut [f32],
    /// Sum of each block's integers.
    pub sums: &'a mut [BlockSum],
    /// Rows whose blocks lie side by side.
    pub group: usize,
}

/// Magnitudes between which blocks have integers: below they are zero, above they count as not finite.
/// Scales within, times any finite f16 but zero, are normal numbers.
const MAGNITUDES: std::ops::RangeInclusive<f32> = 1e-28..=1e35;

/// The scale of activations whose largest magnitude is `most`: the least power of two that is not
/// below most / 127, for its products with the scales of weights are additions of exponents then.
/// `None` for a block of zeros, whose scale is 1.
#[inline(always)]
pub(super) fn scale_of(most: f32) -> Option<f32> {
    let up = (most / 127.0).to_bits() + 0x007f_ffff;
    MAGNITUDES.contains(&most).then(|| f32::from_bits(up & 0x7f80_0000))
}

/// What the sums of a row begin with whose largest magnitude is `most`: NaN where it holds anything not
/// finite.
pub(super) fn beginning(most: f32) -> f32 {
    if most <= *MAGNITUDES.end() { 0.0 } else { f32::NAN }
}

/// Rounds a row, ties to even; returns what its sums begin with.
///
/// # Safety
/// None needed; unsafe to fit the dispatch table.
pub(super) unsafe fn quantize_row(x: &[f32], row: QuantRow<'_>) -> f32 {
    let blocks = row.integers.as_chunks_mut::<QUANT_BLOCK>().0;
    let outputs = blocks.iter_mut().zip(row.scales).zip(row.sums).step_by(row.group);
    // Magnitudes compare as integers, NaN above infinity above all numbers.
    let mut largest = 0;
    for (part, ((q, scale), sum)) in x.chunks(QUANT_BLOCK).zip(outputs) {
        *q = [0; QUANT_BLOCK];
        let most = part.iter().fold(0, |m, x| (x.to_bits() & 0x7fff_ffff).max(m));
        let found = scale_of(f32::from_bits(most));
        if let Some(scale) = found {
            let inverse = 1.0 / scale;
            for (q, x) in q.iter_mut().zip(part) {
                *q = (x * inverse).round_ties_even() as i8;
            }
        }
        (*scale, *sum) = (found.unwrap_or(1.0), BlockSum::of(q));
        largest = largest.max(most);
    }
    beginning(f32::from_bits(largest))
}

/// Operands of one integer micro-kernel call.
pub(super) struct QuantTile {
    /// Rows of activations.
    pub rows: usize,
    /// Panels of weights.
    pub panels: usize,
    /// Blocks of activations along K; whole steps of the weights.
    pub blocks: usize,
    /// [`QUADS`], unknown to the compiler: it would unroll the loop over them, merge the sums of
    /// several steps and run out of registers.
    pub quads: usize,
    /// Integers, `(blocks, group, 32)`: bytes, or the words that an [`Unpacking`] wants.
    pub x: *const i8,
    /// Scales, `(blocks, group)`.
    pub scales: *const f32,
    /// Sums of the blocks' integers, `(blocks, group)`.
    pub sums: *const BlockSum,
    /// Minus what the set adds to weights, times those sums, where it adds something: `(blocks, group)`.
    pub starts: *const i32,
    /// Rows whose blocks lie side by side: the tile's, or more.
    pub group: usize,
    /// First step of panel 0.
    pub w: *const u8,
    /// Bytes from one panel to the next.
    pub w_stride: usize,
    /// Weights of panel 0 that are asked for with the first block, of the others as far from theirs, where
    /// there are several rows: see [`Tile`](super::tile::Tile).
    pub ask: *const u8,
    /// Cache lines of a panel that are asked for with a block.
    pub lines: usize,
    /// Bytes from one block's lines to the next one's.
    pub ask_step: usize,
    /// Whether sums begin at `begin`, whatever `acc` holds.
    pub fresh: bool,
    /// What the sums of a row begin with, for each row.
    pub begin: *const f32,
    /// `(rows, panels, 16)`, read and written.
    pub acc: *mut f32,
}

/// How weights that serve many rows are taken apart first, and the tiles that read them then. A block
/// is 32 of K of one panel.
pub(super) struct Unpacking {
    /// Fewest rows that gain by it.
    pub from: usize,
    /// Most rows of a tile, of one panel.
    pub rows: usize,
    /// Bytes of a block, unpacked.
    pub block: usize,
    /// Whether tiles want the integers of `x` as words of 16 bits.
    pub words: bool,
    /// From the first of whole steps of a panel, to where its blocks go, and how many these are.
    pub unpack: unsafe fn(*const u8, *mut u8, usize),
    pub tile: unsafe fn(&QuantTile),
}

/// An instruction set's way to multiply one block of `P` panels of a format with `R` rows.
pub(super) trait Block {
    /// The set's lanes.
    type V: Vector;
    /// Bytes of a block.
    const BYTES: usize;
    /// Most rows of a tile, 4 or 8.
    const ROWS: usize;
    /// The sums of integers: exact in f32, being below 2^24.
    ///
    /// # Safety
    /// As [`Vector::splat`]; `x` is valid for one block of `R` rows, and so are the tile's sums and starts
    /// from `at` on; `w` is for `P` panels.
    unsafe fn dot<const R: usize, const P: usize>(
        t: &QuantTile,
        x: *const i8,
        at: usize,
        w: *const u8,
    ) -> [[Self::V; P]; R];
    /// The scales of a block of weights, times those of `R` rows at `x`.
    ///
    /// # Safety
    /// As [`Vector::splat`], and `x` is readable for `R` scales: powers of two as [`scale_of`] makes them.
    #[inline(always)]
    unsafe fn scales<const R: usize>(x: *const f32, w: Self::V) -> [Self::V; R] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut scales = [w; R];
            for r in 0..R {
                scales[r] = Self::V::splat(*x.add(r)).mul(w);
            }
            scales
        }
    }
}

/// An instruction set's tile of a format.
pub(super) trait Format {
    /// Most rows of a tile, 4 or 8.
    const ROWS: usize;
    /// # Safety
    /// The CPU has the set's instructions; the pointers are valid for what [`QuantTile`] says of
    /// them, with `R` rows and `P` panels.
    unsafe fn fixed<const R: usize, const P: usize>(t: &QuantTile);
}

/// Runs one tile; groupings without an instance of their own go row by row, panel by panel.
///
/// # Safety
/// As [`Format::fixed`], for any rows and panels.
#[inline(always)]
pub(super) unsafe fn run<F: Format>(t: &QuantTile) {
    for first in (0..t.rows).step_by(F::ROWS) {
        let rows = F::ROWS.min(t.rows - first);
        // SAFETY: the caller's promise, passed on for some of the rows.
        unsafe { grouped::<F>(&rows_of(t, first, rows)) }
    }
}

/// `rows` rows of a tile from row `first` on.
///
/// # Safety
/// The tile has these rows.
#[inline(always)]
unsafe fn rows_of(t: &QuantTile, first: usize, rows: usize) -> QuantTile {
    // SAFETY: the caller's promise.
    unsafe {
        QuantTile {
            rows,
            x: t.x.add(first * QUANT_BLOCK),
            scales: t.scales.add(first),
            sums: t.sums.add(first),
            starts: t.starts.wrapping_add(first),
            begin: t.begin.add(first),
            acc: t.acc.add(first * t.panels * LANES),
            ..*t
        }
    }
}

/// # Safety
/// As [`run`], with at most `F::ROWS` rows.
#[inline(always)]
unsafe fn grouped<F: Format>(t: &QuantTile) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match (t.rows, t.panels) {
            (1, 1) => F::fixed::<1, 1>(t),
            (1, 2) => F::fixed::<1, 2>(t),
            (1, 3) => F::fixed::<1, 3>(t),
            (1, 4) => F::fixed::<1, 4>(t),
            (2, 1) => F::fixed::<2, 1>(t),
            (2, 2) => F::fixed::<2, 2>(t),
            (3, 1) => F::fixed::<3, 1>(t),
            (4, 1) => F::fixed::<4, 1>(t),
            (5..=8, 1) if F::ROWS == 8 => match t.rows {
                5 => F::fixed::<5, 1>(t),
                6 => F::fixed::<6, 1>(t),
                7 => F::fixed::<7, 1>(t),
                _ => F::fixed::<8, 1>(t),
            },
            (rows, panels) => {
                for (r, p) in (0..rows).flat_map(|r| (0..panels).map(move |p| (r, p))) {
                    let (w, row) = (t.w.add(p * t.w_stride), rows_of(t, r, 1));
                    let acc = row.acc.add(p * LANES);
                    F::fixed::<1, 1>(&QuantTile { panels: 1, w, acc, ..row });
                }
            }
        }
    }
}

impl<B: Block> Format for B {
    const ROWS: usize = <B as Block>::ROWS;

    #[inline(always)]
    unsafe fn fixed<const R: usize, const P: usize>(t: &QuantTile) {
        // SAFETY: every offset stays within the rows, panels and blocks the caller vouches for.
        unsafe {
            let mut acc = load_sums::<B::V, R, P>(t);
            for b in 0..t.blocks {
                let (w, at) = (t.w.add(b * B::BYTES), b * t.group);
                if R > 1 {
                    ask_ahead::<P>(t, b);
                }
                let dots = B::dot::<R, P>(t, t.x.add(at * QUANT_BLOCK), at, w);
                for p in 0..P {
                    let w_scale = B::V::load_f16(w.add(p * t.w_stride));
                    let scales = B::scales::<R>(t.scales.add(at), w_scale);
                    for r in 0..R {
                        acc[r][p] = scales[r].mul_add(dots[r][p], acc[r][p]);
                    }
                }
            }
            store_sums::<B::V, R, P>(t, &acc);
        }
    }
}

/// Asks for what [`QuantTile`] says of block `b`.
#[inline(always)]
pub(super) fn ask_ahead<const P: usize>(t: &QuantTile, b: usize) {
    for p in 0..P {
        for line in 0..t.lines {
            prefetch(t.ask.wrapping_add(p * t.w_stride + b * t.ask_step + line * CACHE_LINE));
        }
    }
}

/// The sums that a tile goes on from.
///
/// # Safety
/// As [`Vector::splat`], and `acc` as [`QuantTile`] says.
#[inline(always)]
pub(super) unsafe fn load_sums<V: Vector, const R: usize, const P: usize>(
    t: &QuantTile,
) -> [[V; P]; R] {
    // SAFETY: `R` rows of `P` panels of 16 sums.
    unsafe {
        let mut acc = [[V::splat(0.0); P]; R];
        for r in 0..R {
            if t.fresh {
                acc[r] = [V::splat(*t.begin.add(r)); P];
                continue;
            }
            for p in 0..P {
                acc[r][p] = V::load(t.acc.add((r * P + p) * LANES));
            }
        }
        acc
    }
}

/// # Safety
/// As [`load_sums`].
#[inline(always)]
pub(super) unsafe fn store_sums<V: Vector, const R: usize, const P: usize>(
    t: &QuantTile,
    acc: &[[V; P]; R],
) {
    // SAFETY: `R` rows of `P` panels of 16 sums.
    unsafe {
        for r in 0..R {
            for p in 0..P {
                acc[r][p].store(t.acc.add((r * P + p) * LANES));
            }
        }
    }
}

/// Sum over k of one block for sixteen lanes.
type Dot = fn(&[u8], &[i8; QUANT_BLOCK], i32) -> [i32; LANES];

/// # Safety
/// The pointers are valid for what [`QuantTile`] says of them.
pub(super) unsafe fn tile_q8_0(t: &QuantTile) {
    // SAFETY: the caller's promise, passed on.
    unsafe { tile::<{ LANES * (2 + QUANT_BLOCK) }>(t, dot_q8_0) }
}

/// # Safety
/// The pointers are valid for what [`QuantTile`] says of them.
pub(super) unsafe fn tile_q4_0(t: &QuantTile) {
    // SAFETY: the caller's promise, passed on.
    unsafe { tile::<{ LANES * (2 + QUANT_BLOCK / 2) }>(t, dot_q4_0) }
}

/// # Safety
/// As [`tile_q8_0`], for blocks of `BYTES` bytes.
#[inline(always)]
unsafe fn tile<const BYTES: usize>(t: &QuantTile, dot: Dot) {
    for r in 0..t.rows {
        for p in 0..t.panels {
            // SAFETY: rows, panels and blocks stay below the numbers the caller vouches for.
            unsafe {
                let acc = &mut *sums_of(t, r, p);
                for b in 0..t.blocks {
                    let at = b * t.group + r;
                    let x = &*t.x.add(at * QUANT_BLOCK).cast::<[i8; QUANT_BLOCK]>();
                    let w = &*t.w.add(p * t.w_stride + b * BYTES).cast::<[u8; BYTES]>();
                    accumulate(
                        acc,
                        *t.scales.add(at),
                        w,
                        dot(&w[2 * LANES..], x, (*t.sums.add(at)).total()),
                    );
                }
            }
        }
    }
}

/// The sums of row `r` and panel `p`, begun.
///
/// # Safety
/// `acc` as [`QuantTile`] says; row and panel exist.
#[inline(always)]
pub(super) unsafe fn sums_of(t: &QuantTile, r: usize, p: usize) -> *mut [f32; LANES] {
    // SAFETY: the caller's promise.
    unsafe {
        let acc = t.acc.add((r * t.panels + p) * LANES).cast::<[f32; LANES]>();
        if t.fresh {
            acc.write([*t.begin.add(r); LANES]);
        }
        acc
    }
}

#[inline(always)]
fn accumulate(acc: &mut [f32; LANES], scale: f32, block: &[u8], sums: [i32; LANES]) {
    for ((acc, d), sum) in acc.iter_mut().zip(block.as_chunks::<2>().0).zip(sums) {
        *acc += scale * f16_to_f32(u16::from_ne_bytes(*d)) * sum as f32;
    }
}

#[inline(always)]
fn dot_q8_0(w: &[u8], x: &[i8; QUANT_BLOCK], _sum: i32) -> [i32; LANES] {
    let mut out = [0; LANES];
    for (w, x) in w.as_chunks::<{ 4 * LANES }>().0.iter().zip(x.as_chunks::<4>().0) {
        for (out, w) in out.iter_mut().zip(w.as_chunks::<4>().0) {
            for (w, x) in w.iter().zip(x) {
                *out += i32::from(*w as i8) * i32::from(*x);
            }
        }
    }
    out
}

/// `sum_k (q - 8) x` of a block's integers, or `sum_k q x` with 0 for the sum of x.
#[inline(always)]
pub(super) fn dot_q4_0(w: &[u8], x: &[i8; QUANT_BLOCK], sum: i32) -> [i32; LANES] {
    let mut out = [-8 * sum; LANES];
    let (low, high) = x.split_at(QUANT_BLOCK / 2);
    let x = low.as_chunks::<4>().0.iter().zip(high.as_chunks::<4>().0);
    for (w, (low, high)) in w.as_chunks::<{ 4 * LANES }>().0.iter().zip(x) {
        for (out, w) in out.iter_mut().zip(w.as_chunks::<4>().0) {
            for ((w, low), high) in w.iter().zip(low).zip(high) {
                *out +=
                    i32::from(*w & 15) * i32::from(*low) + i32::from(*w >> 4) * i32::from(*high);
            }
        }
    }
    out
}
