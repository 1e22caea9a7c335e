//! The network in training: forward and backward pass over f32 memory, written out by hand.
//!
//! A framework's graph keeps every intermediate result and pads every batch. Here a block keeps
//! its input, the rotated projection, attention's output and the feed-forward layer before its
//! activation (with checkpointing the input alone); norms and activations are formed again, the
//! logits of a few rows exist at a time, and rows of different sequences lie side by side without
//! padding. Every gradient is compared with PyTorch's (`tests/golden/make_gradients.py`).

mod block;
#[cfg(feature = "candle")]
mod candle;
mod dropout;
mod head;
mod memory;
mod parameters;
mod pass;
mod plan;
mod start;
#[cfg(test)]
mod tests;
mod wiring;

use block::Saved;
use dropout::Noise;
use pass::{Executor, Pass};
use plan::Plan;
use wiring::Wiring;

#[cfg(feature = "candle")]
pub(crate) use candle::CandleNetwork;
pub(crate) use memory::{BatchSize, Footprint};
pub(crate) use parameters::Parameter;
pub(crate) use plan::Sequence;
pub(crate) use start::Start;

use crate::backend::RotaryTable;
use crate::error::{Error, Result, try_vec, try_zeroed};
use crate::kernels::Kernels;
use crate::kernels::attention_gradient::AttentionScratch;
use crate::kernels::matmul::MatmulScratch;
use crate::kernels::pool::Pool;
use crate::model::Config;
use crate::train::LoraConfig;

/// How a network is trained.
#[derive(Debug, Clone)]
pub(crate) struct NetworkOptions {
    /// Threads, 1 or more.
    pub threads: usize,
    /// Keep only the input of each block, and form the rest again in the backward pass.
    pub gradient_checkpointing: bool,
    /// Share of the elements dropped after the embedding and after both branches of each block.
    pub dropout: f32,
    /// What is trained; the rest holds no gradients.
    pub trained: Trained,
}

/// Which parameters of a network are trained.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Trained {
    /// Every one.
    All,
    /// Low-rank adapters beside frozen weights.
    Adapters(LoraConfig),
    /// None: the network is only rated.
    Nothing,
}

/// Summed loss of predicted tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct LossSum {
    /// Sum of -ln p.
    pub nats: f64,
    /// Number of predicted tokens.
    pub tokens: usize,
}

/// Buffers between operations, reused by every batch.
#[derive(Default)]
struct Work {
    normed: Vec<f32>,
    branch: Vec<f32>,
    wide: Vec<f32>,
    slopes: Vec<f32>,
    gradient: Vec<f32>,
    selected: Vec<f32>,
    logits: Vec<f32>,
    statistics: Vec<f32>,
    low: Vec<f32>,
    dropped: Vec<f32>,
}

impl Work {
    fn bytes(&self) -> u64 {
        let all = [
            &self.normed,
            &self.branch,
            &self.wide,
            &self.slopes,
            &self.gradient,
            &self.selected,
            &self.logits,
            &self.statistics,
            &self.low,
            &self.dropped,
        ];
        all.into_iter().map(|v| 4 * v.capacity() as u64).sum()
    }
}

/// A network whose parameters can be trained.
pub(crate) struct Network {
    config: Config,
    parameters: Vec<Parameter>,
    wiring: Wiring,
    rotary: RotaryTable,
    executor: Executor,
    options: NetworkOptions,
    /// The residual stream before each block, and after the last.
    streams: Vec<Vec<f32>>,
    /// One for each block; with checkpointing one for all.
    saved: Vec<Saved>,
    nats: Vec<f32>,
    gradient: Vec<f32>,
    work: Work,
}

impl Network {
    /// A network with these weights.
    pub(crate) fn new(start: Start, options: &NetworkOptions) -> Result<Self> {
        let Start { config, wiring, mut parameters } = start;
        for parameter in parameters.iter_mut().filter(|p| p.trainable) {
            let what = format!("the gradient of {}", parameter.name);
            parameter.gradient = try_zeroed(parameter.values.len(), &what)?;
        }
        let layers = config.num_hidden_layers;
        let mut streams = try_vec(layers + 1, "activations")?;
        streams.resize_with(layers + 1, Vec::new);
        let kept = if options.gradient_checkpointing { 1 } else { layers.max(1) };
        let mut saved = try_vec(kept, "activations")?;
        saved.resize_with(kept, Saved::default);
        let forced = std::env::var("DOLLY_FORCE_ISA").ok();
        Ok(Self {
            rotary: RotaryTable::new(&config, config.max_position_embeddings)?,
            executor: Executor {
                kernels: Kernels::select(forced.as_deref())?,
                pool: Pool::new(options.threads)?,
                product: MatmulScratch::default(),
                attention: AttentionScratch::new(options.threads)?,
            },
            config,
            parameters,
            wiring,
            options: options.clone(),
            streams,
            saved,
            nats: Vec::new(),
            gradient: Vec::new(),
            work: Work::default(),
        })
    }

