//! One transformer block, forward and backward.

use candle_core::{DType, Tensor};

use super::attention::Rotated;
use super::layers::Pass;
use crate::error::{Error, Result};
use crate::train::network::dropout::LAYERS;
use crate::train::network::wiring::{Layer, Linear, Norm};

/// What the backward pass needs of a block besides its input.
pub(super) struct Saved {
    rotated: Vec<Rotated>,
    /// Attention's output before its last product, `(rows, hidden)`.
    attended: Tensor,
    /// The feed-forward layer before its activation, `(rows, intermediate)`.
    inner: Tensor,
    /// The residual stream between attention and feed-forward, where they follow each other.
    middle: Option<Tensor>,
}

impl Pass<'_> {
    /// The residual stream after the block, f32, and what was saved.
    pub fn block(&self, index: usize, layer: &Layer, x: &Tensor) -> Result<(Tensor, Saved)> {
        let site = LAYERS + 2 * index as u64;
        let qkv = self.linear(&layer.query_key_value, &self.norm(layer.input_norm, x)?)?;
        let rotated = self.rotated(&qkv)?;
        drop(qkv);
        let attended = self.attention(&rotated)?;
        let out = (x + self.branch(&layer.dense, &attended, site)?)?;
        let middle = (!self.config.use_parallel_residual).then(|| out.clone());
        let normed = self.norm(layer.post_attention_norm, middle.as_ref().unwrap_or(x))?;
        let inner = self.linear(&layer.dense_h_to_4h, &normed)?;
        let activated = self.activate(&inner)?;
        let out = (out + self.branch(&layer.dense_4h_to_h, &activated, site + 1)?)?;
        Ok((out, Saved { rotated, attended, inner, middle }))
    }

    /// `dropout(linear(x))`, f32.
    fn branch(&self, linear: &Linear, x: &Tensor, site: u64) -> Result<Tensor> {
        let y = self.linear(linear, x)?.to_dtype(DType::F32)?;
        self.drop(&y, self.noise, site)
    }

    /// From the gradient `d` of the block's output to that of its input, which is formed where it is
    /// wanted: where something before the block is trained.
    pub fn block_backward(
        &mut self,
        index: usize,
        layer: &Layer,
        x: &Tensor,
        saved: Saved,
        d: &Tensor,
        wanted: bool,
    ) -> Result<Option<Tensor>> {
        let Saved { rotated, attended, inner, middle } = saved;
        let site = LAYERS + 2 * index as u64;
        let own = self.drop(d, self.noise, site + 1)?;
        let slopes =
            self.linear_backward(&layer.dense_4h_to_h, &self.activate(&inner)?, &own, true)?;
        let slopes = self.activate_backward(&inner, &formed(slopes)?)?;
        drop(inner);
        let norm = (layer.post_attention_norm, &layer.dense_h_to_4h);
        let between = middle.as_ref().unwrap_or(x);
        let after = self.through_norm(norm, between, &slopes, wanted || middle.is_some())?;
        drop(slopes);
        // What attention's branch adds to: the block's output, or all that follows it.
        let whole = match &after {
            Some(after) => (d + after)?,
            None => d.clone(),
        };
        let reached = if middle.is_some() { &whole } else { d };
        let own = self.drop(reached, self.noise, site)?;
        let d_attended = formed(self.linear_backward(&layer.dense, &attended, &own, true)?)?;
        let d_qkv = self.attention_backward(&rotated, &d_attended)?;
        let norm = (layer.input_norm, &layer.query_key_value);
        let before = self.through_norm(norm, x, &d_qkv, wanted)?;
        Ok(before.map(|before| whole + before).transpose()?)
    }

    /// Backward through `linear(norm(x))`; the gradient of `x` where it is wanted.
    fn through_norm(
        &mut self,
        (norm, linear): (Norm, &Linear),
        x: &Tensor,
        dy: &Tensor,
        wanted: bool,
    ) -> Result<Option<Tensor>> {
        // A trained norm needs the gradient of its output as much as what lies before it does.
        let reached = wanted || self.weights[norm.weight].trainable;
        let normed = self.norm(norm, x)?;
        let Some(d) = self.linear_backward(linear, &normed, dy, reached)? else { return Ok(None) };
        let dx = self.norm_backward(norm, x, &d)?;
        Ok(wanted.then_some(dx))
    }
}

fn formed(gradient: Option<Tensor>) -> Result<Tensor> {
    gradient.ok_or_else(|| Error::Internal("a gradient that was asked for is missing".to_owned()))
}
