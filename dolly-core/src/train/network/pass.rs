//! The operations of one forward and backward pass, over rows of activations in memory.

use std::mem::take;

use super::Work;
use super::dropout::{self, Noise};
use super::parameters::Parameter;
use super::plan::Plan;
use super::wiring::{Adapter, Linear, Norm};
use crate::backend::RotaryTable;
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::kernels::attention_gradient::{Attention, AttentionScratch, Heads};
use crate::kernels::linear::resize;
use crate::kernels::matmul::{Extent, MatmulScratch, Operand, Target, matmul};
use crate::kernels::pool::{Pool, pieces, rows as for_rows};
use crate::model::Config;

/// Columns of a gradient that one thread sums at a time.
const COLUMNS: usize = 64;

/// Threads, instruction set and scratch space of the products.
pub(super) struct Executor {
    pub kernels: Kernels,
    pub pool: Pool,
    pub product: MatmulScratch,
    pub attention: AttentionScratch,
}

impl Executor {
    fn matmul(
        &mut self,
        a: Operand<'_>,
        b: Operand<'_>,
        c: Target<'_>,
        extent: Extent,
    ) -> Result<()> {
        matmul(self.kernels, &self.pool, &mut self.product, a, b, c, extent)
    }

    /// `to += from`, on all threads.
    pub(super) fn add(&self, to: &mut [f32], from: &[f32], width: usize) {
        let rows = to.len() / width.max(1);
        for_rows(&self.pool, to, rows, width, true, |first, to| {
            self.kernels.add(to, &from[first * width..][..to.len()]);
        });
    }
}

/// One batch on its way through the network.
pub(super) struct Pass<'a> {
    pub config: &'a Config,
    pub parameters: &'a mut [Parameter],
    pub executor: &'a mut Executor,
    pub rotary: &'a RotaryTable,
    pub plan: &'a Plan,
    pub noise: Noise,
    pub work: &'a mut Work,
}

