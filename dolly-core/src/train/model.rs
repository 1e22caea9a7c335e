//! What the trainer asks of a network.

use crate::error::Result;

/// One training sequence; `ids[first_label..]` are predicted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequence<'a> {
    pub ids: &'a [u32],
    /// 1 or more.
    pub first_label: usize,
}

/// Summed `-ln p` over predicted tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct LossSum {
    pub nats: f64,
    pub tokens: usize,
}

/// A tensor of the network in training.
#[derive(Debug, Clone)]
pub(crate) struct Parameter {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
    /// As long as `values`; empty when frozen.
    pub gradient: Vec<f32>,
    pub trainable: bool,
}

/// A network whose gradients can be had: the one in [`network`](super::network), or a small one
/// with known gradients in tests.
pub(crate) trait Model {
    fn parameters(&self) -> &[Parameter];
    fn parameters_mut(&mut self) -> &mut [Parameter];
    fn zero_gradients(&mut self);
    /// Adds `scale * d(sum of nats)/d(parameter)` to every gradient; `noise` seeds dropout.
    fn accumulate(&mut self, batch: &[Sequence<'_>], scale: f32, noise: u64) -> Result<LossSum>;
    /// The loss of each sequence, without gradients.
    fn losses(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<LossSum>>;
}
