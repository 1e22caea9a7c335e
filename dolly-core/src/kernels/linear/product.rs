//! The loops of a product around the micro-kernels.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::input::{Groups, InputScratch};
use super::{Epilogue, Matrix, ROW_CHUNK, UNIT};
use crate::kernels::Kernels;
use crate::kernels::pack::Layout;
use crate::kernels::pool::Shared;
use crate::kernels::quant::{QUADS, QUANT_BLOCK, QuantTile, Unpacking};
use crate::kernels::rows::Sums;
use crate::kernels::tile::{ROUND, Tile};
use crate::kernels::vector::{CACHE_LINE, LANES};

/// Bytes of f32 weights, of all panels of a tile, that serve the tiles of a chunk together; of integers
/// five eighths as many.
const SLICE: usize = 16 << 10;
/// Bytes of weights that a lone group of rows asks for ahead of their use, at least.
const AHEAD: usize = 2048;

/// What the tiles of a slice ask for while they compute: the next slice, in shares. Memory works all the
/// time that they compute, and no tile asks for more at once than the CPU keeps in flight.
struct Asking {
    /// First line of the share.
    ask: *const u8,
    /// Lines of one turn of the tile's loop.
    lines: usize,
}

impl Asking {
    /// The share of group `index` of `groups`: of `bytes` at `next`, in `turns` turns.
    fn share(next: *const u8, bytes: usize, turns: usize, index: usize, groups: usize) -> Self {
        let all = bytes.div_ceil(CACHE_LINE);
        let lines = all.div_ceil((groups * turns).max(1));
        let first = index * turns * lines;
        let ask = next.wrapping_add(first * CACHE_LINE);
        Self { ask, lines: if first < all { lines } else { 0 } }
    }
}

/// As few parts of `length` as possible, each of at most `most`: what the longest has.
fn evenly(length: usize, most: usize) -> usize {
    length.div_ceil(length.div_ceil(most.max(1)).max(1)).max(1)
}

/// The places of a unit in the order they are computed, by steps along K and among panels, each with the
/// one that follows it; the first of the next unit's panels, as if it were this one's, at the end.
fn places(
    length: usize,
    step: usize,
    count: usize,
    together: usize,
) -> impl Iterator<Item = ((usize, usize), (usize, usize))> {
    let mut here = (0, 0);
    std::iter::from_fn(move || {
        let (k, p) = here;
        here = if p + together < count { (k, p + together) } else { (k + step.max(1), 0) };
        let next = if here.0 < length { here } else { (0, count) };
        (k < length).then_some(((k, p), next))
    })
}

/// An unpacked slice, on the boundary of a cache line: vectors do not cross two.
#[repr(align(64))]
struct Lines(#[expect(dead_code, reason = "written through a pointer")] [u8; SLICE]);

/// From 16-bit weights to floats, and how many steps.
type Widen = unsafe fn(*const u8, *mut f32, usize);
type FloatTile = unsafe fn(&Tile);

/// Room for the sums of one unit and chunk; one row's worth of it is touched for one row.
pub(super) type Room = [MaybeUninit<f32>; UNIT * ROW_CHUNK * LANES];

/// What a thread needs of one call.
pub(super) struct Call<'a> {
    pub kernels: Kernels,
    pub matrix: &'a Matrix,
    /// Rows in the order of the input, interleaved where there are several: floats, or pairs of bf16.
    pub floats: &'a [f32],
    pub pairs: bool,
    pub integers: &'a InputScratch,
    pub groups: Groups,
    /// How integer weights are taken apart for several groups.
    pub unpacking: Option<&'static Unpacking>,
    pub bias: Option<&'a [f32]>,
    pub epilogue: Epilogue,
    pub out: Shared<f32>,
    /// Panels of a tile.
    pub together: usize,
}

/// Some groups of rows: their numbers, first row and rows.
struct Chunk {
    groups: Range<usize>,
    first: usize,
    rows: usize,
}

