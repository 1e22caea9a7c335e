//! Keys and values of sequences, and how several of them become one batch.
//!
//! A sequence begins with tensors of its own, one slot wide. Sequences that decode together are
//! laid side by side once, in tensors with a slot for each, and stay there until one of them ends
//! or another joins: then one operation serves all of them at every step.

use candle_core::{DType, Device, Tensor};

use super::device::allocating;
use crate::error::{Error, Result};
use crate::model::Config;

/// A cache is rounded up to so many tokens: sequences of one capacity can share tensors.
const ROUND_TO: usize = 64;

/// Keys and values of one sequence.
pub struct CandleCache {
    /// Tokens asked for; no row beyond them is written.
    tokens: usize,
    pub(super) layers: Vec<Layer>,
}

/// Keys and values of one layer, `(slots, heads, capacity, head_dim)`, of which `slot` is this
/// sequence's.
pub(super) struct Layer {
    pub keys: Tensor,
    pub values: Tensor,
    pub slot: usize,
    /// Rows that may hold something; those beyond are zeros.
    pub filled: usize,
}

/// Tokens that a cache of `tokens` tokens holds.
fn capacity(tokens: usize) -> usize {
    tokens.max(1).checked_next_multiple_of(ROUND_TO).unwrap_or(tokens)
}

/// Bytes of a cache.
pub(super) fn bytes(config: &Config, tokens: usize, dtype: DType) -> u64 {
    let token = 2 * dtype.size_in_bytes() as u64 * config.hidden_size as u64;
    token.saturating_mul(config.num_hidden_layers as u64).saturating_mul(capacity(tokens) as u64)
}

impl CandleCache {
    pub(super) fn new(
        config: &Config,
        tokens: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let shape = (1, config.num_attention_heads, capacity(tokens), config.head_dim());
        let what = format!("the cache of {tokens} tokens");
        let refused = allocating(&what, bytes(config, tokens, dtype));
        let empty = || -> Result<Layer> {
            let zeros = || Tensor::zeros(shape, dtype, device).map_err(&refused);
            Ok(Layer { keys: zeros()?, values: zeros()?, slot: 0, filled: 0 })
        };
        let layers = (0..config.num_hidden_layers).map(|_| empty()).collect::<Result<_>>()?;
        Ok(Self { tokens, layers })
    }

    /// Tokens that its tensors hold.
    pub(super) fn capacity(&self) -> usize {
        capacity(self.tokens)
    }

    /// Copies rows as [`copy_cache`](crate::backend::Backend::copy_cache) says.
    pub(super) fn copy_from(
        &mut self,
        start: usize,
        from: &Self,
        at: usize,
        tokens: usize,
    ) -> Result<()> {
        let fits = |first: usize, room| first.checked_add(tokens).is_some_and(|end| end <= room);
        let same = from.layers.len() == self.layers.len();
        if !same || !fits(at, from.tokens) || !fits(start, self.tokens) {
            return Err(Error::Internal(format!(
                "{tokens} tokens of a cache copied from {at} of {} to {start} of {}",
                from.tokens, self.tokens
            )));
        }
        if tokens == 0 {
            return Ok(());
        }
        for (from, to) in from.layers.iter().zip(&mut self.layers) {
            // Both may lie in one tensor, which no operation reads and writes.
            let rows =
                |x: &Tensor| x.narrow(0, from.slot, 1)?.narrow(2, at, tokens)?.force_contiguous();
            let (keys, values) = (rows(&from.keys)?, rows(&from.values)?);
            to.write(start, &keys, &values)?;
        }
        Ok(())
    }
}

impl Layer {
    /// This sequence's part of a tensor, `(1, heads, capacity, head_dim)`.
    pub fn own(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.narrow(0, self.slot, 1)?)
    }

    /// Writes rows `(1, heads, rows, head_dim)`, contiguous, from `position` on; those that were
    /// written beyond them are forgotten.
    pub fn write(&mut self, position: usize, keys: &Tensor, values: &Tensor) -> Result<()> {
        self.own(&self.keys)?.slice_set(keys, 2, position)?;
        self.own(&self.values)?.slice_set(values, 2, position)?;
        self.end_at(position + keys.dim(2)?)
    }

    /// Clears what was written from row `end` on: in a batch, rows beyond a sequence's end get the
    /// weight zero, and zero times what a failed step left there (NaN) is NaN.
    pub fn end_at(&mut self, end: usize) -> Result<()> {
        if self.filled > end {
            for x in [&self.keys, &self.values] {
                let own = self.own(x)?;
                let (_, heads, _, dim) = own.dims4()?;
                let zeros =
                    Tensor::zeros((1, heads, self.filled - end, dim), x.dtype(), x.device())?;
                own.slice_set(&zeros, 2, end)?;
            }
        }
        self.filled = end;
        Ok(())
    }
}

/// Lays the sequences' tensors of a layer side by side, in order, unless they lie so.
pub(super) fn merge(caches: &mut [&mut CandleCache], layer: usize) -> Result<(Tensor, Tensor)> {
    let layers: Vec<&Layer> = caches.iter().map(|cache| &cache.layers[layer]).collect();
    let Some(first) = layers.first() else {
        return Err(Error::Internal("a batch of no sequences".to_owned()));
    };
    let in_order =
        |(slot, layer): (usize, &&Layer)| layer.slot == slot && layer.keys.id() == first.keys.id();
    if first.keys.dim(0)? == layers.len() && layers.iter().enumerate().all(in_order) {
        return Ok((first.keys.clone(), first.values.clone()));
    }
    let beside = |of: fn(&Layer) -> &Tensor| -> Result<Tensor> {
        let parts = layers.iter().map(|layer| layer.own(of(layer)));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        Ok(match &*parts {
            [one] => one.force_contiguous()?,
            parts => Tensor::cat(parts, 0)?,
        })
    };
    let (keys, values) = (beside(|layer| &layer.keys)?, beside(|layer| &layer.values)?);
    for (slot, cache) in caches.iter_mut().enumerate() {
        let layer = &mut cache.layers[layer];
        (layer.keys, layer.values, layer.slot) = (keys.clone(), values.clone(), slot);
    }
    Ok((keys, values))
}
