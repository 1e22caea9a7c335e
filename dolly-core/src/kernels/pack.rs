//! The layout of weights in memory, and how rows of a checkpoint become it.
//!
//! Sixteen output features (columns of the product) make a panel; within it K runs outermost, so
//! that a kernel reads a panel from front to back and has sixteen columns in one load. The last
//! panel is filled up with zeros.
//!
//! | format | a step of K | bytes |
//! |---|---|---|
//! | f32, f16 | columns 0..16 | 64, 32 |
//! | bf16 | 2 of K: columns 0..16, both of a column side by side, as products of pairs take them | 64 |
//! | Q8_0 | 32 of K: 16 f16 scales, then for each 4 of K, 16 columns x 4 integers | 544 |
//! | Q4_0 | 32 of K: 16 f16 scales, then for each 4 of K, 16 columns x 4 bytes, K in the low and K + 16 in the high half | 288 |
//! | Q4_K, Q6_K | 256 of K: see `k_quant` | 2368, 3360 |
//!
//! Rows that a file stores in the blocks of their layout are repacked as they are, without loss.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::k_quant::{Q4K, Q6K, half, place_q4_k, place_q6_k};
use super::portable::f32_to_f16;
use super::quant::{QUANT_BLOCK, quantize_q4_0, quantize_q8_0};
use super::vector::LANES;
use crate::weights::{
    RowSource, SUPER_BLOCK, StoredType, WeightFormat, quantize_q4_k, quantize_q6_k,
};

/// How a panel stores its weights: [`WeightFormat`] without `Auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight.
    F16,
    /// 2 bytes a weight.
    Bf16,
    /// 34 bytes for 32 weights.
    Q8_0,
    /// 18 bytes for 32 weights.
    Q4_0,
    /// 148 bytes for 256 weights.
    Q4K,
    /// 210 bytes for 256 weights.
    Q6K,
}

impl Layout {
    /// The layout of a format; `Auto` has none.
    pub(crate) fn of(format: WeightFormat) -> Option<Self> {
        match format {
            WeightFormat::Auto => None,
            WeightFormat::F32 => Some(Self::F32),
            WeightFormat::F16 => Some(Self::F16),
            WeightFormat::Bf16 => Some(Self::Bf16),
            WeightFormat::Q8_0 => Some(Self::Q8_0),
            WeightFormat::Q4_0 => Some(Self::Q4_0),
            WeightFormat::Q4K => Some(Self::Q4K),
            WeightFormat::Q6K => Some(Self::Q6K),
        }
    }

    /// The layout of a matrix of `columns`: whole super-blocks, or Q8_0 in their place.
    pub(crate) fn fitting(self, columns: usize) -> Self {
        match self {
            Self::Q4K | Self::Q6K if !columns.is_multiple_of(SUPER_BLOCK) => Self::Q8_0,
            other => other,
        }
    }

    /// Bytes of a row of the source, where it has the very blocks that this layout repacks.
    pub(super) fn kept(self, source: &dyn RowSource) -> Option<usize> {
        let stored = match self {
            Self::F32 => StoredType::F32,
            Self::F16 => StoredType::F16,
            Self::Bf16 => StoredType::Bf16,
            Self::Q8_0 => StoredType::Q8_0,
            Self::Q4_0 => StoredType::Q4_0,
            Self::Q4K => StoredType::Q4K,
            Self::Q6K => StoredType::Q6K,
        };
        let (weights, bytes) = stored.block();
        (source.blocks()? == stored).then_some(source.shape().1 / weights * bytes)
    }

    /// Bytes of one step of a panel.
    pub(crate) fn step_bytes(self) -> usize {
        match self {
            Self::F32 => 4 * LANES,
            Self::F16 => 2 * LANES,
            Self::Bf16 => 4 * LANES,
            Self::Q8_0 => LANES * (2 + QUANT_BLOCK),
            Self::Q4_0 => LANES * (2 + QUANT_BLOCK / 2),
            Self::Q4K => Q4K::BYTES,
            Self::Q6K => Q6K::BYTES,
        }
    }

    /// K of one step.
    pub(crate) fn step_columns(self) -> usize {
        match self {
            Self::F32 | Self::F16 => 1,
            Self::Bf16 => 2,
            Self::Q8_0 | Self::Q4_0 => QUANT_BLOCK,
            Self::Q4K | Self::Q6K => SUPER_BLOCK,
        }
    }

