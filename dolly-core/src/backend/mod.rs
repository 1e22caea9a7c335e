//! What a device must be able to do to run the network.
//!
//! [`model`](crate::model) is written once against [`Backend`]; the CPU's own kernels and the
//! candle reference are two executions of the same calls. Shapes are rows of tokens: an activation
//! is `(rows, width)`, where the rows of all live sequences lie one after the other.
//!
//! A contract binds every backend: **a row's values never depend on the other rows of the call**,
//! so a sequence gives the same logits alone, in a batch, and in chunks of any size.

use crate::error::Result;
use crate::model::{Activation, Config};
use crate::weights::{RowSource, WeightFormat};

mod cache_format;
#[cfg(feature = "candle")]
pub mod candle;
pub mod cpu;
mod largest;
#[cfg(test)]
pub(crate) mod tests;

pub use cache_format::CacheFormat;
pub use largest::{Few, Largest};

/// Why a build without the feature `cuda` cannot use a GPU.
#[cfg(not(feature = "cuda"))]
pub(crate) const NO_CUDA: &str = "this build has no CUDA backend (dolly-core's feature `cuda`)";

/// Consecutive new tokens of one sequence within the rows of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First row of the call that belongs to the sequence.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Position of the first row in its sequence: tokens already in the cache.
    pub position: usize,
}

/// Cosines and sines of the rotary embedding, `(positions, rotary_dims / 2)` row-major.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
    /// Half of the rotated dimensions: the row length of both tables.
    pub half: usize,
    /// Number of positions: rows of both tables.
    pub positions: usize,
}

impl RotaryTable {
    /// The table for `positions` positions, formed in f32 as the reference does:
    /// inv_freq_i = base^(-2i/dims), angle = position / scale * inv_freq_i
    /// (Su et al., 2021; `GPTNeoXRotaryEmbedding` in transformers).
    pub fn new(config: &Config, positions: usize) -> Result<Self> {
        let half = config.rotary_dims / 2;
        let inv_freq: Vec<f32> = (0..half)
            .map(|i| {
                let exponent = (2 * i) as f32 / config.rotary_dims as f32;
                1.0 / config.rotary_base.powf(exponent) / config.rotary_scale
            })
            .collect();
        let len = positions.saturating_mul(half);
        let mut cos = crate::error::try_vec(len, "rotary cosines")?;
        let mut sin = crate::error::try_vec(len, "rotary sines")?;
        for position in 0..positions {
            for frequency in &inv_freq {
                let angle = position as f32 * frequency;
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
        }
        Ok(Self { cos, sin, half, positions })
    }

    /// Bytes of both tables.
    pub fn bytes(&self) -> u64 {
        4 * (self.cos.len() + self.sin.len()) as u64
    }
}

/// A device that can run the network; about eight operations over rows of activations.
///
/// Outputs are passed in and overwritten, so that a backend reuses their memory from step to step.
/// Every operation may fail: with [`Error::OutOfMemory`](crate::Error::OutOfMemory) when buffers
/// cannot grow, or with the device's own error.
pub trait Backend: Send + Sync + 'static {
    /// `(rows, width)` activations in f32 (or what the device computes in).
    type Activations: Send;
    /// A linear layer: weight `(out, in)` in the backend's layout, with its bias if it has one.
    type Linear: Send + Sync;
    /// An embedding table `(vocab, width)`.
    type Embedding: Send + Sync;
    /// A layer norm's weight, bias and epsilon.
    type Norm: Send + Sync;
    /// Keys and values of one sequence, all layers, allocated once for its whole length.
    type Cache: Send;

    /// Packs a linear layer into `format` (never [`WeightFormat::Auto`]).
    fn load_linear(
        &self,
        weight: &dyn RowSource,
        bias: Option<Vec<f32>>,
        format: WeightFormat,
    ) -> Result<Self::Linear>;
    /// Loads an embedding table, in `format` or a closer one.
    fn load_embedding(
        &self,
        weight: &dyn RowSource,
        format: WeightFormat,
    ) -> Result<Self::Embedding>;
    /// Loads a layer norm of `weight.len()` features.
    fn load_norm(&self, weight: Vec<f32>, bias: Vec<f32>, eps: f32) -> Result<Self::Norm>;
    /// Bytes that [`load_linear`](Self::load_linear) will hold for an `(out, in)` weight.
    fn linear_bytes(&self, out_features: usize, in_features: usize, format: WeightFormat) -> u64;
    /// Bytes that [`load_embedding`](Self::load_embedding) will hold.
    fn embedding_bytes(&self, rows: usize, width: usize, format: WeightFormat) -> u64;

