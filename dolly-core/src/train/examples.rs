//! From rows and texts to the sequences that are trained on.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::model::Sequence;
use super::network::BatchSize;
use crate::error::{Error, Result, try_vec};
use crate::options::CancelToken;
use crate::prompt::{DollyPrompt, END_KEY, Instruction, Segment};
use crate::tokenizer::Tokenizer;

#[cfg(test)]
mod tests;

/// A row of instruction data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    pub instruction: &'a str,
    /// Empty where there is none.
    pub context: &'a str,
    pub response: &'a str,
    pub category: Option<&'a str>,
}

/// One sequence, ready to be trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Example {
    pub ids: Vec<u32>,
    /// `ids[first_label..]` are predicted; 1 or more, below the length.
    pub first_label: usize,
    /// Index into [`Examples::categories`].
    pub category: Option<usize>,
}

impl Example {
    pub fn sequence(&self) -> Sequence<'_> {
        Sequence { ids: &self.ids, first_label: self.first_label }
    }

    /// Tokens that are predicted.
    pub fn labels(&self) -> usize {
        self.ids.len().saturating_sub(self.first_label)
    }
}

/// Sequences, the names of their categories, and how many were too long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Examples {
    pub list: Vec<Example>,
    pub categories: Vec<String>,
    /// Rows left out because they had `max_length` tokens or more.
    pub dropped: usize,
}

impl Examples {
    /// Encodes rows as the original's training text, and drops those of `max_length` tokens or
    /// more: their `### End` would be cut.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming a row (from 0) whose instruction or response is empty,
    /// [`Error::Cancelled`], and those of encoding.
    pub fn from_rows<'a>(
        rows: impl IntoIterator<Item = Row<'a>>,
        tokenizer: &Tokenizer,
        max_length: usize,
        cancel: Option<&CancelToken>,
    ) -> Result<Self> {
        let prompt = DollyPrompt::new(tokenizer);
        let mut examples = Self::default();
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        for (index, row) in rows.into_iter().enumerate() {
            cancel.map_or(Ok(()), CancelToken::check)?;
            for (field, text) in [("instruction", row.instruction), ("response", row.response)] {
                if text.is_empty() {
                    return Err(Error::InvalidInput(format!("row {index}: {field} is empty")));
                }
            }
            let (ids, first_label) = encode(&prompt, tokenizer, &row)?;
            if ids.len() >= max_length {
                examples.dropped += 1;
                continue;
            }
            let category = row.category.map(|name| {
                *numbers.entry(name).or_insert_with(|| {
                    examples.categories.push(name.to_owned());
                    examples.categories.len() - 1
                })
            });
            examples.list.push(Example { ids, first_label, category });
        }
        Ok(examples)
    }

    /// Blocks of plain text, of which every token after the first is predicted.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a block of fewer than two tokens, and [`Error::Cancelled`].
    pub fn from_blocks(
        blocks: impl IntoIterator<Item = Vec<u32>>,
        cancel: Option<&CancelToken>,
    ) -> Result<Self> {
        let mut examples = Self::default();
        for (index, ids) in blocks.into_iter().enumerate() {
            cancel.map_or(Ok(()), CancelToken::check)?;
            if ids.len() < 2 {
                let reason = format!("block {index} has {} tokens; 2 are needed", ids.len());
                return Err(Error::InvalidInput(reason));
            }
            examples.list.push(Example { ids, first_label: 1, category: None });
        }
        Ok(examples)
    }

    /// What no batch of `size` sequences is larger than: that of the longest ones.
    pub fn largest_batch(&self, size: usize) -> Result<BatchSize> {
        let mut lengths = try_vec(self.list.len(), "the lengths of sequences")?;
        lengths.extend(self.list.iter().map(|example| example.ids.len()));
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let tokens = lengths.iter().take(size).sum();
        Ok(BatchSize { tokens, longest: lengths.first().copied().unwrap_or(0) })
    }

    /// SHA-256 over ids and first labels in order: another tokenizer, order or split is other data.
    pub fn digest(&self, hash: &mut Sha256) {
        hash.update((self.list.len() as u64).to_le_bytes());
        for Example { ids, first_label, .. } in &self.list {
            hash.update((ids.len() as u64).to_le_bytes());
            hash.update((*first_label as u64).to_le_bytes());
            for id in ids {
                hash.update(id.to_le_bytes());
            }
        }
    }
}

/// The training text of a row as ids, and the position of the first one to be predicted: the one
/// after the response key's token, found by where it was put and not by searching.
///
/// Where the token lacks the newline, the newline is predicted too, as by the original's mask.
fn encode(prompt: &DollyPrompt, tokenizer: &Tokenizer, row: &Row<'_>) -> Result<(Vec<u32>, usize)> {
    let instruction = Instruction::new(row.instruction).context(row.context);
    let (mut ids, mut after_key) = (Vec::new(), 0);
    for segment in prompt.render(&instruction) {
        match segment {
            Segment::Framing { id, .. } => {
                ids.push(id);
                after_key = ids.len();
            }
            Segment::Text { text, .. } => ids.extend(tokenizer.encode(&text, false)?),
        }
    }
    // Without a response token the whole prompt is given, as when an answer is generated.
    let first_label = if prompt.response_id().is_some() { after_key } else { ids.len() };
    match prompt.end_id() {
        Some(_) => ids.extend(prompt.encode_response(tokenizer, row.response)?),
        // The text that ends an answer where no token does.
        None => ids.extend(tokenizer.encode(&format!("{}\n\n{END_KEY}", row.response), false)?),
    }
    Ok((ids, first_label))
}
