//! The output layer and the loss: logits of a few rows at a time, never of the whole batch.

use std::mem::take;

use super::pass::Pass;
use super::wiring::Wiring;
use crate::error::Result;
use crate::kernels::linear::resize;
use crate::kernels::pool::pieces;

/// Predicted rows whose logits are held together.
pub(super) const ROWS: usize = 256;

impl Pass<'_> {
    /// Nats of each label of the plan, given the residual stream `x` after the last block.
    ///
    /// With `gradient` as `(scale, d)`: `d` is overwritten with `scale` times the gradient of the
    /// summed nats, and so are, added up, the gradients of the norm and the output layer.
    pub(super) fn loss(
        &mut self,
        wiring: &Wiring,
        x: &[f32],
        gradient: Option<(f32, &mut Vec<f32>)>,
        nats: &mut Vec<f32>,
    ) -> Result<()> {
        let width = self.config.hidden_size;
        let plan = self.plan;
        resize(nats, plan.labels.len(), "losses")?;
        let (scale, mut d) = gradient.unzip();
        if let Some(d) = d.as_deref_mut() {
            resize(d, x.len(), "the gradient of the residual stream")?;
            d.fill(0.0);
        }
        for (labels, nats) in plan.labels.chunks(ROWS).zip(nats.chunks_mut(ROWS)) {
            let mut selected = take(&mut self.work.selected);
            resize(&mut selected, labels.len() * width, "predicted rows")?;
            for ((row, _), to) in labels.iter().zip(selected.chunks_exact_mut(width)) {
                to.copy_from_slice(&x[row * width..][..width]);
            }
            self.some_rows(wiring, &mut selected, labels, scale, nats)?;
            if let Some(d) = d.as_deref_mut() {
                for ((row, _), from) in labels.iter().zip(selected.chunks_exact(width)) {
                    d[row * width..][..width].copy_from_slice(from);
                }
            }
            self.work.selected = selected;
        }
        Ok(())
    }

    /// Nats of some rows; with a scale, `rows` becomes the gradient.
    fn some_rows(
        &mut self,
        wiring: &Wiring,
        rows: &mut [f32],
        labels: &[(usize, u32)],
        scale: Option<f32>,
        nats: &mut [f32],
    ) -> Result<()> {
        let (mut normed, mut logits) = (take(&mut self.work.normed), take(&mut self.work.logits));
        self.norm(wiring.final_norm, rows, &mut normed)?;
        let vocabulary = self.config.vocab_size;
        resize(&mut logits, labels.len() * vocabulary, "logits")?;
        self.linear(&wiring.head, &normed, &mut logits, false)?;
        let (kernels, pool) = (self.executor.kernels, &self.executor.pool);
        let sizes = (vocabulary, 1);
        pieces(pool, (&mut logits, nats), sizes, labels.len(), true, |r, logits, nats| {
            let label = labels[r].1 as usize;
            let (most, own) = (kernels.max(logits), logits[label]);
            let sum = kernels.exp_minus(1.0, most, logits);
            nats[0] = sum.ln() + (most - own);
            if let Some(scale) = scale {
                kernels.scale(scale / sum, logits);
                logits[label] -= scale;
            }
        });
        if scale.is_some() {
            let mut d_normed = take(&mut self.work.branch);
            resize(&mut d_normed, rows.len(), "gradients of predicted rows")?;
            self.linear_backward(&wiring.head, &normed, &logits, Some(&mut d_normed))?;
            let mut d = take(&mut self.work.gradient);
            resize(&mut d, rows.len(), "gradients of predicted rows")?;
            d.fill(0.0);
            self.norm_backward(wiring.final_norm, rows, &d_normed, &mut d)?;
            rows.copy_from_slice(&d);
            (self.work.branch, self.work.gradient) = (d_normed, d);
        }
        (self.work.normed, self.work.logits) = (normed, logits);
        Ok(())
    }
}
