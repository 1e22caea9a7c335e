//! Untrusted model files: what tensors they hold, and their rows as `f32`.
//!
//! Every reader checks what a file claims against what the file is before anything is allocated;
//! nothing in a file is executed. One [`Checkpoint`] hides which of the formats holds a tensor.

use std::fmt;
use std::path::PathBuf;

use crate::error::Result;

mod atomic;
mod checkpoint;
mod dequantize;
mod file;
mod gguf;
mod gguf_metadata;
mod index;
mod low_rank;
mod names;
mod packed;
mod pickle;
mod quantize;
mod quantize_k;
mod safetensors;
mod torch;
mod write;
mod write_gguf;
mod write_safetensors;
mod zip;

#[cfg(test)]
mod tests;

pub use checkpoint::{Checkpoint, TensorInfo, TensorReader};
pub use gguf_metadata::{GgufMetadata, GgufValue};
pub use quantize::{quantize_q4_0, quantize_q8_0};
pub use quantize_k::{quantize_q4_k, quantize_q6_k};
pub(crate) use write::stored_type;
pub use write::{TensorToWrite, Values, WriteProgress};
pub use write_gguf::{GgufTokenType, GgufTokenizer, write_gguf};
pub use write_safetensors::{write_safetensors, write_safetensors_from};

pub(crate) use atomic::AtomicFile;
pub(crate) use dequantize::{dequantize, scale_min};
pub(crate) use low_rank::LowRank;
pub(crate) use names::{canonical as canonical_name, from_gguf as canonical_gguf_name};
pub(crate) use packed::PackedWeights;
pub(crate) use quantize_k::SUPER_BLOCK;
pub(crate) use write::Watch;
pub(crate) use write_gguf::write_watched as write_gguf_watched;
pub(crate) use write_safetensors::write_watched as write_safetensors_watched;

/// Most tensors of one model.
pub(crate) const MAX_TENSORS: usize = 100_000;
/// Longest name of a tensor, in bytes.
pub(crate) const MAX_NAME: usize = 1024;
/// Most dimensions of a tensor.
pub(crate) const MAX_RANK: usize = 8;

/// Element type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoredType {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 32 weights as 4-bit integers and one f16 scale: 18 bytes.
    Q4_0,
    /// 32 weights as 4-bit integers, f16 scale and minimum: 20 bytes.
    Q4_1,
    /// 32 weights as 5-bit integers and one f16 scale: 22 bytes.
    Q5_0,
    /// 32 weights as 5-bit integers, f16 scale and minimum: 24 bytes.
    Q5_1,
    /// 32 weights as 8-bit integers and one f16 scale: 34 bytes.
    Q8_0,
    /// 256 weights in 8 sub-blocks of 4-bit integers with 6-bit scales and minima: 144 bytes.
    Q4K,
    /// 256 weights in 8 sub-blocks of 5-bit integers with 6-bit scales and minima: 176 bytes.
    Q5K,
    /// 256 weights in 16 sub-blocks of 6-bit integers with 8-bit scales: 210 bytes.
    Q6K,
    /// A type no weight of this family has (integers, booleans): listed, never read.
    Other,
}

impl StoredType {
    /// Weights in one block and bytes of one block; `(1, size)` for plain types.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F64 => (1, 8),
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Other => (1, 0),
        }
    }
}

/// How weights are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum WeightFormat {
    /// As stored, matrix by matrix: the nearest of the others that loses nothing, or least. GGUF's
    /// Q4_1, Q5_0, Q5_1 and Q5_K are held as [`Q8_0`](Self::Q8_0).
    #[default]
    Auto,
    /// 32-bit floats, 4 bytes a weight.
    F32,
    /// IEEE half precision, 2 bytes a weight.
    F16,
    /// bfloat16, 2 bytes a weight. A CPU with AVX-512 BF16 multiplies it with activations rounded to
    /// bfloat16; others keep these in 32 bits.
    Bf16,
    /// 8-bit integers in blocks of 32 with an f16 scale, 1.0625 bytes a weight.
    Q8_0,
    /// 4-bit integers in blocks of 32 with an f16 scale, 0.5625 bytes a weight.
    Q4_0,
    /// ggml's Q4_K: 4-bit integers, blocks of 32 with 6-bit scales and minima in super-blocks of
    /// 256, 0.5781 bytes a weight. GGUF's blocks are kept as they are; other weights are rounded by
    /// [`quantize_q4_k`], which may err somewhat more than llama.cpp's search. Matrices whose rows
    /// 256 does not divide are held as [`Q8_0`](Self::Q8_0).
    Q4K,
    /// ggml's Q6_K: 6-bit integers, blocks of 16 with 8-bit scales in super-blocks of 256, 0.8203
    /// bytes a weight. As [`Q4K`](Self::Q4K) otherwise; the rounding is [`quantize_q6_k`].
    Q6K,
}

