//! Softmax attention of a few consecutive query rows, streaming over the keys and values of a head.
//!
//! ```text
//! for each block of 256 positions
//!   s[j] = sum_d q[d] K[j][d]                    a product with the keys' panels
//!   m'   = max(m, max s);  c = exp(m - m')       what is summed so far is scaled down by c
//!   p[j] = exp(s[j] - m');  l = c l + sum p
//!   o[d] = c o[d] + sum_j p[j] V[j][d]           a product with the values' panels, j in order
//! out = o / l
//! ```
//!
//! (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al.,
//! "FlashAttention", 2022.) Blocks begin at multiples of 256 of the absolute position and a row
//! never reads beyond its own, so its bits do not depend on the rows it goes with or the chunk it
//! came in.

use super::cache::Head;
use crate::backend::CacheFormat;
use crate::kernels::linear::{MOST_ROWS, float_panels};
use crate::kernels::table::{Kernels, Round};
use crate::kernels::tile::{ROUND, Tile};
use crate::kernels::vector::{CACHE_LINE, LANES};

/// Positions whose scores are held at a time: six rows of them stay in L1.
const BLOCK: usize = 256;
/// Bytes of the cache that are asked for ahead of their use.
const AHEAD: usize = 2048;

/// Floats that [`Stream::rows`] works in.
pub(super) fn room(rows: usize, dim: usize) -> usize {
    let width = dim.next_multiple_of(LANES);
    rows * (2 * (dim + BLOCK) + width + 2) + rows * pairs_room(dim) + width
}

/// Pairs of a row's dimensions, or of its positions in a block.
fn pairs_room(dim: usize) -> usize {
    dim.max(BLOCK).div_ceil(2)
}

/// Memory for up to `rows` rows.
pub(super) struct Scratch<'a> {
    /// Rotated queries times the scale of the scores, `(rows, dim)`.
    pub query: &'a mut [f32],
    /// The queries as a tile reads them, `(dim, rows)`.
    query_tile: &'a mut [f32],
    /// `(rows, BLOCK)`.
    scores: &'a mut [f32],
    /// Scores as a tile reads them, `(positions, rows)`.
    score_tile: &'a mut [f32],
    /// `(rows, width)`: sums, and after [`Stream::rows`] the result.
    pub out: &'a mut [f32],
    /// The largest score of each row so far.
    largest: &'a mut [f32],
    /// The sum of each row's numerators so far.
    total: &'a mut [f32],
    /// Rows rounded to pairs of bf16.
    pairs: &'a mut [f32],
    /// The values of a pair of positions without the second: of every group sixteen words.
    edge: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    /// Divides at least [`room`] floats.
    pub(super) fn new(floats: &'a mut [f32], rows: usize, dim: usize) -> Self {
        let (query, rest) = floats.split_at_mut(rows * dim);
        let (query_tile, rest) = rest.split_at_mut(rows * dim);
        let (scores, rest) = rest.split_at_mut(rows * BLOCK);
        let (score_tile, rest) = rest.split_at_mut(rows * BLOCK);
        let (out, rest) = rest.split_at_mut(rows * dim.next_multiple_of(LANES));
        let (largest, rest) = rest.split_at_mut(rows);
        let (total, rest) = rest.split_at_mut(rows);
        let (pairs, rest) = rest.split_at_mut(rows * pairs_room(dim));
        let edge = &mut rest[..dim.next_multiple_of(LANES)];
        Self { query, query_tile, scores, score_tile, out, largest, total, pairs, edge }
    }
}

/// One head's keys and values.
pub(super) struct Stream<'a, 'b> {
    pub kernels: Kernels,
    pub head: &'a Head<'b>,
}

