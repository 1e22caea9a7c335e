//! What the writers share: tensors streamed row by row, encoded, and written.

use super::atomic::AtomicFile;
use super::file::{block_bytes, elements};
use super::names::RowOrder;
use super::quantize::encode;
use super::{RowSource, StoredType, WeightFormat};
use crate::error::{Error, Result, try_zeroed};
use crate::options::CancelToken;

/// Weights read at a time, at least one row.
const PIECE: usize = 256 << 10;

/// How far writing a model has come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteProgress {
    /// Weights written so far.
    pub written: u64,
    /// All weights of the model.
    pub total: u64,
    /// The tensor written last.
    pub tensor: String,
}

/// Who is told of each tensor that was written, and what stops the writing.
pub(crate) struct Watch<'a> {
    pub cancel: &'a CancelToken,
    pub on_progress: &'a mut dyn FnMut(WriteProgress),
}

impl Watch<'_> {
    /// Runs `write` with a watch that tells nobody and is never cancelled.
    pub(crate) fn unwatched<R>(write: impl FnOnce(&mut Watch<'_>) -> R) -> R {
        write(&mut Watch { cancel: &CancelToken::new(), on_progress: &mut |_| () })
    }

    fn check(&self) -> Result<()> {
        match self.cancel.is_cancelled() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }
}

/// Tells a watch of one tensor after the other.
pub(crate) struct Progress<'a, 'w> {
    watch: &'a mut Watch<'w>,
    written: u64,
    total: u64,
}

impl<'a, 'w> Progress<'a, 'w> {
    pub(crate) fn new<'t>(
        watch: &'a mut Watch<'w>,
        tensors: impl Iterator<Item = &'t [usize]>,
    ) -> Self {
        let total = tensors.map(|shape| elements(shape).unwrap_or(u64::MAX));
        Self { watch, written: 0, total: total.fold(0, u64::saturating_add) }
    }

    fn wrote(&mut self, tensor: &TensorToWrite<'_>) -> Result<()> {
        let weights = elements(tensor.shape).unwrap_or(u64::MAX);
        self.written = self.written.saturating_add(weights);
        let (written, total) = (self.written, self.total);
        let tensor = tensor.name.to_owned();
        (self.watch.on_progress)(WriteProgress { written, total, tensor });
        self.watch.check()
    }
}

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

    /// Streams the tensor to `file`; `order` is how its rows are to lie there. A cancel is heard
    /// between two pieces.
    pub(crate) fn write(
        &self,
        file: &mut AtomicFile,
        stored: StoredType,
        order: RowOrder,
        progress: &mut Progress<'_, '_>,
    ) -> Result<()> {
        match self.source.blocks() == Some(stored) && self.shape.len() == 2 {
            true => self.copy_blocks(file, stored, order, progress.watch)?,
            false => self.write_rows(file, stored, order, progress.watch)?,
        }
        progress.wrote(self)
    }

    /// Copies rows that are stored as they are to be.
    fn copy_blocks(
        &self,
        file: &mut AtomicFile,
        stored: StoredType,
        order: RowOrder,
        watch: &Watch<'_>,
    ) -> Result<()> {
        let (rows, cols) = self.source.shape();
        let (weights, bytes) = stored.block();
        let row = cols / weights * bytes;
        let most = (PIECE / cols.max(1)).clamp(1, rows.max(1));
        let mut buffer = try_zeroed(most.saturating_mul(row), self.name)?;
        let mut copy = |first: usize, count: usize| {
            for at in (first..first + count).step_by(most) {
                watch.check()?;
                let piece = most.min(first + count - at);
                let buffer = buffer.get_mut(..piece * row).unwrap_or_default();
                self.source.read_blocks(at, buffer)?;
                file.write(buffer)?;
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

    fn write_rows(
        &self,
        file: &mut AtomicFile,
        stored: StoredType,
        order: RowOrder,
        watch: &Watch<'_>,
    ) -> Result<()> {
        let (rows, cols) = self.source.shape();
        let mut packed = Vec::new();
        let mut put = |weights: &[f32]| {
            watch.check()?;
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
            return self.write_split_vector(heads, head_dim, &mut put);
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

    /// A bias of queries, keys and values, in llama.cpp's order.
    fn write_split_vector(
        &self,
        heads: usize,
        head_dim: usize,
        put: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let mut weights = try_zeroed(self.source.shape().1, self.name)?;
        self.source.read_rows(0, &mut weights)?;
        split_runs(heads, head_dim)
            .try_for_each(|first| put(weights.get(first..first + head_dim).unwrap_or_default()))
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
        WeightFormat::Q4K => StoredType::Q4K,
        WeightFormat::Q6K => StoredType::Q6K,
    })
}
