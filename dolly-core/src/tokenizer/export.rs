//! Tokenizers on their way out: as a `tokenizer.json`, or as GGUF's metadata.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::parts::Parts;
use super::{MAX_BYTES, read};
use crate::error::{Error, Result};
use crate::weights::{GgufTokenType, GgufTokenizer};

/// A tokenizer as its file has it, to be written in another form.
pub(crate) struct Exported(Parts);

impl Exported {
    /// From a `tokenizer.json`; errors as [`Tokenizer::from_file`](super::Tokenizer::from_file).
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = crate::json::read_bounded(path, MAX_BYTES)?;
        read::parse(&bytes).map(Self).map_err(|reason| Error::tokenizer(path, reason))
    }

    /// From the arrays of a GGUF file, `origin`.
    pub fn from_gguf_parts(
        tokens: Vec<String>,
        types: &[i32],
        merges: &[String],
        origin: &Path,
    ) -> Result<Self> {
        let parts = Parts::from_gguf(tokens, types, merges);
        parts.map(Self).map_err(|reason| Error::tokenizer(origin, reason))
    }

    /// GGUF's arrays; it has no place for a prefix space, nor for text left unnormalised.
    pub fn into_gguf(self) -> Result<GgufTokenizer> {
        let Parts { tokens, merges, added, nfc, prefix_space, .. } = self.0;
        if prefix_space || !nfc {
            let what = "GGUF of a tokenizer with a prefix space or without NFC";
            return Err(Error::Unsupported(what.to_owned()));
        }
        let mut token_types = vec![GgufTokenType::Normal; tokens.len()];
        for token in added {
            if let Some(slot) = token_types.get_mut(token.id as usize) {
                *slot = match token.special {
                    true => GgufTokenType::Control,
                    false => GgufTokenType::UserDefined,
                };
            }
        }
        let merges = merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
        Ok(GgufTokenizer { tokens, token_types, merges, ..GgufTokenizer::default() })
    }

    /// A `tokenizer.json` in the form the `tokenizers` library writes for GPT-NeoX.
    pub fn to_json(&self) -> Value {
        let Parts { tokens, base, merges, added, nfc, prefix_space } = &self.0;
        let added: Vec<Value> = added
            .iter()
            .map(|token| {
                json!({
                    "id": token.id, "content": token.content, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": token.normalized, "special": token.special,
                })
            })
            .collect();
        let own = tokens.iter().take(*base).enumerate();
        let vocab: Map<String, Value> = own.map(|(id, token)| (token.clone(), id.into())).collect();
        let merges: Vec<String> =
            merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true,
        });
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": if *nfc { json!({"type": "NFC"}) } else { Value::Null },
            "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "vocab": vocab, "merges": merges,
            },
        })
    }
}
