//! Weights as tensors: dense in a float type, or in ggml's blocks.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::device::allocating;
use crate::error::{Result, try_vec, try_zeroed};
use crate::weights::{
    RowSource, SUPER_BLOCK, StoredType, WeightFormat, dequantize, quantize_q4_0, quantize_q4_k,
    quantize_q6_k, quantize_q8_0,
};

/// Weights of CUDA's quantized matrices are followed by room for so many more.
const CUDA_PADDING: u64 = 512;

/// A matrix `(out, in)`.
pub(super) enum Matrix {
    /// Floats, multiplied in their own type.
    Dense(Tensor),
    /// Blocks of ggml, multiplied with f32 inputs that candle rounds to 8 bits.
    Blocks(Box<QTensor>),
}

impl Matrix {
    /// `x (rows, in)` times the transposed matrix: `(rows, out)`, in the matrix's own float type.
    pub(super) fn product(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(weight) => x.to_dtype(weight.dtype())?.matmul(&weight.t()?)?,
            Self::Blocks(weight) => {
                x.to_dtype(DType::F32)?.contiguous()?.apply_op1_no_bwd(&**weight)?
            }
        })
    }

    /// The type of its products.
    pub(super) fn output(&self) -> DType {
        match self {
            Self::Dense(weight) => weight.dtype(),
            Self::Blocks(_) => DType::F32,
        }
    }
}

/// How a matrix of a format with rows of `columns` weights is held on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    Dense(DType),
    Blocks(GgmlDType),
    /// No kernel takes rows that are not whole blocks: rounded to the format, held in f32.
    Rounded,
}

impl Held {
    pub(super) fn of(format: WeightFormat, columns: usize) -> Self {
        let whole = |dtype: GgmlDType| match columns.is_multiple_of(dtype.block_size()) {
            true => Self::Blocks(dtype),
            false => Self::Rounded,
        };
        match format.fitting(columns) {
            WeightFormat::F16 => Self::Dense(DType::F16),
            WeightFormat::Bf16 => Self::Dense(DType::BF16),
            WeightFormat::Q8_0 => whole(GgmlDType::Q8_0),
            WeightFormat::Q4_0 => whole(GgmlDType::Q4_0),
            WeightFormat::Q4K => whole(GgmlDType::Q4K),
            WeightFormat::Q6K => whole(GgmlDType::Q6K),
            WeightFormat::F32 | WeightFormat::Auto => Self::Dense(DType::F32),
        }
    }

    /// Bytes of `weights` weights.
    pub(super) fn bytes(self, weights: u64, device: &Device) -> u64 {
        match self {
            Self::Dense(dtype) => weights.saturating_mul(dtype.size_in_bytes() as u64),
            Self::Rounded => weights.saturating_mul(4),
            Self::Blocks(dtype) => {
                let padding = if device.is_cuda() { CUDA_PADDING } else { 0 };
                let blocks = weights.saturating_add(padding) / dtype.block_size() as u64;
                blocks.saturating_mul(dtype.type_size() as u64)
            }
        }
    }
}

/// Reads a matrix and holds it in `format`.
pub(super) fn held(
    source: &dyn RowSource,
    format: WeightFormat,
    device: &Device,
) -> Result<Matrix> {
    let (rows, columns) = source.shape();
    let held = Held::of(format, columns);
    let bytes = held.bytes((rows as u64).saturating_mul(columns as u64), device);
    let refused = allocating(source.name(), bytes);
    match held {
        Held::Rounded => rounded(source, format, device).map(Matrix::Dense),
        Held::Dense(dtype) => dense(source, dtype, device).map(Matrix::Dense),
        Held::Blocks(dtype) => {
            let blocks = blocks(source, dtype)?;
            let storage =
                QStorage::from_data(Cow::Owned(blocks), device, dtype).map_err(&refused)?;
            device.synchronize()?;
            Ok(Matrix::Blocks(Box::new(QTensor::new(storage, (rows, columns))?)))
        }
    }
}

/// Reads a matrix as floats of one type.
pub(super) fn dense(source: &dyn RowSource, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = source.shape();
    if let Some(tile) = source.repeated() {
        return repeated(source.name(), tile, shape, dtype, device);
    }
    let values = read(source)?;
    let bytes = Held::Dense(dtype).bytes(values.len() as u64, device);
    let refused = allocating(source.name(), bytes);
    let tensor = match dtype {
        DType::F16 => {
            let mut halves = try_vec(values.len(), source.name())?;
            halves.extend(values.iter().map(|x| f16::from_f32(*x)));
            drop(values);
            Tensor::from_vec(halves, shape, device)
        }
        DType::BF16 => {
            let mut halves = try_vec(values.len(), source.name())?;
            halves.extend(values.iter().map(|x| bf16::from_f32(*x)));
            drop(values);
            Tensor::from_vec(halves, shape, device)
        }
        _ => Tensor::from_vec(values, shape, device),
    };
    let tensor = tensor.map_err(refused)?;
    // What this thread uploads, another one reads on a stream of its own.
    device.synchronize()?;
    Ok(tensor)
}

