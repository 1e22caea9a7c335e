//! The largest values of rows, found on the device.
//!
//! Of one value the first column that equals the maximum is wanted. Of more, rows are cut into
//! pieces that one block of a GPU sorts, each piece keeps its largest, and what is left is sorted
//! again until it is one piece. Columns travel as f32 beside their values, so that one copy brings
//! both; a sum tells whether a row holds NaN or infinity.

use candle_core::{DType, Device, Tensor};

use super::device::fetch;
use crate::backend::Largest;
use crate::error::{Result, try_vec};

/// Values that are sorted at a time: their order takes 8 KiB of a block's shared memory.
const PIECE: usize = 2048;
/// More than were asked for, for values that equal the last one that counts: in bf16 there are
/// some nearly always.
const SPARE: usize = 32;
/// Columns that f32 counts exactly.
const MOST_COLUMNS: usize = 1 << 24;

/// The numbers of columns, `(1, columns)`, as f32.
pub(super) fn columns(columns: usize, device: &Device) -> Result<Tensor> {
    let mut numbers = try_vec(columns, "the numbers of columns")?;
    numbers.extend((0..columns).map(|column| column as f32));
    Ok(Tensor::from_vec(numbers, (1, columns), device)?)
}

/// Whether [`largest`] finds `count` values of rows of so many columns.
pub(super) fn can_find(count: usize, columns: usize) -> bool {
    count > 0 && count + SPARE <= PIECE / 2 && columns <= MOST_COLUMNS
}

/// The largest values of `x (rows, columns)`, of which [`can_find`] holds; `columns` are those of
/// [`columns`].
pub(super) fn largest(x: &Tensor, columns: &Tensor, count: usize) -> Result<Largest> {
    let (rows, width) = x.dims2()?;
    let x = x.to_dtype(DType::F32)?;
    // Not finite where any of them is not.
    let sum = x.sum_keepdim(1)?;
    let (values, ids) = match count {
        1 => first(&x, columns)?,
        _ => sorted(&x, columns, (count + SPARE).min(width))?,
    };
    let count = values.dim(1)?;
    let mut host = Vec::new();
    fetch(&Tensor::cat(&[values, ids, sum], 1)?, "the largest logits", &mut host)?;
    let mut pairs = try_vec(rows * count, "the largest logits")?;
    let mut sound = try_vec(rows, "the largest logits")?;
    for row in host.chunks_exact(2 * count + 1) {
        let (values, rest) = row.split_at(count);
        pairs.extend(values.iter().zip(rest).map(|(value, id)| (*id as u32, *value)));
        sound.push(rest.last().is_some_and(|sum| sum.is_finite()));
    }
    Ok(Largest::new(pairs, sound, width))
}

/// The largest value of each row and the first column that holds it, `(rows, 1)` each.
fn first(x: &Tensor, columns: &Tensor) -> Result<(Tensor, Tensor)> {
    let max = x.max_keepdim(1)?;
    let beyond = Tensor::full(x.dim(1)? as f32, x.shape(), x.device())?;
    let here = x.broadcast_eq(&max)?;
    let ids = here.where_cond(&columns.broadcast_as(x.shape())?, &beyond)?.min_keepdim(1)?;
    Ok((max, ids))
}

/// `count` values and columns of each row, among them the largest, `(rows, count)` each.
fn sorted(x: &Tensor, columns: &Tensor, count: usize) -> Result<(Tensor, Tensor)> {
    let (rows, device) = (x.dim(0)?, x.device());
    let lowest = |shape: (usize, usize)| Tensor::full(f32::NEG_INFINITY, shape, device);
    // Nothing is sorted that has no order; a row with NaN is not used.
    let ordered = x.eq(x)?;
    let mut values = ordered.where_cond(x, &lowest(x.dims2()?)?)?;
    let mut ids = columns.broadcast_as(x.shape())?.contiguous()?;
    loop {
        let width = values.dim(1)?;
        let pieces = width.div_ceil(PIECE);
        let piece = if pieces == 1 { width } else { PIECE };
        if pieces * piece > width {
            let missing = (rows, pieces * piece - width);
            values = Tensor::cat(&[values, lowest(missing)?], 1)?;
            ids = Tensor::cat(&[ids, Tensor::zeros(missing, DType::F32, device)?], 1)?;
        }
        let shape = (rows, pieces, piece);
        (values, ids) = (values.reshape(shape)?, ids.reshape(shape)?);
        let order = values.arg_sort_last_dim(false)?.narrow(2, 0, count)?.contiguous()?;
        let kept = (rows, pieces * count);
        values = values.gather(&order, 2)?.reshape(kept)?;
        ids = ids.gather(&order, 2)?.reshape(kept)?;
        if pieces == 1 {
            return Ok((values, ids));
        }
    }
}

#[cfg(test)]
mod tests;
