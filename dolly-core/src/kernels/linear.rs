//! A linear layer: packed weights, and the loops around the micro-kernels.
//!
//! ```text
//! for each unit of up to 8 panels (a thread's share)   weights stream through once a row chunk
//!   for each chunk of at most 96 rows                  sums (panels, rows, 16) stay in L2
//!     for each slice of K                              the rows' slice stays in L2
//!       for each panel                                 the panel's slice stays in L1
//!         for each 1..MR rows                          micro-kernel: sums in registers
//!     activation(sum + bias) -> out
//! ```
//!
//! One row takes four panels at a time (as many independent sums as the CPU's adders need), two
//! rows two, more as many as the registers hold. Slicing K leaves the order of a sum as it is: the
//! accumulators are exact f32.

use std::mem::MaybeUninit;

use super::buffer::Buffer;
use super::pack::{Layout, pack_blocks, pack_panel};
use super::pool::{Pool, Shared, fill};
use super::quant::{QUADS, QUANT_BLOCK, QuantTile};
use super::table::Kernels;
use super::tile::Tile;
use super::vector::LANES;
use crate::error::{Error, Result, try_vec, try_zeroed};
use crate::model::Activation;
use crate::weights::RowSource;

/// Rows whose sums are kept together.
const ROW_CHUNK: usize = 96;
/// Panels that share a pass over the rows' slice of K.
const UNIT: usize = 8;
/// Steps of K (not blocks) of the slices that serve several tiles, those of all panels of a tile
/// together: 16 KiB of f32.
const K_SLICE: usize = 256;
/// Rows from which re-reading them costs more than leaving a panel's stream of weights.
const UNIT_FROM: usize = 32;
/// Below this many multiplications a second thread costs more than it saves.
const PARALLEL_FROM: usize = 1 << 15;

/// A linear layer's weight in panel layout.
pub(crate) struct Matrix {
    panels: Buffer,
    layout: Layout,
    outputs: usize,
    inputs: usize,
}

/// Integer activations of one call: reused between calls, grown when needed.
#[derive(Default)]
pub(crate) struct QuantScratch {
    integers: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl QuantScratch {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        let words = self.scales.capacity() + self.sums.capacity();
        (self.integers.capacity() + 4 * words) as u64
    }
}

/// Grows or shrinks `vec` to `len` zeroed elements without aborting when memory is short.
pub(crate) fn resize<T: Copy + Default>(vec: &mut Vec<T>, len: usize, what: &str) -> Result<()> {
    vec.try_reserve_exact(len.saturating_sub(vec.len())).map_err(|_| Error::OutOfMemory {
        what: what.to_owned(),
        bytes: (len as u64).saturating_mul(size_of::<T>() as u64),
    })?;
    vec.resize(len, T::default());
    Ok(())
}

/// Bytes of an `(outputs, inputs)` matrix in `layout`; `u64::MAX` beyond that range.
pub(crate) fn matrix_bytes(outputs: usize, inputs: usize, layout: Layout) -> u64 {
    let layout = layout.fitting(inputs);
    let panels = outputs.div_ceil(LANES) as u64;
    layout.panel_bytes(inputs).map_or(u64::MAX, |bytes| panels.saturating_mul(bytes as u64))
}

