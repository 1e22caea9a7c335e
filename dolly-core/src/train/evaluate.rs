//! Loss and perplexity of a model on sequences it is not trained on.

use std::collections::BTreeMap;

use super::examples::Examples;
use super::model::{LossSum, Model};
use crate::error::{Error, Result};
use crate::options::CancelToken;

/// Mean loss over the predicted tokens of some rows.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct MeanLoss {
    /// Mean of `-ln p` over predicted tokens, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Predicted tokens.
    pub tokens: u64,
    /// Rows.
    pub rows: u64,
}

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Evaluation {
    /// Over all rows.
    pub all: MeanLoss,
    /// By category; rows without one are in none.
    pub by_category: BTreeMap<String, MeanLoss>,
    /// Rows left out because they were too long.
    pub dropped_rows: u64,
}

/// A sum that becomes a [`MeanLoss`].
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    nats: f64,
    tokens: u64,
    rows: u64,
}

impl Sum {
    fn add(&mut self, loss: &LossSum) {
        self.nats += loss.nats;
        self.tokens += loss.tokens as u64;
        self.rows += 1;
    }

    fn mean(self) -> MeanLoss {
        let loss = self.nats / self.tokens.max(1) as f64;
        MeanLoss { loss, perplexity: loss.exp(), tokens: self.tokens, rows: self.rows }
    }
}

/// The losses of `examples`, summed in their order: the batch size does not change the result.
///
/// # Errors
/// [`Error::InvalidInput`] without examples; [`Error::Cancelled`]; those of the model.
pub(crate) fn evaluate_examples(
    model: &mut (impl Model + ?Sized),
    examples: &Examples,
    batch_size: usize,
    cancel: Option<&CancelToken>,
) -> Result<Evaluation> {
    if examples.list.is_empty() {
        return Err(Error::InvalidInput("there is no row to evaluate".to_owned()));
    }
    let mut all = Sum::default();
    let mut categories = vec![Sum::default(); examples.categories.len()];
    for batch in examples.list.chunks(batch_size.max(1)) {
        if cancel.is_some_and(CancelToken::is_cancelled) {
            return Err(Error::Cancelled);
        }
        let sequences: Vec<_> = batch.iter().map(|example| example.sequence()).collect();
        for (example, loss) in batch.iter().zip(model.losses(&sequences)?) {
            all.add(&loss);
            if let Some(sum) = example.category.and_then(|index| categories.get_mut(index)) {
                sum.add(&loss);
            }
        }
    }
    let named = examples.categories.iter().cloned().zip(categories);
    Ok(Evaluation {
        all: all.mean(),
        by_category: named.map(|(name, sum)| (name, sum.mean())).collect(),
        dropped_rows: examples.dropped as u64,
    })
}
