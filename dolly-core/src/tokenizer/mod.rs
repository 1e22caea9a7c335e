//! Text to ids and back.
//!
//! The tokenizer of the family is byte-level BPE: text is normalised to NFC, cut at added tokens,
//! split into words by GPT-2's pattern, and each word's bytes are merged by rank. Files are read
//! by [`read`] with a closed list of components, because the `tokenizers` crate can be made to
//! abort by a small file; its vocabulary and its matching of added tokens then work on parts that are
//! known to be sound. Splitting ([`words`]) and merging ([`merge`]) are our own: the crate's pattern
//! gives up on runs of a million blanks and silently merges what follows, and long words take too
//! long.

use std::path::Path;
use std::sync::Arc;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::{AddedToken, AddedVocabulary, Model, OffsetReferential, OffsetType};

use crate::error::{Error, Result, try_vec};
use merge::{Merges, Scratch};
use parts::Parts;

mod export;
mod merge;
mod parts;
mod read;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod train;
mod words;

pub(crate) use export::Exported;
pub use stream::TextStream;
pub use train::train_tokenizer;

/// Longest `tokenizer.json` that is read; GPT-NeoX's has 2.4 MB.
pub(crate) const MAX_BYTES: u64 = 64 << 20;

/// The tokenizer of a checkpoint; clones share one copy.
///
/// ```no_run
/// use dolly_core::tokenizer::Tokenizer;
/// let tokenizer = Tokenizer::from_file("tokenizer.json".as_ref())?;
/// let ids = tokenizer.encode("Explain ### End to me.", false)?; // `### End` is plain text here
/// assert_eq!(tokenizer.decode(&ids, true)?, "Explain ### End to me.");
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    /// The vocabulary, without its merges.
    vocab: BPE,
    merges: Merges,
    words: regex::Regex,
    /// Added tokens, all matched.
    with_special: AddedVocabulary,
    /// Added tokens, special ones left as text.
    without_special: AddedVocabulary,
    nfc: Option<NFC>,
    prefix_space: bool,
    /// The bytes of all tokens one after the other; token `id` ends at `ends[id]`.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    /// By id: whether the token is special.
    special: Vec<bool>,
    /// Special tokens in the order of their ids.
    special_tokens: Vec<(u32, String)>,
    /// The token of each single byte; bytes that no UTF-8 text holds may lack one.
    byte_ids: [Option<u32>; 256],
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json` of the GPT-NeoX family.
    ///
    /// Errors with [`Error::Tokenizer`] naming the first component or entry that is malformed or
    /// not of this family; with [`Error::Format`] above 64 MiB.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_bytes(&crate::json::read_bounded(path, MAX_BYTES)?, path)
    }

    /// As [`from_file`](Self::from_file), from bytes already read; `origin` is named in errors.
    pub fn from_bytes(bytes: &[u8], origin: &Path) -> Result<Self> {
        if bytes.len() as u64 > MAX_BYTES {
            let len = bytes.len();
            let reason = format!("has {len} bytes; at most {MAX_BYTES} are allowed");
            return Err(Error::format(origin, reason));
        }
        let refuse = |reason| Error::tokenizer(origin, reason);
        Self::build(read::parse(bytes).map_err(refuse)?).map_err(refuse)
    }

    /// The tokenizer in a GGUF file's metadata (`tokenizer.ggml.*`, model `gpt2`).
    ///
    /// `token_types` may be empty, else there is one for each token: 3 marks special tokens, 4
    /// tokens matched as a whole, the others are parts of words. `merges` are pairs joined by a
    /// blank, best first. Errors as [`from_file`](Self::from_file).
    pub fn from_gguf_parts(
        tokens: Vec<String>,
        token_types: &[i32],
        merges: &[String],
        origin: &Path,
    ) -> Result<Self> {
        let refuse = |reason| Error::tokenizer(origin, reason);
        let parts = Parts::from_gguf(tokens, token_types, merges).map_err(refuse)?;
        Self::build(parts).map_err(refuse)
    }

    fn build(parts: Parts) -> Result<Self, String> {
        let checked = parts.check()?;
        let reserve = |error: Error| error.to_string();
        let total: usize = parts.tokens.iter().map(String::len).sum();
        let mut bytes = try_vec(total, "token bytes").map_err(reserve)?;
        let mut ends = try_vec(parts.tokens.len(), "token bytes").map_err(reserve)?;
        for (token, is_added) in parts.tokens.iter().zip(&checked.is_added) {
            words::append_token_bytes(token, *is_added, &mut bytes);
            ends.push(u32::try_from(bytes.len()).map_err(|_| "over 4 GiB of tokens")?);
        }
        let nfc = parts.nfc.then_some(NFC);
        let vocab =
            parts.tokens.into_iter().enumerate().map(|(id, token)| (token, id as u32)).collect();
        let vocab = vocabulary(vocab)?;
        let merges = Merges::new(vocab.get_vocab_size(), &checked.merges).map_err(reserve)?;
        let matcher = |encode_special: bool| {
            let tokens = parts.added.iter().map(|added| {
                AddedToken::from(&added.content, added.special).normalized(added.normalized)
            });
            let mut vocabulary = AddedVocabulary::new();
            vocabulary.add_tokens(tokens, &vocab, nfc.as_ref()).map_err(|e| e.to_string())?;
            vocabulary.set_encode_special_tokens(encode_special);
            Ok::<_, String>(vocabulary)
        };
        let (with_special, without_special) = (matcher(false)?, matcher(true)?);
        let mut special_tokens: Vec<(u32, String)> = Vec::new();
        for added in parts.added.into_iter().filter(|added| added.special) {
            special_tokens.push((added.id, added.content));
        }
        special_tokens.sort_unstable();
        Ok(Self(Arc::new(Inner {
            vocab,
            merges,
            words: words::pattern()?,
            with_special,
            without_special,
            nfc,
            prefix_space: parts.prefix_space,
            bytes,
            ends,
            special: checked.is_special,
            special_tokens,
            byte_ids: checked.byte_ids,
        })))
    }

    /// The ids of `text`.
    ///
    /// With `special`, special tokens in the text become their ids, as in the reference's whole
    /// string encoding; without, the result never holds a special id, whatever the text. Added
    /// tokens that are not special (runs of blanks) match in both cases. A byte that the
    /// vocabulary has no token for is [`Error::InvalidInput`]: no text is lost in silence.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let inner = &*self.0;
        let vocabulary = if special { &inner.with_special } else { &inner.without_special };
        let pieces = vocabulary.extract_and_normalize(inner.nfc.as_ref(), text);
        let mut ids = try_vec(text.len() / 4, "token ids")?;
        let mut word = Scratch::default();
        let splits = pieces.get_splits(OffsetReferential::Normalized, OffsetType::None);
        for (piece, _, tokens) in splits {
            match tokens {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => self.encode_piece(piece, &mut word, special, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// Encodes text between added tokens; `word` is scratch space.
    fn encode_piece(
        &self,
        piece: &str,
        word: &mut Scratch,
        special: bool,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let prefixed;
        let mut text = piece;
        if self.0.prefix_space && !text.starts_with(' ') {
            prefixed = format!(" {text}");
            text = &prefixed;
        }
        for part in words::split(&self.0.words, text) {
            word.ids.clear();
            for byte in part.bytes() {
                word.ids.push(self.0.byte_ids[usize::from(byte)].ok_or_else(|| {
                    let reason = format!("the vocabulary has no token for byte {byte:#04x}");
                    Error::InvalidInput(format!("{reason}, in {part:?}"))
                })?);
            }
            self.0.merges.apply(word)?;
            for id in &word.ids {
                match !special && self.is_special(*id) {
                    true => self.spell_out(*id, ids),
                    false => ids.push(*id),
                }
            }
        }
        Ok(())
    }

    /// Appends the bytes of a token one by one: a vocabulary whose merges lead to a special token
    /// must not turn plain text into it.
    fn spell_out(&self, id: u32, ids: &mut Vec<u32>) {
        let bytes = self.token_bytes(id).unwrap_or_default();
        ids.extend(bytes.iter().filter_map(|byte| self.0.byte_ids[usize::from(*byte)]));
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD as in
    /// [`String::from_utf8_lossy`].
    ///
    /// With `skip_special`, special tokens are left out. Errors with [`Error::InvalidInput`] on
    /// an id the tokenizer does not have.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let mut bytes = Vec::new();
        for id in ids {
            bytes.extend_from_slice(self.shown_bytes(*id, skip_special)?);
        }
        Ok(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    }

    /// What `id` adds to a decoded text.
    fn shown_bytes(&self, id: u32, skip_special: bool) -> Result<&[u8]> {
        match self.token_bytes(id) {
            Some(_) if skip_special && self.is_special(id) => Ok(&[]),
            Some(bytes) => Ok(bytes),
            None => {
                let size = self.vocab_size();
                Err(Error::InvalidInput(format!("token id {id}; the tokenizer has {size} ids")))
            }
        }
    }

    /// The bytes of one token, added tokens as UTF-8; `None` for an id it does not have.
    ///
    /// A token may hold part of a character.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let id = usize::try_from(id).ok()?;
        let end = *self.0.ends.get(id)? as usize;
        let start = id.checked_sub(1).and_then(|before| self.0.ends.get(before));
        self.0.bytes.get(start.map_or(0, |start| *start as usize)..end)
    }

    /// Number of ids, added tokens included; the network may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.0.ends.len()
    }

    /// The id of a token, spelled as in the file (`Ġthe`, `### End`).
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.0.vocab.token_to_id(token)
    }

    /// Whether `id` is a special token: framing, never text.
    pub fn is_special(&self, id: u32) -> bool {
        usize::try_from(id).ok().and_then(|id| self.0.special.get(id)).copied().unwrap_or(false)
    }

    /// The special tokens and their ids, in the order of ids.
    pub fn special_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        self.0.special_tokens.iter().map(|(id, content)| (*id, content.as_str()))
    }

    /// A stream that turns ids into text as they come.
    pub fn stream(&self, skip_special: bool) -> TextStream {
        TextStream::new(self.clone(), skip_special)
    }
}

/// The crate's model as a vocabulary. Its cache is off: it is kept per thread and never freed, so it
/// would grow with every tokenizer loaded.
fn vocabulary(vocab: tokenizers::models::bpe::Vocab) -> Result<BPE, String> {
    let builder = BPE::builder().vocab_and_merges(vocab, Vec::new()).cache_capacity(0);
    builder.build().map_err(|error| error.to_string())
}
