//! The output layer and the loss: logits of a few rows at a time, never of the whole batch.

use candle_core::{D, DType, Tensor};

use super::batch::Labels;
use super::layers::Pass;
use crate::backend::candle::fetch;
use crate::error::{Error, Result, try_vec};
use crate::train::network::wiring::{Linear, Norm};

/// Nats of the predicted tokens, still on the device.
pub(super) struct Nats(Vec<Tensor>);

impl Nats {
    /// One number for each label, in order; waits for the device.
    pub fn read(self) -> Result<Vec<f32>> {
        let mut nats = Vec::new();
        fetch(&Tensor::cat(&self.0, 0)?, "losses from the device", &mut nats)?;
        Ok(nats)
    }
}

/// Logits of some rows and what their losses are made of, each a column `(rows, 1)`.
struct Rated {
    selected: Tensor,
    normed: Tensor,
    /// Logits less their largest, exponentiated, `(rows, vocabulary)`.
    exponentials: Tensor,
    sums: Tensor,
    nats: Tensor,
}

impl Pass<'_> {
    /// Nats of each label, given the residual stream `x` after the last block.
    pub fn rate(&self, norm: Norm, head: &Linear, x: &Tensor) -> Result<Nats> {
        let labels = self.batch.labels.iter();
        let nats = labels.map(|labels| Ok(self.rows(norm, head, x, labels)?.nats));
        Ok(Nats(nats.collect::<Result<_>>()?))
    }

    /// As [`rate`](Self::rate), with `scale` times the gradient of the summed nats in `x`; those of
    /// the norm and the output layer are added to theirs.
    pub fn loss(
        &mut self,
        norm: Norm,
        head: &Linear,
        x: &Tensor,
        scale: f32,
    ) -> Result<(Nats, Tensor)> {
        let batch = self.batch;
        let mut nats = try_vec(batch.labels.len(), "losses")?;
        let mut d = x.zeros_like()?;
        for labels in &batch.labels {
            let rated = self.rows(norm, head, x, labels)?;
            let shares = rated.exponentials.broadcast_div(&(rated.sums / f64::from(scale))?)?;
            let own = Tensor::full(-scale, labels.ids.shape(), x.device())?;
            let d_logits = shares.scatter_add(&labels.ids, &own, D::Minus1)?;
            let d_normed = self.linear_backward(head, &rated.normed, &d_logits, true)?;
            let d_normed = d_normed
                .ok_or_else(|| Error::Internal("the output layer gave no gradient".to_owned()))?;
            let rows = self.norm_backward(norm, &rated.selected, &d_normed)?;
            d = d.index_add(&labels.rows, &rows, 0)?;
            nats.push(rated.nats);
        }
        Ok((Nats(nats), d))
    }

    fn rows(&self, norm: Norm, head: &Linear, x: &Tensor, labels: &Labels) -> Result<Rated> {
        let selected = x.index_select(&labels.rows, 0)?;
        let normed = self.norm(norm, &selected)?;
        let logits = self.linear(head, &normed)?.to_dtype(DType::F32)?;
        let most = logits.max_keepdim(D::Minus1)?;
        let own = logits.gather(&labels.ids, D::Minus1)?;
        let exponentials = logits.broadcast_sub(&most)?.exp()?;
        let sums = exponentials.sum_keepdim(D::Minus1)?;
        let nats = (sums.log()? + (most - own)?)?;
        Ok(Rated { selected, normed, exponentials, sums, nats })
    }
}
