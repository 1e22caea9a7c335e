//! Products of two matrices in memory, for training: weights change every step, so both sides are
//! packed on the fly (Goto and van de Geijn, 2008).
//!
//! ```text
//! for each tile of C (a thread's task)
//!   for each slice of K                    B's slice packed in panels of 16 columns (L3)
//!     for each block of 192 rows           A's block packed in panels of 6 rows (L2)
//!       for each panel of B, or two        16 KiB, stays in L1
//!         for each panel of A              micro-kernel: 6 x 16 sums in registers, or 6 x 32
//! ```
//!
//! Every element of C is summed along each slice of K from left to right, and the slices' sums are
//! added in order, whatever the tiles. So results do not depend on threads.

use super::linear::resize;
use super::pool::{Pool, Shared};
use super::table::Kernels;
use super::vector::{LANES, Vector, prefetch};
use crate::error::Result;
use packing::{pack, panel_floats};

pub(super) mod packing;

/// Rows of A's panels and of the micro-kernel's tile.
pub(super) const ROWS: usize = 6;
/// Most columns of the micro-kernel's tile.
const WIDTH: usize = 2 * LANES;
/// Steps of K that are packed at a time.
const K_SLICE: usize = 256;
/// Rows of A that are packed at a time: 192 KiB.
const A_BLOCK: usize = 192;
/// Most columns of a tile of C: 2 MiB of packed B.
const TILE_COLUMNS: usize = 2048;
/// Fewest rows of a tile that is made to keep threads busy: packing B costs as much as this many
/// rows' share of a few hundredths.
const TILE_ROWS: usize = 384;
/// Floats of A's panel that are asked for ahead of the tile's loop: about 200 cycles.
const AHEAD: usize = 32 * ROWS;
/// Steps of the tile's loop that are written out.
const UNROLLED: usize = 4;
/// Below this many multiplications a second thread costs more than it saves.
const PARALLEL_FROM: usize = 1 << 15;

/// A matrix as it lies in memory.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    data: &'a [f32],
    stride: usize,
    transposed: bool,
}

impl<'a> Operand<'a> {
    /// Element `(i, j)` is `data[i * stride + j]`.
    pub(crate) fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, stride, transposed: false }
    }

    /// Element `(i, j)` is `data[j * stride + i]`.
    pub(crate) fn transposed(data: &'a [f32], stride: usize) -> Self {
        Self { data, stride, transposed: true }
    }

    /// # Panics
    /// When `(rows, columns)` reaches beyond the data: a defect of the caller.
    fn check(&self, rows: usize, columns: usize) {
        let (outer, inner) = if self.transposed { (columns, rows) } else { (rows, columns) };
        if outer > 0 && inner > 0 {
            let end = (outer - 1).checked_mul(self.stride).and_then(|n| n.checked_add(inner));
            assert!(inner <= self.stride && end.is_some_and(|end| end <= self.data.len()));
        }
    }
}

/// Where a product goes.
pub(crate) struct Target<'a> {
    /// Element `(i, j)` is `data[i * stride + j]`.
    pub data: &'a mut [f32],
    /// Floats from one row to the next.
    pub stride: usize,
    /// Add to what is there instead of overwriting it.
    pub accumulate: bool,
}

/// Packed parts of the operands, one pair a thread; reused between calls.
#[derive(Default)]
pub(crate) struct MatmulScratch {
    packed: Vec<f32>,
}

impl MatmulScratch {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        4 * self.packed.capacity() as u64
    }
}

/// Most floats that a thread packs for products of at most so many columns and so large an inner
/// side.
pub(crate) fn scratch_floats(columns: usize, inner: usize) -> usize {
    room(columns.min(TILE_COLUMNS), inner.min(K_SLICE))
}

/// Floats a thread packs for a tile of `columns` columns, `steps` of K at a time.
fn room(columns: usize, steps: usize) -> usize {
    columns.div_ceil(LANES) * panel_floats::<LANES>(steps) + room_of_a(steps)
}

fn room_of_a(steps: usize) -> usize {
    A_BLOCK.div_ceil(ROWS) * panel_floats::<ROWS>(steps)
}

/// `(rows, inner, columns)` of a product.
pub(crate) type Extent = (usize, usize, usize);

/// `C = A B` or `C += A B`, on all threads of `pool`.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory) when the scratch space cannot grow.
///
/// # Panics
/// When an operand or the target is smaller than `extent`: a defect of the caller.
pub(crate) fn matmul(
    kernels: Kernels,
    pool: &Pool,
    scratch: &mut MatmulScratch,
    a: Operand<'_>,
    b: Operand<'_>,
    c: Target<'_>,
    extent: Extent,
) -> Result<()> {
    let product = Product::new(kernels, a, b, c, extent);
    let (rows, inner, columns) = extent;
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let (tile_rows, tile_columns) = tile_size(rows, columns, pool.threads());
    let (down, across) = (rows.div_ceil(tile_rows), columns.div_ceil(tile_columns));
    let room = product.room(tile_columns);
    let work = rows.saturating_mul(inner).saturating_mul(columns);
    resize(&mut scratch.packed, room * pool.threads(), "packed operands of a product")?;
    let packed = Shared::new(&mut scratch.packed);
    pool.run(across * down, work >= PARALLEL_FROM, |worker, tiles| {
        // SAFETY: `room` floats for each worker, and no two calls have one worker's number.
        let packed =
            unsafe { std::slice::from_raw_parts_mut(packed.get().add(worker * room), room) };
        for tile in tiles {
            let (i, j) = (tile / across * tile_rows, tile % across * tile_columns);
            let size = (tile_rows.min(rows - i), tile_columns.min(columns - j));
            // SAFETY: tiles are disjoint, so no other thread writes this one's elements.
            unsafe { product.tile((i, j), size, packed) };
        }
    });
    Ok(())
}