/// A matrix that repeats `tile`, which alone travels to the device.
fn repeated(
    name: &str,
    tile: &[f32],
    (rows, columns): (usize, usize),
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let count = rows.saturating_mul(columns);
    let refused = allocating(name, Held::Dense(dtype).bytes(count as u64, device));
    let host = Tensor::from_slice(tile, tile.len(), &Device::Cpu)?.to_dtype(dtype)?;
    let tile = host.to_device(device)?;
    let whole = Tensor::zeros(count, dtype, device).map_err(refused)?;
    for start in (0..count).step_by(tile.elem_count().max(1)) {
        let length = tile.elem_count().min(count - start);
        whole.slice_set(&tile.narrow(0, 0, length)?, 0, start)?;
    }
    device.synchronize()?;
    Ok(whole.reshape((rows, columns))?)
}

/// Reads a matrix, rounds it to a format's values and holds them in f32.
pub(super) fn rounded(
    source: &dyn RowSource,
    format: WeightFormat,
    device: &Device,
) -> Result<Tensor> {
    let (rows, columns) = source.shape();
    let mut values = read(source)?;
    let format = format.fitting(columns);
    if let WeightFormat::Q4K | WeightFormat::Q6K = format {
        round_super_blocks(&mut values, source, format);
    }
    let rounded = round(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?, format)?;
    let refused = allocating(source.name(), 4 * rounded.elem_count() as u64);
    let rounded = rounded.to_device(device).map_err(refused)?;
    device.synchronize()?;
    Ok(rounded)
}

fn read(source: &dyn RowSource) -> Result<Vec<f32>> {
    let (rows, columns) = source.shape();
    let mut values = try_zeroed(rows.saturating_mul(columns), source.name())?;
    source.read_rows(0, &mut values)?;
    Ok(values)
}

/// A matrix in blocks: as stored where it is stored so, else rounded by this library.
fn blocks(source: &dyn RowSource, dtype: GgmlDType) -> Result<Vec<u8>> {
    let (rows, columns) = source.shape();
    let stored = match dtype {
        GgmlDType::Q8_0 => StoredType::Q8_0,
        GgmlDType::Q4_0 => StoredType::Q4_0,
        GgmlDType::Q4K => StoredType::Q4K,
        _ => StoredType::Q6K,
    };
    let (weights, size) = stored.block();
    let count = rows.saturating_mul(columns) / weights;
    if source.blocks() == Some(stored) {
        let mut bytes = try_zeroed(count.saturating_mul(size), source.name())?;
        source.read_blocks(0, &mut bytes)?;
        return Ok(bytes);
    }
    let mut bytes = try_vec(count.saturating_mul(size), source.name())?;
    let values = read(source)?;
    match stored {
        StoredType::Q8_0 => {
            values.as_chunks().0.iter().for_each(|block| bytes.extend(quantize_q8_0(block)));
        }
        StoredType::Q4_0 => {
            values.as_chunks().0.iter().for_each(|block| bytes.extend(quantize_q4_0(block)));
        }
        StoredType::Q4K => {
            values.as_chunks().0.iter().for_each(|block| bytes.extend(quantize_q4_k(block)));
        }
        _ => values.as_chunks().0.iter().for_each(|block| bytes.extend(quantize_q6_k(block))),
    }
    Ok(bytes)
}

/// Rounds to a format's values and back to f32. Rows that are no multiple of a block are padded.
fn round(x: Tensor, format: WeightFormat) -> Result<Tensor> {
    let quantized = |dtype: GgmlDType| -> Result<Tensor> {
        let cols = x.dim(1)?;
        let padding = cols.next_multiple_of(32) - cols;
        let padded = x.pad_with_zeros(1, 0, padding)?;
        let rounded = QTensor::quantize(&padded, dtype)?.dequantize(x.device())?;
        Ok(rounded.narrow(1, 0, cols)?.contiguous()?)
    };
    match format {
        WeightFormat::F16 => Ok(x.to_dtype(DType::F16)?.to_dtype(DType::F32)?),
        WeightFormat::Bf16 => Ok(x.to_dtype(DType::BF16)?.to_dtype(DType::F32)?),
        WeightFormat::Q8_0 => quantized(GgmlDType::Q8_0),
        WeightFormat::Q4_0 => quantized(GgmlDType::Q4_0),
        WeightFormat::F32 | WeightFormat::Auto | WeightFormat::Q4K | WeightFormat::Q6K => Ok(x),
    }
}

/// Rounds rows that were not stored in these blocks, as this library does: candle's search finds
/// other scales.
fn round_super_blocks(values: &mut [f32], source: &dyn RowSource, format: WeightFormat) {
    let stored = match format {
        WeightFormat::Q4K => StoredType::Q4K,
        _ => StoredType::Q6K,
    };
    if source.blocks() == Some(stored) {
        return;
    }
    for block in values.as_chunks_mut::<SUPER_BLOCK>().0 {
        match format {
            WeightFormat::Q4K => dequantize(stored, &quantize_q4_k(block), block),
            _ => dequantize(stored, &quantize_q6_k(block), block),
        }
    }
}
