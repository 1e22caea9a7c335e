//! A linear layer: packed weights, and the loops around the micro-kernels.
//!
//! ```text
//! rows interleaved in groups of 1..MR, or rounded to integers (`input`)
//! for each unit of up to 8 panels
//!   for each chunk of at most 96 rows    a thread's item: sums (panels, rows, 16) stay in L2
//!     for each slice of K                the rows' slice stays in L2
//!       for each panel                   the panel's slice stays in L1, unpacked where that pays
//!         for each group of rows         micro-kernel: sums in registers
//!     activation(sum + bias) (+ out) -> out
//! ```
//!
//! One row takes four panels at a time (as many independent sums as the CPU's adders need), two
//! rows two, more as many as the registers hold. Slicing K leaves the order of a sum as it is: the
//! accumulators are exact f32.

use std::mem::MaybeUninit;

use super::arena::Arena;
use super::buffer::Buffer;
use super::pack::{Layout, pack_blocks, pack_panel};
use super::pool::{Pool, Shared, fill};
use super::quant::Unpacking;
use super::table::Kernels;
use super::vector::LANES;
use crate::error::{Error, Result, try_vec, try_zeroed};
use crate::model::Activation;
use crate::weights::RowSource;
pub(super) use input::Groups;
use input::Input;
pub(crate) use input::InputScratch;
pub(super) use input::MOST_ROWS;
use product::Call;

mod input;
mod product;

/// Rows whose sums are kept together.
const ROW_CHUNK: usize = 96;
/// Panels that share a pass over the rows' slice of K.
const UNIT: usize = 8;
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

/// What happens to a sum on its way out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epilogue {
    /// Applied to the sum with its bias.
    pub activation: Option<Activation>,
    /// Add to what is there instead of overwriting it.
    pub add: bool,
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
    pub(crate) fn pack(
        pool: &Pool,
        arena: &Arena,
        source: &dyn RowSource,
        layout: Layout,
    ) -> Result<Self> {
        let (outputs, inputs) = source.shape();
        let layout = layout.fitting(inputs);
        let what = || format!("weight {:?}", source.name());
        let bytes = usize::try_from(matrix_bytes(outputs, inputs, layout)).unwrap_or(usize::MAX);
        let mut panels = arena.take(bytes, &what())?;
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

/// `out[r] = activation(matrix x[r] + bias)`, or that added to it, for `rows` rows.
///
/// # Errors
/// [`Error::OutOfMemory`] when the rearranged input does not fit.
///
/// # Panics
/// When `x`, `bias` or `out` do not have the matrix's shape: a defect of the caller.
#[allow(clippy::too_many_arguments, reason = "operands of one fused operation")]
pub(crate) fn linear(
    kernels: Kernels,
    pool: &Pool,
    matrix: &Matrix,
    (x, rows): (&[f32], usize),
    bias: Option<&[f32]>,
    epilogue: Epilogue,
    out: &mut [f32],
    scratch: &mut InputScratch,
) -> Result<()> {
    assert_eq!(Some(x.len()), rows.checked_mul(matrix.inputs));
    assert_eq!(Some(out.len()), rows.checked_mul(matrix.outputs));
    assert!(bias.is_none_or(|bias| bias.len() == matrix.outputs));
    if rows == 0 {
        return Ok(());
    }
    let (unpacking, group_rows) = tiles(kernels, matrix.layout, rows);
    let groups = Groups::new(rows, group_rows);
    let round = kernels.table().round_bf16.filter(|_| matrix.layout == Layout::Bf16);
    let input = Input { kernels, pool, x, inputs: matrix.inputs, groups };
    match matrix.layout.quantized() {
        true => {
            let words = unpacking.is_some_and(|unpacking| unpacking.words);
            input.quantize(scratch, words, (kernels.table().offset)(matrix.layout))?;
        }
        false => input.floats(round, scratch)?,
    }
    let scratch = &*scratch;
    let panels = matrix.outputs.div_ceil(LANES);
    let together = panels_at_once(kernels, matrix.layout, rows);
    let unit = unit(groups, panels / pool.threads(), together);
    let work = rows.saturating_mul(matrix.inputs).saturating_mul(matrix.outputs);
    let floats = match round {
        _ if rows > 1 => &scratch.floats,
        Some(_) => &scratch.pairs,
        None => x,
    };
    let out = Shared::new(out);
    let integers = scratch;
    let call = Call {
        kernels,
        matrix,
        floats,
        pairs: round.is_some(),
        integers,
        groups,
        unpacking,
        bias,
        epilogue,
        out,
        together,
    };
    // The chunks of a unit follow one another, while its weights are near.
    let chunks = Groups::new(groups.count, ROW_CHUNK / group_rows);
    pool.run(panels.div_ceil(unit) * chunks.count, work >= PARALLEL_FROM, |_, range| {
        let mut acc = [MaybeUninit::uninit(); UNIT * ROW_CHUNK * LANES];
        for item in range {
            let first = item / chunks.count * unit;
            let (start, count) = chunks.get(item % chunks.count);
            call.chunk(first, unit.min(panels - first), start..start + count, &mut acc);
        }
    });
    Ok(())
}

/// How integer weights are unpacked for so many rows, if that pays, and the most rows of a tile.
fn tiles(kernels: Kernels, layout: Layout, rows: usize) -> (Option<&'static Unpacking>, usize) {
    let table = kernels.table();
    match (table.unpacking)(layout).filter(|unpacking| rows >= unpacking.from) {
        Some(unpacking) => (Some(unpacking), unpacking.rows),
        None if layout.quantized() => (None, table.quant_rows),
        None => (None, table.float_rows),
    }
}

/// Panels of a unit, of `share` that a thread has: whole tiles.
fn unit(groups: Groups, share: usize, together: usize) -> usize {
    let panels = match groups {
        // Panel after panel: a few of them for outputs that lie side by side.
        Groups { count: 1, .. } => share / 16,
        // Weights dominate: a unit is what one tile reads, from front to back.
        Groups { rows: ..UNIT_FROM, .. } => 1,
        _ => share / 4,
    };
    panels.clamp(1, UNIT).next_multiple_of(together)
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

const _: () = assert!(UNIT.is_multiple_of(4) && ROW_CHUNK >= MOST_ROWS);
