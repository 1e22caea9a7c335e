//! Dolly's special tokens, added to a tokenizer that lacks them.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::json::parse_strict;
use crate::prompt::{DOLLY_TOKENS, DollyPrompt};
use crate::tokenizer::Tokenizer;

#[cfg(test)]
mod tests;

/// A tokenizer and the bytes of its `tokenizer.json`.
#[derive(Debug, Clone)]
pub(crate) struct TokenizerFile {
    pub tokenizer: Tokenizer,
    pub json: Vec<u8>,
}

impl TokenizerFile {
    /// Reads a `tokenizer.json`; `origin` is named in errors.
    pub fn new(json: Vec<u8>, origin: &Path) -> Result<Self> {
        Ok(Self { tokenizer: Tokenizer::from_bytes(&json, origin)?, json })
    }

    /// Adds those of `### End`, `### Instruction:` and `### Response:\n` that are missing, in this
    /// order and with the next free ids, as transformers' `add_special_tokens` does.
    ///
    /// A tokenizer that has `### Response:` without the newline as a token keeps it: the published
    /// dolly-v2-3b is such.
    pub fn with_dolly_tokens(self, origin: &Path) -> Result<Self> {
        let prompt = DollyPrompt::new(&self.tokenizer);
        let ids = [prompt.end_id(), prompt.instruction_id(), prompt.response_id()];
        let tokens = DOLLY_TOKENS.into_iter().zip(ids);
        let missing: Vec<&str> =
            tokens.filter_map(|(token, id)| id.is_none().then_some(token)).collect();
        if missing.is_empty() {
            return Ok(self);
        }
        let refuse = |reason: String| Error::tokenizer(origin, reason);
        // Every value takes a byte at least, and the file was read as a tokenizer before.
        let mut tree = parse_strict(&self.json, self.json.len()).map_err(refuse)?;
        let entries = tree
            .as_object_mut()
            .map(|tree| tree.entry("added_tokens").or_insert_with(|| json!([])));
        let Some(Value::Array(added)) = entries else {
            return Err(refuse("\"added_tokens\" is no list".to_owned()));
        };
        let mut next = self.tokenizer.vocab_size();
        for token in missing {
            let id = match self.tokenizer.id_of(token) {
                Some(id) => id as usize,
                None => {
                    next += 1;
                    next - 1
                }
            };
            added.retain(|entry| entry.get("content").and_then(Value::as_str) != Some(token));
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            }));
        }
        let json = serde_json::to_vec(&tree).map_err(|error| refuse(error.to_string()))?;
        Self::new(json, origin)
    }
}