    /// Whether weights are integers with a scale for each block of K.
    pub(crate) fn quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Steps of a panel whose K is `columns` of the stored matrix.
    pub(crate) fn steps(self, columns: usize) -> usize {
        columns.div_ceil(self.step_columns())
    }

    /// Bytes of one panel; `None` if that is beyond `usize`.
    pub(crate) fn panel_bytes(self, columns: usize) -> Option<usize> {
        self.steps(columns).checked_mul(self.step_bytes())
    }
}

/// Elements of K that are packed for all sixteen rows before the next: the steps they are
/// scattered over stay in L1.
const PART: usize = SUPER_BLOCK;

/// Packs up to sixteen rows of `columns` weights into one zeroed panel.
///
/// `panel.len()` is [`Layout::panel_bytes`]; longer or shorter slices fill what they reach.
pub(super) fn pack_panel(layout: Layout, rows: &[f32], columns: usize, panel: &mut [u8]) {
    let part_bytes = layout.steps(PART) * layout.step_bytes();
    for (i, panel) in panel.chunks_mut(part_bytes).enumerate() {
        let part = i * PART..columns.min((i + 1) * PART);
        for (lane, row) in rows.chunks_exact(columns.max(1)).take(LANES).enumerate() {
            let Some(row) = row.get(part.clone()) else { continue };
            match layout {
                Layout::F32 => pack_f32(row, lane, panel),
                Layout::F16 => pack_f16(row, lane, panel),
                Layout::Bf16 => pack_bf16(row, lane, panel),
                Layout::Q8_0 => pack_q8_0(row, lane, panel),
                Layout::Q4_0 => pack_q4_0(row, lane, panel),
                Layout::Q4K => pack_q4_k(row, lane, panel),
                Layout::Q6K => pack_q6_k(row, lane, panel),
            }
        }
    }
}

/// As [`pack_panel`], of rows of `row` bytes that [`Layout::kept`] keeps as they are.
pub(super) fn pack_blocks(layout: Layout, rows: &[u8], row: usize, panel: &mut [u8]) {
    match layout {
        Layout::F32 => return place_floats::<4, 1>(rows, row, panel),
        Layout::F16 => return place_floats::<2, 1>(rows, row, panel),
        Layout::Bf16 => return place_floats::<2, 2>(rows, row, panel),
        Layout::Q8_0 | Layout::Q4_0 | Layout::Q4K | Layout::Q6K => {}
    }
    for (lane, row) in rows.chunks_exact(row.max(1)).take(LANES).enumerate() {
        match layout {
            Layout::Q8_0 => place_blocks::<34>(row, lane, panel),
            Layout::Q4_0 => place_blocks::<18>(row, lane, panel),
            Layout::Q4K => {
                let steps = panel.as_chunks_mut::<{ Q4K::BYTES }>().0;
                for (step, block) in steps.iter_mut().zip(row.as_chunks::<144>().0) {
                    place_q4_k(block, lane, step);
                }
            }
            Layout::Q6K => {
                let steps = panel.as_chunks_mut::<{ Q6K::BYTES }>().0;
                for (step, block) in steps.iter_mut().zip(row.as_chunks::<210>().0) {
                    place_q6_k(block, lane, step);
                }
            }
            Layout::F32 | Layout::F16 | Layout::Bf16 => {}
        }
    }
}

/// Puts up to sixteen rows of floats of `N` bytes, little-endian as in files, into a panel of steps of
/// `K`.
fn place_floats<const N: usize, const K: usize>(rows: &[u8], row: usize, panel: &mut [u8]) {
    for (i, panel) in panel.chunks_mut(PART * LANES * N).enumerate() {
        let part = i * PART * N..row.min((i + 1) * PART * N);
        for (lane, row) in rows.chunks_exact(row.max(1)).take(LANES).enumerate() {
            let Some(row) = row.get(part.clone()) else { continue };
            let cells = panel.as_chunks_mut::<N>().0.chunks_exact_mut(LANES * K);
            for (step, from) in cells.zip(row.as_chunks::<N>().0.chunks(K)) {
                for (cell, x) in step[lane * K..].iter_mut().zip(from) {
                    *cell = *x;
                    if cfg!(target_endian = "big") {
                        cell.reverse();
                    }
                }
            }
        }
    }
}