impl Pass<'_> {
    fn values(&self, index: usize) -> &[f32] {
        &self.parameters[index].values
    }

    /// Rows of the embedding, one per token of the batch.
    pub(super) fn embed(&mut self, embedding: usize, out: &mut Vec<f32>) -> Result<()> {
        let width = self.config.hidden_size;
        resize(out, self.plan.rows() * width, "token embeddings")?;
        let table = self.values(embedding);
        for (id, to) in self.plan.ids.iter().zip(out.chunks_exact_mut(width)) {
            to.copy_from_slice(&table[*id as usize * width..][..width]);
        }
        self.noise.apply(&self.executor.pool, dropout::EMBEDDING, width, out);
        Ok(())
    }

    /// Adds the rows of `d` to the gradients of their tokens.
    pub(super) fn embed_backward(&mut self, embedding: usize, d: &mut [f32]) {
        let width = self.config.hidden_size;
        self.noise.apply(&self.executor.pool, dropout::EMBEDDING, width, d);
        let kernels = self.executor.kernels;
        let gradient = &mut self.parameters[embedding].gradient;
        for (id, from) in self.plan.ids.iter().zip(d.chunks_exact(width)) {
            kernels.add(&mut gradient[*id as usize * width..][..width], from);
        }
    }

    /// Normalises rows into `out`.
    pub(super) fn norm(&self, norm: Norm, x: &[f32], out: &mut Vec<f32>) -> Result<()> {
        let (width, eps) = (self.config.hidden_size, self.config.layer_norm_eps);
        resize(out, x.len(), "normalised activations")?;
        let (weight, bias) = (self.values(norm.weight), self.values(norm.bias));
        let kernels = self.executor.kernels;
        for_rows(&self.executor.pool, out, x.len() / width, width, true, |first, out| {
            let rows = out.chunks_exact_mut(width).zip(x[first * width..].chunks_exact(width));
            rows.for_each(|(out, x)| kernels.layer_norm(x, weight, bias, eps, out));
        });
        Ok(())
    }

    /// Adds the gradient of the norm's input to `dx`, and those of its parameters to theirs.
    pub(super) fn norm_backward(
        &mut self,
        norm: Norm,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
    ) -> Result<()> {
        let (width, eps) = (self.config.hidden_size, self.config.layer_norm_eps);
        let rows = x.len() / width;
        let mut statistics = take(&mut self.work.statistics);
        resize(&mut statistics, 2 * rows, "statistics of a norm")?;
        let (kernels, pool) = (self.executor.kernels, &self.executor.pool);
        let weight = &self.parameters[norm.weight].values;
        pieces(pool, (dx, &mut statistics), (width, 2), rows, true, |r, dx, statistics| {
            let row = r * width..(r + 1) * width;
            let (mean, scale) =
                kernels.layer_norm_backward(&x[row.clone()], weight, eps, &dy[row], dx);
            statistics.copy_from_slice(&[mean, scale]);
        });
        let both = self.parameters.get_disjoint_mut([norm.weight, norm.bias]);
        let [weight, bias] = both.map_err(|e| Error::Internal(e.to_string()))?;
        let gradients = (weight.gradient.as_mut_slice(), bias.gradient.as_mut_slice());
        let count = gradients.0.len().div_ceil(COLUMNS);
        pieces(pool, gradients, (COLUMNS, COLUMNS), count, true, |c, dw, db| {
            for (r, row) in statistics.chunks_exact(2).enumerate() {
                let columns = r * width + c * COLUMNS..r * width + c * COLUMNS + dw.len();
                let (x, dy) = (&x[columns.clone()], &dy[columns]);
                kernels.layer_norm_weights(x, dy, (row[0], row[1]), dw, db);
            }
        });
        self.work.statistics = statistics;
        Ok(())
    }

    /// `out = W x + b`, or `out += W x + b`, the adapter's share included.
    pub(super) fn linear(
        &mut self,
        linear: &Linear,
        x: &[f32],
        out: &mut [f32],
        accumulate: bool,
    ) -> Result<()> {
        let (inputs, outputs) = (linear.inputs, linear.outputs);
        let rows = x.len() / inputs;
        if let Some(bias) = linear.bias.map(|bias| &self.parameters[bias].values) {
            let kernels = self.executor.kernels;
            for_rows(&self.executor.pool, out, rows, outputs, true, |_, out| {
                for row in out.chunks_exact_mut(outputs) {
                    match accumulate {
                        true => kernels.add(row, bias),
                        false => row.copy_from_slice(bias),
                    }
                }
            });
        }
        let accumulate = accumulate || linear.bias.is_some();
        let weight = Operand::transposed(&self.parameters[linear.weight].values, inputs);
        let target = Target { data: out, stride: outputs, accumulate };
        let extent = (rows, inputs, outputs);
        self.executor.matmul(Operand::rows(x, inputs), weight, target, extent)?;
        match &linear.adapter {
            Some(adapter) => self.adapter(adapter, linear, x, out),
            None => Ok(()),
        }
    }

    fn adapter(
        &mut self,
        adapter: &Adapter,
        linear: &Linear,
        x: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        let (low, dropped) = self.low_rank(adapter, linear, x)?;
        let (rank, outputs) = (adapter.rank, linear.outputs);
        let b = Operand::transposed(&self.parameters[adapter.b].values, rank);
        let target = Target { data: out, stride: outputs, accumulate: true };
        let extent = (x.len() / linear.inputs, rank, outputs);
        self.executor.matmul(Operand::rows(&low, rank), b, target, extent)?;
        (self.work.low, self.work.dropped) = (low, dropped);
        Ok(())
    }

    /// `scale A dropout(x)`, and `dropout(x)` where there is dropout.
    fn low_rank(
        &mut self,
        adapter: &Adapter,
        linear: &Linear,
        x: &[f32],
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let (inputs, rank) = (linear.inputs, adapter.rank);
        let rows = x.len() / inputs;
        let (mut low, mut dropped) = (take(&mut self.work.low), take(&mut self.work.dropped));
        resize(&mut low, rows * rank, "activations of an adapter")?;
        let noise = self.noise.with_rate(adapter.dropout);
        let mut from = x;
        if noise.is_on() {
            resize(&mut dropped, x.len(), "inputs of an adapter")?;
            dropped.copy_from_slice(x);
            let site = dropout::ADAPTERS + adapter.site;
            noise.apply(&self.executor.pool, site, inputs, &mut dropped);
            from = &dropped;
        }
        let a = Operand::transposed(&self.parameters[adapter.a].values, inputs);
        let target = Target { data: &mut low, stride: rank, accumulate: false };
        self.executor.matmul(Operand::rows(from, inputs), a, target, (rows, inputs, rank))?;
        self.executor.kernels.scale(adapter.scale, &mut low);
        Ok((low, dropped))
    }

    /// From the gradient `dy` of a linear layer's output to those of its parameters and, where
    /// wanted, of its input: `dx` is overwritten.
    pub(super) fn linear_backward(
        &mut self,
        linear: &Linear,
        x: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
    ) -> Result<()> {
        let (inputs, outputs) = (linear.inputs, linear.outputs);
        let rows = x.len() / inputs;
        let weight = &mut self.parameters[linear.weight];
        if weight.trainable {
            let target = Target { data: &mut weight.gradient, stride: inputs, accumulate: true };
            let (left, right) = (Operand::transposed(dy, outputs), Operand::rows(x, inputs));
            self.executor.matmul(left, right, target, (outputs, rows, inputs))?;
        }
        if let Some(bias) = linear.bias.filter(|bias| self.parameters[*bias].trainable) {
            self.column_sums(bias, dy, outputs);
        }
        let mut dx = dx;
        if let Some(dx) = dx.as_deref_mut() {
            let weight = Operand::rows(&self.parameters[linear.weight].values, inputs);
            let target = Target { data: dx, stride: inputs, accumulate: false };
            let extent = (rows, outputs, inputs);
            self.executor.matmul(Operand::rows(dy, outputs), weight, target, extent)?;
        }
        match &linear.adapter {
            Some(adapter) => self.adapter_backward(adapter, linear, x, dy, dx),
            None => Ok(()),
        }
    }

    fn column_sums(&mut self, parameter: usize, dy: &[f32], width: usize) {
        let (kernels, pool) = (self.executor.kernels, &self.executor.pool);
        let gradient = self.parameters[parameter].gradient.as_mut_slice();
        let count = width.div_ceil(COLUMNS);
        pieces(pool, (gradient, &mut []), (COLUMNS, 0), count, true, |c, sums, _| {
            for row in dy.chunks_exact(width) {
                kernels.add(sums, &row[c * COLUMNS..][..sums.len()]);
            }
        });
    }

    fn adapter_backward(
        &mut self,
        adapter: &Adapter,
        linear: &Linear,
        x: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
    ) -> Result<()> {
        let (inputs, outputs, rank) = (linear.inputs, linear.outputs, adapter.rank);
        let rows = x.len() / inputs;
        // `low` carries the scale, which is all that B's gradient needs of it.
        let (mut low, mut dropped) = self.low_rank(adapter, linear, x)?;
        let noise = self.noise.with_rate(adapter.dropout);
        let gradient = &mut self.parameters[adapter.b].gradient;
        let target = Target { data: gradient, stride: rank, accumulate: true };
        let (left, right) = (Operand::transposed(dy, outputs), Operand::rows(&low, rank));
        self.executor.matmul(left, right, target, (outputs, rows, rank))?;
        let b = Operand::rows(&self.parameters[adapter.b].values, rank);
        let target = Target { data: &mut low, stride: rank, accumulate: false };
        self.executor.matmul(Operand::rows(dy, outputs), b, target, (rows, outputs, rank))?;
        self.executor.kernels.scale(adapter.scale, &mut low);
        let from = if noise.is_on() { dropped.as_slice() } else { x };
        let gradient = &mut self.parameters[adapter.a].gradient;
        let target = Target { data: gradient, stride: inputs, accumulate: true };
        let (left, right) = (Operand::transposed(&low, rank), Operand::rows(from, inputs));
        self.executor.matmul(left, right, target, (rank, rows, inputs))?;
        if let Some(dx) = dx {
            let a = Operand::rows(&self.parameters[adapter.a].values, inputs);
            let extent = (rows, rank, inputs);
            if noise.is_on() {
                let target = Target { data: &mut dropped, stride: inputs, accumulate: false };
                self.executor.matmul(Operand::rows(&low, rank), a, target, extent)?;
                let site = dropout::ADAPTERS + adapter.site;
                noise.apply(&self.executor.pool, site, inputs, &mut dropped);
                self.executor.add(dx, &dropped, inputs);
            } else {
                let target = Target { data: dx, stride: inputs, accumulate: true };
                self.executor.matmul(Operand::rows(&low, rank), a, target, extent)?;
            }
        }
        (self.work.low, self.work.dropped) = (low, dropped);
        Ok(())
    }

    /// Rotates queries and keys by their positions, or back.
    pub(super) fn rotate(&self, qkv: &mut [f32], back: bool) {
        let heads = self.heads();
        let (half, row) = (self.rotary.half, 3 * self.config.hidden_size);
        let (table, positions) = (self.rotary, &self.plan.positions);
        for_rows(&self.executor.pool, qkv, positions.len(), row, true, |first, rows| {
            for (values, position) in rows.chunks_exact_mut(row).zip(&positions[first..]) {
                let at = *position as usize * half;
                let (cos, sin) = (&table.cos[at..at + half], &table.sin[at..at + half]);
                for head in values.chunks_exact_mut(3 * heads.width) {
                    let (query, rest) = head.split_at_mut(heads.width);
                    rotate(query, cos, sin, back);
                    rotate(&mut rest[..heads.width], cos, sin, back);
                }
            }
        });
    }

    fn heads(&self) -> Heads {
        Heads { count: self.config.num_attention_heads, width: self.config.head_dim() }
    }

    fn attention_of<'b>(&'b self, qkv: &'b [f32]) -> Attention<'b> {
        Attention {
            kernels: self.executor.kernels,
            pool: &self.executor.pool,
            heads: self.heads(),
            qkv,
            sequences: &self.plan.sequences,
        }
    }

    /// Attention over rotated queries, keys and values.
    pub(super) fn attention(
        &self,
        qkv: &[f32],
        out: &mut [f32],
        log_sums: &mut [f32],
    ) -> Result<()> {
        self.attention_of(qkv).forward(&self.executor.attention, out, log_sums)
    }

    /// The gradient of the rotated projection.
    pub(super) fn attention_backward(
        &self,
        qkv: &[f32],
        log_sums: &[f32],
        d_out: &[f32],
        d_qkv: &mut [f32],
    ) -> Result<()> {
        self.attention_of(qkv).backward(&self.executor.attention, log_sums, d_out, d_qkv)
    }
}

/// Rotates the pairs (i, i + half) of a head; `back` is the inverse and the transpose.
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], back: bool) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((x, y), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let sin = if back { -sin } else { *sin };
        (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
    }
}
