//! Embedding tables: rows in memory, widened when looked up.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::arena::Arena;
use super::buffer::Buffer;
use super::pack::Layout;
use super::pool::{Pool, fill};
use super::quant::{QUANT_BLOCK, quantize_q8_0};
use crate::error::{Result, try_vec};
use crate::weights::{
    RowSource, SUPER_BLOCK, StoredType, dequantize, quantize_q4_k, quantize_q6_k,
};

/// Bytes of a Q8_0 block in a row: an f16 scale and 32 integers.
const BLOCK_BYTES: usize = 2 + QUANT_BLOCK;

/// A `(rows, width)` table. Q4_0 holds Q8_0 rows: a table is read a row a token, so its size costs
/// memory but no time, and 8 bits lose next to nothing. Q4_K and Q6_K hold GGUF's own blocks.
pub(crate) struct RowTable {
    data: Buffer,
    layout: Layout,
    rows: usize,
    width: usize,
}

/// Bytes of one row.
fn row_bytes(width: usize, layout: Layout) -> usize {
    match layout {
        Layout::F32 => width.saturating_mul(4),
        Layout::F16 | Layout::Bf16 => width.saturating_mul(2),
        Layout::Q8_0 | Layout::Q4_0 => width.div_ceil(QUANT_BLOCK).saturating_mul(BLOCK_BYTES),
        Layout::Q4K => (width / SUPER_BLOCK).saturating_mul(StoredType::Q4K.block().1),
        Layout::Q6K => (width / SUPER_BLOCK).saturating_mul(StoredType::Q6K.block().1),
    }
}

/// Bytes of a table.
pub(crate) fn table_bytes(rows: usize, width: usize, layout: Layout) -> u64 {
    (rows as u64).saturating_mul(row_bytes(width, layout.fitting(width)) as u64)
}

impl RowTable {
    /// Reads a table, a few rows a thread at a time.
    ///
    /// # Errors
    /// Those of the source, and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(crate) fn load(
        pool: &Pool,
        arena: &Arena,
        source: &dyn RowSource,
        layout: Layout,
    ) -> Result<Self> {
        let (rows, width) = source.shape();
        let layout = layout.fitting(width);
        let what = || format!("embedding {:?}", source.name());
        let bytes = usize::try_from(table_bytes(rows, width, layout)).unwrap_or(usize::MAX);
        let mut data = arena.take(bytes, &what())?;
        let piece = row_bytes(width, layout);
        let kind = format!("rows {layout:?}");
        fill(pool, data.bytes_mut(), rows, piece, |range, bytes| {
            if source.read_packed(&kind, piece, range.start, bytes) {
                return Ok(());
            }
            // Rows are held as a file stores them, but Q4_0's, which become bytes.
            if layout.kept(source) == Some(piece) {
                return source.read_blocks(range.start, bytes);
            }
            let mut row = try_vec(width, &what())?;
            row.resize(width, 0.0_f32);
            for (i, to) in range.zip(bytes.chunks_exact_mut(piece.max(1))) {
                source.read_rows(i, &mut row)?;
                store_row(layout, &row, to);
            }
            Ok(())
        })?;
        source.keep_packed(&kind, piece, data.bytes());
        Ok(Self { data, layout, rows, width })
    }

    /// `(rows, width)`.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.width)
    }

    /// Writes row `id` as f32; nothing happens when there is no such row.
    pub(crate) fn read(&self, id: usize, out: &mut [f32]) {
        let bytes = row_bytes(self.width, self.layout);
        let Some(row) = self.data.bytes().chunks_exact(bytes.max(1)).nth(id) else { return };
        match self.layout {
            Layout::F32 => {
                for (out, x) in out.iter_mut().zip(row.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*x);
                }
            }
            Layout::F16 => {
                for (out, x) in out.iter_mut().zip(row.as_chunks::<2>().0) {
                    *out = f16::from_le_bytes(*x).to_f32();
                }
            }
            Layout::Bf16 => {
                for (out, x) in out.iter_mut().zip(row.as_chunks::<2>().0) {
                    *out = bf16::from_le_bytes(*x).to_f32();
                }
            }
            Layout::Q8_0 | Layout::Q4_0 => {
                for (out, block) in
                    out.chunks_mut(QUANT_BLOCK).zip(row.as_chunks::<BLOCK_BYTES>().0)
                {
                    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    for (out, q) in out.iter_mut().zip(&block[2..]) {
                        *out = scale * f32::from(*q as i8);
                    }
                }
            }
            Layout::Q4K => dequantize(StoredType::Q4K, row, out),
            Layout::Q6K => dequantize(StoredType::Q6K, row, out),
        }
    }
}

fn store_row(layout: Layout, row: &[f32], to: &mut [u8]) {
    match layout {
        Layout::F32 => {
            for (to, x) in to.as_chunks_mut::<4>().0.iter_mut().zip(row) {
                *to = x.to_le_bytes();
            }
        }
        Layout::F16 => {
            let mut narrow = [f16::ZERO; 64];
            for (to, part) in to.chunks_mut(2 * narrow.len()).zip(row.chunks(narrow.len())) {
                narrow[..part.len()].convert_from_f32_slice(part);
                for (to, x) in to.as_chunks_mut::<2>().0.iter_mut().zip(&narrow) {
                    *to = x.to_le_bytes();
                }
            }
        }
        Layout::Bf16 => {
            for (to, x) in to.as_chunks_mut::<2>().0.iter_mut().zip(row) {
                *to = bf16::from_f32(*x).to_le_bytes();
            }
        }
        Layout::Q8_0 | Layout::Q4_0 => {
            for (to, part) in to.as_chunks_mut::<BLOCK_BYTES>().0.iter_mut().zip(row.chunks(32)) {
                let mut block = [0.0; QUANT_BLOCK];
                block[..part.len()].copy_from_slice(part);
                let (scale, q) = quantize_q8_0(&block);
                to[..2].copy_from_slice(&scale.to_le_bytes());
                for (to, q) in to[2..].iter_mut().zip(q) {
                    *to = q as u8;
                }
            }
        }
        Layout::Q4K => {
            let blocks = row.as_chunks::<SUPER_BLOCK>().0;
            for (to, block) in to.as_chunks_mut::<144>().0.iter_mut().zip(blocks) {
                *to = quantize_q4_k(block);
            }
        }
        Layout::Q6K => {
            let blocks = row.as_chunks::<SUPER_BLOCK>().0;
            for (to, block) in to.as_chunks_mut::<210>().0.iter_mut().zip(blocks) {
                *to = quantize_q6_k(block);
            }
        }
    }
}
