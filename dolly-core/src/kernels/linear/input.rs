//! The rows of a linear layer's input as the micro-kernels read them.
//!
//! Rows are split evenly into groups of at most a tile's; within a group K runs outermost, so that a
//! tile reads its rows from front to back, whatever the layer's width: `(K, rows)` floats,
//! `(K / 2, rows)` pairs of bf16, or for integers `(blocks of K, rows, 32)` with a scale and a sum for
//! each.

use std::slice::from_raw_parts_mut;

use super::resize;
use crate::error::Result;
use crate::kernels::Kernels;
use crate::kernels::pool::{Pool, Shared};
use crate::kernels::quant::{BlockSum, QUANT_BLOCK};
use crate::kernels::table::Round;

/// Below this many floats a second thread costs more than it saves.
const PARALLEL_FROM: usize = 1 << 15;

/// A call's input rearranged: reused between calls, grown when needed.
#[derive(Default)]
pub(crate) struct InputScratch {
    pub(super) floats: Vec<f32>,
    /// Rows of pairs of bf16.
    pub(super) pairs: Vec<f32>,
    pub(super) integers: Vec<i8>,
    /// The same as words, where tiles want them.
    pub(super) words: Vec<i16>,
    pub(super) scales: Vec<f32>,
    pub(super) sums: Vec<BlockSum>,
    /// What sums of products begin with, where tiles want it.
    pub(super) starts: Vec<i32>,
    /// What the sums of a row begin with.
    pub(super) begins: Vec<f32>,
}

impl InputScratch {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        let floats = self.floats.capacity() + self.pairs.capacity() + self.scales.capacity();
        let floats = floats + self.begins.capacity();
        let words = floats + self.sums.capacity() + self.starts.capacity();
        (self.integers.capacity() + 2 * self.words.capacity() + 4 * words) as u64
    }

    /// Room for `rows` rows of `blocks` blocks of integers.
    fn resize_integers(
        &mut self,
        rows: usize,
        blocks: usize,
        words: bool,
        starts: bool,
    ) -> Result<()> {
        let what = "integer activations";
        let all = rows.saturating_mul(blocks);
        resize(&mut self.integers, all.saturating_mul(QUANT_BLOCK), what)?;
        resize(&mut self.words, if words { self.integers.len() } else { 0 }, what)?;
        resize(&mut self.scales, all, what)?;
        resize(&mut self.sums, all, what)?;
        resize(&mut self.starts, if starts { all } else { 0 }, what)?;
        resize(&mut self.begins, rows, what)
    }
}

/// `rows` rows in as few groups of at most `most` as possible, of nearly even size.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Groups {
    pub rows: usize,
    pub count: usize,
}

impl Groups {
    pub(in crate::kernels) fn new(rows: usize, most: usize) -> Self {
        Self { rows, count: rows.div_ceil(most) }
    }

    /// First row and number of rows of a group, which is below the count.
    pub(in crate::kernels) fn get(self, index: usize) -> (usize, usize) {
        let (size, larger) = (self.rows / self.count, self.rows % self.count);
        (index * size + index.min(larger), size + usize::from(index < larger))
    }
}

/// Rows of `inputs` floats, to be rearranged.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub kernels: Kernels,
    pub pool: &'a Pool,
    pub x: &'a [f32],
    pub inputs: usize,
    pub groups: Groups,
}