impl Matrix {
    /// Reads and packs a weight, a panel per thread at a time.
    ///
    /// # Errors
    /// Those of the source, and [`Error::OutOfMemory`].
    pub(crate) fn pack(pool: &Pool, source: &dyn RowSource, layout: Layout) -> Result<Self> {
        let (outputs, inputs) = source.shape();
        let layout = layout.fitting(inputs);
        let what = || format!("weight {:?}", source.name());
        let bytes = usize::try_from(matrix_bytes(outputs, inputs, layout)).unwrap_or(usize::MAX);
        let mut panels = Buffer::zeroed(bytes, &what())?;
        let panel_bytes = layout.panel_bytes(inputs).unwrap_or(0);
        let panel_count = outputs.div_ceil(LANES);
        let kind = format!("panels {layout:?}");
        fill(pool, panels.bytes_mut(), panel_count, panel_bytes, |range, panels| {
            if source.read_packed(&kind, panel_bytes, range.start, panels) {
                return Ok(());
            }
            let panels = range.zip(panels.chunks_exact_mut(panel_bytes.max(1)));
            if let Some(row) = layout.kept(source) {
                let mut rows = try_zeroed(LANES.saturating_mul(row), &what())?;
                for (panel, to) in panels {
                    let first = panel * LANES;
                    let rows = &mut rows[..LANES.min(outputs - first) * row];
                    source.read_blocks(first, rows)?;
                    pack_blocks(layout, rows, row, to);
                }
                return Ok(());
            }
            let floats = LANES.saturating_mul(inputs);
            let mut rows = try_vec(floats, &what())?;
            rows.resize(floats, 0.0_f32);
            for (panel, to) in panels {
                let first = panel * LANES;
                let rows = &mut rows[..LANES.min(outputs - first) * inputs];
                source.read_rows(first, rows)?;
                pack_panel(layout, rows, inputs, to);
            }
            Ok(())
        })?;
        source.keep_packed(&kind, panel_bytes, panels.bytes());
        Ok(Self { panels, layout, outputs, inputs })
    }

    /// `(outputs, inputs)`.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    fn panel_bytes(&self) -> usize {
        self.layout.steps(self.inputs) * self.layout.step_bytes()
    }
}

/// Room for the sums of one unit and chunk; one row's worth of it is touched for one row.
type Sums = [MaybeUninit<f32>; UNIT * ROW_CHUNK * LANES];

/// What a thread needs of one call.
struct Call<'a> {
    kernels: Kernels,
    matrix: &'a Matrix,
    x: &'a [f32],
    rows: usize,
    quant: &'a QuantScratch,
    bias: Option<&'a [f32]>,
    activation: Option<Activation>,
    out: Shared<f32>,
    /// Panels of a tile.
    together: usize,
}

/// `out[r] = activation(matrix x[r] + bias)` for `rows` rows.
///
/// # Errors
/// [`Error::OutOfMemory`] when the integer activations do not fit.
///
/// # Panics
/// When `x`, `bias` or `out` do not have the matrix's shape: a defect of the caller.
#[allow(clippy::too_many_arguments, reason = "operands of one fused operation")]
pub(crate) fn linear(
    kernels: Kernels,
    pool: &Pool,
    matrix: &Matrix,
    x: &[f32],
    rows: usize,
    bias: Option<&[f32]>,
    activation: Option<Activation>,
    out: &mut [f32],
    quant: &mut QuantScratch,
) -> Result<()> {
    assert_eq!(Some(x.len()), rows.checked_mul(matrix.inputs));
    assert_eq!(Some(out.len()), rows.checked_mul(matrix.outputs));
    assert!(bias.is_none_or(|bias| bias.len() == matrix.outputs));
    if rows == 0 {
        return Ok(());
    }
    if matrix.layout.quantized() {
        quantize(kernels, pool, x, rows, matrix.inputs, quant)?;
    }
    let panels = matrix.outputs.div_ceil(LANES);
    let together = panels_at_once(kernels, matrix.layout, rows);
    let unit = match rows {
        // Weights dominate: a unit is what one tile reads, from front to back.
        ..UNIT_FROM => together,
        _ => (panels / (4 * pool.threads())).clamp(1, UNIT).next_multiple_of(together),
    };
    let work = rows.saturating_mul(matrix.inputs).saturating_mul(matrix.outputs);
    let out = Shared::new(out);
    let call = Call { kernels, matrix, x, rows, quant, bias, activation, out, together };
    pool.run(panels.div_ceil(unit), work >= PARALLEL_FROM, |_, range| {
        let mut acc = [MaybeUninit::uninit(); UNIT * ROW_CHUNK * LANES];
        for u in range {
            let first = u * unit;
            call.panels(first, unit.min(panels - first), &mut acc);
        }
    });
    Ok(())
}

/// Panels that a tile takes, to keep enough sums in flight.
fn panels_at_once(kernels: Kernels, layout: Layout, rows: usize) -> usize {
    if rows > 2 && layout.quantized() { 1 } else { float_panels(kernels, rows) }
}

