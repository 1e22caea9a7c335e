//! The network in training on candle tensors: on a GPU, or on the CPU, where it and the kernels
//! check each other.
//!
//! The passes are those of the parent module, written out for the same reasons. candle's own graph
//! forms products for the gradients of frozen weights, adds every gradient to zeros and keeps each
//! intermediate result; its fused norms and softmax record no backward pass, and the slopes it forms
//! for `x * sigmoid(x)` are NaN where `exp(-x)` overflows.
//!
//! Weights, gradients and moments are f32. Products are formed in f32 or bf16: inputs, weights and
//! results are rounded then, sums are not. The residual stream, norms, rotation, softmax and loss
//! are f32 always. Attention alone pads sequences to one length.

mod attention;
mod batch;
mod block;
mod head;
mod layers;
#[cfg(test)]
mod tests;
mod update;

use candle_core::{DType, Device, Tensor};

use self::batch::Batch;
pub(super) use self::batch::SCORES;
use self::block::Saved;
use self::layers::Pass;
use super::dropout::{self, Noise};
use super::plan::Plan;
use super::wiring::Wiring;
use super::{LossSum, NetworkOptions, Parameter, Sequence, Start};
use crate::backend::RotaryTable;
use crate::backend::candle::Gpu;
use crate::error::{Error, Result, try_vec};
use crate::kernels::pool::Pool;
use crate::model::Config;
use crate::train::model::Model;
use crate::train::optimizer::AdamW;
use crate::train::options::Precision;

/// A tensor of the network on its device, in f32.
struct Weight {
    name: String,
    value: Tensor,
    trainable: bool,
    /// Sum of the gradients since they were last cleared.
    gradient: Option<Tensor>,
    /// First and second moment; unset before the first update.
    moments: Option<[Tensor; 2]>,
}

/// A network whose parameters are trained on a device.
///
/// [`parameters`](Model::parameters) has the values that were last fetched or stored, and no
/// gradients.
pub(crate) struct CandleNetwork {
    config: Config,
    parameters: Vec<Parameter>,
    weights: Vec<Weight>,
    wiring: Wiring,
    turns: Option<Turns>,
    options: NetworkOptions,
    device: Device,
    /// The type that products are formed in.
    dtype: DType,
    positions: usize,
    scores: usize,
    /// For dropout, whose masks are formed on the CPU: they are the same on every device.
    pool: Pool,
}

/// Cosines and sines `(positions, half)`, and the sines of the rotation back.
struct Turns {
    cos: Tensor,
    sin: Tensor,
    back: Tensor,
    half: usize,
}

impl Turns {
    fn new(rotary: &RotaryTable, device: &Device) -> Result<Option<Self>> {
        if rotary.half == 0 {
            return Ok(None);
        }
        let shape = (rotary.positions, rotary.half);
        let cos = Tensor::from_slice(&rotary.cos, shape, device)?;
        let sin = Tensor::from_slice(&rotary.sin, shape, device)?;
        Ok(Some(Self { back: sin.neg()?, cos, sin, half: rotary.half }))
    }
}

impl CandleNetwork {
    /// A network with these weights on a GPU.
    pub(crate) fn new(
        start: Start,
        options: &NetworkOptions,
        gpu: &Gpu,
        precision: Precision,
    ) -> Result<Self> {
        let Start { config, wiring, parameters } = start;
        let device = gpu.device.clone();
        let mut weights = try_vec(parameters.len(), "the list of parameters")?;
        for parameter in &parameters {
            weights.push(Weight {
                name: parameter.name.clone(),
                value: update::upload(&parameter.values, parameter, &device)?,
                trainable: parameter.trainable,
                gradient: None,
                moments: None,
            });
        }
        let rotary = RotaryTable::new(&config, config.max_position_embeddings)?;
        Ok(Self {
            turns: Turns::new(&rotary, &device)?,
            positions: rotary.positions,
            scores: SCORES,
            config,
            parameters,
            weights,
            wiring,
            options: options.clone(),
            device,
            dtype: match precision {
                Precision::F32 => DType::F32,
                Precision::Bf16 => DType::BF16,
            },
            pool: Pool::new(options.threads)?,
        })
    }

