//! Ids in, whole characters out.

use super::Tokenizer;
use crate::error::Result;

/// Turns ids into text as they come, never cutting a character.
///
/// A token is a run of bytes, and characters outside ASCII are often spread over several tokens.
/// Decoding token by token therefore breaks them; the stream holds bytes back until they are a
/// character or can no longer become one. The pieces joined equal [`Tokenizer::decode`] of all
/// ids, byte for byte.
///
/// ```
/// # use dolly_core::tokenizer::Tokenizer;
/// # fn show(tokenizer: &Tokenizer) -> Result<(), dolly_core::Error> {
/// let ids = tokenizer.encode("🐑", false)?; // several tokens, one character
/// let mut broken = String::new();
/// for id in &ids {
///     broken += &tokenizer.decode(&[*id], true)?; // "��…": each token alone is not UTF-8
/// }
/// let mut stream = tokenizer.stream(true);
/// let mut text = String::new();
/// for id in &ids {
///     text += &stream.push(*id)?.unwrap_or_default();
/// }
/// text += &stream.finish().unwrap_or_default();
/// assert_eq!(text, "🐑");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TextStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The start of a character: at most three bytes.
    pending: Vec<u8>,
}

impl TextStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, pending: Vec::new() }
    }

    /// The text that `id` completes, if any.
    ///
    /// Errors with [`Error::InvalidInput`](crate::Error::InvalidInput) on an id the tokenizer does
    /// not have; the stream is then as before.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        let bytes = self.tokenizer.shown_bytes(id, self.skip_special)?;
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    // No length: the bytes may yet become a character.
                    let Some(len) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = rest.get(len..).unwrap_or_default();
                }
            }
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// The end of the text: U+FFFD if it stops inside a character.
    pub fn finish(&mut self) -> Option<String> {
        let open = !self.pending.is_empty();
        self.pending.clear();
        open.then(|| char::REPLACEMENT_CHARACTER.into())
    }
}