/// Puts a row's blocks of 32, as GGUF stores them, into its lane of a panel: the scale, then four bytes
/// of each four of K, which in Q4_0 are those of K + 16 too.
fn place_blocks<const BYTES: usize>(row: &[u8], lane: usize, panel: &mut [u8]) {
    let steps = panel.chunks_exact_mut(LANES * BYTES);
    for (step, block) in steps.zip(row.as_chunks::<BYTES>().0) {
        let (scale, integers) = block.split_at(2);
        let (scales, quads) = step.split_at_mut(2 * LANES);
        scales[2 * lane..2 * lane + 2].copy_from_slice(&half([scale[0], scale[1]]));
        let quads = quads.as_chunks_mut::<4>().0.iter_mut().skip(lane).step_by(LANES);
        quads.zip(integers.as_chunks::<4>().0).for_each(|(to, quad)| *to = *quad);
    }
}

fn pack_f32(row: &[f32], lane: usize, panel: &mut [u8]) {
    let cells = panel.as_chunks_mut::<4>().0.iter_mut().skip(lane).step_by(LANES);
    cells.zip(row).for_each(|(cell, x)| *cell = x.to_ne_bytes());
}

fn pack_bf16(row: &[f32], lane: usize, panel: &mut [u8]) {
    let cells = panel.as_chunks_mut::<4>().0.iter_mut().skip(lane).step_by(LANES);
    for (cell, pair) in cells.zip(row.chunks(2)) {
        for (to, x) in cell.as_chunks_mut::<2>().0.iter_mut().zip(pair) {
            *to = bf16::from_f32(*x).to_ne_bytes();
        }
    }
}

fn pack_f16(row: &[f32], lane: usize, panel: &mut [u8]) {
    let (cells, _) = panel.as_chunks_mut::<2>();
    let mut cells = cells.iter_mut().skip(lane).step_by(LANES);
    let mut narrow = [f16::ZERO; 64];
    for part in row.chunks(narrow.len()) {
        if cfg!(miri) {
            narrow.iter_mut().zip(part).for_each(|(to, x)| *to = f32_to_f16(*x));
        } else {
            narrow[..part.len()].convert_from_f32_slice(part);
        }
        // In this order: a zip takes from its first iterator before it sees the second end.
        for (x, cell) in narrow[..part.len()].iter().zip(cells.by_ref()) {
            *cell = x.to_ne_bytes();
        }
    }
}

fn block_of(part: &[f32]) -> [f32; QUANT_BLOCK] {
    let mut block = [0.0; QUANT_BLOCK];
    block[..part.len()].copy_from_slice(part);
    block
}

fn pack_q8_0(row: &[f32], lane: usize, panel: &mut [u8]) {
    let steps = panel.chunks_exact_mut(Layout::Q8_0.step_bytes());
    for (step, part) in steps.zip(row.chunks(QUANT_BLOCK)) {
        let (scale, q) = quantize_q8_0(&block_of(part));
        let (scales, integers) = step.split_at_mut(2 * LANES);
        scales[2 * lane..2 * lane + 2].copy_from_slice(&scale.to_ne_bytes());
        for (k, q) in q.into_iter().enumerate() {
            integers[(k / 4) * 4 * LANES + 4 * lane + k % 4] = q as u8;
        }
    }
}

fn pack_q4_0(row: &[f32], lane: usize, panel: &mut [u8]) {
    let steps = panel.chunks_exact_mut(Layout::Q4_0.step_bytes());
    for (step, part) in steps.zip(row.chunks(QUANT_BLOCK)) {
        let (scale, q) = quantize_q4_0(&block_of(part));
        let (scales, nibbles) = step.split_at_mut(2 * LANES);
        scales[2 * lane..2 * lane + 2].copy_from_slice(&scale.to_ne_bytes());
        for k in 0..QUANT_BLOCK / 2 {
            nibbles[(k / 4) * 4 * LANES + 4 * lane + k % 4] = q[k] | q[k + QUANT_BLOCK / 2] << 4;
        }
    }
}

fn pack_q4_k(row: &[f32], lane: usize, panel: &mut [u8]) {
    let steps = panel.as_chunks_mut::<{ Q4K::BYTES }>().0;
    for (step, block) in steps.iter_mut().zip(row.as_chunks::<SUPER_BLOCK>().0) {
        place_q4_k(&quantize_q4_k(block), lane, step);
    }
}

fn pack_q6_k(row: &[f32], lane: usize, panel: &mut [u8]) {
    let steps = panel.as_chunks_mut::<{ Q6K::BYTES }>().0;
    for (step, block) in steps.iter_mut().zip(row.as_chunks::<SUPER_BLOCK>().0) {
        place_q6_k(&quantize_q6_k(block), lane, step);
    }
}
