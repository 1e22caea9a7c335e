//! One transformer block, forward and backward.

use std::mem::take;

use super::dropout::LAYERS;
use super::pass::Pass;
use super::wiring::{Layer, Linear};
use crate::error::Result;
use crate::kernels::linear::resize;
use crate::kernels::pool::rows as for_rows;

/// What the backward pass needs of a block besides its input.
#[derive(Default)]
pub(super) struct Saved {
    /// Rotated queries, keys and values, `(rows, 3 hidden)`.
    qkv: Vec<f32>,
    /// Attention's output before its last product, `(rows, hidden)`.
    attended: Vec<f32>,
    /// Logarithms of the softmax's sums, `(heads, rows)`.
    log_sums: Vec<f32>,
    /// The feed-forward layer before its activation, `(rows, intermediate)`.
    inner: Vec<f32>,
    /// The residual stream between attention and feed-forward, where they follow each other.
    middle: Vec<f32>,
}

impl Saved {
    pub(super) fn bytes(&self) -> u64 {
        let all = [&self.qkv, &self.attended, &self.log_sums, &self.inner, &self.middle];
        all.into_iter().map(|v| 4 * v.capacity() as u64).sum()
    }
}

impl Pass<'_> {
    /// `out = block(x)`; `saved` is filled for [`block_backward`](Self::block_backward).
    pub(super) fn block(
        &mut self,
        index: usize,
        layer: &Layer,
        x: &[f32],
        saved: &mut Saved,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        resize(out, x.len(), "the residual stream")?;
        out.copy_from_slice(x);
        self.attention_branch(index, layer, x, saved, out)?;
        let input = match self.config.use_parallel_residual {
            true => x,
            false => {
                resize(&mut saved.middle, x.len(), "the residual stream")?;
                saved.middle.copy_from_slice(out);
                &saved.middle
            }
        };
        let mut normed = take(&mut self.work.normed);
        self.norm(layer.post_attention_norm, input, &mut normed)?;
        self.feed_forward_inner(layer, &normed, &mut saved.inner)?;
        let mut activated = take(&mut self.work.wide);
        self.activate(&saved.inner, &mut activated)?;
        self.add_branch(&layer.dense_4h_to_h, &activated, out, LAYERS + 2 * index as u64 + 1)?;
        (self.work.normed, self.work.wide) = (normed, activated);
        Ok(())
    }

    fn attention_branch(
        &mut self,
        index: usize,
        layer: &Layer,
        x: &[f32],
        saved: &mut Saved,
        out: &mut [f32],
    ) -> Result<()> {
        let rows = self.plan.rows();
        let mut normed = take(&mut self.work.normed);
        self.norm(layer.input_norm, x, &mut normed)?;
        resize(&mut saved.qkv, 3 * x.len(), "queries, keys and values")?;
        self.linear(&layer.query_key_value, &normed, &mut saved.qkv, false)?;
        self.work.normed = normed;
        self.rotate(&mut saved.qkv, false);
        resize(&mut saved.attended, x.len(), "attention")?;
        let heads = self.config.num_attention_heads;
        resize(&mut saved.log_sums, rows * heads, "attention")?;
        self.attention(&saved.qkv, &mut saved.attended, &mut saved.log_sums)?;
        self.add_branch(&layer.dense, &saved.attended, out, LAYERS + 2 * index as u64)
    }

    fn feed_forward_inner(
        &mut self,
        layer: &Layer,
        normed: &[f32],
        inner: &mut Vec<f32>,
    ) -> Result<()> {
        let len = self.plan.rows() * self.config.intermediate_size;
        resize(inner, len, "the feed-forward layer")?;
        self.linear(&layer.dense_h_to_4h, normed, inner, false)
    }

    /// `out += dropout(linear(x))`.
    fn add_branch(&mut self, linear: &Linear, x: &[f32], out: &mut [f32], site: u64) -> Result<()> {
        if !self.noise.is_on() {
            return self.linear(linear, x, out, true);
        }
        let width = self.config.hidden_size;
        let mut branch = take(&mut self.work.branch);
        resize(&mut branch, out.len(), "a branch")?;
        self.linear(linear, x, &mut branch, false)?;
        self.noise.apply(&self.executor.pool, site, width, &mut branch);
        self.executor.add(out, &branch, width);
        self.work.branch = branch;
        Ok(())
    }

    /// The branch's share of the gradient `d`: `d` itself, or `d` with the dropped elements gone.
    fn branch_gradient<'d>(
        &mut self,
        d: &'d [f32],
        site: u64,
        own: &'d mut Vec<f32>,
    ) -> Result<&'d [f32]> {
        if !self.noise.is_on() {
            return Ok(d);
        }
        resize(own, d.len(), "the gradient of a branch")?;
        own.copy_from_slice(d);
        self.noise.apply(&self.executor.pool, site, self.config.hidden_size, own);
        Ok(own)
    }

    fn activate(&self, inner: &[f32], out: &mut Vec<f32>) -> Result<()> {
        let (width, act) = (self.config.intermediate_size, self.config.hidden_act);
        resize(out, inner.len(), "the feed-forward layer")?;
        let kernels = self.executor.kernels;
        for_rows(&self.executor.pool, out, inner.len() / width, width, true, |first, out| {
            kernels.activate(act, &inner[first * width..][..out.len()], out);
        });
        Ok(())
    }

    /// From the gradient `d` of the block's output to that of its input, in place.
    ///
    /// With `input` false nothing before the block is trained, and `d` is left undefined.
    pub(super) fn block_backward(
        &mut self,
        index: usize,
        layer: &Layer,
        x: &[f32],
        saved: &Saved,
        d: &mut Vec<f32>,
        input: bool,
    ) -> Result<()> {
        let mut whole = take(&mut self.work.gradient);
        resize(&mut whole, d.len(), "the gradient of the residual stream")?;
        whole.copy_from_slice(d);
        let parallel = self.config.use_parallel_residual;
        let between = if parallel { x } else { &saved.middle };
        self.feed_forward_backward(
            index,
            layer,
            between,
            saved,
            d,
            (&mut whole, input || !parallel),
        )?;
        if !parallel {
            d.copy_from_slice(&whole);
        }
        self.attention_backward_branch(index, layer, x, saved, d, (&mut whole, input))?;
        std::mem::swap(d, &mut whole);
        self.work.gradient = whole;
        Ok(())
    }

    /// Adds to `whole` the gradient of the feed-forward branch's input.
    fn feed_forward_backward(
        &mut self,
        index: usize,
        layer: &Layer,
        x: &[f32],
        saved: &Saved,
        d: &[f32],
        (whole, input): (&mut [f32], bool),
    ) -> Result<()> {
        let (width, act) = (self.config.intermediate_size, self.config.hidden_act);
        let (mut activated, mut slopes) = (take(&mut self.work.wide), take(&mut self.work.slopes));
        let mut own = take(&mut self.work.branch);
        let d = self.branch_gradient(d, LAYERS + 2 * index as u64 + 1, &mut own)?;
        self.activate(&saved.inner, &mut activated)?;
        resize(&mut slopes, saved.inner.len(), "gradients of the feed-forward layer")?;
        self.linear_backward(&layer.dense_4h_to_h, &activated, d, Some(&mut slopes))?;
        self.work.branch = own;
        let kernels = self.executor.kernels;
        let rows = saved.inner.len() / width;
        for_rows(&self.executor.pool, &mut slopes, rows, width, true, |first, d| {
            kernels.activation_backward(act, &saved.inner[first * width..][..d.len()], d);
        });
        self.work.wide = activated;
        self.through_norm(
            layer.post_attention_norm,
            &layer.dense_h_to_4h,
            x,
            &slopes,
            (whole, input),
        )?;
        self.work.slopes = slopes;
        Ok(())
    }

    /// Adds to `whole` the gradient of the attention branch's input.
    fn attention_backward_branch(
        &mut self,
        index: usize,
        layer: &Layer,
        x: &[f32],
        saved: &Saved,
        d: &[f32],
        (whole, input): (&mut [f32], bool),
    ) -> Result<()> {
        let (mut d_attended, mut d_qkv) =
            (take(&mut self.work.normed), take(&mut self.work.slopes));
        let mut own = take(&mut self.work.branch);
        let d = self.branch_gradient(d, LAYERS + 2 * index as u64, &mut own)?;
        resize(&mut d_attended, x.len(), "the gradient of attention")?;
        self.linear_backward(&layer.dense, &saved.attended, d, Some(&mut d_attended))?;
        self.work.branch = own;
        resize(&mut d_qkv, 3 * x.len(), "gradients of queries, keys and values")?;
        self.attention_backward(&saved.qkv, &saved.log_sums, &d_attended, &mut d_qkv)?;
        self.rotate(&mut d_qkv, true);
        self.work.normed = d_attended;
        self.through_norm(layer.input_norm, &layer.query_key_value, x, &d_qkv, (whole, input))?;
        self.work.slopes = d_qkv;
        Ok(())
    }

    /// Backward through `linear(norm(x))`; the gradient of `x` is added to `whole` where wanted.
    fn through_norm(
        &mut self,
        norm: super::wiring::Norm,
        linear: &Linear,
        x: &[f32],
        dy: &[f32],
        (whole, input): (&mut [f32], bool),
    ) -> Result<()> {
        let (mut normed, mut d_normed) = (take(&mut self.work.normed), take(&mut self.work.branch));
        self.norm(norm, x, &mut normed)?;
        // A trained norm needs the gradient of its output as much as what lies before it does.
        let wanted = input || self.parameters[norm.weight].trainable;
        if wanted {
            resize(&mut d_normed, x.len(), "the gradient of a norm")?;
        }
        self.linear_backward(linear, &normed, dy, wanted.then_some(&mut d_normed[..]))?;
        if wanted {
            self.norm_backward(norm, x, &d_normed, whole)?;
        }
        (self.work.normed, self.work.branch) = (normed, d_normed);
        Ok(())
    }
}