impl Stream<'_, '_> {
    /// Attends with `rows` rows, the first of which sees `positions` positions, each later one more.
    ///
    /// All these positions have been written to the head.
    pub(super) fn rows(&self, rows: usize, positions: usize, scratch: &mut Scratch<'_>) {
        let shape = self.head.shape;
        let last = positions + rows - 1;
        assert!(rows > 0 && last <= shape.tokens);
        assert!(scratch.query.len() >= rows * shape.dim && scratch.total.len() >= rows);
        scratch.out[..rows * shape.width()].fill(0.0);
        scratch.largest[..rows].fill(f32::NEG_INFINITY);
        scratch.total[..rows].fill(0.0);
        let (query, pairs) = (&*scratch.query, &mut *scratch.pairs);
        self.interleave(query, shape.dim, (rows, shape.dim), pairs, scratch.query_tile);
        // Rows that differ in what they see of a pair do not share it.
        let step = if shape.format == CacheFormat::Bf16 { 2 } else { 1 };
        for start in (0..last).step_by(BLOCK) {
            self.score(rows, start, BLOCK.min(last - start), scratch);
            let seen = |row: usize| BLOCK.min((positions + row).saturating_sub(start));
            for row in 0..rows {
                self.normalise(row, start, seen(row), scratch);
            }
            let shared = seen(0) - seen(0) % step;
            self.weigh(0, rows, start, 0..shared, scratch);
            for row in 0..rows {
                // What a row does not see is never multiplied into it, not even by 0.
                self.weigh(row, 1, start, shared..seen(row), scratch);
            }
        }
        for (out, total) in
            scratch.out.chunks_exact_mut(shape.width()).zip(&*scratch.total).take(rows)
        {
            out.iter_mut().for_each(|x| *x /= *total);
        }
    }

    /// Scores of `count` positions from `start` on, in whole panels.
    fn score(&self, rows: usize, start: usize, count: usize, scratch: &mut Scratch<'_>) {
        let shape = self.head.shape;
        let panels = count.div_ceil(LANES);
        let panel_bytes = shape.key_panel_bytes();
        let together = float_panels(self.kernels, rows);
        for panel in (0..panels).step_by(together) {
            let keys = &self.head.keys[(start / LANES + panel) * panel_bytes..];
            let panels = together.min(panels - panel);
            assert!(keys.len() >= panels * panel_bytes);
            self.product(&Tile {
                rows,
                panels,
                k: self.steps(shape.dim),
                x: scratch.query_tile.as_ptr(),
                w: keys.as_ptr(),
                w_stride: panel_bytes,
                ask: keys.as_ptr().wrapping_add(AHEAD),
                lines: self.lines(),
                fresh: true,
                acc: scratch.scores[panel * LANES..].as_mut_ptr(),
                acc_stride: BLOCK,
            });
        }
    }

    /// Turns a row's scores into numerators and brings its sums to their scale.
    fn normalise(&self, row: usize, start: usize, count: usize, scratch: &mut Scratch<'_>) {
        if count == 0 {
            return;
        }
        let (kernels, width) = (self.kernels, self.head.shape.width());
        let scores = &mut scratch.scores[row * BLOCK..][..count];
        self.head.scale_scores(start, scores);
        let before = scratch.largest[row];
        let largest = kernels.max(scores).max(before);
        // Scores of -inf alone weigh nothing yet; -inf less -inf would be NaN.
        let shift = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        if largest > before && start > 0 {
            let mut factor = [before];
            kernels.exp_minus(1.0, shift, &mut factor);
            scratch.total[row] *= factor[0];
            kernels.scale(factor[0], &mut scratch.out[row * width..][..width]);
        }
        scratch.largest[row] = largest;
        scratch.total[row] += kernels.exp_minus(1.0, shift, scores);
        self.head.scale_weights(start, scores);
    }

    /// Adds the values of positions `start + part`, weighed, to `rows` rows from `first` on. A part of an
    /// odd length in bf16 is of one row.
    fn weigh(
        &self,
        first: usize,
        rows: usize,
        start: usize,
        part: std::ops::Range<usize>,
        scratch: &mut Scratch<'_>,
    ) {
        if part.is_empty() {
            return;
        }
        let odd = self.round().is_some() && part.len() % 2 == 1;
        let whole = part.start..part.end - usize::from(odd);
        if !whole.is_empty() {
            let weights = &scratch.scores[first * BLOCK + whole.start..];
            let (size, pairs) = ((rows, whole.len()), &mut *scratch.pairs);
            self.interleave(weights, BLOCK, size, pairs, scratch.score_tile);
            let (shape, step) = (self.head.shape, LANES * self.head.shape.element());
            let most = (shape.width() / LANES - 1) * shape.tokens + start + whole.end;
            assert!(self.head.values.len() >= most * step && whole.end <= BLOCK);
            let values = self.head.values[(start + whole.start) * step..].as_ptr();
            let k = self.steps(whole.len());
            self.add_values(first, rows, k, (values, shape.tokens * step), scratch);
        }
        if odd {
            assert_eq!(rows, 1);
            self.weigh_first_of_pair(first, start, whole.end, scratch);
        }
    }

