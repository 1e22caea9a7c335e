//! What the writers share: tensors streamed row by row, encoded, and written.

use super::atomic::AtomicFile;
use super::file::{block_bytes, elements};
use super::names::RowOrder;
use super::quantize::encode;
use super::{RowSource, StoredType, WeightFormat};
use crate::error::{Error, Result, try_zeroed};

/// Weights read at a time, at least one row.
const PIECE: usize = 256 << 10;

/// A tensor to be written: its name, its shape as PyTorch has it, and its rows.
#[derive(Clone, Copy)]
pub struct TensorToWrite<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// One or two dimensions; one dimension `n` has the source shape `(1, n)`.
    pub shape: &'a [usize],
    /// Where the weights come from.
    pub source: &'a dyn RowSource,
}

/// Weights in memory as rows.
///
/// ```
/// use dolly_core::weights::{RowSource, Values};
/// let matrix = Values::new("w", (2, 3), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
/// let mut row = [0.0; 3];
/// matrix.read_rows(1, &mut row)?;
/// assert_eq!(row, [4.0, 5.0, 6.0]);
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    name: &'a str,
    shape: (usize, usize),
    values: &'a [f32],
}

impl<'a> Values<'a> {
    /// Rows of `values`, row-major; a vector is a matrix of one row.
    ///
    /// Errors with [`Error::InvalidInput`] where shape and length disagree.
    pub fn new(name: &'a str, shape: (usize, usize), values: &'a [f32]) -> Result<Self> {
        match shape.0.checked_mul(shape.1) == Some(values.len()) {
            true => Ok(Self { name, shape, values }),
            false => Err(Error::InvalidInput(format!(
                "tensor {name:?}: {} weights for rows {shape:?}",
                values.len()
            ))),
        }
    }

    /// As [`new`](Self::new), for the shape of a tensor of one or two dimensions.
    pub fn of_tensor(name: &'a str, shape: &[usize], values: &'a [f32]) -> Result<Self> {
        match *shape {
            [cols] => Self::new(name, (1, cols), values),
            [rows, cols] => Self::new(name, (rows, cols), values),
            _ => Err(Error::InvalidInput(format!("tensor {name:?}: shape {shape:?}"))),
        }
    }
}

impl RowSource for Values<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) -> Result<()> {
        let from = first.checked_mul(self.shape.1);
        let values = from.and_then(|at| self.values.get(at..at.checked_add(out.len())?));
        match values {
            Some(values) => {
                out.copy_from_slice(values);
                Ok(())
            }
            None => {
                let (rows, cols) = self.shape;
                let what = format!("{} weights from row {first} of ({rows}, {cols})", out.len());
                Err(Error::InvalidInput(format!("tensor {:?}: {what}", self.name)))
            }
        }
    }
}

impl TensorToWrite<'_> {
    /// Bytes of the tensor as `stored`, after checking that source and shape agree.
    pub(crate) fn bytes(&self, stored: StoredType) -> Result<u64> {
        let agree = match *self.shape {
            [cols] => self.source.shape() == (1, cols),
            [rows, cols] => self.source.shape() == (rows, cols),
            _ => false,
        };
        let bytes = elements(self.shape).and_then(|count| block_bytes(count, stored.block()));
        bytes.filter(|_| agree).ok_or_else(|| {
            Error::InvalidInput(format!(
                "tensor {:?}: shape {:?} cannot be written as {stored:?} from rows {:?}",
                self.name,
                self.shape,
                self.source.shape()
            ))
        })
    }

    /// Streams the tensor to `file`; `order` is how its rows are to lie there.
    pub(crate) fn write(
        &self,
        file: &mut AtomicFile,
        stored: StoredType,
        order: RowOrder,
    ) -> Result<()> {
        let (rows, cols) = self.source.shape();
        let mut packed = Vec::new();
        let mut put = |weights: &[f32]| {
            packed.clear();
            encode(stored, weights, &mut packed).map_err(|weight| {
                Error::InvalidInput(format!(
                    "tensor {:?}: weight {weight} cannot be stored as {stored:?}",
                    self.name
                ))
            })?;
            file.write(&packed)
        };
        if let (RowOrder::SplitQkv { heads, head_dim }, [_]) = (order, self.shape) {
            let mut weights = try_zeroed(cols, self.name)?;
            self.source.read_rows(0, &mut weights)?;
            for first in split_runs(heads, head_dim) {
                put(weights.get(first..first + head_dim).unwrap_or_default())?;
            }
            return Ok(());
        }
        let most = (PIECE / cols.max(1)).clamp(1, rows.max(1));
        let mut weights = try_zeroed(most.saturating_mul(cols), self.name)?;
        let mut copy = |first: usize, count: usize| {
            let mut at = first;
            while at < first + count {
                let piece = most.min(first + count - at);
                let weights = weights.get_mut(..piece * cols).unwrap_or_default();
                self.source.read_rows(at, weights)?;
                put(weights)?;
                at += piece;
            }
            Ok(())
        };
        match order {
            RowOrder::Stored => copy(0, rows),
            RowOrder::SplitQkv { heads, head_dim } => {
                split_runs(heads, head_dim).try_for_each(|first| copy(first, head_dim))
            }
        }
    }
}

/// First canonical rows of the runs of `head_dim` rows, in llama.cpp's order: all queries, all
/// keys, all values.
fn split_runs(heads: usize, head_dim: usize) -> impl Iterator<Item = usize> {
    (0..3).flat_map(move |part| (0..heads).map(move |head| (head * 3 + part) * head_dim))
}

/// The stored type of a format a file can hold; [`WeightFormat::Auto`] is none.
pub(crate) fn stored_type(format: WeightFormat) -> Option<StoredType> {
    Some(match format {
        WeightFormat::Auto => return None,
        WeightFormat::F32 => StoredType::F32,
        WeightFormat::F16 => StoredType::F16,
        WeightFormat::Bf16 => StoredType::Bf16,
        WeightFormat::Q8_0 => StoredType::Q8_0,
        WeightFormat::Q4_0 => StoredType::Q4_0,
    })
}