    /// An empty cache that holds `tokens` tokens.
    fn new_cache(&self, config: &Config, tokens: usize) -> Result<Self::Cache>;
    /// Bytes of [`new_cache`](Self::new_cache).
    fn cache_bytes(&self, config: &Config, tokens: usize) -> u64;
    /// Whether a cache's memory is its own and no more than [`cache_bytes`](Self::cache_bytes) says,
    /// however many sequences it ran beside: it may be kept as it is.
    fn owns_caches(&self) -> bool {
        false
    }
    /// Copies keys and values of `tokens` tokens, all layers, from token `at` of `from` to token
    /// `start` of `to`. Both are caches of one configuration; `to` has `start` tokens or more.
    fn copy_cache(
        &self,
        from: &Self::Cache,
        at: usize,
        to: &mut Self::Cache,
        start: usize,
        tokens: usize,
    ) -> Result<()>;
    /// Activations of no rows, to be filled by an operation.
    fn empty(&self) -> Self::Activations;

    /// Bytes that `x` holds on to.
    fn bytes(&self, x: &Self::Activations) -> u64;
    /// Runs `step`, which calls other operations, where the device's threads are at hand.
    fn install<R: Send>(&self, step: impl FnOnce() -> R + Send) -> R {
        step()
    }

    /// Tells what [`embed`](Self::embed) and [`attention`](Self::attention) of the coming step will
    /// be given, so that a device gets it in one copy. They work without it.
    fn begin(
        &self,
        config: &Config,
        rotary: &RotaryTable,
        ids: &[u32],
        spans: &[Span],
        caches: &[&mut Self::Cache],
    ) -> Result<()> {
        let _ = (config, rotary, ids, spans, caches);
        Ok(())
    }
    /// `out[r] = table[ids[r]]`; ids are below the table's rows (checked by the caller).
    fn embed(
        &self,
        table: &Self::Embedding,
        ids: &[u32],
        out: &mut Self::Activations,
    ) -> Result<()>;
    /// `out[r] = (x[r] - mean) / sqrt(var + eps) * weight + bias`, population variance.
    fn layer_norm(
        &self,
        x: &Self::Activations,
        norm: &Self::Norm,
        out: &mut Self::Activations,
    ) -> Result<()>;
    /// As [`layer_norm`](Self::layer_norm), of one input by two norms.
    fn layer_norm_pair(
        &self,
        x: &Self::Activations,
        norms: (&Self::Norm, &Self::Norm),
        out: (&mut Self::Activations, &mut Self::Activations),
    ) -> Result<()> {
        self.layer_norm(x, norms.0, out.0)?;
        self.layer_norm(x, norms.1, out.1)
    }
    /// `out[r] = act(weight x[r] + bias)`, the activation where one is given.
    fn linear(
        &self,
        x: &Self::Activations,
        linear: &Self::Linear,
        activation: Option<Activation>,
        out: &mut Self::Activations,
    ) -> Result<()>;
    /// `out[r] += weight x[r] + bias`.
    fn linear_add(
        &self,
        x: &Self::Activations,
        linear: &Self::Linear,
        out: &mut Self::Activations,
    ) -> Result<()>;
    /// Rotates queries and keys, appends keys and values of `layer` to each span's cache at the
    /// span's position, and attends causally: `out` is `(rows, hidden)`.
    ///
    /// `qkv` is `(rows, 3 hidden)`, per head `(q, k, v)` as GPT-NeoX stores it. Score scale is
    /// `1 / sqrt(head_dim)`. `caches[i]` belongs to `spans[i]` and has room for it. What a cache
    /// holds at the span's position and beyond is overwritten and never read: a caller takes rows
    /// back by going on from an earlier position.
    #[allow(clippy::too_many_arguments, reason = "one fused operation has this many operands")]
    fn attention(
        &self,
        config: &Config,
        rotary: &RotaryTable,
        layer: usize,
        qkv: &Self::Activations,
        spans: &[Span],
        caches: &mut [&mut Self::Cache],
        out: &mut Self::Activations,
    ) -> Result<()>;
    /// `out[i] = x[rows[i]]`.
    fn select_rows(
        &self,
        x: &Self::Activations,
        rows: &[usize],
        out: &mut Self::Activations,
    ) -> Result<()>;
    /// Copies `(rows, width)` values, row-major, into `out`, which is resized to fit.
    fn read(&self, x: &Self::Activations, out: &mut Vec<f32>) -> Result<()>;
    /// The `count` largest values of each row or more, of one copy for all rows; `None` where
    /// [`read`](Self::read) costs no more, or the device cannot find so many.
    fn largest(&self, x: &Self::Activations, count: usize) -> Result<Option<Largest>> {
        let _ = (x, count);
        Ok(None)
    }
}