impl WeightFormat {
    /// Every format, in the order of [`name`](Self::name)s shown to users.
    pub const ALL: [Self; 8] = [
        Self::Auto,
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4K,
        Self::Q6K,
    ];

    /// The name used by command lines, Python and C: `auto f32 f16 bf16 q8_0 q4_0 q4_k q6_k`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
            Self::Q6K => "q6_k",
        }
    }

    /// The format of a matrix with rows of `columns` weights: super-blocks of 256 that do not
    /// divide them give way to Q8_0.
    pub(crate) fn fitting(self, columns: usize) -> Self {
        match self {
            Self::Q4K | Self::Q6K if !columns.is_multiple_of(SUPER_BLOCK) => Self::Q8_0,
            other => other,
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for WeightFormat {
    type Err = crate::Error;

    fn from_str(name: &str) -> Result<Self> {
        let name = name.to_ascii_lowercase();
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            crate::Error::option("format", name, "auto, f32, f16, bf16, q8_0, q4_0, q4_k or q6_k")
        })
    }
}

/// Where a matrix comes from, a few rows at a time: what a backend packs its weights from.
///
/// A matrix of shape `(rows, cols)` is a linear layer's weight as stored, one output feature a
/// row. Vectors are matrices of one row.
pub trait RowSource: Sync {
    /// Name of the tensor, for errors.
    fn name(&self) -> &str;
    /// `(rows, cols)`.
    fn shape(&self) -> (usize, usize);
    /// Writes rows `first..first + out.len() / cols` as `f32`, row-major, into `out`.
    ///
    /// Errors when the file cannot be read; callers stay within [`shape`](Self::shape).
    fn read_rows(&self, first: usize, out: &mut [f32]) -> Result<()>;
    /// The type of the stored weights, where rows are whole blocks of it that
    /// [`read_blocks`](Self::read_blocks) gives; `None` where there are only computed floats.
    fn blocks(&self) -> Option<StoredType> {
        None
    }
    /// Writes the stored bytes of the rows from `first` on that fill `out`, of a type that
    /// [`blocks`](Self::blocks) names.
    ///
    /// Errors when the file cannot be read, and where there are no blocks.
    fn read_blocks(&self, first: usize, out: &mut [u8]) -> Result<()> {
        let what = format!("{} bytes from row {first} of {:?}", out.len(), self.name());
        Err(crate::Error::Internal(format!("{what}: there are no blocks")))
    }

    /// Values of which the whole matrix is a repetition, row-major from the first row on: a device
    /// repeats them itself. `None` where they do not repeat.
    fn repeated(&self) -> Option<&[f32]> {
        None
    }

    /// Fills `out` with what packing in `layout` gave before, from piece `first` on, each of
    /// `piece_bytes`; false where that is not known: `out`, zeros before, has zeros then.
    fn read_packed(
        &self,
        _layout: &str,
        _piece_bytes: usize,
        _first: usize,
        _out: &mut [u8],
    ) -> bool {
        false
    }

    /// Shown what packing gave, to be kept for [`read_packed`](Self::read_packed).
    fn keep_packed(&self, _layout: &str, _piece_bytes: usize, _bytes: &[u8]) {}
}

/// The files of one model, found by [`source`](crate::source), not yet opened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelFiles {
    /// A directory in the Hugging Face layout.
    Directory {
        /// `config.json`.
        config: PathBuf,
        /// `tokenizer.json`, where there is one.
        tokenizer: Option<PathBuf>,
        /// The weight files in the order of the index, every one inside the directory.
        weights: Vec<PathBuf>,
        /// `model.safetensors.index.json` or `pytorch_model.bin.index.json`.
        index: Option<PathBuf>,
    },
    /// One GGUF file.
    Gguf {
        /// The file.
        file: PathBuf,
        /// A `tokenizer.json` beside it, which wins over the metadata.
        tokenizer: Option<PathBuf>,
    },
}
