//! A tokenizer for a model from nothing: byte-level BPE with the structure of GPT-NeoX's.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::{AddedToken, NormalizedString, Normalizer, Trainer};

use super::Exported;
use super::words::{self, BYTE_CHARS};
use crate::error::{Error, Result};
use crate::prompt::DOLLY_TOKENS;

/// Tokens before the alphabet, as in GPT-NeoX's vocabulary: ids 0 and 1.
const FIRST_TOKENS: [&str; 2] = ["<|endoftext|>", "<|padding|>"];
/// Fewest ids: the special tokens and one for each byte.
const SMALLEST: usize = FIRST_TOKENS.len() + 256 + DOLLY_TOKENS.len();
/// Most ids.
const LARGEST: usize = 1 << 20;

/// Learns a vocabulary of `vocab_size` ids from texts; the bytes of a `tokenizer.json`.
///
/// Ids 0 and 1 are `<|endoftext|>` and `<|padding|>`, then come the 256 bytes, the merges from the
/// most frequent on (Sennrich et al., 2016), and Dolly's three tokens last. The same texts give the
/// same bytes whatever `threads`. Texts too few for the wish give a smaller vocabulary.
///
/// # Errors
/// [`Error::InvalidOption`] for a `vocab_size` below 261 or above 1,048,576, or for no threads or
/// more than 1024; [`Error::Device`] when threads cannot be started.
///
/// ```
/// use dolly_core::tokenizer::{Tokenizer, train_tokenizer};
/// let texts = ["low lower lowest", "new newer newest"];
/// let json = train_tokenizer(texts.into_iter(), 270, 1)?;
/// let tokenizer = Tokenizer::from_bytes(&json, "texts".as_ref())?;
/// assert_eq!(tokenizer.vocab_size(), 270);
/// assert_eq!(tokenizer.decode(&tokenizer.encode("lowest", false)?, false)?, "lowest");
/// # Ok::<(), dolly_core::Error>(())
/// ```
pub fn train_tokenizer<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    vocab_size: usize,
    threads: usize,
) -> Result<Vec<u8>> {
    if !(SMALLEST..=LARGEST).contains(&vocab_size) {
        return Err(Error::option("vocab_size", vocab_size, "261 to 1048576"));
    }
    if !(1..=1024).contains(&threads) {
        return Err(Error::option("threads", threads, "1 to 1024"));
    }
    // The crate would use the process's global pool: a host's own, or one that outlives the call.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| Error::Device {
        device: "cpu".to_owned(),
        reason: format!("cannot start {threads} threads: {error}"),
    })?;
    let learned = pool.install(|| learn(texts, vocab_size - DOLLY_TOKENS.len()));
    let learned = learned.map_err(|e| Error::Internal(format!("learning a vocabulary: {e}")))?;
    serialise(learned)
}

/// A model as the crate serialises it.
#[derive(Deserialize)]
struct Learned {
    vocab: std::collections::HashMap<String, usize>,
    merges: Vec<(String, String)>,
}

fn learn<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    vocab_size: usize,
) -> tokenizers::Result<Learned> {
    let alphabet: HashSet<char> = BYTE_CHARS.into_iter().collect();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .show_progress(false)
        .special_tokens(FIRST_TOKENS.map(|token| AddedToken::from(token, true)).to_vec())
        .initial_alphabet(alphabet)
        .build();
    let pattern = words::pattern()?;
    trainer.feed(texts, |text| {
        let mut text = NormalizedString::from(text);
        NFC.normalize(&mut text)?;
        let spell = |word: &str| word.bytes().map(|b| BYTE_CHARS[usize::from(b)]).collect();
        Ok(words::split(&pattern, text.get()).map(spell).collect())
    })?;
    let mut model = BPE::default();
    trainer.train(&mut model)?;
    Ok(serde_json::from_value(serde_json::to_value(&model)?)?)
}

fn serialise(learned: Learned) -> Result<Vec<u8>> {
    /// GGUF's numbers for parts of words and for special tokens.
    const NORMAL: i32 = 1;
    const SPECIAL: i32 = 3;
    let mut tokens = vec![String::new(); learned.vocab.len()];
    for (token, id) in learned.vocab {
        if let Some(slot) = tokens.get_mut(id) {
            *slot = token;
        }
    }
    let mut types = vec![NORMAL; tokens.len()];
    types[..FIRST_TOKENS.len()].fill(SPECIAL);
    tokens.extend(DOLLY_TOKENS.map(str::to_owned));
    types.resize(tokens.len(), SPECIAL);
    let merges: Vec<String> = learned.merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
    let exported = Exported::from_gguf_parts(tokens, &types, &merges, Path::new("new tokenizer"))?;
    serde_json::to_vec(&exported.to_json()).map_err(|e| Error::Internal(e.to_string()))
}
