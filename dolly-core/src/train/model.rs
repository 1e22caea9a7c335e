//! What the trainer asks of a network.

pub(crate) use super::network::{LossSum, Network, Parameter, Sequence};
use crate::error::Result;

/// A network whose gradients can be had: [`Network`], or in tests a small one with known gradients.
pub(crate) trait Model {
    fn parameters(&self) -> &[Parameter];
    fn parameters_mut(&mut self) -> &mut [Parameter];
    fn zero_gradients(&mut self);
    /// Adds `scale * d(sum of nats)/d(parameter)` to every gradient; `noise` seeds dropout.
    fn accumulate(&mut self, batch: &[Sequence<'_>], scale: f32, noise: u64) -> Result<LossSum>;
    /// The loss of each sequence, without gradients.
    fn losses(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<LossSum>>;
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
}