impl Call<'_> {
    /// The rows of some groups, at most `ROW_CHUNK`, of `count` panels from panel `first` on.
    pub(super) fn chunk(&self, first: usize, count: usize, groups: Range<usize>, room: &mut Room) {
        let (last, size) = self.groups.get(groups.end - 1);
        let row = self.groups.get(groups.start).0;
        let chunk = Chunk { groups, first: row, rows: last + size - row };
        let acc = &mut room[..chunk.rows * count * LANES];
        if self.matrix.inputs == 0 {
            // No tile begins these sums.
            acc.fill(MaybeUninit::new(0.0));
        }
        let to = acc.as_mut_ptr().cast();
        if let Some(unpacking) = self.unpacking {
            self.unpacked_rows(unpacking, first, count, &chunk, to);
        } else if self.matrix.layout.quantized() {
            self.integer_rows(first, count, &chunk, to);
        } else {
            self.float_rows(first, count, &chunk, to);
        }
        // SAFETY: the first slice of every panel and group wrote its sums, or the fill above did.
        let acc = unsafe { acc.assume_init_ref() };
        self.finish(first, count, &chunk, acc);
    }

    /// Bytes of weights that serve all tiles of a chunk before the next are read, if not all at once.
    /// They should stay in the first cache, beside the next.
    fn slice(groups: usize) -> Option<usize> {
        match groups {
            0 | 1 => None,
            2 | 3 => Some(SLICE / 2),
            _ => Some(SLICE),
        }
    }

    /// Elements of a row, and the bytes of a panel that each meets.
    fn elements(&self) -> (usize, usize) {
        let (inputs, layout) = (self.matrix.inputs, self.matrix.layout);
        match self.pairs {
            true => (inputs.div_ceil(2), layout.step_bytes()),
            false => (inputs, layout.step_bytes() / layout.step_columns()),
        }
    }

    fn float_rows(&self, first: usize, count: usize, chunk: &Chunk, acc: *mut f32) {
        let ((inputs, step_bytes), together) = (self.elements(), self.together);
        let (widen, kernel) = self.float_tile(chunk);
        let mut wide = MaybeUninit::<[f32; SLICE / 4]>::uninit();
        let (groups, slice) = (chunk.groups.len(), Self::slice(chunk.groups.len()));
        let most = slice.map_or(inputs.max(1), |bytes| bytes / (4 * LANES * together));
        let panel_bytes = self.matrix.panel_bytes();
        let panel = self.matrix.panels.bytes()[first * panel_bytes..].as_ptr();
        let stored = |k: usize, p: usize| panel.wrapping_add(p * panel_bytes + k * step_bytes);
        for ((k, p), (next_k, next_p)) in places(inputs, most, count, together) {
            let (steps, panels) = (most.min(inputs - k), together.min(count - p));
            let here = stored(k, p);
            let next = slice.map_or(here.wrapping_add(AHEAD), |_| stored(next_k, next_p));
            let (mut w, mut w_stride) = (here, panel_bytes);
            if let Some(widen) = widen {
                let to = wide.as_mut_ptr().cast::<f32>();
                for p in 0..panels {
                    // SAFETY: step `k + steps` is within the panel; `wide` holds the slices of a tile's
                    // panels.
                    unsafe { widen(here.add(p * panel_bytes), to.add(p * steps * LANES), steps) };
                }
                (w, w_stride) = (to.cast_const().cast(), 4 * LANES * steps);
            }
            for (index, group) in chunk.groups.clone().enumerate() {
                let (row, rows) = self.groups.get(group);
                let turns = steps.div_ceil(ROUND);
                let asking = Asking::share(next, steps * step_bytes, turns, index, groups);
                let sums = p * chunk.rows + (row - chunk.first) * panels;
                // SAFETY: `w` has `steps` steps of the panels; rows and panels of each tile exist
                // (`linear` checked the lengths), `acc` holds count * rows * 16.
                unsafe {
                    kernel(&Tile {
                        rows,
                        panels,
                        k: steps,
                        x: self.floats.as_ptr().add(row * inputs + k * rows),
                        w,
                        w_stride,
                        ask: asking.ask,
                        lines: asking.lines,
                        fresh: k == 0,
                        acc: acc.add(sums * LANES),
                        acc_stride: panels * LANES,
                    });
                }
            }
        }
    }

    /// How 16-bit weights that serve many rows are widened, once and not once a tile, to the same
    /// values; and the tile.
    fn float_tile(&self, chunk: &Chunk) -> (Option<Widen>, FloatTile) {
        let table = self.kernels.table();
        let many = chunk.groups.len() > 2 && !self.pairs;
        match self.matrix.layout {
            Layout::F16 if many => (Some(table.widen_f16), table.tile_f32),
            Layout::Bf16 if many => (Some(table.widen_bf16), table.tile_f32),
            Layout::F16 => (None, table.tile_f16),
            Layout::Bf16 => (None, table.tile_bf16),
            _ => (None, table.tile_f32),
        }
    }

    fn integer_rows(&self, first: usize, count: usize, chunk: &Chunk, acc: *mut f32) {
        let (table, layout) = (self.kernels.table(), self.matrix.layout);
        let blocks = self.matrix.inputs.div_ceil(QUANT_BLOCK);
        let kernel = match layout {
            Layout::Q4_0 => table.tile_q4_0,
            Layout::Q4K => table.tile_q4_k,
            Layout::Q6K => table.tile_q6_k,
            _ => table.tile_q8_0,
        };
        // Slices are whole steps.
        let step_blocks = layout.step_columns() / QUANT_BLOCK;
        let (groups, slice) = (chunk.groups.len(), Self::slice(chunk.groups.len()));
        let most = slice.map_or(blocks.max(1), |bytes| {
            let steps = bytes * 5 / 8 / (layout.step_bytes() * self.together);
            evenly(blocks.div_ceil(step_blocks), steps) * step_blocks
        });
        let block_bytes = layout.step_bytes() / step_blocks;
        let (panel_bytes, together) = (self.matrix.panel_bytes(), self.together);
        let panel = self.matrix.panels.bytes()[first * panel_bytes..].as_ptr();
        let stored = |b: usize, p: usize| panel.wrapping_add(p * panel_bytes + b * block_bytes);
        for ((b, p), (next_b, next_p)) in places(blocks, most, count, together) {
            let (here, panels) = (stored(b, p), together.min(count - p));
            let blocks_here = most.min(blocks - b);
            let next = slice.map_or(here.wrapping_add(AHEAD), |_| stored(next_b, next_p));
            for (index, group) in chunk.groups.clone().enumerate() {
                let (row, rows) = self.groups.get(group);
                let at = row * blocks + b * rows;
                let sums = p * chunk.rows + (row - chunk.first) * panels;
                let bytes = blocks_here * block_bytes;
                let asking = Asking::share(next, bytes, blocks_here, index, groups);
                // SAFETY: block `b + blocks_here` is within panel and row; `quantize` filled all rows;
                // `acc` holds count * rows * 16.
                unsafe {
                    kernel(&QuantTile {
                        rows,
                        panels,
                        blocks: blocks_here,
                        quads: std::hint::black_box(QUADS),
                        x: self.integers.integers.as_ptr().add(at * QUANT_BLOCK),
                        scales: self.integers.scales.as_ptr().add(at),
                        sums: self.integers.sums.as_ptr().add(at),
                        starts: self.integers.starts.as_ptr().wrapping_add(at),
                        group: rows,
                        w: here,
                        w_stride: panel_bytes,
                        ask: asking.ask,
                        lines: asking.lines,
                        ask_step: if groups == 1 { block_bytes } else { asking.lines * CACHE_LINE },
                        fresh: b == 0,
                        begin: self.integers.begins.as_ptr().add(row),
                        acc: acc.add(sums * LANES),
                    });
                }
            }
        }
    }

    /// As [`integer_rows`](Self::integer_rows), with each slice of a panel unpacked once.
    fn unpacked_rows(
        &self,
        unpacking: &Unpacking,
        first: usize,
        count: usize,
        chunk: &Chunk,
        acc: *mut f32,
    ) {
        let layout = self.matrix.layout;
        let blocks = self.matrix.inputs.div_ceil(QUANT_BLOCK);
        // Slices are whole steps.
        let step_blocks = layout.step_columns() / QUANT_BLOCK;
        let most = SLICE / (unpacking.block * step_blocks) * step_blocks;
        let panel_bytes = self.matrix.panel_bytes();
        let panel = self.matrix.panels.bytes()[first * panel_bytes..].as_ptr();
        let block_bytes = layout.step_bytes() / step_blocks;
        let stored = |b: usize, p: usize| panel.wrapping_add(p * panel_bytes + b * block_bytes);
        let mut wide = MaybeUninit::<Lines>::uninit();
        for ((b, p), (next_b, next_p)) in places(blocks, most, count, 1) {
            let slice = most.min(blocks - b);
            let w = wide.as_mut_ptr().cast::<u8>();
            // SAFETY: the panel has `slice` blocks from `b` on, whole steps, and `wide` has room for
            // them unpacked.
            unsafe { (unpacking.unpack)(stored(b, p), w, slice) };
            for (index, group) in chunk.groups.clone().enumerate() {
                let (row, rows) = self.groups.get(group);
                let at = row * blocks + b * rows;
                let x = match unpacking.words {
                    true => self.integers.words[at * QUANT_BLOCK..].as_ptr().cast(),
                    false => self.integers.integers[at * QUANT_BLOCK..].as_ptr(),
                };
                let (next, bytes) = (stored(next_b, next_p), slice * block_bytes);
                let asking = Asking::share(next, bytes, slice, index, chunk.groups.len());
                let sums = p * chunk.rows + row - chunk.first;
                // SAFETY: `quantize` filled all rows, in words where they are wanted; `acc` holds
                // count * rows * 16, and no group has more rows than the tile.
                unsafe {
                    (unpacking.tile)(&QuantTile {
                        rows,
                        panels: 1,
                        blocks: slice,
                        quads: std::hint::black_box(QUADS),
                        x,
                        scales: self.integers.scales.as_ptr().add(at),
                        sums: self.integers.sums.as_ptr().add(at),
                        starts: self.integers.starts.as_ptr().wrapping_add(at),
                        group: rows,
                        w,
                        w_stride: 0,
                        ask: asking.ask,
                        lines: asking.lines,
                        ask_step: asking.lines * CACHE_LINE,
                        fresh: b == 0,
                        begin: self.integers.begins.as_ptr().add(row),
                        acc: acc.add(sums * LANES),
                    });
                }
            }
        }
    }

    /// Adds the bias, applies the epilogue, and writes the columns that exist.
    fn finish(&self, first: usize, count: usize, chunk: &Chunk, acc: &[f32]) {
        let (outputs, rows) = (self.matrix.outputs, chunk.rows);
        let (start, end) = (first * LANES, outputs.min((first + count) * LANES));
        let mut bias = [0.0; UNIT * LANES];
        if let Some(all) = self.bias {
            bias[..end - start].copy_from_slice(&all[start..end]);
        }
        // SAFETY: rows and columns are inside `out` (`linear` checked its length), and no other thread
        // has these rows of these panels; the sums are `rows` of `count` panels, and the table's
        // instructions are there.
        unsafe {
            (self.kernels.table().finish)(&Sums {
                acc,
                rows,
                together: self.together,
                bias: bias.as_chunks().0,
                epilogue: self.epilogue,
                out: self.out.get().add(chunk.first * outputs + start),
                columns: end - start,
                stride: outputs,
            });
        }
    }
}
