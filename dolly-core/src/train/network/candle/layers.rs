//! Embedding, norms, linear layers and activations, forward and backward.

use candle_core::{D, DType, Tensor};

use super::batch::Batch;
use super::{Turns, Weight};
use crate::backend::candle::activate;
use crate::error::{Result, try_vec};
use crate::kernels::pool::Pool;
use crate::model::{Activation, Config};
use crate::train::network::dropout::{self, Noise};
use crate::train::network::wiring::{Adapter, Linear, Norm};

/// One batch on its way through the network.
pub(super) struct Pass<'a> {
    pub config: &'a Config,
    pub weights: &'a mut [Weight],
    pub turns: Option<&'a Turns>,
    pub batch: &'a Batch,
    pub noise: Noise,
    pub pool: &'a Pool,
    /// The type that products are formed in.
    pub dtype: DType,
}

impl Pass<'_> {
    fn value(&self, index: usize) -> &Tensor {
        &self.weights[index].value
    }

    /// A weight in the type of products.
    fn rounded(&self, index: usize) -> Result<Tensor> {
        Ok(self.value(index).to_dtype(self.dtype)?)
    }

    fn is_trained(&self, index: usize) -> bool {
        self.weights[index].trainable
    }

    fn add_gradient(&mut self, index: usize, gradient: Tensor) -> Result<()> {
        let gradient = gradient.to_dtype(DType::F32)?;
        let weight = &mut self.weights[index];
        weight.gradient = Some(match weight.gradient.take() {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        });
        Ok(())
    }

    /// Rows of the embedding `(rows, hidden)`, f32.
    pub fn embed(&self, embedding: usize) -> Result<Tensor> {
        let rows = self.value(embedding).index_select(&self.batch.ids, 0)?;
        self.drop(&rows, self.noise, dropout::EMBEDDING)
    }

    /// Adds the rows of `d` to the gradients of their tokens.
    pub fn embed_backward(&mut self, embedding: usize, d: &Tensor) -> Result<()> {
        let weight = &mut self.weights[embedding];
        let sum = match weight.gradient.take() {
            Some(sum) => sum,
            None => weight.value.zeros_like()?,
        };
        weight.gradient = Some(sum.index_add(&self.batch.ids, d, 0)?);
        Ok(())
    }

    /// `x` with the elements gone that are dropped at this place; the same going back.
    pub fn drop(&self, x: &Tensor, noise: Noise, site: u64) -> Result<Tensor> {
        if !noise.is_on() {
            return Ok(x.clone());
        }
        let (rows, width) = x.dims2()?;
        let mut mask = try_vec(rows.saturating_mul(width), "dropout")?;
        mask.resize(rows * width, 1.0f32);
        noise.apply(self.pool, site, width, &mut mask);
        let mask = Tensor::from_vec(mask, (rows, width), x.device())?;
        Ok((x.to_dtype(DType::F32)? * mask)?.to_dtype(x.dtype())?)
    }

    /// Normalised rows, f32.
    pub fn norm(&self, norm: Norm, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.value(norm.weight), self.value(norm.bias));
        Ok(candle_nn::ops::layer_norm(x, weight, bias, self.config.layer_norm_eps)?)
    }

    /// The gradient of the norm's input; those of its parameters are added to theirs.
    pub fn norm_backward(&mut self, norm: Norm, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let dy = dy.to_dtype(DType::F32)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let scale = (variance + f64::from(self.config.layer_norm_eps))?.sqrt()?.recip()?;
        let normed = centred.broadcast_mul(&scale)?;
        if self.is_trained(norm.weight) {
            self.add_gradient(norm.weight, (&dy * &normed)?.sum(0)?)?;
            self.add_gradient(norm.bias, dy.sum(0)?)?;
        }
        let d = dy.broadcast_mul(self.value(norm.weight))?;
        let along = (&d * &normed)?.mean_keepdim(D::Minus1)?;
        let d = d.broadcast_sub(&d.mean_keepdim(D::Minus1)?)?;
        Ok((d - normed.broadcast_mul(&along)?)?.broadcast_mul(&scale)?)
    }

    /// `W x + b` with the adapter's share, `(rows, outputs)` in the type of products.
    pub fn linear(&self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        let x = x.to_dtype(self.dtype)?;
        let mut y = x.matmul(&self.rounded(linear.weight)?.t()?)?;
        if let Some(bias) = linear.bias {
            y = y.broadcast_add(&self.rounded(bias)?)?;
        }
        if let Some(adapter) = &linear.adapter {
            let (low, _) = self.low_rank(adapter, &x)?;
            y = (y + low.matmul(&self.rounded(adapter.b)?.t()?)?)?;
        }
        Ok(y)
    }

    /// `scale A dropout(x)`, and `dropout(x)`.
    fn low_rank(&self, adapter: &Adapter, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let noise = self.noise.with_rate(adapter.dropout);
        let dropped = self.drop(x, noise, dropout::ADAPTERS + adapter.site)?;
        let low = dropped.matmul(&self.rounded(adapter.a)?.t()?)?;
        Ok(((low * f64::from(adapter.scale))?, dropped))
    }

    /// From the gradient `dy` of a linear layer's output to those of its parameters and, where
    /// wanted, of its input.
    pub fn linear_backward(
        &mut self,
        linear: &Linear,
        x: &Tensor,
        dy: &Tensor,
        wanted: bool,
    ) -> Result<Option<Tensor>> {
        if let Some(bias) = linear.bias.filter(|bias| self.is_trained(*bias)) {
            self.add_gradient(bias, dy.to_dtype(DType::F32)?.sum(0)?)?;
        }
        let (x, dy) = (x.to_dtype(self.dtype)?, dy.to_dtype(self.dtype)?);
        if self.is_trained(linear.weight) {
            self.add_gradient(linear.weight, dy.t()?.matmul(&x)?)?;
        }
        let mut dx = match wanted {
            true => Some(dy.matmul(&self.rounded(linear.weight)?)?),
            false => None,
        };
        if let Some(adapter) = &linear.adapter {
            let d = self.adapter_backward(adapter, &x, &dy, wanted)?;
            dx = dx.zip(d).map(|(dx, d)| dx + d).transpose()?;
        }
        Ok(dx)
    }

    fn adapter_backward(
        &mut self,
        adapter: &Adapter,
        x: &Tensor,
        dy: &Tensor,
        wanted: bool,
    ) -> Result<Option<Tensor>> {
        // `low` carries the scale, which is all that B's gradient needs of it.
        let (low, dropped) = self.low_rank(adapter, x)?;
        self.add_gradient(adapter.b, dy.t()?.matmul(&low)?)?;
        let low = (dy.matmul(&self.rounded(adapter.b)?)? * f64::from(adapter.scale))?;
        self.add_gradient(adapter.a, low.t()?.matmul(&dropped)?)?;
        if !wanted {
            return Ok(None);
        }
        let d = low.matmul(&self.rounded(adapter.a)?)?;
        let noise = self.noise.with_rate(adapter.dropout);
        self.drop(&d, noise, dropout::ADAPTERS + adapter.site).map(Some)
    }

    /// The activation of the feed-forward layer, f32.
    pub fn activate(&self, inner: &Tensor) -> Result<Tensor> {
        activate(inner.to_dtype(DType::F32)?, self.config.hidden_act)
    }

    /// The gradient of the activation's input, f32.
    pub fn activate_backward(&self, inner: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let slopes = slopes(&inner.to_dtype(DType::F32)?, self.config.hidden_act)?;
        Ok((slopes * dy.to_dtype(DType::F32)?)?)
    }
}

