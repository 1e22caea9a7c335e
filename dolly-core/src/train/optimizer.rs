//! AdamW with decoupled decay (Loshchilov & Hutter, 2019), and clipping by the global norm.
//!
//! The operations are those of `torch.optim.AdamW` in its single-tensor form, in its order:
//!
//! ```text
//! p *= 1 - lr * decay                    (matrices only, as transformers' Trainer groups them)
//! m += (g - m) * (1 - beta1)
//! v  = v * beta2 + g * g * (1 - beta2)
//! p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
//! ```
//!
//! Every element is computed alone and every sum in a fixed order of fixed chunks, so the bits do
//! not depend on the number of threads.

use std::sync::{Mutex, PoisonError};

use super::model::Parameter;
use crate::error::{Error, Result, try_vec, try_zeroed};
use crate::kernels::pool::Pool;

#[cfg(test)]
mod tests;

/// Elements that one thread works on at a time.
const CHUNK: usize = 1 << 15;
/// Partial sums of a chunk's norm, so that the additions vectorise.
const LANES: usize = 8;

/// The numbers of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AdamSettings {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
}

/// First and second moment of one parameter; empty where it is frozen.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Moments {
    pub first: Vec<f32>,
    pub second: Vec<f32>,
}

/// The optimizer: moments in f32, one pair for each trainable parameter.
#[derive(Debug)]
pub(crate) struct AdamW {
    settings: AdamSettings,
    /// Updates made.
    pub updates: u64,
    /// In the order of the model's parameters.
    pub moments: Vec<Moments>,
}

/// What one update needs beside the tensors, in the types PyTorch computes it in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update {
    /// Scale of the gradients, from clipping.
    pub clip: f32,
    /// What decay leaves of a value.
    pub keep: f32,
    pub one_minus_beta1: f32,
    pub beta2: f32,
    pub one_minus_beta2: f32,
    pub step_size: f32,
    pub correction2_sqrt: f32,
    pub epsilon: f32,
}

impl AdamW {
    /// Moments of zeros for the trainable ones of `parameters`.
    pub fn new(settings: AdamSettings, parameters: &[Parameter]) -> Result<Self> {
        let mut moments = try_vec(parameters.len(), "the optimizer's state")?;
        for parameter in parameters {
            let len = if parameter.trainable { parameter.values.len() } else { 0 };
            moments.push(Moments {
                first: try_zeroed(len, &parameter.name)?,
                second: try_zeroed(len, &parameter.name)?,
            });
        }
        Ok(Self { settings, updates: 0, moments })
    }

    /// Updates the trainable ones of `parameters` with learning rate `rate` and gradients times
    /// `clip`.
    ///
    /// # Errors
    /// [`Error::Internal`] naming a trainable parameter without a gradient; nothing is changed then.
    pub fn update(
        &mut self,
        parameters: &mut [Parameter],
        pool: &Pool,
        rate: f64,
        clip: f32,
    ) -> Result<()> {
        check_gradients(parameters)?;
        if parameters.len() != self.moments.len() {
            return Err(Error::Internal("the optimizer is another model's".to_owned()));
        }
        let (matrix, vector) = self.next(rate, clip);
        let mut chunks = Vec::new();
        for (parameter, moments) in parameters.iter_mut().zip(&mut self.moments) {
            if !parameter.trainable {
                continue;
            }
            let update = if parameter.shape.len() >= 2 { matrix } else { vector };
            let tensors = parameter.values.chunks_mut(CHUNK).zip(parameter.gradient.chunks(CHUNK));
            let moments = moments.first.chunks_mut(CHUNK).zip(moments.second.chunks_mut(CHUNK));
            for ((values, gradient), (first, second)) in tensors.zip(moments) {
                chunks.push(Mutex::new((values, gradient, first, second, update)));
            }
        }
        pool.run(chunks.len(), true, |_, range| {
            for chunk in chunks.get(range).unwrap_or_default() {
                let mut chunk = chunk.lock().unwrap_or_else(PoisonError::into_inner);
                let (values, gradient, first, second, update) = &mut *chunk;
                update.apply(values, gradient, first, second);
            }
        });
        Ok(())
    }