impl Input<'_> {
    /// The rows of a group, one after the other.
    fn rows(&self, group: usize) -> (usize, std::slice::ChunksExact<'_, f32>) {
        let (first, size) = self.groups.get(group);
        let rows = &self.x[first * self.inputs..(first + size) * self.inputs];
        (first, rows.chunks_exact(self.inputs.max(1)))
    }

    /// Rearranges floats, or the pairs of bf16 that they are rounded to.
    pub(super) fn floats(&self, round: Option<Round>, out: &mut InputScratch) -> Result<()> {
        let Some(round) = round else { return self.interleave(&mut out.floats) };
        let cells = self.inputs.div_ceil(2);
        self.round(round, cells, &mut out.pairs)?;
        Input { x: &out.pairs, inputs: cells, ..*self }.interleave(&mut out.floats)
    }

    /// Rounds rows to `cells` pairs each.
    fn round(&self, round: Round, cells: usize, out: &mut Vec<f32>) -> Result<()> {
        resize(out, self.groups.rows.saturating_mul(cells), "activations in bf16")?;
        let out = Shared::new(out);
        self.pool.run(self.groups.rows, self.x.len() >= PARALLEL_FROM, |_, range| {
            for row in range {
                // SAFETY: row `row` is inside `out` and in this range only; the table's instructions
                // are there.
                unsafe {
                    let to = from_raw_parts_mut(out.get().add(row * cells), cells);
                    round(&self.x[row * self.inputs..(row + 1) * self.inputs], to);
                }
            }
        });
        Ok(())
    }

    /// Puts rows of a group side by side. A lone row needs none of it and is read where it is.
    fn interleave(&self, out: &mut Vec<f32>) -> Result<()> {
        if self.groups.rows == 1 {
            return Ok(());
        }
        resize(out, self.x.len(), "activations, interleaved")?;
        let out = Shared::new(out);
        self.pool.run(self.groups.count, self.x.len() >= PARALLEL_FROM, |_, range| {
            for group in range {
                let (first, rows) = self.rows(group);
                let mut list = [&[][..]; MOST_ROWS];
                let count = rows.len();
                list.iter_mut().zip(rows).for_each(|(to, row)| *to = row);
                // SAFETY: a group's rows are in `out` at the place they have in `x`, and in this range
                // only; the table's instructions are there, and `list` holds rows of equal length.
                unsafe {
                    let at = out.get().add(first * self.inputs);
                    let to = from_raw_parts_mut(at, count * self.inputs);
                    if count > 0 {
                        (self.kernels.table().interleave)(&list[..count], to);
                    }
                }
            }
        });
        Ok(())
    }

    /// Rounds every block of 32 to integers, bytes or `words`, for tiles that add `offset` to weights.
    pub(super) fn quantize(&self, out: &mut InputScratch, words: bool, offset: i32) -> Result<()> {
        let blocks = self.inputs.div_ceil(QUANT_BLOCK);
        out.resize_integers(self.groups.rows, blocks, words, offset != 0)?;
        let out = Places {
            integers: Shared::new(&mut out.integers),
            words: words.then(|| Shared::new(&mut out.words)),
            scales: Shared::new(&mut out.scales),
            sums: Shared::new(&mut out.sums),
            starts: (offset != 0).then(|| Shared::new(&mut out.starts)),
            begins: Shared::new(&mut out.begins),
        };
        self.pool.run(self.groups.count, self.x.len() >= PARALLEL_FROM, |_, range| {
            range.for_each(|group| self.quantize_group(group, blocks, offset, &out));
        });
        Ok(())
    }

    /// Rounds the rows of a group, which no other thread has.
    fn quantize_group(&self, group: usize, blocks: usize, offset: i32, out: &Places) {
        let (first, rows) = self.rows(group);
        let (at, count) = (first * blocks, rows.len());
        let places = count * blocks;
        // SAFETY: the blocks of the group's rows are inside each buffer (`resize_integers`), and only
        // this call has them.
        let (integers, scales, sums, begins) = unsafe {
            (
                from_raw_parts_mut(out.integers.get().add(at * QUANT_BLOCK), places * QUANT_BLOCK),
                from_raw_parts_mut(out.scales.get().add(at), places),
                from_raw_parts_mut(out.sums.get().add(at), places),
                from_raw_parts_mut(out.begins.get().add(first), count),
            )
        };
        for ((r, row), begin) in rows.enumerate().zip(begins) {
            let integers = &mut integers[r * QUANT_BLOCK..];
            let (scales, sums) = (&mut scales[r..], &mut sums[r..]);
            *begin = self.kernels.quantize_row(row, integers, scales, sums, count);
        }
        if let Some(starts) = &out.starts {
            // SAFETY: as many starts as sums, in the same places.
            let starts = unsafe { from_raw_parts_mut(starts.get().add(at), sums.len()) };
            starts.iter_mut().zip(&*sums).for_each(|(to, sum)| *to = -offset * sum.total());
        }
        if let Some(words) = &out.words {
            // SAFETY: as many words as integers, in the same places.
            let words =
                unsafe { from_raw_parts_mut(words.get().add(at * QUANT_BLOCK), integers.len()) };
            words.iter_mut().zip(integers).for_each(|(to, x)| *to = i16::from(*x));
        }
    }
}

/// Where the threads of a call write integers.
struct Places {
    integers: Shared<i8>,
    words: Option<Shared<i16>>,
    scales: Shared<f32>,
    sums: Shared<BlockSum>,
    starts: Option<Shared<i32>>,
    begins: Shared<f32>,
}

/// No tile has more rows.
pub(in crate::kernels) const MOST_ROWS: usize = 16;