    /// The hyper-parameters; the vocabulary is that of the resized embeddings.
    #[cfg(test)]
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Every tensor, frozen ones included; adapters after their layer's own.
    pub(crate) fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// As [`parameters`](Self::parameters), to be changed by an optimizer.
    pub(crate) fn parameters_mut(&mut self) -> &mut [Parameter] {
        &mut self.parameters
    }

    /// Clears all gradients.
    pub(crate) fn zero_gradients(&mut self) {
        self.parameters.iter_mut().for_each(|p| p.gradient.fill(0.0));
    }

    /// Bytes held: parameters, gradients, activations and scratch space.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let parameters: u64 = self.parameters.iter().map(Parameter::bytes).sum();
        let streams: u64 = self.streams.iter().map(|v| 4 * v.capacity() as u64).sum();
        let saved: u64 = self.saved.iter().map(Saved::bytes).sum();
        let scratch = self.executor.product.bytes() + self.executor.attention.bytes();
        let losses = 4 * (self.nats.capacity() + self.gradient.capacity()) as u64;
        parameters + streams + saved + scratch + losses + self.work.bytes()
    }

    /// Adds `scale` times the gradient of the batch's summed nats to the gradients.
    ///
    /// `noise` seeds the dropout of this batch. A sequence that is too long, predicts nothing or
    /// holds an unknown id is [`Error::InvalidInput`](crate::Error::InvalidInput).
    pub(crate) fn accumulate(
        &mut self,
        batch: &[Sequence<'_>],
        scale: f32,
        noise: u64,
    ) -> Result<LossSum> {
        let plan = self.plan(batch)?;
        let mut pass = Pass {
            config: &self.config,
            parameters: &mut self.parameters,
            executor: &mut self.executor,
            rotary: &self.rotary,
            plan: &plan,
            noise: Noise::new(noise, self.options.dropout),
            work: &mut self.work,
        };
        let again = self.options.gradient_checkpointing;
        let place = |layer: usize| if again { 0 } else { layer };
        let (wiring, streams, saved) = (&self.wiring, &mut self.streams, &mut self.saved);
        pass.embed(wiring.embedding, &mut streams[0])?;
        for (i, layer) in wiring.layers.iter().enumerate() {
            let (before, after) = streams.split_at_mut(i + 1);
            pass.block(i, layer, &before[i], &mut saved[place(i)], &mut after[0])?;
        }
        let d = &mut self.gradient;
        let last = wiring.layers.len();
        pass.loss(wiring, &streams[last], Some((scale, d)), &mut self.nats)?;
        let embedding = pass.parameters[wiring.embedding].trainable;
        for (i, layer) in wiring.layers.iter().enumerate().rev() {
            let (before, after) = streams.split_at_mut(i + 1);
            let saved = &mut saved[place(i)];
            // The last block's results are still there.
            if again && i + 1 < last {
                pass.block(i, layer, &before[i], saved, &mut after[0])?;
            }
            pass.block_backward(i, layer, &before[i], saved, d, embedding || i > 0)?;
        }
        if embedding {
            pass.embed_backward(wiring.embedding, d);
        }
        let nats = self.nats.iter().map(|x| f64::from(*x)).sum();
        Ok(LossSum { nats, tokens: self.nats.len() })
    }

    /// The loss of each sequence, without dropout; gradients stay as they are.
    pub(crate) fn losses(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<LossSum>> {
        let plan = self.plan(batch)?;
        let mut pass = Pass {
            config: &self.config,
            parameters: &mut self.parameters,
            executor: &mut self.executor,
            rotary: &self.rotary,
            plan: &plan,
            noise: Noise::off(),
            work: &mut self.work,
        };
        let (wiring, saved) = (&self.wiring, &mut self.saved[0]);
        let (mut x, mut next) = (Vec::new(), Vec::new());
        std::mem::swap(&mut x, &mut self.streams[0]);
        pass.embed(wiring.embedding, &mut x)?;
        for (i, layer) in wiring.layers.iter().enumerate() {
            pass.block(i, layer, &x, saved, &mut next)?;
            std::mem::swap(&mut x, &mut next);
        }
        pass.loss(wiring, &x, None, &mut self.nats)?;
        self.streams[0] = x;
        let mut sums = try_vec(batch.len(), "losses")?;
        let mut rest = self.nats.as_slice();
        for count in &plan.label_counts {
            let (own, others) = rest.split_at(*count);
            let nats = own.iter().map(|x| f64::from(*x)).sum();
            sums.push(LossSum { nats, tokens: *count });
            rest = others;
        }
        Ok(sums)
    }

    fn plan(&self, batch: &[Sequence<'_>]) -> Result<Plan> {
        if batch.is_empty() {
            return Err(Error::InvalidInput("a batch of no sequences".to_owned()));
        }
        Plan::new(batch, self.config.vocab_size, self.rotary.positions)
    }
}
