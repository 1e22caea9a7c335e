//! A model small enough to check by hand: the next token's logits are `out * embed[token] + bias`.

use super::examples::{Example, Examples};
use super::model::{LossSum, Model, Parameter, Sequence};
use crate::error::Result;
use crate::generate::sampler::derive_seed;

pub(crate) const VOCAB: usize = 11;
const WIDTH: usize = 4;

/// Embedding, output, bias, and a frozen scale of the logits.
#[derive(Debug, Clone)]
pub(crate) struct Tiny {
    parameters: Vec<Parameter>,
    /// Calls of `accumulate` until the loss becomes NaN.
    pub poison: Option<u64>,
}

impl Tiny {
    pub fn new() -> Self {
        let parameter = |name: &str, shape: &[usize], trainable: bool, seed: u64| {
            let len = shape.iter().product();
            let value = |i| (derive_seed(seed, i + 1) % 1000) as f32 / 1000.0 - 0.5;
            let values = match trainable {
                true => (0..len).map(value).collect(),
                false => vec![1.0; len],
            };
            let gradient = if trainable { vec![0.0; len] } else { Vec::new() };
            Parameter { name: name.into(), shape: shape.to_vec(), values, gradient, trainable }
        };
        let parameters = vec![
            parameter("embed.weight", &[VOCAB, WIDTH], true, 1),
            parameter("scale.weight", &[1], false, 2),
            parameter("out.weight", &[VOCAB, WIDTH], true, 3),
            parameter("out.bias", &[VOCAB], true, 4),
        ];
        Self { parameters, poison: None }
    }

    /// Probabilities after `token`, and the hidden state.
    fn forward(&self, token: usize) -> (Vec<f32>, Vec<f32>) {
        let [embed, scale, out, bias] = &self.parameters[..] else { unreachable!() };
        let hidden = embed.values[token * WIDTH..][..WIDTH].to_vec();
        let logit = |row: usize| {
            let weights = &out.values[row * WIDTH..][..WIDTH];
            let sum: f32 = weights.iter().zip(&hidden).map(|(w, h)| w * h).sum();
            (sum + bias.values[row]) * scale.values[0]
        };
        let mut p: Vec<f32> = (0..VOCAB).map(|row| logit(row).exp()).collect();
        let sum: f32 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= sum);
        (p, hidden)
    }

    fn sequence(&mut self, sequence: &Sequence<'_>, scale: Option<f32>) -> LossSum {
        let mut loss = LossSum::default();
        for at in sequence.first_label..sequence.ids.len() {
            let (token, next) = (sequence.ids[at - 1] as usize, sequence.ids[at] as usize);
            let (p, hidden) = self.forward(token);
            loss.nats -= f64::from(p[next].ln());
            loss.tokens += 1;
            let Some(scale) = scale else { continue };
            let [embed, _, out, bias] = &mut self.parameters[..] else { unreachable!() };
            for (row, p) in p.iter().enumerate() {
                let slope = scale * (p - f32::from(u8::from(row == next)));
                bias.gradient[row] += slope;
                for (i, h) in hidden.iter().enumerate() {
                    out.gradient[row * WIDTH + i] += slope * h;
                    embed.gradient[token * WIDTH + i] += slope * out.values[row * WIDTH + i];
                }
            }
        }
        loss
    }
}

impl Model for Tiny {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut [Parameter] {
        &mut self.parameters
    }

    fn zero_gradients(&mut self) {
        self.parameters.iter_mut().for_each(|p| p.gradient.fill(0.0));
    }

    fn accumulate(&mut self, batch: &[Sequence<'_>], scale: f32, _: u64) -> Result<LossSum> {
        let mut loss = LossSum::default();
        for sequence in batch {
            let one = self.sequence(sequence, Some(scale));
            loss.nats += one.nats;
            loss.tokens += one.tokens;
        }
        if let Some(calls) = &mut self.poison {
            match calls.checked_sub(1) {
                Some(left) => *calls = left,
                None => loss.nats = f64::NAN,
            }
        }
        Ok(loss)
    }

    fn losses(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<LossSum>> {
        Ok(batch.iter().map(|sequence| self.sequence(sequence, None)).collect())
    }
}

/// Sequences of a simple rule (each id follows from the one before), in two categories.
pub(crate) fn examples(rows: usize, seed: u64) -> Examples {
    let list = (0..rows)
        .map(|row| {
            let draw = derive_seed(seed, row + 1);
            let (start, length) = (draw % VOCAB as u64, 3 + (draw >> 8) % 6);
            let ids = (0..length).map(|i| ((start + 3 * i) % VOCAB as u64) as u32).collect();
            let category = (row % 3 < 2).then_some(row % 3);
            Example { ids, first_label: 1 + (draw >> 16) as usize % 2, category }
        })
        .collect();
    Examples { list, categories: vec!["even".to_owned(), "odd".to_owned()], dropped: 0 }
}
