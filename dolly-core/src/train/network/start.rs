//! A network's tensors with their first values, before it is known what computes with them.

use super::Trained;
use super::parameters::{Normals, Parameter};
use super::wiring::{self, Wiring};
use crate::error::Result;
use crate::model::Config;
use crate::weights::Checkpoint;

/// Weights to train from.
pub(crate) struct Start {
    /// The vocabulary is that of the resized embeddings.
    pub(super) config: Config,
    pub(super) wiring: Wiring,
    /// Without room for gradients: a device has its own.
    pub(super) parameters: Vec<Parameter>,
}

impl Start {
    /// Reads a checkpoint and gives its embeddings `vocab_rows` rows: those beyond are dropped,
    /// missing ones drawn like those there.
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        config: Config,
        vocab_rows: usize,
        trained: &Trained,
        seed: u64,
    ) -> Result<Self> {
        let config = Config { vocab_size: vocab_rows, ..config };
        let mut start = Self::zeros(config, trained)?;
        let mut numbers = Normals::new(seed);
        for parameter in start.parameters.iter_mut().filter(|p| !p.name.contains(".lora_")) {
            parameter.read(checkpoint, &mut numbers)?;
        }
        wiring::initialise_adapters(&mut start.parameters, &mut numbers);
        Ok(start)
    }

    /// Random weights.
    pub(crate) fn initialised(config: Config, trained: &Trained, seed: u64) -> Result<Self> {
        let mut start = Self::zeros(config, trained)?;
        let mut numbers = Normals::new(seed);
        for parameter in start.parameters.iter_mut().filter(|p| !p.name.contains(".lora_")) {
            parameter.initialise(&mut numbers);
        }
        wiring::initialise_adapters(&mut start.parameters, &mut numbers);
        Ok(start)
    }

    fn zeros(config: Config, trained: &Trained) -> Result<Self> {
        if let Trained::Adapters(lora) = trained {
            lora.validate()?;
        }
        let (wiring, parameters) = wiring::build(&config, trained)?;
        Ok(Self { config, wiring, parameters })
    }
}
