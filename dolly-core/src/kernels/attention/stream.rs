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
use crate::kernels::table::Kernels;
use crate::kernels::tile::{ROUND, Tile};
use crate::kernels::vector::{CACHE_LINE, LANES};

/// Positions whose scores are held at a time: six rows of them stay in L1.
const BLOCK: usize = 256;
/// Bytes of the cache that are asked for ahead of their use.
const AHEAD: usize = 2048;

/// Floats that [`Stream::rows`] works in.
pub(super) fn room(rows: usize, dim: usize) -> usize {
    rows * (2 * (dim + BLOCK) + dim.next_multiple_of(LANES) + 2)
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
        let total = &mut rest[..rows];
        Self { query, query_tile, scores, score_tile, out, largest, total }
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
        self.interleave(scratch.query, shape.dim, (rows, shape.dim), scratch.query_tile);
        for start in (0..last).step_by(BLOCK) {
            self.score(rows, start, BLOCK.min(last - start), scratch);
            let seen = |row: usize| BLOCK.min((positions + row).saturating_sub(start));
            for row in 0..rows {
                self.normalise(row, start, seen(row), scratch);
            }
            self.weigh(0, rows, start, 0..seen(0), scratch);
            for row in 1..rows {
                // What the first row does not see is never multiplied into it, not even by 0.
                self.weigh(row, 1, start, seen(0)..seen(row), scratch);
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
        let panel_bytes = shape.dim * LANES * shape.element();
        let together = float_panels(self.kernels, rows);
        for panel in (0..panels).step_by(together) {
            let keys = &self.head.keys[(start / LANES + panel) * panel_bytes..];
            let panels = together.min(panels - panel);
            assert!(keys.len() >= panels * panel_bytes);
            self.product(&Tile {
                rows,
                panels,
                k: shape.dim,
                x: scratch.query_tile.as_ptr(),
                w: keys.as_ptr(),
                w_stride: panel_bytes,
                ask: keys.as_ptr().wrapping_add(AHEAD),
                lines: ROUND * LANES * shape.element() / CACHE_LINE,
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

    /// Adds the values of positions `start + part`, weighed, to `rows` rows from `first` on.
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
        let (shape, width) = (self.head.shape, self.head.shape.width());
        let weights = &scratch.scores[first * BLOCK + part.start..];
        self.interleave(weights, BLOCK, (rows, part.len()), scratch.score_tile);
        let step = LANES * shape.element();
        let groups = width / LANES;
        let together = float_panels(self.kernels, rows);
        for group in (0..groups).step_by(together) {
            let panels = together.min(groups - group);
            let at = group * shape.tokens + start + part.start;
            let end = (group + panels - 1) * shape.tokens + start + part.end;
            assert!(self.head.values.len() >= end * step && part.end <= BLOCK);
            let values = self.head.values[at * step..].as_ptr();
            self.product(&Tile {
                rows,
                panels,
                k: part.len(),
                x: scratch.score_tile.as_ptr(),
                w: values,
                w_stride: shape.tokens * step,
                ask: values.wrapping_add(AHEAD),
                lines: ROUND * step / CACHE_LINE,
                fresh: false,
                acc: scratch.out[first * width + group * LANES..].as_mut_ptr(),
                acc_stride: width,
            });
        }
    }

    /// `to[i][row] = from[row * stride + i]` for `count` elements of each of `rows` rows.
    fn interleave(
        &self,
        from: &[f32],
        stride: usize,
        (rows, count): (usize, usize),
        to: &mut [f32],
    ) {
        if rows == 1 {
            return to[..count].copy_from_slice(&from[..count]);
        }
        let mut list = [&[][..]; MOST_ROWS];
        for (row, from) in list[..rows].iter_mut().zip(from.chunks(stride)) {
            *row = &from[..count];
        }
        // SAFETY: the table's instructions are there, every row has `count` floats, and `to` room for
        // all of them.
        unsafe { (self.kernels.table().interleave)(&list[..rows], &mut to[..rows * count]) }
    }

    /// A product with panels of the cache, each row and panel of which its caller has seen to exist.
    fn product(&self, tile: &Tile) {
        let table = self.kernels.table();
        let kernel = match self.head.shape.format {
            CacheFormat::F32 => table.tile_f32,
            CacheFormat::F16 => table.tile_f16,
            CacheFormat::Q8_0 => table.tile_i8,
        };
        // SAFETY: the table's instructions are there; `score` and `weigh` checked the panels, and
        // `rows` that the scratch has as many rows.
        unsafe { kernel(tile) }
    }
}