/// Rows and columns of the tiles: as large as they may be with as many for each thread.
fn tile_size(rows: usize, columns: usize, threads: usize) -> (usize, usize) {
    let across = columns.div_ceil(TILE_COLUMNS);
    let across = if across < threads { across } else { across.next_multiple_of(threads) };
    let tile_columns = columns.div_ceil(across).next_multiple_of(LANES);
    let across = columns.div_ceil(tile_columns);
    let most = (rows / TILE_ROWS).max(1);
    let down = (2 * threads).div_ceil(across).min(most);
    let down = match across < threads {
        true if down > threads => down - down % threads,
        true => threads.div_ceil(across).min(rows.div_ceil(ROWS)),
        false => down,
    };
    (rows.div_ceil(down).next_multiple_of(ROWS), tile_columns)
}

/// As [`matmul`], on the calling thread: for items that are themselves shared among threads.
pub(crate) fn matmul_here(
    kernels: Kernels,
    scratch: &mut MatmulScratch,
    a: Operand<'_>,
    b: Operand<'_>,
    c: Target<'_>,
    extent: Extent,
) -> Result<()> {
    let product = Product::new(kernels, a, b, c, extent);
    let (rows, _, columns) = extent;
    let room = product.room(columns.min(TILE_COLUMNS));
    if scratch.packed.len() < room {
        resize(&mut scratch.packed, room, "packed operands of a product")?;
    }
    for j in (0..columns).step_by(TILE_COLUMNS) {
        let size = (rows, TILE_COLUMNS.min(columns - j));
        // SAFETY: one thread.
        unsafe { product.tile((0, j), size, &mut scratch.packed) };
    }
    Ok(())
}

/// A checked product.
struct Product<'a> {
    kernels: Kernels,
    a: Operand<'a>,
    b: Operand<'a>,
    c: Shared<f32>,
    stride: usize,
    accumulate: bool,
    extent: Extent,
}

impl<'a> Product<'a> {
    fn new(
        kernels: Kernels,
        a: Operand<'a>,
        b: Operand<'a>,
        c: Target<'_>,
        extent: Extent,
    ) -> Self {
        let (rows, inner, columns) = extent;
        a.check(rows, inner);
        b.check(inner, columns);
        Operand::rows(c.data, c.stride).check(rows, columns);
        let (stride, accumulate) = (c.stride, c.accumulate);
        Self { kernels, a, b, c: Shared::new(c.data), stride, accumulate, extent }
    }

    /// Floats a thread needs for a tile of `columns` columns.
    fn room(&self, columns: usize) -> usize {
        room(columns, self.extent.1.min(K_SLICE))
    }

    /// Computes the tile at `(row, column)`.
    ///
    /// # Safety
    /// The tile is inside C, and no other thread touches its elements.
    unsafe fn tile(&self, at: (usize, usize), size: (usize, usize), packed: &mut [f32]) {
        let (table, inner) = (self.kernels.table(), self.extent.1);
        if inner == 0 && !self.accumulate {
            for i in 0..size.0 {
                // SAFETY: row and columns of the tile are inside C.
                unsafe { self.c.get().add((at.0 + i) * self.stride + at.1).write_bytes(0, size.1) };
            }
        }
        for k in (0..inner).step_by(K_SLICE) {
            let steps = K_SLICE.min(inner - k);
            let (packed_a, packed_b) = packed.split_at_mut(room_of_a(steps));
            pack::<LANES>(table.interleave, &self.b.flip(), (at.1, size.1), (k, steps), packed_b);
            for i in (0..size.0).step_by(A_BLOCK) {
                let rows = A_BLOCK.min(size.0 - i);
                pack::<ROWS>(table.interleave, &self.a, (at.0 + i, rows), (k, steps), packed_a);
                let block = Block {
                    a: packed_a,
                    b: packed_b,
                    steps,
                    keep: self.accumulate || k > 0,
                    size: (rows, size.1),
                };
                // SAFETY: rows and columns of the block are inside the tile.
                unsafe {
                    let c = self.c.get().add((at.0 + i) * self.stride + at.1);
                    block.run(self.kernels, c, self.stride);
                }
            }
        }
    }
}

impl Operand<'_> {
    /// The other reading of the same memory.
    fn flip(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }
}