/// Panels that a tile of floats takes.
pub(super) fn float_panels(kernels: Kernels, rows: usize) -> usize {
    match rows {
        0 | 1 => 4,
        2 => 2,
        _ => kernels.table().panels,
    }
}

const _: () = assert!(UNIT.is_multiple_of(4));

fn quantize(
    kernels: Kernels,
    pool: &Pool,
    x: &[f32],
    rows: usize,
    inputs: usize,
    quant: &mut QuantScratch,
) -> Result<()> {
    let blocks = inputs.div_ceil(QUANT_BLOCK);
    let all = rows.saturating_mul(blocks);
    resize(&mut quant.integers, all.saturating_mul(QUANT_BLOCK), "integer activations")?;
    resize(&mut quant.scales, all, "integer activations")?;
    resize(&mut quant.sums, all, "integer activations")?;
    let integers = Shared::new(&mut quant.integers);
    let (scales, sums) = (Shared::new(&mut quant.scales), Shared::new(&mut quant.sums));
    pool.run(rows, x.len() >= PARALLEL_FROM, |_, range| {
        for r in range {
            // SAFETY: row `r` of each buffer exists and is in this range only.
            let (integers, scales, sums) = unsafe {
                use std::slice::from_raw_parts_mut;
                let at = r * blocks;
                (
                    from_raw_parts_mut(integers.get().add(at * QUANT_BLOCK), blocks * QUANT_BLOCK),
                    from_raw_parts_mut(scales.get().add(at), blocks),
                    from_raw_parts_mut(sums.get().add(at), blocks),
                )
            };
            kernels.quantize_row(&x[r * inputs..(r + 1) * inputs], integers, scales, sums);
        }
    });
    Ok(())
}