    /// Counts an update; its constants for matrices, and for vectors.
    pub fn next(&mut self, rate: f64, clip: f32) -> (Update, Update) {
        self.updates += 1;
        let decay = self.settings.weight_decay;
        (self.at(rate, clip, decay), self.at(rate, clip, 0.0))
    }

    /// The constants of this update: formed in f64, then rounded, as PyTorch's scalars are.
    fn at(&self, rate: f64, clip: f32, decay: f64) -> Update {
        let AdamSettings { beta1, beta2, epsilon, .. } = self.settings;
        let updates = self.updates as f64;
        let (correction1, correction2) = (1.0 - beta1.powf(updates), 1.0 - beta2.powf(updates));
        Update {
            clip,
            keep: (1.0 - rate * decay) as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            step_size: (rate / correction1) as f32,
            correction2_sqrt: correction2.sqrt() as f32,
            epsilon: epsilon as f32,
        }
    }
}

impl Update {
    fn apply(&self, values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        let tensors = values.iter_mut().zip(gradient);
        for ((value, gradient), (m, v)) in tensors.zip(first.iter_mut().zip(second)) {
            let gradient = gradient * self.clip;
            *m = match self.one_minus_beta1 < 0.5 {
                true => *m + self.one_minus_beta1 * (gradient - *m),
                // `lerp` takes this form from a weight of one half on.
                false => gradient - (gradient - *m) * (1.0 - self.one_minus_beta1),
            };
            *v = *v * self.beta2 + self.one_minus_beta2 * gradient * gradient;
            let denominator = v.sqrt() / self.correction2_sqrt + self.epsilon;
            *value = *value * self.keep - self.step_size * (*m / denominator);
        }
    }
}

/// Every trainable parameter has a gradient, of its own length.
fn check_gradients(parameters: &[Parameter]) -> Result<()> {
    let missing = |p: &&Parameter| p.trainable && p.gradient.len() != p.values.len();
    match parameters.iter().find(missing) {
        None => Ok(()),
        Some(Parameter { name, gradient, values, .. }) => Err(Error::Internal(format!(
            "parameter {name:?} is trained but has {} gradients for {} values",
            gradient.len(),
            values.len()
        ))),
    }
}

/// The Euclidean norm of all gradients together, summed in f64.
///
/// # Errors
/// [`Error::Internal`] naming a trainable parameter without a gradient.
pub(crate) fn gradient_norm(parameters: &[Parameter], pool: &Pool) -> Result<f64> {
    check_gradients(parameters)?;
    let trained = parameters.iter().filter(|parameter| parameter.trainable);
    let chunks: Vec<(&[f32], Mutex<f64>)> = trained
        .flat_map(|parameter| parameter.gradient.chunks(CHUNK))
        .map(|chunk| (chunk, Mutex::new(0.0)))
        .collect();
    pool.run(chunks.len(), true, |_, range| {
        for (gradient, sum) in chunks.get(range).unwrap_or_default() {
            *sum.lock().unwrap_or_else(PoisonError::into_inner) = sum_of_squares(gradient);
        }
    });
    let sums = chunks.into_iter().map(|(_, sum)| sum.into_inner());
    Ok(sums.map(|sum| sum.unwrap_or_else(PoisonError::into_inner)).sum::<f64>().sqrt())
}

fn sum_of_squares(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; LANES];
    for piece in values.chunks(LANES) {
        for (sum, value) in sums.iter_mut().zip(piece) {
            *sum += f64::from(*value) * f64::from(*value);
        }
    }
    sums.iter().sum()
}

/// The scale that brings gradients of this norm to at most `max`, as `clip_grad_norm_` forms it;
/// `max` of 0 is no limit.
pub(crate) fn clip_scale(norm: f64, max: f64) -> f32 {
    match max > 0.0 {
        true => (max / (norm + 1e-6)).min(1.0) as f32,
        false => 1.0,
    }
}