    /// Adds the value of position `start + at`, the first of a pair of which a row does not see the second.
    fn weigh_first_of_pair(&self, row: usize, start: usize, at: usize, scratch: &mut Scratch<'_>) {
        let Some(round) = self.round() else { return };
        let groups =
            self.head.values.as_chunks::<4>().0.chunks_exact(self.head.shape.tokens / 2 * LANES);
        for (group, edge) in groups.zip(scratch.edge.as_chunks_mut::<LANES>().0) {
            for (word, edge) in group[(start + at) / 2 * LANES..].iter().zip(edge) {
                *edge = f32::from_ne_bytes([word[0], word[1], 0, 0]);
            }
        }
        let weight = &scratch.scores[row * BLOCK + at..][..1];
        // SAFETY: the table's instructions are there; one pair for one number, with a zero behind it.
        unsafe { round(weight, &mut scratch.score_tile[..1]) };
        let edge = scratch.edge.as_ptr().cast();
        self.add_values(row, 1, 1, (edge, LANES * size_of::<f32>()), scratch);
    }

    /// Adds `k` steps of values, which begin at an address and go on from group to group after so many
    /// bytes, weighed as `score_tile` says.
    fn add_values(
        &self,
        first: usize,
        rows: usize,
        k: usize,
        (values, stride): (*const u8, usize),
        scratch: &mut Scratch<'_>,
    ) {
        let width = self.head.shape.width();
        let groups = width / LANES;
        let together = float_panels(self.kernels, rows);
        for group in (0..groups).step_by(together) {
            let values = values.wrapping_add(group * stride);
            self.product(&Tile {
                rows,
                panels: together.min(groups - group),
                k,
                x: scratch.score_tile.as_ptr(),
                w: values,
                w_stride: stride,
                ask: values.wrapping_add(AHEAD),
                lines: self.lines(),
                fresh: false,
                acc: scratch.out[first * width + group * LANES..].as_mut_ptr(),
                acc_stride: width,
            });
        }
    }

    /// How rows are rounded to pairs of bf16, where they are.
    fn round(&self) -> Option<Round> {
        let bf16 = self.head.shape.format == CacheFormat::Bf16;
        self.kernels.table().round_bf16.filter(|_| bf16)
    }

    /// Steps of a tile for `count` elements.
    fn steps(&self, count: usize) -> usize {
        if self.round().is_some() { count.div_ceil(2) } else { count }
    }

    /// Cache lines of a round of a tile.
    fn lines(&self) -> usize {
        let pair = self.steps(2);
        ROUND * LANES * self.head.shape.element() * (2 / pair) / CACHE_LINE
    }

    /// `to[i][row] = from[row * stride + i]` for `count` elements of each of `rows` rows, or for their
    /// pairs.
    fn interleave(
        &self,
        from: &[f32],
        stride: usize,
        (rows, count): (usize, usize),
        pairs: &mut [f32],
        to: &mut [f32],
    ) {
        let steps = self.steps(count);
        let (from, stride) = match self.round() {
            None => (from, stride),
            Some(round) => {
                for (row, pairs) in pairs.chunks_exact_mut(steps).take(rows).enumerate() {
                    // SAFETY: the table's instructions are there, and a row's pairs have their place.
                    unsafe { round(&from[row * stride..][..count], pairs) };
                }
                (&*pairs, steps)
            }
        };
        if rows == 1 {
            return to[..steps].copy_from_slice(&from[..steps]);
        }
        let mut list = [&[][..]; MOST_ROWS];
        for (row, from) in list[..rows].iter_mut().zip(from.chunks(stride)) {
            *row = &from[..steps];
        }
        // SAFETY: the table's instructions are there, every row has `steps` floats, and `to` room for
        // all of them.
        unsafe { (self.kernels.table().interleave)(&list[..rows], &mut to[..rows * steps]) }
    }

    /// A product with panels of the cache, each row and panel of which its caller has seen to exist.
    fn product(&self, tile: &Tile) {
        let table = self.kernels.table();
        let kernel = match self.head.shape.format {
            CacheFormat::F32 => table.tile_f32,
            CacheFormat::F16 => table.tile_f16,
            CacheFormat::Bf16 => table.tile_bf16,
            CacheFormat::Q8_0 => table.tile_i8,
        };
        // SAFETY: the table's instructions are there; `score` and `weigh` checked the panels, and
        // `rows` that the scratch has as many rows.
        unsafe { kernel(tile) }
    }
}
