//! The layout of weights in memory, and how rows of a checkpoint become it.
//!
//! Sixteen output features (columns of the product) make a panel; within it K runs outermost, so
//! that a kernel reads a panel from front to back and has sixteen columns in one load. The last
//! panel is filled up with zeros.
//!
//! | format | a step of K | bytes |
//! |---|---|---|
//! | f32, f16 | columns 0..16 | 64, 32 |
//! | bf16 | columns 0 8 1 9 ... 7 15: one load, shift and mask widens all | 32 |
//! | Q8_0 | 32 of K: 16 f16 scales, then for each 4 of K, 16 columns x 4 integers | 544 |
//! | Q4_0 | 32 of K: 16 f16 scales, then for each 4 of K, 16 columns x 4 bytes, K in the low and K + 16 in the high half | 288 |

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::portable::f32_to_f16;
use super::quant::{QUANT_BLOCK, quantize_q4_0, quantize_q8_0};
use super::vector::LANES;
use crate::weights::WeightFormat;

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
        }
    }

    /// Bytes of one step of a panel.
    pub(crate) fn step_bytes(self) -> usize {
        match self {
            Self::F32 => 4 * LANES,
            Self::F16 | Self::Bf16 => 2 * LANES,
            Self::Q8_0 => LANES * (2 + QUANT_BLOCK),
            Self::Q4_0 => LANES * (2 + QUANT_BLOCK / 2),
        }
    }

    /// Whether a step is a block of 32 of K rather than one.
    pub(crate) fn quantized(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0)
    }

    /// Steps of a panel whose K is `columns` of the stored matrix.
    pub(crate) fn steps(self, columns: usize) -> usize {
        if self.quantized() { columns.div_ceil(QUANT_BLOCK) } else { columns }
    }

    /// Bytes of one panel; `None` if that is beyond `usize`.
    pub(crate) fn panel_bytes(self, columns: usize) -> Option<usize> {
        self.steps(columns).checked_mul(self.step_bytes())
    }
}

/// Elements of K that are packed for all sixteen rows before the next: the steps they are
/// scattered over stay in L1.
const PART: usize = 4 * QUANT_BLOCK;

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
                Layout::F32 => scatter(row, lane, panel, |x| x.to_ne_bytes()),
                Layout::F16 => pack_f16(row, lane, panel),
                Layout::Bf16 => {
                    scatter(row, bf16_place(lane), panel, |x| bf16::from_f32(x).to_ne_bytes())
                }
                Layout::Q8_0 => pack_q8_0(row, lane, panel),
                Layout::Q4_0 => pack_q4_0(row, lane, panel),
            }
        }
    }
}

/// Where a step keeps the bf16 of a lane: lanes 0 and 8 share a 32-bit word, then 1 and 9, ...
fn bf16_place(lane: usize) -> usize {
    if lane < LANES / 2 { 2 * lane } else { 2 * (lane - LANES / 2) + 1 }
}

/// Writes one lane of consecutive steps.
fn scatter<const N: usize>(
    row: &[f32],
    place: usize,
    panel: &mut [u8],
    convert: impl Fn(f32) -> [u8; N],
) {
    let (cells, _) = panel.as_chunks_mut::<N>();
    for (cell, x) in cells.iter_mut().skip(place).step_by(LANES).zip(row) {
        *cell = convert(*x);
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
