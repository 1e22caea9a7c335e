//! What a batch asks of the network: rows of tokens one sequence after the other, no padding.

use crate::error::{Error, Result, try_vec};
use crate::kernels::attention_gradient::Rows;

/// A sequence to learn or to rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequence<'a> {
    /// All tokens.
    pub ids: &'a [u32],
    /// `ids[first_label..]` are predicted, each from the tokens before it; 1 or more.
    pub first_label: usize,
}

impl Sequence<'_> {
    /// Number of predicted tokens.
    pub(crate) fn labels(&self) -> usize {
        self.ids.len().saturating_sub(self.first_label)
    }
}

/// A batch, checked.
#[derive(Debug)]
pub(super) struct Plan {
    /// Input tokens: every sequence without its last one, which predicts nothing.
    pub ids: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Rows of each sequence.
    pub sequences: Vec<Rows>,
    /// Rows whose next token is predicted, in order, and that token.
    pub labels: Vec<(usize, u32)>,
    /// Labels of each sequence.
    pub label_counts: Vec<usize>,
}

impl Plan {
    pub(super) fn new(batch: &[Sequence<'_>], vocabulary: usize, context: usize) -> Result<Self> {
        let rows = batch.iter().map(|s| s.ids.len()).sum();
        let mut plan = Self {
            ids: try_vec(rows, "a batch")?,
            positions: try_vec(rows, "a batch")?,
            sequences: try_vec(batch.len(), "a batch")?,
            labels: try_vec(rows, "a batch")?,
            label_counts: try_vec(batch.len(), "a batch")?,
        };
        for (index, sequence) in batch.iter().enumerate() {
            let invalid = |what: String| Error::InvalidInput(format!("sequence {index}: {what}"));
            let len = sequence.ids.len();
            if sequence.first_label == 0 || sequence.labels() == 0 {
                let first = sequence.first_label;
                return Err(invalid(format!("{len} tokens, predicted from {first} on: none")));
            }
            if len > context {
                return Err(invalid(format!("{len} tokens; the context holds {context}")));
            }
            if let Some(id) = sequence.ids.iter().find(|id| **id as usize >= vocabulary) {
                return Err(invalid(format!("token id {id}; the network has {vocabulary} rows")));
            }
            let first = plan.ids.len();
            plan.ids.extend_from_slice(&sequence.ids[..len - 1]);
            plan.positions.extend(0..len as u32 - 1);
            plan.sequences.push(Rows { first, count: len - 1 });
            let labels = sequence.ids.iter().enumerate().skip(sequence.first_label);
            plan.labels.extend(labels.map(|(i, id)| (first + i - 1, *id)));
            plan.label_counts.push(sequence.labels());
        }
        Ok(plan)
    }

    /// Rows of activations.
    pub(super) fn rows(&self) -> usize {
        self.ids.len()
    }
}
