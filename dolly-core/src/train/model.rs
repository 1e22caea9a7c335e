//! What the trainer asks of a network.

pub(crate) use super::network::{LossSum, Network, Parameter, Sequence};
use super::optimizer::{AdamW, gradient_norm};
use crate::error::Result;
use crate::kernels::pool::Pool;

/// A network whose gradients can be had: [`Network`], one on a device, or in tests a small one with
/// known gradients.
///
/// The last four methods are for networks that hold weights, gradients and moments elsewhere than
/// in their parameters and the optimizer.
pub(crate) trait Model {
    fn parameters(&self) -> &[Parameter];
    fn parameters_mut(&mut self) -> &mut [Parameter];
    fn zero_gradients(&mut self);
    /// Adds `scale * d(sum of nats)/d(parameter)` to every gradient; `noise` seeds dropout.
    fn accumulate(&mut self, batch: &[Sequence<'_>], scale: f32, noise: u64) -> Result<LossSum>;
    /// The loss of each sequence, without gradients.
    fn losses(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<LossSum>>;

    /// Bytes it holds; 0 where it does not know.
    fn memory_bytes(&self) -> u64 {
        0
    }

    /// The Euclidean norm of all gradients together.
    fn gradient_norm(&self, pool: &Pool) -> Result<f64> {
        gradient_norm(self.parameters(), pool)
    }

    /// Makes the optimizer's next update with learning rate `rate` and gradients times `clip`.
    fn update(&mut self, optimizer: &mut AdamW, pool: &Pool, rate: f64, clip: f32) -> Result<()> {
        optimizer.update(self.parameters_mut(), pool, rate, clip)
    }

    /// Brings weights and moments into the parameters and the optimizer, to be saved.
    fn fetch(&mut self, _: &mut AdamW) -> Result<()> {
        Ok(())
    }

    /// Takes weights and moments over from the parameters and the optimizer, which were restored.
    fn store(&mut self, _: &AdamW) -> Result<()> {
        Ok(())
    }
}

impl Model for Network {
    fn parameters(&self) -> &[Parameter] {
        self.parameters()
    }

    fn parameters_mut(&mut self) -> &mut [Parameter] {
        self.parameters_mut()
    }

    fn zero_gradients(&mut self) {
        self.zero_gradients();
    }

    fn accumulate(&mut self, batch: &[Sequence<'_>], scale: f32, noise: u64) -> Result<LossSum> {
        self.accumulate(batch, scale, noise)
    }

    fn losses(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<LossSum>> {
        self.losses(batch)
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes()
    }
}