/// `1 / (1 + exp(-x))`.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}

/// The derivative of an activation at `x`.
pub(super) fn slopes(x: &Tensor, activation: Activation) -> Result<Tensor> {
    // s(cx) (1 + cx (1 - s(cx))), the slope of x s(cx).
    let swish = |c: f64| -> Result<Tensor> {
        let x = (x * c)?;
        let s = sigmoid(&x)?;
        let rest = (1.0 - &s)?;
        Ok(((x * rest)? + 1.0)?.mul(&s)?)
    };
    Ok(match activation {
        // P(x) + x p(x), of the normal distribution.
        Activation::Gelu => {
            let below = (((x / 2f64.sqrt())?.erf()? + 1.0)? * 0.5)?;
            let density = ((x.sqr()? * -0.5)?.exp()? / std::f64::consts::TAU.sqrt())?;
            (below + (x * density)?)?
        }
        // (1 + t + x (1 - t^2) c (1 + 3 k x^2)) / 2 with t = tanh(c (x + k x^3)).
        Activation::GeluTanh => {
            let (c, k) = ((2.0 / std::f64::consts::PI).sqrt(), 0.044715);
            let square = x.sqr()?;
            let t = ((x * ((&square * k)? + 1.0)?)? * c)?.tanh()?;
            let inner = ((square * (3.0 * k * c))? + c)?;
            let outer = ((x * (1.0 - t.sqr()?)?)? * inner)?;
            (((t + outer)? + 1.0)? * 0.5)?
        }
        Activation::QuickGelu => swish(1.702)?,
        Activation::Relu => x.gt(&x.zeros_like()?)?.to_dtype(x.dtype())?,
        Activation::Silu => swish(1.0)?,
    })
}
