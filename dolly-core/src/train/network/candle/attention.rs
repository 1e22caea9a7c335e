//! Attention, forward and backward: scores and weights are formed again, never kept.

use candle_core::{D, DType, Tensor};

use super::batch::Group;
use super::layers::Pass;
use crate::error::Result;

/// Queries, keys and values of a group, `(sequences, heads, longest, head_dim)` in the type of
/// products. Queries and keys are rotated, and queries scaled by `1 / sqrt(head_dim)`.
pub(super) struct Rotated {
    query: Tensor,
    key: Tensor,
    value: Tensor,
}

impl Rotated {
    /// The softmax of the scores `(sequences, heads, longest, longest)`, f32.
    fn weights(&self, group: &Group) -> Result<Tensor> {
        let scores = self.query.matmul(&self.key.t()?)?.to_dtype(DType::F32)?;
        Ok(candle_nn::ops::softmax_last_dim(&scores.broadcast_add(&group.mask)?)?)
    }
}

impl Pass<'_> {
    fn scale(&self) -> f64 {
        1.0 / (self.config.head_dim() as f64).sqrt()
    }

    /// Queries, keys and values of each group, of the projection `(rows, 3 hidden)`.
    pub fn rotated(&self, qkv: &Tensor) -> Result<Vec<Rotated>> {
        let (heads, dim) = (self.config.num_attention_heads, self.config.head_dim());
        let groups = self.batch.groups.iter();
        let rotated = groups.map(|group| {
            let (n, t) = (group.sequences, group.longest);
            let all = group.pad(qkv)?.reshape((n, t, heads, 3, dim))?.permute((3, 0, 2, 1, 4))?;
            let all = all.contiguous()?; // (3, n, h, t, d)
            let both =
                all.narrow(0, 0, 2)?.to_dtype(DType::F32)?.reshape((2 * n, heads, t, dim))?;
            let both = self.turned(&both, false)?;
            let query = (both.narrow(0, 0, n)? * self.scale())?.to_dtype(self.dtype)?;
            let key = both.narrow(0, n, n)?.to_dtype(self.dtype)?;
            // A copy, so that the unrotated rest is not kept with it.
            Ok(Rotated { query, key, value: all.get(2)?.force_contiguous()? })
        });
        rotated.collect()
    }

    /// Heads `(any, heads, longest, head_dim)`, contiguous and f32, rotated by their positions, or
    /// back.
    fn turned(&self, x: &Tensor, back: bool) -> Result<Tensor> {
        let Some(turns) = self.turns else { return Ok(x.clone()) };
        let (_, _, length, dim) = x.dims4()?;
        let width = 2 * turns.half;
        let sin = if back { &turns.back } else { &turns.sin };
        let (cos, sin) = (turns.cos.narrow(0, 0, length)?, sin.narrow(0, 0, length)?);
        let turned = x.narrow(D::Minus1, 0, width)?.contiguous()?;
        let turned = candle_nn::rotary_emb::rope(&turned, &cos, &sin)?;
        Ok(match width == dim {
            true => turned,
            false => Tensor::cat(&[&turned, &x.narrow(D::Minus1, width, dim - width)?], D::Minus1)?,
        })
    }

    /// The mixed values `(rows, hidden)` in the type of products.
    pub fn attention(&self, rotated: &[Rotated]) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(rotated.len());
        for (group, own) in self.batch.groups.iter().zip(rotated) {
            let weights = own.weights(group)?.to_dtype(self.dtype)?;
            let mixed = weights.matmul(&own.value)?.transpose(1, 2)?; // (n, t, h, d)
            let rows = group.sequences * group.longest;
            parts.push(group.unpad(&mixed.reshape((rows, self.config.hidden_size))?)?);
        }
        together(parts)
    }

    /// The gradient of the projection `(rows, 3 hidden)`, in the type of products, from that of the
    /// mixed values.
    pub fn attention_backward(&self, rotated: &[Rotated], d: &Tensor) -> Result<Tensor> {
        let d = d.to_dtype(self.dtype)?;
        let mut parts = Vec::with_capacity(rotated.len());
        for (group, own) in self.batch.groups.iter().zip(rotated) {
            parts.push(group.unpad(&self.group_backward(group, own, &d)?)?);
        }
        together(parts)
    }

    fn group_backward(&self, group: &Group, own: &Rotated, d: &Tensor) -> Result<Tensor> {
        let (heads, dim) = (self.config.num_attention_heads, self.config.head_dim());
        let (n, t) = (group.sequences, group.longest);
        let d = group.pad(d)?.reshape((n, t, heads, dim))?.transpose(1, 2)?.contiguous()?;
        let weights = own.weights(group)?;
        let d_value = weights.to_dtype(self.dtype)?.transpose(2, 3)?.matmul(&d)?;
        let d_weights = d.matmul(&own.value.t()?)?.to_dtype(DType::F32)?;
        let mean = (&weights * &d_weights)?.sum_keepdim(D::Minus1)?;
        let d_scores = (weights * d_weights.broadcast_sub(&mean)?)?.to_dtype(self.dtype)?;
        let d_query = (d_scores.matmul(&own.key)?.to_dtype(DType::F32)? * self.scale())?;
        let d_key = d_scores.transpose(2, 3)?.matmul(&own.query)?.to_dtype(DType::F32)?;
        let both = self.turned(&Tensor::cat(&[&d_query, &d_key], 0)?, true)?;
        let both = both.to_dtype(self.dtype)?.reshape((2, n, heads, t, dim))?;
        let all = Tensor::cat(&[&both, &d_value.unsqueeze(0)?], 0)?; // (3, n, h, t, d)
        Ok(all.permute((1, 3, 2, 0, 4))?.reshape((n * t, 3 * heads * dim))?)
    }
}

/// Rows of the groups, one after the other.
fn together(mut parts: Vec<Tensor>) -> Result<Tensor> {
    match parts.len() {
        1 => Ok(parts.remove(0)),
        _ => Ok(Tensor::cat(&parts, 0)?),
    }
}