impl Call<'_> {
    /// All rows of `count` panels from panel `first` on.
    fn panels(&self, first: usize, count: usize, acc: &mut Sums) {
        for start in (0..self.rows).step_by(ROW_CHUNK) {
            let rows = ROW_CHUNK.min(self.rows - start);
            let used = &mut acc[..rows * count * LANES];
            used.fill(MaybeUninit::new(0.0));
            // SAFETY: filled in the line above.
            let used = unsafe { used.assume_init_mut() };
            if self.matrix.layout.quantized() {
                self.integer_rows(first, count, start, rows, used);
            } else {
                self.float_rows(first, count, start, rows, used);
            }
            self.finish(first, count, start, rows, used);
        }
    }

    fn float_rows(&self, first: usize, count: usize, start: usize, chunk: usize, acc: &mut [f32]) {
        let (table, layout) = (self.kernels.table(), self.matrix.layout);
        let inputs = self.matrix.inputs;
        let direct = chunk <= table.float_rows;
        // 16-bit weights that serve many rows are widened once, not once a tile: same values.
        let widen = match layout {
            Layout::F16 if chunk > 2 * table.float_rows => Some(table.widen_f16),
            Layout::Bf16 if chunk > 2 * table.float_rows => Some(table.widen_bf16),
            _ => None,
        };
        let mut wide = MaybeUninit::<[f32; K_SLICE * LANES]>::uninit();
        let kernel = match layout {
            Layout::F16 if widen.is_none() => table.tile_f16,
            Layout::Bf16 if widen.is_none() => table.tile_bf16,
            _ => table.tile_f32,
        };
        let slice = if direct { inputs.max(1) } else { K_SLICE / self.together };
        let panel = self.matrix.panels.bytes()[first * self.matrix.panel_bytes()..].as_ptr();
        let together = self.together;
        let slices = (0..inputs).step_by(slice);
        for (k, p) in slices.flat_map(|k| (0..count).step_by(together).map(move |p| (k, p))) {
            let (steps, panels) = (slice.min(inputs - k), together.min(count - p));
            // SAFETY: step `k + steps` is within the panel; `wide` holds the slices of a tile's
            // panels. Rows and panels of each tile exist (`linear` checked the lengths), `acc` holds
            // count * chunk * 16.
            unsafe {
                let mut w_stride = self.matrix.panel_bytes();
                let mut w = panel.add(p * w_stride + k * layout.step_bytes());
                if let Some(widen) = widen {
                    for p in 0..panels {
                        let to = wide.as_mut_ptr().cast::<f32>().add(p * steps * LANES);
                        widen(w.add(p * w_stride), to, steps);
                    }
                    (w, w_stride) = (wide.as_ptr().cast(), 4 * LANES * steps);
                }
                for_each_tile(chunk, table.float_rows, |row, rows| {
                    kernel(&Tile {
                        rows,
                        panels,
                        k: steps,
                        x: self.x.as_ptr().add((start + row) * inputs + k),
                        x_stride: inputs,
                        w,
                        w_stride,
                        acc: acc.as_mut_ptr().add((p * chunk + row * panels) * LANES),
                        acc_stride: panels * LANES,
                    });
                });
            }
        }
    }

    fn integer_rows(
        &self,
        first: usize,
        count: usize,
        start: usize,
        chunk: usize,
        acc: &mut [f32],
    ) {
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
        let slice =
            if chunk <= table.quant_rows { blocks.max(1) } else { 2 * K_SLICE / QUANT_BLOCK };
        let panel = self.matrix.panels.bytes()[first * self.matrix.panel_bytes()..].as_ptr();
        let together = self.together;
        let slices = (0..blocks).step_by(slice);
        for (b, p) in slices.flat_map(|b| (0..count).step_by(together).map(move |p| (b, p))) {
            let panels = together.min(count - p);
            let w = p * self.matrix.panel_bytes() + b / step_blocks * layout.step_bytes();
            for_each_tile(chunk, table.quant_rows, |row, rows| {
                let at = (start + row) * blocks + b;
                // SAFETY: block `b + slice` is within panel and row; `quantize` filled all rows;
                // `acc` holds count * chunk * 16.
                unsafe {
                    kernel(&QuantTile {
                        rows,
                        panels,
                        blocks: slice.min(blocks - b),
                        quads: std::hint::black_box(QUADS),
                        x: self.quant.integers.as_ptr().add(at * QUANT_BLOCK),
                        scales: self.quant.scales.as_ptr().add(at),
                        sums: self.quant.sums.as_ptr().add(at),
                        x_stride: blocks,
                        w: panel.add(w),
                        w_stride: self.matrix.panel_bytes(),
                        acc: acc.as_mut_ptr().add((p * chunk + row * panels) * LANES),
                    });
                }
            });
        }
    }

    /// Adds the bias, applies the activation, and writes the columns that exist.
    fn finish(&self, first: usize, count: usize, start: usize, rows: usize, acc: &[f32]) {
        let outputs = self.matrix.outputs;
        let together = self.together;
        for p in 0..count {
            let group = p - p % together;
            let panels = together.min(count - group);
            let column = (first + p) * LANES;
            let columns = LANES.min(outputs - column);
            let mut bias = [0.0; LANES];
            if let Some(all) = self.bias {
                bias[..columns].copy_from_slice(&all[column..column + columns]);
            }
            for r in 0..rows {
                let (groups, _) =
                    acc[(group * rows + r * panels + p - group) * LANES..].as_chunks::<LANES>();
                let Some(acc) = groups.first() else { continue };
                // SAFETY: row and columns are inside `out` (`linear` checked its length), and no
                // other thread has this panel; the table's instructions are there.
                unsafe {
                    let to = self.out.get().add((start + r) * outputs + column);
                    let to = std::slice::from_raw_parts_mut(to, columns);
                    (self.kernels.table().finish)(acc, &bias, self.activation, to);
                }
            }
        }
    }
}

/// Splits `rows` into as few tiles of at most `most` as possible, of nearly even size.
pub(super) fn for_each_tile(rows: usize, most: usize, mut tile: impl FnMut(usize, usize)) {
    let tiles = rows.div_ceil(most);
    let mut row = 0;
    for i in 0..tiles {
        let size = (rows - row).div_ceil(tiles - i);
        tile(row, size);
        row += size;
    }
}