    fn plan(&self, batch: &[Sequence<'_>]) -> Result<Plan> {
        if batch.is_empty() {
            return Err(Error::InvalidInput("a batch of no sequences".to_owned()));
        }
        Plan::new(batch, self.config.vocab_size, self.positions)
    }

    fn pass<'a>(&'a mut self, batch: &'a Batch, noise: Noise) -> Pass<'a> {
        Pass {
            config: &self.config,
            weights: &mut self.weights,
            turns: self.turns.as_ref(),
            batch,
            noise,
            pool: &self.pool,
            dtype: self.dtype,
        }
    }

    fn forward_backward(&mut self, plan: &Plan, scale: f32, noise: u64) -> Result<Vec<f32>> {
        let batch = Batch::new(plan, &self.config, self.scores, &self.device)?;
        let again = self.options.gradient_checkpointing;
        let noise = Noise::new(noise, self.options.dropout);
        let layers = self.wiring.layers.clone();
        let (embedding, norm, head) =
            (self.wiring.embedding, self.wiring.final_norm, self.wiring.head);
        let mut pass = self.pass(&batch, noise);
        let mut x = pass.embed(embedding)?;
        // The input of every block, and what its backward pass needs unless it is formed again.
        let mut kept: Vec<(Tensor, Option<Saved>)> = try_vec(layers.len(), "activations")?;
        for (i, layer) in layers.iter().enumerate() {
            let (out, saved) = pass.block(i, layer, &x)?;
            let keep = !again || i + 1 == layers.len();
            kept.push((std::mem::replace(&mut x, out), keep.then_some(saved)));
        }
        let (nats, mut d) = pass.loss(norm, &head, &x, scale)?;
        drop(x);
        let first = pass.weights[embedding].trainable;
        for (i, layer) in layers.iter().enumerate().rev() {
            let Some((x, saved)) = kept.pop() else { break };
            let saved = match saved {
                Some(saved) => saved,
                None => pass.block(i, layer, &x)?.1,
            };
            match pass.block_backward(i, layer, &x, saved, &d, first || i > 0)? {
                Some(gradient) => d = gradient,
                None => break,
            }
        }
        if first {
            let d = pass.drop(&d, noise, dropout::EMBEDDING)?;
            pass.embed_backward(embedding, &d)?;
        }
        nats.read()
    }
}

impl Model for CandleNetwork {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut [Parameter] {
        &mut self.parameters
    }

    fn zero_gradients(&mut self) {
        self.weights.iter_mut().for_each(|weight| weight.gradient = None);
    }

    fn accumulate(&mut self, batch: &[Sequence<'_>], scale: f32, noise: u64) -> Result<LossSum> {
        let plan = self.plan(batch)?;
        let nats = self.forward_backward(&plan, scale, noise)?;
        Ok(LossSum { nats: nats.iter().map(|x| f64::from(*x)).sum(), tokens: nats.len() })
    }

    fn losses(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<LossSum>> {
        let plan = self.plan(batch)?;
        let batch = Batch::new(&plan, &self.config, self.scores, &self.device)?;
        let layers = self.wiring.layers.clone();
        let (embedding, norm, head) =
            (self.wiring.embedding, self.wiring.final_norm, self.wiring.head);
        let pass = self.pass(&batch, Noise::off());
        let mut x = pass.embed(embedding)?;
        for (i, layer) in layers.iter().enumerate() {
            x = pass.block(i, layer, &x)?.0;
        }
        let nats = pass.rate(norm, &head, &x)?.read()?;
        let mut sums = try_vec(plan.label_counts.len(), "losses")?;
        let mut rest = nats.as_slice();
        for count in &plan.label_counts {
            let (own, others) = rest.split_at_checked(*count).unwrap_or((rest, &[]));
            let nats = own.iter().map(|x| f64::from(*x)).sum();
            sums.push(LossSum { nats, tokens: *count });
            rest = others;
        }
        Ok(sums)
    }

    fn gradient_norm(&self, _: &Pool) -> Result<f64> {
        update::norm(&self.weights)
    }

    fn update(&mut self, optimizer: &mut AdamW, _: &Pool, rate: f64, clip: f32) -> Result<()> {
        update::step(&mut self.weights, optimizer, rate, clip)
    }

    fn fetch(&mut self, optimizer: &mut AdamW) -> Result<()> {
        update::fetch(&self.weights, &mut self.parameters, optimizer)
    }

    fn store(&mut self, optimizer: &AdamW) -> Result<()> {
        update::store(&mut self.weights, &self.parameters, optimizer)
    }
}
