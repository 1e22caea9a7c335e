//! What a run computes on: the CPU's kernels, or a GPU through candle.

use super::model::{Model, Network};
use super::network::{BatchSize, Footprint, NetworkOptions, Start};
use super::options::{Precision, TrainingOptions};
use crate::error::{Error, Result};
use crate::model::Config;
use crate::pipeline::Gpu;

/// The device of a run.
pub(super) struct Execution {
    /// `None` is the CPU.
    gpu: Option<Gpu>,
    precision: Precision,
}

impl Execution {
    /// Opens the device that the options ask for.
    pub fn new(options: &TrainingOptions) -> Result<Self> {
        Ok(Self { gpu: options.device.gpu()?, precision: options.precision })
    }

    /// Takes the CPU in a GPU's place.
    #[cfg(feature = "candle")]
    pub fn stand_in(&mut self) {
        self.gpu = Some(Gpu::stand_in());
    }

    /// Refuses what the CPU's kernels do not compute in.
    pub fn check(&self) -> Result<()> {
        match (&self.gpu, self.precision) {
            (None, Precision::Bf16) => {
                Err(Error::Unsupported("training in bf16 on the CPU: f32".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what is beyond the memory limit or, as far as it is known for certain, beyond the
    /// memory of the GPU; nothing of it is allocated yet.
    pub fn check_memory(
        &self,
        config: &Config,
        options: &NetworkOptions,
        batch: BatchSize,
        limit: Option<u64>,
    ) -> Result<()> {
        let plan = match &self.gpu {
            None => Footprint::new(config, options, batch)?,
            #[cfg(not(feature = "candle"))]
            Some(gpu) => match *gpu {},
            #[cfg(feature = "candle")]
            Some(gpu) => {
                let plan = Footprint::on_device(config, options, batch, self.precision)?;
                // The activations are an estimate, which must not refuse what would fit.
                let known = Footprint { activations: 0, ..plan };
                refuse_beyond(Some(gpu.free_bytes()?), &known, batch)?;
                plan
            }
        };
        refuse_beyond(limit, &plan, batch)
    }

    /// The network with these weights.
    pub fn network(&self, start: Start, options: &NetworkOptions) -> Result<Box<dyn Model>> {
        match &self.gpu {
            None => Ok(Box::new(Network::new(start, options)?)),
            #[cfg(not(feature = "candle"))]
            Some(gpu) => match *gpu {},
            #[cfg(feature = "candle")]
            Some(gpu) => {
                let precision = self.precision;
                let network = super::network::CandleNetwork::new(start, options, gpu, precision)?;
                Ok(Box::new(network))
            }
        }
    }
}

fn refuse_beyond(limit: Option<u64>, plan: &Footprint, batch: BatchSize) -> Result<()> {
    let needed = plan.total();
    let Some(limit) = limit.filter(|limit| needed > *limit) else { return Ok(()) };
    let Footprint { weights, gradients, moments, activations } = *plan;
    let what = format!(
        "training (weights {weights}, gradients {gradients}, moments {moments}, activations of \
         batches of up to {} tokens {activations})",
        batch.tokens
    );
    Err(Error::MemoryLimit { what, needed, limit })
}