/// A packed block of A times a packed slice of B.
struct Block<'a> {
    a: &'a [f32],
    b: &'a [f32],
    steps: usize,
    keep: bool,
    size: (usize, usize),
}

impl Block<'_> {
    /// # Safety
    /// `c` points to `size.0` rows of `size.1` floats, `stride` apart, which nobody else touches.
    unsafe fn run(&self, kernels: Kernels, c: *mut f32, stride: usize) {
        let (kernel, together) = (kernels.table().matmul_tile, kernels.table().panels);
        let (rows, columns) = self.size;
        let panels = self.b.chunks(together * panel_floats::<LANES>(self.steps));
        for (b, j) in panels.zip((0..columns).step_by(together * LANES)) {
            let panels = together.min((columns - j).div_ceil(LANES));
            let blocks =
                self.a.chunks_exact(panel_floats::<ROWS>(self.steps)).zip((0..rows).step_by(ROWS));
            for (a, i) in blocks {
                let whole = rows - i >= ROWS && columns - j >= panels * LANES;
                // SAFETY: the tile is whole, or copied through a whole one: both are inside C. The
                // panels exist and hold `steps` steps. The table's instructions are there.
                unsafe {
                    let c = c.add(i * stride + j);
                    if whole {
                        kernel(panels, self.steps, a.as_ptr(), b.as_ptr(), c, stride, self.keep);
                        continue;
                    }
                    let (rows, columns) = (ROWS.min(rows - i), columns.min(j + panels * LANES) - j);
                    let mut edge = [0.0_f32; ROWS * WIDTH];
                    for r in 0..rows {
                        let to = edge.as_mut_ptr().add(r * WIDTH);
                        std::ptr::copy_nonoverlapping(c.add(r * stride), to, columns);
                    }
                    let to = edge.as_mut_ptr();
                    kernel(panels, self.steps, a.as_ptr(), b.as_ptr(), to, WIDTH, self.keep);
                    for r in 0..rows {
                        let from = edge.as_ptr().add(r * WIDTH);
                        std::ptr::copy_nonoverlapping(from, c.add(r * stride), columns);
                    }
                }
            }
        }
    }
}

/// `c[r] (+)= sum over k of a[k][r] * b[k]` for six rows of one or two panels of sixteen columns.
///
/// # Safety
/// As [`Vector::splat`]; at most [`Vector::PANELS`] panels; `a` holds `steps * 6` floats, `b` as many
/// panels of `steps * 16`, and `c` six rows of them, `stride` apart.
#[inline(always)]
pub(super) unsafe fn tile<V: Vector>(
    panels: usize,
    steps: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    keep: bool,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match panels {
            2 if V::PANELS == 2 => fixed::<V, 2>(steps, a, b, c, stride, keep),
            _ => fixed::<V, 1>(steps, a, b, c, stride, keep),
        }
    }
}

/// # Safety
/// As [`tile`], for `P` panels.
#[inline(always)]
unsafe fn fixed<V: Vector, const P: usize>(
    steps: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    keep: bool,
) {
    // SAFETY: the caller's promise; every offset is below the lengths it names.
    unsafe {
        // C's lines come from far away and are wanted only after the loop.
        for r in 0..ROWS {
            for p in 0..P {
                prefetch_lines(c.add(r * stride + p * LANES));
            }
        }
        let panel = panel_floats::<LANES>(steps);
        let mut sums = [[V::splat(0.0); P]; ROWS];
        let whole = steps - steps % UNROLLED;
        for k in (0..whole).step_by(UNROLLED) {
            prefetch_lines(a.wrapping_add(k * ROWS + AHEAD));
            for k in k..k + UNROLLED {
                step(a.add(k * ROWS), b.add(k * LANES), panel, &mut sums);
            }
        }
        for k in whole..steps {
            step(a.add(k * ROWS), b.add(k * LANES), panel, &mut sums);
        }
        for r in 0..ROWS {
            for p in 0..P {
                let c = c.add(r * stride + p * LANES);
                let sum = if keep { V::load(c).add(sums[r][p]) } else { sums[r][p] };
                sum.store(c);
            }
        }
    }
}

/// One step of the tile: `sums[r][p] += a[r] * b[p]`.
///
/// # Safety
/// As [`Vector::splat`]; `a` holds 6 floats, `b` 16 for each panel, `panel` apart.
#[inline(always)]
unsafe fn step<V: Vector, const P: usize>(
    a: *const f32,
    b: *const f32,
    panel: usize,
    sums: &mut [[V; P]; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut columns = [sums[0][0]; P];
        for p in 0..P {
            columns[p] = V::load(b.add(p * panel));
        }
        for r in 0..ROWS {
            let a = V::splat(*a.add(r));
            for p in 0..P {
                sums[r][p] = a.mul_add(columns[p], sums[r][p]);
            }
        }
    }
}

/// Asks for the line that sixteen floats begin in, and the next.
#[inline(always)]
fn prefetch_lines(p: *const f32) {
    prefetch(p.cast());
    prefetch(p.wrapping_add(LANES - 1).cast());
}
